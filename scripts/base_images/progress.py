"""Progress messages of long-running work; `cli/views.py` displays them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


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


def pull_progress(reference: str, listener: Listener) -> Callable[[Mapping[str, Any]], None]:
    """Returns a receiver for the engine's messages of a pull that reports the sum over all layers."""
    layers: dict[str, tuple[int, int]] = {}

    def on_message(message: Mapping[str, Any]) -> None:
        detail = message.get("progressDetail") or {}
        if message.get("status") == "Downloading" and detail.get("total"):
            layers[message["id"]] = (detail.get("current", 0), detail["total"])
        done, total = sum(done for done, _ in layers.values()), sum(total for _, total in layers.values())
        listener(Progress(what=f"pull {reference}", done=done, total=total or None, note=message.get("status", "")))

    return on_message
