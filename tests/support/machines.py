"""Machines as file trees: what /dev, /proc and /sys hold on a host with a vendor's device."""

from __future__ import annotations

import os
from pathlib import Path

VIDEO, RENDER = 4244, 4245
"""Group ids; the groups need not exist on this machine."""

NVIDIA_OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build  (dvs-builder@U16-I3)  Thu Jan 23
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
NVIDIA_CLOSED = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""
ASCEND = """\
Version=25.0.rc1.1
ascendhal_version=7.35.23
aicpu_version=1.0
"""


def put(root: Path, path: str, text: str = "", group: int | None = None) -> None:
    """Writes a file below `root`; sets its group where the tests run as root."""
    file = root / path.removeprefix("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    if group is not None and os.geteuid() == 0:
        os.chown(file, 0, group)


def render_node(root: Path, name: str, module: str) -> None:
    """Adds a GPU's render node and its kernel module."""
    put(root, f"/dev/dri/{name}", group=RENDER)
    device = root / "sys/class/drm" / name / "device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(f"../../../../../bus/pci/drivers/{module}")
    (root / "sys/module" / module).mkdir(parents=True, exist_ok=True)


def nvidia(root: Path, version: str = "550.54.14") -> None:
    """Adds the files of NVIDIA's driver."""
    put(root, "/dev/nvidiactl", group=VIDEO)
    put(root, "/sys/module/nvidia/version", f"{version}\n")


def nvidia_files(root: Path) -> None:
    """Adds what a container gets of NVIDIA's driver where the engine cannot give its GPUs."""
    for name in ("nvidia0", "nvidia-uvm"):
        put(root, f"/dev/{name}", group=0)
    for name in ("libcuda.so.1", "libGLX_nvidia.so.0", "libnvidia-glcore.so.550.54.14", "libnvidia-container.so.1"):
        put(root, f"/usr/lib64/{name}")
    put(root, "/usr/share/vulkan/icd.d/nvidia_icd.json")


def amd(root: Path, version: str = "6.12.12") -> None:
    """Adds the files of AMD's driver; the kernel's own driver has no version."""
    put(root, "/dev/kfd", group=RENDER)
    render_node(root, "renderD128", "amdgpu")
    if version:
        put(root, "/sys/module/amdgpu/version", f"{version}\n")


def intel(root: Path, module: str = "xe") -> None:
    """Adds the files of Intel's driver, which is part of the kernel."""
    render_node(root, "renderD128", module)


def moore_threads(root: Path) -> None:
    """Adds the files of Moore Threads' driver."""
    put(root, "/sys/module/mtgpu/version", "2.7.0\n")


def ascend(root: Path, version_info: str = ASCEND) -> None:
    """Adds the files of Ascend's driver."""
    for name in ("davinci0", "davinci_manager", "devmm_svm", "hisi_hdc"):
        put(root, f"/dev/{name}", group=VIDEO)
    put(root, "/usr/local/Ascend/driver/version.info", version_info)
    put(root, "/usr/local/Ascend/driver/lib64/libascend_hal.so")
    put(root, "/usr/local/dcmi/libdcmi.so")
