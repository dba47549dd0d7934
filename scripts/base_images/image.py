"""What is the same in every image, and what a server in one is given and may take."""

from __future__ import annotations

import re

ARBITRARY_USER = "54321:54321"
"""In no image's user table: hardened hosts choose a number of their own (CONTRACT row 11)."""

STOP_SECONDS = 10  # CONTRACT row 15

_BACKEND = re.compile(r"^\S+ +r-xp .* (/\S*/libggml-\S+\.so)$", re.MULTILINE)


def glibc_version(getconf: str) -> str:
    """Returns the version in the output of `getconf GNU_LIBC_VERSION`, such as `2.41`; empty for another C library."""
    name, _, version = getconf.strip().partition(" ")
    return version if name == "glibc" else ""


def loaded_backends(maps: str) -> tuple[str, ...]:
    """Returns the paths of the ggml backends in what a process has mapped (proc(5)).

    A backend that is loaded is a library without a version in its name. What the log says of it differs from one
    version of llama.cpp to the next: b10454 says nothing.
    """
    return tuple(dict.fromkeys(_BACKEND.findall(maps)))
