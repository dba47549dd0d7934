"""The table of variants: everything that differs between the images, except for their Dockerfiles."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from base_images import roots
from base_images.errors import UsageError

MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000


class Platform(Enum):
    """A platform that images are built for: Docker's name and the target triple in BodhiApp's lookup path."""

    AMD64 = ("linux/amd64", "x86_64-unknown-linux-gnu")
    ARM64 = ("linux/arm64", "aarch64-unknown-linux-gnu")

    def __init__(self, docker: str, triple: str) -> None:
        self.docker = docker
        self.triple = triple

    @classmethod
    def of_architecture(cls, architecture: str) -> Platform | None:
        """Returns the platform of Docker's architecture, such as `amd64`; None for others."""
        return next((platform for platform in cls if platform.architecture == architecture), None)

    @property
    def architecture(self) -> str:
        """The architecture as Docker and BuildKit's TARGETARCH name it, such as `amd64`."""
        return self.docker.removeprefix("linux/")


@dataclass(frozen=True, kw_only=True)
class Architectures:
    """The device architectures that a backend can be compiled for; by default the recipe builds for many, as upstream.

    Attributes:
        argument: the ARG of the recipe.
        form: a pattern that each architecture matches; its first group is the toolkit's name for it.
        example: an architecture for help and error messages.
        listing: the command that lists the architectures in the build base; empty when the toolkit has none.
        listed: a pattern whose first group is a name in the listing.
        known: the architectures, when the toolkit has no such command.
        several: whether one image can be compiled for more than one.
    """

    argument: str
    form: str
    example: str
    listing: tuple[str, ...] = ()
    listed: str = ""
    known: tuple[str, ...] = ()
    several: bool = True


@dataclass(frozen=True, kw_only=True)
class Driver:
    """How to find a device's driver on the host, and the driver version that a toolkit needs.

    Attributes:
        modules: kernel modules, one of which drives the device; empty for any module with a render node.
        unusable: modules whose render nodes the image has no driver for.
        version_files: files with the driver's version, read after /sys/module/<module>/version.
        toolkit: the name in version.json of the toolkit version that `oldest` and `own` are looked up by.
        oldest: prefix of the toolkit's version to the oldest driver that its programs run on.
        own: prefix of the toolkit's version to the driver that is released with it.
        older_than_own: the limitation of a driver between the two.
    """

    modules: tuple[str, ...] = ()
    unusable: tuple[str, ...] = ()
    version_files: tuple[str, ...] = ()
    toolkit: str = ""
    oldest: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    older_than_own: str = ""


@dataclass(frozen=True, kw_only=True)
class Gpus:
    """A vendor's GPUs, which a container uses with the libraries of the host's driver, not with its own.

    Attributes:
        capabilities: the parts of the driver that are needed, as the vendor's container toolkit names them.
        library: the driver's library that the backend loads.
        nodes: patterns of the nodes that are needed where neither the toolkit nor CDI gives them; each matches one.
        optional: patterns of further nodes that are given if they exist.
        control: nodes, one of which exists where the driver is installed: natively, and on WSL.
        manifests: patterns of the file by which Vulkan's loader finds the driver; empty when Vulkan is not used.
        libraries: a pattern that the names of the driver's libraries match.
        helpers: programs of the toolkit; the engine runs the first for `--gpus`.
        runtime: the toolkit's container runtime.
        cdi: the name of all the GPUs in the engine's device descriptions (CDI).
        chosen_by: environment variables by which the runtime is told which GPUs, and which capabilities.
        driver: the driver of the host.
    """

    capabilities: tuple[str, ...]
    library: str
    nodes: tuple[str, ...] = ("/dev/nvidiactl", "/dev/nvidia[0-9]*", "/dev/nvidia-uvm")
    optional: tuple[str, ...] = ("/dev/nvidia-uvm-tools", "/dev/nvidia-modeset", "/dev/nvidia-caps/*")
    control: tuple[str, ...] = ("/dev/nvidiactl", "/dev/dxg")
    manifests: tuple[str, ...] = ()
    libraries: str = r"lib(cuda|cudadebugger|nvoptix|nvidia-(?!container)[\w.-]+|\w+_nvidia)\.so\.[\d.]+"
    helpers: tuple[str, ...] = ("nvidia-container-runtime-hook", "nvidia-ctk")
    runtime: str = "nvidia"
    cdi: str = "nvidia.com/gpu=all"
    chosen_by: tuple[str, str] = ("NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES")
    driver: Driver = Driver(modules=("nvidia",), version_files=("/proc/driver/nvidia/version",))


