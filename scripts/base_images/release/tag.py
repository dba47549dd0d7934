"""Releasing: tags HEAD and pushes the annotated tag to the remote; CI does the rest.

`examine` changes nothing, `plan` returns what would be done, `publish` does it. Each detects how far an earlier run
came, so the same command again finishes an interrupted release. A published tag is never deleted or moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from base_images import variants, versions
from base_images.adapters import repository
from base_images.adapters.repository import Commits, Remote, Tag
from base_images.errors import BaseImagesError, RepositoryError
from base_images.settings import Pin, Settings
from base_images.versions import Head, Version

SUBJECTS = 20
"""How many of the released commits are listed."""


class Status(StrEnum):
    """How a precondition ended; one that could not be checked is skipped, which blocks a release too."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, kw_only=True)
class Check:
    """A precondition: what was observed, and for a failure what to do."""

    name: str
    status: Status
    seen: str


@dataclass(frozen=True, kw_only=True)
class State:
    """The commit to release, and whether it may be released.

    Attributes:
        commit: HEAD's full hash.
        version: HEAD's version, ignoring changes in the tree.
        released: whether the remote has the tag at this commit already; then nothing was checked.
        checks: the preconditions, each checked whether or not another one failed.
        last: the newest other version at the remote; None where there is none.
        last_commit: the commit of `last`.
    """

    commit: str
    version: Version
    released: bool
    checks: tuple[Check, ...]
    last: Version | None
    last_commit: str | None

    @property
    def ok(self) -> bool:
        """Whether every precondition holds."""
        return all(check.status is Status.PASS for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a release does.

    Attributes:
        commit: the commit to tag, the last one of the branch.
        branch: the branch to push with the tag.
        tag: the git tag.
        message: the tag's message.
        pin: the llama.cpp in the images.
        images: the references that CI will publish.
        last: the previous release; None where there is none.
        commits: the commits since then; None where this clone lacks that release's commit.
    """

    commit: str
    branch: str
    version: Version
    tag: str
    message: str
    pin: Pin
    images: tuple[str, ...]
    last: Version | None
    commits: Commits | None


# Preconditions.


def examine(remote: Remote, branch: str, *, now: datetime, mirror_problem: Callable[[], str]) -> State:
    """Returns whether HEAD may be released; fetches the remote's branch and nothing else.

    `now` is in UTC. `mirror_problem` returns why the recipes do not mirror the pinned llama.cpp and what to do; empty
    where they do.

    Raises:
        RepositoryError: git cannot answer in this clone.
    """
    head = repository.head(remote.clone)
    version = replace(head.version, dirty=False)
    try:
        there, unreachable = repository.remote_release_tags(remote), ""
    except RepositoryError as error:
        there, unreachable = {}, str(error)
    published = there.get(version.git_tag)
    released = bool(published and published.commit == head.commit) and not head.changes
    checks: tuple[Check, ...] = ()
    if not released:
        here = repository.release_tags(remote.clone)
        name = remote.name
        at_remote: dict[str, _Look] = {
            f"level with {name}": lambda: _level(remote, branch),
            "tag free": lambda: _free(version.git_tag, head, here.get(version.git_tag), published, name),
            "newer than the last release": lambda: _newer(version, here, there, name),
        }
        checks = (
            _check("clean tree", lambda: _clean(head)),
            _check("release branch", lambda: _on_branch(remote, branch)),
            _check("whole history", lambda: _whole(remote)),
            _check("not in the future", lambda: _dated(head, now)),
            _check("remote", lambda: (unreachable, f"{name} answers")),
            *(_skip(what) if unreachable else _check(what, look) for what, look in at_remote.items()),
            _check("recipes mirror upstream", lambda: (mirror_problem(), "every difference is intended")),
        )
    last = max(_others(version, there), default=None)
    return State(
        commit=head.commit,
        version=version,
        released=released,
        checks=checks,
        last=last,
        last_commit=there[last.git_tag].commit if last else None,
    )


_Look = Callable[[], tuple[str, str]]
"""Returns what is wrong with a precondition and what to do, or an empty text; and what was seen of one that holds."""


def _check(name: str, look: _Look) -> Check:
    try:
        problem, seen = look()
    except BaseImagesError as error:  # such as an unavailable source: the other preconditions are checked all the same
        problem, seen = str(error), ""
    return Check(name=name, status=Status.FAIL if problem else Status.PASS, seen=problem or seen)


def _skip(name: str) -> Check:
    return Check(name=name, status=Status.SKIP, seen="cannot be checked without the remote")


def _clean(head: Head) -> tuple[str, str]:
    changes = ", ".join(head.changes[:3]) + (" …" if len(head.changes) > 3 else "")  # noqa: PLR2004 - as many as fit
    return f"commit or stash {changes}" if changes else "", "nothing is uncommitted"


def _on_branch(remote: Remote, branch: str) -> tuple[str, str]:
    found = repository.checked_out_branch(remote.clone)
    where = f"on {found}" if found else "HEAD is detached"
    return "" if found == branch else f"{where}: `git switch {branch}`", where


def _whole(remote: Remote) -> tuple[str, str]:
    shallow = repository.is_shallow(remote.clone)
    return "the clone is shallow: `git fetch --unshallow`" if shallow else "", "the clone is not shallow"


def _dated(head: Head, now: datetime) -> tuple[str, str]:
    dated, said = f"{head.time:%Y-%m-%d %H:%M:%S} UTC", f"{now:%Y-%m-%d %H:%M:%S} UTC"
    problem = f"HEAD is dated {dated} and it is {said} here: correct the clock, or commit again if HEAD's was wrong"
    return problem if head.time > now else "", f"HEAD is dated {dated}"


def _level(remote: Remote, branch: str) -> tuple[str, str]:
    theirs = f"{remote.name}/{branch}"
    ahead, behind = repository.distance(remote, branch)
    problem = ""
    if ahead and behind:
        problem = f"diverged from {theirs}, {ahead} ahead and {behind} behind: `git pull --rebase`, then push"
    elif ahead:
        problem = f"{ahead} ahead of {theirs}: `git push {remote.name} {branch}` first"
    elif behind:
        problem = f"{behind} behind {theirs}: `git pull --ff-only`"
    return problem, f"HEAD is {theirs}"


def _free(tag: str, head: Head, here: Tag | None, there: Tag | None, remote: str) -> tuple[str, str]:
    problem, seen = "", f"{tag} is neither here nor at {remote}"
    if there and there.commit == head.commit:
        problem = f"{tag} is at {remote} already, without the changes here: commit them to release them"
    elif there:
        problem = f"{tag} is at {remote}, on {there.commit[:9]}, and is never moved: commit again for another version"
    elif here and here.commit != head.commit:
        problem = f"{tag} is here, on {here.commit[:9]}, and not at {remote}: find out why, then `git tag -d {tag}`"
    elif here and not here.annotated:
        problem = f"{tag} is here, but not annotated, and not at {remote}: `git tag -d {tag}`"
    elif here:
        seen = f"{tag} is here from an interrupted run, and not yet at {remote}"
    return problem, seen


def _newer(version: Version, here: Mapping[str, Tag], there: Mapping[str, Tag], remote: str) -> tuple[str, str]:
    last = max(_others(version, {**here, **there}), default=None)
    if last is None:
        return "", "there is none"
    where = f"at {remote}" if last.git_tag in there else "here only"
    problem = f"{version} is not newer than {last} ({where}): release a later commit"
    return "" if version > last else problem, f"{version} comes after {last}"


def _others(version: Version, tags: Mapping[str, Tag]) -> list[Version]:
    found = (versions.parse_git_tag(tag) for tag in tags)
    return [other for other in found if other and not other.dirty and other != version]


# Release.


def plan(remote: Remote, state: State, settings: Settings) -> Plan:
    """Returns what releasing an examined commit does.

    Raises:
        RepositoryError: git cannot answer in this clone.
    """
    pin = settings.pin
    return Plan(
        commit=state.commit,
        branch=settings.release_branch,
        version=state.version,
        tag=state.version.git_tag,
        message=(
            f"llama.cpp base images {state.version}\n\n"
            f"llama.cpp: {pin.names} ({pin.commit})\nregistry: {settings.registry}\n"
        ),
        pin=pin,
        images=tuple(
            f"{settings.registry}:{versions.image_tag(variant.name, state.version)}" for variant in variants.VARIANTS
        ),
        last=state.last,
        commits=repository.commits(remote.clone, state.commit, since=state.last_commit, most=SUBJECTS),
    )


def publish(remote: Remote, planned: Plan) -> None:
    """Tags the planned commit, pushes tag and branch atomically, and verifies that the remote has the tag.

    A push that fails or is interrupted leaves no local tag; a killed one leaves it, and the next run pushes it.

    Raises:
        RepositoryError: the remote refused the push, or does not show the tag.
    """
    tag = repository.release_tags(remote.clone).get(planned.tag)
    tag = tag or repository.create_tag(remote.clone, planned.tag, planned.commit, planned.message)
    if tag.commit != planned.commit or not tag.annotated:
        raise RepositoryError(f"{planned.tag} was made here in the meantime by somebody else: run this again.")
    try:
        repository.push_release(remote, planned.branch, planned.tag, tag)
    except BaseException as error:
        # The push of a killed run may have arrived, or another run may have won: the remote's tag decides.
        there = _at_remote(remote, planned.tag) if isinstance(error, RepositoryError) else None
        if there != tag:
            repository.delete_tag(remote.clone, planned.tag, tag)
        if there is None or there.commit != planned.commit:
            raise
        return
    there = repository.remote_release_tags(remote).get(planned.tag)
    if there is None or there.commit != planned.commit:
        raise RepositoryError(f"{remote.name} took {planned.tag} but does not show it: run the same command again.")


def released_commit(remote: Remote, branch: str, version: Version) -> str:
    """Returns the commit of a released version: the remote has its tag, on a commit of the release branch.

    A tag of this clone alone does not count, nor does one on a commit that nobody reviewed. Fetches the branch.

    Raises:
        RepositoryError: the version is not released, or the remote does not answer.
    """
    tag = repository.remote_release_tags(remote).get(version.git_tag)
    if tag is None:
        raise RepositoryError(
            f"{version} is not released: {remote.name} has no tag {version.git_tag}. Run `invoke release-base-images` "
            f"on a clean {branch}."
        )
    if not repository.is_on_branch(remote, branch, tag.commit):
        raise RepositoryError(
            f"{version} is not released: {version.git_tag} is on {tag.commit[:9]}, and that is not a commit of "
            f"{remote.name}/{branch}. Merge it there, and release what results."
        )
    return tag.commit


def _at_remote(remote: Remote, tag: str) -> Tag | None:
    """Returns a tag of the remote; None if the remote lacks it or does not answer."""
    try:
        return repository.remote_release_tags(remote).get(tag)
    except RepositoryError:
        return None
