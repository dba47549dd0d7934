"""What a soak saw, and the verdict on it; pure functions. Times are in seconds, since the first request where `at`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from base_images.errors import UsageError
from base_images.smoke import soak_picture
from base_images.smoke.report import Check, CheckResult, SmokeReport, Status

CLIENTS = 1000
"""Each is a thread."""

MOMENTS = 60
"""In the series of a report and in its picture."""

WARM_UP = 0.25
"""Part of the run, at its beginning, in which the memory is not judged."""

STRETCHES = 12
"""Parts of the rest, each of which has a median."""

FEWEST = 4
"""Medians, for a line and how well it is known."""

RISE = 8.0
"""MiB by which the line through the medians may rise from the first to the last.

What an allocator takes to settle is bounded, and a leak is not: so the rise is limited and not the rate, and a longer
run finds smaller leaks; ten minutes find 1.3 MiB a minute. Measured on b10454: 2 to 4 MiB in 15 s with 20 clients,
2 MiB in four minutes with 200, and 3 MiB in ten.
"""

SIGMAS = 3
"""Standard errors that the slope may be too large by: the noise of the medians around the line."""


class Outcome(StrEnum):
    """How a request ended: `FAILED` without an answer that the server ended by itself."""

    RIGHT = "right"
    WRONG = "wrong"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a soak goes: for how many seconds the clients ask, and how many a healthy server lives, 0 for all."""

    clients: int
    seconds: float
    kill_every: float = 0

    def require_possible(self) -> None:
        """Raises UsageError where the numbers make no soak."""
        if not (1 <= self.clients <= CLIENTS and self.seconds >= 1):  # NaN is not either
            raise UsageError(f"A soak has 1 to {CLIENTS:,} clients and takes a second or more: choose other numbers.")
        if self.kill_every and not 1 <= self.kill_every < self.seconds:
            raise UsageError("--kill-every takes the seconds of a server's life, 1 or more, and fewer than the soak's.")


@dataclass(frozen=True, kw_only=True)
class Outage:
    """From a kill to the next healthy answer; `failure` says why there was none."""

    began: float
    ended: float
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a request ended.

    Attributes:
        seconds: from `at`, when it was sent, to its last byte or its failure.
        first: from then to the first token of a stream; None of what is not streamed.
        reason: what is wrong with it; empty if it is right.
    """

    at: float
    seconds: float
    first: float | None
    outcome: Outcome
    reason: str = ""

    def overlaps(self, outage: Outage) -> bool:
        """Whether a kill can be why it failed: it was waited for between the kill and the next healthy answer."""
        return self.at <= outage.ended and outage.began <= self.at + self.seconds


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The MiB of the container, and the machine's load average of one minute."""

    at: float
    memory: float
    load: float


@dataclass(kw_only=True)
class Seen:
    """Everything that was seen.

    Attributes:
        delays: how much later than wanted a thread of the clients was woken.
        cores: processor time of the clients per second.
        ended: how the server ended by itself; empty if it did not.
    """

    answers: list[Answer] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    cores: float = 0
    ended: str = ""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Quantiles and the largest of some values."""

    p50: float
    p90: float
    p99: float
    largest: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.3g} s, p90 {self.p90:.3g} s, p99 {self.p99:.3g} s, at most {self.largest:.3g} s"


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Medians of the container's MiB after the warm-up, the slope of the line through them, and its standard error."""

    first: float
    last: float
    per_minute: float
    error: float
    minutes: float


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A part of the run: latencies of the right answers that ended in it, the median first token, the median MiB."""

    at: float
    latency: Spread | None
    first_token: float | None
    memory: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The numbers of a soak.

    Attributes:
        failed: requests without a whole answer, those in a restart left out.
        failed_in_restarts: those that were waited for between a kill and the next healthy answer.
        latency: from the request to the last byte of its right answer.
        first_token: from the request to the first token, of streams.
        late: by which the clients themselves were late.
        cores: processor time of the clients per second.
        restarts: from each of the `kills` to a healthy server.
    """

    plan: Plan
    right: int
    wrong: int
    failed: int
    failed_in_restarts: int
    per_second: float
    latency: Spread | None
    first_token: Spread | None
    memory: Growth | None
    load: Spread | None
    late: Spread | None
    cores: float
    kills: tuple[float, ...]
    restarts: tuple[float, ...]
    series: tuple[Moment, ...]