@dataclass(frozen=True, kw_only=True)
class DeviceAccess:
    """How a container gets access to the device.

    Attributes:
        name: the device's name in `--list-devices` and the server's log, without its index: `CUDA` of `CUDA0`.
        check: a command that shows the device on the host.
        driver: the driver that the host needs.
        nodes: device nodes or directories of device nodes.
        group_nodes: nodes whose group the process joins, by GID, since the image may not have the group's name.
        gpus: the vendor's GPUs; beside `nodes`, either is enough.
        runtime: the container runtime that passes the device; empty for the engine's default.
        mounts: the driver's files on the host, mounted read-only at the same path.
        environment: environment variables for the runtime or the backend.
        software: environment variables that make the backend use a device emulated by the CPU, which needs none of the
            other attributes; empty when there is none.
    """

    name: str
    check: str
    driver: Driver = Driver()
    nodes: tuple[str, ...] = ()
    group_nodes: tuple[str, ...] = ()
    gpus: Gpus | None = None
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One variant of the image: an accelerator, or the CPU.

    Attributes:
        name: the name, also of the directory `/app/bin/<triple>/<name>` and the prefix of the tag.
        title: the name in prose.
        acceleration: the value of the label `bodhi.acceleration`.
        platforms: the platforms that the image is published for.
        directories: the directories below `/app/bin/<triple>/`, the variant's own first (contract row 1).
        size_budget: bytes that the image may add to its base (contract row 17, docs/contract.md); None until measured.
        size_measured: bytes that it added when last measured; None until measured.
        size_architectures: the device architectures that both are for, as an image for others has another size.
        proven: what was tested without a device, for the README's table; kept reports say what on a device.
        toolkit: names in version.json of the toolkit's versions and settings, and the ARG of the recipe for each.
        architectures: the device architectures to compile for; None when there is no choice.
        device: access to the accelerator's device; None when it needs none.
        runs_on_toolkit: whether the runtime base is the toolkit's development image with its compilers, as upstream's.
        device_waiver: why `latest` may move without a smoke test on the device; empty when it may not.
        toolkit_size: approximate unpacked size of the toolkit's base images in bytes, checked before they are pulled.
        backend: the library that llama.cpp loads for the accelerator; empty when it loads none.
        static_backends: whether upstream builds the variant without loadable backends.
        host_libraries: driver libraries that only the host has, each with the prefixes of the symbols it defines.
        old_glibc: whether the base's glibc may be older than the contract's minimum.
        packages: Debian packages that replace the base images; None when Debian has no compiler for the accelerator.
    """

    name: str
    title: str
    acceleration: str
    platforms: tuple[Platform, ...]
    directories: tuple[str, ...]
    size_budget: int | None = None
    size_measured: int | None = None
    size_architectures: str = ""
    proven: str | None = None
    toolkit: Mapping[str, str] = field(default_factory=dict)
    architectures: Architectures | None = None
    device: DeviceAccess | None = None
    runs_on_toolkit: bool = False
    device_waiver: str = ""
    toolkit_size: int = 0
    backend: str = ""
    static_backends: bool = False
    host_libraries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    old_glibc: bool = False
    packages: roots.Packages | None = None

    @property
    def dockerfile(self) -> str:
        """The path of the recipe in the checkout."""
        return f"dockerfiles/{self.name}.Dockerfile"

    @property
    def version_argument(self) -> str:
        """The ARG of the recipe for the toolkit's version, which its base images have; empty without one."""
        return next((argument for argument in self.toolkit.values() if argument.endswith("_VERSION")), "")


