"""A model of the user's: one GGUF file, or the several that llama.cpp has split it into."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from base_images.errors import UsageError

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
"""`%s-%05d-of-%05d.gguf` (llama.cpp b10454, src/llama.cpp, SPLIT_PATH_FORMAT)."""

_NAMED = 3
"""Missing files that a message names."""


def shards(path: Path) -> tuple[Path, ...]:
    """Returns all files of a model, the one first that llama-server is given.

    Raises:
        UsageError: one of them is missing, or `path` is another than the first.
    """
    if not path.is_file():
        raise UsageError(f"--model {path} cannot be used: name a GGUF file of this host.")
    named = _SHARD.fullmatch(path.name)
    files = [path]
    if named:
        count = int(named[2])
        files = [path.with_name(f"{named[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if path != files[0]:
        raise UsageError(f"--model {path.name} is not the first file of its model: name {files[0].name}.")
    if missing := [file.name for file in files if not file.is_file()]:
        names = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        raise UsageError(f"The model is incomplete: {path.parent} has no {names}: put it there, or name another model.")
    return tuple(files)


def require_readable(files: Sequence[Path], user: str) -> None:
    """Checks that a server may read files, each of which its container has as a mount: directories do not count.

    Args:
        files: of the server's host.
        user: `uid:gid` of the container; empty for a process of ours.

    Raises:
        UsageError: their permissions do not allow it.
    """
    for file in files:
        if not user:
            if not os.access(file, os.R_OK):
                raise UsageError(f"{file} may not be read by you: ask its owner for permission, or name another model.")
        elif not _readable(file.stat(), *map(int, user.split(":"))):
            raise UsageError(
                f"The container's server runs as uid {user.partition(':')[0]}, which may not read {file}: run "
                f"`chmod o+r` on it, or name a copy that everybody may read."
            )


def _readable(status: os.stat_result, uid: int, gid: int) -> bool:
    bit = stat.S_IRUSR if status.st_uid == uid else stat.S_IRGRP if status.st_gid == gid else stat.S_IROTH
    return bool(status.st_mode & bit)
