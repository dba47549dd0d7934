"""Status of each variant in the registry: latest, newest, and whether one lags behind the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from base_images import versions
from base_images.adapters.registry import BusyError, Repository
from base_images.errors import RegistryError
from base_images.labels import Label
from base_images.release import promote
from base_images.variants import Variant
from base_images.versions import Version

_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
"""A digest: the part that a table shows, and the rest. JSON has all of it."""

_HOUR = 3600
_DAY = 24 * _HOUR


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """The image of a tag, with facts from its labels; a fact is empty where the label is missing.

    Attributes:
        llama_cpp: the tag of its llama.cpp.
        created: RFC 3339, UTC.
    """

    tag: str
    digest: str
    version: str
    llama_cpp: str
    created: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """One variant in the registry.

    Attributes:
        latest: the image of `latest-<variant>`; None when there is no such tag.
        newest: the newest published version; None when there is none.
        before: what was latest before, for a rollback: a version, or the digest of the image from before the first
            promotion; empty for none.
        notes: a sentence for each thing that a user may want to act on.
        problem: why the registry's entries cannot be read, a sentence; empty when they can. Then nothing else is known.
    """

    variant: str
    latest: Tagged | None
    newest: Tagged | None
    before: str
    notes: tuple[str, ...]
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return asdict(self)


def look(repository: Repository, variants: Iterable[Variant], released: Version | None) -> list[Published]:
    """Returns what the registry has of each variant; one that cannot be read does not hide the others.

    `released` is the newest released version in this clone; None when there is none.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    tags = repository.tags()

    def look_at(variant: Variant) -> Published:
        try:
            return _look(repository, variant, tags, released)
        except BusyError:  # the others would wait in vain
            raise
        except RegistryError as error:
            return Published(variant=variant.name, latest=None, newest=None, before="", notes=(), problem=str(error))

    return [look_at(variant) for variant in variants]


def age(created: str, now: datetime) -> str:
    """Returns the age of a timestamp as text, such as `3 days`."""
    try:
        seconds = (now - datetime.fromisoformat(created)).total_seconds()
    except (ValueError, TypeError):
        return "unknown"
    if seconds < 0:
        return "in the future: one of the clocks is wrong"
    number, unit = (seconds // _DAY, "day") if seconds >= _DAY else (seconds // _HOUR, "hour")
    return f"{number:.0f} {unit}{'' if number == 1 else 's'}"


def _look(repository: Repository, variant: Variant, tags: Sequence[str], released: Version | None) -> Published:
    known = [
        version
        for tag in tags
        if (parsed := versions.parse_image_tag(tag))
        for name, version in [parsed]
        if name == variant.name
    ]
    newest_version = max(known, default=None)
    moves = promote.moves(tags, variant.name)
    before = [move.version for move in moves if move.version != moves[-1].version]
    latest = _tagged(repository, versions.latest_tag(variant.name))
    newest = _tagged(repository, versions.image_tag(variant.name, newest_version)) if newest_version else None
    return Published(
        variant=variant.name,
        latest=latest,
        newest=newest,
        before=str(before[-1]) if before else "",
        notes=tuple(_notes(repository, moves, latest, newest, released)),
    )


def _notes(
    repository: Repository,
    moves: Sequence[promote.Move],
    latest: Tagged | None,
    newest: Tagged | None,
    released: Version | None,
) -> Iterable[str]:
    if newest is None:
        yield "not published yet"
    elif released and (version := versions.find(newest.version)) and version < released:
        yield f"lags: {released} is released and not published"
    if latest is None:
        if newest:
            yield "published and never promoted"
        return
    made = moves[-1] if moves and moves[-1].number else None
    if made and latest.digest != promote.recorded_digest(repository, made):
        yield f"{latest.tag} is not {made.version}, which was made latest: run that promote or rollback again"
    elif made and made.rollback:
        yield f"rolled back to {made.version}"
    elif newest and newest.digest != latest.digest:
        yield f"lags: {newest.version} is published and not promoted"


def _tagged(repository: Repository, tag: str) -> Tagged | None:
    digest = repository.digest(tag)
    if digest is None:
        return None
    try:
        images = repository.platform_manifests(digest)
        labels = repository.labels(next(iter(images.values()))) if images else {}
    except BusyError:
        raise
    except RegistryError as error:
        raise RegistryError(f"{tag} cannot be read: {error}") from error
    return Tagged(
        tag=tag,
        digest=digest,
        version=labels.get(Label.VERSION, ""),
        llama_cpp=labels.get(Label.LLAMA_CPP_TAG, ""),
        created=labels.get(Label.CREATED, ""),
    )


def rows(published: Iterable[Published], now: datetime) -> list[tuple[str, ...]]:
    """Returns a table's rows: variant, tag, version, llama.cpp, age, digest, notes."""
    found: list[tuple[str, ...]] = []
    for variant in published:
        notes = [*variant.notes, *([f"latest before: {variant.before}"] if variant.before else [])]
        newest = variant.newest if variant.newest != variant.latest else None
        for number, tagged in enumerate(filter(None, (variant.latest, newest))):
            found.append(
                (
                    variant.variant,
                    tagged.tag,
                    tagged.version or "unknown",
                    tagged.llama_cpp or "unknown",
                    age(tagged.created, now),
                    _short(tagged.digest),
                    _short("\n".join(notes)) if number == 0 else "",
                )
            )
        if variant.latest is None and variant.newest is None:
            found.append((variant.variant, "-", "-", "-", "-", "-", variant.problem or "\n".join(notes)))
    return found


def _short(text: str) -> str:
    return _DIGEST.sub(r"\1", text)
