"""Release notes in Markdown, for the release on GitHub, from the template `release.md.jinja` beside this."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from base_images import variants
from base_images.recipes import consumer, markdown
from base_images.release import signatures
from base_images.release.record import PlatformRecord, Record, Status
from base_images.release.signatures import Signer
from base_images.settings import Settings

FILE = "notes.md"
TEMPLATE = "release.md.jinja"


def as_markdown(record: Record, settings: Settings) -> str:
    """Returns the notes of a release."""
    published = [variant for variant in record.variants if variant.digest]
    published.sort(key=lambda variant: variant.status is not Status.LATEST)
    return _ENVIRONMENT.get_template(TEMPLATE).render(
        record=record,
        url=settings.url,
        example=published[0] if published else None,
        verification=[
            signatures.as_shell(command)
            for command in signatures.commands(
                f"{record.registry}@{published[0].digest}",
                Signer(url=settings.url, git_tag=record.git_tag, commit=record.commit),
            )
        ]
        if published
        else [],
        with_device=[variant for variant in variants.VARIANTS if variant.device],
        waived={variant.name for variant in record.variants if variant.device_waiver},
        consumer=consumer.load(),
    )


def text(value: str) -> Markup:
    """Returns `markdown.text`, marked as escaped."""
    return Markup(markdown.text(value))  # noqa: S704 - it is escaped, for Markdown


def code(value: str) -> Markup:
    """Returns `markdown.code` for a table, marked as escaped."""
    return Markup(markdown.code(value, in_table=True))  # noqa: S704 - likewise


def _since(image: PlatformRecord) -> str:
    """Returns how much more or less there is to download than of the previous release; empty when it has none."""
    if image.previous_size is None:
        return ""
    more = image.size - image.previous_size
    return f"{variants.megabytes(abs(more))} {'less' if more < 0 else 'more'}" if more else "the same"


def _passed(ok: bool | None) -> str:
    return {True: "passed", False: "failed", None: "no report"}[ok]


def _shown(value: Any) -> Any:
    """Escapes every value that the template shows; Markup is Markdown already."""
    return value if isinstance(value, Markup) else text(str(value))


_ENVIRONMENT = Environment(  # noqa: S701 - the text is Markdown: `_shown` escapes for that
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters.update(code=code, megabytes=variants.megabytes, passed=_passed, since=_since, raw=Markup)
