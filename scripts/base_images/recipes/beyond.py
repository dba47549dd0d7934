"""Compares two versions of llama.cpp outside of its Dockerfiles: workflow, CMake, server, helper and moved files."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from base_images.adapters import repository
from base_images.errors import SourceError
from base_images.recipes import upstream_cmake, upstream_server, upstream_workflow
from base_images.recipes.statements import ALL, Area, Statements, Subject

_DOCKERFILE = "*Dockerfile*"
_HELPERS = (".devops/*",)

FILES = (upstream_workflow.WORKFLOW, _DOCKERFILE, *_HELPERS, *upstream_cmake.FILES, *upstream_server.FILES)
"""The files to read of a version, as patterns in which `*` also stands for directories."""

_SIMILAR = 0.6
"""The share of lines that a file which moved keeps."""

_DISTINCT = 8
"""The fewest characters of a line that tells files apart; closing brackets are in all of them."""

_SHOWN = 200
"""The most characters of a helper file's changed lines."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change by upstream outside of its Dockerfiles.

    Attributes:
        area: the part of upstream.
        variants: our variants that it concerns; empty if it concerns none of them.
        what: what changed, such as `GGML_CUDA_NCCL`.
        before: its value at the older version, where it has several only those that changed; None if it had none.
        after: the same at the newer version.
    """

    area: Area
    variants: tuple[str, ...]
    what: str
    before: str | None
    after: str | None

    @property
    def told(self) -> str:
        """The change without its area, and with the variants unless it concerns all."""
        concerned = "" if self.variants == ALL else f" ({', '.join(self.variants) or 'no variant of ours'})"
        return f"{self.what}{concerned}: {self.before or 'none'} -> {self.after or 'none'}"

    def __str__(self) -> str:
        return f"{self.area}: {self.told}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the change for JSON."""
        return {
            "area": self.area.value,
            "variants": list(self.variants),
            "what": self.what,
            "before": self.before,
            "after": self.after,
        }


def read(clone: Path, before: str, after: str) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the texts of `FILES` at two refs by path, and where one is gone the new files that it may have become.

    Raises:
        SourceError: there is no clone, or it lacks a ref.
    """
    old, new = ({*repository.blobs(repository.source_clone(clone, ref), ref)} for ref in (before, after))
    gone = {PurePosixPath(path) for path in old - new if _matches(path, FILES)}
    places = {(path.parent, path.suffix) for path in gone} | {("", path.name) for path in gone}
    became = {
        path
        for path in new - old
        if places & {(PurePosixPath(path).parent, PurePosixPath(path).suffix), ("", PurePosixPath(path).name)}
    }
    texts = [
        repository.texts(
            repository.source_clone(clone, ref),
            ref,
            *sorted(path for path in paths if _matches(path, FILES) or path in became),
        )
        for ref, paths in ((before, old), (after, new))
    ]
    return texts[0], texts[1]


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Change, ...]:
    """Returns what changed between two versions, by area.

    A file that cannot be read is one change, and nothing else is said about it.

    Args:
        before: the texts of the older version by path.
        after: the texts of the newer one.
    """
    moved = moves(before, after)
    newer = renamed(after, moved)
    changes = [*_moved(moved), *_published(before, newer), *_helpers(before, newer)]
    names = [
        upstream_cmake.option_names(text for path, text in texts.items() if _matches(path, upstream_cmake.FILES))
        for texts in (before, newer)
    ]
    # Of both versions, so that an option whose file cannot be read on one side is one on the other side too.
    options, defaults = (names[0].options | names[1].options, names[0].defaults | names[1].defaults)
    cmake = [partial(upstream_cmake.cmake, names=replace(each, options=options, defaults=defaults)) for each in names]
    changes += _stated(before, newer, Area.OPTION, upstream_cmake.FILES, cmake)
    changes += _stated(before, newer, Area.SERVER, upstream_server.FILES, [upstream_server.server] * 2)
    order = list(Area)
    return tuple(sorted(changes, key=lambda change: (order.index(change.area), change.what)))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


# Moved files.


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Returns the new path of each file that moved or was renamed, by its old path.

    A file moved if it is gone, and a new file has most of its lines and resembles no older file more.
    """
    old, new = ({path: _distinct(text) for path, text in texts.items()} for texts in (before, after))
    found: list[tuple[float, bool, str, str]] = []
    for path in new.keys() - old.keys():
        alike = {each: _similarity(old[each], new[path]) for each in old if _kind(each) == _kind(path)}
        most = max(alike.values(), default=0.0)
        same = ((each, PurePosixPath(each).name == PurePosixPath(path).name) for each in alike.keys() - new.keys())
        found += [(most, named, each, path) for each, named in same if alike[each] == most >= _SIMILAR]
    moved: dict[str, str] = {}
    for _, _, each, path in sorted(found, reverse=True):
        if each not in moved and path not in moved.values():
            moved[each] = path
    return dict(sorted(moved.items()))


