"""This project's own git repository: what HEAD is, how clean it is, and what was released before it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import git

from base_images import versions
from base_images.errors import RepositoryError
from base_images.versions import Version

DETACHED = "detached"
"""The branch of a detached HEAD that no branch and no environment variable names."""


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


@dataclass(frozen=True, kw_only=True)
class Releases:
    """Where HEAD stands among the released versions.

    Attributes:
        newest: the newest released version that the repository knows; None when there is none.
        head: the version that a release tag on HEAD itself says; None when HEAD is not released.
        commits_since: commits of HEAD's history after the newest release; None where there is no release or where
            a shallow clone ends before it.
        shallow: whether the clone lacks history, so that older tags may be missing.
    """

    newest: Version | None
    head: Version | None
    commits_since: int | None
    shallow: bool


def open_repository(root: Path) -> git.Repo:
    """Returns the repository whose work tree is `root`.

    Raises:
        RepositoryError: there is none, or it has no commit yet.
    """
    try:
        repository = git.Repo(root)
        repository.head.commit.hexsha  # noqa: B018 - asks git for it
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
    """Returns what is checked out.

    Raises:
        RepositoryError: git cannot answer, or the commit's time makes no version.
    """
    commit = repository.head.commit
    changes = _changes(repository)
    return Head(
        commit=commit.hexsha,
        time=datetime.fromtimestamp(commit.committed_date, UTC),
        branch=_branch(repository),
        changes=changes,
        version=versions.of_commit(commit.hexsha, commit.committed_date, dirty=bool(changes)),
    )


def releases(repository: git.Repo) -> Releases:
    """Returns where HEAD stands among the releases that the repository's own tags name."""
    known = {
        version: tag for tag in repository.tags if (version := versions.parse_git_tag(tag.name)) and not version.dirty
    }
    here = repository.head.commit
    newest = max(known, default=None)
    shallow = (Path(repository.git_dir) / "shallow").exists()
    return Releases(
        newest=newest,
        head=max((version for version, tag in known.items() if tag.commit == here), default=None),
        commits_since=_commits_since(repository, known[newest].path, shallow=shallow) if newest else None,
        shallow=shallow,
    )


def _commits_since(repository: git.Repo, tag: str, *, shallow: bool) -> int | None:
    # A shallow clone can hold the tag's commit without the history between: then the count would be too small.
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
    # CI checks a commit out by its hash. A tag's name is no branch: GitHub says which of the two it is.
    if os.environ.get("GITHUB_REF_TYPE") == "branch":
        for name in environment:
            if os.environ.get(name):
                return os.environ[name]
    here = repository.head.commit
    branches = [branch.name for branch in repository.branches if branch.commit == here]
    for remote in repository.remotes:
        branches += [ref.remote_head for ref in remote.refs if ref.remote_head != "HEAD" and ref.commit == here]
    return branches[0] if len(set(branches)) == 1 else DETACHED
