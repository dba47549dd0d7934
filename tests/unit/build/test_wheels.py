"""NVIDIA's wheels: which are chosen, and where their files go. The index and its wheels are small ones on loopback."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from base_images.build import packages, wheels
from base_images.errors import SourceError
from base_images.progress import silent
from base_images.roots import CUDA, Wheels
from base_images.variants import find
from tests.support.servers import Files, serving
from tests.support.wheels import ARM, CUDA_H, RUNTIME, WANTED, X86, wheel, write_index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index, configured for pip; yields its directory."""
    root = tmp_path / "index"
    root.mkdir()
    write_index(root)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with serving(partial(Files, directory=root)) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{address}/simple/")
        yield root


def fetched(wanted: Wheels, directory: Path, architecture: str = "amd64") -> list[Path]:
    return wheels.fetch(wanted, architecture, directory, silent)


@pytest.mark.parametrize(("architecture", "platform"), [("amd64", X86), ("arm64", ARM)])
@pytest.mark.usefixtures("index")
def test_the_toolkits_version_determines_all_wheels(tmp_path: Path, architecture: str, platform: str) -> None:
    assert [path.name for path in fetched(WANTED, tmp_path / "wheels", architecture)] == [
        f"nvidia_cuda_nvcc-13.0.88.1-py3-none-{platform}.whl",
        f"nvidia_cublas-13.1.1.3-py3-none-{platform}.whl",
        f"nvidia_nccl_cu13-2.28.9-py3-none-{platform}.whl",
    ]


