"""A package index with a small toolkit in wheels, laid out as NVIDIA's."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from base_images.roots import Wheels

WANTED = Wheels(
    toolkit="cuda-toolkit",
    version="13.0.3",
    names=("nvidia-cuda-nvcc", "nvidia-cublas"),
    others=("nvidia-nccl-cu13==2.28.9",),
)
RUNTIME = replace(WANTED, names=("nvidia-cublas",), libraries=("libcublas.so.*", "libnccl.so.*"))
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
TOOLKIT = f"""Metadata-Version: 2.4
Name: cuda-toolkit
Version: 13.0.3.0
Provides-Extra: all
Requires-Dist: nvidia-cublas==13.1.1.3.*; ({LINUX}) and extra == 'all'
Requires-Dist: nvidia-cuda-nvcc==13.0.88.*; ({LINUX}) and extra == 'all'
Requires-Dist: nvidia-nvjitlink<14,>=13.0.88; ({LINUX}) and extra == 'all'
Provides-Extra: nvcc
Requires-Dist: nvidia-cuda-nvcc==13.0.88.*; ({LINUX}) and extra == 'nvcc'
"""
CUDA_H = """
#define cuMemAlloc cuMemAlloc_v2
typedef struct { int x; } CUdevprop;
CUresult CUDAAPI cuInit(unsigned int Flags);
CUresult CUDAAPI cuMemAlloc(CUdeviceptr *dptr, size_t bytesize);
"""
X86, ARM = "manylinux_2_27_x86_64", "manylinux2014_aarch64.manylinux_2_17_aarch64"


def wheel(directory: Path, name: str, version: str, platform: str, files: Mapping[str, str]) -> None:
    """Writes a wheel and its line on the index' page of the package."""
    stem = f"{name.replace('-', '_')}-{version}"
    path = directory / f"{stem}-py3-none-{platform}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in {
            f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n",
            f"{stem}.dist-info/RECORD": "",
            f"{stem}.dist-info/licenses/License.txt": "EULA",
            **files,
        }.items():
            entry = zipfile.ZipInfo(inside)
            entry.external_attr = (0o755 if "/bin/" in inside else 0o644) << 16
            archive.writestr(entry, text)
    page = directory / "simple" / name / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with page.open("a", encoding="utf-8") as stream:
        stream.write(f'<a href="/{path.name}#sha256={digest}">{path.name}</a>\n')


def write_index(root: Path) -> None:
    """Writes the pages and the files of the index."""
    for version in ("12.9.2.0", "13.0.2", "13.0.3.0"):
        wheel(root, "cuda-toolkit", version, "any", {f"cuda_toolkit-{version}.dist-info/METADATA": TOOLKIT})
    for platform in (X86, ARM, "win_amd64"):
        files = {
            "nvidia/__init__.py": "",
            "nvidia/cu13/bin/nvcc": f"#!/bin/sh\necho {platform} compute_90\n",
            "nvidia/cu13/include/cuda.h": CUDA_H,
            "nvidia/cu13/.metadata/x": "",
        }
        for version in ("13.0.48", "13.0.88", "13.0.88.1", "13.1.2"):
            wheel(root, "nvidia-cuda-nvcc", version, platform, files)
        libraries = {f"nvidia/cu13/lib/lib{name}.so.13": "" for name in ("cublas", "nvblas")}
        wheel(root, "nvidia-cublas", "13.1.1.3", platform, libraries)
        for version in ("2.28.9", "2.29.2"):
            nccl = {"nvidia/nccl/lib/libnccl.so.2": "", "nvidia/nccl/include/nccl.h": ""}
            wheel(root, "nvidia-nccl-cu13", version, platform, nccl)
