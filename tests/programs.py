"""Programs of the machine that some tests need and the project itself does not."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def need(program: str, *, package: str = "") -> None:
    """Installs the Debian package, of the same name unless told, where the program is missing, as root; else skips."""
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
