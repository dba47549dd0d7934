"""The global ARGs of a recipe: the versions and base images that it is built from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from base_images.errors import SourceError, UsageError
from base_images.recipes.instructions import MAX_CHARACTERS, assignments, instructions, known, located, read_text

BASE_ARGUMENTS = {"web": "WEB_BASE_IMAGE", "build": "BUILD_BASE_IMAGE", "runtime": "RUNTIME_BASE_IMAGE"}
"""The global ARG that names the base image of each role; the same in every recipe."""

BASE_SUFFIX = "_BASE_IMAGE"
"""Suffix of the ARGs that name a base image, `SLIM_BASE_IMAGE` included."""

SLIM = {"RUNTIME_LIBRARIES": "slim"}
"""The ARG that copies the toolkit's libraries that the server needs onto a small base."""

_SLIM_BASE = "SLIM_BASE_IMAGE"


def global_arguments(dockerfile: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Returns the ARGs before the first FROM with their values, `$NAME` and `${NAME}` in a default replaced.

    An override replaces the default of a declared ARG; other overrides are ignored. An ARG without default and override
    is left out.

    Raises:
        SourceError: the file cannot be read or parsed, or a default uses an unsupported form of substitution.
    """
    text = read_text(dockerfile)
    values: dict[str, str] = {}
    for instruction, rest, line in instructions(text, str(dockerfile)):
        if instruction == "FROM":
            break
        with located(f"{dockerfile} line {line}"):
            known(instruction)
            if instruction != "ARG":
                continue
            for name, default in assignments(rest):
                if name in overrides:
                    values[name] = overrides[name]
                elif default is not None:
                    values[name] = _expand(default, values, dockerfile)
    return values


def base_arguments(chosen: Mapping[str, str]) -> dict[str, str]:
    """Returns the global ARG that names the base image of each role, given the build arguments that a user chose."""
    slim = {"runtime": _SLIM_BASE} if SLIM.items() <= chosen.items() else {}
    return {**BASE_ARGUMENTS, **slim}


def base_references(dockerfile: Path, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the reference of each base image of the recipe by its role: `web`, `build`, `runtime`.

    Raises:
        SourceError: as `global_arguments`, or the recipe names no image for a role.
    """
    arguments = global_arguments(dockerfile, overrides or {})
    roles = base_arguments(overrides or {})
    for role, argument in roles.items():
        if not arguments.get(argument):
            raise SourceError(
                f"{dockerfile} has no value for ARG {argument} before its first FROM: add it, it names the {role} base."
            )
    return {role: arguments[argument] for role, argument in roles.items()}


def slim_argument(dockerfile: Path) -> dict[str, str]:
    """Returns the ARG that makes an image slim.

    Raises:
        UsageError: the recipe has no slim runtime.
    """
    if _SLIM_BASE not in global_arguments(dockerfile, {}):
        raise UsageError(f"{dockerfile.name} has no slim runtime: its base is small as it is. Leave --slim out.")
    return SLIM


def _expand(default: str, values: Mapping[str, str], dockerfile: Path) -> str:
    try:
        expanded = Template(default).substitute(values)
    except (KeyError, ValueError) as error:
        raise SourceError(
            f"{dockerfile}: the default {default!r} uses an ARG that is not declared above it, or another form than "
            "$NAME and ${NAME}."
        ) from error
    if len(expanded) > MAX_CHARACTERS:
        raise SourceError(f"{dockerfile}: the default {default!r} is longer than {MAX_CHARACTERS} characters.")
    return expanded
