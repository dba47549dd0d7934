"""What the engine's machine has of a device: observed here, judged in `device`.

`root` is the directory of /dev, /sys and the libraries, so that tests can lay out a machine as files.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from base_images.adapters import programs
from base_images.adapters.devices import EngineDevices
from base_images.variants import DeviceAccess, Gpus

ROOT = Path("/")

LDCONFIG = "/sbin/ldconfig"
"""Not in every user's PATH."""

LIBRARY_DIRECTORIES = (
    f"/usr/lib/{platform.machine()}-linux-gnu",
    "/usr/lib64",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
)
"""Where drivers are installed that the loader's cache does not have: Debian's, Fedora's, in a pod, NixOS's."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a machine and its engine have of a device.

    Attributes:
        groups: the existing paths among those that the device may need, and the GID of each.
        modules: the kernel modules of its render nodes, as far as they are known.
        libraries: the libraries of the vendor's driver: name to path.
        manifest: the file by which Vulkan's loader finds that driver; empty without one.
        toolkit: whether the program of the vendor's container toolkit is there that the engine runs.
        engine: how the engine can give devices.
    """

    groups: Mapping[str, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    libraries: Mapping[str, str] = field(default_factory=dict)
    manifest: str = ""
    toolkit: bool = False
    engine: EngineDevices = field(default_factory=EngineDevices)


def look(access: DeviceAccess, engine: EngineDevices, root: Path = ROOT) -> Host:
    """Returns what this machine has of a device; of an engine elsewhere, only what that engine says.

    Args:
        access: the device.
        engine: how the engine can give devices.
        root: the directory of the machine's files.
    """
    if engine.where:
        return Host(engine=engine)
    gpus = access.gpus
    named = [*access.nodes, *access.group_nodes, *access.mounts]
    if gpus:
        named += [*gpus.control, *matching((*gpus.nodes, *gpus.optional), root)]
    existing = [path for path in dict.fromkeys(named) if below(root, path).exists()]
    return Host(
        groups={path: below(root, path).stat().st_gid for path in existing},
        modules=tuple(dict.fromkeys(filter(None, (module(path, root) for path in render_nodes(access.nodes, root))))),
        libraries=_libraries(gpus, root) if gpus else {},
        manifest=next(matching(gpus.manifests, root), "") if gpus else "",
        toolkit=bool(gpus and programs.find_program(gpus.helpers[0])),
        engine=engine,
    )


def below(root: Path, path: str) -> Path:
    """Returns an absolute path's place below `root`."""
    return root / path.removeprefix("/")


def matching(patterns: Iterable[str], root: Path = ROOT) -> Iterator[str]:
    """Yields the existing paths that the patterns match, as they are without `root`."""
    for pattern in patterns:
        yield from (f"/{path.relative_to(root)}" for path in sorted(root.glob(pattern.removeprefix("/"))))


def render_nodes(paths: Iterable[str], root: Path = ROOT) -> Iterator[str]:
    """Yields the paths, and instead of a directory its render nodes."""
    for path in paths:
        yield from matching((f"{path}/renderD*",), root) if below(root, path).is_dir() else (path,)


def module(path: str, root: Path = ROOT) -> str:
    """Returns the kernel module of a render node, the target of /sys/class/drm/<node>/device/driver."""
    try:
        link = os.readlink(root / "sys/class/drm" / Path(path).name / "device/driver")  # noqa: PTH115 - not followed
    except OSError:
        return ""
    return Path(link).name


def in_cache(printed: str, machine: str) -> Iterator[str]:
    """Yields the paths of a machine's libraries in what `ldconfig -p` printed.

    Args:
        printed: lines such as `libcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1`.
        machine: as `uname -m` names it.
    """
    abi = {"x86_64": "x86-64", "aarch64": "AArch64"}.get(machine, machine)
    return (found[1] for found in re.finditer(rf"(?m)^\s+\S+ \([^)]*\b{re.escape(abi)}\b[^)]*\) => (\S+)$", printed))


def _libraries(gpus: Gpus, root: Path) -> dict[str, str]:
    cached = programs.run((LDCONFIG, "-p")).stdout if root == ROOT else ""
    paths = [
        *in_cache(cached, platform.machine()),
        *matching((f"{name}/lib*.so.*" for name in LIBRARY_DIRECTORIES), root),
    ]
    found: dict[str, str] = {}
    for path in paths:
        if re.fullmatch(gpus.libraries, Path(path).name):
            found.setdefault(Path(path).name, path)
    return found