_AMD64 = (Platform.AMD64,)
_BOTH = (Platform.AMD64, Platform.ARM64)

_RENDER_NODE = "/dev/dri/renderD128"
"""The render node of the first GPU; on most hosts the group `render` owns all render nodes."""

_NVIDIA = Driver(
    modules=("nvidia",),
    version_files=("/proc/driver/nvidia/version",),
    toolkit="cuda",
    # docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html and, for the rest of these numbers,
    # docs.nvidia.com/cuda/cuda-toolkit-release-notes (13.1 to 13.3), tables 2 and 3, for Linux.
    oldest={"11": "450.80.02", "12": "525.60.13", "13": "580"},
    own={
        "12.0": "525.60.13",
        "12.1": "530.30.02",
        "12.2": "535.54.03",
        "12.3": "545.23.06",
        "12.4": "550.54.14",
        "12.5": "555.42.02",
        "12.6": "560.28.03",
        "12.8": "570.26",
        "12.9": "575.51.03",
        "13.0": "580.65.06",
        "13.1": "590.44.01",
        "13.2": "595.45.04",
        "13.3": "610.43.02",
        # From 13.4 on, no driver for Linux is part of the toolkit; this branch was released with it.
        "13.4": "615",
    },
    older_than_own="it compiles no code for a GPU that the image has none for",
)
_AMD = Driver(
    modules=("amdgpu",),
    toolkit="rocm",
    # rocm.docs.amd.com/projects/install-on-linux, "User and AMD GPU Driver support matrix" of 2025-09-17: ROCm 7.0 runs
    # on the drivers of ROCm 6.2 and newer, which have version 6.8.5, and 6.4 on those of 6.1, which have version 6.7.0.
    # The kernel's own driver has no version and is in no such table.
    oldest={"6.4": "6.7.0", "7": "6.8.5"},
)
_ASCEND = Driver(
    version_files=("/usr/local/Ascend/driver/version.info",),
    toolkit="cann",
    # hiascend.com/document/detail/en/canncommercial/850/releasenote, "Mapping Between CANN and Driver Versions".
    oldest={"8.5": "25.0"},
)

_NO_RUNNER = "no runner with such a device tests releases yet; that it falls back to the CPU is tested"
"""Remove a variant's waiver when the repository has a runner for it: `latest` then requires a test on the device."""