@dataclass(frozen=True, kw_only=True)
class SoakReport(SmokeReport):
    """The report of a soak: one server, whose checks are the verdict."""

    soak: Measured

    @property
    def name(self) -> str:
        """`soak cpu`, or `soak cpu with kills`."""
        return f"soak {self.variant}" + (" with kills" if self.soak.plan.kill_every else "")

    @property
    def picture(self) -> str:
        """Latency and memory over time, as SVG."""
        return soak_picture.draw(self)


def judged(plan: Plan, seen: Seen) -> tuple[Measured, tuple[CheckResult, ...]]:
    """Returns the numbers of a soak, and its verdict."""
    by_outcome = {kind: [answer for answer in seen.answers if answer.outcome is kind] for kind in Outcome}
    right, wrong, lost = by_outcome.values()
    failed = [answer for answer in lost if not any(map(answer.overlaps, seen.outages))]
    seconds = max((answer.at + answer.seconds for answer in seen.answers), default=plan.seconds)
    measured = Measured(
        plan=plan,
        right=len(right),
        wrong=len(wrong),
        failed=len(failed),
        failed_in_restarts=len(lost) - len(failed),
        per_second=len(right) / seconds,
        latency=spread([answer.seconds for answer in right]),
        first_token=spread([answer.first for answer in right if answer.first is not None]),
        memory=growth(levels(plan, seen)),
        load=spread([sample.load for sample in seen.samples]),
        late=spread(seen.delays),
        cores=seen.cores,
        kills=tuple(outage.began for outage in seen.outages),
        restarts=tuple(outage.ended - outage.began for outage in seen.outages),
        series=tuple(series(seconds, right, seen.samples)),
    )
    checks = [_judge_answers(measured, wrong), _judge_failures(measured, failed, seen.ended), _judge_memory(measured)]
    if plan.kill_every:
        checks.append(_judge_restarts(measured, seen.outages))
    return measured, tuple(checks)


def spread(values: Sequence[float]) -> Spread | None:
    """Returns the quantiles of some values; None of none."""
    if not values:
        return None
    p50, p90, p99, largest = (round(float(value), 4) for value in np.quantile(values, (0.5, 0.9, 0.99, 1)))
    return Spread(p50=p50, p90=p90, p99=p99, largest=largest)


def series(seconds: float, right: Sequence[Answer], samples: Sequence[Sample]) -> list[Moment]:
    """Returns the run in `MOMENTS` equal parts; an answer belongs to the one in which it ended."""

    def part(at: float) -> int:
        return min(int(MOMENTS * at / seconds), MOMENTS - 1)

    moments = []
    for number in range(MOMENTS):
        ended = [answer for answer in right if part(answer.at + answer.seconds) == number]
        moment = Moment(
            at=round(number * seconds / MOMENTS, 1),
            latency=spread([answer.seconds for answer in ended]),
            first_token=_median([answer.first for answer in ended if answer.first is not None]),
            memory=_median([sample.memory for sample in samples if part(sample.at) == number]),
        )
        moments.append(moment)
    return moments


def levels(plan: Plan, seen: Seen) -> list[tuple[float, float]]:
    """Returns minutes and median MiB of the parts of the run that are compared.

    Of one server these are `STRETCHES` equal parts after the `WARM_UP`. Of killed ones it is the second half of each
    life that ended by a kill: a new process begins small, so only lives of one length can be compared.
    """
    if plan.kill_every:
        starts = [0.0, *(outage.ended for outage in seen.outages)]
        lives = zip(starts, (outage.began for outage in seen.outages), strict=False)
        spans = [((start + end) / 2, end) for start, end in lives]
    else:
        spans = list(itertools.pairwise(np.linspace(WARM_UP * plan.seconds, plan.seconds, STRETCHES + 1).tolist()))
    medians = [
        ((start + end) / 120, _median([sample.memory for sample in seen.samples if start <= sample.at < end]))
        for start, end in spans
    ]
    return [(minute, level) for minute, level in medians if level is not None]


