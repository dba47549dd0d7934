"""llama.cpp's source tree: the pinned one, which this project fetches, or one of the user's.

The managed tree is `llama.cpp/` in the checkout. It is created by one rename, with a stamp that holds its commit and a
digest over all files, so that an incomplete or edited tree is never mistaken for the pin.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import packaging.requirements

from base_images.adapters import package_index, pip_settings, programs, repository
from base_images.adapters.download import download, is_valid, locked
from base_images.build.bases import REACH_SECONDS
from base_images.build.inputs import Origin, Source, SourceKind
from base_images.errors import SourceError, scrub
from base_images.progress import Listener, Progress
from base_images.recipes import sdists
from base_images.settings import Pin

SOURCE_VARIABLE = "LLAMA_CPP_DIR"
DIRECTORY = "llama.cpp"
STAMP = ".base-images-source.json"

_MARKS = ("CMakeLists.txt", ".devops", "ggml/CMakeLists.txt", "tools/server/CMakeLists.txt", "tools/ui/package.json")
"""Files that a build needs; with CMake's project name they identify llama.cpp."""

_TAG = re.compile(r"b(\d+)")
_RELEASE = re.compile(r"v\d+\.\d+\.\d+")


def resolve(pin: Pin, *, path: Path | None, origin: Origin, root: Path, listener: Listener) -> Source:
    """Returns the source to build: `path`, else LLAMA_CPP_DIR, else the managed tree, fetched unless it is the pin.

    Args:
        pin: the commit of the managed tree.
        path: a tree of the user's; never modified.
        origin: whether the pin is fetched from git, from the sdist, or from the first that is available.
        root: the checkout, which contains the managed tree.
        listener: receives the progress of a download.

    Raises:
        SourceError: a tree is not llama.cpp, or its commit is unknown, or the pin is unavailable.
    """
    if given := _given(path):
        return _inspect(given, pin)
    with locked(root):
        return _managed(pin, origin, root / DIRECTORY, listener)


def expected(pin: Pin, *, path: Path | None, root: Path) -> Source:
    """Returns the source that `resolve` would return, without fetching anything.

    Raises:
        SourceError: a tree of the user's is not llama.cpp, or its commit is unknown.
    """
    tree = root / DIRECTORY
    if given := _given(path):
        return _inspect(given, pin)
    if tree.exists() and not _is_empty(tree):
        found = _stamped(tree, pin) if (tree / STAMP).exists() else _inspect(tree, pin)
        if found.commit == pin.commit:
            return found
    return _source(
        tree, tag=pin.tag, release=pin.release, commit=pin.commit, dirty=False, digest="", kind=SourceKind.GIT
    )


def _given(path: Path | None) -> Path | None:
    if path is None and os.environ.get(SOURCE_VARIABLE):
        path = Path(os.environ[SOURCE_VARIABLE])
    return path.expanduser().resolve() if path else None


