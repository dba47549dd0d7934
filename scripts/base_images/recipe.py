"""Facts that a Dockerfile states before its first FROM: the versions and base images it is built from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from base_images import recipe_facts
from base_images.errors import SourceError

BASE_ARGUMENTS = {"web": "WEB_BASE_IMAGE", "build": "BUILD_BASE_IMAGE", "runtime": "RUNTIME_BASE_IMAGE"}
"""The role of each base image and the global ARG that names it; the same in every recipe."""


def global_arguments(dockerfile: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """Returns the ARGs before the first FROM with their values, `$NAME` and `${NAME}` in a default replaced.

    An override replaces the default of an ARG that the recipe declares; others are none of the recipe's. An ARG
    without default and override is left out.

    Raises:
        SourceError: the file cannot be read, or a default uses a form of substitution that is not read here.
    """
    try:
        text = dockerfile.read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"The recipe {dockerfile} cannot be read: {error.strerror}.") from error
    values: dict[str, str] = {}
    for instruction, rest, _ in recipe_facts.instructions(text, str(dockerfile)):
        if instruction == "FROM":
            break
        if instruction != "ARG":
            continue
        for name, default in recipe_facts.assignments(rest):
            if name in overrides:
                values[name] = overrides[name]
            elif default is not None:
                values[name] = _expand(default, values, dockerfile)
    return values


def base_references(dockerfile: Path, overrides: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the reference of each base image of the recipe by its role: `web`, `build`, `runtime`.

    Raises:
        SourceError: as `global_arguments`, and when the recipe does not say which image a role starts from.
    """
    arguments = global_arguments(dockerfile, overrides or {})
    for role, argument in BASE_ARGUMENTS.items():
        if not arguments.get(argument):
            raise SourceError(
                f"{dockerfile} has no value for ARG {argument} before its first FROM: add it, it names the {role} base."
            )
    return {role: arguments[argument] for role, argument in BASE_ARGUMENTS.items()}


def _expand(default: str, values: Mapping[str, str], dockerfile: Path) -> str:
    try:
        return Template(default).substitute(values)
    except (KeyError, ValueError) as error:
        raise SourceError(
            f"{dockerfile}: the default {default!r} uses an ARG that is not declared above it, or another form than "
            "$NAME and ${NAME}."
        ) from error
