"""This project's own git repository: what HEAD is, how clean it is, and what was released before it."""

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
"""What `open_repository` returns, for those who only hand it on: none but adapters import git."""

DETACHED = "detached"
"""The branch of a detached HEAD that no branch and no environment variable names."""

NETWORK_SECONDS = 60.0
"""How long a remote may take for one answer."""


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


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A remote of a clone, and how long it may take for one answer."""

    clone: git.Repo
    name: str = "origin"
    seconds: float = NETWORK_SECONDS


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag, here or at a remote.

    Attributes:
        object: the hash of the tag itself; the commit's where the tag is not annotated.
        commit: the hash of what it points at.
    """

    object: str
    commit: str

    @property
    def annotated(self) -> bool:
        """Whether it is an object of its own, with a message."""
        return self.object != self.commit


@dataclass(frozen=True, kw_only=True)
class Commits:
    """Some of a history: how many commits there are, and the subject lines of the newest of them."""

    count: int
    subjects: tuple[str, ...]


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
    """Returns the commit that the release tag of a version points at; None when this clone has no such tag."""
    tag = release_tags(repository).get(version.git_tag)
    return tag.commit if tag else None


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


# What a release asks of git, and the only things that it changes.


def checked_out_branch(repository: git.Repo) -> str | None:
    """Returns the branch that is checked out; None where HEAD is detached."""
    return None if repository.head.is_detached else repository.active_branch.name


def is_shallow(repository: git.Repo) -> bool:
    """Returns whether the clone lacks history."""
    return _answer(repository, "rev-parse", "--is-shallow-repository").strip() == "true"


def commits(repository: git.Repo, head: str, *, since: str | None, most: int) -> Commits | None:
    """Returns the commits of a commit's history, newest first; None where `since` is not in this clone.

    Args:
        repository: the clone.
        head: the newest commit.
        since: the commit whose history is left out; None leaves nothing out.
        most: how many subject lines there are at most.
    """
    if since and _git(repository, "cat-file", "-e", f"{since}^{{commit}}").exit_code:
        return None
    span = f"{since}..{head}" if since else head
    count = int(_answer(repository, "rev-list", "--count", span))
    subjects = _answer(repository, "log", "--format=%s", f"--max-count={most}", span)
    return Commits(count=count, subjects=tuple(subjects.splitlines()))


