"""What long work says while it runs; `cli/views.py` decides how a person sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One moment of a long piece of work.

    Attributes:
        what: the work, the same text from its first moment to its last, such as "download llama-cpp-python 0.3.36".
        done: how much is done, in bytes; None when it cannot be counted.
        total: how much there is, in bytes; None when it is not known.
        note: a word on how it goes, such as a package being unpacked; may be empty.
        finished: whether this is the last message about `what`.
    """

    what: str
    done: int | None = None
    total: int | None = None
    note: str = ""
    finished: bool = False


Listener = Callable[[Progress], None]
"""Takes progress; must be cheap, and must not raise."""


def silent(_progress: Progress) -> None:
    """Listens to nothing."""
