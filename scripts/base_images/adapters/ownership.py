"""Process ownership labels: they name the process that created a container, a volume or a directory.

A killed process removes nothing; its name tells another process that it has ended. The name holds the process id and,
because ids are reused, the start time. Both are valid only within one process namespace of one booted kernel.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_DEAD_STATES = "ZXx"
"""States in /proc/<pid>/stat of a process that has ended, also before its parent has waited for it."""

_START_TIME = 19
"""Index of the start time in the fields of /proc/<pid>/stat that begin with the state (proc(5))."""

_DIRECTORY = "bodhi-base-images"


@functools.cache
def current() -> str:
    """Returns the name of this process, such as `5f1c0a2b3c4d.4026531836.4242.1838`; empty without /proc."""
    kernel, stat = _kernel(), _stat(os.getpid())
    return f"{kernel}.{os.getpid()}.{stat[_START_TIME]}" if kernel and stat else ""


def is_gone(owner: str) -> bool:
    """Returns whether the named process has ended; False when that cannot be known here."""
    kernel, _, process = owner.rpartition(".")[0].rpartition(".")
    if not kernel or kernel != _kernel() or not process.isdecimal():
        return False
    stat = _stat(int(process))
    if stat:
        return stat[0] in _DEAD_STATES or stat[_START_TIME] != owner.rpartition(".")[2]
    try:
        os.kill(int(process), 0)  # sends nothing
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, and /proc is mounted with hidepid
    return False


@contextlib.contextmanager
def temporary_directory(parent: Path | None = None) -> Iterator[Path]:
    """Yields a temporary directory, by default in TMPDIR, after removing those of processes that have ended."""
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{_DIRECTORY}-*"):
        if is_gone(path.name.removeprefix(f"{_DIRECTORY}-").rpartition("-")[0]):
            shutil.rmtree(path, ignore_errors=True)  # it may belong to another user
    with tempfile.TemporaryDirectory(prefix=f"{_DIRECTORY}-{current()}-", dir=parent) as directory:
        yield Path(directory)


def _kernel() -> str:
    """Returns an identifier of this boot and process namespace; empty without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - `pid:[4026531836]` is not a path
    except OSError:
        return ""
    return f"{boot.replace('-', '')[:12]}.{''.join(re.findall(r'[0-9]', namespace))}"


def _stat(process: int) -> list[str]:
    """Returns the fields of /proc/<pid>/stat after the command's name, which may contain anything; empty without it."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
