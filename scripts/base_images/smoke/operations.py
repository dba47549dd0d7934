"""llama.cpp's test of every operation (tests/test-backend-ops.cpp): what it prints, and the verdict. Pure functions.

A run tests one operation, against the reference code of the best CPU backend, so that a crash is one operation's
failure. Its console output is read because that alone is flushed after each case; its CSV has no verdict.
"""

from __future__ import annotations

import re
import signal
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from base_images.errors import DeviceError, UsageError
from base_images.smoke.report import CheckResult, Status

PROGRAM = "test-backend-ops"
"""Beside llama-server in the image of its operations, compiled from dockerfiles/operations/."""

OTHERS = "other-cpus"
"""For the program's `-b`: all CPU backends that run here, but the best one, with which everything is compared."""

LIST = ("--list",)

BASELINE = Path(__file__).with_name("known_failures.toml")

_SHOWN = 50
"""Failed cases in the detail of a check."""

_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_CASE = re.compile(
    r"(?P<why>.*?) ? ?\b(?P<operation>[A-Z]\w*)\((?P<case>.*)\): (?P<how>OK|FAIL|not supported \[.*\]) *"
)
_BACKEND = re.compile(r"Backend (\d+)/\d+: .*")
_SUMMARY = re.compile(r".*  \d+/\d+ tests passed")
_FAILING = "Failing tests:"


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device that the program lists.

    Attributes:
        name: for the program's `-b`.
        path: the file of its backend.
    """

    name: str
    description: str
    path: str

    @property
    def shown(self) -> str:
        """What tells it from the others: its name, or of several CPUs the backend's file."""
        return PurePosixPath(self.path).name if self.name == OTHERS else self.name


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What `--list` prints.

    Attributes:
        devices: of all backends that load here, as the program numbers them; all are compared with the first CPU.
        cases: the number of cases of each operation.
    """

    devices: tuple[Device, ...]
    cases: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a run tests.

    Attributes:
        option: for the program's `-b`.
        devices: by the program's number; none where there is nothing to test.
    """

    option: str
    devices: Mapping[int, Device]

    @property
    def title(self) -> str:
        """Such as `operations on CUDA0 (NVIDIA H200)`."""
        if self.option == OTHERS:
            return f"operations on {len(self.devices)} other CPU backends"
        return f"operations on {', '.join(f'{one.shown} ({one.description})' for one in self.devices.values())}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case that failed, and what the program says of it."""

    device: Device
    case: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """An entry of the baseline: a case that is known to fail on devices whose file, name or description has a text."""

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
        exit_code: None if it was killed because it had printed nothing for long.
    """

    output: str
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run.

    Attributes:
        problem: why not every case was run, one sentence; empty if every one was.
        tail: the end of the output, where there is a problem.
    """

    scope: Scope
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
    devices = tuple(Device(name=row[1], description=row[2], path=row[3]) for row in rows if row[0] == "device")
    cases = {row[1]: int(row[2]) for row in rows if row[0] == "cases"}
    if not devices or not cases:
        last = output.strip().splitlines()[-1:] or ["nothing"]
        raise UsageError(
            f"{PROGRAM} did not list its devices and operations, it printed {last[0]!r}: it has to be the one of an "
            "image of operations, or compiled by dockerfiles/operations/compile."
        )
    return Listing(devices=devices, cases=cases)


def scope(listing: Listing, accelerator: str) -> Scope:
    """Returns what to test: the accelerator's first device, or every CPU backend but the one compared with.

    Args:
        listing: of this host.
        accelerator: the device's name without its index; empty for the CPU.

    Raises:
        DeviceError: the accelerator has no device here.
    """
    option = f"{accelerator}0" if accelerator else OTHERS
    found = {number: device for number, device in enumerate(listing.devices, start=1) if device.name == option}
    if accelerator and not found:
        names = ", ".join(device.name for device in listing.devices)
        raise DeviceError(
            f"{PROGRAM} finds no device {option}, only {names}: find out whether llama-server's --list-devices does."
        )
    return Scope(option=option, devices=found)


def chosen(listing: Listing, names: Sequence[str]) -> dict[str, int]:
    """Returns the operations to test, with their numbers of cases: those named, or all without names.

    Raises:
        UsageError: llama.cpp does not test an operation of that name.
    """
    if unknown := [name for name in names if name not in listing.cases]:
        raise UsageError(f"There is no operation {', '.join(unknown)}: choose from {', '.join(listing.cases)}.")
    return {name: count for name, count in listing.cases.items() if name in names or not names}


def arguments(scope: Scope, operation: str) -> tuple[str, ...]:
    """Returns the program's arguments for one run."""
    return ("test", "-b", scope.option, "-o", operation)


