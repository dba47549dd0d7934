"""Promotion: what `latest-<variant>` points at, and what has to be true before it does.

A registry can point a tag elsewhere in one step, but cannot do so only if nobody else did in between. So every move is
recorded first, under a tag of its own with a sequence number, and `latest-<variant>` follows from all the records: who
records a move makes `latest` agree with them afterwards, and looks again. Promotions that run at the same time end in
the same state, and one that was killed between the two steps is finished by the next. What remains is a promotion that
is killed while its last request is under way, if that request comes through after a newer promotion has ended: then
`check-version` tells that `latest` is not what the records say, and that promotion again, or a newer one, mends it.

What was latest before the first promotion, whoever made it, is recorded too, by its digest and as number 0, so that a
rollback leads there; it counts less than every move. It is looked at before the records are: where those have no move,
none had been made when it was looked at, because a move is recorded before `latest` moves.
"""

from __future__ import annotations

import getpass
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from base_images import versions
from base_images.adapters.registry import Manifest, Repository
from base_images.errors import RegistryError
from base_images.labels import Label
from base_images.release import evidence, publish
from base_images.release.actions import Action, Outcome
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
    """A recorded move of `latest-<variant>`; its tag says all of this.

    Attributes:
        number: one more than the newest move that was there when it was recorded; not unique. 0 is no move, but what
            was there before the first.
    """

    variant: str
    number: int
    version: Version | Foreign
    rollback: bool

    @property
    def tag(self) -> str:
        """The tag of its record."""
        moved = f"move-{self.variant}-{self.number:04d}-{self.version}{'-rollback' if self.rollback else ''}"
        return moved.replace(":", "-")  # which a digest has, and a tag must not


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One platform's image of a version, with what is known of it.

    Attributes:
        reports: the evidence attached to it.
    """

    platform: str
    digest: str
    labels: Mapping[str, str]
    reports: Mapping[Kind, Attached]


def moves(tags: Iterable[str], variant: str) -> list[Move]:
    """Returns the moves of a variant that are recorded among a repository's tags; the last one counts."""
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
    """A rollback counts, because it is a person's, over what did not know of it; after the last one the newer version.

    Not the higher number: who records a promotion may not have seen that of a newer version, with the same number as
    one that it saw.
    """
    return min(move.number, rolled_back + 1), move.rollback, move.version, move.number


def refusals(
    variant: Variant, version: Version, commit: str | None, candidates: Mapping[str, Candidate], *, repository: str
) -> list[str]:
    """Returns, a sentence each, why a version may not become latest; nothing when it may.

    Args:
        variant: which image.
        version: which version.
        commit: what its release tag points at; None when there is no such tag.
        candidates: the image of each platform that the registry has of it.
        repository: the registry's repository that it is in.
    """
    if commit is None:
        return [f"no tag {version.git_tag} is in this clone: `git fetch --tags`, or release that version first."]
    if not candidates:
        return [f"{repository} has no {versions.image_tag(variant.name, version)}: publish it first."]
    reasons = []
    if lacking := [one.docker for one in variant.platforms if one.docker not in candidates]:
        reasons.append(f"{', '.join(lacking)} is missing: publish it first.")
    for one in candidates.values():
        found = publish.differences(one.labels, variant=variant, version=version, commit=commit, target=repository)
        reasons += [f"{one.platform}: {reason}" for reason in (*found, *_unproven(variant, one))]
    return reasons


def _unproven(variant: Variant, candidate: Candidate) -> Iterator[str]:
    reports = candidate.reports
    for kind, attached in reports.items():
        if not attached.evidence.ok:
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
    """Returns the best device that an image was smoke-tested on; None when it was not smoke-tested."""
    levels = [
        device for device in (Device.HOST, Device.SOFTWARE, Device.NONE) if evidence.KIND_OF_DEVICE[device] in reports
    ]
    return levels[0] if levels else None


def candidates(repository: Repository, reference: str) -> dict[str, Candidate]:
    """Returns the image of each platform behind a tag or a digest, by platform; empty when there is no such thing."""
    images = repository.platform_manifests(reference)
    return {
        platform: Candidate(
            platform=platform,
            digest=manifest.digest,
            labels=repository.labels(manifest),
            reports=evidence.attached(repository, manifest.digest),
        )
        for platform, manifest in images.items()
    }


def promote(
    repository: Repository, variant: Variant, version: Version, commit: str | None, *, dry_run: bool = False
) -> Iterator[Action]:
    """Makes a version the latest of a variant, if it has earned that, and yields what was done.

    The first one also records and keeps what was latest before.

    Args:
        repository: where.
        variant: of which image.
        version: which version.
        commit: what its release tag points at; None when there is no such tag.
        dry_run: whether to change nothing.

    Raises:
        RegistryError: the registry refuses, or somebody else writes there all the time.
    """
    target = f"{repository.name}:{versions.latest_tag(variant.name)}"
    there = repository.manifest(versions.latest_tag(variant.name))  # before the records, see above
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
    if reasons or image is None:
        yield _refused(variant, "promote", target, reasons)
        return
    if first and there and last and there.digest != image.digest and not dry_run:
        _keep(repository, last, there)
    yield from _move(repository, variant, version, image, found, rollback=False, dry_run=dry_run)


