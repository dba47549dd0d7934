"""The smoke test of a llama-server process on this host: the cpu image's own, copied out of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters.engine import Image
from base_images.errors import LaunchError
from base_images.smoke import checks_server, device, process, runner
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.model import TensorType
from base_images.smoke.report import Device, SmokeReport, Status
from tests.support import commands, host_server
from tests.support.programs import is_alive, wait_for, wait_until_gone

CPU, VULKAN = variants.find("cpu"), variants.find("vulkan")

HANGS = """\
#!/bin/sh
trap '' TERM
sleep 300 &
echo "$$ $!" >"$PIDS"
wait
sleep 300
"""
"""Never becomes healthy, ignores SIGTERM, and has a child."""


@pytest.fixture(scope="module")
def program(cpu_image: Image) -> Iterator[Path]:
    with host_server.copied_out(cpu_image) as path:
        yield path


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Yields an empty directory for all temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr("tempfile.tempdir", str(directory))
    return directory


def invoke(*arguments: str) -> subprocess.Popen[str]:
    """Starts a command on a machine without an engine."""
    env = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    return commands.start([*commands.INVOKE, *arguments], env=env)


def seen(report: SmokeReport, status: Status) -> dict[tuple[str, str], str]:
    return {(row.server, row.check): row.seen for row in report.rows if row.status is status}


def test_a_program_gets_the_same_checks_and_report_without_an_engine(
    program: Path, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "of another server")  # this one would ask for it
    record, page = tmp_path / "record", tmp_path / "page.html"
    command = ("smoke", "--variant", "cpu", "--binary", str(program), "--json")
    with invoke(*command, "--record", str(record), "--html", str(page)) as running:
        printed, errors = running.communicate(timeout=600)
    assert (running.returncode, errors) == (0, "")
    report = json.loads(printed)
    rows = [(server["name"], check["name"]) for server in report["servers"] for check in server["checks"]]
    assert rows == [(server.name, check) for server in runner.plan(CPU) for check in ("starts", *server.checks)]
    skipped = {
        (check["name"], check["seen"])
        for server in report["servers"]
        for check in server["checks"]
        if check["status"] == "skip"
    }
    assert skipped == {("healthcheck", "there is no container")}
    assert report["image"] == str(program)
    assert json.loads((record / "smoke-cpu.json").read_text(encoding="utf-8")) == report
    assert "model loaded" in (record / "smoke-cpu-server-1.log").read_text(encoding="utf-8")
    assert str(program) in page.read_text(encoding="utf-8")
    assert list(temporary.iterdir()) == []


def test_a_missing_device_fails_the_device_checks(program: Path) -> None:
    # This server has CPU backends alone: every check of the device fails, although the answers are right.
    report = process.smoke(program, VULKAN, device=device.in_software(VULKAN), tensor_types=[TensorType.F32])
    assert report.device is Device.SOFTWARE
    failed = seen(report, Status.FAIL)
    assert {check for _, check in failed} == set(runner.DEVICE_CHECKS)
    assert "--list-devices names no device where Vulkan0 is right." in failed.values()
    assert {row.status for row in report.rows if row.check == "completion"} == {Status.PASS}


def test_a_server_without_backends_fails_to_start(program: Path, tmp_path: Path) -> None:
    directory = tmp_path / "incomplete"
    shutil.copytree(program.parent, directory, ignore=shutil.ignore_patterns("libggml-cpu-*"))
    # llama.cpp's logger is a thread, and the process may end before it has written.
    reports = [process.smoke(directory / program.name, CPU, tensor_types=[TensorType.F32]) for _ in range(3)]
    assert not any(report.ok for report in reports)
    rows = [row for report in reports for row in report.rows]
    assert {row.check for row in rows} == {"starts"}
    assert all("The server ended with exit code 1" in row.seen for row in rows)
    assert any("no backends are loaded" in server.log for report in reports for server in report.servers)


@pytest.mark.parametrize("text", ["#!/no/such/interpreter\n", "\x7fELF"])
def test_a_program_that_cannot_start_is_reported_and_not_raised(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "llama-server"
    broken.write_text(text)
    broken.chmod(0o755)
    report = process.smoke(broken, CPU, tensor_types=[TensorType.F32])
    assert set(seen(report, Status.FAIL)) == {(server.name, "starts") for server in report.servers}
    assert str(broken) in report.servers[0].log


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_file_that_is_not_executable_is_a_usage_error(tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "llama-server"
    if mode:
        path.touch(mode)
    with invoke("smoke", "--variant", "cpu", "--binary", str(path)) as running:
        printed, errors = running.communicate(timeout=300)
    assert (running.returncode, printed) == (2, "")
    assert errors.strip() == f"error: {path} is not a program: name the llama-server to start."


# --- nothing is left behind ---


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(HANGS)
    path.chmod(0o755)
    monkeypatch.setenv("PIDS", str(tmp_path / "pids"))
    return path


def started(pids: Path) -> list[int]:
    wait_for(lambda: pids.exists() and pids.read_text().endswith("\n"))
    return [int(pid) for pid in pids.read_text().split()]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupted_test_kills_the_server_and_its_children(hanging: Path, temporary: Path, name: str) -> None:
    with invoke("smoke", "--variant", "cpu", "--binary", str(hanging)) as running:
        pids = started(hanging.with_name("pids"))
        assert all(map(is_alive, pids))
        running.send_signal(signal.Signals[name])
        _, errors = running.communicate(timeout=300)
    assert running.returncode == 130
    assert errors.startswith("Interrupted: nothing is left running")
    wait_until_gone(pids)
    assert list(temporary.iterdir()) == []


def test_a_killed_test_kills_the_server(program: Path, hanging: Path, temporary: Path) -> None:
    with invoke("smoke", "--variant", "cpu", "--binary", str(hanging)) as running:
        server, child = started(hanging.with_name("pids"))
        running.kill()
        running.communicate(timeout=300)
    wait_until_gone([server])
    os.kill(child, signal.SIGKILL)  # a server's children are not killed then; llama-server has none
    assert len(list(temporary.iterdir())) == 1
    assert process.smoke(program, CPU, tensor_types=[TensorType.F32]).ok
    assert list(temporary.iterdir()) == []


def test_a_process_that_ignores_sigterm_fails_the_check(hanging: Path, tmp_path: Path) -> None:
    server = process.Process([str(hanging)], environment=os.environ, log=tmp_path / "log")
    assert server.state().status == "created"
    try:
        server.start()
        pids = started(hanging.with_name("pids"))
        with pytest.raises(CheckFailedError, match="still runs"):
            checks_server.check_sigterm(server, timeout=0.5)
    finally:
        server.kill()
    wait_until_gone(pids)
    with pytest.raises(LaunchError, match="does not run"):
        server.signal("SIGTERM")


def test_the_exit_code_of_a_process(tmp_path: Path) -> None:
    for script, code in (("exit 7", 7), ("kill -9 $$", 137)):
        server = process.Process(["/bin/sh", "-c", script], environment={}, log=tmp_path / "log")
        server.start()
        assert server.wait(300) == code
        assert (server.state().running, server.state().exit_code) == (False, code)
        server.kill()
