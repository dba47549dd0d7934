"""The status page: what is latest of each variant, what proves it, who moved it and when; `status.json` has the same.

All of it is from the registry and this clone. The template `status.html.jinja` is in this directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from base_images import variants
from base_images.adapters import files, repository
from base_images.adapters.registry import BusyError, Repository
from base_images.errors import BaseImagesError
from base_images.release import promote, record, signatures, status
from base_images.release.promote import Recorded
from base_images.release.record import Seen, VariantRecord
from base_images.release.signatures import Signer
from base_images.release.status import Published
from base_images.settings import Settings
from base_images.smoke import html
from base_images.smoke.report import Check
from base_images.variants import Variant
from base_images.versions import Version

TEMPLATE = "status.html.jinja"

_FIRST_DEVICE = re.compile(r"\w+0: (.+) \(\d+ MiB")
"""What `llama-server --list-devices` prints of a device: `CUDA0: NVIDIA H200 (143155 MiB, 142017 MiB free)`."""


@dataclass(frozen=True, kw_only=True)
class VariantStatus:
    """One variant on the page.

    Attributes:
        git_tag: of the release that is latest; empty where that is no release that this clone knows.
        release: that release's entry in `release.json`; None likewise.
        devices: the devices that its reports name, by platform.
        signer: the identity that `promote` required of its signature; empty where none are made.
        moves: the recorded ones, the newest first.
        problem: why something is missing here, a sentence; empty where nothing is.
    """

    title: str
    published: Published
    git_tag: str
    release: VariantRecord | None
    devices: Mapping[str, str]
    signer: str
    moves: tuple[Recorded, ...]
    problem: str


@dataclass(frozen=True, kw_only=True)
class StatusPage:
    """What the page shows; `made` is when the registry was read, RFC 3339, UTC."""

    registry: str
    url: str
    made: str
    variants: tuple[VariantStatus, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)


def look(
    where: Repository, chosen: Sequence[Variant], clone: repository.Clone, settings: Settings, *, now: datetime
) -> StatusPage:
    """Returns the status of each variant; one that cannot be read does not hide the others.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    tags = where.tags()
    newest = repository.releases(clone).newest
    return StatusPage(
        registry=where.name,
        url=settings.url,
        made=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        variants=tuple(
            _variant(where, variant, tags, published, clone, settings, now)
            for variant, published in zip(chosen, status.look(where, chosen, newest), strict=True)
        ),
    )


def _variant(
    where: Repository,
    variant: Variant,
    tags: Sequence[str],
    published: Published,
    clone: repository.Clone,
    settings: Settings,
    now: datetime,
) -> VariantStatus:
    moves: list[Recorded] = []
    release, git_tag, signer, seen = None, "", "", Seen(variant=variant)
    problem = published.problem
    last = next(reversed(promote.moves(tags, variant.name)), None)
    try:
        moves = promote.history(where, tags, variant.name)
        if last and last.number and isinstance(last.version, Version):
            released = record.released(clone, last.version)
            [seen] = record.look(where, [variant], last.version)
            [release] = record.record(released, [seen], settings, now=now).variants
            git_tag = last.version.git_tag
            if signatures.exist(where.name):
                signer = Signer(url=settings.url, git_tag=git_tag, commit=released.commit).identity
    except BusyError:  # the others would wait in vain
        raise
    except BaseImagesError as error:
        problem = problem or str(error)
    return VariantStatus(
        title=variant.title,
        published=published,
        git_tag=git_tag,
        release=release,
        devices=_devices(seen),
        signer=signer,
        moves=tuple(reversed(moves)),
        problem=problem,
    )


def _devices(seen: Seen) -> dict[str, str]:
    found = {}
    for image in seen.images:
        names = {name for one in image.candidate.reports.values() for name in named_devices(one.evidence.report)}
        if names:
            found[image.candidate.platform] = ", ".join(sorted(names))
    return found


def named_devices(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the devices that a smoke test's report names; a report is from outside and may be anything."""
    try:
        checks = [check for server in report.get("servers", ()) for check in server["checks"]]
        named = [str(check["seen"]) for check in checks if check["name"] == Check.LIST_DEVICES]
    except (LookupError, TypeError):
        return
    yield from (match[1] for seen in named if (match := _FIRST_DEVICE.match(seen)))


def as_html(page: StatusPage) -> str:
    """Returns the page."""
    run = re.compile(rf"{re.escape(page.url)}/actions/runs/\d+", re.ASCII)
    return _ENVIRONMENT.get_template(TEMPLATE).render(page=page, is_run=lambda by: run.fullmatch(by) is not None)


def write(page: StatusPage, directory: Path) -> list[Path]:
    """Writes `index.html` and `status.json`, and returns their paths.

    Raises:
        UsageError: a file cannot be written.
    """
    files.write(directory / "index.html", as_html(page))
    files.write_json(directory / "status.json", page.as_dict())
    return [directory / "index.html", directory / "status.json"]


_ENVIRONMENT = html.environment(Path(__file__).parent)
_ENVIRONMENT.filters["megabytes"] = variants.megabytes
