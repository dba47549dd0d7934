"""The one table of variants: everything that differs between the images and is not in their Dockerfiles."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from base_images.errors import UsageError

MEGABYTE = 1_000_000


class Platform(Enum):
    """A platform an image is built for: docker's name and the target triple of BodhiApp's lookup path."""

    AMD64 = ("linux/amd64", "x86_64-unknown-linux-gnu")
    ARM64 = ("linux/arm64", "aarch64-unknown-linux-gnu")

    def __init__(self, docker: str, triple: str) -> None:
        self.docker = docker
        self.triple = triple

    @classmethod
    def of_architecture(cls, architecture: str) -> Platform | None:
        """Returns the platform of an engine's or an image's architecture, such as `amd64`; None for any other."""
        return next((platform for platform in cls if platform.architecture == architecture), None)

    @property
    def architecture(self) -> str:
        """Docker's and BuildKit's TARGETARCH, such as `amd64`."""
        return self.docker.removeprefix("linux/")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One accelerator.

    Attributes:
        name: also the directory `/app/bin/<triple>/<name>` and the prefix of the tag.
        title: how a person calls it.
        acceleration: what computes, as the `bodhi.acceleration` label says it.
        platforms: what the image is published for.
        directories: the directories below `/app/bin/<triple>/`, the variant's own first (CONTRACT row 1).
        size_budget: bytes the image may add to its base (CONTRACT row 17); None until it was measured.
        size_measured: bytes it added when last measured; None until then.
        proven: what was shown of it and where, for the README's table; None while nothing was.
    """

    name: str
    title: str
    acceleration: str
    platforms: tuple[Platform, ...]
    directories: tuple[str, ...]
    size_budget: int | None = None
    size_measured: int | None = None
    proven: str | None = None

    @property
    def dockerfile(self) -> str:
        """Path of the recipe below the checkout."""
        return f"dockerfiles/{self.name}.Dockerfile"


_AMD64 = (Platform.AMD64,)
_BOTH = (Platform.AMD64, Platform.ARM64)

VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="cpu",
        title="CPU",
        acceleration="cpu",
        platforms=_BOTH,
        directories=("cpu",),
        size_budget=76 * MEGABYTE,
        size_measured=59_300_000,
        proven="amd64: contract and smoke test; arm64: not yet",
    ),
    Variant(name="cuda", title="CUDA", acceleration="nvidia-cuda", platforms=_AMD64, directories=("cuda", "cpu")),
    Variant(name="rocm", title="ROCm", acceleration="amd-rocm", platforms=_AMD64, directories=("rocm", "cpu")),
    Variant(
        name="vulkan",
        title="Vulkan",
        acceleration="vulkan",
        platforms=_BOTH,
        directories=("vulkan", "cpu"),
        size_budget=420 * MEGABYTE,
        size_measured=399_900_000,
        proven="amd64: contract, and the smoke test without a device; with a device, and arm64: not yet",
    ),
    Variant(
        name="musa", title="MUSA", acceleration="moore-threads-musa", platforms=_AMD64, directories=("musa", "cpu")
    ),
    Variant(name="intel", title="Intel", acceleration="intel-sycl", platforms=_AMD64, directories=("intel", "cpu")),
    Variant(name="cann", title="CANN", acceleration="huawei-cann", platforms=_BOTH, directories=("cann", "cpu")),
)


def megabytes(size: int) -> str:
    """Returns a size in bytes as a person reads it, such as `42.1 MB` (1 MB is 1,000,000 bytes)."""
    return f"{size / MEGABYTE:.1f} MB"


def markdown_table(registry: str) -> str:
    """Returns the README's table of images, one row per variant; what is not proven yet says so."""
    rows = [("variant", "platforms", "registry tags", "adds to its base", "proven"), ("---",) * 5]
    for variant in VARIANTS:
        platforms = ", ".join(platform.docker for platform in variant.platforms)
        size = megabytes(variant.size_measured) if variant.size_measured else "not measured yet"
        tags = f"`{registry}:latest-{variant.name}`, `{variant.name}-<version>`"
        rows.append((variant.title, platforms, tags, size, variant.proven or "not yet"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def find(name: str, among: Sequence[Variant] = VARIANTS) -> Variant:
    """Returns the variant called `name`.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    for variant in among:
        if variant.name == name:
            return variant
    names = [variant.name for variant in among]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}."
    raise UsageError(f"There is no variant {name!r}: {hint}")
