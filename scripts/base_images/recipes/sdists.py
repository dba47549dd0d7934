"""Source packages that vendor llama.cpp whole: which vendors a commit, and whether its files are the commit's."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from packaging.version import InvalidVersion, Version

from base_images.adapters import package_index, pip_settings, repository
from base_images.adapters.download import cache_directory, download
from base_images.adapters.package_index import Listing, Sdist
from base_images.errors import SourceError
from base_images.progress import Listener

TREES = {"xllamacpp": ("thirdparty", "llama.cpp"), "llama-cpp-python": ("vendor", "llama.cpp")}
"""The directory of llama.cpp in the sdists of each package, the cheaper to ask first."""

_BY_NUMBER = re.compile(r"\d{4}\.\d+\.(\d+)")
"""A version of xllamacpp: year, month, and the number of llama.cpp's build."""

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """The sdist of a commit.

    Attributes:
        requirement: such as `llama-cpp-python==0.3.35`; empty if no sdist has the commit.
        sha256: its SHA-256, hexadecimal; empty likewise.
        told: a sentence for the report.
    """

    requirement: str = ""
    sha256: str = ""
    told: str


def archive_path(name: str, version: str) -> Path:
    """Returns where an sdist is kept after its download."""
    return cache_directory() / f"{name}-{version}.tar.gz"


# What a package says that it vendors.


def stated(name: str, version: str, changelog: str) -> str:
    """Returns what a package says that it vendors, an abbreviated commit or a build `b<number>`; empty if nothing.

    xllamacpp's version ends in the number of the build. llama-cpp-python's changelog names commits, the newest of a
    version first.
    """
    if name == "xllamacpp":
        number = _BY_NUMBER.fullmatch(version)
        return f"b{number[1]}" if number else ""
    section = re.search(rf"^## \[{re.escape(version)}\]$(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    commit = re.search(r"llama\.cpp@([0-9a-f]{7,40})\b", section[1]) if section else None
    return commit[1] if commit else ""


def agrees(name: str, said: str, *, tag: str, commit: str) -> bool:
    """Whether what a package says, as `stated` returns it, is this commit."""
    return said == tag if name == "xllamacpp" else bool(said) and commit.startswith(said)


# Finding the sdist of a commit.


def find(*, tag: str, commit: str, made: datetime, blobs: Mapping[str, str], listener: Listener) -> Found:
    """Returns the sdist that vendors a commit, on the package indexes of pip's settings.

    At most one sdist of xllamacpp and two of llama-cpp-python are downloaded, and none that cannot have the commit.

    Args:
        tag: the commit's build, such as `b11549`.
        commit: its full hash.
        made: its time: an sdist that was uploaded before cannot have it.
        blobs: the commit's files with their git ids, which those of the sdist are compared with.
        listener: receives the progress of downloads.
    """
    reasons = []
    indexes = package_index.package_indexes(pip_settings.read("download"))
    for name in TREES:
        listing = package_index.sdists(name, indexes)
        try:
            sdist = _candidate(name, listing, tag=tag, commit=commit, made=made, listener=listener)
            archive = _downloaded(name, sdist, listener)
            return Found(
                requirement=f"{name}=={sdist.version}",
                sha256=sdist.sha256,
                told=f"{name}=={sdist.version} vendors it: {_compared(archive, name, blobs)}.",
            )
        except (SourceError, tarfile.TarError, OSError, EOFError) as error:
            reasons.append(f"{name}: {str(error).rstrip('.')}")
    return Found(told=f"No sdist is known to vendor it, so only git has the source ({'; '.join(reasons)}).")


def _candidate(name: str, listing: Listing, *, tag: str, commit: str, made: datetime, listener: Listener) -> Sdist:
    if not listing.hosts:
        raise SourceError("; ".join(listing.problems) or "no index to ask")
    # An index without times may have it.
    late = [
        each for each in listing.sdists.values() if each.sha256 and (each.uploaded is None or each.uploaded >= made)
    ]
    if not late:
        raise SourceError(f"the newest of {len(listing.sdists)} sdists is older than the commit")
    if name == "xllamacpp":
        numbered = [each for each in late if agrees(name, stated(name, each.version, ""), tag=tag, commit=commit)]
        if not numbered:
            raise SourceError(f"no version ends in {tag.removeprefix('b')}")
        return numbered[0]
    newest = max(late, key=lambda each: _ordered(each.version))
    changelog = _changelog(_downloaded(name, newest, listener))
    named = [each for each in late if agrees(name, stated(name, each.version, changelog), tag=tag, commit=commit)]
    if not named:
        raise SourceError(f"the changelog of {newest.version} does not name {commit[:9]}")
    return named[0]


def _ordered(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def _downloaded(name: str, sdist: Sdist, listener: Listener) -> Path:
    return download(sdist.url, archive_path(name, sdist.version), sha256=sdist.sha256, listener=listener)


def _changelog(archive: Path) -> str:
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            if PurePosixPath(member.name).parts[1:] == ("CHANGELOG.md",) and (stream := members.extractfile(member)):
                return stream.read().decode("utf-8", "replace")
    return ""


def _compared(archive: Path, name: str, blobs: Mapping[str, str]) -> str:
    """Returns in words that the files of an sdist are those of a commit, and how many it lacks.

    Raises:
        SourceError: a file differs, or the commit does not have it.
    """
    ids = dict(_ids(archive, TREES[name], next(iter(blobs.values()), "")))
    foreign = sorted(path for path, identity in ids.items() if blobs.get(path) != identity)
    if foreign or not ids:
        raise SourceError(f"{archive.name} has {len(foreign)} files that are not the commit's, {_some(foreign)}")
    missing = sorted(blobs.keys() - ids.keys())
    lacking = f"; it lacks {len(missing)} that the commit has, {_some(missing)}" if missing else ""
    return f"each of its {len(ids)} files is the commit's{lacking}"


def _some(paths: list[str]) -> str:
    more = ", …" if len(paths) > _SHOWN else ""
    return f"{', '.join(f'`{path}`' for path in paths[:_SHOWN])}{more}"


def _ids(archive: Path, tree: tuple[str, ...], like: str) -> Iterator[tuple[str, str]]:
    """Yields the files of llama.cpp in an archive with their git ids."""
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            path = vendored(member.name, tree)
            if not path or member.isdir():
                continue
            stream = members.extractfile(member) if member.isreg() else None
            yield path, repository.blob_id(stream.read() if stream else member.linkname.encode(), like)


def vendored(member: str, tree: tuple[str, ...]) -> str:
    """Returns the path within llama.cpp of an archive's member; empty for other members.

    `.git` is a file here, a link into the sdist's own repository.
    """
    inside = PurePosixPath(member).parts[1:]
    inner = inside[len(tree) :]
    return str(PurePosixPath(*inner)) if inside[: len(tree)] == tree and inner not in {(), (".git",)} else ""
