"""The smoke tests' reports in docs/reports, and what they prove: docs/reports/README.md has the rule."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from base_images import settings, variants
from base_images.recipes import markdown
from base_images.smoke.report import Check, Device

DIRECTORY = settings.ROOT / "docs" / "reports"
INDEX: Mapping[str, Any] = tomllib.loads((DIRECTORY / "index.toml").read_text(encoding="utf-8"))

NEEDED = (Check.LIST_DEVICES, Check.OFFLOADED, Check.BUFFERS, Check.COMPLETION, Check.EMBEDDINGS, Check.AGREEMENT)
"""Checks without which a report proves nothing about a device, whatever else passed."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A report of a smoke test, and its entry in the index."""

    entry: Mapping[str, Any]
    report: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """The name of the tested variant."""
        return str(self.report["variant"])

    @property
    def is_hardware(self) -> bool:
        """Whether it is of a device of a host, not of one in software."""
        return bool(self.report["device"] == Device.HOST)

    @property
    def device(self) -> str:
        """The device as llama-server named it: `NVIDIA H200` of `CUDA0: NVIDIA H200 (143155 MiB, 142017 MiB free)`."""
        named = {seen for name, _, seen in self._checks if name == Check.LIST_DEVICES}
        found = {match[1] for seen in named if (match := re.match(r"\w+0: (.+) \(\d+ MiB", seen))}
        assert len(found) == 1, named
        return found.pop() if self.is_hardware else f"in software ({found.pop()})"

    @property
    def link(self) -> str:
        """The file, relative to the checkout."""
        return f"docs/reports/{self.entry['file']}"

    @property
    def verdict(self) -> str:
        """What it proves, for the README."""
        count = Counter(status for _, status, _ in self._checks)
        judged = count["pass"] + count["fail"]
        if failed := count["fail"]:
            return f"not yet, {failed} of {judged} checks failed"
        passed = {name for name, status, _ in self._checks if status == "pass"}
        if missing := [name for name in NEEDED if name not in passed]:
            return f"not yet, nothing on {', '.join(missing)}"
        return f"all {judged} checks" + (", outside a container" if self.entry["subject"] == "binary" else "")

    @property
    def _checks(self) -> list[tuple[str, str, str]]:
        return [
            (check["name"], check["status"], check["seen"])
            for server in self.report["servers"]
            for check in server["checks"]
        ]


def kept() -> list[Kept]:
    """Returns the reports in the order of the index."""
    return [
        Kept(entry=entry, report=json.loads((DIRECTORY / entry["file"]).read_text(encoding="utf-8")))
        for entry in INDEX["report"]
    ]


def newest() -> list[Kept]:
    """Returns the newest report of each variant on each device and platform, in the order of the variants."""
    last = {(found.variant, found.device, found.entry["platform"]): found for found in kept()}
    names = [variant.name for variant in variants.VARIANTS]
    return sorted(last.values(), key=lambda found: (names.index(found.variant), not found.is_hardware))


def table() -> str:
    """Returns the table of docs/reports/README.md."""
    rows = [("report", "variant", "device", "driver", "built from", "commit", "date", "result")]
    for found in kept():
        entry = found.entry
        remark = f" ({entry['remark']})" if entry["remark"] else ""
        rows.append(
            (
                f"[{entry['file']}]({entry['file']})",
                f"{found.variant}, {entry['platform']}, {entry['subject']}",
                found.device,
                entry["driver"],
                entry["build"],
                f"`{entry['commit'][:7]}`",
                entry["date"].isoformat(),
                found.verdict + remark,
            )
        )
    return markdown.table(rows)
