"""What a release is, as `release.json` tells it: read from git and the registry, so that it can be made again any time.

`release.schema.json` in the directory above describes the file; releases name its address, so it stays there. There is
no state of its own: a release that was finished, promoted or rolled back since is told as it is now.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images import versions
from base_images.adapters import repository
from base_images.adapters.registry import Manifest, Repository
from base_images.adapters.repository import Commits
from base_images.errors import RegistryError, RepositoryError, UsageError
from base_images.labels import TOOLKIT_PREFIX, Label
from base_images.release import evidence, promote
from base_images.release.evidence import Evidence
from base_images.release.promote import Candidate, Move
from base_images.settings import Settings
from base_images.smoke import report as smoke_report
from base_images.smoke.report import Device
from base_images.variants import Variant
from base_images.versions import Version

FILE = "release.json"
SCHEMA = Path(__file__).parents[1] / "release.schema.json"

SUBJECTS = 50
"""How many of the commits since the release before are named."""


class Status(StrEnum):
    """What became of a variant."""

    LATEST = "latest"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled-back"
    PUBLISHED = "published"
    INCOMPLETE = "incomplete"
    MISSING = "missing"
    UNREADABLE = "unreadable"


WERE_LATEST = frozenset({Status.LATEST, Status.PROMOTED, Status.ROLLED_BACK})


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """The pin of the released commit."""

    repository: str
    tag: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Released:
    """What git says of a release.

    Attributes:
        commit: what its tag points at.
        previous: the newest older release that this clone knows; None where there is none.
        changes: the commits since that one; None where there is none, or where this clone does not have its commit.
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
        arguments: the build's, as the image's labels say them.
    """

    candidate: Candidate
    size: int
    arguments: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the registry has of one variant of a release.

    Attributes:
        digest: what `<variant>-<version>` points at; None when there is no such tag.
        latest: what `latest-<variant>` points at; likewise.
        tags: those of the registry that are this release's.
        moves: every recorded move of `latest-<variant>`; the last one counts.
        images: of each platform; pushed, but not made one image of yet, where `digest` is None.
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
    """A report that is attached to an image; `digest` is the artifact's, `file` the name it is published under."""

    kind: str
    ok: bool
    made: str
    digest: str
    file: str


@dataclass(frozen=True, kw_only=True)
class PlatformRecord:
    """One platform's image; None is what its labels do not say."""

    platform: str
    digest: str
    size: int
    base_name: str | None
    base_digest: str | None
    glibc: str | None
    toolkit: dict[str, str]
    arguments: dict[str, str]
    smoke_tested_on: Device | None
    reports: tuple[ReportRecord, ...]

    @property
    def contract(self) -> bool | None:
        """Whether it passed the contract; None when no report says."""
        return next((one.ok for one in self.reports if one.kind == evidence.Kind.CONTRACT), None)

    @property
    def smoke(self) -> bool | None:
        """Whether it passed every smoke test; None when no report says."""
        found = [one.ok for one in self.reports if one.kind != evidence.Kind.CONTRACT]
        return all(found) if found else None


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """One variant of the table, whatever became of it.

    Attributes:
        reasons: sentences that say why it is not latest, or should not be; empty when all is well.
        image: the reference by tag, whether or not it is there.
        device_waiver: why it became latest before a smoke test had seen its device; None when that did not happen.
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
    """A release. `made` is when it was looked at: RFC 3339, UTC."""

    version: str
    git_tag: str
    commit: str
    registry: str
    made: str
    llama_cpp: LlamaCpp
    previous: str | None
    changes: Commits | None
    variants: tuple[VariantRecord, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON, as the schema has it."""
        return {"$schema": json.loads(SCHEMA.read_text(encoding="utf-8"))["$id"], **asdict(self)}


# Looking.


def released(clone: repository.Clone, version: Version) -> Released:
    """Returns what git says of a released version.

    Raises:
        UsageError: this clone has no tag of it.
        RepositoryError: its commit says no pin.
    """
    tags = repository.release_tags(clone)
    tag = tags.get(version.git_tag)
    if tag is None:
        raise UsageError(
            f"{version} is not a release that this clone knows, which would have the tag {version.git_tag}: "
            "`git fetch --tags`, or name another with --version."
        )
    known = {found: one for name, one in tags.items() if (found := versions.parse_git_tag(name)) and not found.dirty}
    previous = max((one for one in known if one < version), default=None)
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
        text = clone.commit(commit).tree["pyproject.toml"].data_stream.read().decode()
        pin = tomllib.loads(text)["tool"]["base-images"]["llama-cpp"]
        return LlamaCpp(repository=pin["repository"], tag=pin["tag"], commit=pin["commit"])
    except (KeyError, ValueError) as error:
        raise RepositoryError(
            f"The pyproject.toml of {commit[:9]} says no llama.cpp pin ({error}): that is no release of base images."
        ) from error


def look(where: Repository, variants: Iterable[Variant], version: Version) -> list[Seen]:
    """Returns what the registry has of each variant; what cannot be read of one does not hide the others.

    Raises:
        RegistryError: the registry does not answer.
    """
    tags = where.tags()
    return [_look(where, variant, version, tags) for variant in variants]


