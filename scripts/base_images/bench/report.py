"""The report of the measurements: both sides, their ratio with its spread, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from base_images.bench.cases import BUILDS, METRICS, Metric, Part, Side
from base_images.bench.measured import Measurement, paired

GOALS_OF = "cpu"
"""The variant that has goals."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The median and the extremes of repeated measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns that of at least one value."""
        return cls(median=statistics.median(values), low=min(values), high=max(values), count=len(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """A metric of both sides.

    Attributes:
        ratio: ours / upstream's, of the values that were measured in turn; None unless both have some.
        met: whether the goal is met; None without a goal or a value.
    """

    metric: Metric
    ours: Spread | None
    upstream: Spread | None
    ratio: Spread | None
    goal: str
    met: bool | None


def rows(variant: str, measurements: Sequence[Measurement]) -> list[Row]:
    """Returns a row for each metric that was measured."""
    made = []
    for metric in METRICS:
        ours, upstream = (
            [one for one in measurements if (one.metric, one.side) == (metric.name, side)] for side in Side
        )
        if not ours and not upstream:
            continue
        ratios = [mine / theirs for mine, theirs in paired(ours, upstream) if theirs]
        ratio = Spread.of(ratios) if ratios else None
        own, others = (Spread.of([one.value for one in side]) if side else None for side in (ours, upstream))
        goal = metric.goal if variant == GOALS_OF else None
        judged = own if goal and goal.own else ratio
        met = goal.met(judged.median) if goal and judged else None
        made.append(Row(metric=metric, ours=own, upstream=others, ratio=ratio, goal=str(goal) if goal else "", met=met))
    return made


def as_json(
    about: Mapping[str, Any], machine: Mapping[str, Any], measurements: Sequence[Measurement]
) -> dict[str, Any]:
    """Returns the report; everything that the page shows is made from it."""
    times = sorted(one.at for one in measurements)
    return {
        "about": dict(about),
        "machine": dict(machine),
        "started": times[0] if times else "",
        "ended": times[-1] if times else "",
        "busy": max((one.busy or 0 for one in measurements), default=0),
        "results": [
            {
                "metric": row.metric.name,
                "title": row.metric.title,
                "unit": row.metric.unit,
                **{
                    name: asdict(spread) if spread else None
                    for name, spread in (("ours", row.ours), ("upstream", row.upstream), ("ratio", row.ratio))
                },
                "goal": row.goal,
                "met": row.met,
            }
            for row in rows(about["variant"], measurements)
        ],
        "measurements": [_without_empty(asdict(one)) for one in measurements],
    }


def _without_empty(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value not in ("", (), {}, None)}


COLUMNS = ("what", "ours", "upstream's", "ours / upstream's", "goal", "goal is")


def table(results: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Returns the cells of the report's table, whose columns are `COLUMNS`."""
    return [
        [
            result["title"],
            shown(result["ours"], result["unit"]),
            shown(result["upstream"], result["unit"]),
            _ratio(result["ratio"]),
            result["goal"],
            "" if result["met"] is None else "met" if result["met"] else "missed",
        ]
        for result in results
    ]


def shown(spread: Mapping[str, Any] | None, unit: str) -> str:
    """Returns a value with its unit, and its extremes if it was repeated."""
    if spread is None:
        return "-"
    if unit == "bytes":
        scale, digits, name = 1e6, 1, " MB"
    else:
        scale, digits, name = 1.0, 0 if not unit or spread["median"] >= 100 else 2, f" {unit}".rstrip()  # noqa: PLR2004
    text = f"{spread['median'] / scale:,.{digits}f}{name}"
    if spread["count"] > 1 and spread["low"] != spread["high"]:
        text += f" ({spread['low'] / scale:,.{digits}f} to {spread['high'] / scale:,.{digits}f})"
    return text


def _ratio(spread: Mapping[str, Any] | None) -> str:
    if spread is None:
        return "-"
    text = f"{spread['median']:.3f}"
    return f"{text} ({spread['low']:.3f} to {spread['high']:.3f}), n={spread['count']}" if spread["count"] > 1 else text


def builds(measurements: Sequence[Mapping[str, Any]]) -> dict[Part, dict[Side, Mapping[str, Any]]]:
    """Returns the build of each part and side whose time is the median of its rounds."""
    made: dict[Part, dict[Side, Mapping[str, Any]]] = {}
    for part in BUILDS:
        for side in Side:
            found = [one for one in measurements if (one["metric"], one["side"]) == (part, side) and one.get("steps")]
            if found:
                found.sort(key=lambda one: one["value"])
                made.setdefault(part, {})[side] = found[(len(found) - 1) // 2]
    return made