def release_tags(repository: git.Repo) -> dict[str, Tag]:
    """Returns the release tags here by their names."""
    pattern = f"refs/tags/{versions.GIT_TAG_PREFIX}*"
    listed = _answer(repository, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", pattern)
    refs = (line.split() for line in listed.splitlines())
    return {name.removeprefix("refs/tags/"): Tag(object=hashes[0], commit=hashes[-1]) for name, *hashes in refs}


def remote_release_tags(remote: Remote) -> dict[str, Tag]:
    """Returns the release tags that a remote has by their names.

    Raises:
        RepositoryError: the clone has no such remote, or it does not answer.
    """
    if remote.name not in _answer(remote.clone, "remote").split():
        raise RepositoryError(
            f"This clone has no remote {remote.name}, and a release is a tag there: `git remote add {remote.name} URL`."
        )
    pattern = f"refs/tags/{versions.GIT_TAG_PREFIX}*"
    listed = _ask(remote, "did not say which releases it has", "ls-remote", "--tags", remote.name, pattern)
    refs = {name: found for found, name in (line.split() for line in listed.splitlines())}
    # The line that ends in ^{} says what an annotated tag points at.
    return {
        name.removeprefix("refs/tags/"): Tag(object=found, commit=refs.get(f"{name}^{{}}", found))
        for name, found in refs.items()
        if not name.endswith("^{}")
    }


def distance(remote: Remote, branch: str) -> tuple[int, int]:
    """Returns how many commits HEAD is ahead of and behind the remote's branch, which is fetched first; tags are not.

    Raises:
        RepositoryError: the remote does not answer or has no such branch.
    """
    tracking = f"refs/remotes/{remote.name}/{branch}"
    refspec = f"+refs/heads/{branch}:{tracking}"
    _ask(remote, f"did not give its branch {branch}", "fetch", "--quiet", "--no-tags", remote.name, refspec)
    ahead, behind = _answer(remote.clone, "rev-list", "--left-right", "--count", f"HEAD...{tracking}").split()
    return int(ahead), int(behind)


def create_tag(repository: git.Repo, name: str, commit: str, message: str) -> Tag:
    """Makes an annotated tag here, signed where the user's `tag.gpgSign` says so, and returns it.

    Raises:
        RepositoryError: git refuses, such as for a name that is taken or a signature that fails.
    """
    # GitPython leaves git the terminal, on which a passphrase may be asked for.
    status, _, stderr = repository.git.execute(
        ["git", "tag", "--annotate", "--message", message, name, commit],
        env={"LC_ALL": "C"},
        with_extended_output=True,
        with_exceptions=False,
    )
    if status:
        raise RepositoryError(f"git did not make the tag {name} ({_words(str(stderr))}): mend that and run it again.")
    return release_tags(repository)[name]


def delete_tag(repository: git.Repo, name: str, tag: Tag) -> None:
    """Removes a tag here, unless it is another one by now."""
    _git(repository, "update-ref", "-d", f"refs/tags/{name}", tag.object)


def push_release(remote: Remote, branch: str, name: str, tag: Tag) -> None:
    """Pushes a tag and the branch up to its commit: both or, such as when somebody pushed to the branch, neither.

    Raises:
        RepositoryError: the remote did not take both, or its answer did not come.
    """
    refspecs = (f"{tag.commit}:refs/heads/{branch}", f"{tag.object}:refs/tags/{name}")
    arguments = ("push", "--quiet", "--atomic", "--no-follow-tags", remote.name, *refspecs)
    _ask(remote, f"did not take {name}, so nothing is released", *arguments)


def _ask(remote: Remote, failed: str, *arguments: str) -> str:
    done = _git(remote.clone, *arguments, seconds=remote.seconds)
    if done.exit_code:
        words = f"no answer within {remote.seconds:g} s" if done.timed_out else _words(done.stderr)
        raise RepositoryError(f"{remote.name} {failed} ({words}): mend that and run the same command again.")
    return done.stdout


def _answer(repository: git.Repo, *arguments: str) -> str:
    done = _git(repository, *arguments)
    if done.exit_code:
        raise RepositoryError(f"`git {arguments[0]}` failed in {repository.working_dir} ({_words(done.stderr)}).")
    return done.stdout


def _git(repository: git.Repo, *arguments: str, seconds: float | None = None) -> programs.Outcome:
    """Runs git in plain English and without questions."""
    environment = {**os.environ, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    return programs.run(
        ["git", "-C", str(repository.working_dir), *arguments], environment=environment, timeout=seconds
    )


_NOT_THE_REASON = (
    "To ",
    "hint:",
    "error: failed to push some refs",
    "Please make sure you have the correct access rights",
    "and the repository exists.",
)
"""How lines begin that git prints after the reason why it failed."""

_LINES_OF_REASON = 3


def _words(stderr: str) -> str:
    """Returns git's last words on one line: what a hook at the remote said is among them."""
    lines = [line.strip() for line in stderr.splitlines()]
    reasons = [line for line in lines if not line.startswith(_NOT_THE_REASON) and "atomic push failed" not in line]
    said = [line for line in (reason.removeprefix("remote:").strip() for reason in reasons) if line]
    return "; ".join(said[-_LINES_OF_REASON:]) or "git does not say why"


@contextmanager
def commit_of(clone: Path, ref: str) -> Iterator[git.Commit]:
    """Yields the commit that a ref of a clone of llama.cpp names.

    Raises:
        SourceError: there is no clone, or it does not know the ref.
    """
    try:
        with git.Repo(clone) as repository:
            yield repository.commit(ref)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
        raise SourceError(f"{clone} is not a git clone: give --source one of llama.cpp that has {ref}.") from error
    except (ValueError, git.GitError, git.ODBError) as error:
        raise SourceError(f"The clone {clone} has no ref {ref!r}: `git -C {clone} fetch --tags` may help.") from error
