"""Progress messages of long-running work; `cli/views.py` displays them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One progress message.

    Attributes:
        what: the work, the same text in all of its messages, such as "download llama-cpp-python 0.3.36".
        done: bytes done; None when unknown.
        total: bytes in total; None when unknown.
        note: the current detail, such as a package being unpacked; may be empty.
        finished: whether this is the last message about `what`.
    """

    what: str
    done: int | None = None
    total: int | None = None
    note: str = ""
    finished: bool = False


Listener = Callable[[Progress], None]
"""Receives progress messages; must be cheap and must not raise."""


def silent(_progress: Progress) -> None:
    """Ignores the message."""
