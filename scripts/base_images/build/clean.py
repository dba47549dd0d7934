"""Finds and removes the images on an engine that this project built."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from base_images import versions
from base_images.adapters.engine import Engine, Image
from base_images.errors import BaseImagesError, UsageError
from base_images.labels import Label
from base_images.variants import VARIANTS, Platform
from base_images.versions import Target

_LAST_INSTRUCTIONS = ("/usr/local/bin/llama-entrypoint", "COPY /operations/ / ")
"""In the last instruction of each target of every recipe. A child image inherits the labels but ends with another."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What to remove of one image.

    Attributes:
        references: the tags to remove, or the image's id when it has no tag.
        kept: tags of the user's, which keep the image.
    """

    image_id: str
    version: str
    references: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """Removed references, failed ones with the reason, and the bytes of layers that were freed."""

    removed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    freed: int


def removals(images: Iterable[Image], registry: str) -> list[Removal]:
    """Returns what to remove of those `images` that this project's recipes built."""
    found = []
    for image in images:
        if not _ours(image):
            continue
        tags = tuple(tag for tag in image.tags if _own_tag(tag, registry))
        kept = tuple(tag for tag in image.tags if tag not in tags)
        references = tags if image.tags else (image.id,)
        if references:
            version = image.labels.get(Label.VERSION, "")
            found.append(Removal(image_id=image.id, version=version, references=references, kept=kept))
    return found


def in_repository(images: Iterable[Image], repository: str) -> list[Removal]:
    """Returns what to remove of those `images` that have a tag in a repository, such as that of the packages' bases."""
    found = []
    for image in images:
        references = tuple(tag for tag in image.tags if tag.startswith(f"{repository}:"))
        if references:
            found.append(Removal(image_id=image.id, version="", references=references, kept=()))
    return found


def apply(engine: Engine, planned: Sequence[Removal]) -> Cleaned:
    """Removes the planned references; those of images in use are returned as failed.

    What killed processes left behind is removed first, as it uses images.
    """
    engine.remove_abandoned()
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
    return labelled and bool(image.history) and any(last in image.history[-1] for last in _LAST_INSTRUCTIONS)


def _own_tag(tag: str, registry: str) -> bool:
    for platform in Platform:  # of an emulated build; a killed `publish` leaves its tag for one platform too
        tag = tag.removesuffix(f"-{platform.architecture}")
    tag = tag.removesuffix(Target.OPERATIONS.tag(""))
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