VARIANTS: tuple[Variant, ...] = (
    Variant(
        name="cpu",
        title="CPU",
        acceleration="cpu",
        platforms=_BOTH,
        directories=("cpu",),
        size_budget=76 * MEGABYTE,
        size_measured=55_800_000,
        proven="amd64: contract and smoke test; arm64: the same, emulated",
        packages=roots.Packages(),
    ),
    Variant(
        name="cuda",
        title="CUDA",
        acceleration="nvidia-cuda",
        platforms=_AMD64,  # _BOTH for arm64 too: the recipe and its bases have it
        directories=("cuda", "cpu"),
        size_budget=135 * MEGABYTE,
        size_measured=120_600_000,  # CUDA 13.0.3
        size_architectures="90",
        proven="amd64, for capability 9.0 by CUDA 13.0.3 and 12.4.1: contract, fall-back to the CPU",
        toolkit={"cuda": "CUDA_VERSION", "cuda_arch": "CUDA_DOCKER_ARCH"},
        architectures=Architectures(
            argument="CUDA_DOCKER_ARCH",
            form=r"(\d{2,3})[af]?(?:-real|-virtual)?",
            example="90",
            listing=("nvcc", "--list-gpu-arch"),
            listed=r"compute_(\d+)",
        ),
        device=DeviceAccess(
            name="CUDA",
            check="nvidia-smi",
            driver=_NVIDIA,
            gpus=Gpus(capabilities=("compute", "utility"), library="libcuda.so.1"),
        ),
        device_waiver=_NO_RUNNER,
        toolkit_size=13 * GIGABYTE,
        backend="libggml-cuda.so",
        host_libraries={"libcuda.so.1": ("cu",)},
        packages=roots.CUDA,
    ),
    Variant(
        name="rocm",
        title="ROCm",
        acceleration="amd-rocm",
        platforms=_AMD64,
        directories=("rocm", "cpu"),
        proven="amd64, for gfx1100 by Debian's HIP 6.4.3: contract, fall-back to the CPU",
        toolkit={"rocm": "ROCM_VERSION", "rocm_arch": "ROCM_DOCKER_ARCH"},
        architectures=Architectures(
            argument="ROCM_DOCKER_ARCH",
            form=r"(gfx[0-9a-f]+)(?::(?:xnack|sramecc)[+-])*",
            example="gfx1100",
            listing=("sh", "-c", '"$(hipconfig -l)/clang" --target=amdgcn-amd-amdhsa --print-supported-cpus 2>&1'),
            listed=r"(?m)^\s*(gfx[0-9a-f]+)$",
        ),
        # All GPUs share one KFD node, which has its own group on some hosts.
        device=DeviceAccess(
            name="ROCm",
            check="rocminfo",
            driver=_AMD,
            nodes=("/dev/kfd", "/dev/dri"),
            group_nodes=("/dev/kfd", _RENDER_NODE),
        ),
        runs_on_toolkit=True,
        device_waiver=_NO_RUNNER,
        toolkit_size=40 * GIGABYTE,
        backend="libggml-hip.so",
        packages=roots.ROCM,
    ),
    Variant(
        name="vulkan",
        title="Vulkan",
        acceleration="vulkan",
        platforms=_BOTH,
        directories=("vulkan", "cpu"),
        size_budget=420 * MEGABYTE,
        size_measured=405_800_000,
        proven="amd64: contract, fall-back to the CPU; arm64: the same, emulated",
        device=DeviceAccess(
            name="Vulkan",
            check="vulkaninfo --summary",
            driver=Driver(unusable=("nvidia",)),  # the image's drivers are Mesa's
            nodes=("/dev/dri",),
            group_nodes=(_RENDER_NODE,),
            # NVIDIA's own driver for Vulkan, of the host.
            gpus=Gpus(
                capabilities=("graphics", "compute", "utility"),
                library="libGLX_nvidia.so.0",
                manifests=("/usr/share/vulkan/icd.d/nvidia_icd*.json", "/etc/vulkan/icd.d/nvidia_icd*.json"),
            ),
            # Mesa's lavapipe: llama.cpp b11312 selects a device of type CPU only by its index. Without a cache
            # directory, every process compiles the shaders again.
            software={"GGML_VK_VISIBLE_DEVICES": "0", "XDG_CACHE_HOME": "/var/tmp"},  # noqa: S108 - in the container
        ),
        backend="libggml-vulkan.so",
        packages=roots.Packages(),
    ),
    Variant(
        name="musa",
        title="MUSA",
        acceleration="moore-threads-musa",
        platforms=_AMD64,
        directories=("musa", "cpu"),
        proven="with Debian 12's compiler in the vendor's place: contract and answers of cpu/; MUSA itself: not yet",
        toolkit={"musa": "MUSA_VERSION", "musa_arch": "MUSA_DOCKER_ARCH"},
        architectures=Architectures(
            argument="MUSA_DOCKER_ARCH",
            form=r"(\d{2})",
            example="31",
            known=("21", "22", "31"),  # llama.cpp b11312, ggml/src/ggml-musa/CMakeLists.txt
        ),
        # llama.cpp b11312, docs/docker.md: the runtime of mt-container-toolkit, which reads this variable.
        device=DeviceAccess(
            name="MUSA",
            check="mthreads-gmi",
            driver=Driver(modules=("mtgpu",)),
            runtime="mthreads",
            environment={"MTHREADS_VISIBLE_DEVICES": "all"},
        ),
        device_waiver=_NO_RUNNER,
        toolkit_size=20 * GIGABYTE,
        backend="libggml-musa.so",
        host_libraries={"libmusa.so.1": ("mu",)},
        old_glibc=True,  # upstream's base is Ubuntu 22.04, glibc 2.35
    ),
    Variant(
        name="intel",
        title="Intel",
        acceleration="intel-sycl",
        platforms=_AMD64,
        directories=("intel", "cpu"),
        proven="with Debian's compiler in the vendor's place: contract and answers of cpu/; SYCL itself: not yet",
        toolkit={
            "oneapi": "ONEAPI_VERSION",
            "sycl_f16": "GGML_SYCL_F16",
            "level_zero": "LEVEL_ZERO_VERSION",
            "compute_runtime": "COMPUTE_RUNTIME_VERSION",
            "igc": "IGC_VERSION",
        },
        device=DeviceAccess(
            name="SYCL",
            check="sycl-ls",
            driver=Driver(modules=("i915", "xe")),
            nodes=("/dev/dri",),
            group_nodes=(_RENDER_NODE,),
        ),
        runs_on_toolkit=True,
        device_waiver=_NO_RUNNER,
        toolkit_size=20 * GIGABYTE,
        backend="libggml-sycl.so",
    ),
    Variant(
        name="cann",
        title="CANN",
        acceleration="huawei-cann",
        platforms=_BOTH,
        directories=("cann", "cpu"),
        proven="with Debian 13 in openEuler's place: contract and answers of cpu/; CANN itself, arm64: not yet",
        toolkit={"cann": "CANN_BASE_IMAGE", "cann_chip": "CHIP_TYPE"},
        architectures=Architectures(
            argument="CHIP_TYPE",
            form=r"(\w+)",
            example="910b",
            known=("310p", "910b"),  # llama.cpp b11312, docs/backend/CANN.md
            several=False,
        ),
        # llama.cpp b11312, docs/backend/CANN.md: one NPU, and the nodes that all NPUs share.
        device=DeviceAccess(
            name="CANN",
            check="npu-smi info",
            driver=_ASCEND,
            nodes=("/dev/davinci0", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
            group_nodes=("/dev/davinci0",),
            mounts=("/usr/local/Ascend/driver/lib64", "/usr/local/Ascend/driver/version.info", "/usr/local/dcmi"),
        ),
        runs_on_toolkit=True,
        device_waiver=_NO_RUNNER,
        toolkit_size=15 * GIGABYTE,
        static_backends=True,
        host_libraries={"libascend_hal.so": ("hal", "drv")},
    ),
)

STATIC_BACKENDS = frozenset(variant.name for variant in VARIANTS if variant.static_backends)
"""Names of the variants without loadable backends, which are the names of their directories too."""


def megabytes(size: int) -> str:
    """Returns a size in bytes such as `42.1 MB` (1 MB is 1,000,000 bytes)."""
    return f"{size / MEGABYTE:.1f} MB"


def gigabytes(size: int) -> str:
    """Returns a size in bytes such as `42.1 GB` (1 GB is 1,000,000,000 bytes)."""
    return f"{size / GIGABYTE:.1f} GB"


def find(name: str, among: Sequence[Variant] = VARIANTS) -> Variant:
    """Returns the variant called `name`.

    Raises:
        UsageError: no variant has the name; the message suggests the nearest one.
    """
    for variant in among:
        if variant.name == name:
            return variant
    names = [variant.name for variant in among]
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names)}."
    raise UsageError(f"There is no variant {name!r}: {hint}")