def roll_back(
    repository: Repository, variant: Variant, version: Version | Foreign, *, dry_run: bool = False
) -> Iterator[Action]:
    """Makes a version latest again that was latest before, and yields what was done.

    What was there before the first promotion need not be for every platform, and each can be named by its digest too.

    Raises:
        RegistryError: the registry refuses, or somebody else writes there all the time.
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
        reasons = [f"{version} was never latest, only what was can be gone back to: {known}."]
    else:
        version = earlier[-1].version
        image = _recorded(repository, earlier[-1])
        there = repository.platform_manifests(image.digest)
        lacking = ", ".join(one.docker for one in variant.platforms if one.docker not in there)
        if any(move.number == 0 for move in earlier):
            about = f" (latest before the first promotion{f'; not for {lacking}' if lacking else ''})"
        elif lacking:
            reasons = [f"{version} is not for the platforms that {variant.name} is for now."]
    if reasons or image is None:
        yield _refused(variant, "rollback", target, reasons)
        return
    yield from _move(repository, variant, version, image, found, rollback=True, dry_run=dry_run, about=about)


def recorded_digest(repository: Repository, move: Move) -> str:
    """Returns the digest of the image that a move made latest; empty when its record is gone."""
    record = repository.manifest(move.tag)
    return str(record.document["subject"]["digest"]) if record else ""


def settle(repository: Repository, variant: Variant) -> Move | None:
    """Makes `latest-<variant>` agree with the records, and returns the move that counts; None when there is none.

    Raises:
        RegistryError: it cannot be made to agree, because somebody else writes there all the time.
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
    raise RegistryError(f"{repository.name}:{tag} is moved by somebody else all the time: find out by whom.")


def _unrecorded(repository: Repository, variant: Variant, latest: Manifest | None) -> Move | None:
    """Returns what is latest, where no move made it that, as number 0; None when nothing is.

    A label may say anything. So a version of ours has to be published as that very image, and the predecessor's must
    not be another one; else the digest is the name.
    """
    if latest is None:
        return None
    version: Version | Foreign = Foreign(name=latest.digest)
    image = next(iter(repository.platform_manifests(latest.digest).values()), None)
    if image and (said := versions.parse_label(repository.labels(image).get(Label.VERSION, ""))):
        tagged = repository.digest(versions.image_tag(variant.name, said))
        if tagged == latest.digest or (tagged is None and isinstance(said, Foreign)):
            version = said
    return Move(variant=variant.name, number=0, version=version, rollback=False)


def _keep(repository: Repository, was: Move, image: Manifest) -> None:
    """Records what was latest before the first promotion, with a tag of its own: registries remove what has none."""
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
        # So fine that two who record the same at once push two blobs: one that is pushed twice at once is missing to
        # docker-registry 2.8 for a moment.
        "at": datetime.now(UTC).isoformat(timespec="microseconds"),
    }
    manifest = evidence.store_document(repository, image, MOVE_TYPE, json.dumps(record, indent=2).encode())
    # Who records the same move at the same time says the same, but for the last two: either may stay.
    repository.point(move.tag, manifest)


def _was_left(found: list[Move], version: Version) -> bool:
    """Whether a rollback to another version counts over what made this one latest."""
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
    what = "rollback" if rollback else "promote"
    tag = versions.latest_tag(variant.name)
    target = f"{repository.name}:{tag}"
    before = repository.digest(tag) or ""
    recorded = bool(found) and found[-1].number > 0 and found[-1].version == version
    if recorded and (made := _recorded(repository, found[-1]).digest) != image.digest:
        reason = f"{version} was made latest as {made} and is {image.digest} now: a published version never changes."
        yield _refused(variant, what, target, [reason])
        return
    if recorded and before == image.digest:
        yield Action(variant=variant.name, what=what, target=target, outcome=Outcome.ALREADY, digest=before)
        return
    if dry_run:
        reason = f"from {before or 'nothing'} to {image.digest}{about}"
        yield Action(
            variant=variant.name, what=what, target=target, outcome=Outcome.WOULD, digest=before, reason=reason
        )
        return
    if not recorded:
        number = max((move.number for move in found), default=0) + 1
        move = Move(variant=variant.name, number=number, version=version, rollback=rollback)
        _record(repository, move, image, before=before)
    winner = settle(repository, variant)
    if winner is None or winner.version != version:
        reason = f"{winner.version if winner else 'nothing'} was made latest at the same time, and it counts."
        yield Action(variant=variant.name, what=what, target=target, outcome=Outcome.REFUSED, reason=reason)
        return
    reason = f"{version}{about}, before: {before or 'nothing'}"
    yield Action(
        variant=variant.name, what=what, target=target, outcome=Outcome.DONE, digest=image.digest, reason=reason
    )


def _recorded(repository: Repository, move: Move) -> Manifest:
    """Returns the image that a move made latest."""
    digest = recorded_digest(repository, move)
    image = repository.manifest(digest) if digest else None
    if image is None:
        raise RegistryError(f"{repository.name}:{move.tag} names an image that is gone: push that again, or roll back.")
    return image


def _refused(variant: Variant, what: str, target: str, reasons: list[str]) -> Action:
    return Action(variant=variant.name, what=what, target=target, outcome=Outcome.REFUSED, reason="\n".join(reasons))


def _who() -> str:
    """GitHub's address of the run, else the user."""
    parts = [os.environ.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID")]
    if all(parts):
        return "{}/{}/actions/runs/{}".format(*parts)
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        return str(os.getuid())
