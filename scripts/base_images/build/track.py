"""One build while it runs: its current step, the time left by what earlier builds took, and its log."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from base_images.adapters import buildkit, files
from base_images.progress import Progress

KEPT_RUNS = 5
"""Past builds of a variant that are kept, each with other steps cached."""

LEAST_PERCENT = 3
"""From here on, the time that a compilation has left follows from its own percentage."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A past build: how long it took, and from when to when the steps that were not cached ran, in seconds."""

    seconds: float
    steps: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The state of a build.

    Attributes:
        step: what runs, as BuildKit names it; empty between two steps.
        percent: of that step; None when it does not say.
        left: seconds to the end of the build; None when neither past builds nor the step say.
    """

    step: str = ""
    percent: int | None = None
    left: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Step:
    name: str
    began: float
    compiled: buildkit.Compiled | None = None

    @property
    def percent(self) -> int | None:
        return self.compiled.percent if self.compiled else None


class Track:
    """Follows one build by its events."""

    def __init__(self, runs: Sequence[Run] = ()) -> None:
        """`runs` are past builds of the variant, the newest last."""
        self._runs = tuple(runs)
        self._began = time.monotonic()
        self._running: dict[str, _Step] = {}
        self._ran: dict[str, tuple[float, float]] = {}
        self._cached: set[str] = set()
        self._fetching = Moment()

    def progress(self, moment: Progress) -> None:
        """Takes the progress of a base image, before the build."""
        percent = 100 * moment.done // moment.total if moment.done is not None and moment.total else None
        self._fetching = Moment() if moment.finished else Moment(step=moment.what, percent=percent)

    def begin(self) -> None:
        """The build itself begins: times count from here."""
        self._began, self._fetching = time.monotonic(), Moment()

    def event(self, event: buildkit.Event) -> None:
        """Takes an event of the build; BuildKit's internal steps are left out."""
        now = time.monotonic() - self._began
        match event:
            case buildkit.StepStarted(step=step, name=name) if not buildkit.is_internal(name):
                self._running[step] = _Step(name=name, began=now)
            case buildkit.StepLog(step=step, line=line) if step in self._running:
                percent = buildkit.compile_percentage(line)
                if percent is not None:
                    at = self._running[step]
                    known = buildkit.next_percentage(at.compiled or buildkit.Compiled(), percent)
                    self._running[step] = replace(at, compiled=known)
            case buildkit.StepFinished(step=step, name=name, cached=cached):
                ended = self._running.pop(step, None)
                if cached:
                    self._cached.add(name)
                elif ended:
                    self._ran[name] = (ended.began, now)
            case _:
                pass

    def moment(self) -> Moment:
        """Returns the state now; any thread may ask."""
        now, running = time.monotonic() - self._began, list(self._running.values())
        if not running:
            return self._fetching
        run = likely(self._runs, {*self._ran, *(step.name for step in running)}, self._cached.copy())
        step = max(running, key=lambda one: (one.percent is not None, one.began))
        return Moment(step=step.name, percent=step.percent, left=_left(run, step, now))

    def run(self) -> Run:
        """Returns what the build took, for the estimates of later ones."""
        return Run(seconds=time.monotonic() - self._began, steps=dict(self._ran))


def likely(runs: Sequence[Run], ran: Collection[str], cached: Collection[str]) -> Run | None:
    """Returns the past build that did most nearly what this one has done so far, the newest of several."""

    def mismatch(run: Run) -> int:
        return len(set(ran) - run.steps.keys()) + len(set(cached) & run.steps.keys())

    return min(reversed(runs), key=mismatch, default=None)


def _left(run: Run | None, step: _Step, now: float) -> float | None:
    elapsed = now - step.began
    began, ended = run.steps.get(step.name, (0.0, 0.0)) if run else (0.0, 0.0)
    own = max(ended - began - elapsed, 0)
    # At 100 % it still links, which can take minutes.
    if step.percent and LEAST_PERCENT <= step.percent < 100:  # noqa: PLR2004
        own = elapsed * (100 - step.percent) / step.percent
    elif not ended:
        return None
    return own + (run.seconds - ended if run and ended else 0)


def past(path: Path) -> tuple[Run, ...]:
    """Returns the builds that a file has; none where it is missing, or not of this version."""
    try:
        return tuple(
            Run(
                seconds=float(run["seconds"]),
                steps={str(name): (float(began), float(ended)) for name, (began, ended) in run["steps"].items()},
            )
            for run in json.loads(path.read_bytes())
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ()


def remember(path: Path, runs: Sequence[Run], run: Run) -> None:
    """Adds a build to the file, in the place of an older one with the same steps.

    Raises:
        UsageError: the file cannot be written.
    """
    others = [other for other in runs if other.steps.keys() != run.steps.keys()]
    files.write_json(path, [asdict(one) for one in (*others[1 - KEPT_RUNS :], run)])


class Log:
    """The complete log of a build, a line for each line of a step; steps have numbers, as several run at once."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._began = time.monotonic()
        self._numbers: dict[str, int] = {}

    def event(self, event: buildkit.Event) -> None:
        """Writes an event; on a full disk the rest of the log is missing, and the build goes on."""
        match event:
            case buildkit.StepStarted(step=step, name=text) if not buildkit.is_internal(text):
                self._numbers[step] = len(self._numbers) + 1
            case buildkit.StepLog(step=step, line=text) if step in self._numbers:
                pass
            case buildkit.StepFinished(step=step, error=error, cached=cached) if step in self._numbers:
                text = f"failed: {error}" if error else "cached" if cached else f"done in {event.seconds:.1f} s"
            case _:
                return
        elapsed = time.monotonic() - self._began
        with contextlib.suppress(OSError):
            self._stream.write(f"{elapsed:7.1f} s  #{self._numbers[step]} {text}\n")
