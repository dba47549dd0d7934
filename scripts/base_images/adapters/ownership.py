"""Whose a container, a volume or a directory is: the process that made it, so that what it left behind can be told.

A process that was killed hard removes nothing. Its name says when it is gone: a process's number comes back, but not
with the same start time, and both mean something only within one process namespace of one running kernel.
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
"""Of /proc/<pid>/stat: a process that ended and whose parent did not ask for its exit code yet has one of these."""

_START_TIME = 19
"""Where proc(5) has a process's start time, counted from the state, in clock ticks since the kernel started."""

_DIRECTORY = "bodhi-smoke"


@functools.cache
def current() -> str:
    """Returns this process's name, such as `5f1c0a2b3c4d.4026531836.4242.1838`; empty where there is no /proc."""
    kernel, stat = _kernel(), _stat(os.getpid())
    return f"{kernel}.{os.getpid()}.{stat[_START_TIME]}" if kernel and stat else ""


def is_gone(owner: str) -> bool:
    """Returns whether the process of that name has ended; False for one that this process cannot know about."""
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
        pass  # it is there, and /proc hides the processes of others
    return False


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Yields a directory that goes afterwards; those that processes left behind which are gone go now."""
    place = Path(tempfile.gettempdir())
    for path in place.glob(f"{_DIRECTORY}-*"):
        if is_gone(path.name.removeprefix(f"{_DIRECTORY}-").rpartition("-")[0]):
            shutil.rmtree(path, ignore_errors=True)  # another user's, perhaps
    with tempfile.TemporaryDirectory(prefix=f"{_DIRECTORY}-{current()}-") as directory:
        yield Path(directory)


def _kernel() -> str:
    """Returns what tells this running kernel and process namespace from others; empty where there is no /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - such as `pid:[4026531836]`, no path
    except OSError:
        return ""
    return f"{boot.replace('-', '')[:12]}.{''.join(re.findall(r'[0-9]', namespace))}"


def _stat(process: int) -> list[str]:
    """Returns /proc/<pid>/stat from the state on; empty where there is none. The name before it may hold anything."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
