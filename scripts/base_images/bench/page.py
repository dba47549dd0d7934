"""The report as one HTML page with its pictures: the steps of each build in time, and what the layers hold.

The template is `bench.html.jinja` in this directory. The page needs no script, no network and no other file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_images.bench import report as reports
from base_images.bench.cases import METRICS, Part, Side
from base_images.smoke.html import environment

SHORTEST = 0.1
"""Seconds of the shortest step that is drawn."""

NAMES = 38
"""Percent of a timeline's width for the names of the steps."""

FILES = 8
"""Files of a layer that are listed."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a picture; `left` and `width` are percentages of the picture's width."""

    name: str
    left: float
    width: float
    told: str


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The steps of the builds of both sides, on one scale, and the builds themselves."""

    title: str
    sides: Mapping[Side, Sequence[Bar]]
    builds: Mapping[Side, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a side and their largest files, widths on a scale of both sides."""

    side: Side
    bars: Sequence[Bar]
    files: Sequence[Bar]
    rows: Sequence[Mapping[str, Any]]


def as_html(report: Mapping[str, Any]) -> str:
    """Returns the page of a report as `report.as_json` made it."""
    page = _ENVIRONMENT.get_template("bench.html.jinja").render(
        report=report,
        columns=reports.COLUMNS,
        rows=reports.table(report["results"]),
        missed=[result["title"] for result in report["results"] if result["met"] is False],
        judged=sum(result["met"] is not None for result in report["results"]),
        timelines=timelines(report["measurements"]),
        layers=layers(report["measurements"]),
    )
    return str(page)


def timelines(measurements: Sequence[Mapping[str, Any]]) -> list[Timeline]:
    """Returns the picture of each part's builds, those of median length; without steps that were cached or short."""
    made = []
    titles = {metric.part: metric.title for metric in METRICS}
    for part, builds in reports.builds(measurements).items():
        whole = max(build["value"] for build in builds.values())
        sides = {side: tuple(_bars(build["steps"], whole)) for side, build in builds.items()}
        if any(sides.values()) and part is not Part.NOTHING:
            made.append(Timeline(title=titles[part], sides=sides, builds=builds))
    return made


def _bars(steps: Sequence[Mapping[str, Any]], whole: float) -> list[Bar]:
    room = 100 - NAMES - 6  # the rest is for the number after the bar
    return [
        Bar(
            name=step["name"],
            left=NAMES + room * step["started"] / whole,
            width=max(0.2, room * step["seconds"] / whole),
            told=f"{step['seconds']:,.1f} s",
        )
        for step in steps
        if not step["cached"] and step["seconds"] >= SHORTEST
    ]


def layers(measurements: Sequence[Mapping[str, Any]]) -> list[Layers]:
    """Returns the picture of the layers of each side; none if sizes were not measured."""
    found = {Side(one["side"]): one["said"]["of"] for one in measurements if one["metric"] == "disk"}
    whole = max((sum(layer["disk"] for layer in own) for own in found.values()), default=0)
    made = []
    for side, own in found.items():
        bars = list(_in_a_row([(layer["made_by"], layer["disk"]) for layer in own], whole))
        within = zip(bars, own, strict=True)
        files = [file for bar, layer in within for file in _in_a_row(layer["largest"], whole, bar.left)]
        made.append(Layers(side=side, bars=bars, files=files, rows=own))
    return made


def _in_a_row(sizes: Sequence[tuple[str, int]], whole: int, left: float = 0.0) -> Iterator[Bar]:
    for name, size in sizes:
        width = 100 * size / whole if whole else 0.0
        yield Bar(name=name, left=left, width=width, told=_megabytes(size))
        left += width


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


_ENVIRONMENT = environment(Path(__file__).parent)
_ENVIRONMENT.globals.update(megabytes=_megabytes, files=FILES)
