"""What an image stores above its base, by layer and file, and how much more that is than in another image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from base_images.contract.layers import Layer
from base_images.variants import megabytes

FILE_BYTES = 100_000
"""Smaller files are not named: a report is kept with each image, and a driver's packages have thousands of them."""

NAMED = 3
"""How many files of a layer are named that grew most."""

_COMMAND_WIDTH = 60
_MAKES_LAYER = re.compile(r"(RUN|COPY|ADD|WORKDIR) ")  # BuildKit's history; ENV, LABEL and others store nothing
_RUN = re.compile(r"^RUN .*?/bin/sh -c ")
_FIRST_OF_OURS = "ARG RUNTIME_EXTRA_PACKAGES="


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """One layer.

    Attributes:
        command: the instruction that made it, shortened; empty when unknown.
        size: bytes of its files.
        files: bytes of each file of at least FILE_BYTES.
    """

    command: str
    size: int
    files: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The layers above the base, lowest first."""

    layers: tuple[LayerSize, ...]

    @property
    def added(self) -> int:
        """Bytes of the files in all of them."""
        return sum(layer.size for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Before:
    """The image that another one is compared with; `sizes` is None where it cannot be, and `name` then says why."""

    name: str
    sizes: Sizes | None = None


def commands(history: Sequence[str], count: int) -> list[str]:
    """Returns the instructions that made the last so many layers, given the image's history; empty where unknown."""
    made = [" ".join(_RUN.sub("RUN ", line).removesuffix(" # buildkit").split()) for line in history]
    made = [command for command in made if _MAKES_LAYER.match(command)]
    return ([""] * count + made)[len(made) :]


def of_ours(history: Sequence[str]) -> int | None:
    """Returns how many layers our recipe put on its base, told by its first argument; None for other images."""
    for number, line in enumerate(history):
        if line.startswith(_FIRST_OF_OURS):
            return sum(1 for command in history[number:] if _MAKES_LAYER.match(command))
    return None


def of_layers(layers: Sequence[Layer], history: Sequence[str]) -> Sizes:
    """Returns the sizes of the layers above the base, given the image's history, whose last commands made them."""
    return Sizes(
        layers=tuple(
            LayerSize(
                command=command[:_COMMAND_WIDTH],
                size=sum(entry.stored for entry in layer),
                files={entry.path: entry.stored for entry in layer if entry.stored >= FILE_BYTES},
            )
            for layer, command in zip(layers, commands(history, len(layers)), strict=True)
        )
    )


def parse(value: Any) -> Sizes | None:
    """Returns the sizes in a contract report; None where it has none, as reports of older versions."""
    try:
        return Sizes(
            layers=tuple(
                LayerSize(
                    command=str(layer["command"]),
                    size=int(layer["size"]),
                    files={str(path): int(size) for path, size in layer["files"].items()},
                )
                for layer in value["layers"]
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def growth(before: Sizes, now: Sizes) -> Iterator[str]:
    """Yields a sentence for each layer that is larger than in another image, and names the files that grew most.

    A layer is compared with that of the same instruction, or else with the one at its place.
    """
    others = {layer.command: layer for layer in before.layers}
    for number, layer in enumerate(now.layers):
        same_place = before.layers[number] if len(before.layers) == len(now.layers) else None
        other = others.get(layer.command, same_place) or LayerSize(command="", size=0, files={})
        more = layer.size - other.size
        if more < FILE_BYTES:
            continue
        was = {_unversioned(path): size for path, size in other.files.items()} | dict(other.files)
        old = {path: was.get(path, was.get(_unversioned(path), 0)) for path in layer.files}
        grown = [path for path, size in layer.files.items() if size > old[path]]
        grown.sort(key=lambda path, layer=layer, old=old: old[path] - layer.files[path])  # type: ignore[misc]
        files = [
            f"{path} {f'{megabytes(layer.files[path] - old[path])} more' if old[path] else 'is new'} "
            f"({megabytes(layer.files[path])})"
            for path in grown[:NAMED]
        ]
        files += [f"{len(grown) - NAMED} more files"] if len(grown) > NAMED else []
        yield (
            f"Layer {number + 1} of {len(now.layers)} above the base, {layer.command or 'of an unknown command'}, has "
            f"{megabytes(more)} more: {', '.join(files) or 'in small files'}."
        )


def _unversioned(path: str) -> str:
    """Returns a library's path without its version, which a release of llama.cpp changes."""
    return re.sub(r"\.so[.\d]*$", ".so", path)
