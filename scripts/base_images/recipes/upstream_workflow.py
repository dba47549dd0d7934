"""The images that llama.cpp's workflow publishes, with the build arguments that override its Dockerfiles'."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml

from base_images.errors import SourceError
from base_images.recipes.statements import ALL, Area, Subject

WORKFLOW = ".github/workflows/docker.yml"
"""The workflow that publishes upstream's images."""

_RUNNER_KEYS = frozenset({"tag", "platforms", "runs_on", "free_disk_space", "prebuilt_ui", "full", "light"})
"""Keys of the workflow's matrix that do not change llama-server's image."""

_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_BUILD_ARGUMENT = re.compile(r"--build-arg[ =]\"?(\w+)=([^\s\"]+)")
_DECIDES = re.compile(r"VERSION|ARCH|TARGETS")
"""In the name of a variable of the workflow: what its steps may pass to a build."""
_EXPRESSION_ARGUMENT = re.compile(r"\b([A-Z][A-Z0-9_]*)=")

Images = dict[tuple[str, str], dict[str, str]]


def images(text: str) -> tuple[Images, dict[str, str]]:
    """Returns the images that a workflow publishes and its build arguments.

    Args:
        text: `.github/workflows/docker.yml`.

    Returns:
        The keys of the matrix by tag and platform, as far as they decide about llama-server's image; and the value of
        each build argument, and of each variable that may decide one.

    Raises:
        SourceError: it is not YAML, or the matrix within it is not JSON.
    """
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError for a date that there is none of
        raise SourceError(" ".join(str(error).split())) from error
    found: Images = {}
    arguments: dict[str, str] = {}
    for node in _mappings(document, set()):
        if "dockerfile" in node:
            for tag in str(node.get("tag", "")).split():
                for platform in re.split(r"[\s,]+", str(node.get("platforms", "linux/amd64"))):
                    found[tag, platform] = {
                        str(key): _word(value) for key, value in node.items() if key not in _RUNNER_KEYS
                    }
        inputs, run = node.get("with"), str(node.get("run", ""))
        if isinstance(inputs, dict) and inputs.get("target", "server") == "server":
            for line in str(inputs.get("build-args", "")).splitlines():
                if (name := _EXPRESSION_ARGUMENT.search(line)) and not line.lstrip().startswith("#"):
                    arguments[f"build argument {name[1]}"] = " ".join(line.split()).removeprefix(f"{name[1]}=")
        arguments |= {f"build argument {name}": value for name, value in _BUILD_ARGUMENT.findall(run)}
        if isinstance(variables := node.get("env"), dict):
            arguments |= {
                f"variable {name}": _word(value) for name, value in variables.items() if _DECIDES.search(str(name))
            }
    return found, arguments


def _mappings(node: Any, seen: set[int]) -> Iterator[dict[Any, Any]]:
    """Yields every mapping below a node once, also those of JSON within a script that writes the matrix."""
    # An alias of YAML is the same object, which may even hold itself.
    if isinstance(node, dict | list):
        if id(node) in seen:
            return
        seen.add(id(node))
    match node:
        case dict():
            yield node
            for value in node.values():
                yield from _mappings(value, seen)
        case list():
            for value in node:
                yield from _mappings(value, seen)
        case str() if '"dockerfile"' in node:
            for content in filter(lambda content: '"dockerfile"' in content, _heredocs(node)):
                try:
                    matrix = json.loads(content)
                except json.JSONDecodeError as error:
                    raise SourceError(f"the matrix within it is not JSON ({error})") from error
                # In a set of its own: it is gone before the others, and its objects' ids come again.
                yield from _mappings(matrix, set())
        case _:
            pass


def _heredocs(script: str) -> Iterator[str]:
    """Yields the contents of a script's here-documents."""
    word, lines = "", list[str]()
    for line in script.splitlines():
        if word and line.strip() == word:
            yield "\n".join(lines)
            word = ""
        elif word:
            lines.append(line)
        elif begun := _HEREDOC.search(line):
            word, lines = begun[2], []


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def published(before: str, after: str) -> Iterator[tuple[Subject, str | None, str | None]]:
    """Yields what changed of the published images; images with the same change are one.

    Raises:
        SourceError: as `images`.
    """
    (old, old_arguments), (new, new_arguments) = images(before), images(after)
    changed: dict[tuple[str, str | None, str | None], list[tuple[str, str]]] = defaultdict(list)
    for image in sorted(old.keys() | new.keys()):
        was, now = old.get(image, {}), new.get(image, {})
        if not was or not now:
            dockerfile = (was or now)["dockerfile"]
            changed["", dockerfile if was else None, dockerfile if now else None].append(image)
            continue
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                changed[key, was.get(key), now.get(key)].append(image)
    for (key, was_value, now_value), which in changed.items():
        dockerfiles = {(old.get(image) or new[image])["dockerfile"] for image in which}
        what = f"{_named(which)}: {key}" if key else _named(which)
        yield Subject(area=Area.PUBLISHED, variants=_of_dockerfiles(dockerfiles), what=what), was_value, now_value
    for name in sorted(old_arguments.keys() | new_arguments.keys()):
        pair = old_arguments.get(name), new_arguments.get(name)
        if pair[0] != pair[1]:
            yield Subject(area=Area.PUBLISHED, variants=ALL, what=name), *pair


def _named(which: Iterable[tuple[str, str]]) -> str:
    platforms: dict[str, list[str]] = defaultdict(list)
    for tag, platform in which:
        platforms[tag].append(platform.removeprefix("linux/"))
    tags: dict[str, list[str]] = defaultdict(list)
    for tag, listed in platforms.items():
        tags[", ".join(listed)].append(tag)
    return "; ".join(f"{', '.join(names)} ({listed})" for listed, names in tags.items())


def _of_dockerfiles(paths: Iterable[str]) -> tuple[str, ...]:
    # cuda-new.Dockerfile was the second file of one variant.
    stems = {PurePosixPath(path).name.partition(".")[0].partition("-")[0] for path in paths}
    return tuple(name for name in ALL if name in stems)
