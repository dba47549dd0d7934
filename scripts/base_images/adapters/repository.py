"""This project's own git repository: HEAD, uncommitted changes, and release tags here and at a remote."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import git

from base_images import versions
from base_images.adapters import programs
from base_images.errors import RepositoryError, SourceError
from base_images.versions import Head, Version

Clone = git.Repo
"""The type that `open_clone` returns, for modules that must not import git."""

DETACHED = "detached"
"""The branch name of a detached HEAD for which neither a branch nor an environment variable gives one."""

NETWORK_SECONDS = 60.0
"""Time-out of one request to a remote."""


@dataclass(frozen=True, kw_only=True)
class Releases:
    """The releases that this clone knows, and how HEAD relates to them.

    Attributes:
        newest: the newest released version; None without a release.
        head: the version of a release tag on HEAD itself; None when HEAD is not released.
        commits_since: number of commits from the newest release to HEAD; None without a release, or where a shallow
            clone does not reach back to it.
        shallow: whether the clone lacks history, so that older tags may be missing.
    """

    newest: Version | None
    head: Version | None
    commits_since: int | None
    shallow: bool


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A remote of a clone; `seconds` is the time-out of one request."""

    clone: git.Repo
    name: str = "origin"
    seconds: float = NETWORK_SECONDS


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag of this clone or of a remote.

    Attributes:
        object: the hash of the tag object; the commit's for a lightweight tag.
        commit: the hash of the commit that it points at.
    """

    object: str
    commit: str

    @property
    def annotated(self) -> bool:
        """Whether the tag is an object of its own, with a message."""
        return self.object != self.commit


@dataclass(frozen=True, kw_only=True)
class Commits:
    """The number of commits in a range, and the subject lines of the newest of them."""

    count: int
    subjects: tuple[str, ...]


def open_clone(root: Path) -> git.Repo:
    """Returns the repository whose work tree is `root`.

    Raises:
        RepositoryError: `root` is not a repository, or has no commit yet.
    """
    try:
        repository = git.Repo(root)
        repository.head.commit.hexsha  # noqa: B018 - reads it, to see that it exists
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        raise RepositoryError(
            f"{root} is not a git repository, and versions come from its commits: clone the project with git."
        ) from error
    except ValueError as error:
        raise RepositoryError(f"The git repository {root} has no commit yet: commit something first.") from error
    except git.GitError as error:
        raise RepositoryError(f"git cannot read the repository {root}: {error}.") from error
    return repository


def head(repository: git.Repo) -> Head:
    """Returns the commit, branch, changes and version of what is checked out.

    Raises:
        RepositoryError: git failed, or the commit's time is outside what a version can express.
    """
    commit = repository.head.commit
    changes = _changes(repository)
    version = versions.of_commit(commit.hexsha, commit.committed_date, dirty=bool(changes))
    return Head(
        commit=commit.hexsha,
        time=datetime.fromtimestamp(commit.committed_date, UTC),
        branch=_branch(repository),
        changes=changes,
        version=version,
    )


def releases(repository: git.Repo) -> Releases:
    """Returns the releases that the tags of this clone name, and how HEAD relates to them."""
    tags = release_tags(repository)
    known = {version: name for name in tags if (version := versions.parse_git_tag(name)) and not version.dirty}
    here = repository.head.commit.hexsha
    newest = max(known, default=None)
    shallow = is_shallow(repository)
    return Releases(
        newest=newest,
        head=max((version for version, name in known.items() if tags[name].commit == here), default=None),
        commits_since=_commits_since(repository, f"refs/tags/{known[newest]}", shallow=shallow) if newest else None,
        shallow=shallow,
    )


def released_commit(repository: git.Repo, version: Version) -> str | None:
    """Returns the commit of a version's release tag; None when this clone has no such tag."""
    tag = release_tags(repository).get(version.git_tag)
    return tag.commit if tag else None


def _commits_since(repository: git.Repo, tag: str, *, shallow: bool) -> int | None:
    # A shallow clone can have the tag's commit without the history in between; the count would be too small.
    if shallow and not repository.is_ancestor(repository.commit(tag), repository.head.commit):
        return None
    return int(repository.git.rev_list("--count", f"{tag}..HEAD"))


