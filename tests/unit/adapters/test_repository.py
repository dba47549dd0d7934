from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import git
import pytest

from base_images.adapters import repository
from base_images.errors import RepositoryError

AUGUST = "2025-08-20T14:20:30+0200"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[git.Repo]:
    with git.Repo.init(tmp_path / "checkout", initial_branch="main") as made:
        commit(made, "first", AUGUST)
        yield made


def commit(made: git.Repo, name: str, date: str) -> str:
    path = Path(made.working_dir) / name
    path.write_text(name)
    made.index.add([str(path)])
    made.git.execute(
        ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-m", name],
        env={"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
    )
    return made.head.commit.hexsha


def test_a_commit_of_the_year_36812_is_an_error(checkout: git.Repo) -> None:
    commit(checkout, "late", "@1099511627776 +0000")
    with pytest.raises(RepositoryError, match="is dated 1099511627776 seconds after 1970, which the two digits"):
        repository.head(checkout)


def test_head(checkout: git.Repo) -> None:
    head = repository.head(checkout)
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
    head = repository.head(checkout)
    assert head.version.dirty
    assert head.changes == ("first" if change in ("edited", "deleted") else "new",)


def test_a_detached_head_has_the_only_branch_at_its_commit(checkout: git.Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_REF_TYPE", raising=False)
    first = checkout.head.commit.hexsha
    checkout.git.checkout("--detach")
    assert repository.head(checkout).branch == "main"
    commit(checkout, "second", AUGUST)
    assert repository.head(checkout).branch == repository.DETACHED
    checkout.git.checkout(first)
    checkout.git.branch("other", first)
    assert repository.head(checkout).branch == repository.DETACHED


def test_in_ci_the_branch_is_github_ref_name_unless_that_is_a_tag(
    checkout: git.Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.git.checkout("--detach")
    monkeypatch.setenv("GITHUB_REF_NAME", "topic")
    monkeypatch.setenv("GITHUB_REF_TYPE", "branch")
    assert repository.head(checkout).branch == "topic"
    monkeypatch.setenv("GITHUB_REF_TYPE", "tag")
    assert repository.head(checkout).branch == "main"


def test_releases(checkout: git.Repo) -> None:
    assert repository.releases(checkout) == repository.Releases(
        newest=None, head=None, commits_since=None, shallow=False
    )
    released = repository.head(checkout).version
    checkout.create_tag(released.git_tag, message="release")
    for other in ("nonsense", "202512281717-e118046"):
        checkout.create_tag(f"base-images/v{other}")
    assert repository.releases(checkout) == repository.Releases(
        newest=released, head=released, commits_since=0, shallow=False
    )
    commit(checkout, "second", "2025-08-21T00:00:00+0000")
    commit(checkout, "third", "2025-08-22T00:00:00+0000")
    assert repository.releases(checkout) == repository.Releases(
        newest=released, head=None, commits_since=2, shallow=False
    )


def test_a_shallow_clone_has_no_commit_count(checkout: git.Repo, tmp_path: Path) -> None:
    checkout.create_tag(repository.head(checkout).version.git_tag)
    for number in range(4):
        commit(checkout, f"later-{number}", "2025-08-21T00:00:00+0000")
    url = f"file://{checkout.working_dir}"
    with git.Repo.clone_from(url, tmp_path / "clone", depth=2, no_single_branch=True) as clone:
        clone.git.fetch("--tags", "--depth=1")
        found = repository.releases(clone)
        assert found.shallow
        assert found.newest is not None
        assert found.commits_since is None
        assert repository.head(clone).version == repository.head(checkout).version


def test_no_repository_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is not a git repository"):
        repository.open_clone(tmp_path)


def test_a_repository_without_a_commit_is_one_sentence(tmp_path: Path) -> None:
    git.Repo.init(tmp_path).close()
    with pytest.raises(RepositoryError, match="has no commit yet"):
        repository.open_clone(tmp_path)


def test_a_commit_of_1970_is_one_sentence(checkout: git.Repo) -> None:
    commit(checkout, "epoch", "1970-01-01T00:00:01+0000")
    with pytest.raises(RepositoryError, match="1970-01-01"):
        repository.head(checkout)


def test_a_commit_of_2099(checkout: git.Repo) -> None:
    commit(checkout, "late", "2099-12-31T23:59:00+0000")
    assert repository.head(checkout).version.timestamp == "9912312359"
