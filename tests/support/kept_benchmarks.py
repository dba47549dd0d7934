"""The kept results of `invoke bench` in docs/benchmarks, and the text that its README has about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from base_images import settings
from base_images.bench import report
from base_images.recipes import markdown

DIRECTORY = settings.ROOT / "docs" / "benchmarks"


def kept() -> dict[str, Mapping[str, Any]]:
    """Returns the reports by the names of their files, without the suffix, the newest first."""
    paths = sorted(DIRECTORY.glob("*.json"), reverse=True)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def text(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns what the README says about the reports."""
    return "\n".join(_section(name, found) for name, found in reports.items()) or "None yet.\n"


def _section(name: str, found: Mapping[str, Any]) -> str:
    about, machine = found["about"], found["machine"]
    return (
        f"### {name}\n\n"
        f"{about['variant']}, {about['platform']}, llama.cpp {about['llama.cpp']['tag']}, then "
        f"{about['next llama.cpp']['tag']}. {found['started'][:10]}, {machine['cores']} cores of "
        f"{machine['processor']}, {machine['engine']}. "
        f"Other work took at most {found['busy']:.0%} of the machine in the second before a measurement.\n"
        f"[Numbers]({name}.json); the page is `{name}.html`.\n\n"
        f"{markdown.table([report.COLUMNS, *report.table(found['results'])])}\n"
    )