def _kind(path: str) -> str:
    return "Dockerfile" if _matches(path, (_DOCKERFILE,)) else PurePosixPath(path).suffix


def _distinct(text: str) -> Counter[str]:
    """Returns the lines of a file that say something, with their number."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return Counter(line for line in lines if len(line) >= _DISTINCT)


def _similarity(old: Counter[str], new: Counter[str]) -> float:
    return 2 * (old & new).total() / max(1, old.total() + new.total())


def renamed(after: Mapping[str, str], moved: Mapping[str, str]) -> dict[str, str]:
    """Returns the newer version's texts with each moved file under its old path."""
    old = {path: name for name, path in moved.items()}
    return {old.get(path, path): text for path, text in after.items()}


def _moved(moved: Mapping[str, str]) -> Iterator[Change]:
    """Yields the moves; files that went together from one directory to another under their names are one move."""
    together: dict[tuple[str, str], list[str]] = {}
    for old, new in moved.items():
        here, there = PurePosixPath(old), PurePosixPath(new)
        while here.name and here.name == there.name:
            here, there = here.parent, there.parent
        pair = (old, new) if old == str(here) else (f"{here}/", f"{there}/")
        together.setdefault(pair, []).append(old)
    for (old, new), paths in together.items():
        pair = (old, new) if len(paths) > 1 else (paths[0], moved[paths[0]])
        stems = {PurePosixPath(path).name.removesuffix(".Dockerfile") for path in paths}
        concerned = tuple(name for name in ALL if name in stems)
        yield Change(area=Area.MOVED, variants=concerned, what=pair[0], before=pair[0], after=pair[1])


# The workflow and the helper files.


