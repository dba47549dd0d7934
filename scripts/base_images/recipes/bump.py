"""Moving the pin to another tag of llama.cpp, and the text of the pull request that does it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from base_images import variants
from base_images.adapters import programs
from base_images.errors import SourceError, UsageError
from base_images.recipes import consumer, mirror
from base_images.recipes.instructions import read_text
from base_images.recipes.markdown import bullets, code
from base_images.recipes.markdown import text as escaped
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


def markdown(changed: mirror.RefsReport, result: mirror.Report, *, before: str, after: str) -> str:
    """Returns the text of a pull request that moves the pin: what upstream changed, and what our recipes lack.

    Args:
        changed: the changes between the two tags.
        result: our recipes compared with the newer tag.
        before: the older tag.
        after: the newer tag.
    """
    dockerfiles = [
        line
        for variant, found in changed.changes.items()
        for line in bullets(variant, (code(difference.key) for difference in found))
    ]
    dockerfiles += bullets("new at upstream", map(escaped, changed.appeared))
    dockerfiles += bullets("gone at upstream", map(escaped, changed.disappeared))
    warning = (
        [f"**{escaped(changed.arguments.warning)}**", ""] if changed.arguments and changed.arguments.warning else []
    )
    lines = [
        f"llama.cpp {escaped(before)} → {escaped(after)}.",
        "",
        *warning,
        "## What upstream changed in its Dockerfiles",
        "",
    ]
    lines += dockerfiles or ["Nothing.", ""]
    if arguments := changed.arguments:
        lines += ["## What changed in llama-server's arguments", ""]
        used, others = (
            [code(str(each)) for each in arguments.changes if each.used is wanted] for wanted in (True, False)
        )
        listed = bullets(f"used by {consumer.NAME}", used) + bullets("others", others)
        lines += listed or [code(arguments.not_compared) if arguments.not_compared else "Nothing.", ""]
    if changed.beyond:
        lines += ["## What upstream changed besides", ""]
        for area, found in itertools.groupby(changed.beyond, lambda change: change.area):
            lines += bullets(area, (code(change.told) for change in found))
    lines += ["## What our recipes need for it", ""]
    if result.ok:
        return "\n".join([*lines, "Nothing: every difference is intended (`invoke check-upstream`).", ""])
    lines += ["`invoke check-upstream` fails until each of these is ported, or recorded with its reason.", ""]
    for comparison in result.comparisons:
        unexplained = [finding for finding in comparison.findings if finding.status is not mirror.Status.INTENDED]
        lines += bullets(
            comparison.variant, (f"{finding.status}: {code(finding.difference.key)}" for finding in unexplained)
        )
    for record in result.stale:
        lines += bullets(f"{record.variant}: a record that matches nothing any more", [code(record.key)])
    return "\n".join(lines + bullets("our recipes that upstream has no file for", map(escaped, result.gone)))
