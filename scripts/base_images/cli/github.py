"""What GitHub Actions shows of a job: groups that fold in its log, and its summary. Elsewhere nothing happens."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from base_images import untrusted

_ENCODED = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
"""What a workflow command's text must not have as it is (actions/toolkit, packages/core/src/command.ts)."""


class _Log(io.TextIOBase):
    """A stream to GitHub's log; each text that is written is whole lines."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(untrusted.without_commands(text))

    def flush(self) -> None:
        self._stream.flush()


def log(stream: IO[str]) -> IO[str]:
    """Returns the stream; on GitHub, one that keeps what is written to it from being a workflow command."""
    return cast("IO[str]", _Log(stream)) if present() else stream


def without_commands(text: str) -> str:
    """Returns whole lines as they may be written to GitHub's log; elsewhere as they are."""
    return untrusted.without_commands(text) if present() else text


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Folds what is printed in the `with` block; workflow commands in it, such as a build log's, have no effect."""
    if not present():
        yield
        return
    token = secrets.token_hex()
    _tell(f"::group::{title.translate(_ENCODED)}\n::stop-commands::{token}")
    try:
        yield
    finally:
        _tell(f"::{token}::\n::endgroup::")


def summarise(markdown: str) -> None:
    """Appends Markdown to the job's summary."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(f"{markdown.rstrip()}\n\n")


def summarise_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Appends a title, and a table where there are rows, to the job's summary; texts are escaped."""
    if not os.environ.get("GITHUB_STEP_SUMMARY"):
        return
    from base_images.recipes import markdown

    cells = [[markdown.text(cell) for cell in row] for row in rows]
    summarise(f"**{markdown.text(title)}**\n\n{markdown.table([columns, *cells]) if rows else ''}")


def present() -> bool:
    """Returns whether this is a job of GitHub Actions."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _tell(lines: str) -> None:
    sys.stdout.write(f"{lines}\n")
    sys.stdout.flush()
