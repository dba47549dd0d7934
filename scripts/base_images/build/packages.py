"""What of Debian stands in for each variant's own base images, where no registry can be reached. Touches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from base_images.variants import GIGABYTE, Variant

SUITE = "trixie"
"""Debian 13: the release nearest to upstream's Ubuntu 24.04 (gcc 14, cmake 3.31, node 20)."""

UNSTABLE = "unstable"


@dataclass(frozen=True, kw_only=True)
class Root:
    """A Debian root file system: minbase and these packages on top."""

    suite: str = SUITE
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Packages:
    """The bases of one variant. The recipes install the rest themselves, as on upstream's bases.

    Attributes:
        build: what the build base has.
        runtime: what the runtime base has.
        arguments: ARGs of the recipe that Debian's compilers need another value of.
        versions: ARGs of the recipe that hold a toolkit's version, and the package of the build base that has it.
        size: bytes that the bases take unpacked, about.
    """

    build: Root = Root()
    runtime: Root = Root()
    arguments: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    size: int = 0

    def slim(self) -> Packages:
        """Returns the same with nothing of the toolkit in the runtime base."""
        return replace(self, runtime=Root(suite=self.runtime.suite))


WEB = Root(packages=("nodejs", "npm"))
"""The same in every recipe."""

_NON_FREE = ("main", "contrib", "non-free")

_TOOLKITS: Mapping[str, Packages] = {
    "cpu": Packages(),
    "vulkan": Packages(),
    # The toolkit of a runtime image of NVIDIA's: cudart, cublas, nccl.
    "cuda": Packages(
        build=Root(components=_NON_FREE, packages=("nvidia-cuda-toolkit", "libnccl-dev")),
        runtime=Root(components=_NON_FREE, packages=("libcudart12", "libcublas12", "libnccl2")),
        arguments={"GCC_VERSION": "13"},  # the newest that CUDA 12.4 takes
        versions={"CUDA_VERSION": "nvidia-cuda-toolkit"},
        size=7 * GIGABYTE,
    ),
    # Stable's HIP is too old for llama.cpp, which wants 6.1.
    "rocm": Packages(
        build=Root(suite=UNSTABLE, packages=("hipcc", "libhipblas-dev", "librocblas-dev")),
        runtime=Root(suite=UNSTABLE, packages=("libhipblas2", "librocblas4")),
        versions={"ROCM_VERSION": "libamdhip64-dev"},
        size=9 * GIGABYTE,
    ),
}


def of_variant(variant: Variant) -> Packages | None:
    """Returns the Debian packages for a variant; None when Debian has no compiler for it: musa, intel, cann."""
    return _TOOLKITS.get(variant.name)


def upstream_version(package_version: str) -> str:
    """Returns what a Debian version says of the packaged software: `12.4.131~12.4.1-2` → `12.4.1`, `6.4.3-5` → `6.4.3`.

    Debian names a part of CUDA by its own version, and after a `~` the toolkit's.
    """
    version = package_version.partition(":")[2] or package_version
    version = version.rpartition("-")[0] or version
    return re.split(r"[+]", version.rpartition("~")[2])[0]
