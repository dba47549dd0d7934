"""The facts of machines that are laid out as files, and the answers of registries."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters import programs
from base_images.doctor import machine
from base_images.doctor.machine import Installed, Node
from base_images.variants import DeviceAccess
from tests.support import machines
from tests.support.servers import Handler, serving


def access(name: str) -> DeviceAccess:
    found = variants.find(name).device
    assert found
    return found


def driver(name: str, root: Path) -> Installed | None:
    return machine.installed(access(name).driver, machine.nodes(access(name), root), root)


# --- the machine ---


def test_the_facts_of_a_machine(tmp_path: Path) -> None:
    meminfo = "MemTotal:       24684092 kB\nMemAvailable:   22854876 kB\nHugePages_Total:       0\n"
    machines.put(tmp_path, "/proc/meminfo", meminfo)
    machines.put(tmp_path, "/proc/sys/kernel/osrelease", "6.8.0-45-generic\n")
    found = machine.machine(tmp_path)
    assert found.kernel == "6.8.0-45-generic"
    assert (found.memory, found.memory_available) == (24684092 * 1024, 22854876 * 1024)
    assert found.cores >= 1


def test_a_machine_without_proc(tmp_path: Path) -> None:
    found = machine.machine(tmp_path)
    assert (found.kernel, found.memory, found.memory_available) == ("", 0, 0)


def test_the_facts_of_this_machine() -> None:
    found = machine.machine()
    assert found.kernel == os.uname().release
    assert found.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_programs_and_buildx() -> None:
    assert machine.programs(["sh", "no-such-program"]) == {"sh": programs.find_program("sh"), "no-such-program": None}
    line = "github.com/docker/buildx v0.13.1 788433953af10f2a698f5c07611dddce2e08c7a0\n"
    assert machine.buildx_version(line) == "v0.13.1"
    assert machine.buildx_version("") == ""


# --- nodes ---


def test_nodes_have_a_group_and_a_module(tmp_path: Path) -> None:
    machines.amd(tmp_path)
    machines.render_node(tmp_path, "renderD129", "i915")
    machines.put(tmp_path, "/dev/dri/card0")  # for a screen, not for computing
    group = machines.RENDER if os.geteuid() == 0 else os.getegid()
    gpus = (
        Node(path="/dev/dri/renderD128", group=group, module="amdgpu"),
        Node(path="/dev/dri/renderD129", group=group, module="i915"),
    )
    assert machine.nodes(access("rocm"), tmp_path) == (Node(path="/dev/kfd", group=group), *gpus)
    assert machine.nodes(access("vulkan"), tmp_path) == gpus
    assert machine.nodes(access("cuda"), tmp_path) == ()


# --- drivers ---


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (machines.NVIDIA_OPEN, "570.86.15"),
        (machines.NVIDIA_CLOSED, "550.54.14"),
        (machines.ASCEND, "25.0.rc1.1"),
        ("Version=7.35.23\npackage_version=26.0.rc1\nascendhal_version=7.35.23\n", "26.0.rc1"),
        ("6.12.12\n", "6.12.12"),
        ("", ""),
        ("no version at all", ""),
    ],
)
def test_the_version_in_a_version_file(text: str, version: str) -> None:
    assert machine.version_in(text) == version


def test_no_driver(tmp_path: Path) -> None:
    for variant in variants.VARIANTS:
        if variant.device:
            assert driver(variant.name, tmp_path) is None


def test_nvidias_driver_from_either_file(tmp_path: Path) -> None:
    machines.put(tmp_path, "/proc/driver/nvidia/version", machines.NVIDIA_OPEN)
    assert driver("cuda", tmp_path) == Installed(module="", version="570.86.15")
    machines.nvidia(tmp_path, "580.95.05")
    assert driver("cuda", tmp_path) == Installed(module="nvidia", version="580.95.05")


def test_amds_driver_and_the_kernels(tmp_path: Path) -> None:
    machines.amd(tmp_path / "amd")
    machines.amd(tmp_path / "kernel", version="")
    assert driver("rocm", tmp_path / "amd") == Installed(module="amdgpu", version="6.12.12")
    assert driver("rocm", tmp_path / "kernel") == Installed(module="amdgpu", version="")


@pytest.mark.parametrize("module", ["i915", "xe"])
def test_intels_drivers(tmp_path: Path, module: str) -> None:
    machines.intel(tmp_path, module)
    assert driver("intel", tmp_path) == Installed(module=module, version="")


def test_a_module_with_a_node_comes_before_a_loaded_one(tmp_path: Path) -> None:
    (tmp_path / "sys/module/i915").mkdir(parents=True)
    machines.intel(tmp_path, "xe")
    assert driver("intel", tmp_path) == Installed(module="xe", version="")


def test_vulkan_takes_any_driver(tmp_path: Path) -> None:
    machines.render_node(tmp_path, "renderD128", "virtio_gpu")
    assert driver("vulkan", tmp_path) == Installed(module="virtio_gpu", version="")
    assert driver("intel", tmp_path) is None


def test_moore_threads_and_ascend(tmp_path: Path) -> None:
    machines.moore_threads(tmp_path)
    machines.ascend(tmp_path)
    assert driver("musa", tmp_path) == Installed(module="mtgpu", version="2.7.0")
    assert driver("cann", tmp_path) == Installed(module="", version="25.0.rc1.1")


def test_versions_sort_by_number() -> None:
    ordered = ["450.80.02", "525.60.13", "535.54.03", "535.104.05", "570.26", "570.124.06", "580"]
    assert sorted(sorted(ordered), key=machine.numbers) == ordered != sorted(ordered)
    assert machine.numbers("25.0.rc1.1") >= machine.numbers("25.0") > machine.numbers("24.1.rc3")


@pytest.mark.parametrize(
    ("toolkit", "value"),
    [
        ("12.4.1", "of 12.4"),
        ("12.4", "of 12.4"),
        ("12.40.1", "of 12"),
        ("12", "of 12"),
        ("120.4", ""),
        ("quay.io/ascend/cann:12.4.0-910b-openeuler24.03-py3.11", "of 12.4"),
        ("localhost:5000/cann@sha256:12", "of 12"),
        ("", ""),
        ("default", ""),
    ],
)
def test_a_toolkit_is_looked_up_by_its_longest_prefix(toolkit: str, value: str) -> None:
    assert machine.of_toolkit({"12": "of 12", "12.4": "of 12.4"}, toolkit) == value


@pytest.mark.parametrize(
    ("variant", "toolkit", "oldest", "own"),
    [
        ("cuda", "11.8.0", "450.80.02", ""),
        ("cuda", "12.4.1", "525.60.13", "550.54.14"),
        ("cuda", "12.8.1", "525.60.13", "570.26"),
        ("cuda", "13.0.0", "580", "580.65.06"),
        ("rocm", "6.4.3", "6.7.0", ""),
        ("rocm", "7.2.1", "6.8.5", ""),
        ("cann", "quay.io/ascend/cann:8.5.0-910b-openeuler24.03-py3.11", "25.0", ""),
        ("musa", "5.2.0", "", ""),
        ("intel", "2026.1.1", "", ""),
    ],
)
def test_the_vendors_driver_requirements(variant: str, toolkit: str, oldest: str, own: str) -> None:
    needed = access(variant).driver
    assert (machine.of_toolkit(needed.oldest, toolkit), machine.of_toolkit(needed.own, toolkit)) == (oldest, own)


# --- registries ---


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("node:24", "docker.io"),
        ("docker.io/rocm/dev-ubuntu-24.04:7.2.1-complete", "docker.io"),
        ("rocm/dev-ubuntu-24.04", "docker.io"),
        ("ghcr.io/bodhisearch/llama.cpp", "ghcr.io"),
        ("localhost/x", "localhost"),
        ("127.0.0.1:5000/x:1", "127.0.0.1:5000"),
    ],
)
def test_the_registry_of_a_reference(reference: str, registry: str) -> None:
    assert machine.registry(reference) == registry


@pytest.fixture
def answering() -> Iterator[tuple[str, list[int]]]:
    """An HTTP server that answers /v2/ with a status that can be set."""
    status = [401]

    class Answering(Handler):
        def do_GET(self) -> None:
            self.answer(status[0] if self.path == "/v2/" else 404)

    with serving(Answering) as address:
        yield address, status


@pytest.mark.parametrize(
    ("status", "reached", "seen"),
    [(200, True, "answers"), (401, True, "answers"), (403, False, "is not a registry: 403"), (502, False, "502")],
)
def test_a_registry_answers(
    answering: tuple[str, list[int]], status: int, reached: bool, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ANSWER_SECONDS", 60)  # also on a busy machine
    address, statuses = answering
    statuses[0] = status
    (answer,) = machine.asking([address])()
    assert (answer.host, answer.reached) == (address, reached)
    assert seen in answer.seen


def test_a_refused_connection_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ANSWER_SECONDS", 60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        (answer,) = machine.asking([f"127.0.0.1:{free.getsockname()[1]}"])()
    assert (answer.reached, answer.seen) == (False, "connection refused")


def test_one_time_limit_covers_all_registries() -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(60)]
        mute = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in silent]
        started = time.monotonic()
        answers = machine.asking([*mute, "no-such-machine.invalid", "not a host"])()
        seconds = time.monotonic() - started
    assert not any(answer.reached for answer in answers)
    assert all(answer.seen for answer in answers)
    assert seconds < len(mute) * machine.ANSWER_SECONDS / 2, "one after the other"
