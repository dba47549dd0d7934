"""Programs that some tests need and the project itself does not, and processes of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support import commands


def need(program: str, *, package: str = "") -> None:
    """Installs a missing program from its Debian package, by default of the same name; skips the test unless root."""
    if shutil.which(program):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(f"needs {program}: install it")
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", package or program]):
        subprocess.run(
            ["apt-get", "--quiet", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )


def script(path: Path, text: str) -> Path:
    """Writes a shell script that all users can run, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def engine_sees(image: str, directory: Path) -> bool:
    """Returns whether the engine can mount this machine's directories; a remote one, or one in a chroot, cannot."""
    mount = f"type=bind,source={directory},target=/here,readonly"
    command = ["docker", "run", "--rm", "--mount", mount, "--entrypoint", "ls", image, "/here"]
    done = commands.run(command)
    return done.returncode == 0 and done.stdout.split() == sorted(path.name for path in directory.iterdir())


def is_alive(pid: int) -> bool:
    """Returns whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def wait_until_gone(pids: Sequence[int]) -> None:
    """Waits until none of these processes runs."""
    wait_for(lambda: not any(map(is_alive, pids)))