def read(ended: Ended, scope: Scope, operation: str, cases: int) -> Outcome:
    """Returns the outcome of a run.

    Args:
        ended: the run.
        scope: what it tested.
        operation: that it tested.
        cases: how many the operation has.
    """
    lines = [_COLOUR.sub("", line).rstrip("\n") for line in ended.output.splitlines()]
    device: Device | None = None
    seen: list[re.Match[str]] = []
    failed: dict[tuple[Device, str], str] = {}
    silent = 0
    for line in lines:
        if found := _BACKEND.fullmatch(line):
            device = scope.devices.get(int(found[1]))
        elif device and (found := _CASE.fullmatch(line)) and found["operation"] == operation:
            seen.append(found)
            if found["how"] == "FAIL":
                failed[device, found["case"]] = found["why"].strip()
        elif device and line.startswith(f"  {operation}(") and line.endswith(")"):
            # In the list of failures at the end is also what has no line: whose tensors could not be allocated.
            case = (device, line[len(operation) + 3 : -1])
            silent += case not in failed
            failed.setdefault(case, "it has no result, see the log")
    passed = sum(found["how"] == "OK" for found in seen)
    unsupported = sum(found["how"].startswith("not") for found in seen)
    expected = cases * len(scope.devices)
    problem = ""
    if ended.exit_code is None:
        problem = f"printed nothing for long and was killed after {_place(seen, expected)}"
    elif ended.exit_code > 1 or sum(map(bool, map(_SUMMARY.fullmatch, lines))) < len(scope.devices):
        problem = f"ended with {_end(ended.exit_code)} after {_place(seen, expected)}"
    elif len(seen) + silent < expected:  # the same case may be there twice
        problem = f"tested only {_place(seen, expected)}"
    return Outcome(
        scope=scope,
        operation=operation,
        passed=passed,
        unsupported=unsupported,
        failures=tuple(Failure(device=one, case=case, why=why) for (one, case), why in failed.items()),
        problem=problem,
        tail="\n".join(lines[-25:]) if problem else "",
    )


def judge(outcome: Outcome, baseline: Iterable[Known], *, seconds: float) -> CheckResult:
    """Returns the check of one operation."""
    operation = outcome.operation
    failed = {(failure.device, failure.case): failure.why for failure in outcome.failures}
    entries = {
        (device, entry.case): entry
        for entry in baseline
        for device in outcome.scope.devices.values()
        if entry.operation == operation and is_of(entry, device)
    }
    known = [entry for case, entry in entries.items() if case in failed]
    wrong = [f"{PROGRAM} {outcome.problem}."] if outcome.problem else []
    wrong += [
        f"{device.shown}: {operation}({case}) fails{f': {why}' if why else '.'}"
        for (device, case), why in failed.items()
        if (device, case) not in entries
    ]
    if not outcome.problem:
        wrong += [
            f"{device.shown}: {operation}({case}) is known to fail and does not: remove it from {BASELINE.name}."
            for device, case in entries
            if (device, case) not in failed
        ]
    passed, unsupported = outcome.passed, outcome.unsupported
    counts = [f"{passed:,} of {passed + len(failed):,} cases passed" if failed else f"{passed:,} cases passed"]
    counts += [f"{unsupported:,} not supported"] if unsupported else []
    counts += [f"{len(known):,} known to fail ({known[0].reason} {known[0].issue})"] if known else []
    said = ", ".join(counts)
    if wrong:
        more = [f"and {len(wrong) - _SHOWN:,} more"] if len(wrong) > _SHOWN else []
        detail = "\n".join([*wrong[:_SHOWN], *more, *filter(None, [outcome.tail])])
        return CheckResult(
            name=operation, status=Status.FAIL, seen=f"{wrong[0]} {said}", seconds=seconds, detail=detail
        )
    status = Status.PASS if passed or known else Status.SKIP
    return CheckResult(
        name=operation, status=status, seen=said if passed or known else "not supported", seconds=seconds
    )


def is_of(entry: Known, device: Device) -> bool:
    """Returns whether an entry of the baseline is about a device."""
    return entry.device in f"{device.shown} {device.description}"


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


def _place(seen: Sequence[re.Match[str]], cases: int) -> str:
    last = f", the last of which was {seen[-1]['operation']}({seen[-1]['case']})" if seen else ""
    return f"{len(seen)} of {cases} cases{last}"


def _end(exit_code: int) -> str:
    number = exit_code - 128
    if number in {one.value for one in signal.Signals}:
        return f"the signal {signal.Signals(number).name}"
    return f"exit code {exit_code}"
