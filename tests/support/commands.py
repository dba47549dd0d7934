"""Commands that tests run to their end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from base_images import settings

INVOKE = (sys.executable, "-m", "invoke")


def run(
    command: Sequence[str | Path],
    *,
    cwd: str | os.PathLike[str] = settings.ROOT,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    timeout: float = 600,
) -> subprocess.CompletedProcess[str]:
    """Runs a command, without a terminal, whatever its exit code is."""
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=stdin, capture_output=True, text=True, check=False, timeout=timeout
    )


def start(
    command: Sequence[str | Path],
    *,
    cwd: str | os.PathLike[str] = settings.ROOT,
    env: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> subprocess.Popen[str]:
    """Starts a command whose input and output are pipes."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=cwd, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=new_session
    )


def python(script: str) -> subprocess.Popen[str]:
    """Starts a script with the package, and waits until it has printed the line `there`."""
    env = {**os.environ, "PYTHONPATH": str(settings.ROOT / "scripts")}
    process = start([sys.executable, "-c", script], env=env)
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    return process


def invoke(
    *arguments: str, cwd: Path = settings.ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs invoke, with these variables added to the environment."""
    return run([*INVOKE, *arguments], cwd=cwd, env={**os.environ, **(environment or {})})