def _look(where: Repository, variant: Variant, version: Version, tags: Sequence[str]) -> Seen:
    tag = versions.image_tag(variant.name, version)
    anchors = [versions.platform_tag(variant.name, version, one.architecture) for one in variant.platforms]
    try:
        top = where.manifest(tag)
        images: dict[str, Manifest] = {}
        for reference in [top.digest] if top else anchors:
            images |= where.platform_manifests(reference)
        return Seen(
            variant=variant,
            digest=top.digest if top else None,
            latest=where.digest(versions.latest_tag(variant.name)),
            tags=tuple(one for one in (tag, *anchors) if one in tags),
            moves=tuple(promote.moves(tags, variant.name)),
            images=tuple(_found(where, platform, manifest) for platform, manifest in images.items()),
        )
    except RegistryError as error:
        return Seen(variant=variant, problem=str(error))
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{where.name}:{tag} is no image that this version can read ({error!r}): find out who pushed it."
        return Seen(variant=variant, problem=problem)


def _found(where: Repository, platform: str, manifest: Manifest) -> Found:
    labels = where.labels(manifest)
    arguments = dict(json.loads(labels.get(Label.BUILD_ARGUMENTS, "{}")))
    reports = evidence.attached(where, manifest.digest)
    candidate = Candidate(platform=platform, digest=manifest.digest, labels=labels, reports=reports)
    return Found(
        candidate=candidate,
        size=manifest.layers_size,
        arguments={name: str(value) for name, value in arguments.items()},
    )


# Telling.


def record(release: Released, seen: Iterable[Seen], settings: Settings, *, now: datetime) -> Record:
    """Returns a release as `release.json` has it."""
    return Record(
        version=str(release.version),
        git_tag=release.version.git_tag,
        commit=release.commit,
        registry=settings.registry,
        made=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        llama_cpp=release.llama_cpp,
        previous=str(release.previous) if release.previous else None,
        changes=release.changes,
        variants=tuple(_variant(release, one, settings.registry) for one in seen),
    )


def _variant(release: Released, seen: Seen, registry: str) -> VariantRecord:
    variant = seen.variant
    tag = versions.image_tag(variant.name, release.version)
    status = _status(release.version, seen)
    platforms = tuple(_platform(variant, one) for one in seen.images)
    there = {one.platform for one in platforms}
    without_device = any(one.smoke_tested_on is Device.NONE for one in platforms)
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
        else tuple(one.docker for one in variant.platforms if one.docker not in there),
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
        # A rollback to something newer leaves nothing but what was superseded before.
        back = (one for one in seen.moves if one.rollback and one.version < version)
        return Status.ROLLED_BACK if any(one.number >= max(numbers) for one in back) else Status.PROMOTED
    there = {one.candidate.platform for one in seen.images}
    complete = {one.docker for one in seen.variant.platforms} <= there
    return Status.PUBLISHED if complete else Status.INCOMPLETE


def _reasons(release: Released, seen: Seen, status: Status, registry: str) -> list[str]:
    if status is Status.UNREADABLE:
        return [seen.problem]
    variant, version = seen.variant, release.version
    candidates = {one.candidate.platform: one.candidate for one in seen.images}
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
        reasons.append(f"{last} is latest and newer." if newer else f"nobody promoted it yet: run {again}.")
    return reasons


def _platform(variant: Variant, found: Found) -> PlatformRecord:
    one = found.candidate
    return PlatformRecord(
        platform=one.platform,
        digest=one.digest,
        size=found.size,
        base_name=one.labels.get(Label.BASE_NAME) or None,
        base_digest=one.labels.get(Label.BASE_DIGEST) or None,
        glibc=one.labels.get(Label.GLIBC) or None,
        toolkit={
            name.removeprefix(TOOLKIT_PREFIX): value
            for name, value in sorted(one.labels.items())
            if name.startswith(TOOLKIT_PREFIX)
        },
        arguments=dict(found.arguments),
        smoke_tested_on=promote.smoke_level(one.reports),
        reports=tuple(
            ReportRecord(
                kind=kind.value,
                ok=attached.evidence.ok,
                made=attached.evidence.made,
                digest=attached.digest,
                file=_file(kind, variant, one),
            )
            for kind, attached in one.reports.items()
        ),
    )


def _file(kind: evidence.Kind, variant: Variant, candidate: Candidate) -> str:
    """Of the variant that has the report, and not of the one that the report names: so no two are called the same."""
    return f"{kind}-{variant.name}-{candidate.platform.rpartition('/')[2]}{evidence.FILE_SUFFIX}"


# Keeping.


def write(told: Record, seen: Iterable[Seen], directory: Path) -> list[Path]:
    """Writes `release.json` and every attached report into a directory, and returns their paths.

    Raises:
        UsageError: the directory has reports that are not this release's, or cannot be written.
    """
    reports: dict[str, Evidence] = {
        _file(kind, one.variant, image.candidate): attached.evidence
        for one in seen
        for image in one.images
        for kind, attached in image.candidate.reports.items()
    }
    # Everything in the directory is published with the release.
    foreign = sorted(path.name for path in directory.glob(f"*{evidence.FILE_SUFFIX}") if path.name not in reports)
    if foreign:
        raise UsageError(
            f"{directory} has {foreign[0]}, which is not a report of {told.version}: name another directory, or remove "
            "what is there."
        )
    written = {directory / name: asdict(one) for name, one in reports.items()}
    written[directory / FILE] = told.as_dict()
    for path, value in written.items():
        smoke_report.write_json(value, path)
    return list(written)
