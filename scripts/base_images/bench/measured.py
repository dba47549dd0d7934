"""The measurements, kept line by line as they are made, so that an interrupted run goes on and several add up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from base_images.bench.cases import Side
from base_images.errors import UsageError

FILE = "measured.jsonl"


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a build; `started` is in seconds from the start of the first one."""

    name: str
    started: float
    seconds: float
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A value of one side in one round.

    Attributes:
        metric: the name of the `cases.Metric`.
        busy: share of the machine that was busy with other work in the second before; None if unknown.
        load: the machine's load average over a minute, at the end; None if unknown.
        at: the time of the end, ISO 8601.
        mark: the round's mark in the build cache, of a build.
        image: what was built.
        steps: of a build.
        said: further observations, such as the compiler cache's hits.
    """

    metric: str
    side: Side
    round: int
    value: float
    busy: float | None = None
    load: float | None = None
    at: str = ""
    mark: str = ""
    image: str = ""
    steps: tuple[Step, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)


class Kept:
    """The measurements in a directory, and what they are of.

    Raises:
        UsageError: they are of something else, or the file is damaged.
    """

    def __init__(self, directory: Path, about: Mapping[str, Any]) -> None:
        self.path = directory / FILE
        directory.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            self._append({"about": about})
        self.about, self.measurements = read(self.path)
        if different := sorted(key for key in about if self.about.get(key) != about[key]):
            raise UsageError(
                f"{self.path} has measurements with another {' and '.join(different)}: move them away, or choose "
                "another directory with --record."
            )

    def add(self, measurement: Measurement) -> None:
        """Keeps a measurement."""
        self._append(asdict(measurement))
        self.measurements.append(measurement)

    def of(self, metric: str, side: Side, number: int) -> list[Measurement]:
        """Returns the measurements of a side in a round."""
        return [one for one in self.measurements if (one.metric, one.side, one.round) == (metric, side, number)]

    def _append(self, value: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


def read(path: Path) -> tuple[Mapping[str, Any], list[Measurement]]:
    """Returns what the measurements of a file are of, and the measurements.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        first, *others = path.read_text(encoding="utf-8").splitlines()
        return json.loads(first)["about"], [parse(json.loads(line)) for line in others]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}): remove its last line, or move it away.") from error


def parse(value: Mapping[str, Any]) -> Measurement:
    """Returns the measurement of its JSON object."""
    steps = tuple(Step(**step) for step in value.get("steps", ()))
    return Measurement(**{**value, "side": Side(value["side"]), "steps": steps})


def busy(seconds: float = 1.0) -> float | None:
    """Returns the share of this machine's CPU time that is used, over some seconds (proc(5), /proc/stat)."""
    samples = []
    for pause in (seconds, 0):
        try:
            fields = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
        except OSError:
            return None
        samples.append((sum(fields), fields[3] + fields[4]))
        time.sleep(pause)
    (total, idle), (later, later_idle) = samples
    return round(1 - (later_idle - idle) / max(1, later - total), 3)


def load() -> float:
    """Returns the load average of this machine over a minute."""
    return round(os.getloadavg()[0], 2)


def paired(ours: Sequence[Measurement], upstream: Sequence[Measurement]) -> Iterator[tuple[float, float]]:
    """Yields the values of both sides that were measured in the same round, in the order of measurement."""
    for number in dict.fromkeys(one.round for one in ours):
        yield from zip(
            (one.value for one in ours if one.round == number),
            (one.value for one in upstream if one.round == number),
            strict=False,
        )
