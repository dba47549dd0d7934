"""llama.cpp's test of every operation (tests/test-backend-ops.cpp): what it prints, and the verdict. Pure functions.

A run tests one operation on one backend, against the reference code of the best CPU backend, so that a crash is one
operation's failure. Its console output is read because that alone is flushed after each case; its CSV has no verdict.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from base_images.errors import UsageError
from base_images.smoke.report import CheckResult, Status

PROGRAM = "test-backend-ops"
"""Beside llama-server in the image of its operations, compiled from dockerfiles/operations/."""

BACKEND_VARIABLE = "GGML_BACKEND_PATH"
"""A backend that the program loads besides those that it finds."""

LIST = ("--list",)

BASELINE = Path(__file__).with_name("known_failures.toml")

_SHOWN = 50
"""Failed cases in the detail of a check."""

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_CASE = re.compile(
    r"(?P<why>.*?) ? ?\b(?P<operation>[A-Z]\w*)\((?P<case>.*)\): (?P<how>OK|FAIL|not supported \[.*\]) *"
)
_SUMMARY = re.compile(r".*  \d+/\d+ tests passed")
_FAILING = "Failing tests:"


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A backend to test.

    Attributes:
        name: for the program's `-b`.
        description: of its device.
        path: its file, for GGML_BACKEND_PATH; empty where the program loads it by itself.
    """

    name: str
    description: str
    path: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The variable that makes the program load it."""
        return {BACKEND_VARIABLE: self.path} if self.path else {}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `--list` prints.

    Attributes:
        devices: of all backends that load here; the first CPU backend is the one that all are compared with.
        cases: the number of cases of each operation.
    """

    devices: tuple[Backend, ...]
    cases: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case that failed, and what the program says of it."""

    case: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """An entry of the baseline: one case that is known to fail."""

    device: str
    operation: str
    case: str
    reason: str
    issue: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended.

    Attributes:
        output: all that it printed.
        exit_code: None if it was killed, because it had printed nothing for long.
    """

    output: str
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One operation on one backend.

    Attributes:
        problem: why not every case was run, one sentence; empty if every one was.
        tail: the end of the output, where there is a problem.
    """

    backend: Backend
    operation: str
    passed: int
    unsupported: int
    failures: tuple[Failure, ...]
    problem: str = ""
    tail: str = ""


def parse_listing(output: str) -> Listing:
    """Parses the output of `--list`.

    Raises:
        UsageError: it is something else.
    """
    rows = [line.split("\t") for line in output.splitlines()]
    devices = tuple(Backend(name=row[1], description=row[2], path=row[3]) for row in rows if row[0] == "device")
    cases = {row[1]: int(row[2]) for row in rows if row[0] == "cases"}
    if not devices or not cases:
        last = output.strip().splitlines()[-1:] or ["nothing"]
        raise UsageError(
            f"{PROGRAM} did not list its devices and operations, it printed {last[0]!r}: it has to be the one of an "
            "image of operations, or compiled by dockerfiles/operations/compile."
        )
    return Listing(devices=devices, cases=cases)


def backends(listing: Listing, accelerator: str) -> tuple[Backend, ...]:
    """Returns the backends to test: the accelerator's first device, or each CPU backend but the one compared with.

    Args:
        listing: of this host.
        accelerator: the device's name without its index; empty for the CPU.

    Raises:
        UsageError: the accelerator has no device here.
    """
    if not accelerator:
        cpus = [device for device in listing.devices if PurePosixPath(device.path).name.startswith("libggml-cpu-")]
        return tuple(
            Backend(name=PurePosixPath(cpu.path).name, description=cpu.description, path=cpu.path) for cpu in cpus[1:]
        )
    for device in listing.devices:
        if device.name == f"{accelerator}0":
            return (Backend(name=device.name, description=device.description),)
    names = ", ".join(device.name for device in listing.devices)
    raise UsageError(f"{PROGRAM} finds no device {accelerator}0, only {names}: `--list-devices` of the server, too?")


def chosen(listing: Listing, names: Sequence[str]) -> dict[str, int]:
    """Returns the operations to test, with their numbers of cases: those named, or all without names.

    Raises:
        UsageError: llama.cpp does not test an operation of that name.
    """
    if unknown := [name for name in names if name not in listing.cases]:
        raise UsageError(f"There is no operation {', '.join(unknown)}: choose of {', '.join(listing.cases)}.")
    return {name: count for name, count in listing.cases.items() if name in names or not names}


def arguments(backend: Backend, operation: str) -> tuple[str, ...]:
    """Returns the program's arguments for one run."""
    return ("test", "-b", backend.name, "-o", operation)


