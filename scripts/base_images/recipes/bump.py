"""Moving the pin to another tag of llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from base_images import variants
from base_images.adapters import programs
from base_images.errors import SourceError, UsageError
from base_images.recipes import mirror
from base_images.recipes.instructions import read_text
from base_images.settings import Pin


def pinned_texts(root: Path) -> dict[str, str]:
    """Returns the files of the checkout at `root` that hold the pin, by path: pyproject.toml and the recipes."""
    paths = ["pyproject.toml", *(variants.find(name).dockerfile for name in mirror.our_texts(root))]
    return {path: read_text(root / path) for path in paths}


def bump(texts: Mapping[str, str], pin: Pin, *, tag: str, commit: str) -> dict[str, str]:
    """Returns the texts with the pin moved, in pyproject.toml's table and in the ARG defaults of every recipe.

    The pin's sdist stays: a tag does not tell which sdist vendors its commit, if any does.

    Args:
        texts: as `pinned_texts` returns them.
        pin: the pin that they hold.
        tag: the new tag, such as `b11400`.
        commit: its full hash.

    Raises:
        UsageError: the tag or the commit is malformed, or a file does not hold the pin exactly once.
    """
    if not re.fullmatch(r"b\d+", tag) or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UsageError(f"{tag!r} ({commit!r}) is not a tag of llama.cpp with its full commit: tags look like b11312.")
    moved: dict[str, str] = {}
    for path, text in texts.items():
        forms = ('tag = "{}"', 'commit = "{}"')
        if not path.endswith(".toml"):
            forms = ("ARG LLAMA_CPP_TAG={}", "ARG LLAMA_CPP_COMMIT={}")
        moved[path] = text
        for form, old, new in zip(forms, (pin.tag, pin.commit), (tag, commit), strict=True):
            line = form.format(old)
            moved[path], count = re.subn(f"^{re.escape(line)}$", form.format(new), moved[path], flags=re.MULTILINE)
            if count != 1:
                raise UsageError(f"{path} has the line `{line}` {count} times instead of once: correct that first.")
    return moved


def tag_commit(repository: str, tag: str) -> str:
    """Returns the commit of a tag; `repository` is a URL or the path of a clone.

    Raises:
        SourceError: the repository does not answer, or has no such tag.
    """
    # The line that ends in ^{} has the commit of an annotated tag, and comes last.
    lines = _ls_remote(repository, tag, f"refs/tags/{tag}", f"refs/tags/{tag}^{{}}").splitlines()
    if not lines:
        raise SourceError(f"{repository} has no tag {tag!r}: tags of llama.cpp look like b11312.")
    return lines[-1].split()[0]


def newest_tag(repository: str) -> str:
    """Returns the tag `b<number>` with the highest number; `repository` is a URL or the path of a clone.

    Raises:
        SourceError: the repository does not answer, or has no such tag.
    """
    listed = _ls_remote(repository, "its tags", "refs/tags/b*")
    numbers = [int(number) for number in re.findall(r"\trefs/tags/b(\d+)$", listed, re.MULTILINE)]
    if not numbers:
        raise SourceError(f"{repository} has no tag of llama.cpp: they look like b11312.")
    return f"b{max(numbers)}"


def _ls_remote(repository: str, what: str, *patterns: str) -> str:
    listed = programs.git("ls-remote", repository, *patterns, timeout=60)
    if listed.exit_code:
        raise SourceError(f"{repository} cannot be asked for {what} ({listed.git_reason}): give --source a clone.")
    return listed.stdout


def fetch_refs(repository: str, refs: Sequence[str], directory: Path) -> None:
    """Fetches `refs`, tags or full commits, without history into a clone at `directory`.

    Raises:
        SourceError: the repository does not answer or lacks a ref.
    """
    wanted = [f"refs/tags/{ref}:refs/tags/{ref}" if not re.fullmatch(r"[0-9a-f]{40}", ref) else ref for ref in refs]
    init = ["init", "--quiet", "--template=", "--object-format=sha1"]
    for arguments in (init, ["fetch", "--depth=1", "--no-tags", repository, *wanted]):
        done = programs.git(*arguments, directory=directory)
        if done.exit_code:
            raise SourceError(f"{' and '.join(refs)} cannot be fetched from {repository} ({done.git_reason}).")
