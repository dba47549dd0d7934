"""Parses options: paths, platforms, variants, the origin of source and base images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from base_images import settings, variants
from base_images.errors import UsageError
from base_images.settings import ROOT

if TYPE_CHECKING:
    from base_images.adapters.registry import Repository
    from base_images.build.inputs import Origin, Source
    from base_images.cli.views import Display

SOURCE_HELP = {
    "source": "llama.cpp's source tree; default: LLAMA_CPP_DIR, else the pin, fetched into llama.cpp/",
    "origin": "where base images and source come from: auto, registries or packages",
}


BUILD_HELP = {
    **SOURCE_HELP,
    "arch": "compile the backend only for this device architecture, such as 90 or gfx1100; may be given several times",
    "toolkit": "version of the toolkit, such as 13.0.3 for cuda; default: the recipe's, which is upstream's",
    "slim": "rocm and intel: put what the server needs of the toolkit on a small base, instead of upstream's base",
}


def caller_path(text: str) -> Path | None:
    """Returns a typed path as an absolute one; None for an empty text."""
    # bootstrap.sh changes into the checkout; a typed path is relative to the caller's directory.
    return Path(os.environ.get("BASE_IMAGES_CALLER_DIRECTORY", ""), text).absolute() if text else None


def parse_jobs(text: str) -> int:
    """Returns a number of builds at once; 0 for an empty text.

    Raises:
        UsageError: it is no number, or no build would run.
    """
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--jobs {text} is not a number of builds at once: give 1 or more.")
    return int(text or 0)


def parse_origin(name: str) -> Origin:
    """Returns the origin of that name.

    Raises:
        UsageError: there is no such origin.
    """
    from base_images.build.inputs import Origin

    try:
        return Origin(name)
    except ValueError as error:
        raise UsageError(f"There is no origin {name!r}: choose one of {', '.join(Origin)}.") from error


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options of a build, apart from variants and platforms.

    Attributes:
        source: the path of llama.cpp's source tree as typed; empty for the default.
        architectures: the device architectures to compile for; empty for the recipe's.
        slim: whether the runtime base is small instead of upstream's.
        toolkit: the version of the toolkit; empty for the recipe's.
    """

    source: str
    origin: Origin
    architectures: list[str]
    slim: bool
    toolkit: str


def resolve_source(source: str, origin: Origin, display: Display) -> Source:
    """Returns llama.cpp's source, fetched if it is missing, and shows notices about it."""
    from base_images.build import source as sources

    found = sources.resolve(
        settings.load(ROOT).pin, path=caller_path(source), origin=origin, root=ROOT, listener=display.progress
    )
    for notice in found.notices:
        display.notice(notice)
    return found


def open_registry() -> Repository:
    """Returns the registry's repository that this checkout publishes to."""
    from base_images.adapters import registry

    return registry.open_repository(settings.load(ROOT).registry)


def variants_of(names: list[str]) -> list[variants.Variant]:
    """Returns the variants of these names; without names, all that have a recipe."""
    if names:
        return [variants.find(name) for name in names]
    return [variant for variant in variants.VARIANTS if (ROOT / variant.dockerfile).exists()]


def parse_platform(name: str) -> variants.Platform:
    """Returns the platform of a name, Docker's or Debian's.

    Raises:
        UsageError: there is no such platform.
    """
    for platform in variants.Platform:
        if name in (platform.docker, platform.architecture):
            return platform
    raise UsageError(f"There is no platform {name!r}: choose amd64 or arm64.")


Wanted = list[tuple[variants.Variant, list[variants.Platform]]]


def wanted_platforms(variant: list[str], platform: list[str]) -> Wanted:
    """Returns the variants with their platforms; without names, the variants for at least one of the platforms."""
    from base_images.build import plan

    chosen = [parse_platform(name) for name in platform]
    for named in map(variants.find, variant):
        for one in chosen:
            plan.require_platform(named, one)
    wanted = [
        (known, [one for one in known.platforms if one in chosen or not chosen]) for known in variants_of(variant)
    ]
    return [(known, platforms) for known, platforms in wanted if platforms]
