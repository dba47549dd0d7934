"""Promotion: moves `latest-<variant>`, and checks what must hold before.

A registry moves a tag atomically, but has no compare-and-swap. So every move is recorded first, under its own tag with
a sequence number, and `latest-<variant>` follows from all the records: a promotion records its move, then makes
`latest` agree with the records, and checks again. Concurrent promotions end in the same state, and the next promotion
finishes one that was killed between the two steps. One race remains: a promotion is killed during its last request, and
that request arrives after a newer promotion ended. Then `check-version` reports that `latest` is not what the records
say; running that promotion again, or a newer one, fixes it.

What was latest before the first promotion is recorded too, by its digest and as number 0, so that a rollback can return
to it; every move takes precedence over it. It must be read before the records: if those then have no move, none was
made before the read, because a move is recorded before `latest` moves.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from base_images import versions
from base_images.adapters.manifest import Manifest, OddDocumentError, parse_object
from base_images.adapters.registry import NotAnImageError, Repository
from base_images.errors import RegistryError
from base_images.labels import Label
from base_images.release import evidence, publish
from base_images.release.actions import Action, Outcome, run_url
from base_images.release.evidence import Attached, Kind
from base_images.smoke.report import Device
from base_images.variants import Variant
from base_images.versions import Foreign, Version

MOVE_TYPE = "application/vnd.bodhi.base-images.move.v1+json"

_MOVE = re.compile(
    r"move-(?P<variant>[a-z]+)-(?P<number>\d+)"
    r"-(?P<version>\d{10}(\d{2})?-[0-9a-f]{7}|sha256-[0-9a-f]{64})(?P<rollback>-rollback)?"
)
_ATTEMPTS = 5


@dataclass(frozen=True, kw_only=True)
class Move:
    """A recorded move of `latest-<variant>`; its tag has all of these fields.

    Attributes:
        number: one more than the newest move known when this one was recorded; not unique. 0 is not a move but the
            state before the first.
    """

    variant: str
    number: int
    version: Version | Foreign
    rollback: bool

    @property
    def tag(self) -> str:
        """The tag of the record."""
        moved = f"move-{self.variant}-{self.number:04d}-{self.version}{'-rollback' if self.rollback else ''}"
        return moved.replace(":", "-")  # a digest has a colon, and a tag must not


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One platform's image of a version.

    Attributes:
        reports: the evidence attached to the image.
    """

    platform: str
    digest: str
    labels: Mapping[str, str]
    reports: Mapping[Kind, Attached]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A move with what its record says; texts are empty where the record lacks them, or is gone.

    Attributes:
        digest: the image that became latest.
        before: the digest that was latest until then.
        by: the run on GitHub, by its URL, or a person's user name.
        at: RFC 3339, UTC.
    """

    number: int
    version: str
    rollback: bool
    digest: str
    before: str
    by: str
    at: str


def was_promoted(tags: Iterable[str], variant: str) -> bool:
    """Returns whether anything of a variant was ever promoted; what is latest without that is not of this project."""
    return any(move.number for move in moves(tags, variant))


def history(repository: Repository, tags: Iterable[str], variant: str) -> list[Recorded]:
    """Returns the recorded moves of a variant in the order of `moves`.

    Raises:
        RegistryError: the registry does not answer, or refuses.
    """
    found = []
    for move in moves(tags, variant):
        record = repository.manifest(move.tag)
        said: Mapping[str, Any] = {}
        with contextlib.suppress(OddDocumentError, LookupError):
            said = parse_object(repository.blob(record.document["layers"][0]["digest"])) if record else {}
        texts = {name: str(said.get(name) or "") for name in ("before", "by", "at")}
        digest = record.subject if record else ""
        found.append(
            Recorded(number=move.number, version=str(move.version), rollback=move.rollback, digest=digest, **texts)
        )
    return found


def moves(tags: Iterable[str], variant: str) -> list[Move]:
    """Returns the moves of a variant that a repository's tags record; the last one is in effect."""
    found = [
        Move(
            variant=variant,
            number=int(match["number"]),
            version=versions.parse_any(match["version"].replace("sha256-", "sha256:")),
            rollback=match["rollback"] is not None,
        )
        for tag in tags
        if (match := _MOVE.fullmatch(tag)) and match["variant"] == variant
    ]
    rolled_back = max((move.number for move in found if move.rollback), default=0)
    return sorted(found, key=lambda move: _precedence(move, rolled_back))


