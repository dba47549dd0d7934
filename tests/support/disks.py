"""A disk without free space."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def full(directory: Path, *, free: int = 0) -> Iterator[Path]:
    """Mounts a file system at a new directory, with so many free kibibytes; skips the test where it may not mount."""
    directory.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={free + 64}k", "tmpfs", str(directory)]
    mounted = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs a full disk: {mounted.stderr.strip()}")
    try:
        (directory / "fill").write_bytes(bytes(64 * 1024))
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)
