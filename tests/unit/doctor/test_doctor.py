"""The readiness of machines that are laid out as files, with a description of an engine."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from base_images import settings, variants
from base_images.adapters.engine import Image
from base_images.doctor import doctor
from base_images.doctor.doctor import EngineFacts, Seen, VariantReport
from base_images.doctor.machine import Answer
from base_images.errors import SourceError
from base_images.recipes import dockerfile
from base_images.variants import GIGABYTE
from tests.support import images, machines

ENGINE = EngineFacts(
    name="Engine",
    version="28.5.2",
    api_version="1.51",
    architecture="amd64",
    where="",
    is_local=True,
    storage_driver="overlayfs",
    free_disk=100 * GIGABYTE,
    buildkit=True,
    runtimes=("mthreads", "runc"),
)
EVERYTHING = {name: f"/usr/bin/{name}" for name in (*doctor.PROGRAMS, "nvidia-container-runtime-hook", "nvidia-ctk")}
HOSTS = ("ghcr.io", "docker.io", "quay.io")
ONLINE = tuple(Answer(host=host, reached=True, seen="answers") for host in HOSTS)
OFFLINE = tuple(Answer(host=host, reached=False, seen="no connection") for host in HOSTS)


def image(toolkit: Mapping[str, str]) -> Image:
    labels = {"bodhi.variant": "x", "org.opencontainers.image.version": "2508201420-abc1234"}
    return images.image(
        tags=("llama-cpp-x:local",),
        labels={**labels, **{f"bodhi.toolkit.{name}": version for name, version in toolkit.items()}},
    )


def seen(root: Path, **changes: Any) -> Seen:
    usual = Seen(root=root, engine=ENGINE, no_engine="", programs=EVERYTHING, registries=ONLINE)
    return dataclasses.replace(usual, **changes)


def judge(name: str, machine: Seen, toolkit: Mapping[str, str] | None = None, *, pulled: bool = False) -> VariantReport:
    variant = variants.find(name)
    references = dockerfile.base_references(settings.ROOT / variant.dockerfile)
    return doctor.judge(variant, references, machine, image=image(toolkit or {}), pulled=pulled)


def told(report: VariantReport) -> str:
    """Returns the only missing requirement."""
    sentences = {*report.no_build, *report.no_device, *report.no_smoke}
    assert len(sentences) == 1, sentences
    return sentences.pop()


def without(programs: Mapping[str, str | None], *names: str) -> dict[str, str | None]:
    return {**programs, **dict.fromkeys(names)}


# --- devices that are there ---


def test_cpu_needs_no_device(tmp_path: Path) -> None:
    report = judge("cpu", seen(tmp_path))
    assert report.builds
    assert report.smokes
    assert (report.nodes, report.driver, report.notes) == ((), None, ())
    assert (report.image, report.image_version) == ("llama-cpp-x:local", "2508201420-abc1234")


def test_the_device_of_every_vendor(tmp_path: Path) -> None:
    for name, lay_out, toolkit, driver in (
        ("cuda", machines.nvidia, {"cuda": "12.4.1"}, "550.54.14"),
        ("rocm", machines.amd, {"rocm": "6.4.3"}, "6.12.12"),
        ("vulkan", machines.amd, {}, "6.12.12"),
        ("musa", machines.moore_threads, {"musa": "5.2.0"}, "2.7.0"),
        ("intel", machines.intel, {"oneapi": "2026.1.1"}, ""),
        ("cann", machines.ascend, {"cann": "quay.io/ascend/cann:8.5.0-910b-openeuler24.03-py3.11"}, "25.0.rc1.1"),
    ):
        lay_out(tmp_path / name)
        report = judge(name, seen(tmp_path / name), toolkit)
        assert report.no_device == (), name
        assert report.smokes, name
        assert report.notes == (), name
        assert report.driver, name
        assert report.driver.version == driver, name
        assert report.toolkit == toolkit, name


def test_nvidias_driver_on_wsl(tmp_path: Path) -> None:
    machines.put(tmp_path, "/dev/dxg")
    report = judge("cuda", seen(tmp_path), {"cuda": "12.4.1"})
    assert report.smokes
    assert report.notes == (
        "CUDA 12.4.1 needs at least the driver 525.60.13, and this one says no version: see `nvidia-smi`.",
    )


# --- devices that are not ---


@pytest.mark.parametrize(
    ("name", "missing", "check"),
    [
        ("cuda", ["/dev/nvidiactl or /dev/dxg"], "nvidia-smi"),
        ("rocm", ["/dev/kfd", "/dev/dri", "/dev/dri/renderD128"], "rocminfo"),
        ("vulkan", ["/dev/dri", "/dev/dri/renderD128"], "vulkaninfo --summary"),
        ("intel", ["/dev/dri", "/dev/dri/renderD128"], "sycl-ls"),
        ("cann", ["/dev/davinci0", "/dev/hisi_hdc", "/usr/local/dcmi"], "npu-smi info"),
    ],
)
def test_no_device(tmp_path: Path, name: str, missing: list[str], check: str) -> None:
    report = judge(name, seen(tmp_path))
    assert report.builds
    assert not report.smokes
    sentence = told(report)
    for path in missing:
        assert f"no {path}," in sentence
    assert f"`{check}`" in sentence


def test_without_moore_threads_the_runtime_and_the_module_are_missing(tmp_path: Path) -> None:
    engine = dataclasses.replace(ENGINE, runtimes=("runc",))
    runtime, module = judge("musa", seen(tmp_path, engine=engine)).no_device
    assert "does not know the container runtime mthreads" in runtime
    assert "`docker info` lists it" in runtime
    assert module == "The kernel has not loaded mtgpu: install the driver until `mthreads-gmi` shows a device."


def test_a_device_emulated_by_the_cpu_is_a_note(tmp_path: Path) -> None:
    (note,) = judge("vulkan", seen(tmp_path)).notes
    assert "`invoke smoke --variant vulkan --on software`" in note


def test_a_gpu_of_another_vendor(tmp_path: Path) -> None:
    machines.amd(tmp_path)
    sentence = told(judge("intel", seen(tmp_path)))
    assert "are of amdgpu, and intel needs one of i915 or xe" in sentence
    assert "`ls -l /sys/class/drm/renderD*/device/driver`" in sentence
    machines.render_node(tmp_path, "renderD129", "i915")
    assert judge("intel", seen(tmp_path)).smokes


def test_a_gpu_that_mesa_has_no_driver_for(tmp_path: Path) -> None:
    machines.render_node(tmp_path, "renderD128", "nvidia")
    assert "are of nvidia, and vulkan needs another" in " ".join(judge("vulkan", seen(tmp_path)).no_device)
    machines.render_node(tmp_path, "renderD129", "i915")
    assert judge("vulkan", seen(tmp_path)).smokes


def test_how_an_engine_gives_gpus(tmp_path: Path) -> None:
    machines.nvidia(tmp_path)
    assert judge("cuda", seen(tmp_path)).given_by == "--gpus all (compute,utility)"
    no_toolkit = without(EVERYTHING, "nvidia-container-runtime-hook")
    described = dataclasses.replace(ENGINE, cdi=("nvidia.com/gpu=all",))
    by_cdi = judge("cuda", seen(tmp_path, programs=no_toolkit, engine=described))
    assert (by_cdi.smokes, by_cdi.given_by) == (True, "the device description (CDI) nvidia.com/gpu=all")
    report = judge("cuda", seen(tmp_path, programs=no_toolkit))
    assert report.given_by == ""
    assert "container toolkit until nvidia-container-runtime-hook is there" in told(report)
    assert "/dev/nvidia[0-9]*, /dev/nvidia-uvm, libcuda.so.1 are missing" in told(report)
    machines.nvidia_files(tmp_path)
    by_files = judge("cuda", seen(tmp_path, programs=no_toolkit))
    assert by_files.smokes
    assert by_files.given_by == (
        "the nodes /dev/nvidiactl and /dev/nvidia0 and /dev/nvidia-uvm, "
        "3 libraries of the host's driver, mounted read-only"
    )


def test_nvidias_own_driver_for_vulkan(tmp_path: Path) -> None:
    machines.nvidia(tmp_path)
    machines.nvidia_files(tmp_path)
    no_toolkit = seen(tmp_path, programs=without(EVERYTHING, "nvidia-container-runtime-hook"))
    report = judge("vulkan", no_toolkit)
    assert report.smokes
    assert "3 libraries of the host's driver" in report.given_by
    assert report.driver
    assert report.driver.version == "550.54.14"


def test_a_remote_engine(tmp_path: Path) -> None:
    machines.nvidia(tmp_path)
    engine = dataclasses.replace(ENGINE, is_local=False, where="tcp://gpu:2375", free_disk=None)
    assert told(judge("cuda", seen(tmp_path, engine=engine))) == (
        "The engine is at tcp://gpu:2375, and its devices cannot be seen from here: run the same command on that "
        "machine."
    )
    assert judge("cpu", seen(tmp_path, engine=engine)).smokes
    # Not compared with the driver of this machine.
    engine = dataclasses.replace(engine, runtimes=("nvidia", "runc"))
    report = judge("cuda", seen(tmp_path, engine=engine), {"cuda": "99.0"})
    assert (report.smokes, report.given_by) == (True, "the container runtime nvidia (compute,utility)")


# --- drivers against toolkits ---


@pytest.mark.parametrize(
    ("toolkit", "driver", "ready", "said"),
    [
        ("12.4.1", "550.54.14", True, ""),
        ("12.4.1", "535.54.03", True, "older than 550.54.14, which CUDA 12.4.1 came with: it compiles no code"),
        ("12.4.1", "525.60.13", True, "older than 550.54.14"),
        ("12.4.1", "520.61.05", False, "The driver is 520.61.05, and the image's CUDA 12.4.1 needs at least 525.60.13"),
        ("13.0.0", "575.57.08", False, "The driver is 575.57.08, and the image's CUDA 13.0.0 needs at least 580"),
        ("13.0.0", "580.65.06", True, ""),
        ("13.2.0", "595.45.04", True, ""),
        ("13.3.1", "595.45.04", True, "older than 610.43.02, which CUDA 13.3.1 came with"),
        ("13.4.1", "580.159.04", True, "older than 615, which CUDA 13.4.1 came with"),
        ("13.4.1", "615.36", True, ""),
        ("13.5.0", "580.159.04", True, ""),  # no driver comes with it, and none is known that supports all of it
        ("13.9.0", "580.65.06", True, ""),  # newer than the table: what its first number says
        ("99.0.0", "1.0", True, ""),
    ],
)
def test_nvidias_driver_for_cuda(tmp_path: Path, toolkit: str, driver: str, ready: bool, said: str) -> None:
    machines.nvidia(tmp_path, driver)
    report = judge("cuda", seen(tmp_path), {"cuda": toolkit, "cuda_arch": "90"})
    assert report.smokes == ready
    assert report.builds
    assert said in " ".join((*report.no_device, *report.notes))
    assert bool(report.no_device or report.notes) == bool(said)
    if not ready:
        assert "until `nvidia-smi` shows it" in told(report)


@pytest.mark.parametrize(("driver", "ready"), [("6.8.5", True), ("6.7.0", False), ("6.14.14", True)])
def test_amds_driver_for_rocm(tmp_path: Path, driver: str, ready: bool) -> None:
    machines.amd(tmp_path, driver)
    report = judge("rocm", seen(tmp_path), {"rocm": "7.2.1"})
    assert report.smokes == ready
    assert report.driver_needed == "6.8.5"
    assert ready or "The driver is 6.7.0, and the image's ROCm 7.2.1 needs at least 6.8.5" in told(report)


def test_the_kernels_driver_without_a_version_is_a_note(tmp_path: Path) -> None:
    machines.amd(tmp_path, version="")
    report = judge("rocm", seen(tmp_path), {"rocm": "7.2.1"})
    assert report.smokes
    (note,) = report.notes
    assert "ROCm 7.2.1 needs at least the driver 6.8.5, and this one says no version: see `rocminfo`" in note


def test_ascends_driver_for_cann(tmp_path: Path) -> None:
    machines.ascend(tmp_path, "Version=24.1.rc2.2\nascendhal_version=7.35.23\n")
    sentence = told(judge("cann", seen(tmp_path), {"cann": "quay.io/ascend/cann:8.5.0-910b-openeuler24.03-py3.11"}))
    assert "The driver is 24.1.rc2.2" in sentence
    assert "needs at least 25.0" in sentence


def test_without_an_image_no_driver_is_too_old(tmp_path: Path) -> None:
    machines.nvidia(tmp_path, "300.0")
    variant = variants.find("cuda")
    references = dockerfile.base_references(settings.ROOT / variant.dockerfile)
    report = doctor.judge(variant, references, seen(tmp_path), image=None, pulled=False)
    assert report.no_device == ()
    assert (report.image, report.driver_needed, report.toolkit) == ("", "", {})
    assert told(report) == (
        "There is no image llama-cpp-cuda:local: `invoke build-local --variant cuda` makes it, --image names another."
    )


# --- builds ---


def test_the_origin_of_base_images(tmp_path: Path) -> None:
    machines.nvidia(tmp_path)
    machines.moore_threads(tmp_path)
    machines.ascend(tmp_path)
    offline = seen(tmp_path, registries=OFFLINE)
    assert judge("cuda", seen(tmp_path)).origin == "registries"
    assert judge("cuda", offline).origin == "packages"
    assert judge("cuda", offline, pulled=True).origin == "registries"
    assert judge("musa", seen(tmp_path)).origin == "registries"
    musa = judge("musa", offline)
    assert (musa.origin, musa.builds, musa.smokes) == ("", False, True)
    assert told(musa) == (
        "Its base images are not available: no registry answers at docker.io (no connection), and no Debian package "
        "has the compiler of MUSA: check the network, or pull them by hand."
    )
    assert "docker.io (no connection), quay.io (no connection), and no Debian" in told(judge("cann", offline))


def test_a_registry_without_bases_does_not_matter(tmp_path: Path) -> None:
    answers = tuple(dataclasses.replace(answer, reached=answer.host == "docker.io") for answer in ONLINE)
    assert judge("cpu", seen(tmp_path, registries=answers)).origin == "registries"


def test_packages_need_apt_and_mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_apt = seen(tmp_path, registries=OFFLINE, programs=without(EVERYTHING, "apt-get", "mmdebstrap"))
    assert "without apt-get none are made of packages" in told(judge("cpu", no_apt))
    no_mmdebstrap = seen(tmp_path, registries=OFFLINE, programs=without(EVERYTHING, "mmdebstrap"))
    monkeypatch.setattr("os.geteuid", lambda: 0)  # root needs no mmdebstrap: the build installs it
    assert judge("cpu", no_mmdebstrap).builds
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "`apt-get install mmdebstrap`" in told(judge("cpu", no_mmdebstrap))


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    machines.amd(tmp_path)
    small = seen(tmp_path, engine=dataclasses.replace(ENGINE, free_disk=20 * GIGABYTE))
    assert "take about 40.0 GB and the engine's disk has 20.0 GB free" in told(judge("rocm", small))
    assert judge("rocm", dataclasses.replace(small, registries=OFFLINE)).origin == "packages"
    assert judge("rocm", small, pulled=True).builds


def test_an_architecture_that_nothing_is_published_for(tmp_path: Path) -> None:
    machines.amd(tmp_path)
    arm = seen(tmp_path, engine=dataclasses.replace(ENGINE, architecture="arm64"))
    assert told(judge("rocm", arm)) == "ROCm is built for amd64, and this engine runs on arm64."
    assert judge("vulkan", arm).builds


def test_the_requirements_of_every_build(tmp_path: Path) -> None:
    old = seen(tmp_path, engine=dataclasses.replace(ENGINE, buildkit=False), programs=without(EVERYTHING, "git"))
    buildkit, git = judge("cpu", old).no_build
    assert "without BuildKit" in buildkit
    assert "`git --version`" in git
    assert judge("cpu", old).smokes


def test_without_an_engine_devices_are_reported_and_nothing_is_ready(tmp_path: Path) -> None:
    machines.moore_threads(tmp_path)
    report = judge("musa", seen(tmp_path, engine=None, no_engine="No engine."))
    assert (report.no_build, report.no_smoke, report.no_device) == (("No engine.",), ("No engine.",), ())
    assert not report.builds
    assert not report.smokes


# --- exit codes ---


def test_exit_codes(tmp_path: Path) -> None:
    machine = seen(tmp_path, registries=OFFLINE)
    ready, not_ready = judge("cpu", machine), judge("cuda", machine)
    assert doctor._exit_code(machine, [ready, not_ready], by_name=False) == 0
    assert doctor._exit_code(machine, [ready, not_ready], by_name=True) == 1
    assert doctor._exit_code(machine, [ready], by_name=True) == 0
    machines.moore_threads(tmp_path)
    only_the_device = judge("musa", machine)
    assert not only_the_device.builds
    assert doctor._exit_code(machine, [only_the_device], by_name=True) == 0
    nothing = dataclasses.replace(machine, programs=without(EVERYTHING, "apt-get", "mmdebstrap"))
    assert doctor._exit_code(nothing, [judge("cpu", nothing)], by_name=False) == 1
    nobody = dataclasses.replace(machine, engine=None, no_engine="No engine.")
    assert doctor._exit_code(nobody, [judge("cpu", nobody)], by_name=False) == doctor.NO_ENGINE == 3


# --- the whole report, without an engine ---


def test_a_report_of_a_machine_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    machines.amd(tmp_path)
    machines.put(tmp_path, "/proc/meminfo", "MemTotal: 1000 kB\n")
    report = doctor.examine(
        [variants.find("rocm")], checkout=settings.ROOT, registry="127.0.0.1:1/x", by_name=True, root=tmp_path
    )
    assert report.exit_code == doctor.NO_ENGINE
    assert report.engine is None
    assert "tcp://127.0.0.1:1 (connection refused: nothing listens there): start it" in report.missing[0]
    assert report.machine.memory == 1000 * 1024
    assert report.registries[0] == Answer(host="127.0.0.1:1", reached=False, seen="connection refused")
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["variants"][0]["ready"] == {"build": False, "smoke": False}
    assert facts["variants"][0]["no_device"] == []
    assert facts["variants"][0]["driver"] == {"module": "amdgpu", "version": "6.12.12"}


def test_a_checkout_without_recipes(tmp_path: Path) -> None:
    assert doctor._references(variants.find("cpu"), tmp_path) == {}
    report = doctor.judge(variants.find("cpu"), {}, seen(tmp_path), image=image({}), pulled=True)
    assert told(report) == "There is no recipe dockerfiles/cpu.Dockerfile."
    machines.put(tmp_path, "/dockerfiles/cpu.Dockerfile", "FROM scratch\n")
    with pytest.raises(SourceError, match="has no value for ARG WEB_BASE_IMAGE"):
        doctor._references(variants.find("cpu"), tmp_path)