def _precedence(move: Move, rolled_back: int) -> tuple[int, bool, Version | Foreign, int]:
    """Sorts a rollback, a person's decision, after moves that did not know of it; then by version, not by number.

    A promotion that is recorded concurrently may have the number of a newer version's promotion that it did not see.
    """
    return min(move.number, rolled_back + 1), move.rollback, move.version, move.number


def refusals(
    variant: Variant, version: Version, commit: str, candidates: Mapping[str, Candidate], *, repository: str
) -> list[str]:
    """Returns why a version may not become latest, one sentence per reason; empty when it may.

    `commit` is that of its release tag; `candidates` are its images in the registry by platform.
    """
    if not candidates:
        return [f"{repository} has no {versions.image_tag(variant.name, version)}: publish it first."]
    reasons = []
    if lacking := [platform.docker for platform in variant.platforms if platform.docker not in candidates]:
        reasons.append(f"{', '.join(lacking)} is missing: publish it first.")
    for candidate in candidates.values():
        found = publish.differences(
            candidate.labels, variant=variant, version=version, commit=commit, target=repository
        )
        reasons += [f"{candidate.platform}: {reason}" for reason in (*found, *_unproven(variant, candidate))]
    return reasons


def _unproven(variant: Variant, candidate: Candidate) -> Iterator[str]:
    reports = candidate.reports
    for kind, attached in reports.items():
        if kind is not Kind.REPRODUCIBLE and not attached.evidence.passed:
            failed = attached.evidence.failed
            yield f"its report {kind} says that it failed{f': {failed}' if failed else '.'}"
    if Kind.CONTRACT not in reports:
        yield f"no {Kind.CONTRACT} report is attached: run `invoke check-image` with --record, and attach that."
    smokes = [kind for kind in evidence.KIND_OF_DEVICE.values() if kind in reports]
    if not smokes:
        yield "no smoke report is attached: run `invoke smoke` with --record, and attach that."
    elif variant.device and not variant.device_waiver and smokes == [Kind.SMOKE]:
        yield f"it was smoke-tested without a device, which {variant.name} may not be promoted on."


def smoke_level(reports: Mapping[Kind, Attached]) -> Device | None:
    """Returns the best device that an image was smoke-tested on; None without a smoke test."""
    levels = [
        device for device in (Device.HOST, Device.SOFTWARE, Device.NONE) if evidence.KIND_OF_DEVICE[device] in reports
    ]
    return levels[0] if levels else None


def candidate(repository: Repository, platform: str, manifest: Manifest) -> Candidate:
    """Returns the image of one platform, with its labels and reports."""
    digest = manifest.digest
    reports = evidence.attached(repository, manifest)
    return Candidate(platform=platform, digest=digest, labels=repository.labels(manifest), reports=reports)


def candidates(repository: Repository, reference: str) -> dict[str, Candidate]:
    """Returns the image of each platform behind a tag or a digest, by platform; empty when it does not exist."""
    images = repository.platform_manifests(reference)
    return {platform: candidate(repository, platform, manifest) for platform, manifest in images.items()}


