"""A toolkit from the wheels on the package index, laid out in a base as NVIDIA's own images have it."""

from __future__ import annotations

import functools
import io
import re
import shlex
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import packaging.metadata
import packaging.requirements
import packaging.specifiers
import packaging.utils
import packaging.version
import pypi_simple

from base_images.adapters import package_index, pip_settings
from base_images.adapters.download import download
from base_images.errors import SourceError
from base_images.progress import Listener
from base_images.roots import Wheels

TOOLKIT = "/usr/local/cuda"
"""Where NVIDIA's images have the toolkit; llama.cpp looks for NCCL there too."""

PATH = f"PATH={TOOLKIT}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The environment of a base with the toolkit's programs."""

_LOADER = "/etc/ld.so.conf.d/000-cuda.conf"
_STUB = f"{TOOLKIT}/lib/stubs/libcuda"
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_LAYOUT = 1
"""To be raised when the files in a base change, so that old bases are not used again."""


def key(wheels: Wheels | None) -> list[str]:
    """Returns everything that determines the wheels' part of a base."""
    return [f"{wheels!r} {_LAYOUT}"] if wheels else []


def hooks(wheels: Wheels, tar: Path) -> list[str]:
    """Returns mmdebstrap's options that put the tar of `write` into a root file system."""
    commands = ["ldconfig"]
    if not wheels.libraries:
        # The driver's library is on hosts only; programs are linked with a library that has its symbols.
        commands.append(
            f"sh -c 'as -o {_STUB}.o {_STUB}.s && ld -shared -soname libcuda.so.1 -o {_STUB}.so {_STUB}.o && "
            f"rm {_STUB}.o {_STUB}.s'"
        )
    return [
        f"--customize-hook=tar-in {shlex.quote(str(tar))} /",
        *(f'--customize-hook=chroot "$1" {command}' for command in commands),
    ]


def fetch(wheels: Wheels, architecture: str, directory: Path, listener: Listener) -> list[Path]:
    """Downloads the wheels to `directory`, unless they are there, and returns their paths.

    Args:
        wheels: which ones.
        architecture: Docker's name of the platform, such as `amd64`.
        directory: keeps them, and what an interrupted download has left.
        listener: receives the progress.

    Raises:
        SourceError: the index lacks the toolkit's version or one of the wheels, or does not say its hash.
    """
    indexes = package_index.package_indexes(pip_settings.read("download"))

    def get(found: pypi_simple.DistributionPackage) -> Path:
        sha256 = (found.digests or {}).get("sha256")
        if not sha256:
            raise SourceError(f"The package index does not say the SHA-256 of {found.filename}: use another index.")
        target = directory / found.filename
        return download(found.url, target, sha256=sha256, remedy="use another package index", listener=listener)

    published: set[str] = set()

    def of_toolkit(files: Sequence[pypi_simple.DistributionPackage]) -> pypi_simple.DistributionPackage | None:
        published.update(f.version for f in files if f.version)
        return newest(files, f"=={wheels.version}", "any")

    try:
        toolkit = package_index.find(
            wheels.toolkit, of_toolkit, what=f"{wheels.toolkit} {wheels.version}", indexes=indexes
        )
    except SourceError as error:
        major = wheels.version.partition(".")[0]
        others = sorted(v for v in map(packaging.version.Version, published) if str(v.major) == major and not v.pre)
        if not others:
            raise
        # NVIDIA appends a fourth part to some.
        shown = ", ".join(".".join(map(str, other.release[:3])) for other in others)
        raise SourceError(
            f"The package index has no {wheels.toolkit} {wheels.version}: choose from {shown}."
        ) from error
    machine = _MACHINES[architecture]
    found = [
        package_index.find(
            requirement.name,
            functools.partial(newest, version=str(requirement.specifier), machine=machine),
            what=f"wheel {requirement} for {machine}",
            indexes=indexes,
        )
        for requirement in map(
            packaging.requirements.Requirement, [*pins(metadata(get(toolkit)), wheels.names), *wheels.others]
        )
    ]
    return [get(one) for one in found]


