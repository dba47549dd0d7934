"""The verdict of a contract row, and helpers that several rows use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from base_images.adapters.container import ProbeResult
from base_images.contract.facts import ImageFacts, Server
from base_images.contract.layers import Entry, parents

NO_SERVER = "There is no llama-server in the image."


class Status(StrEnum):
    """The status of a row; only `fail` counts against the image."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    EXCEPTION = "exception"
    NOT_APPLICABLE = "not-applicable"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True)
class Verdict:
    """The result of a row; a status of None means `fail` with findings and `pass` without."""

    seen: str
    findings: Sequence[str] = ()
    status: Status | None = None


def each_server(facts: ImageFacts, seen: str, finding: Callable[[Server], str | None]) -> Verdict:
    """Returns a verdict with the finding of each server, and `seen` when no server has one."""
    if not facts.servers:
        return Verdict("no llama-server", [NO_SERVER])
    findings = [text for server in facts.servers if (text := finding(server))]
    return Verdict(seen if not findings else f"fails for {len(findings)} of {len(facts.servers)}", findings)


def blocked_by(files: Mapping[str, Entry], entry: Entry, bit: int) -> Entry | None:
    """Returns the entry, or the directory above it, whose mode excludes other users; None when all may pass."""
    if not entry.mode & bit:
        return entry
    above = (files[path] for path in parents(entry.path) if path in files)
    return next((directory for directory in above if not directory.mode & 0o001), None)


def some(names: Iterable[str], limit: int = 3) -> str:
    """Returns an abbreviated list: `a, b, c and 34 more`."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def last_line(result: ProbeResult) -> str:
    """Returns the last line of a command's output as the end of a sentence."""
    return last(result.output) if not result.timed_out else "it did not end in time."


def last(text: str) -> str:
    """Returns the last line of a text as the end of a sentence."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it printed nothing."
