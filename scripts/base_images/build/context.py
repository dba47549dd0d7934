"""The build context: a reproducible tar of `llama.cpp/` and `dockerfiles/`.

In GNU format with whole-second times: Engine 20.10 to 28.5 takes a tar with PAX headers for a Dockerfile.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from base_images.adapters.engine import not_ignored
from base_images.build.source import STAMP
from base_images.errors import UsageError

SOURCE_DIRECTORY = "llama.cpp"
RECIPE_DIRECTORY = "dockerfiles"
IGNORE_FILE = ".dockerignore"


def write(
    stream: IO[bytes],
    *,
    root: Path,
    source: Path,
    files: frozenset[str] | None = None,
    replaced: Mapping[str, bytes] | None = None,
) -> None:
    """Writes the context of the checkout `root`, with the tree `source` as `llama.cpp/`, or only its `files`.

    The same content gives the same bytes: names are sorted, times and owners fixed, modes reduced to 644 and 755.
    `replaced` has the content of files that differ from those on the disk, by their names in the context.
    """
    _write(stream, _members(root, source, _with_directories(files)), replaced or {})


def write_tree(
    stream: IO[bytes], *, source: Path, files: frozenset[str] | None = None, replaced: Mapping[str, bytes] | None = None
) -> None:
    """Writes the tree `source` as the context of upstream's own recipes, which are in it; otherwise like `write`."""
    built = _with_directories(files)
    ignore = source / IGNORE_FILE
    paths = not_ignored(source, _patterns(ignore) if ignore.exists() else ())
    members = (
        (name, source / name)
        for name in paths
        if PurePosixPath(name).parts[0] not in (".git", STAMP) and (built is None or name in built)
    )
    _write(stream, members, replaced or {})


def _write(stream: IO[bytes], members: Iterable[tuple[str, Path]], replaced: Mapping[str, bytes]) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, path in sorted(members):
            entry = archive.gettarinfo(path, arcname=name)
            entry.mtime = 0
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            executable = entry.isdir() or entry.mode & 0o100
            entry.mode = 0o755 if executable else 0o644
            if entry.isreg() and name in replaced:
                entry.size = len(replaced[name])
                archive.addfile(entry, io.BytesIO(replaced[name]))
            elif entry.isreg():
                with path.open("rb") as content:
                    archive.addfile(entry, content)
            elif entry.isdir() or entry.issym():
                archive.addfile(entry)


def require_only(files: frozenset[str] | None, *, root: Path, source: Path) -> None:
    """Checks that a context of the whole tree `source` has only these files of it, as for a builder that reads it.

    Raises:
        UsageError: there are others, which git ignores.
    """
    if files is None:
        return
    everything, built = (
        {name for name, path in _members(root, source, names) if not path.is_dir() or path.is_symlink()}
        for names in (None, _with_directories(files))
    )
    if others := sorted(everything - built):
        raise UsageError(f"git ignores {others[0]}, and bake would send it to the builder: remove what git ignores.")


def _with_directories(files: frozenset[str] | None) -> frozenset[str] | None:
    if files is None:
        return None
    return files | {str(parent) for name in files for parent in PurePosixPath(name).parents}


def _members(root: Path, source: Path, built: frozenset[str] | None) -> Iterator[tuple[str, Path]]:
    """Yields (name in the context, path on disk) of everything that `.dockerignore` does not exclude.

    Of the source, only the paths in `built` unless that is None.
    """
    patterns = _patterns(root / IGNORE_FILE)
    yield from _selected(root / RECIPE_DIRECTORY, RECIPE_DIRECTORY, patterns)
    for name, path in _selected(source, SOURCE_DIRECTORY, patterns):
        if built is None or path == source or path.relative_to(source).as_posix() in built:
            yield name, path


def _patterns(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _selected(directory: Path, name: str, patterns: list[str]) -> Iterator[tuple[str, Path]]:
    # Patterns are relative to the context; below a directory only those that begin with its name apply.
    below = [pattern.removeprefix(f"{name}/") for pattern in patterns if pattern.startswith(f"{name}/")]
    yield name, directory
    for path in not_ignored(directory, below):
        yield f"{name}/{path}", directory / path