def promote(
    repository: Repository,
    variant: Variant,
    version: Version,
    commit: str,
    *,
    dry_run: bool = False,
    unsigned: Callable[[str], list[str]] = lambda _digest: [],
) -> Iterator[Action]:
    """Makes a version the latest of a variant unless there are refusals, and yields the actions.

    The first promotion also records and keeps what was latest before.

    `commit` is that of its release tag. `unsigned` returns why a digest's signatures do not prove who made the image, a
    sentence each; it is called where nothing else is wrong.

    Raises:
        RegistryError: the registry refuses, or another writer keeps moving the tag.
    """
    target = f"{repository.name}:{versions.latest_tag(variant.name)}"
    there = repository.manifest(versions.latest_tag(variant.name))  # before the records: see the module's docstring
    found = moves(repository.tags(), variant.name)
    first = not any(move.number for move in found)
    last = _unrecorded(repository, variant, there) if first else found[-1]
    current = last.version if last else None
    image = repository.manifest(versions.image_tag(variant.name, version))
    checked = candidates(repository, image.digest) if image else {}
    reasons = refusals(variant, version, commit, checked, repository=repository.name)
    if not reasons and current != version:
        again = f"`invoke rollback --variant {variant.name} --to {version}`"
        if _was_left(found, version):
            reasons = [f"it was latest before and was rolled back: {again} brings it back on purpose."]
        elif current and version < current:
            reasons = [f"{current} is latest and newer: {again} goes back to a version that was latest before."]
    if not reasons and image:
        reasons = unsigned(image.digest)
    if reasons or image is None:
        yield _refused(variant, "promote", target, reasons)
        return
    if first and there and last and there.digest != image.digest and not dry_run:
        _keep(repository, last, there)
    yield from _move(repository, variant, version, image, found, rollback=False, dry_run=dry_run)


def roll_back(
    repository: Repository, variant: Variant, version: Version | Foreign, *, dry_run: bool = False
) -> Iterator[Action]:
    """Makes a version latest again that was latest before, and yields the actions.

    An image from before the first promotion need not have every platform, and can also be named by its digest.

    Raises:
        RegistryError: the registry refuses, or another writer keeps moving the tag.
    """
    target = f"{repository.name}:{versions.latest_tag(variant.name)}"
    found = moves(repository.tags(), variant.name)
    earlier = [move for move in found if move.version == version]
    if not earlier and isinstance(version, Foreign) and version.is_digest:
        earlier = [move for move in found if recorded_digest(repository, move) == version.name]
    reasons = []
    image, about = None, ""
    if not earlier:
        known = ", ".join(sorted({str(move.version) for move in found})) or "none"
        reasons = [f"{version} was never latest: a rollback can only return to {known}."]
    else:
        version = earlier[-1].version
        image = _recorded(repository, earlier[-1])
        there = _images(repository, image.digest)
        lacking = ", ".join(platform.docker for platform in variant.platforms if platform.docker not in there)
        if any(move.number == 0 for move in earlier):
            about = f" (latest before the first promotion{f'; not for {lacking}' if lacking else ''})"
        elif lacking:
            reasons = [f"{version} is not for the platforms that {variant.name} is for now."]
    if reasons or image is None:
        yield _refused(variant, "rollback", target, reasons)
        return
    yield from _move(repository, variant, version, image, found, rollback=True, dry_run=dry_run, about=about)


def recorded_digest(repository: Repository, move: Move) -> str:
    """Returns the digest of the image that a move made latest; empty when the record is gone."""
    record = repository.manifest(move.tag)
    return record.subject if record else ""


def settle(repository: Repository, variant: Variant) -> Move | None:
    """Makes `latest-<variant>` agree with the records, and returns the move in effect; None when there is none.

    Raises:
        RegistryError: another writer keeps moving the tag.
    """
    tag = versions.latest_tag(variant.name)
    for _ in range(_ATTEMPTS):
        found = moves(repository.tags(), variant.name)
        if not found:
            return None
        image = _recorded(repository, found[-1])
        if repository.digest(tag) == image.digest:
            return found[-1]
        repository.point(tag, image.content)
    raise RegistryError(f"{repository.name}:{tag} keeps being moved by somebody else: find out by whom.")


def _unrecorded(repository: Repository, variant: Variant, latest: Manifest | None) -> Move | None:
    """Returns an image that is latest without a recorded move as move number 0; None when nothing is latest.

    Its version label is not trusted: one of our versions must be published as this very image, and a predecessor's must
    not name another image. Otherwise the digest is the name.
    """
    if latest is None:
        return None
    version: Version | Foreign = Foreign(name=latest.digest)
    images = _images(repository, latest.digest)
    image = next(iter(images.values()), None)
    if image and (said := versions.parse_label(repository.labels(image).get(Label.VERSION, ""))):
        tagged = repository.digest(versions.image_tag(variant.name, said))
        if tagged == latest.digest or (tagged is None and isinstance(said, Foreign)):
            version = said
    return Move(variant=variant.name, number=0, version=version, rollback=False)


