"""The record of a release, `release.json`: computed from git and the registry alone, so it can be recreated any time.

`release.schema.json` in the directory above describes the file; it stays there because releases name its URL. The
record shows the present state: a release that was finished, promoted or rolled back since has another record.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images import labels, versions
from base_images.adapters import files, repository
from base_images.adapters.manifest import Manifest, OddDocumentError, parse_object
from base_images.adapters.registry import Repository
from base_images.adapters.repository import Commits
from base_images.errors import RegistryError, RepositoryError, UsageError
from base_images.labels import Label
from base_images.recipes import dockerfile
from base_images.release import evidence, promote
from base_images.release.evidence import Evidence
from base_images.release.promote import Candidate, Move
from base_images.settings import Settings
from base_images.smoke.report import Device
from base_images.variants import Variant
from base_images.versions import Version

FILE = "release.json"
SCHEMA = Path(__file__).parents[1] / "release.schema.json"

SUBJECTS = 50
"""How many commits since the previous release are listed."""


class Status(StrEnum):
    """State of a variant of the release."""

    LATEST = "latest"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    PUBLISHED = "published"
    INCOMPLETE = "incomplete"
    MISSING = "missing"
    UNREADABLE = "unreadable"


_PINNED = re.compile(r"([^@\s]+)@(sha256:[0-9a-f]{64})")

WERE_LATEST = frozenset({Status.LATEST, Status.PROMOTED, Status.ROLLED_BACK})


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """The pin of the released commit."""

    repository: str
    tag: str
    release: str | None = None
    commit: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """What git says of a release.

    Attributes:
        commit: the commit of its tag.
        previous: the newest older release in this clone; None where there is none.
        changes: the commits since `previous`; None without one, or where this clone lacks its commit.
    """

    version: Version
    commit: str
    llama_cpp: LlamaCpp
    previous: Version | None
    changes: Commits | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """One platform's image in the registry.

    Attributes:
        size: bytes to download.
        arguments: the build arguments, from the image's labels.
        previous_size: of the previous release's image; None where there is none that can be read.
    """

    candidate: Candidate
    size: int
    arguments: Mapping[str, str]
    previous_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the registry has of one variant of a release.

    Attributes:
        digest: of the tag `<variant>-<version>`; None when there is no such tag.
        latest: the digest of the tag `latest-<variant>`; None likewise.
        tags: the registry's tags that belong to this release.
        moves: every recorded move of `latest-<variant>`; the last one is in effect.
        images: one per platform; where `digest` is None they are pushed but not merged.
        problem: why the registry's entries cannot be read, a sentence; empty when they can.
    """

    variant: Variant
    digest: str | None = None
    latest: str | None = None
    tags: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    images: tuple[Found, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ReportRecord:
    """A report attached to an image; `digest` is the artifact's, `file` the name it is published under."""

    kind: str
    ok: bool
    made: str
    digest: str
    file: str


@dataclass(frozen=True, kw_only=True)
class PlatformRecord:
    """One platform's image; a field is None where the labels, or the previous release, lack it."""

    platform: str
    digest: str
    size: int
    previous_size: int | None
    base_name: str | None
    base_digest: str | None
    glibc: str | None
    toolkit: dict[str, str]
    arguments: dict[str, str]
    smoke_tested_on: Device | None
    reports: tuple[ReportRecord, ...]

    @property
    def contract(self) -> bool | None:
        """Whether the image passed the contract; None without a report."""
        return next((report.ok for report in self.reports if report.kind == evidence.Kind.CONTRACT), None)

    @property
    def reproducible(self) -> bool | None:
        """Whether a second build gave the same files and layers; None without a report."""
        return next((report.ok for report in self.reports if report.kind == evidence.Kind.REPRODUCIBLE), None)

    @property
    def smoke(self) -> bool | None:
        """Whether the image passed every smoke test; None without a report."""
        found = [report.ok for report in self.reports if report.kind in evidence.KIND_OF_DEVICE.values()]
        return all(found) if found else None


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """One variant of the release, in any state.

    Attributes:
        reasons: sentences that say why it is not latest, or should not be; empty when nothing is wrong.
        image: the reference by tag, whether or not it exists.
        device_waiver: why it became latest without a smoke test on its device; None when that did not happen.
    """

    name: str
    title: str
    acceleration: str
    status: Status
    reasons: tuple[str, ...]
    image: str
    digest: str | None
    tags: tuple[str, ...]
    device_waiver: str | None
    missing_platforms: tuple[str, ...]
    platforms: tuple[PlatformRecord, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A release.

    Attributes:
        made: when the registry was read: RFC 3339, UTC.
        bases: the digests of each base image that the images were built on; one, if all jobs took the same.
    """

    version: str
    git_tag: str
    commit: str
    registry: str
    made: str
    llama_cpp: LlamaCpp
    previous: str | None
    changes: Commits | None
    bases: Mapping[str, tuple[str, ...]]
    variants: tuple[VariantRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the record for JSON, as the schema describes it."""
        return {"$schema": json.loads(SCHEMA.read_text(encoding="utf-8"))["$id"], **asdict(self)}


# Reading git and the registry.


def released(clone: repository.Clone, version: Version) -> Released:
    """Returns what git says of a released version.

    Raises:
        UsageError: this clone has no tag of that version.
        RepositoryError: its commit has no llama.cpp pin.
    """
    tags = repository.release_tags(clone)
    tag = tags.get(version.git_tag)
    if tag is None:
        raise UsageError(
            f"{version} is not a release in this clone, which has no tag {version.git_tag}: `git fetch --tags`, or "
            "name another with --version."
        )
    parsed = ((versions.parse_git_tag(name), found) for name, found in tags.items())
    known = {release: found for release, found in parsed if release and not release.dirty}
    previous = max((release for release in known if release < version), default=None)
    since = known[previous].commit if previous else None
    return Released(
        version=version,
        commit=tag.commit,
        llama_cpp=_pin(clone, tag.commit),
        previous=previous,
        changes=repository.commits(clone, tag.commit, since=since, most=SUBJECTS) if since else None,
    )


def _pin(clone: repository.Clone, commit: str) -> LlamaCpp:
    try:
        text = repository.texts(clone, commit, "pyproject.toml")["pyproject.toml"]
        pin = tomllib.loads(text)["tool"]["base-images"]["llama-cpp"]
        # Older commits have no such key.
        release = pin.get("release") or None
        return LlamaCpp(repository=pin["repository"], tag=pin["tag"], release=release, commit=pin["commit"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise RepositoryError(
            f"pyproject.toml at {commit[:9]} has no llama.cpp pin ({error}): it is not a release of base images."
        ) from error


def look(
    where: Repository, variants: Iterable[Variant], version: Version, previous: Version | None = None
) -> list[Seen]:
    """Returns what the registry has of each variant; an unreadable variant does not hide the others.

    `previous` is the release whose sizes these images are compared with.

    Raises:
        RegistryError: the registry does not answer.
    """
    tags = where.tags()
    return [_look(where, variant, version, previous, tags) for variant in variants]


def _look(where: Repository, variant: Variant, version: Version, previous: Version | None, tags: Sequence[str]) -> Seen:
    tag = versions.image_tag(variant.name, version)
    anchors = [versions.platform_tag(variant.name, version, platform.architecture) for platform in variant.platforms]
    try:
        top = where.manifest(tag)
        images: dict[str, Manifest] = {}
        for reference in [top.digest] if top else anchors:
            images |= where.platform_manifests(reference)
        sizes = _sizes(where, versions.image_tag(variant.name, previous)) if images and previous else {}
        return Seen(
            variant=variant,
            digest=top.digest if top else None,
            latest=where.digest(versions.latest_tag(variant.name)),
            tags=tuple(name for name in (tag, *anchors) if name in tags),
            moves=tuple(promote.moves(tags, variant.name)),
            images=tuple(
                _found(where, platform, manifest, sizes.get(platform)) for platform, manifest in images.items()
            ),
        )
    except RegistryError as error:
        return Seen(variant=variant, problem=str(error))
    except OddDocumentError as error:
        problem = (
            f"{where.name}:{tag} is not an image that this version can read (a label: {error}): find out who pushed it."
        )
        return Seen(variant=variant, problem=problem)


def _sizes(where: Repository, tag: str) -> dict[str, int]:
    """Returns the bytes to download for each platform of another release; empty when it cannot be read."""
    try:
        return {platform: manifest.layers_size for platform, manifest in where.platform_manifests(tag).items()}
    except RegistryError:
        return {}


def _found(where: Repository, platform: str, manifest: Manifest, previous_size: int | None) -> Found:
    candidate = promote.candidate(where, platform, manifest)
    arguments = parse_object(candidate.labels.get(Label.BUILD_ARGUMENTS, "{}").encode())
    return Found(
        candidate=candidate,
        size=manifest.layers_size,
        previous_size=previous_size,
        arguments={name: str(value) for name, value in arguments.items()},
    )


# Making the record.


def record(release: Released, seen: Iterable[Seen], settings: Settings, *, now: datetime) -> Record:
    """Returns the record of a release."""
    seen = tuple(seen)
    return Record(
        version=str(release.version),
        git_tag=release.version.git_tag,
        commit=release.commit,
        registry=settings.registry,
        made=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        llama_cpp=release.llama_cpp,
        previous=str(release.previous) if release.previous else None,
        changes=release.changes,
        bases=_bases(image for observed in seen for image in observed.images),
        variants=tuple(_variant(release, observed, settings.registry) for observed in seen),
    )


def _bases(images: Iterable[Found]) -> dict[str, tuple[str, ...]]:
    found: dict[str, set[str]] = {}
    for image in images:
        for name, value in image.arguments.items():
            if name.endswith(dockerfile.BASE_SUFFIX) and (match := _PINNED.fullmatch(value)):
                found.setdefault(match[1], set()).add(match[2])
    return {name: tuple(sorted(digests)) for name, digests in sorted(found.items())}


def _variant(release: Released, seen: Seen, registry: str) -> VariantRecord:
    variant = seen.variant
    tag = versions.image_tag(variant.name, release.version)
    status = _status(release.version, seen)
    platforms = tuple(_platform(variant, image) for image in seen.images)
    there = {image.platform for image in platforms}
    without_device = any(image.smoke_tested_on is Device.NONE for image in platforms)
    waived = variant.device is not None and without_device and status in WERE_LATEST
    latest = versions.latest_tag(variant.name)
    return VariantRecord(
        name=variant.name,
        title=variant.title,
        acceleration=variant.acceleration,
        status=status,
        reasons=tuple(_reasons(release, seen, status, registry)),
        image=f"{registry}:{tag}",
        digest=seen.digest,
        tags=(*seen.tags, latest) if status is Status.LATEST else seen.tags,
        device_waiver=(variant.device_waiver or None) if waived else None,
        missing_platforms=()
        if status is Status.UNREADABLE
        else tuple(platform.docker for platform in variant.platforms if platform.docker not in there),
        platforms=platforms,
    )


def _status(version: Version, seen: Seen) -> Status:
    numbers = [move.number for move in seen.moves if move.version == version]
    if seen.problem:
        return Status.UNREADABLE
    if not seen.images:
        return Status.MISSING
    if seen.digest is None:
        return Status.INCOMPLETE
    if seen.digest == seen.latest:
        return Status.LATEST
    if numbers and seen.moves[-1].version != version:
        # A rollback to a newer version does not undo this one's promotion: it was superseded before.
        back = (move for move in seen.moves if move.rollback and move.version < version)
        return Status.ROLLED_BACK if any(move.number >= max(numbers) for move in back) else Status.PROMOTED
    there = {image.candidate.platform for image in seen.images}
    complete = {platform.docker for platform in seen.variant.platforms} <= there
    return Status.PUBLISHED if complete else Status.INCOMPLETE


def _reasons(release: Released, seen: Seen, status: Status, registry: str) -> list[str]:
    if status is Status.UNREADABLE:
        return [seen.problem]
    variant, version = seen.variant, release.version
    candidates = {image.candidate.platform: image.candidate for image in seen.images}
    reasons = promote.refusals(variant, version, release.commit, candidates, repository=registry)
    again = f"`invoke promote --version {version} --variant {variant.name}`"
    last = seen.moves[-1].version if seen.moves else None
    if status is Status.ROLLED_BACK:
        reasons.append(f"it was latest, and was rolled back: {last} was made latest since.")
    elif status is Status.INCOMPLETE and not reasons:
        reasons.append(f"its platforms were not made one image: run `invoke publish --variant {variant.name}`.")
    elif status is Status.PUBLISHED and last == version:
        reasons.append(f"its promotion was cut off: run {again}.")
    elif status is Status.PUBLISHED and not reasons:
        newer = last is not None and last > version
        reasons.append(f"{last} is latest and newer." if newer else f"it has not been promoted yet: run {again}.")
    return reasons


def _platform(variant: Variant, found: Found) -> PlatformRecord:
    candidate = found.candidate
    return PlatformRecord(
        platform=candidate.platform,
        digest=candidate.digest,
        size=found.size,
        previous_size=found.previous_size,
        base_name=candidate.labels.get(Label.BASE_NAME) or None,
        base_digest=candidate.labels.get(Label.BASE_DIGEST) or None,
        glibc=candidate.labels.get(Label.GLIBC) or None,
        toolkit=labels.toolkit(candidate.labels),
        arguments=dict(found.arguments),
        smoke_tested_on=promote.smoke_level(candidate.reports),
        reports=tuple(
            ReportRecord(
                kind=kind.value,
                ok=attached.evidence.passed,
                made=attached.evidence.made,
                digest=attached.digest,
                file=_file(kind, variant, candidate),
            )
            for kind, attached in candidate.reports.items()
        ),
    )


def _file(kind: evidence.Kind, variant: Variant, candidate: Candidate) -> str:
    """Names a report after the variant that has it, not the one that the report names: so names are unique."""
    return f"{kind}-{variant.name}-{candidate.platform.rpartition('/')[2]}{evidence.FILE_SUFFIX}"


# Writing files.


def write(told: Record, seen: Iterable[Seen], directory: Path) -> list[Path]:
    """Writes `release.json` and every attached report into a directory, and returns their paths.

    Raises:
        UsageError: the directory has reports of another release, or cannot be written.
    """
    reports: dict[str, Evidence] = {
        _file(kind, observed.variant, image.candidate): attached.evidence
        for observed in seen
        for image in observed.images
        for kind, attached in image.candidate.reports.items()
    }
    # Everything in the directory is published with the release.
    foreign = sorted(path.name for path in directory.glob(f"*{evidence.FILE_SUFFIX}") if path.name not in reports)
    if foreign:
        raise UsageError(
            f"{directory} has {foreign[0]}, which is not a report of {told.version}: name another directory, or remove "
            "what is there."
        )
    written = {directory / name: asdict(report) for name, report in reports.items()}
    written[directory / FILE] = told.as_dict()
    for path, value in written.items():
        files.write_json(path, value)
    return list(written)
