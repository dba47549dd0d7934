"""This project's own git repository: HEAD, uncommitted changes, and release tags here and at a remote."""

from __future__ import annotations

import hashlib
import os
import posixpath
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import git

from base_images import versions
from base_images.adapters import programs
from base_images.errors import RepositoryError, SourceError
from base_images.versions import Head, Version

Clone = git.Git
"""GitPython's door to the git commands of one work tree, for modules that must not import git.

Not its `Repo`, which reads the repository's files itself: it does not know reftable, and follows GIT_DIR.
"""

DETACHED = "detached"
"""The branch name of a detached HEAD for which neither a branch nor an environment variable gives one."""

NETWORK_SECONDS = 60.0
"""Time-out of one request to a remote."""

_SHA256_DIGITS = 64

_NO_REPOSITORY = "not a git repository (or any"
"""How git says that a directory is none; without the bracket, it names what a work tree or submodule lacks."""


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

    clone: Clone
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


def open_clone(root: Path) -> Clone:
    """Returns the repository whose work tree is `root`.

    Raises:
        RepositoryError: `root` is not a repository, git refuses to read it, or it has no commit yet.
    """
    clone = git.Git(root)
    _newest_commit(clone)
    return clone


def _newest_commit(clone: Clone) -> tuple[str, int]:
    """Returns the hash of HEAD's commit, and the commit's time in seconds since 1970."""
    done = _run(clone, "log", "--max-count=1", "--format=%H %ct")
    if done.exit_code == 0:
        commit, seconds = done.stdout.split()
        return commit, int(seconds)
    root = clone.working_dir
    if _NO_REPOSITORY in done.stderr:
        raise RepositoryError(
            f"{root} is not a git repository, and versions come from its commits: clone the project with git."
        )
    if "does not have any commits yet" in done.stderr:
        raise RepositoryError(f"The git repository {root} has no commit yet: commit something first.")
    # For another user's repository, git's words end in the setting that allows it.
    raise RepositoryError(f"git refuses to read the repository {root} ({done.git_reason}): fix that and run it again.")


def head(clone: Clone) -> Head:
    """Returns the commit, branch, changes and version of what is checked out.

    Raises:
        RepositoryError: git failed, or the commit's time is outside what a version can express.
    """
    commit, seconds = _newest_commit(clone)
    changes = _changes(clone)
    version = versions.of_commit(commit, seconds, dirty=bool(changes))
    return Head(
        commit=commit,
        time=datetime.fromtimestamp(seconds, UTC),
        branch=_branch(clone),
        changes=changes,
        version=version,
    )


def releases(clone: Clone) -> Releases:
    """Returns the releases that the tags of this clone name, and how HEAD relates to them."""
    tags = release_tags(clone)
    known = {version: name for name in tags if (version := versions.parse_git_tag(name)) and not version.dirty}
    here, _ = _newest_commit(clone)
    newest = max(known, default=None)
    shallow = is_shallow(clone)
    return Releases(
        newest=newest,
        head=max((version for version, name in known.items() if tags[name].commit == here), default=None),
        commits_since=_commits_since(clone, f"refs/tags/{known[newest]}", shallow=shallow) if newest else None,
        shallow=shallow,
    )


def _commits_since(clone: Clone, tag: str, *, shallow: bool) -> int | None:
    # A shallow clone can have the tag's commit without the history in between; the count would be too small.
    if shallow and _run(clone, "merge-base", "--is-ancestor", tag, "HEAD").exit_code:
        return None
    return int(_answer(clone, "rev-list", "--count", f"{tag}..HEAD"))


def _changes(clone: Clone) -> tuple[str, ...]:
    # A rename would be one entry with two names.
    lines = _answer(clone, "status", "--porcelain=v1", "--untracked-files=normal", "--no-renames", "-z").split("\0")
    return tuple(line[3:] for line in lines if line)


def _branch(clone: Clone) -> str:
    if branch := checked_out_branch(clone):
        return branch
    # CI checks out a commit by its hash. GITHUB_REF_NAME can also be the name of a tag.
    if os.environ.get("GITHUB_REF_TYPE") == "branch":
        for name in ("GITHUB_HEAD_REF", "GITHUB_REF_NAME"):
            if os.environ.get(name):
                return os.environ[name]
    refs = _answer(clone, "for-each-ref", "--points-at=HEAD", "--format=%(refname)", "refs/heads", "refs/remotes")
    # refs/heads/<branch>, refs/remotes/<remote>/<branch>
    branches = {ref.split("/", 2 if ref.startswith("refs/heads/") else 3)[-1] for ref in refs.splitlines()} - {"HEAD"}
    return branches.pop() if len(branches) == 1 else DETACHED