def growth(medians: Sequence[tuple[float, float]]) -> Growth | None:
    """Returns the line through the medians by least squares; None of fewer than `FEWEST`.

    Medians, because a health check or a burst of requests is no growth.
    """
    if len(medians) < FEWEST:
        return None
    minutes, level = np.array(medians).T
    centred = minutes - minutes.mean()
    slope = (centred * level).sum() / (centred**2).sum()
    off = level - level.mean() - slope * centred
    error = np.sqrt((off**2).sum() / (len(level) - 2) / (centred**2).sum())
    first, last, slope, error = (round(float(value), 3) for value in (level[0], level[-1], slope, error))
    return Growth(first=first, last=last, per_minute=slope, error=error, minutes=float(minutes[-1] - minutes[0]))


def _median(values: Sequence[float]) -> float | None:
    return round(float(np.median(values)), 3) if values else None


def _judge_answers(measured: Measured, wrong: Sequence[Answer]) -> CheckResult:
    total = measured.right + measured.wrong
    if wrong or not total:
        return _failed(Check.ANSWERS, f"{measured.wrong:,} of {total:,} answers are wrong", wrong)
    parts = (
        f"All {total:,} answers are right, token by token; {measured.per_second:.1f} a second",
        f"latency {measured.latency}",
        f"first token {measured.first_token}",
        f"the clients took {measured.cores:.2f} cores, and were late by {measured.late}",
        f"load average {measured.load.p50 if measured.load else math.nan:.1f}",
    )
    return _result(Check.ANSWERS, "; ".join(parts))


def _judge_failures(measured: Measured, failed: Sequence[Answer], ended: str) -> CheckResult:
    in_restarts = f"; {measured.failed_in_restarts:,} in a restart" if measured.plan.kill_every else ""
    if ended:
        return _result(Check.FAILURES, f"{ended} {len(failed):,} requests failed{in_restarts}.", ok=False)
    if failed:
        return _failed(Check.FAILURES, f"{len(failed):,} requests failed{in_restarts}", failed)
    return _result(Check.FAILURES, f"No request failed while the server was up{in_restarts}.")


def _judge_memory(measured: Measured) -> CheckResult:
    seen = measured.memory
    if seen is None:
        why = "Too few measurements to judge the memory: a longer run has more."
        return CheckResult(name=Check.MEMORY, status=Status.SKIP, seen=why, seconds=0)
    rise, noise = seen.per_minute * seen.minutes, SIGMAS * seen.error * seen.minutes
    what = (
        f"{seen.first:.1f} MiB after the warm-up, {seen.last:.1f} MiB at the end: {seen.per_minute:+.2f} MiB a minute "
        f"(standard error {seen.error:.2f}), which is {rise:+.1f} MiB, and {RISE + noise:.1f} is allowed."
    )
    return _result(Check.MEMORY, what, ok=rise - noise <= RISE)


def _judge_restarts(measured: Measured, outages: Sequence[Outage]) -> CheckResult:
    failures = [outage.failure for outage in outages if outage.failure]
    if failures or not outages:
        seen = f"After kill {len(outages)} the server did not come back." if failures else "The server was not killed."
        return _result(Check.RESTARTS, seen, ok=False, detail="\n".join(failures))
    return _result(Check.RESTARTS, f"Kills: {len(outages)}; healthy again after {spread(measured.restarts)}.")


def _result(check: Check, seen: str, *, ok: bool = True, detail: str = "") -> CheckResult:
    return CheckResult(name=check, status=Status.PASS if ok else Status.FAIL, seen=seen, seconds=0, detail=detail)


def _failed(check: Check, what: str, answers: Sequence[Answer]) -> CheckResult:
    """Returns a failure with the first reason, and the others that differ."""
    reasons = list(dict.fromkeys(answer.reason for answer in answers))
    seen = f"{what}, such as: {reasons[0]}" if reasons else f"{what}."
    return _result(check, seen, ok=False, detail="\n".join(reasons[:20]))