def _published(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    old, new = before.get(upstream_workflow.WORKFLOW), after.get(upstream_workflow.WORKFLOW)
    if old is None or new is None:
        if old != new:
            yield _change(Subject(area=Area.PUBLISHED, variants=ALL, what=upstream_workflow.WORKFLOW),
                          "there" if old else None, "there" if new else None)  # fmt: skip
        return
    reasons = [
        _unreadable(lambda _, text: upstream_workflow.images(text), upstream_workflow.WORKFLOW, text)
        for text in (old, new)
    ]
    if any(reasons):
        if old != new:
            yield _not_read(Area.PUBLISHED, upstream_workflow.WORKFLOW, *reasons)
        return
    for found in upstream_workflow.published(old, new):
        yield _change(*found)


def _helpers(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    recipes = {
        PurePosixPath(path).name.removesuffix(".Dockerfile"): f"{before.get(path, '')}\n{after.get(path, '')}"
        for path in (*before, *after)
        if _matches(path, (_DOCKERFILE,))
    }
    for path in sorted({*before, *after}):
        if not _matches(path, _HELPERS) or _matches(path, (_DOCKERFILE,)):
            continue
        users = {name for name, text in recipes.items() if _uses(text, path)}
        old, new = (_lines(texts.get(path, "")) for texts in (before, after))
        if not users or old == new:
            continue
        parts = [(Counter(here) - Counter(there)).elements() for here, there in ((old, new), (new, old))]
        shown = [
            None if path not in texts else "; ".join(changed)[:_SHOWN] or "other lines"
            for texts, changed in zip((before, after), parts, strict=True)
        ]
        concerned = tuple(name for name in ALL if name in users)
        yield _change(Subject(area=Area.HELPER, variants=concerned, what=path), *shown)


def _uses(recipe: str, path: str) -> bool:
    """Returns whether an instruction names a file, a directory that it is in, or a pattern that it matches."""
    instructions = re.sub(r"^\s*#.*$", "", recipe, flags=re.MULTILINE)
    words = {word.removeprefix("./").rstrip("/") for word in re.findall(r"[^\s\"',\[\]=;&|()]+", instructions)}
    directories = {str(parent) for parent in PurePosixPath(path).parents} - {"."}
    return bool(words & {path, *directories}) or any("*" in word and _matches(path, (word,)) for word in words)


def _lines(text: str) -> list[str]:
    """Returns the lines of a script without comments, empty lines and indentation."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [line for line in lines if line and (line.startswith("#!") or not line.startswith("#"))]


# Statements.

_FOREIGN = re.compile(
    r" (?:if|and) (?:WIN32|MSVC|MINGW|APPLE|ANDROID|EMSCRIPTEN|CMAKE_SYSTEM_NAME STREQUAL (?:iOS|Android|Emscripten)|"
    r"GGML_SYSTEM_ARCH STREQUAL (?!x86\b|ARM\b)\w+)(?: and |$)"
)
"""A condition that holds on none of our platforms."""

Reader = Callable[[str, str], object]


def _stated(
    before: Mapping[str, str],
    after: Mapping[str, str],
    area: Area,
    patterns: tuple[str, ...],
    readers: Sequence[Callable[[str, str], Statements]],
) -> Iterator[Change]:
    """Yields what the files of these patterns state differently, wherever among them it is stated."""
    sides = list(zip((before, after), readers, strict=True))
    paths = sorted({path for texts in (before, after) for path in texts if _matches(path, patterns)})
    broken: set[str] = set()
    for path in paths:
        reasons = [_unreadable(reader, path, texts[path]) if path in texts else "" for texts, reader in sides]
        if any(reasons):
            broken.add(path)
            if before.get(path) != after.get(path):
                yield _not_read(area, path, *reasons)
    old, new = (
        _merged(reader(path, texts[path]) for path in paths if path in texts and path not in broken)
        for texts, reader in sides
    )
    for subject in {**old, **new}:
        was, now = old.get(subject, ()), new.get(subject, ())
        if items := [value for value in (*was, *now) if value not in was or value not in now]:
            pair = (
                "; ".join(value for value in here if value not in there) or None
                for here, there in ((was, now), (now, was))
            )
            yield _change(replace(subject, variants=()) if all(map(_FOREIGN.search, items)) else subject, *pair)


def _merged(files: Iterator[Statements]) -> Statements:
    merged: Statements = {}
    for statements in files:
        for subject, values in statements.items():
            merged[subject] = tuple(dict.fromkeys((*merged.get(subject, ()), *values)))
    return merged


def _unreadable(reader: Reader, path: str, text: str) -> str:
    """Returns why a file cannot be read; empty if it can."""
    try:
        reader(path, text)
    except (SourceError, RecursionError) as error:
        return str(error) or "it is nested too deeply"
    return ""


def _not_read(area: Area, path: str, before: str, after: str) -> Change:
    subject = Subject(area=area, variants=ALL, what=f"{path} cannot be read and was not compared")
    return _change(subject, before or None, after or None)


def _change(subject: Subject, before: str | None, after: str | None) -> Change:
    return Change(area=subject.area, variants=subject.variants, what=subject.what, before=before, after=after)