# Releases: queries, and the only functions here that change anything.


def checked_out_branch(clone: Clone) -> str | None:
    """Returns the branch that is checked out; None for a detached HEAD."""
    done = _run(clone, "symbolic-ref", "--quiet", "HEAD")
    return done.stdout.strip().removeprefix("refs/heads/") or None


def is_shallow(clone: Clone) -> bool:
    """Returns whether the clone lacks history."""
    return _answer(clone, "rev-parse", "--is-shallow-repository").strip() == "true"


def commits(clone: Clone, head: str, *, since: str | None, most: int) -> Commits | None:
    """Returns the commits `since..head`, newest first; None where `since` is not in this clone.

    `since` is excluded together with its history, None excludes nothing; `most` is the maximum number of subject lines.
    """
    if since and _run(clone, "cat-file", "-e", f"{since}^{{commit}}").exit_code:
        return None
    span = f"{since}..{head}" if since else head
    count = int(_answer(clone, "rev-list", "--count", span))
    subjects = _answer(clone, "log", "--format=%s", f"--max-count={most}", span)
    return Commits(count=count, subjects=tuple(subjects.splitlines()))


def release_tags(clone: Clone) -> dict[str, Tag]:
    """Returns the release tags of this clone by name."""
    pattern = f"refs/tags/{versions.GIT_TAG_PREFIX}*"
    listed = _answer(clone, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", pattern)
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
    tracking = _fetch(remote, branch)
    ahead, behind = _answer(remote.clone, "rev-list", "--left-right", "--count", f"HEAD...{tracking}").split()
    return int(ahead), int(behind)


def is_on_branch(remote: Remote, branch: str, commit: str) -> bool:
    """Fetches the remote's branch, without tags, and returns whether a commit belongs to it.

    Raises:
        RepositoryError: the remote does not answer or has no such branch, or a shallow clone cannot tell.
    """
    tracking = _fetch(remote, branch)
    # git exits with 1 for a commit that is not an ancestor, with 128 for one that this clone lacks.
    if _run(remote.clone, "merge-base", "--is-ancestor", commit, tracking).exit_code == 0:
        return True
    if is_shallow(remote.clone):
        raise RepositoryError(
            f"This clone is shallow, so it cannot tell whether {commit[:9]} is on {remote.name}/{branch}: run "
            "`git fetch --unshallow`, then the same command again."
        )
    return False


def _fetch(remote: Remote, branch: str) -> str:
    tracking = f"refs/remotes/{remote.name}/{branch}"
    refspec = f"+refs/heads/{branch}:{tracking}"
    _ask(remote, f"did not give its branch {branch}", "fetch", "--quiet", "--no-tags", remote.name, refspec)
    return tracking


def create_tag(clone: Clone, name: str, commit: str, message: str) -> Tag:
    """Creates an annotated tag in this clone, signed if the user's `tag.gpgSign` is set, and returns it.

    Raises:
        RepositoryError: git refused, such as for an existing name or a failed signature.
    """
    done = _run(clone, "tag", "--annotate", "--message", message, name, commit)
    if done.exit_code:
        raise RepositoryError(f"git did not make the tag {name} ({done.git_reason}): fix that and run it again.")
    return release_tags(clone)[name]


def delete_tag(clone: Clone, name: str, tag: Tag) -> None:
    """Removes a tag from this clone, unless it has changed since."""
    _run(clone, "update-ref", "-d", f"refs/tags/{name}", tag.object)


def push_release(remote: Remote, branch: str, name: str, tag: Tag) -> None:
    """Pushes a tag, and the branch up to its commit, atomically: both or neither.

    Raises:
        RepositoryError: the remote rejected the push, such as after a push by somebody else, or did not answer.
    """
    refspecs = (f"{tag.commit}:refs/heads/{branch}", f"{tag.object}:refs/tags/{name}")
    arguments = ("push", "--quiet", "--atomic", "--no-follow-tags", remote.name, *refspecs)
    _ask(remote, f"did not take {name}, so nothing is released", *arguments)


def _ask(remote: Remote, failed: str, *arguments: str) -> str:
    # With the user's hooks, of which pre-push may forbid a push.
    done = programs.git(*arguments, directory=_directory(remote.clone), timeout=remote.seconds, hooks=True)
    if done.exit_code:
        reason = f"no answer within {remote.seconds:g} s" if done.timed_out else done.git_reason
        raise RepositoryError(f"{remote.name} {failed} ({reason}): fix that and run the same command again.")
    return done.stdout


def _answer(clone: Clone, *arguments: str) -> str:
    done = _run(clone, *arguments)
    if done.exit_code:
        raise RepositoryError(f"`git {arguments[0]}` failed in {clone.working_dir} ({done.git_reason}).")
    return done.stdout


def _directory(clone: Clone) -> Path:
    return Path(str(clone.working_dir))


def _run(clone: Clone, *arguments: str) -> programs.Outcome:
    """Runs a git command that asks no remote, and leaves it the terminal: signing may prompt for a passphrase."""
    # GitPython adds variables to this process's and takes none away.
    foreign = [word for name in os.environ if programs.is_foreign(name) for word in ("-u", name)]
    status, stdout, stderr = clone.execute(
        ["env", *foreign, *programs.git_command(*arguments, directory=_directory(clone))],
        env=programs.git_environment(_directory(clone)),
        with_extended_output=True,
        with_exceptions=False,
        stdout_as_string=False,
        strip_newline_in_stdout=False,
    )
    if status == programs.NOT_INSTALLED:
        raise RepositoryError("git is not installed, and versions come from it: install it and run this again.")
    # GitPython raises on a name that is not UTF-8, or returns what cannot be printed.
    printed = bytes(stdout).decode("utf-8", "replace")
    reason = stderr.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return programs.Outcome(exit_code=status, stdout=printed, stderr=reason)


# Files of a commit.


def texts(clone: Clone, commit: str, *paths: str) -> dict[str, str]:
    """Returns the texts of files in a commit by path: of each path that is a file, of the files in each that ends in /.

    A symbolic link has the text of the file that it leads to in the commit, and is left out if there is none.

    Raises:
        RepositoryError: git cannot read them.
    """
    found: dict[str, str] = {}
    listed = _answer(clone, "ls-tree", "-z", "--full-tree", commit, "--", *paths).split("\0")
    for fields, name in (entry.split("\t", 1) for entry in listed if entry):
        mode, kind, blob = fields.split()
        if kind == "blob":
            text = _answer(clone, "cat-file", "blob", blob)
            linked = _linked(clone, commit, name, text) if mode == _LINK else text
            found |= {name: linked} if linked is not None else {}
    return found


_LINK = "120000"
_MAX_LINKS = 8


def _linked(clone: Clone, commit: str, name: str, target: str) -> str | None:
    """Returns the text of the file that a symbolic link leads to; None if there is none in the commit."""
    for _ in range(_MAX_LINKS):
        name = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        if name.startswith(("/", "..")):
            return None
        listed = _answer(clone, "ls-tree", "-z", "--full-tree", commit, "--", name).rstrip("\0")
        mode, kind, blob = listed.partition("\t")[0].split() if listed else ("", "", "")
        if kind != "blob":
            return None
        target = _answer(clone, "cat-file", "blob", blob)
        if mode != _LINK:
            return target
    return None


def blobs(clone: Clone, commit: str) -> dict[str, str]:
    """Returns the ids of all files in a commit by path.

    Raises:
        RepositoryError: git cannot read it.
    """
    listed = _answer(clone, "ls-tree", "-r", "-z", "--full-tree", commit).split("\0")
    entries = (entry.partition("\t") for entry in listed if entry)
    return {path: fields.split()[2] for fields, _, path in entries if " blob " in fields}


def blob_id(content: bytes, like: str) -> str:
    """Returns git's id of a file with this content, by the hash algorithm of the id `like`."""
    algorithm = hashlib.sha256 if len(like) == _SHA256_DIGITS else hashlib.sha1
    return algorithm(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def commit_time(clone: Clone, commit: str) -> datetime:
    """Returns the time of a commit, UTC.

    Raises:
        RepositoryError: git cannot read it.
    """
    return datetime.fromtimestamp(int(_answer(clone, "log", "--max-count=1", "--format=%ct", commit)), UTC)


def source_clone(path: Path, ref: str) -> Clone:
    """Returns the clone of llama.cpp at `path`, which has the ref.

    Raises:
        SourceError: `path` is not a clone, git refuses to read it, or it lacks the ref.
    """
    clone = git.Git(path)
    done = _run(clone, "rev-parse", "--verify", f"{ref}^{{commit}}")
    if done.exit_code == 0:
        return clone
    if _NO_REPOSITORY in done.stderr or not path.exists():
        raise SourceError(f"{path} is not a git clone: give --source one of llama.cpp that has {ref}.")
    if "single revision" in done.stderr:
        raise SourceError(f"The clone {path} has no ref {ref!r}: `git -C {path} fetch --tags` may help.")
    raise SourceError(f"git refuses to read the clone {path} ({done.git_reason}): fix that and run it again.")
