"""A release for people, in Markdown: the text of the release on GitHub. The text is `release.md.jinja` beside this."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from base_images import variants
from base_images.recipes import consumer
from base_images.release.record import Record, Status
from base_images.settings import Settings

FILE = "notes.md"
TEMPLATE = "release.md.jinja"

WORKFLOW = ".github/workflows/variant.yml"
"""What signs the images."""

_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$#]")
"""What could begin something else than text (CommonMark 0.31, and GitHub's tables, strike-through, mathematics)."""


def as_markdown(record: Record, settings: Settings) -> str:
    """Returns the notes of a release."""
    published = sorted((one for one in record.variants if one.digest), key=lambda one: one.status is not Status.LATEST)
    return _ENVIRONMENT.get_template(TEMPLATE).render(
        record=record,
        url=settings.url,
        project=urlsplit(settings.url).path.strip("/"),
        signer=signer(record, settings),
        example=published[0] if published else None,
        with_device=[one for one in variants.VARIANTS if one.device],
        waived={one.name for one in record.variants if one.device_waiver},
        consumer=consumer.load(),
    )


def signer(record: Record, settings: Settings) -> str:
    """Returns a regular expression for who signed a release's images, as certificates of Sigstore name a workflow.

    A workflow is named with its ref or, as `uses: $/…` may have it, with its commit: both are this release's alone.
    """
    workflow = f"{settings.url}/{WORKFLOW}".replace(".", r"\.")
    return f"^{workflow}@(refs/tags/{record.git_tag}|{record.commit})$"


def text(value: str) -> Markup:
    """Returns a value as one line of Markdown that reads as it is, also in a table; what backquotes are around is code.

    Nothing begins there in code, so it may be anybody's text.
    """
    parts = re.split(r"`([^`]+)`", " ".join(value.split()))
    escaped = [code(part) if number % 2 else _SPECIAL.sub(r"\\\g<0>", part) for number, part in enumerate(parts)]
    return Markup("".join(escaped))  # noqa: S704 - it is escaped, for Markdown


def code(value: str) -> Markup:
    """Returns a value as code of one line in Markdown, in a table."""
    line = " ".join(value.split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    space = " " if "`" in line else ""
    return Markup(f"{fence}{space}{line}{space}{fence}")  # noqa: S704 - likewise


def _passed(ok: bool | None) -> str:
    return {True: "passed", False: "failed", None: "no report"}[ok]


def _shown(value: Any) -> Any:
    """Every value that the template shows goes through here; Markup is Markdown already."""
    return value if isinstance(value, Markup) else text(str(value))


_ENVIRONMENT = Environment(  # noqa: S701 - the text is Markdown: `_shown` escapes for that
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(code=code, megabytes=variants.megabytes, passed=_passed, raw=Markup)
