"""Facts that hold for every image, and parsers for the output of programs in one."""

from __future__ import annotations

import re

ARBITRARY_USER = "54321:54321"
"""A user in no image's user table, as hardened hosts choose one (contract row 11, docs/contract.md)."""

ARBITRARY_USER_OF_GROUP_0 = "54321:0"
"""As OpenShift chooses one."""

STOP_SECONDS = 10  # contract row 15

STOP_AT_ONCE_SECONDS = 1  # contract row 20
EMULATED_STOP_SECONDS = 5  # the same for an emulated processor, where ending llama-server took 1.7 s on a busy machine

VOLUMES = ("/models", "/home/llama/.cache", "/data")
"""Where people mount volumes (contract row 19): models, llama-server's model cache, and a child image's own data."""

_BACKEND = re.compile(r"^\S+ +(?:r-xp|rw-p) .* (/\S*/libggml-\S+\.so)$", re.MULTILINE)
"""A backend's code or data. qemu does not map code as executable, because the processor does not execute it."""


def glibc_version(getconf: str) -> str:
    """Returns the version in the output of `getconf GNU_LIBC_VERSION`, such as `2.41`; empty for another C library."""
    name, _, version = getconf.strip().partition(" ")
    return version if name == "glibc" else ""


def loaded_backends(maps: str) -> tuple[str, ...]:
    """Returns the paths of the ggml backends in a process's memory map, /proc/<pid>/maps of proc(5).

    The file name of a loadable backend has no version. The log is no source for this: it differs between versions of
    llama.cpp, and b10454 does not name the backends.
    """
    return tuple(dict.fromkeys(_BACKEND.findall(maps)))
