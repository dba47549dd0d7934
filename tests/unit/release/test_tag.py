"""Releases from a real clone to a real bare remote."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import git
import pytest

from base_images import settings, variants
from base_images.adapters import repository
from base_images.adapters.repository import Remote
from base_images.errors import RepositoryError, SourceError
from base_images.release import tag as release_tag
from base_images.release.tag import Plan, State, Status
from tests.support import programs
from tests.support.clones import commit
from tests.support.registries import connections

NOW = datetime(2025, 9, 1, tzinfo=UTC)
MERGED = "2025-08-20T14:20:30+0000"
LATER = "2025-08-20T15:00:00+0000"
OTHER, SAME_MINUTE = "base-images/v2508211200-abcdef0", "base-images/v2508201420-fffffff"
NEWER = "newer than the last release"


@dataclass(frozen=True, kw_only=True)
class Site:
    """An engineer's clone, a colleague's, and the bare repository that both push to."""

    clone: git.Repo
    colleague: git.Repo
    bare: git.Repo

    @property
    def tag(self) -> str:
        return repository.head(self.clone.git).version.git_tag

    def refs(self) -> str:
        """Returns all local and remote refs except those that a fetch may move."""
        here = [line for line in everything(self.clone).splitlines() if "refs/remotes/" not in line]
        return "\n".join([*here, "there:", everything(self.bare)])

    def hook(self, name: str, script: str) -> None:
        programs.script(Path(self.bare.git_dir) / "hooks" / name, script)


def everything(repo: git.Repo) -> str:
    return str(repo.git.for_each_ref())


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("template")
    with git.Repo.init(directory / "remote.git", bare=True), git.Repo.init(directory / "clone") as clone:
        clone.create_remote("origin", "../remote.git")
        commit(clone, "first", "2025-08-19T10:00:00+0000")
        commit(clone, "second", MERGED)
        clone.git.push("--set-upstream", "origin", "main")
    shutil.copytree(directory / "clone", directory / "colleague")
    return directory


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Iterator[Site]:
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)
    with (
        git.Repo(tmp_path / "remote.git") as bare,
        git.Repo(tmp_path / "clone") as clone,
        git.Repo(tmp_path / "colleague") as colleague,
    ):
        yield Site(clone=clone, colleague=colleague, bare=bare)


def examine(site: Site, *, now: datetime = NOW, problem: str = "", seconds: float = 60) -> State:
    remote = Remote(clone=site.clone.git, seconds=seconds)
    return release_tag.examine(remote, "main", now=now, mirror_problem=lambda: problem)


def planned(site: Site) -> Plan:
    state = examine(site)
    assert state.ok, state.checks
    return release_tag.plan(Remote(clone=site.clone.git), state, settings.load())


def publish(site: Site, plan: Plan, *, seconds: float = 60) -> None:
    release_tag.publish(Remote(clone=site.clone.git, seconds=seconds), plan)


def refused(site: Site, plan: Plan, reason: str, *, seconds: float = 60) -> str:
    """Returns the error of a publication that changes nothing."""
    before = site.refs()
    with pytest.raises(RepositoryError, match=reason) as caught:
        publish(site, plan, seconds=seconds)
    assert site.refs() == before
    return str(caught.value)


def failed(state: State) -> dict[str, str]:
    assert not any(check.status is Status.SKIP for check in state.checks)
    return {check.name: check.seen for check in state.checks if check.status is Status.FAIL}


def test_a_clean_and_level_main_may_be_released_and_examining_changes_nothing(site: Site) -> None:
    before = site.refs()
    state = examine(site)
    assert [check.name for check in state.checks] == [
        "clean tree",
        "release branch",
        "whole history",
        "not in the future",
        "remote",
        "level with origin",
        "tag free",
        "newer than the last release",
        "recipes mirror upstream",
    ]
    assert failed(state) == {}
    assert state.ok
    assert not state.released
    assert site.refs() == before


def edit(site: Site) -> None:
    (Path(site.clone.working_dir) / "first").write_text("edited")


def ahead(site: Site) -> None:
    commit(site.clone, "third", LATER)


def behind(site: Site) -> None:
    commit(site.colleague, "third", LATER)
    commit(site.colleague, "fourth", LATER)
    site.colleague.git.push()


def diverged(site: Site) -> None:
    commit(site.clone, "mine", LATER)
    behind(site)


def tagged_there(site: Site, name: str, *options: str) -> None:
    site.colleague.git.tag(*options, name, "HEAD~")
    site.colleague.git.push("origin", "--tags")


@pytest.mark.parametrize(
    ("spoil", "check", "said"),
    [
        (edit, "clean tree", "commit or stash first"),
        (lambda site: site.clone.git.switch("--create", "topic"), "release branch", "on topic: `git switch main`"),
        (lambda site: site.clone.git.checkout("--detach"), "release branch", "HEAD is detached: `git switch main`"),
        (ahead, "level with origin", "1 ahead of origin/main: `git push origin main` first"),
        (behind, "level with origin", "2 behind origin/main: `git pull --ff-only`"),
        (diverged, "level with origin", "diverged from origin/main, 1 ahead and 2 behind"),
        (lambda site: tagged_there(site, site.tag, "-am", "x"), "tag free", "and is never moved: commit again"),
        (lambda site: site.clone.git.tag("-am", "x", site.tag, "HEAD~"), "tag free", "find out why, then `git tag -d"),
        (lambda site: site.clone.git.tag(site.tag), "tag free", "not annotated, and not at origin: `git tag -d"),
        (lambda site: tagged_there(site, OTHER), NEWER, "is not newer than 2508211200-abcdef0 (at origin)"),
        (lambda site: site.clone.git.tag(OTHER, "HEAD~"), NEWER, "is not newer than 2508211200-abcdef0 (here only)"),
        (lambda site: tagged_there(site, SAME_MINUTE), NEWER, "is not newer than 2508201420-fffffff (at origin)"),
    ],
)
def test_each_precondition_fails_alone(site: Site, spoil: Callable[[Site], object], check: str, said: str) -> None:
    spoil(site)
    before = site.refs()
    state = examine(site)
    assert list(failed(state)) == [check]
    assert said in failed(state)[check]
    assert not state.ok
    assert not state.released
    assert site.refs() == before


def test_a_commit_dated_in_the_future_is_not_released(site: Site) -> None:
    state = examine(site, now=datetime(2025, 8, 20, 14, 20, 29, tzinfo=UTC))
    assert list(failed(state)) == ["not in the future"]
    assert "2025-08-20 14:20:30 UTC and it is 2025-08-20 14:20:29 UTC here" in failed(state)["not in the future"]
    assert examine(site, now=datetime(2025, 8, 20, 14, 20, 30, tzinfo=UTC)).ok


def test_a_shallow_clone_is_not_released(site: Site, tmp_path: Path) -> None:
    with git.Repo.clone_from(f"file://{site.bare.git_dir}", tmp_path / "shallow", depth=1) as shallow:
        state = examine(Site(clone=shallow, colleague=site.colleague, bare=site.bare))
    assert failed(state) == {"whole history": "the clone is shallow: `git fetch --unshallow`"}


def test_recipes_that_do_not_mirror_upstream_are_not_released(site: Site) -> None:
    assert failed(examine(site, problem="look at cuda")) == {"recipes mirror upstream": "look at cuda"}

    def unavailable() -> str:
        raise SourceError("there is no source")

    state = release_tag.examine(Remote(clone=site.clone.git), "main", now=NOW, mirror_problem=unavailable)
    assert failed(state) == {"recipes mirror upstream": "there is no source"}


def test_every_precondition_is_checked_even_when_others_fail(site: Site) -> None:
    diverged(site)
    site.clone.git.tag(site.tag)
    tagged_there(site, OTHER)
    edit(site)
    site.clone.git.switch("--create", "topic")
    state = examine(site, now=datetime(2025, 1, 1, tzinfo=UTC), problem="look at cuda")
    assert [check.name for check in state.checks if check.status is Status.PASS] == ["whole history", "remote"]


def without_remote(state: State) -> str:
    """Asserts that only the remote fails, and that checks that need it are skipped."""
    checks = {check.name: check for check in state.checks}
    assert [name for name, check in checks.items() if check.status is Status.FAIL] == ["remote"]
    assert [name for name, check in checks.items() if check.status is Status.SKIP] == [
        "level with origin",
        "tag free",
        "newer than the last release",
    ]
    assert not state.ok
    return checks["remote"].seen


def test_a_clone_without_a_remote_is_not_released(site: Site) -> None:
    site.clone.git.remote("remove", "origin")
    assert "no remote origin, and a release is a tag there: `git remote add origin URL`" in without_remote(
        examine(site)
    )


def test_a_missing_remote_is_reported(site: Site) -> None:
    shutil.rmtree(site.bare.git_dir)
    said = without_remote(examine(site))
    assert said.startswith("origin did not say which releases it has (")
    assert "does not appear to be a git repository" in said
    assert "access rights" not in said


def test_a_remote_without_the_branch_is_reported(site: Site) -> None:
    site.bare.git.branch("-m", "main", "trunk")
    assert "couldn't find remote ref refs/heads/main" in failed(examine(site))["level with origin"]


def test_a_remote_that_does_not_answer_is_asked_once(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        site.clone.git.remote("set-url", "origin", f"git://127.0.0.1:{silent.getsockname()[1]}/x.git")
        assert "(no answer within 0.5 s)" in without_remote(examine(site, seconds=0.5))
        assert connections(silent) <= 1


def test_a_remote_that_asks_for_a_password_gets_none(site: Site, tmp_path: Path) -> None:
    asking = "printf 'protocol=https\\nhost=example.org\\n\\n' | git credential fill\nexit 1"
    helper = programs.script(tmp_path / "git-remote-locked", asking)
    site.clone.git.remote("set-url", "origin", f"ext::{helper}")
    site.clone.git.config("protocol.ext.allow", "always")
    assert "terminal prompts disabled" in without_remote(examine(site))


def test_the_plan_of_the_first_release(site: Site) -> None:
    plan = planned(site)
    chosen = settings.load()
    assert plan.tag == f"base-images/v2508201420-{site.clone.head.commit.hexsha[:7]}"
    assert plan.images == tuple(f"{chosen.registry}:{variant.name}-{plan.version}" for variant in variants.VARIANTS)
    assert plan.pin == chosen.pin
    assert plan.last is None
    assert plan.commits == repository.Commits(count=2, subjects=("Add second", "Add first"))


def test_tags_of_another_build_system_are_not_releases(site: Site) -> None:
    """Its tags have a four-digit year, so that each would be newer than every tag of ours."""
    tagged_there(site, "base-images/v202512281717-e118046")
    site.clone.git.fetch("--tags")
    state = examine(site)
    assert failed(state) == {}
    assert state.last is None


def test_the_plan_lists_the_commits_since_the_last_release(site: Site) -> None:
    first = planned(site)
    publish(site, first)
    for number in range(25):
        commit(site.clone, f"later-{number}", LATER)
    site.clone.git.push()
    # A tag of a killed run is no release: its commits are still new.
    site.clone.git.tag("base-images/v2508201421-abcdef0")
    plan = planned(site)
    assert plan.last == first.version
    assert plan.commits is not None
    assert plan.commits.count == 25
    assert plan.commits.subjects == tuple(f"Add later-{number}" for number in range(24, 4, -1))


def test_the_plan_has_no_commits_if_the_last_release_is_of_another_history(site: Site) -> None:
    site.colleague.git.switch("--create", "hotfix", "HEAD~")
    commit(site.colleague, "fix", "2025-08-19T11:00:00+0000")
    site.colleague.git.tag(f"base-images/v2508191100-{site.colleague.head.commit.hexsha[:7]}")
    site.colleague.git.push("origin", "--tags")
    plan = planned(site)
    assert str(plan.last).startswith("2508191100-")
    assert plan.commits is None


def test_a_release_is_an_annotated_tag_here_and_at_the_remote(site: Site) -> None:
    plan = planned(site)
    publish(site, plan)
    for where in (site.clone, site.bare):
        tag = where.tag(plan.tag)
        assert tag.tag is not None
        assert tag.commit.hexsha == plan.commit
        assert tag.tag.message.strip() == plan.message.strip()
    assert plan.pin.commit in plan.message
    assert settings.load().registry in plan.message


def test_a_released_commit_is_reported_as_released_before_any_check(site: Site) -> None:
    publish(site, planned(site))
    site.clone.git.tag("-d", site.tag)
    behind(site)
    before = site.refs()
    state = examine(site)
    assert state.released
    assert state.checks == ()
    assert site.refs() == before


def test_a_tag_made_by_hand_is_a_release_too(site: Site) -> None:
    site.colleague.git.tag(site.tag)
    site.colleague.git.push("origin", "--tags")
    assert examine(site).released


def test_a_released_commit_with_changes_is_not_reported_as_released(site: Site) -> None:
    publish(site, planned(site))
    edit(site)
    state = examine(site)
    assert not state.released
    assert list(failed(state)) == ["clean tree", "tag free"]
    assert "without the changes here: commit them" in failed(state)["tag free"]


def test_a_refused_push_leaves_no_tag(site: Site) -> None:
    plan = planned(site)
    site.hook("pre-receive", "echo 'no releases on Fridays' >&2\nexit 1")
    said = refused(site, plan, "pre-receive hook declined")
    assert said.startswith(f"origin did not take {plan.tag}, so nothing is released (no releases on Frid")
    assert "\n" not in said
    assert "failed to push some refs" not in said
    site.hook("pre-receive", "exit 0")
    publish(site, planned(site))
    assert examine(site).released


def reverted(site: Site) -> None:
    """The last commit, and the remote takes no tag: the push is atomic."""
    site.bare.git.update_ref("refs/heads/main", "main~")
    site.hook("update", 'case "$1" in refs/tags/*) exit 1 ;; esac')


def signing(site: Site) -> None:
    site.clone.git.config("tag.gpgSign", "true")
    site.clone.git.config("gpg.program", "false")


@pytest.mark.parametrize(
    ("meanwhile", "reason"),
    [
        (reverted, "hook declined"),
        (behind, "fetch first"),
        (lambda site: tagged_there(site, site.tag, "-am", "x"), "already exists"),
        (lambda site: site.clone.git.tag("-am", "x", site.tag, "HEAD~"), "in the meantime"),
        (signing, "unable to sign the tag"),
    ],
)
def test_a_release_that_cannot_be_made_any_more_changes_nothing(
    site: Site, meanwhile: Callable[[Site], object], reason: str
) -> None:
    plan = planned(site)
    meanwhile(site)
    refused(site, plan, reason)


def test_a_concurrent_local_commit_is_not_pushed(site: Site) -> None:
    plan = planned(site)
    ahead(site)
    publish(site, plan)
    assert site.bare.tag(plan.tag).commit.hexsha == plan.commit
    assert site.bare.commit("main").hexsha == plan.commit


def test_losing_the_race_for_the_same_commit_is_success(site: Site) -> None:
    plan = planned(site)
    release_tag.publish(Remote(clone=site.colleague.git), plan)
    site.clone.git.execute(
        ["git", "tag", "-a", "-m", "ours", plan.tag], env={"GIT_COMMITTER_DATE": "2025-08-21T00:00:00+0000"}
    )
    publish(site, plan)
    assert plan.tag not in [tag.name for tag in site.clone.tags]
    assert site.bare.tag(plan.tag).object.hexsha == site.colleague.tag(plan.tag).object.hexsha
    assert examine(site).released


def test_a_run_killed_after_tagging_is_finished_by_the_next(site: Site) -> None:
    plan = planned(site)
    tag = repository.create_tag(site.clone.git, plan.tag, plan.commit, plan.message)
    seen = {check.name: check.seen for check in examine(site).checks}
    assert "is here from an interrupted run, and not yet at origin" in seen["tag free"]
    publish(site, planned(site))
    assert repository.remote_release_tags(Remote(clone=site.clone.git)) == {plan.tag: tag}


def test_a_push_that_takes_too_long_leaves_no_tag(site: Site) -> None:
    plan = planned(site)
    site.hook("pre-receive", "sleep 30")
    refused(site, plan, r"\(no answer within 0\.5 s\)", seconds=0.5)


def test_a_remote_that_loses_the_tag_is_an_error(site: Site) -> None:
    plan = planned(site)
    site.hook("post-receive", f"git update-ref -d refs/tags/{plan.tag}")
    with pytest.raises(RepositoryError, match="does not show it"):
        publish(site, plan)


def test_other_tags_are_not_pushed(site: Site) -> None:
    site.clone.git.config("push.followTags", "true")
    site.clone.git.tag("-a", "-m", "mine", "mine")
    plan = planned(site)
    publish(site, plan)
    assert [tag.name for tag in site.bare.tags] == [plan.tag]


def test_the_tag_is_signed_if_git_is_configured_to(site: Site, tmp_path: Path) -> None:
    if not shutil.which("ssh-keygen"):
        pytest.skip("ssh-keygen is not installed")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    for name, value in (("tag.gpgSign", "true"), ("gpg.format", "ssh"), ("user.signingKey", str(key))):
        site.clone.git.config(name, value)
    plan = planned(site)
    publish(site, plan)
    assert "BEGIN SSH SIGNATURE" in site.bare.git.cat_file("tag", plan.tag)


@pytest.mark.parametrize(
    ("value", "asked"), [("true", True), ("1", True), ("yes", True), ("", False), ("false", False), ("0", False)]
)
def test_the_environment_variable_asks_for_a_dry_run(monkeypatch: pytest.MonkeyPatch, value: str, asked: bool) -> None:
    monkeypatch.setenv(settings.DRY_RUN_VARIABLE, value)
    assert settings.dry_run() is asked
    monkeypatch.delenv(settings.DRY_RUN_VARIABLE)
    assert not settings.dry_run()


def test_a_released_version_has_its_tag_at_the_remote_on_the_release_branch(site: Site) -> None:
    version, remote = repository.head(site.clone.git).version, Remote(clone=site.clone.git)
    site.clone.create_tag(site.tag, message="here alone")
    with pytest.raises(RepositoryError, match="is not released: origin has no tag base-images/v"):
        release_tag.released_commit(remote, "main", version)
    site.clone.git.push("origin", site.tag)
    assert release_tag.released_commit(remote, "main", version) == site.clone.head.commit.hexsha


@pytest.mark.parametrize("pushed", [False, True])
def test_a_tag_on_a_side_branch_is_no_release(site: Site, pushed: bool) -> None:
    site.clone.git.switch("--quiet", "--create", "side")
    hexsha = commit(site.clone, "third", LATER)
    site.clone.create_tag(site.tag, message="not reviewed")
    site.clone.git.push("origin", site.tag, *(["side"] if pushed else []))
    version = repository.head(site.clone.git).version
    for clone in (site.clone, site.colleague):
        with pytest.raises(RepositoryError, match=f"is on {hexsha[:9]}, and that is not a commit of origin/main"):
            release_tag.released_commit(Remote(clone=clone.git), "main", version)
    site.clone.git.push("origin", "side:main")
    assert release_tag.released_commit(Remote(clone=site.colleague.git), "main", version) == hexsha


def test_a_shallow_clone_that_cannot_tell_says_so(site: Site, tmp_path: Path) -> None:
    site.clone.create_tag(site.tag, message="x")
    site.clone.git.push("origin", site.tag)
    released = repository.head(site.clone.git).version
    commit(site.clone, "third", LATER)
    site.clone.git.push("origin", "main")
    with git.Repo.clone_from(f"file://{site.bare.git_dir}", tmp_path / "shallow", depth=1) as shallow:
        with pytest.raises(RepositoryError, match="This clone is shallow, so it cannot tell whether"):
            release_tag.released_commit(Remote(clone=shallow.git), "main", released)
        shallow.git.fetch("--unshallow")
        assert release_tag.released_commit(Remote(clone=shallow.git), "main", released)
