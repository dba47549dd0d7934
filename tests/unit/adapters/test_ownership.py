"""Process ownership with real processes: running, ended and unknown ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from base_images.adapters import ownership
from base_images.settings import ROOT
from tests.support import commands

ASK = "from base_images.adapters import ownership; print(ownership.current(), flush=True); input()"


def started() -> tuple[subprocess.Popen[str], str]:
    """Starts a process that waits for a line; returns it and its name."""
    process = commands.start([sys.executable, "-c", ASK], env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")})
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_an_ended_process_is_gone_even_before_its_parent_waits() -> None:
    process, name = started()
    with process:
        assert not ownership.is_gone(name)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for
        assert Path(f"/proc/{process.pid}").exists()
        assert ownership.is_gone(name)
    assert not Path(f"/proc/{process.pid}").exists()
    assert ownership.is_gone(name)


def test_a_reused_process_id_is_told_apart_by_its_start_time() -> None:
    own = ownership.current()
    assert not ownership.is_gone(own)
    assert ownership.is_gone(f"{own.rpartition('.')[0]}.1")


@pytest.mark.parametrize("name", ["", "1", "a.b.c.d", "....", "000000000000.4026531836.999999999.1"])
def test_unknown_processes_are_not_gone(name: str) -> None:
    assert not ownership.is_gone(name)


def test_processes_of_another_namespace_are_not_gone() -> None:
    boot, namespace, *rest = ownership.current().split(".")
    assert not ownership.is_gone(".".join((boot, f"{namespace}1", *rest[:1], "1")))


def test_only_directories_of_ended_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process, name = started()
    left, elsewhere = tmp_path / f"bodhi-base-images-{name}-a1_b2c3", tmp_path / "bodhi-base-images-boot.1.2.3-a1b2c3"
    for path in (left, elsewhere):
        path.mkdir()
        (path / "model.gguf").touch()
    with process, ownership.temporary_directory() as first:
        assert left.exists()
        process.kill()
        process.wait()
        with ownership.temporary_directory() as second:
            assert sorted(tmp_path.iterdir()) == sorted((first, second, elsewhere))
    assert list(tmp_path.iterdir()) == [elsewhere]
