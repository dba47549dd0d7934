"""Which images on an engine are this project's own builds, and removing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from base_images import versions
from base_images.adapters.engine import Engine, Image
from base_images.build.bases import PACKAGES_REPOSITORY
from base_images.errors import BaseImagesError, UsageError
from base_images.labels import Label
from base_images.variants import VARIANTS

_LAST_INSTRUCTION = "/usr/local/bin/llama-entrypoint"
"""What every recipe ends with. An image built `FROM` one of ours has its labels too, but ends otherwise."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What shall go of one image.

    Attributes:
        references: the tags to remove, or the image's id when it has none.
        kept: tags that somebody else gave the image; while there are any, the image stays.
    """

    image_id: str
    version: str
    references: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What `apply` did: what is gone, what could not go and why, and the bytes of layers that were freed."""

    removed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    freed: int


def removals(images: Iterable[Image], registry: str) -> list[Removal]:
    """Returns what to remove of `images`; images that were not built by this project's recipes are left out."""
    found = []
    for image in images:
        if not _ours(image):
            continue
        own = tuple(tag for tag in image.tags if _own_tag(tag, registry))
        kept = tuple(tag for tag in image.tags if tag not in own)
        references = own if image.tags else (image.id,)
        if references:
            version = image.labels.get(Label.VERSION, "")
            found.append(Removal(image_id=image.id, version=version, references=references, kept=kept))
    return found


def bases(images: Iterable[Image]) -> list[Removal]:
    """Returns the removals of those of `images` that are base images made from package mirrors."""
    found = []
    for image in images:
        references = tuple(tag for tag in image.tags if tag.startswith(f"{PACKAGES_REPOSITORY}:"))
        if references:
            found.append(Removal(image_id=image.id, version="", references=references, kept=()))
    return found


def apply(engine: Engine, planned: Sequence[Removal]) -> Cleaned:
    """Removes what was planned; what is in use stays and is named."""
    before = engine.disk_usage()
    removed: list[str] = []
    failed: list[tuple[str, str]] = []
    for removal in planned:
        for reference in removal.references:
            try:
                engine.remove_image(reference)
            except BaseImagesError as error:
                failed.append((reference, str(error)))
            else:
                removed.append(reference)
    return Cleaned(removed=tuple(removed), failed=tuple(failed), freed=max(0, before - engine.disk_usage()))


def _ours(image: Image) -> bool:
    labelled = Label.VARIANT in image.labels and Label.VERSION in image.labels
    return labelled and bool(image.history) and _LAST_INSTRUCTION in image.history[-1]


def _own_tag(tag: str, registry: str) -> bool:
    if tag in {versions.local_reference(variant.name) for variant in VARIANTS}:
        return True
    for variant in VARIANTS:
        prefix = f"{registry}:{variant.name}-"
        if tag.startswith(prefix):
            try:
                versions.parse(tag.removeprefix(prefix))
            except UsageError:
                return False
            return True
    return False