def _changes(repository: git.Repo) -> tuple[str, ...]:
    try:
        lines = repository.git.status("--porcelain=v1", "--untracked-files=normal", "-z").split("\0")
    except git.GitCommandError as error:
        raise RepositoryError(f"git cannot say whether the tree is clean: {error.stderr.strip()}") from error
    return tuple(line[3:] for line in lines if line)


def _branch(repository: git.Repo, environment: Iterable[str] = ("GITHUB_HEAD_REF", "GITHUB_REF_NAME")) -> str:
    if not repository.head.is_detached:
        return repository.active_branch.name
    # CI checks out a commit by its hash. GITHUB_REF_NAME can also be the name of a tag.
    if os.environ.get("GITHUB_REF_TYPE") == "branch":
        for name in environment:
            if os.environ.get(name):
                return os.environ[name]
    here = repository.head.commit
    branches = [branch.name for branch in repository.branches if branch.commit == here]
    for remote in repository.remotes:
        branches += [ref.remote_head for ref in remote.refs if ref.remote_head != "HEAD" and ref.commit == here]
    return branches[0] if len(set(branches)) == 1 else DETACHED


# Releases: queries, and the only functions here that change anything.


def checked_out_branch(repository: git.Repo) -> str | None:
    """Returns the branch that is checked out; None for a detached HEAD."""
    return None if repository.head.is_detached else repository.active_branch.name


def is_shallow(repository: git.Repo) -> bool:
    """Returns whether the clone lacks history."""
    return _answer(repository, "rev-parse", "--is-shallow-repository").strip() == "true"


def commits(repository: git.Repo, head: str, *, since: str | None, most: int) -> Commits | None:
    """Returns the commits `since..head`, newest first; None where `since` is not in this clone.

    Args:
        repository: the clone.
        head: the newest commit.
        since: excluded together with its history; None excludes nothing.
        most: maximum number of subject lines.
    """
    if since and _git(repository, "cat-file", "-e", f"{since}^{{commit}}").exit_code:
        return None
    span = f"{since}..{head}" if since else head
    count = int(_answer(repository, "rev-list", "--count", span))
    subjects = _answer(repository, "log", "--format=%s", f"--max-count={most}", span)
    return Commits(count=count, subjects=tuple(subjects.splitlines()))


