"""What an image adds to its base: layers, files, bytes on disk and in a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from base_images.adapters.engine import Engine, Image
from base_images.contract import layers
from base_images.contract.layers import Entry, Kind
from base_images.contract.sizes import commands
from base_images.errors import EngineError

LARGEST = 25
"""The files of a layer that are listed; the others are summed up."""

_COMMAND_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """A layer on the base.

    Attributes:
        made_by: the instruction; empty if it is not known.
        largest: its largest files with their bytes.
    """

    diff_id: str
    made_by: str
    disk: int
    compressed: int
    files: int
    largest: tuple[tuple[str, int], ...]

    def as_json(self) -> Mapping[str, Any]:
        """Returns it as a JSON object."""
        return asdict(self)


def added(engine: Engine, image: Image, base: Image) -> tuple[LayerSize, ...]:
    """Returns the layers of an image that are not its base's, lowest first.

    Raises:
        EngineError: the image is not built on the base, or the engine sent no archive that can be read.
    """
    count = len(base.diff_ids)
    if image.diff_ids[:count] != base.diff_ids:
        raise EngineError(f"The image {image.id} is not built on {base.id}: remove it and run the command again.")
    contents = layers.read(engine.save(image.id), diff_ids=image.diff_ids)[count:]
    own = image.diff_ids[count:]
    packed = layers.compressed_sizes(engine.save(image.id), own)
    named = commands(image.history, len(own))
    return tuple(
        _of_layer(diff_id, by, content, packed[diff_id])
        for diff_id, by, content in zip(own, named, contents, strict=True)
    )


def pulled(later: Sequence[LayerSize], earlier: Sequence[LayerSize]) -> int:
    """Returns the compressed bytes of the later image's layers that the earlier one has not."""
    have = {layer.diff_id for layer in earlier}
    return sum(layer.compressed for layer in later if layer.diff_id not in have)


def values(first: Sequence[LayerSize], later: Sequence[LayerSize]) -> dict[str, float]:
    """Returns the value of each size metric of a side."""
    return {
        "disk": sum(layer.disk for layer in first),
        "compressed": sum(layer.compressed for layer in first),
        "layers": len(first),
        "files": sum(layer.files for layer in first),
        "update": pulled(later, first),
    }


def _of_layer(diff_id: str, made_by: str, content: Sequence[Entry], compressed: int) -> LayerSize:
    files = [entry for entry in content if entry.kind is Kind.FILE and "/.wh." not in entry.path]
    largest = sorted(files, key=lambda entry: (-entry.stored, entry.path))[:LARGEST]
    return LayerSize(
        diff_id=diff_id,
        made_by=made_by[:_COMMAND_WIDTH],
        disk=sum(entry.stored for entry in content),
        compressed=compressed,
        files=len(files),
        largest=tuple((entry.path, entry.stored) for entry in largest if entry.stored),
    )