def read(ended: Ended, backend: Backend, operation: str, cases: int) -> Outcome:
    """Returns the outcome of a run.

    Args:
        ended: the run.
        backend: that was tested.
        operation: that was tested.
        cases: how many the operation has.
    """
    lines = [_COLOUR.sub("", line).rstrip("\n") for line in ended.output.splitlines()]
    listed = lines.index(_FAILING) if _FAILING in lines else len(lines)
    seen = [found for line in lines[:listed] if (found := _CASE.fullmatch(line)) and found["operation"] == operation]
    passed = sum(found["how"] == "OK" for found in seen)
    failed = {found["case"]: found["why"].strip() for found in seen if found["how"] == "FAIL"}
    # A case whose tensors cannot be allocated has no line of its own, and is among the failing ones at the end.
    prefix = f"  {operation}("
    for line in lines[listed:]:
        if line.startswith(prefix):
            failed.setdefault(line.removeprefix(prefix).removesuffix(")"), "it has no result: see the log")
    unsupported = len(seen) - passed - sum(found["how"] == "FAIL" for found in seen)
    summary = any(map(_SUMMARY.fullmatch, lines))
    problem = ""
    if ended.exit_code is None:
        problem = f"printed nothing for long and was killed after {_place(seen, cases)}"
    elif ended.exit_code > 1 or not summary:
        problem = f"ended with {_end(ended.exit_code)} after {_place(seen, cases)}"
    elif passed + unsupported + len(failed) < cases:
        problem = f"tested only {_place(seen, cases)}"
    return Outcome(
        backend=backend,
        operation=operation,
        passed=passed,
        unsupported=unsupported,
        failures=tuple(Failure(case=case, why=why) for case, why in failed.items()),
        problem=problem,
        tail="\n".join(lines[-25:]) if problem else "",
    )


def judge(outcomes: Sequence[Outcome], baseline: Iterable[Known], *, seconds: float) -> CheckResult:
    """Returns the check of one operation, of its outcomes on all backends."""
    operation = outcomes[0].operation
    passed, unsupported = sum(one.passed for one in outcomes), sum(one.unsupported for one in outcomes)
    wrong: list[str] = []
    known: list[Known] = []
    for outcome in outcomes:
        entries = {entry.case: entry for entry in _of(baseline, outcome)}
        failed = {failure.case for failure in outcome.failures}
        known += [entry for case, entry in entries.items() if case in failed]
        where = outcome.backend.name
        if outcome.problem:
            wrong.append(f"{where}: {PROGRAM} {outcome.problem}.")
        else:
            wrong += [
                f"{where}: {operation}({case}) is known to fail and does not: remove it from {BASELINE.name}."
                for case in entries
                if case not in failed
            ]
        wrong += [
            f"{where}: {operation}({failure.case}) fails{f': {failure.why}' if failure.why else '.'}"
            for failure in outcome.failures
            if failure.case not in entries
        ]
    failures = sum(len(outcome.failures) for outcome in outcomes)
    counts = [f"{passed:,} of {passed + failures:,} cases passed" if failures else f"{passed:,} cases passed"]
    counts += [f"{unsupported:,} not supported"] if unsupported else []
    counts += [f"{len(known):,} known to fail ({known[0].reason} {known[0].issue})"] if known else []
    said = ", ".join(counts)
    if wrong:
        tails = [outcome.tail for outcome in outcomes if outcome.tail]
        more = [f"and {len(wrong) - _SHOWN:,} more"] if len(wrong) > _SHOWN else []
        detail = "\n".join([*wrong[:_SHOWN], *more, *tails])
        return CheckResult(
            name=operation, status=Status.FAIL, seen=f"{wrong[0]} {said}", seconds=seconds, detail=detail
        )
    status = Status.PASS if passed or known else Status.SKIP
    return CheckResult(
        name=operation, status=status, seen=said if passed or known else "not supported", seconds=seconds
    )


def parse_baseline(text: str) -> tuple[Known, ...]:
    """Parses the known failures, one entry a case.

    Raises:
        UsageError: an entry lacks something.
    """
    found: list[Known] = []
    for entry in tomllib.loads(text).get("failure", ()):
        _require_whole(entry)
        of_case = {name: entry[name] for name in ("device", "operation", "reason", "issue")}
        found += [Known(case=case, **of_case) for case in entry["cases"]]
    return tuple(found)


def _require_whole(entry: Mapping[str, Any]) -> None:
    wanted = ("device", "operation", "cases", "reason", "issue")
    if lacking := [name for name in wanted if not entry.get(name)]:
        raise UsageError(f"An entry of {BASELINE.name} has no {', no '.join(lacking)}: say it.")


def _of(baseline: Iterable[Known], outcome: Outcome) -> list[Known]:
    return [
        entry
        for entry in baseline
        if entry.operation == outcome.operation and entry.device in outcome.backend.description
    ]


def _place(seen: Sequence[re.Match[str]], cases: int) -> str:
    last = f", the last of which was {seen[-1]['operation']}({seen[-1]['case']})" if seen else ""
    return f"{len(seen)} of {cases} cases{last}"


def _end(exit_code: int) -> str:
    number = exit_code - 128
    if number in {one.value for one in signal.Signals}:
        return f"the signal {signal.Signals(number).name}"
    return f"exit code {exit_code}"
