"""Writes files whole or not at all: on a full disk, or when it is killed, no command leaves half of one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from base_images.errors import UsageError


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8, and creates its directory; several processes do not mix what they write.

    Raises:
        UsageError: the file cannot be written.
    """
    # A file's name may have bytes that are no UTF-8, and reports show it.
    data = content if isinstance(content, bytes) else content.encode("utf-8", errors="replace")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.write_bytes(data)  # such as /dev/stdout, which must not be replaced
            return
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_bytes(data)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror  # mkdir's
        raise UsageError(f"{path} cannot be written ({reason}): choose another file.") from error


def add(path: Path, section: str) -> None:
    """Appends a section to a text file, after an empty line; see `write`."""
    before = f"{path.read_text(encoding='utf-8', errors='replace').rstrip()}\n\n" if path.is_file() else ""
    write(path, f"{before}{section}")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON; see `write`."""
    write(path, json.dumps(value, indent=2) + "\n")
