"""The grammar of versions and tags: `YYMMDDHHMM-<first 7 digits of the commit>`, in UTC.

The previous build system used the same form with a four-digit year and local time: `202512281717-e118046`. `parse`
takes exactly ten digits, so `parse_git_tag` and `parse_image_tag` skip those tags in searches for the newest version.
Its first versions had ten digits too: they look like ours and are older than all of ours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from base_images.errors import RepositoryError, UsageError

GIT_TAG_PREFIX = "base-images/v"
LOCAL_TAG = "local"

_PATTERN = re.compile(r"(?P<timestamp>\d{10})-(?P<commit>[0-9a-f]{7})(?P<dirty>-dirty)?")
_CENTURY = 2000
"""The century of two-digit years: Python's %y would parse 99 as 1999, which sorts before today."""

_PREDECESSORS = re.compile(r"[0-9]{12}-[0-9a-f]{7}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Target(StrEnum):
    """The stages of every recipe that are built and published: the image, and beside it the test of its operations."""

    RUNTIME = "runtime"
    OPERATIONS = "operations"

    def tag(self, tag: str) -> str:
        """Returns the tag of this target beside the image's `tag`: the same, or such as `cpu-…-operations`."""
        return tag if self is Target.RUNTIME else f"{tag}-{self}"


@functools.total_ordering
@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the images; versions order by commit time, then commit, then clean before dirty.

    Attributes:
        time: the commit's time, UTC, whole minutes.
        commit: the first 7 hexadecimal digits of the commit.
        dirty: whether the tree had uncommitted changes; such a version is never released.
    """

    time: datetime
    commit: str
    dirty: bool = False

    @property
    def timestamp(self) -> str:
        """The first part of the version, YYMMDDHHMM."""
        return self.time.strftime("%y%m%d%H%M")

    def __str__(self) -> str:
        return f"{self.timestamp}-{self.commit}{'-dirty' if self.dirty else ''}"

    def __lt__(self, other: Version | Foreign) -> bool:
        if isinstance(other, Foreign):
            return False
        return (self.time, self.commit, self.dirty) < (other.time, other.commit, other.dirty)

    @property
    def git_tag(self) -> str:
        """The git tag that releases this version."""
        return f"{GIT_TAG_PREFIX}{self}"


@functools.total_ordering
@dataclass(frozen=True, kw_only=True)
class Foreign:
    """The version of an image that this project did not build; it sorts before every version of ours.

    Attributes:
        name: its version, such as `202512281717-e118046`, or the image's digest, `sha256:…`.
    """

    name: str

    @property
    def is_digest(self) -> bool:
        """Whether the name is a digest."""
        return _DIGEST.fullmatch(self.name) is not None

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: Version | Foreign) -> bool:
        return isinstance(other, Version) or self.name < other.name


@dataclass(frozen=True, kw_only=True)
class Head:
    """The checked-out commit.

    Attributes:
        commit: the full hash.
        time: the commit time in UTC.
        branch: the branch; for a detached HEAD the only branch that points at it, else `detached`.
        changes: the first few paths that are modified or untracked.
        version: the version of the checkout.
    """

    commit: str
    time: datetime
    branch: str
    changes: tuple[str, ...]
    version: Version


def of_commit(commit: str, seconds: int, *, dirty: bool) -> Version:
    """Returns the version of a commit from its full hash and its time in Unix seconds.

    Raises:
        RepositoryError: the commit is not of this century, so that its version would sort wrong.
    """
    try:
        time = datetime.fromtimestamp(seconds, UTC).replace(second=0)
        said = f"{time:%Y-%m-%d}"
    except (ValueError, OverflowError, OSError):
        time, said = datetime.min.replace(tzinfo=UTC), f"{seconds} seconds after 1970"
    if not _CENTURY <= time.year < _CENTURY + 100:
        raise RepositoryError(
            f"Commit {commit[:7]} is dated {said}, which the two digits of a version's year cannot say: "
            "set the clock right and commit again."
        )
    return Version(time=time, commit=commit[:7], dirty=dirty)


def parse(text: str) -> Version:
    """Parses a version.

    Raises:
        UsageError: the text does not have the form, or its first part is not a time.
    """
    if (version := find(text)) is None:
        raise UsageError(f"{text!r} is not a version: write it as YYMMDDHHMM-abc1234, such as 2508201420-abc1234.")
    return version


def find(text: str) -> Version | None:
    """Returns the version that a text is; None for any other text."""
    if (match := _PATTERN.fullmatch(text)) is None:
        return None
    try:
        time = datetime.strptime(f"{_CENTURY // 100}{match['timestamp']}", "%Y%m%d%H%M").replace(tzinfo=UTC)
    except ValueError:
        return None
    return Version(time=time, commit=match["commit"], dirty=match["dirty"] is not None)


def parse_label(text: str) -> Version | Foreign | None:
    """Parses the version in an image's label, ours without `-dirty` or the predecessor's; None for any other text."""
    if _PREDECESSORS.fullmatch(text):
        return Foreign(name=text)
    version = find(text)
    return None if version is None or version.dirty else version


def parse_any(text: str) -> Version | Foreign:
    """Parses what `latest` can have pointed to: a version, ours or the predecessor's, or a digest.

    Raises:
        UsageError: the text is none of them.
    """
    found = Foreign(name=text) if _DIGEST.fullmatch(text) else parse_label(text)
    if found is None:
        raise UsageError(
            f"{text!r} cannot have been latest: write a version, such as 2508201420-abc1234, or a whole "
            "digest, sha256:…, as `invoke check-version --json` has them."
        )
    return found


def parse_git_tag(tag: str) -> Version | None:
    """Returns the version that a git tag releases; None for other tags."""
    return find(tag.removeprefix(GIT_TAG_PREFIX)) if tag.startswith(GIT_TAG_PREFIX) else None


def image_tag(variant: str, version: Version | Foreign, target: Target = Target.RUNTIME) -> str:
    """Returns the tag in the registry, such as `cpu-2508201420-abc1234`; the colon of a digest becomes a dash."""
    return target.tag(f"{variant}-{version}".replace(":", "-"))


def parse_image_tag(tag: str) -> tuple[str, Version] | None:
    """Returns the variant and version of an image's tag in the registry; None for other tags, `…-operations` too."""
    variant, _, said = tag.partition("-")
    version = find(said)
    return (variant, version) if version else None


def platform_tag(variant: str, version: Version, architecture: str, target: Target = Target.RUNTIME) -> str:
    """Returns the tag of one platform's image, such as `cpu-2508201420-abc1234-arm64`.

    It keeps the pushed manifest until an index refers to it, since registries remove untagged manifests.
    """
    return f"{image_tag(variant, version, target)}-{architecture}"


def latest_tag(variant: str) -> str:
    """Returns the floating tag in the registry, such as `latest-cpu`."""
    return f"latest-{variant}"


def local_reference(variant: str, target: Target = Target.RUNTIME) -> str:
    """Returns the local reference of the newest build, such as `llama-cpp-cpu:local`."""
    return f"llama-cpp-{variant}:{target.tag(LOCAL_TAG)}"
