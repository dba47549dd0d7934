"""The build contexts of both sides: the same source and bases, and steps that no other build has in a cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from base_images.bench.cases import EDITS, Edit, Part, Side
from base_images.build import context, uncached
from base_images.build.inputs import Source
from base_images.build.local import Prepared
from base_images.errors import SourceError
from base_images.recipes import dockerfile
from base_images.recipes.instructions import read_text

STAGES = {"web": "web", "build": "build", "base": "runtime"}
"""The stages of upstream's recipes that start from a base image, and its role."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to build: the arguments of `local.build_context` that a side has of its own."""

    write: Callable[[IO[bytes]], None]
    dockerfile: str
    target: str
    arguments: Mapping[str, str]
    labels: Mapping[str, str]


def recipe(side: Side, prepared: Prepared, *, root: Path, mark: str, part: Part = Part.COLD, edit: str = "") -> Recipe:
    """Returns the build of a side.

    Args:
        side: whose recipe.
        prepared: the plan of our image, whose source and bases both sides have.
        root: the checkout.
        mark: the round's, see `marked`.
        part: which file of the source is changed, if one is.
        edit: makes the change another one than that of every other round.

    Raises:
        SourceError: upstream's recipe cannot be read or has no such stage, or a file to change is missing.
    """
    plan, source = prepared.plan, prepared.source
    edited = {EDITS[part].file: changed(source, EDITS[part], edit)} if part in EDITS else {}
    if side is Side.OURS:
        text = uncached.marked(read_text(root / plan.dockerfile), mark)
        return Recipe(
            write=partial(
                context.write,
                root=root,
                source=source.path,
                files=source.files,
                replaced={
                    plan.dockerfile: text.encode(),
                    **{f"{context.SOURCE_DIRECTORY}/{name}": content for name, content in edited.items()},
                },
            ),
            dockerfile=plan.dockerfile,
            target=plan.target,
            arguments=plan.arguments,
            labels=plan.labels,
        )
    name = f".devops/{PurePosixPath(plan.dockerfile).name}"
    bases = {role: plan.arguments[argument] for role, argument in dockerfile.BASE_ARGUMENTS.items()}
    text = uncached.marked(on_bases(read_text(source.path / name), bases, name), mark)
    declared = dockerfile.global_arguments(source.path / name, {})
    return Recipe(
        write=partial(
            context.write_tree, source=source.path, files=source.files, replaced={name: text.encode(), **edited}
        ),
        dockerfile=name,
        target="server",
        # Such as the architectures of --arch: the same for both.
        arguments={key: value for key, value in plan.arguments.items() if key in declared},
        labels={},
    )


def on_bases(text: str, bases: Mapping[str, str], name: str) -> str:
    """Returns upstream's recipe on these bases, by their role, instead of its own.

    Raises:
        SourceError: it has not the stages `STAGES`.
    """
    replaced = set()

    def based(found: re.Match[str]) -> str:
        stage = found[3]
        if stage not in STAGES:
            return found[0]
        replaced.add(stage)
        return f"FROM {bases[STAGES[stage]]} AS {stage}"

    based_text = uncached.FROM.sub(based, text)
    if missing := STAGES.keys() - replaced:
        raise SourceError(f"{name} has no stage {' and '.join(sorted(missing))}: it is no recipe of llama.cpp's.")
    return based_text


def changed(source: Source, edit: Edit, unique: str) -> bytes:
    """Returns the content of a file after an edit.

    Raises:
        SourceError: there is no such file.
    """
    try:
        content = (source.path / edit.file).read_bytes()
    except OSError as error:
        raise SourceError(
            f"{source.path} has no {edit.file}, which this part changes: leave it out by --only."
        ) from error
    return content + f"\n{edit.line.format(name=f'base_images_bench_{unique}')}\n".encode()
