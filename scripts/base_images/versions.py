"""The version and tag grammar: `YYMMDDHHMM-<first 7 of the commit>`, in UTC, and what is made of it.

The build system before this project named its images and git tags alike, with a year of four digits and in local time:
`202512281717-e118046`. `parse` takes ten digits and no more, so for whoever looks through tags for the newest version,
which all do with `parse_git_tag` or `parse_image_tag`, those are other tags. Its first ones had ten digits too: they
cannot be told from ours, and are older than all of ours.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from datetime import UTC, datetime

from base_images.errors import RepositoryError, UsageError

GIT_TAG_PREFIX = "base-images/v"
LOCAL_TAG = "local"

_PATTERN = re.compile(r"(?P<timestamp>\d{10})-(?P<commit>[0-9a-f]{7})(?P<dirty>-dirty)?")
_CENTURY = 2000
"""The two digits of a year are of this century: Python's own %y would read 99 as 1999, which sorts before today."""

_PREDECESSORS = re.compile(r"[0-9]{12}-[0-9a-f]{7}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@functools.total_ordering
@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the images; versions order by commit time, then commit, then clean before dirty.

    Attributes:
        time: the commit's time, UTC, whole minutes.
        commit: the first 7 hexadecimal digits of the commit.
        dirty: whether the tree held changes that the commit does not; such a version is never released.
    """

    time: datetime
    commit: str
    dirty: bool = False

    @property
    def timestamp(self) -> str:
        """The version's first part, YYMMDDHHMM."""
        return self.time.strftime("%y%m%d%H%M")

    def __str__(self) -> str:
        return f"{self.timestamp}-{self.commit}{'-dirty' if self.dirty else ''}"

    def __lt__(self, other: Version | Foreign) -> bool:
        if isinstance(other, Foreign):
            return False
        return (self.time, self.commit, self.dirty) < (other.time, other.commit, other.dirty)

    @property
    def git_tag(self) -> str:
        """The tag in this repository that releases it."""
        return f"{GIT_TAG_PREFIX}{self}"


@functools.total_ordering
@dataclass(frozen=True, kw_only=True)
class Foreign:
    """An image that this project did not make; it is older than every version, whatever its name says.

    Attributes:
        name: the predecessor's version, such as `202512281717-e118046`, else the image's digest, `sha256:…`.
    """

    name: str

    @property
    def is_digest(self) -> bool:
        """Whether the digest is all that is known of it."""
        return _DIGEST.fullmatch(self.name) is not None

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: Version | Foreign) -> bool:
        return isinstance(other, Version) or self.name < other.name


@dataclass(frozen=True, kw_only=True)
class Head:
    """The commit that is checked out.

    Attributes:
        commit: full hash.
        time: its commit time, UTC.
        branch: the branch; of a detached HEAD the one branch that points at it, else `detached`.
        changes: paths, at most a few, that differ from the commit or that git does not know.
        version: the version of what is checked out.
    """

    commit: str
    time: datetime
    branch: str
    changes: tuple[str, ...]
    version: Version


def of_commit(commit: str, seconds: int, *, dirty: bool) -> Version:
    """Returns the version of a commit, given its full hash and its time as Unix seconds.

    Raises:
        RepositoryError: the commit is not of this century, so its version would sort among the newest ones.
    """
    time = datetime.fromtimestamp(seconds, UTC).replace(second=0)
    if not _CENTURY <= time.year < _CENTURY + 100:
        raise RepositoryError(
            f"Commit {commit[:7]} is dated {time:%Y-%m-%d}, which the two digits of a version's year cannot say: "
            "set the clock right and commit again."
        )
    return Version(time=time, commit=commit[:7], dirty=dirty)


def parse(text: str) -> Version:
    """Returns the version that `text` writes.

    Raises:
        UsageError: it is not of the form, or its first part is no time.
    """
    match = _PATTERN.fullmatch(text)
    if match:
        try:
            time = datetime.strptime(f"{_CENTURY // 100}{match['timestamp']}", "%Y%m%d%H%M").replace(tzinfo=UTC)
        except ValueError:
            pass
        else:
            return Version(time=time, commit=match["commit"], dirty=match["dirty"] is not None)
    raise UsageError(f"{text!r} is not a version: write it as YYMMDDHHMM-abc1234, such as 2508201420-abc1234.")


def parse_label(text: str) -> Version | Foreign | None:
    """Returns the clean version, ours or the predecessor's, that an image's label says; None for anything else."""
    if _PREDECESSORS.fullmatch(text):
        return Foreign(name=text)
    try:
        version = parse(text)
    except UsageError:
        return None
    return None if version.dirty else version


def parse_any(text: str) -> Version | Foreign:
    """Returns what `text` names that can have been latest: a version, ours or the predecessor's, or a digest.

    Raises:
        UsageError: it is none of them.
    """
    found = Foreign(name=text) if _DIGEST.fullmatch(text) else parse_label(text)
    if found is None:
        raise UsageError(
            f"{text!r} is nothing that can have been latest: write a version, such as 2508201420-abc1234, or a whole "
            "digest, sha256:…, as `invoke check-version --json` has them."
        )
    return found


def parse_git_tag(tag: str) -> Version | None:
    """Returns the version that a tag of this repository releases, or None for any other tag."""
    if not tag.startswith(GIT_TAG_PREFIX):
        return None
    try:
        return parse(tag.removeprefix(GIT_TAG_PREFIX))
    except UsageError:
        return None


def image_tag(variant: str, version: Version | Foreign) -> str:
    """Returns the tag in the registry, such as `cpu-2508201420-abc1234`; a tag has no colon, as a digest has."""
    return f"{variant}-{version}".replace(":", "-")


def parse_image_tag(tag: str) -> tuple[str, Version] | None:
    """Returns the variant and the version of a tag in the registry, or None for a tag of another kind."""
    variant, _, version = tag.partition("-")
    try:
        return variant, parse(version)
    except UsageError:
        return None


def platform_tag(variant: str, version: Version, architecture: str) -> str:
    """Returns the registry's tag of one platform's image, such as `cpu-2508201420-abc1234-arm64`.

    It keeps what a build pushed until the index that names it is there: registries remove what nothing points at.
    """
    return f"{image_tag(variant, version)}-{architecture}"


def latest_tag(variant: str) -> str:
    """Returns the registry's floating tag, such as `latest-cpu`."""
    return f"latest-{variant}"


def local_reference(variant: str) -> str:
    """Returns the local name of the newest build, such as `llama-cpp-cpu:local`."""
    return f"llama-cpp-{variant}:{LOCAL_TAG}"
