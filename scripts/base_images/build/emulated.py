"""Bases made of packages for another platform than this machine's, whose programs the kernel emulates by qemu.

Emulated, compiling takes 11 to 14 times as long. The build base therefore has the compiler of this machine's Debian for
the other platform, which runs natively. It lies in a directory of its own, since the recipe installs the emulated
compiler at the usual paths, and comes first in PATH.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from base_images.adapters import buildkit
from base_images.adapters.engine import Engine
from base_images.errors import EngineError, SourceError
from base_images.variants import Platform

NATIVE = "/native"
"""Where the build base has the programs that are not emulated."""

CROSS_PACKAGES: Mapping[tuple[str, Platform], tuple[str, ...]] = {
    ("amd64", Platform.ARM64): ("gcc-14-aarch64-linux-gnu", "g++-14-aarch64-linux-gnu", "ccache", "glslc"),
}
"""Packages of a machine's architecture that compile for a platform; for any other pair, the compiler is emulated."""

_LINKS = {
    # What programs of amd64 have by absolute paths: their loader and its libraries. The last is the C library for
    # arm64 as the linker scripts of the compiler's packages name it.
    "/lib64": "usr/lib64",
    "/usr/lib/x86_64-linux-gnu": "usr/lib/x86_64-linux-gnu",
    "/usr/aarch64-linux-gnu": "usr/aarch64-linux-gnu",
    **{f"/usr/local/bin/{name}": "usr/bin/aarch64-linux-gnu-gcc-14" for name in ("cc", "gcc", "gcc-14")},
    **{f"/usr/local/bin/{name}": "usr/bin/aarch64-linux-gnu-g++-14" for name in ("c++", "g++", "g++-14")},
    **{f"/usr/local/bin/{name}": f"usr/bin/{name}" for name in ("ccache", "glslc")},
}

_VARIABLES = {"VULKAN_SDK": f"{NATIVE}/usr"}
"""CMake's FindVulkan looks for `glslc` in this SDK, then in /bin, and only then in PATH."""


def base_key(machine: str, platform: Platform) -> str:
    """Returns what determines a base for the platform beside its packages, on a machine of the architecture."""
    native = CROSS_PACKAGES.get((machine, platform), ())
    return " ".join((platform.architecture, "on", machine, *native, *map(str, (*_LINKS.items(), *_VARIABLES.items()))))


def require_emulator(platform: Platform, registered: Path = Path("/proc/sys/fs/binfmt_misc")) -> None:
    """Checks that this machine's kernel runs programs of the platform; `registered` has its entry for each emulator.

    Raises:
        SourceError: it has no emulator for them.
    """
    # The name of the kernel's entry is the same for Debian's binfmt-support, systemd and tonistiigi/binfmt.
    entry = registered / f"qemu-{platform.triple.partition('-')[0]}"
    if not entry.exists():
        raise SourceError(
            f"This machine cannot run programs for {platform.docker}: `apt-get install qemu-user-static "
            f"binfmt-support` lets its kernel emulate them ({entry})."
        )


def import_filesystem(
    engine: Engine, tar: Path, reference: str, changes: Sequence[str], *, platform: Platform, native: Path | None
) -> None:
    """Creates an image for a platform from the tar of its root file system.

    By a build, since Engine 20.10 labels whatever it imports with its own platform.

    Args:
        engine: gets the image.
        tar: the root file system.
        reference: the image's name.
        changes: instructions of a Dockerfile to apply.
        platform: the platform that the image is labelled with.
        native: the tar of programs that run on this machine and compile for the platform; None for none.
    """
    files = {"root.tar": tar}
    steps = ["FROM scratch", "ADD root.tar /"]
    if native is not None:
        files["native.tar"] = native
        links = " && ".join(f"ln -s {NATIVE}/{target} {link}" for link, target in _LINKS.items())
        variables = " ".join(f"{name}={value}" for name, value in _VARIABLES.items())
        steps += [f"ADD native.tar {NATIVE}/", f"RUN {links}", f"ENV {variables}"]
    recipe = "\n".join((*steps, *changes, "")).encode()
    with tempfile.TemporaryFile(dir=tar.parent) as context:
        with tarfile.open(fileobj=context, mode="w", format=tarfile.GNU_FORMAT) as archive:
            entry = tarfile.TarInfo("Dockerfile")
            entry.size = len(recipe)
            archive.addfile(entry, io.BytesIO(recipe))
            for name, path in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = path.stat().st_size
                with path.open("rb") as content:
                    archive.addfile(entry, content)
        context.seek(0)
        stream = engine.build(
            context, dockerfile="Dockerfile", target="", arguments={}, labels={}, platform=platform.docker
        )
        built = [event.image_id for event in buildkit.events(stream) if isinstance(event, buildkit.ImageBuilt)]
    if not built:
        raise EngineError(f"The engine made no image of {tar.name} for {platform.docker}: look at its log.")
    engine.tag(built[0], reference)
