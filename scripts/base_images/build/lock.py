"""The lock file of base images: digests for the tags that the recipes name, so that all builds take the same bases."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from base_images import settings
from base_images.errors import UsageError
from base_images.recipes import dockerfile

FILE = "dockerfiles/bases.lock"

BASES_VARIABLE = "BASE_IMAGES_BASES"
"""Environment variable with digests as JSON that take precedence over the file: those of one release, for its jobs."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(r"[\w.:/-]+", re.ASCII)


def digests(root: Path) -> dict[str, str]:
    """Returns the digest of each reference, such as `docker.io/node:24`, in the file and in the environment.

    Raises:
        UsageError: one of the two cannot be read, or has something else than digests.
    """
    path = root / FILE
    written = settings.read_toml(path).get("digests") if path.exists() else {}
    found = _checked(written, f"{path} is not a lock of base images: restore it from git.")
    if text := os.environ.get(BASES_VARIABLE):
        wrong = (
            f"{BASES_VARIABLE} is not a JSON object of references and digests: unset it, or set it to what "
            "`invoke lock-bases --json` prints."
        )
        try:
            found |= _checked(json.loads(text), wrong)
        except (ValueError, RecursionError) as error:
            raise UsageError(wrong) from error
    return found


def _checked(value: Any, wrong: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(
        _REFERENCE.fullmatch(name) and isinstance(digest, str) and _DIGEST.fullmatch(digest)
        for name, digest in value.items()
    ):
        raise UsageError(wrong)
    return dict(value)


def pinned(references: Mapping[str, str], locked: Mapping[str, str]) -> dict[str, str]:
    """Returns the references by role, with the digests that are locked: `docker.io/node:24@sha256:…`."""
    return {role: f"{name}@{locked[name]}" if name in locked else name for role, name in references.items()}


def references(recipes: Iterable[Path]) -> list[str]:
    """Returns the references of all base images that recipes name, sorted.

    Raises:
        SourceError: a recipe cannot be read.
    """
    found = {
        value
        for recipe in recipes
        for name, value in dockerfile.global_arguments(recipe, {}).items()
        if name.endswith(dockerfile.BASE_SUFFIX) and "@" not in value
    }
    return sorted(found)


def problem(locked: Mapping[str, str], wanted: Iterable[str]) -> str:
    """Returns how the lock differs from what the recipes name, a sentence; empty where it does not, or is empty."""
    named = set(wanted)
    lacking, left = sorted(named - set(locked)), sorted(set(locked) - named)
    said = [f"lacks {', '.join(lacking)}"] if lacking else []
    said += [f"has {', '.join(left)}, which no recipe names"] if left else []
    return f"{FILE} {' and '.join(said)}: run `invoke lock-bases` and commit it." if locked and said else ""


def text(before: str, locked: Mapping[str, str]) -> str:
    """Returns the content of the file: the comment of what it was, and the digests."""
    comment = "".join(line for line in before.splitlines(keepends=True) if line.startswith("#"))
    lines = (f'"{name}" = "{digest}"\n' for name, digest in sorted(locked.items()))
    return f"{comment}[digests]\n{''.join(lines)}"


def markdown(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    """Returns what changed, as a section."""
    rows = [
        f"- `{name}`: {before.get(name, 'none')} → {after.get(name, 'none')}\n"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]
    return f"## Base images\n\n{''.join(rows)}"