def tree_digest(tree: Path, files: list[str] | None = None) -> str:
    """Returns the digest over `files` of a tree, or over all of them except `.git` and the stamp."""
    digest = hashlib.sha256()
    for name in sorted(_files(tree) if files is None else files):
        file = tree / name
        if file.is_symlink():
            mode, content = "link", os.fsencode(file.readlink())
        else:
            mode, content = "executable" if file.stat().st_mode & 0o100 else "file", file.read_bytes()
        digest.update(f"{mode} {len(content)} {name}\0".encode("utf-8", "surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def _files(tree: Path) -> Iterator[str]:
    for directory, subdirectories, names in os.walk(tree):
        below = Path(directory)
        links = [name for name in subdirectories if (below / name).is_symlink()]
        subdirectories[:] = [name for name in subdirectories if name != ".git"]
        for name in (*names, *links):
            # Reading a pipe would wait for ever.
            if name not in {".git", STAMP} and ((below / name).is_file() or (below / name).is_symlink()):
                yield (below / name).relative_to(tree).as_posix()


# Trees of the user's.


def _inspect(tree: Path, pin: Pin) -> Source:
    """Identifies a tree that this project did not fetch."""
    _require_llama_cpp(tree)
    if (tree / STAMP).exists():
        return _stamped(tree, pin, SourceKind.PATH)
    if (tree / ".git").exists():
        return _git_checkout(tree, pin)
    if tree.parts[-2:] in sdists.TREES.values() and (tree.parents[1] / "PKG-INFO").is_file():
        return _unpacked_sdist(tree, pin)
    raise SourceError(
        f"{tree} is llama.cpp, but its commit is unknown: it is neither a git checkout nor in an unpacked "
        f"{' or '.join(reversed(sdists.TREES))} sdist. Use a git clone of llama.cpp, or leave out --source to build "
        "the pin."
    )


def _require_llama_cpp(tree: Path) -> None:
    if not tree.is_dir():
        raise SourceError(f"{tree} is not a directory: give the path of a llama.cpp source tree.")
    missing = [mark for mark in _MARKS if not (tree / mark).exists()]
    if missing:
        inner = [below for parts in sdists.TREES.values() if (below := tree.joinpath(*parts)).is_dir()]
        hint = f" Did you mean {inner[0]}?" if inner else ""
        raise SourceError(f"{tree} is not llama.cpp's source tree: it has no {', '.join(missing)}.{hint}")
    cmake = (tree / "CMakeLists.txt").read_text(encoding="utf-8", errors="replace")
    if not re.search(r'^\s*project\(\s*"?llama\.cpp"?[\s)]', cmake, re.MULTILINE):
        raise SourceError(f'{tree} is not llama.cpp: its CMakeLists.txt does not say project("llama.cpp").')


_NEVER = ("ext", "ssh", "git", "http", "https", "ftp", "ftps", "file")
_INSPECTING = (
    # An object that a partial clone lacks would be fetched with programs that its configuration names.
    *(word for protocol in _NEVER for word in ("-c", f"protocol.{protocol}.allow=never")),
    "--work-tree=.",
)
"""Options of git for a checkout whose configuration must neither start a program nor name another work tree."""


def _git_checkout(tree: Path, pin: Pin) -> Source:
    """Identifies a git checkout by commands that run none of its filters: `git status` would."""

    def git(*arguments: str) -> str:
        outcome = programs.git(*_INSPECTING, *arguments, directory=tree)
        if outcome.exit_code:
            raise SourceError(
                f"git cannot say which commit {tree} is ({outcome.git_reason}): fix that and run it again."
            )
        return outcome.stdout.strip()

    commit = git("rev-parse", "HEAD")
    listed = git("for-each-ref", "--points-at=HEAD", "--format=%(refname:strip=2)", "refs/tags/b*", "refs/tags/v*")
    tags, releases = ([name for name in listed.split() if form.fullmatch(name)] for form in (_TAG, _RELEASE))
    release = releases[-1] if releases else ""
    if commit == pin.commit:
        tag, release = pin.tag, pin.release
    elif tags:
        tag = tags[0]
    elif git("rev-parse", "--is-shallow-repository") == "true":
        raise SourceError(
            f"{tree} is a shallow clone without a tag on {commit[:9]}, so its build number is unknown: run "
            f"`git -C {tree} fetch --unshallow`, or fetch the tag of that commit."
        )
    else:
        # llama.cpp's rule: the build number is the number of commits (cmake/build-info.cmake).
        tag = f"b{git('rev-list', '--count', 'HEAD')}"
    names = git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    present = {name for name in names if name and ((tree / name).is_file() or (tree / name).is_symlink())}
    entries = (entry.partition("\t") for entry in git("ls-tree", "-r", "-z", "--full-tree", "HEAD").split("\0"))
    committed = {name: tuple(entry.split()) for entry, _, name in entries if " blob " in entry}
    return _source(
        tree,
        tag=tag,
        release=release,
        commit=commit,
        dirty=present != committed.keys()
        or any((mode, identity) != _blob(tree / name, identity) for name, (mode, _, identity) in committed.items()),
        digest=tree_digest(tree, list(present)),
        files=frozenset(present),
    )


def _blob(file: Path, like: str) -> tuple[str, str]:
    """Returns git's mode and object id of a file, by the hash algorithm of the id `like`."""
    if file.is_symlink():
        mode, content = "120000", os.fsencode(file.readlink())
    else:
        mode, content = "100755" if file.stat().st_mode & 0o100 else "100644", file.read_bytes()
    return mode, repository.blob_id(content, like)


def _unpacked_sdist(tree: Path, pin: Pin) -> Source:
    top = tree.parents[1]
    metadata = importlib.metadata.PathDistribution(top).metadata
    name, version = (metadata["Name"] or "").replace("_", "-"), metadata["Version"] or ""
    try:
        changelog = "" if name == "xllamacpp" else (top / "CHANGELOG.md").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise SourceError(f"{top} is not a {name} sdist: CHANGELOG.md is missing.") from error
    said = sdists.stated(name, version, changelog)
    if not sdists.agrees(name, said, tag=pin.tag, commit=pin.commit):
        raise SourceError(
            f"The {name} {version} at {top} vendors llama.cpp {said or 'of an unknown commit'}, not the pin "
            f"{pin.commit[:9]} ({pin.tag}): what it is cannot be told; use a git clone."
        )
    # Dirty, because nothing shows that the files are unchanged: there is neither git nor a stamp.
    return _source(tree, tag=pin.tag, release=pin.release, commit=pin.commit, dirty=True, digest=tree_digest(tree))


def _stamped(tree: Path, pin: Pin, kind: SourceKind | None = None) -> Source:
    """Identifies a tree with our stamp; it is dirty when a file has changed since the fetch."""
    try:
        stamp = json.loads((tree / STAMP).read_text(encoding="utf-8"))
        tag, commit, digest = stamp["tag"], stamp["commit"], stamp["digest"]
        fetched, release = SourceKind(stamp["kind"]), str(stamp.get("release", ""))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"{tree / STAMP} is damaged: remove {tree}, and it will be fetched again.") from error
    actual = tree_digest(tree)
    tag, release = (pin.tag, pin.release) if commit == pin.commit else (tag, release)
    return _source(
        tree, tag=tag, release=release, commit=commit, dirty=actual != digest, digest=actual, kind=kind or fetched
    )


def _source(
    tree: Path,
    *,
    tag: str,
    release: str,
    commit: str,
    dirty: bool,
    digest: str,
    kind: SourceKind = SourceKind.PATH,
    files: frozenset[str] | None = None,
) -> Source:
    match = _TAG.fullmatch(tag)
    if not match:
        raise SourceError(f"{tag!r} is not a tag of llama.cpp: tags look like b11312.")
    return Source(
        path=tree,
        tag=tag,
        release=release,
        commit=commit,
        build_number=int(match[1]),
        kind=kind,
        dirty=dirty,
        digest=digest,
        files=files,
    )


# The managed tree.


def _managed(pin: Pin, origin: Origin, tree: Path, listener: Listener) -> Source:
    """Returns the managed tree, fetched if necessary; the caller holds the lock."""
    if tree.is_symlink() or (tree.exists() and not _is_empty(tree)):
        is_stamped = (tree / STAMP).exists()
        try:
            found = _stamped(tree, pin) if is_stamped else _inspect(tree, pin)
        except SourceError as error:
            raise SourceError(f"{error} The pin {pin.tag} is fetched to that path: move it away.") from error
        if found.commit == pin.commit:
            changed = f"{tree} is {pin.tag} with changes of yours: this build has them, and cannot be released."
            return replace(found, notices=(changed,)) if found.dirty else found
        if found.dirty or not is_stamped:
            raise SourceError(
                f"{tree} is llama.cpp {found.tag} as you changed it or put it there, and the pin is {pin.tag}: "
                f"move it away (`mv {tree} ../`), or build it with --source."
            )
    partial, old = tree.with_name(f"{DIRECTORY}.partial"), tree.with_name(f"{DIRECTORY}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        kind, notices = _fetch(pin, origin, partial, listener)
        _require_llama_cpp(partial)
        digest = tree_digest(partial)
        named = {"tag": pin.tag, "release": pin.release, "commit": pin.commit}
        stamp = {**named, "kind": kind.value, "digest": digest}
        (partial / STAMP).write_text(json.dumps(stamp, indent=2) + "\n", encoding="utf-8")
        if tree.exists():
            tree.rename(old)
        partial.rename(tree)
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
    fetched = _source(tree, tag=pin.tag, release=pin.release, commit=pin.commit, dirty=False, digest=digest, kind=kind)
    return replace(fetched, notices=notices)


def _is_empty(directory: Path) -> bool:
    return directory.is_dir() and not any(directory.iterdir())


def _fetch(pin: Pin, origin: Origin, target: Path, listener: Listener) -> tuple[SourceKind, tuple[str, ...]]:
    """Fetches the pin into `target`; returns where from, and notices for the user."""
    notices: tuple[str, ...] = ()
    if origin is not Origin.PACKAGES:
        try:
            _fetch_git(pin, target, listener)
        except _UnreachableError as error:
            if origin is Origin.REGISTRIES:
                raise
            instead = f" The source comes from the sdist {pin.sdist} of the package index instead." if pin.sdist else ""
            notices = (f"{error}{instead}",)
            shutil.rmtree(target, ignore_errors=True)
        else:
            return SourceKind.GIT, notices
    try:
        _fetch_sdist(pin, target, listener)
    except SourceError as error:
        raise SourceError(" ".join((*notices, str(error)))) from error
    return SourceKind.SDIST, notices


class _UnreachableError(SourceError):
    """The git host does not answer, or the connection was lost."""


def _fetch_git(pin: Pin, target: Path, listener: Listener) -> None:
    """Fetches the commit without history and removes `.git`, so that the tree is the same from any origin."""
    what = f"fetch llama.cpp {pin.tag}"

    def note(line: str) -> None:
        listener(Progress(what=what, note=scrub(line)))

    note(f"asking {pin.repository}")
    # Ask first: git would wait for minutes for a host that drops packets.
    reach = programs.git("ls-remote", "--quiet", pin.repository, "HEAD", timeout=REACH_SECONDS)
    if reach.exit_code:
        reason = f"no answer within {REACH_SECONDS} s" if reach.timed_out else reach.git_reason
        raise _UnreachableError(f"llama.cpp's git repository {pin.repository} cannot be reached ({reason}).")
    # Without a template, which could install hooks of the user's.
    programs.git("init", "--quiet", "--template=", "--object-format=sha1", str(target))
    git = functools.partial(programs.git, directory=target)
    # The same files for every user.
    options = ("-c", "core.autocrlf=false", "-c", "core.eol=lf", "-c", f"core.attributesFile={os.devnull}")
    stall = ("-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60")
    fetch = ("fetch", "--progress", "--depth=1", "--no-tags", pin.repository, pin.commit)
    fetched = git(*options, *stall, *fetch, on_line=note)
    if "not our ref" in fetched.stderr or "couldn't find remote ref" in fetched.stderr:
        raise SourceError(
            f"{pin.repository} has no commit {pin.commit}: correct the pin (tag {pin.tag}) in pyproject.toml."
        )
    if fetched.exit_code:
        raise _UnreachableError(f"The fetch from {pin.repository} broke off ({fetched.git_reason}).")
    checkout = git(*options, "checkout", "--quiet", "FETCH_HEAD")
    head = git("rev-parse", "HEAD").stdout.strip()
    if checkout.exit_code or head != pin.commit:
        raise SourceError(f"The checkout of llama.cpp {pin.commit} failed: {checkout.git_reason}; HEAD is {head!r}.")
    shutil.rmtree(target / ".git")
    listener(Progress(what=what, finished=True))


# The sdist.


def _fetch_sdist(pin: Pin, target: Path, listener: Listener) -> None:
    """Downloads the sdist, unless it is cached, and unpacks the llama.cpp in it."""
    if not pin.sdist:
        raise SourceError(
            f"No sdist vendors llama.cpp {pin.tag}: reach {scrub(pin.repository)}, or give a tree with --source."
        )
    requirement = packaging.requirements.Requirement(pin.sdist)
    name, version = requirement.name, next(iter(requirement.specifier)).version
    if name not in sdists.TREES:
        raise SourceError(f"{pin.sdist} in pyproject.toml is none of {' and '.join(sdists.TREES)}: correct the pin.")
    archive = sdists.archive_path(name, version)
    if not is_valid(archive, pin.sdist_sha256):
        found = package_index.find(
            requirement.name,
            lambda files: next((f for f in files if f.package_type == "sdist" and f.version == version), None),
            what=f"sdist {requirement.name} {version}",
            indexes=package_index.package_indexes(pip_settings.read("download")),
            remedy=", or give a tree with --source",
        )
        download(found.url, archive, sha256=pin.sdist_sha256, listener=listener)
    try:
        changelog = _unpack(archive, sdists.TREES[name], target, listener)
    except tarfile.TarError as error:
        raise SourceError(f"The sdist {archive} cannot be unpacked safely ({error}): correct the pin.") from error
    said = sdists.stated(name, version, changelog)
    if not sdists.agrees(name, said, tag=pin.tag, commit=pin.commit):
        raise SourceError(
            f"{pin.sdist} vendors llama.cpp {said or 'of an unknown commit'}, but the pin is "
            f"{pin.commit[:9]} ({pin.tag}): correct the pin in pyproject.toml."
        )


def _unpack(archive: Path, tree: tuple[str, ...], target: Path, listener: Listener) -> str:
    """Unpacks the vendored tree of an sdist to `target` and returns the sdist's changelog."""
    what = f"unpack {archive.name}"
    changelog, done = "", 0
    target.mkdir()
    with tarfile.open(archive, "r:gz") as members:
        for member in members:
            inside = PurePosixPath(member.name).parts[1:]
            if inside == ("CHANGELOG.md",) and (stream := members.extractfile(member)):
                changelog = stream.read().decode("utf-8")
            relative = sdists.vendored(member.name, tree)
            if not relative:
                continue
            members.extract(member.replace(name=relative, deep=False), target, filter="data")
            done += member.size
            listener(Progress(what=what, done=done))
    listener(Progress(what=what, done=done, finished=True))
    return changelog
