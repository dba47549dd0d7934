"""Other people's text in Markdown: escaped, or as code."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from base_images.untrusted import printable

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$#]")
"""What could begin markup (CommonMark 0.31, and GitHub's tables, strike-through, mathematics)."""

_REPLACED_LATER = re.compile(r"@(?=\w)|:(?=[\w+-]+:)(?!\d\d:)")
"""Mentions and emoji, which GitHub replaces in rendered Markdown whatever was escaped; a comment splits them.

Two digits between colons are a time: no emoji has such a name.
"""


def text(value: str, *, in_table: bool = True) -> str:
    """Returns a value escaped as one line, unless told for a table too; text between backquotes becomes code.

    Code cannot hold markup, so the value may be anybody's.
    """
    parts = re.split(r"`([^`]+)`", " ".join(printable(value).split()))
    return "".join(code(part, in_table=in_table) if number % 2 else _escaped(part) for number, part in enumerate(parts))


def _escaped(value: str) -> str:
    return _REPLACED_LATER.sub(r"\g<0><!-- -->", _SPECIAL.sub(r"\\\g<0>", value))


def code(value: str, *, in_table: bool = False) -> str:
    """Returns a value as code on one line, whatever backquotes it has; GitHub's tables need `|` escaped in code too."""
    line = " ".join(printable(value).split())
    if not line:
        return ""
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
    """Returns the lines, which are Markdown, as a list below a title in bold, which is text; none without lines."""
    listed = [f"- {line}" for line in lines]
    return [f"**{text(title)}**", "", *listed, ""] if listed else []
