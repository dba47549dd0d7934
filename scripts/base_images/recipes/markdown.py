"""Other people's text in Markdown: escaped, or as code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$#]")
"""What could begin markup (CommonMark 0.31, and GitHub's tables, strike-through, mathematics)."""


def text(value: str) -> str:
    """Returns a value escaped as one line, for a table too; text between backquotes becomes code.

    Code cannot hold markup, so the value may be anybody's.
    """
    parts = re.split(r"`([^`]+)`", " ".join(value.split()))
    return "".join(
        code(part, in_table=True) if number % 2 else _SPECIAL.sub(r"\\\g<0>", part) for number, part in enumerate(parts)
    )


def code(value: str, *, in_table: bool = False) -> str:
    """Returns a value as code on one line, whatever backquotes it has; GitHub's tables need `|` escaped in code too."""
    line = " ".join(value.split())
    if in_table:
        line = line.replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return f"{fence}{space}{line}{space}{fence}"


def table(rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of cells that are Markdown already; the first row is the head."""
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def bullets(title: str, lines: Iterable[str]) -> list[str]:
    """Returns the lines of a list below a title in bold; none without `lines`."""
    listed = [f"- {line}" for line in lines]
    return [f"**{title}**", "", *listed, ""] if listed else []
