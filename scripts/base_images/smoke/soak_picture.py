"""The picture of a soak, as SVG: latency and memory over time, and the kills."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from base_images.untrusted import printable

if TYPE_CHECKING:
    from base_images.smoke.soak_report import Measured, Moment, SoakReport

WIDTH, HEIGHT = 960, 620
LEFT, RIGHT = 70, 940
PANELS = ((110, 330), (390, 560))
"""Top and bottom of the panels of latency and memory."""

TICKS = 5
"""At most, beside 0."""

Line = tuple[str, str, Callable[["Moment"], float | None]]

LATENCY: Sequence[Line] = (
    ("p99", "#b3231c", lambda moment: moment.latency.p99 if moment.latency else None),
    ("p90", "#c77f1a", lambda moment: moment.latency.p90 if moment.latency else None),
    ("p50", "#2f5f9e", lambda moment: moment.latency.p50 if moment.latency else None),
    ("first token, p50", "#17693a", lambda moment: moment.first_token),
)
MEMORY: Sequence[Line] = (("memory of the container", "#2f5f9e", lambda moment: moment.memory),)


def draw(report: SoakReport) -> str:
    """Returns the picture; it is complete by itself, in a page or as a file."""
    seen = report.soak
    plan = seen.plan
    kills = f", killed every {plan.kill_every:g} s" if plan.kill_every else ""
    count = f"{seen.right:,} right answers, {seen.wrong:,} wrong, {seen.failed:,} failed requests"
    in_restarts = f", {seen.failed_in_restarts:,} in restarts" if plan.kill_every else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 32, f"{report.name}: {plan.clients} clients, {plan.seconds / 60:g} min{kills}", size=20),
        _text(LEFT, 56, f"{count}{in_restarts}; {seen.per_second:.1f} answers a second; {report.started}"),
        *_panel(seen, "latency of right answers, by when they ended, in s", LATENCY, *PANELS[0]),
        *_panel(seen, "memory, in MiB", MEMORY, *PANELS[1]),
        _text(RIGHT, HEIGHT - 20, "minutes", anchor="end"),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _panel(seen: Measured, title: str, lines: Sequence[Line], top: int, bottom: int) -> list[str]:
    values = [[(moment.at, line(moment)) for moment in seen.series] for _, _, line in lines]
    largest = max((value for points in values for _, value in points if value is not None), default=0) or 1
    end = max((moment.at for moment in seen.series), default=0) or 1

    def x(at: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * min(1, at / end), 1)

    def y(value: float) -> float:
        return round(bottom - (bottom - top) * value / (1.05 * largest), 1)

    parts = [_text(LEFT, top - 12, title)]
    for value in _ticks(largest):
        parts.append(_stroke(LEFT, y(value), RIGHT, y(value), "#d5dae0"))
        parts.append(_text(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    parts += [_text(x(60 * at), bottom + 18, f"{at:g}", anchor="middle") for at in _ticks(end / 60)]
    parts += [_stroke(x(at), top, x(at), bottom, "#8e99a5", 'stroke-dasharray="2 3"') for at in seen.kills]
    for number, ((name, colour, _), points) in enumerate(zip(lines, values, strict=True)):
        drawn = " ".join(f"{x(at)},{y(value)}" for at, value in points if value is not None)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(RIGHT - 60 * number, top - 12, name, anchor="end", colour=colour))
    return parts


def _ticks(largest: float) -> list[float]:
    """Returns up to six round numbers from 0 to the largest."""
    power = 10.0 ** math.floor(math.log10(largest))
    step = next(step for step in (power * part for part in (0.2, 0.5, 1.0, 2.0)) if largest / step < TICKS + 1)
    return [round(step * number, 9) for number in range(int(largest / step) + 1)]


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" {more}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, colour: str = "#1c2127") -> str:
    what = escape(printable(text))
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{what}</text>'
