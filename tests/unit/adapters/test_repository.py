from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import git
import pytest

from base_images.adapters import repository
from base_images.errors import RepositoryError, SourceError
from tests.support import programs
from tests.support.clones import commit

AUGUST = "2025-08-20T14:20:30+0200"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[git.Repo]:
    with git.Repo.init(tmp_path / "checkout") as made:
        commit(made, "first", AUGUST)
        yield made


def test_a_commit_of_the_year_36812_is_an_error(checkout: git.Repo) -> None:
    commit(checkout, "late", "@1099511627776 +0000")
    with pytest.raises(RepositoryError, match="is dated 1099511627776 seconds after 1970, which the two digits"):
        repository.head(checkout.git)


def test_head(checkout: git.Repo) -> None:
    head = repository.head(checkout.git)
    assert head.commit == checkout.head.commit.hexsha
    assert str(head.version) == f"2508201220-{head.commit[:7]}"
    assert head.branch == "main"
    assert head.changes == ()


@pytest.mark.parametrize("change", ["edited", "untracked", "staged", "deleted"])
def test_every_kind_of_change_makes_the_version_dirty(checkout: git.Repo, change: str) -> None:
    tree = Path(checkout.working_dir)
    match change:
        case "edited":
            (tree / "first").write_text("other")
        case "untracked":
            (tree / "new").write_text("new")
        case "staged":
            (tree / "new").write_text("new")
            checkout.index.add(["new"])
        case "deleted":
            (tree / "first").unlink()
    head = repository.head(checkout.git)
    assert head.version.dirty
    assert head.changes == ("first" if change in ("edited", "deleted") else "new",)