def release_tags(repository: git.Repo) -> dict[str, Tag]:
    """Returns the release tags of this clone by name."""
    pattern = f"refs/tags/{versions.GIT_TAG_PREFIX}*"
    listed = _answer(repository, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", pattern)
    refs = (line.split() for line in listed.splitlines())
    return {name.removeprefix("refs/tags/"): Tag(object=hashes[0], commit=hashes[-1]) for name, *hashes in refs}


def remote_release_tags(remote: Remote) -> dict[str, Tag]:
    """Returns the release tags of a remote by name.

    Raises:
        RepositoryError: the clone has no such remote, or the remote does not answer.
    """
    if remote.name not in _answer(remote.clone, "remote").split():
        raise RepositoryError(
            f"This clone has no remote {remote.name}, and a release is a tag there: `git remote add {remote.name} URL`."
        )
    pattern = f"refs/tags/{versions.GIT_TAG_PREFIX}*"
    listed = _ask(remote, "did not say which releases it has", "ls-remote", "--tags", remote.name, pattern)
    refs = {name: object_id for object_id, name in (line.split() for line in listed.splitlines())}
    # A name that ends in ^{} is listed with the commit that an annotated tag points at.
    return {
        name.removeprefix("refs/tags/"): Tag(object=object_id, commit=refs.get(f"{name}^{{}}", object_id))
        for name, object_id in refs.items()
        if not name.endswith("^{}")
    }


def distance(remote: Remote, branch: str) -> tuple[int, int]:
    """Fetches the remote's branch, without tags, and returns how many commits HEAD is ahead of it and behind it.

    Raises:
        RepositoryError: the remote does not answer or has no such branch.
    """
    tracking = f"refs/remotes/{remote.name}/{branch}"
    refspec = f"+refs/heads/{branch}:{tracking}"
    _ask(remote, f"did not give its branch {branch}", "fetch", "--quiet", "--no-tags", remote.name, refspec)
    ahead, behind = _answer(remote.clone, "rev-list", "--left-right", "--count", f"HEAD...{tracking}").split()
    return int(ahead), int(behind)


def create_tag(repository: git.Repo, name: str, commit: str, message: str) -> Tag:
    """Creates an annotated tag in this clone, signed if the user's `tag.gpgSign` is set, and returns it.

    Raises:
        RepositoryError: git refused, such as for an existing name or a failed signature.
    """
    # Through GitPython, which leaves git the terminal: signing may prompt for a passphrase.
    status, _, stderr = repository.git.execute(
        ["git", "tag", "--annotate", "--message", message, name, commit],
        env={"LC_ALL": "C"},
        with_extended_output=True,
        with_exceptions=False,
    )
    if status:
        raise RepositoryError(f"git did not make the tag {name} ({_reason(str(stderr))}): mend that and run it again.")
    return release_tags(repository)[name]


def delete_tag(repository: git.Repo, name: str, tag: Tag) -> None:
    """Removes a tag from this clone, unless it has changed since."""
    _git(repository, "update-ref", "-d", f"refs/tags/{name}", tag.object)


def push_release(remote: Remote, branch: str, name: str, tag: Tag) -> None:
    """Pushes a tag, and the branch up to its commit, atomically: both or neither.

    Raises:
        RepositoryError: the remote rejected the push, such as after a push by somebody else, or did not answer.
    """
    refspecs = (f"{tag.commit}:refs/heads/{branch}", f"{tag.object}:refs/tags/{name}")
    arguments = ("push", "--quiet", "--atomic", "--no-follow-tags", remote.name, *refspecs)
    _ask(remote, f"did not take {name}, so nothing is released", *arguments)


def _ask(remote: Remote, failed: str, *arguments: str) -> str:
    done = _git(remote.clone, *arguments, timeout=remote.seconds)
    if done.exit_code:
        reason = f"no answer within {remote.seconds:g} s" if done.timed_out else _reason(done.stderr)
        raise RepositoryError(f"{remote.name} {failed} ({reason}): mend that and run the same command again.")
    return done.stdout


def _answer(repository: git.Repo, *arguments: str) -> str:
    done = _git(repository, *arguments)
    if done.exit_code:
        raise RepositoryError(f"`git {arguments[0]}` failed in {repository.working_dir} ({_reason(done.stderr)}).")
    return done.stdout


def _git(repository: git.Repo, *arguments: str, timeout: float | None = None) -> programs.Outcome:
    return programs.git(*arguments, directory=Path(repository.working_dir), timeout=timeout)


_NOT_THE_REASON = (
    "To ",
    "hint:",
    "error: failed to push some refs",
    "Please make sure you have the correct access rights",
    "and the repository exists.",
)
"""Prefixes of lines that git prints after the reason for a failure."""

_LINES_OF_REASON = 3


def _reason(stderr: str) -> str:
    """Returns the end of git's error output on one line, including what a hook of the remote printed."""
    lines = [line.strip() for line in stderr.splitlines()]
    reasons = [line for line in lines if not line.startswith(_NOT_THE_REASON) and "atomic push failed" not in line]
    texts = [text for text in (reason.removeprefix("remote:").strip() for reason in reasons) if text]
    return "; ".join(texts[-_LINES_OF_REASON:]) or "git does not say why"


@contextmanager
def commit_of(clone: Path, ref: str) -> Iterator[git.Commit]:
    """Yields the commit of a ref in a clone of llama.cpp.

    Raises:
        SourceError: `clone` is not a clone, or lacks the ref.
    """
    try:
        with git.Repo(clone) as repository:
            yield repository.commit(ref)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        raise SourceError(f"{clone} is not a git clone: give --source one of llama.cpp that has {ref}.") from error
    except (ValueError, git.GitError, git.ODBError) as error:
        raise SourceError(f"The clone {clone} has no ref {ref!r}: `git -C {clone} fetch --tags` may help.") from error
