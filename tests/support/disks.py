"""Small disks, and full ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small(directory: Path, size: str) -> Iterator[Path]:
    """Yields a directory on its own disk, of a size such as `9m`; skips the test where it cannot be mounted."""
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("needs root to mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[Path]:
    """Yields a directory on a disk that its only file, `filler`, fills."""
    with small(directory, "64k") as disk:
        fill(disk / "filler")
        yield disk


def fill(path: Path) -> None:
    """Writes until its disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
