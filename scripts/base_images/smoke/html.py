"""A smoke report as one HTML page, to be read in a browser or on a phone, printed, or attached to a release.

The template is `smoke.html.jinja` in this directory. The page needs no script, no network and no other file.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from base_images import variants
from base_images.labels import Label
from base_images.smoke.report import CheckResult, Device, SmokeReport, Status, finite
from base_images.untrusted import printable

TEMPLATE = "smoke.html.jinja"

KEPT_CHARACTERS = 200_000
"""The page has so many characters of the end of each log; a llama-server at verbosity 4 writes about 50,000."""

HEADLINES = (("Version", Label.VERSION), ("llama.cpp", Label.LLAMA_CPP_TAG), ("Platform", Label.PLATFORM))
"""The labels at the top of the page."""


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """The end of a log.

    Attributes:
        left_out: the size of the part before it; empty if nothing is left out.
    """

    text: str
    left_out: str


def as_html(report: SmokeReport, *, labels: Mapping[str, str]) -> str:
    """Returns the report as an HTML page.

    Args:
        report: of the smoke test.
        labels: of the image; empty without an image.
    """
    started = dt.datetime.fromisoformat(report.started).astimezone(dt.UTC)
    page = _ENVIRONMENT.get_template(TEMPLATE).render(
        report=report,
        verdict=verdict(report),
        computed=what_computed(report),
        caution=report.device is not Device.HOST and variants.find(report.variant).device is not None,
        started=started,
        headlines=HEADLINES,
        labels=labels,
        speeds=report.speeds,
        checks=[check for server in report.servers for check in server.checks],
        failures=[
            (number, server, check)
            for number, server in enumerate(report.servers, start=1)
            for check in server.checks
            if check.status is Status.FAIL
        ],
        longest_check=max((row.seconds for row in report.rows), default=0),
        longest_server=max((server.seconds for server in report.servers), default=0),
    )
    return str(page)


def verdict(report: SmokeReport) -> str:
    """Returns the result in one or two words; a report with skipped checks alone proves nothing."""
    if report.ok:
        return "Passed"
    return "Failed" if any(row.status is Status.FAIL for row in report.rows) else "Nothing proven"


def what_computed(report: SmokeReport) -> str:
    """Returns a sentence that says whether the answers came from the accelerator."""
    access = variants.find(report.variant).device
    if access is None:
        return "This variant computes on the CPU."
    match report.device:
        case Device.HOST:
            how = f": {report.given_by}" if report.given_by else ""
            return f"The servers were given the {access.name} device of the host{how}."
        case Device.SOFTWARE:
            return f"The CPU emulated the {access.name} device: its code is proven, no hardware is."
        case Device.UNKNOWN:
            return f"The server was running already, so nothing here shows that the {access.name} device is used."
        case Device.NONE:
            return f"No device was given, so nothing here shows that the {access.name} backend computes right."


def tally(checks: Sequence[CheckResult]) -> str:
    """Returns a summary such as `12 of 14 checks passed, 1 failed, 1 skipped`."""
    count = Counter(check.status for check in checks)
    others = [(Status.FAIL, "failed"), (Status.SKIP, "skipped")]
    words = [f"{count[status]} {word}" for status, word in others if count[status]]
    return ", ".join((f"{count[Status.PASS]} of {_count(len(checks), 'check')} passed", *words))


def excerpt(log: str) -> Excerpt:
    """Returns the last `KEPT_CHARACTERS` of a log, from the start of a line if possible."""
    text = log[-KEPT_CHARACTERS:]
    if len(text) < len(log):
        text = text.partition("\n")[2] or text
    before = log[: len(log) - len(text)]
    left_out = f"{_count(before.count(chr(10)), 'line')} ({_count(len(before), 'character')})" if before else ""
    return Excerpt(text=text, left_out=left_out)


def duration(seconds: float) -> str:
    """Formats a duration, such as `1.6 s` or `3 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def amount(value: float | None) -> str:
    """Formats a measured value with its significant digits, such as `1,234` or `4.44`, or `not measured`."""
    if value is None or not math.isfinite(value):
        return "not measured"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2  # noqa: PLR2004
    return f"{value:,.{digits}f}"


def percent(value: float | None, whole: float) -> str:
    """Returns the length of a bar for CSS, as a share of `whole`; very small values stay visible."""
    length = finite(value)
    return f"{max(0.5, 100 * length / whole) if length and whole else 0:.1f}%"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _printable(value: Any) -> Any:
    """Cleans every value that the template prints, before it is escaped; Markup comes from the template itself."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return printable(value)


def environment(directory: Path) -> Environment:
    """Returns an environment for templates of HTML, which cleans and escapes every value that they print."""
    return Environment(
        loader=FileSystemLoader(directory),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


_ENVIRONMENT = environment(Path(__file__).parent)
_ENVIRONMENT.globals.update(
    Status=Status, amount=amount, count=_count, duration=duration, excerpt=excerpt, percent=percent, tally=tally
)