def newest(
    files: Sequence[pypi_simple.DistributionPackage], version: str, machine: str
) -> pypi_simple.DistributionPackage | None:
    """Returns the newest wheel that a version specifier such as `==13.0.*` allows and that is for the machine.

    `machine` is `any`, or the kernel's name of it, such as `x86_64`.
    """
    specifier = packaging.specifiers.SpecifierSet(version)
    candidates = []
    for file in files:
        if file.package_type != "wheel" or file.is_yanked:
            continue
        _, of, _, tags = packaging.utils.parse_wheel_filename(file.filename)
        platforms = {tag.platform for tag in tags}
        fits = {p for p in platforms if p == machine or (p.startswith("manylinux") and p.endswith(f"_{machine}"))}
        if fits and specifier.contains(of):
            candidates.append((of, file))
    return max(candidates, key=lambda pair: pair[0])[1] if candidates else None


def metadata(wheel: Path) -> str:
    """Returns the METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        return archive.read(name).decode()


def pins(text: str, names: Sequence[str]) -> list[str]:
    """Returns the requirement for each name, such as `nvidia-nvvm==13.0.88.*`, that a toolkit's METADATA pins.

    Raises:
        SourceError: it pins no version of one of them.
    """
    raw, _ = packaging.metadata.parse_email(text)
    found: dict[str, str] = {}
    for line in raw.get("requires_dist", []):
        requirement = packaging.requirements.Requirement(line)
        found.setdefault(requirement.name, f"{requirement.name}{requirement.specifier}")
    if missing := [name for name in names if "==" not in found.get(name, "")]:
        raise SourceError(f"{raw.get('name')} {raw.get('version')} pins no version of {', '.join(missing)}.")
    return [found[name] for name in names]


def write(wheels: Wheels, files: Sequence[Path], tar: Path) -> None:
    """Writes the tar of a base's part of the toolkit: everything, or the libraries that `wheels` names.

    Licences and metadata of the wheels, which name their versions, are in it either way.
    """
    libraries: set[str] = set()
    with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as archive:
        for wheel in files:
            with zipfile.ZipFile(wheel) as content:
                for member, path in _members(content, wheels.libraries):
                    entry = tarfile.TarInfo(f".{path}")
                    entry.size = member.file_size
                    entry.mode = 0o755 if (member.external_attr >> 16) & 0o100 else 0o644
                    with content.open(member) as stream:
                        archive.addfile(entry, stream)
                    if path == f"{TOOLKIT}/lib/{PurePosixPath(path).name}":
                        libraries.add(PurePosixPath(path).name)
                    if path == f"{TOOLKIT}/include/cuda.h":
                        _add(archive, f"{_STUB}.s", stub(content.read(member).decode()))
        _add(archive, _LOADER, f"{TOOLKIT}/lib64\n")
        _link(archive, f"{TOOLKIT}/lib64", "lib")
        if not wheels.libraries:
            for name in sorted(libraries):
                if (short := re.sub(r"\.so\..*", ".so", name)) not in libraries:
                    libraries.add(short)
                    _link(archive, f"{TOOLKIT}/lib/{short}", name)


def stub(header: str) -> str:
    """Returns the assembler source of a library with all functions that cuda.h declares."""
    names = sorted(set(re.findall(r"\bcu[A-Z]\w*", header)))
    return "".join([*(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in names), ".byte 0\n"])


def _members(content: zipfile.ZipFile, libraries: Sequence[str]) -> Iterator[tuple[zipfile.ZipInfo, str]]:
    """Yields the files of a wheel with their paths in the base."""
    for member in content.infolist():
        top, *inside = PurePosixPath(member.filename).parts
        if member.is_dir() or ".." in inside:
            continue
        if top.endswith(".dist-info"):
            if inside == ["METADATA"] or inside[0] == "licenses":
                yield member, f"{TOOLKIT}/dist-info/{member.filename}"
        elif top == "nvidia" and len(inside) > 1 and inside[1] != ".metadata" and member.filename[-3:] != ".py":
            inside = inside[1:]  # `cu13` or `nccl`
            if not libraries or (inside[0] == "lib" and any(fnmatch(inside[-1], name) for name in libraries)):
                yield member, f"{TOOLKIT}/{'/'.join(inside)}"


def _add(archive: tarfile.TarFile, path: str, text: str) -> None:
    entry = tarfile.TarInfo(f".{path}")
    entry.size, entry.mode = len(text.encode()), 0o644
    archive.addfile(entry, io.BytesIO(text.encode()))


def _link(archive: tarfile.TarFile, path: str, target: str) -> None:
    entry = tarfile.TarInfo(f".{path}")
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    archive.addfile(entry)
