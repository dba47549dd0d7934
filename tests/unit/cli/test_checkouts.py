"""Commands in checkouts as users have them: of another user, and inside another repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support import clones, programs

GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always")
NOWHERE = {"DOCKER_HOST": "unix:///nowhere/docker.sock", "BASE_IMAGES_REGISTRY": "127.0.0.1:1/x"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("project") / "images"
    tree.mkdir()
    clones.copy_files(tree)
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message=all")
    return tree


def git(directory: Path, *arguments: str | Path, **environment: str) -> str:
    command = [*GIT, "-C", directory, *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | environment
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_in_another_user_s_checkout_no_command_ends_well_or_without_the_remedy(checkout: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(checkout, foreign, symlinks=True)
    os.chown(foreign, 12345, 12345)
    commands = (
        ("plan", "--variant", "cpu"),
        ("release-base-images", "--yes"),
        ("promote", "--dry-run"),
        ("build-local", "--variant", "cpu"),
    )
    # At the same time, because a busy machine was the likeliest to show the wrong outcome.
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "invoke", *command],
            cwd=foreign,
            env={**os.environ, **NOWHERE, "GIT_CONFIG_GLOBAL": os.devnull},  # the tests' own calls every directory safe
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
        for _ in range(2)
    ]
    outcomes = Counter((*process.communicate(timeout=600), process.returncode) for process in running)
    [(printed, error, code)] = outcomes
    assert (printed, code) == ("", 7)
    assert error.startswith(f"error: git refuses to read the repository {foreign} (")
    assert f"git config --global --add safe.directory {foreign}" in error


def test_a_hook_of_a_superproject_sees_this_repository(checkout: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    git(tmp_path, "init", "--quiet", "--initial-branch=other", outer)
    git(outer, "submodule", "--quiet", "add", checkout, "images")
    command = f"{sys.executable} -m invoke check-version --json"
    hook = f"env >{tmp_path}/env\ncd images && {command} >{tmp_path}/facts"
    programs.script(outer / ".git" / "hooks" / "pre-commit", hook)
    (outer / "file").touch()
    git(outer, "add", "file")
    git(outer, "commit", "--quiet", "--message=outer", "file", **NOWHERE)
    assert "GIT_INDEX_FILE=" in (tmp_path / "env").read_text()
    facts = json.loads((tmp_path / "facts").read_text())
    commit = git(checkout, "rev-parse", "HEAD")
    assert (facts["commit"], facts["branch"]) == (commit, "main")
    assert facts["version"].endswith(commit[:7]), "changes of the superproject count as ours"
