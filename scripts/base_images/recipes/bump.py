"""Moving the pin to another tag of llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from base_images import settings, variants
from base_images.adapters import programs
from base_images.errors import SourceError, UsageError, scrub
from base_images.recipes import mirror
from base_images.recipes.instructions import read_text
from base_images.settings import Follow, Pin


def pinned_texts(root: Path) -> dict[str, str]:
    """Returns the files of the checkout at `root` that hold the pin, by path: pyproject.toml and the recipes."""
    paths = ["pyproject.toml", *(variants.find(name).dockerfile for name in mirror.our_texts(root))]
    return {path: read_text(root / path) for path in paths}


@dataclass(frozen=True, kw_only=True)
class Names:
    """One commit of llama.cpp's by its tags.

    Attributes:
        tag: its build `b<number>`, which CMake gets.
        release: its release `vX.Y.Z`; empty if it has none.
        commit: its full hash.
    """

    tag: str
    release: str
    commit: str

    def __str__(self) -> str:
        return settings.names(self.tag, self.release)


def bump(texts: Mapping[str, str], pin: Pin, names: Names, *, sdist: str, sdist_sha256: str) -> dict[str, str]:
    """Returns the texts with the pin moved, in pyproject.toml's table and in the ARG defaults of every recipe.

    Args:
        texts: as `pinned_texts` returns them.
        pin: the pin that they hold.
        names: the new tag, release and commit.
        sdist: the requirement of the sdist that vendors the commit; empty if there is none.
        sdist_sha256: its hash.

    Raises:
        UsageError: a file does not hold the pin exactly once.
    """
    arguments = {"LLAMA_CPP_TAG": "tag", "LLAMA_CPP_COMMIT": "commit", "LLAMA_CPP_RELEASE": "release"}
    old = {"tag": pin.tag, "release": pin.release, "commit": pin.commit}
    new = {"tag": names.tag, "release": names.release, "commit": names.commit}
    lines = {
        True: {
            **{f'{key} = "{old[key]}"': f'{key} = "{new[key]}"' for key in old},
            f'sdist = "{pin.sdist}"': f'sdist = "{sdist}"',
            f'sdist-sha256 = "{pin.sdist_sha256}"': f'sdist-sha256 = "{sdist_sha256}"',
        },
        False: {f"ARG {name}={old[key]}": f"ARG {name}={new[key]}" for name, key in arguments.items()},
    }
    moved: dict[str, str] = {}
    for path, text in texts.items():
        moved[path] = text
        for line, instead in lines[path.endswith(".toml")].items():
            form = f"^{re.escape(line)}$"
            moved[path], count = re.subn(form, instead.replace("\\", r"\\"), moved[path], flags=re.MULTILINE)
            if count != 1:
                raise UsageError(f"{path} has the line `{line}` {count} times instead of once: correct that first.")
    return moved


# llama.cpp's tags.

_BUILD = re.compile(r"b(\d+)")
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def tags(repository: str) -> dict[str, str]:
    """Returns the commits of the builds and releases by tag; `repository` is a URL or the path of a clone.

    Raises:
        SourceError: the repository does not answer.
    """
    listed = programs.git("ls-remote", repository, "refs/tags/b*", "refs/tags/v*", timeout=60)
    if listed.exit_code:
        raise SourceError(
            f"{scrub(repository)} cannot be asked for its tags ({listed.git_reason}): give --source a clone."
        )
    # The line that ends in ^{} has the commit of an annotated tag, and follows that of the tag.
    lines = re.findall(r"^([0-9a-f]+)\trefs/tags/(.+?)(?:\^\{\})?$", listed.stdout, re.MULTILINE)
    return {tag: commit for commit, tag in lines if _BUILD.fullmatch(tag) or _RELEASE.fullmatch(tag)}


def named(known: Mapping[str, str], to: str, repository: str) -> Names:
    """Returns the commit of a build or a release with both of its names.

    Args:
        known: the tags, as `tags` returns them.
        to: one of them.
        repository: what it is called in messages.

    Raises:
        SourceError: there is no such tag, or no build at its commit, so that its number is not known.
    """
    if to not in known:
        raise SourceError(f"{scrub(repository)} has no tag {to!r}: tags of llama.cpp look like b11312 or v0.6.0.")
    commit = known[to]
    builds = [tag for tag, where in known.items() if where == commit and _BUILD.fullmatch(tag)]
    releases = [tag for tag, where in known.items() if where == commit and _RELEASE.fullmatch(tag)]
    if not builds:
        raise SourceError(
            f"{to} is the commit {commit[:9]}, and no tag b<number> of {scrub(repository)} is at that commit: the "
            "number that llama-server reports is not known. Move to another tag."
        )
    tag = to if to in builds else max(builds, key=_order)
    return Names(tag=tag, release=to if to in releases else max(releases, key=_order, default=""), commit=commit)


def newest(known: Mapping[str, str], follow: Follow, repository: str) -> str:
    """Returns the newest build, or the newest release, as `follow` says.

    Raises:
        SourceError: there is none.
    """
    form, example = (_BUILD, "b11312") if follow is Follow.BUILD else (_RELEASE, "v0.6.0")
    found = [tag for tag in known if form.fullmatch(tag)]
    if not found:
        raise SourceError(f"{scrub(repository)} has no tag of a {follow} of llama.cpp: they look like {example}.")
    return max(found, key=_order)


def is_ahead(names: Names, pin: Pin) -> bool:
    """Whether a commit is newer than the pin, or is the pin's and has a release since, which the pin follows."""
    if names.commit == pin.commit:
        return pin.follow is Follow.RELEASE and names.release != pin.release
    return _order(names.tag) > _order(pin.tag)


def _order(tag: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", tag)))


def fetch(repository: str, commits: Sequence[str], directory: Path) -> None:
    """Fetches commits, by their full hashes, without history into a clone at `directory`.

    Raises:
        SourceError: the repository does not answer or lacks a commit.
    """
    init = ["init", "--quiet", "--template=", "--object-format=sha1"]
    for arguments in (init, ["fetch", "--depth=1", "--no-tags", repository, *commits]):
        done = programs.git(*arguments, directory=directory)
        if done.exit_code:
            said = " and ".join(commit[:9] for commit in commits)
            raise SourceError(f"{said} cannot be fetched from {scrub(repository)} ({done.git_reason}).")
