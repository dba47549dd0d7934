"""Standard output and standard error that outlast their reader: the verdict of a command is not that of its output."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from invoke.exceptions import Exit


class Stream:
    """A text stream that goes on into /dev/null when it cannot be written.

    Attributes:
        failure: the first error of a write, except that the reader has gone, such as `head`; None without one.
        tolerant: whether errors other than that are kept here; invoke's own output, such as help, ends with them.
    """

    def __init__(self, stream: TextIO, *, tolerant: bool) -> None:
        self._stream = stream
        self.failure: OSError | None = None
        self.tolerant = tolerant

    def __getattr__(self, name: str) -> Any:
        """Everything but writing is the stream's own."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, and returns its length."""
        with self._outlasting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        with self._outlasting():
            self._stream.flush()

    @contextlib.contextmanager
    def _outlasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            gone = error.errno == errno.EPIPE
            if not gone and not self.tolerant:
                raise Exit(f"error: standard output: {error.strerror}.", 1) from error
            if not gone:
                self.failure = self.failure or error
            # What is still buffered goes there too, at the latest when the interpreter ends.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def guard() -> None:
    """Makes this process's own standard streams outlast their readers; one that is closed becomes /dev/null."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest free number is the closed stream's, which no other file then gets.
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(null, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if sys.stdout is sys.__stdout__:  # not where a test captures it
        sys.stdout = cast("TextIO", Stream(cast("TextIO", sys.stdout), tolerant=False))
        sys.stderr = cast("TextIO", Stream(sys.stderr, tolerant=True))  # there is nowhere else to say it


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps the outcome of the `with` block whatever becomes of standard output.

    Raises:
        Exit: the block succeeded, and its output could not be written.
    """
    stdout: object = sys.stdout
    if not isinstance(stdout, Stream):
        yield
        return
    stdout.tolerant = True
    try:
        yield
    finally:
        stdout.flush()
    if stdout.failure:
        raise Exit(f"error: it is done, but not all was printed: standard output: {stdout.failure.strerror}.", 1)