def _images(repository: Repository, digest: str) -> dict[str, Manifest]:
    """Returns the image of each platform; empty for something else, which was latest before the first promotion."""
    try:
        images = repository.platform_manifests(digest)
        for image in images.values():
            repository.labels(image)
    except NotAnImageError:
        return {}
    return images


def _keep(repository: Repository, was: Move, image: Manifest) -> None:
    """Records what was latest before the first promotion, and tags it: registries remove untagged images."""
    tag = versions.image_tag(was.variant, was.version)
    if repository.digest(tag) is None:
        repository.point(tag, image.content)
    if recorded_digest(repository, was) != image.digest:
        _record(repository, was, image, before="")


def _record(repository: Repository, move: Move, image: Manifest, *, before: str) -> None:
    record = {
        "variant": move.variant,
        "version": str(move.version),
        "rollback": move.rollback,
        "digest": image.digest,
        "before": before,
        "by": _who(),
        # Microseconds, so that concurrent writers push different blobs: docker-registry 2.8 briefly loses a blob that
        # two clients push at once.
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    manifest = evidence.store_document(repository, image, MOVE_TYPE, json.dumps(record, indent=2).encode())
    # Concurrent records of the same move differ in the last two fields alone: either may stay.
    repository.point(move.tag, manifest)


def _was_left(found: list[Move], version: Version) -> bool:
    """Whether a rollback to another version takes precedence over every move to this one."""
    numbers = [move.number for move in found if move.version == version]
    return bool(numbers) and any(
        move.rollback and move.version != version and move.number >= max(numbers) for move in found
    )


def _move(
    repository: Repository,
    variant: Variant,
    version: Version | Foreign,
    image: Manifest,
    found: list[Move],
    *,
    rollback: bool,
    dry_run: bool,
    about: str = "",
) -> Iterator[Action]:
    tag = versions.latest_tag(variant.name)
    what, target = "rollback" if rollback else "promote", f"{repository.name}:{tag}"
    action = partial(Action, variant=variant.name, what=what, target=target)
    before = repository.digest(tag) or ""
    recorded = bool(found) and found[-1].number > 0 and found[-1].version == version
    if recorded and (made := _recorded(repository, found[-1]).digest) != image.digest:
        reason = f"{version} was made latest as {made} and is {image.digest} now: a published version never changes."
        yield action(outcome=Outcome.REFUSED, reason=reason)
        return
    if recorded and before == image.digest:
        yield action(outcome=Outcome.ALREADY, digest=before)
        return
    if dry_run:
        reason = f"from {before or 'nothing'} to {image.digest}{about}"
        yield action(outcome=Outcome.WOULD, digest=before, reason=reason)
        return
    if not recorded:
        number = max((move.number for move in found), default=0) + 1
        move = Move(variant=variant.name, number=number, version=version, rollback=rollback)
        _record(repository, move, image, before=before)
    winner = settle(repository, variant)
    if winner is None or winner.version != version:
        reason = f"{winner.version if winner else 'nothing'} was made latest at the same time and takes precedence."
        yield action(outcome=Outcome.REFUSED, reason=reason)
        return
    reason = f"{version}{about}, before: {before or 'nothing'}"
    yield action(outcome=Outcome.DONE, digest=image.digest, reason=reason)


def _recorded(repository: Repository, move: Move) -> Manifest:
    """Returns the image that a move made latest, or raises RegistryError if it is gone."""
    digest = recorded_digest(repository, move)
    image = repository.manifest(digest) if digest else None
    if image is None:
        raise RegistryError(f"{repository.name}:{move.tag} names an image that is gone: push that again, or roll back.")
    return image


def _refused(variant: Variant, what: str, target: str, reasons: list[str]) -> Action:
    return Action(variant=variant.name, what=what, target=target, outcome=Outcome.REFUSED, reason="\n".join(reasons))


def _who() -> str:
    """Returns the URL of the run on GitHub, else the user's name."""
    if url := run_url(os.environ):
        return url
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())
