"""What base images are made of where no registry can be reached: Debian's packages, and wheels of the package index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SUITE = "trixie"
"""Debian 13: the release nearest to upstream's Ubuntu 24.04 (gcc 14, cmake 3.31, node 20)."""

UNSTABLE = "unstable"


@dataclass(frozen=True, kw_only=True)
class Wheels:
    """A toolkit on the package index, as wheels.

    Attributes:
        toolkit: the package that pins the versions of the others.
        version: its version; filled in for a build.
        names: the packages that it pins.
        others: packages that it does not pin, with their versions.
        libraries: patterns of the only libraries that are installed; empty for everything.
    """

    toolkit: str
    names: tuple[str, ...]
    others: tuple[str, ...] = ()
    version: str = ""
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Root:
    """A Debian root file system: minbase with packages of a suite on top, and wheels on top of those.

    Attributes:
        experimental: source packages whose packages come from Debian experimental.
    """

    suite: str = SUITE
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()
    experimental: tuple[str, ...] = ()
    wheels: Wheels | None = None


@dataclass(frozen=True, kw_only=True)
class Packages:
    """Debian packages that replace a variant's base images; the recipe installs the rest, as on upstream's bases.

    Attributes:
        build: the build base.
        runtime: the runtime base.
        arguments: ARGs of the recipe that need another value with Debian's compilers.
        release: the toolkit's version where it is settled, so that another is refused before anything is fetched.
        versions: each ARG of the recipe that holds a toolkit's version, and the package of the build base that has it.
        size: approximate unpacked size of the bases in bytes.
        by_major: what replaces all this for these major versions of the toolkit.
    """

    build: Root = Root()
    runtime: Root = Root()
    arguments: Mapping[str, str] = field(default_factory=dict)
    release: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    by_major: Mapping[str, Packages] = field(default_factory=dict)

    def slim(self) -> Packages:
        """Returns the same packages with nothing of the toolkit in the runtime base."""
        return replace(self, runtime=Root(suite=self.runtime.suite))


_NON_FREE = ("main", "contrib", "non-free")

_CUDA_13_RUNTIME = ("nvidia-cuda-runtime", "nvidia-cublas")
_CUDA_13_LIBRARIES = ("libcudart.so.*", "libcublas.so.*", "libcublasLt.so.*", "libnccl.so.*")
"""What the server loads of NVIDIA's runtime image. CUDA's licence (attachment A of the EULA) and NCCL's allow to
redistribute these; both are in the wheels and go into the base with them."""
_CUDA_13 = Wheels(
    toolkit="cuda-toolkit",
    names=("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-cccl", *_CUDA_13_RUNTIME),
    others=("nvidia-nccl-cu13==2.28.9",),
)

_ROCM_SOURCES = (
    *("hipblas", "hipblas-common", "rocblas", "rocm-hipamd"),
    *("rocm-llvm", "rocr-runtime", "rocsolver", "roctracer"),
)

# The runtime has what NVIDIA's runtime image has of the toolkit: cudart, cublas, nccl.
CUDA = Packages(
    build=Root(components=_NON_FREE, packages=("nvidia-cuda-toolkit", "libnccl-dev")),
    runtime=Root(components=_NON_FREE, packages=("libcudart12", "libcublas12", "libnccl2")),
    arguments={"GCC_VERSION": "13"},  # the newest that CUDA 12.4 takes
    release="12.4",
    versions={"CUDA_VERSION": "nvidia-cuda-toolkit"},
    size=7_000_000_000,
    by_major={
        "13": Packages(
            build=Root(packages=("binutils",), wheels=_CUDA_13),
            runtime=Root(wheels=replace(_CUDA_13, names=_CUDA_13_RUNTIME, libraries=_CUDA_13_LIBRARIES)),
            size=3_000_000_000,
        )
    },
)

# llama.cpp needs HIP 6.1, and upstream takes 7.2: stable has an older one, unstable a mixture of 6.4 and 7.0.
ROCM = Packages(
    build=Root(suite=UNSTABLE, packages=("hipcc", "libhipblas-dev", "librocblas-dev"), experimental=_ROCM_SOURCES),
    runtime=Root(suite=UNSTABLE, packages=("libhipblas3", "librocblas5"), experimental=_ROCM_SOURCES),
    versions={"ROCM_VERSION": "libamdhip64-dev"},
    size=5_000_000_000,
)
