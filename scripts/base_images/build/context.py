"""The build context: a reproducible tar of `llama.cpp/` and `dockerfiles/`.

In GNU format with whole-second times: Engine 20.10 to 28.5 takes a tar with PAX headers for a Dockerfile.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from base_images.adapters.engine import not_ignored

SOURCE_DIRECTORY = "llama.cpp"
RECIPE_DIRECTORY = "dockerfiles"
IGNORE_FILE = ".dockerignore"


def write(stream: IO[bytes], *, root: Path, source: Path) -> None:
    """Writes the context of the checkout `root`, with the tree `source` as `llama.cpp/`.

    The same content gives the same bytes: names are sorted, times and owners fixed, modes reduced to 644 and 755.
    """
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, path in sorted(_members(root, source)):
            entry = archive.gettarinfo(path, arcname=name)
            entry.mtime = 0
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            executable = entry.isdir() or entry.mode & 0o100
            entry.mode = 0o755 if executable else 0o644
            if entry.isreg():
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            elif entry.isdir() or entry.issym():
                archive.addfile(entry)


def _members(root: Path, source: Path) -> Iterator[tuple[str, Path]]:
    """Yields (name in the context, path on disk) of everything that `.dockerignore` does not exclude."""
    patterns = [
        line
        for line in (root / IGNORE_FILE).read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    yield from _selected(root / RECIPE_DIRECTORY, RECIPE_DIRECTORY, patterns)
    yield from _selected(source, SOURCE_DIRECTORY, patterns)


def _selected(directory: Path, name: str, patterns: list[str]) -> Iterator[tuple[str, Path]]:
    # Patterns are relative to the context; below a directory only those that begin with its name apply.
    below = [pattern.removeprefix(f"{name}/") for pattern in patterns if pattern.startswith(f"{name}/")]
    yield name, directory
    for path in not_ignored(directory, below):
        yield f"{name}/{path}", directory / path