@pytest.mark.usefixtures("index")
def test_a_version_that_the_index_lacks_is_reported_with_the_others(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no cuda-toolkit 13\.0\.9: choose from 13\.0\.2, 13\.0\.3\."):
        fetched(replace(WANTED, version="13.0.9"), tmp_path)


def test_an_index_without_the_toolkit_is_named(index: Path, tmp_path: Path) -> None:
    (index / "simple/cuda-toolkit/index.html").unlink()
    with pytest.raises(SourceError, match=r"cuda-toolkit 13\.0\.3 is on no package index .*127\.0\.0\.1.*index-url\.$"):
        fetched(WANTED, tmp_path)


@pytest.mark.usefixtures("index")
def test_a_wheel_that_the_toolkit_does_not_pin_is_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cuda-toolkit 13\.0\.3\.0 pins no version of nvidia-nvjitlink, nvidia-x"):
        fetched(replace(WANTED, names=("nvidia-cublas", "nvidia-nvjitlink", "nvidia-x")), tmp_path)


def test_a_missing_wheel_is_named_with_the_machine(index: Path, tmp_path: Path) -> None:
    page = index / "simple/nvidia-cublas/index.html"
    lines = page.read_text(encoding="utf-8").splitlines()
    page.write_text("\n".join(line for line in lines if "aarch64" not in line), encoding="utf-8")
    with pytest.raises(
        SourceError, match=r"The wheel nvidia-cublas==13\.1\.1\.3\.\* for aarch64 is on no package index"
    ):
        fetched(WANTED, tmp_path, "arm64")


def test_a_wheel_without_a_hash_or_with_another_content_is_refused(index: Path, tmp_path: Path) -> None:
    page = index / "simple/nvidia-cublas/index.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("#sha256=", "#x="), encoding="utf-8")
    with pytest.raises(SourceError, match="does not say the SHA-256 of nvidia_cublas-13"):
        fetched(RUNTIME, tmp_path / "a")
    page.write_text(text, encoding="utf-8")
    with (index / f"nvidia_cublas-13.1.1.3-py3-none-{X86}.whl").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(SourceError, match=r"nvidia_cublas-13.* is not the expected file.*use another package"):
        fetched(RUNTIME, tmp_path / "b")


def written(wanted: Wheels, directory: Path) -> dict[str, tarfile.TarInfo]:
    tar = directory / "toolkit.tar"
    wheels.write(wanted, fetched(wanted, directory / "wheels"), tar)
    with tarfile.open(tar) as archive:
        return {entry.name.removeprefix("./usr/local/cuda/"): entry for entry in archive}


@pytest.mark.usefixtures("index")
def test_the_build_base_has_everything(tmp_path: Path) -> None:
    entries = written(WANTED, tmp_path)

    assert {name for name in entries if "dist-info" not in name} == {
        *("bin/nvcc", "include/cuda.h", "include/nccl.h", "lib/stubs/libcuda.s"),
        *("lib/libcublas.so.13", "lib/libnvblas.so.13", "lib/libnccl.so.2"),
        *("lib/libcublas.so", "lib/libnvblas.so", "lib/libnccl.so"),
        *("lib64", "./etc/ld.so.conf.d/000-cuda.conf"),
    }
    assert entries["lib/libcublas.so"].linkname == "libcublas.so.13"
    assert (entries["lib64"].linkname, entries["bin/nvcc"].mode, entries["include/nccl.h"].mode) == (
        "lib",
        0o755,
        0o644,
    )
    assert {(entry.uid, entry.mtime) for entry in entries.values()} == {(0, 0)}


@pytest.mark.usefixtures("index")
def test_the_runtime_base_has_only_libraries_that_may_be_passed_on_and_their_licences(tmp_path: Path) -> None:
    assert set(written(RUNTIME, tmp_path)) == {
        *("lib/libcublas.so.13", "lib/libnccl.so.2", "lib64", "./etc/ld.so.conf.d/000-cuda.conf"),
        *(f"dist-info/nvidia_cublas-13.1.1.3.dist-info/{name}" for name in ("METADATA", "licenses/License.txt")),
        *(f"dist-info/nvidia_nccl_cu13-2.28.9.dist-info/{name}" for name in ("METADATA", "licenses/License.txt")),
    }


def test_a_member_outside_of_the_toolkit_is_left_out(index: Path, tmp_path: Path) -> None:
    evil = {"nvidia/cu13/../../../../etc/passwd": "evil", "../evil": "evil", "other/evil": "evil"}
    (index / "simple/nvidia-nccl-cu13/index.html").unlink()
    wheel(index, "nvidia-nccl-cu13", "2.28.9", X86, evil)
    assert not [name for name in written(WANTED, tmp_path) if "evil" in name or "passwd" in name]


def test_the_stub_has_the_functions_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "stub.s").write_text(wheels.stub(CUDA_H), encoding="utf-8")
    subprocess.run(["as", "-o", "stub.o", "stub.s"], cwd=tmp_path, check=True)
    subprocess.run(["ld", "-shared", "-soname", "libcuda.so.1", "-o", "stub.so", "stub.o"], cwd=tmp_path, check=True)
    shown = subprocess.run(["nm", "-D", "stub.so"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert [line.split()[1:] for line in shown.splitlines()] == [
        ["T", name] for name in ("cuInit", "cuMemAlloc", "cuMemAlloc_v2")
    ]


def test_only_a_version_that_the_index_has_takes_the_place_of_debians() -> None:
    for version in ("12.8.1", "12.4", "", "130.0.1"):
        assert packages.of_version(find("cuda"), version) == CUDA
    made = packages.of_version(find("cuda"), "13.4.1")
    assert made is not None
    assert made.arguments == {"CUDA_VERSION": "13.4.1"}  # with the recipe's gcc
    assert made.build.wheels is not None
    assert made.runtime.wheels is not None
    assert made.build.wheels.version == made.runtime.wheels.version == "13.4.1"
    assert "nvidia-cuda-nvcc" in made.build.wheels.names
    assert "nvidia-cuda-nvcc" not in made.runtime.wheels.names
    assert packages.of_version(find("musa"), "13.4.1") is None


@pytest.mark.parametrize(
    ("asked", "has"), [("12.4.1", "12.4.1"), ("12.4.1", "12.4"), ("12.4", "12.4"), ("", "12.4.1"), ("7.2.4", "")]
)
def test_the_version_that_was_asked_for_is_there(asked: str, has: str) -> None:
    packages.require_version(find("cuda"), asked, has)


@pytest.mark.parametrize(("asked", "has"), [("12.8.1", "12.4"), ("12.4", "12.4.1"), ("12.41", "12.4")])
def test_another_version_than_the_one_asked_for_is_refused(asked: str, has: str) -> None:
    with pytest.raises(
        SourceError,
        match=rf"the toolkit of cuda in version {has}, not {asked}: .*, or 13\.x of the package index, or use",
    ):
        packages.require_version(find("cuda"), asked, has)
    with pytest.raises(SourceError, match="by leaving --toolkit out, or use --origin registries"):
        packages.require_version(find("rocm"), "7.2.1", "7.2.4")