def test_a_detached_head_has_the_only_branch_at_its_commit(checkout: git.Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REF_TYPE", raising=False)
    first = checkout.head.commit.hexsha
    checkout.git.checkout("--detach")
    assert repository.head(checkout.git).branch == "main"
    commit(checkout, "second", AUGUST)
    assert repository.head(checkout.git).branch == repository.DETACHED
    checkout.git.checkout(first)
    checkout.git.branch("other", first)
    assert repository.head(checkout.git).branch == repository.DETACHED


def test_in_ci_the_branch_is_github_ref_name_unless_that_is_a_tag(
    checkout: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.git.checkout("--detach")
    monkeypatch.setenv("GITHUB_REF_NAME", "topic")
    monkeypatch.setenv("GITHUB_REF_TYPE", "branch")
    assert repository.head(checkout.git).branch == "topic"
    monkeypatch.setenv("GITHUB_REF_TYPE", "tag")
    assert repository.head(checkout.git).branch == "main"


def test_releases(checkout: git.Repo) -> None:
    assert repository.releases(checkout.git) == repository.Releases(
        newest=None, head=None, commits_since=None, shallow=False
    )
    released = repository.head(checkout.git).version
    checkout.create_tag(released.git_tag, message="release")
    for other in ("nonsense", "202512281717-e118046"):
        checkout.create_tag(f"base-images/v{other}")
    assert repository.releases(checkout.git) == repository.Releases(
        newest=released, head=released, commits_since=0, shallow=False
    )
    commit(checkout, "second", "2025-08-21T00:00:00+0000")
    commit(checkout, "third", "2025-08-22T00:00:00+0000")
    assert repository.releases(checkout.git) == repository.Releases(
        newest=released, head=None, commits_since=2, shallow=False
    )


def test_a_shallow_clone_has_no_commit_count(checkout: git.Repo, tmp_path: Path) -> None:
    checkout.create_tag(repository.head(checkout.git).version.git_tag)
    for number in range(4):
        commit(checkout, f"later-{number}", "2025-08-21T00:00:00+0000")
    url = f"file://{checkout.working_dir}"
    with git.Repo.clone_from(url, tmp_path / "clone", depth=2, no_single_branch=True) as clone:
        clone.git.fetch("--tags", "--depth=1")
        found = repository.releases(clone.git)
        assert found.shallow
        assert found.newest is not None
        assert found.commits_since is None
        assert repository.head(clone.git).version == repository.head(checkout.git).version


OF_THE_FUTURE = "[core]\nrepositoryFormatVersion = 1\n[extensions]\nrefstorage = of-the-future\n"

SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (shutil.rmtree, "No such file or directory"),
    "no repository": (lambda tree: shutil.rmtree(tree / ".git"), "is not a git repository"),
    "no commit": (lambda tree: (tree / ".git/refs/heads/main").unlink(), "has no commit yet"),
    "damaged": (
        lambda tree: (tree / ".git/refs/heads/main").write_text(f"{1:040x}\n"),
        "git refuses to read the repository .*HEAD",
    ),
    "of a later git": (
        lambda tree: (tree / ".git/config").write_text(OF_THE_FUTURE),
        "git refuses to read the repository .*(refstorage|of-the-future)",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_clone_that_cannot_be_read_is_one_sentence(checkout: git.Repo, name: str) -> None:
    spoil, said = SPOILED[name]
    root = Path(checkout.working_dir)
    spoil(root)
    with pytest.raises(RepositoryError, match=said):
        repository.open_clone(root)


# What users' machines are like.

HOSTILE_SETTINGS = {
    "color.ui": "always",
    "color.advice": "always",
    "color.push": "always",
    "color.remote": "always",
    "color.transport": "always",
    "column.ui": "always",
    "core.abbrev": "4",
    "core.fsmonitor": "{monitor}",
    "gpg.format": "ssh",
    "core.quotePath": "true",
    "diff.mnemonicPrefix": "true",
    "fetch.prune": "true",
    "fetch.pruneTags": "true",
    "i18n.commitEncoding": "UTF-16",
    "i18n.logOutputEncoding": "UTF-16",
    "init.defaultObjectFormat": "sha256",
    "log.date": "relative",
    "log.decorate": "full",
    "log.showSignature": "true",
    "push.default": "nothing",
    "push.followTags": "true",
    "push.recurseSubmodules": "check",
    "status.branch": "true",
    "status.relativePaths": "true",
    "status.renames": "copies",
    "status.short": "true",
    "status.showStash": "true",
    "status.showUntrackedFiles": "no",
    "tag.sort": "-refname",
}
HOSTILE_VARIABLES = {
    **dict.fromkeys(
        ("GIT_DIR", "GIT_WORK_TREE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_SHALLOW_FILE"),
        "{elsewhere}",
    ),
    "GIT_ATTR_SOURCE": "nothing",
    "GIT_CEILING_DIRECTORIES": "{checkout}",
    "GIT_DEFAULT_HASH": "sha256",
    "GIT_EXTERNAL_DIFF": "false",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NAMESPACE": "other",
    "GIT_PAGER": "false",
    "GIT_PAGER_IN_USE": "1",
    "GIT_PREFIX": "sub/",
    "GIT_TRACE": "1",
    "GIT_TRACE_SETUP": "1",
    "LANGUAGE": "de",
    "LC_ALL": "de_DE.ISO-8859-1",
}


@pytest.fixture
def _hostile(checkout: git.Repo, tmp_path: Path) -> Iterator[None]:
    """A user's settings and the variables of a hook that would change what git answers of the checkout."""
    elsewhere = tmp_path / "elsewhere"
    monitor = programs.script(tmp_path / "monitor", "printf 'token\\0'")  # nothing has changed
    with git.Repo.init(elsewhere, initial_branch="other") as other:
        commit(other, "elsewhere", AUGUST)
    places = {"monitor": monitor, "elsewhere": elsewhere / ".git", "checkout": checkout.working_dir}
    with pytest.MonkeyPatch.context() as patch:
        settings = tmp_path / "gitconfig"
        for name, value in HOSTILE_SETTINGS.items():
            subprocess.run(["git", "config", "--file", settings, name, value.format(**places)], check=True)
        patch.setenv("GIT_CONFIG_GLOBAL", str(settings))
        for name, value in HOSTILE_VARIABLES.items():
            patch.setenv(name, value.format(**places))
        yield


@pytest.mark.usefixtures("_hostile")
def test_neither_a_hook_nor_the_user_s_settings_change_an_answer(checkout: git.Repo, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as calm:
        for name in (*HOSTILE_VARIABLES, "GIT_CONFIG_GLOBAL"):
            calm.delenv(name)
        calm.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "calm"))
        (tmp_path / "calm").write_text("[user]\nname = A\nemail = a@example.org\n")
        tree = Path(checkout.working_dir)
        commit(checkout, "Gerät", AUGUST)
        checkout.git.execute(["git", "-c", "user.name=A", "-c", "user.email=a@b", "tag", "-am", "m", "v1"])
        checkout.create_tag(repository.head(checkout.git).version.git_tag)
        commit(checkout, "zwölf", AUGUST)
        key = tmp_path / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        settings = ("gpg.format=ssh", f"user.signingKey={key}", "user.name=A", "user.email=a@example.org")
        options = [word for setting in settings for word in ("-c", setting)]
        checkout.git.execute(["git", *options, "commit", "--amend", "--no-edit", "--gpg-sign"])
        with git.Repo.init(tmp_path / "remote.git", bare=True, initial_branch="main"):
            checkout.create_remote("origin", str(tmp_path / "remote.git"))
        checkout.git.push("origin", "main")
        checkout.git.mv("first", "moved")
        (tree / "sub").mkdir()
        (tree / "sub" / "new").write_text("new")
        checkout.git.execute(["git", "-c", f"core.fsmonitor={tmp_path / 'monitor'}", "status"])
        (tree / "Gerät").write_text("edited")
        index = Path(checkout.git_dir, "index").read_bytes()
        expected = answers(checkout)
    assert expected["changes"] == ("Gerät", "first", "moved", "sub/")
    assert answers(checkout) == expected
    assert expected["subjects"] == repository.Commits(count=3, subjects=("Add zwölf", "Add Gerät", "Add first"))
    assert Path(checkout.git_dir, "index").read_bytes() == index


def answers(checkout: git.Repo) -> dict[str, object]:
    clone = repository.open_clone(Path(checkout.working_dir))
    head, remote = repository.head(clone), repository.Remote(clone=clone)
    return {
        "head": (head.commit, head.time, head.branch, head.version),
        "changes": tuple(sorted(head.changes)),
        "releases": repository.releases(clone),
        "tags": repository.release_tags(clone),
        "subjects": repository.commits(clone, head.commit, since=None, most=9),
        "shallow": repository.is_shallow(clone),
        "remote tags": repository.remote_release_tags(remote),
        "files": repository.texts(clone, "HEAD", "first", "Gerät", "none"),
    }


def test_a_user_s_hook_may_forbid_the_push_and_is_quoted_without_colours(
    checkout: git.Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, settings = tmp_path / "hooks", tmp_path / "gitconfig"
    programs.script(hooks / "pre-push", "echo not on a Friday >&2\nexit 1")
    settings.write_text(
        f"[core]\n\thooksPath = {hooks}\n[color]\n\tui = always\n\tpush = always\n\tadvice = always\n"
        "[user]\n\tname = A\n\temail = a@example.org\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    with git.Repo.init(tmp_path / "remote.git", bare=True):
        checkout.create_remote("origin", str(tmp_path / "remote.git"))
    clone = repository.open_clone(Path(checkout.working_dir))
    head = repository.head(clone)
    tag = repository.create_tag(clone, head.version.git_tag, head.commit, "m")
    with pytest.raises(RepositoryError, match=r"^[^\x1b]*\(not on a Friday\)[^\x1b]*$"):
        repository.push_release(repository.Remote(clone=clone), "main", head.version.git_tag, tag)


def test_a_commit_is_what_it_is_for_everybody_whatever_this_clone_replaces(checkout: git.Repo) -> None:
    before = repository.head(checkout.git)
    commit(checkout, "other", "2025-08-21T00:00:00+0000")
    checkout.git.replace(before.commit, "HEAD")
    checkout.git.switch("--detach", before.commit)
    after = repository.head(checkout.git)
    assert (after.time, after.version.timestamp) == (before.time, before.version.timestamp)


def test_a_branch_name_need_not_be_utf_8(checkout: git.Repo) -> None:
    subprocess.run([b"git", b"switch", b"--quiet", b"--create", b"caf\xe9"], cwd=checkout.working_dir, check=True)
    assert repository.head(repository.open_clone(Path(checkout.working_dir))).branch == "caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_git_s_words_about_another_user_s_repository_are_quoted(
    checkout: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the tests' own calls every directory safe
    root = Path(checkout.working_dir)
    os.chown(root, 12345, 12345)
    words = rf"owner.*git config --global --add safe\.directory {root}\)"
    with pytest.raises(RepositoryError, match=words):
        repository.open_clone(root)
    with pytest.raises(SourceError, match=words):
        repository.source_clone(root, "main")


def test_a_repository_with_reftable(tmp_path: Path) -> None:
    init = ["git", "init", "--quiet", "--initial-branch=main", "--ref-format=reftable", str(tmp_path)]
    if subprocess.run(init, check=False, capture_output=True).returncode:
        pytest.skip("git has --ref-format since 2.45")
    with pytest.raises(RepositoryError, match="has no commit yet"):
        repository.open_clone(tmp_path)
    options = ["-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "--quiet", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", tmp_path, *options], check=True)
    clone = repository.open_clone(tmp_path)
    repository._run(clone, "tag", "base-images/v2508201220-abcdef0")
    head = repository.head(clone)
    assert (head.branch, head.changes) == ("main", ())
    assert repository.release_tags(clone)["base-images/v2508201220-abcdef0"].commit == head.commit


@pytest.mark.parametrize("gitdir", ["none", "empty", "gone"])
def test_files_inside_another_repository_have_no_version(checkout: git.Repo, gitdir: str) -> None:
    inner = Path(checkout.working_dir) / "inner"
    inner.mkdir()
    match gitdir:
        case "empty":
            (inner / ".git").mkdir()
        case "gone":
            (inner / ".git").write_text("gitdir: ../modules/inner\n")
    with pytest.raises(RepositoryError, match="not a git repository"):
        repository.open_clone(inner)
