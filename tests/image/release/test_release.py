"""`invoke release-base-images` as a user types it, in a clone of this checkout with a bare remote."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import git
import pytest

from base_images import settings
from tests.support import clones, commands, programs
from tests.support.programs import is_alive, wait_for, wait_until_gone

COMMAND = "release-base-images"


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return clones.environment()


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[git.Repo]:
    with clones.clone(tmp_path) as made:
        yield made


def remote(clone: git.Repo) -> Path:
    return Path(clone.remote().url)


def refs(clone: git.Repo) -> str:
    return f"{clone.git.for_each_ref()}\nthere:\n{there(clone)}"


def there(clone: git.Repo) -> str:
    return str(clone.git.ls_remote("origin"))


def pre_receive(clone: git.Repo, script: str) -> None:
    programs.script(remote(clone) / "hooks" / "pre-receive", script)


def test_nothing_is_released_without_consent(clone: git.Repo, environment: dict[str, str]) -> None:
    before = refs(clone)

    dry = clones.invoke(clone, environment, COMMAND, "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.endswith("dry run: nothing was changed\n")
    version = dry.stdout.split()[1]
    assert f"base-images/v{version} on {clone.head.commit.hexsha}" in dry.stdout
    assert f"{settings.load().registry}:cann-{version}" in dry.stdout
    assert "Everything" in dry.stdout

    asked_by_environment = clones.invoke(clone, {**environment, settings.DRY_RUN_VARIABLE: "true"}, COMMAND, "--yes")
    assert asked_by_environment.stdout == dry.stdout

    nobody = clones.invoke(clone, environment, COMMAND)
    assert nobody.returncode == 2
    assert nobody.stderr.startswith("error: There is no terminal to ask on, so nothing was done")

    assert refs(clone) == before


def test_the_user_is_asked_once(clone: git.Repo, environment: dict[str, str]) -> None:
    before = refs(clone)
    for typed, exit_code in (("\n", 1), ("\x04", 1), ("y\n", 0)):
        assert refs(clone) == before
        ours, theirs = pty.openpty()
        try:
            os.write(ours, typed.encode())
            done = clones.invoke(clone, environment, COMMAND, stdin=theirs)
        finally:
            os.close(ours)
            os.close(theirs)
        assert done.returncode == exit_code, done.stderr
        assert done.stdout.count("Release it? [y/N]") == 1
        assert ("Nothing was done." in done.stderr) == (exit_code == 1)
    version = done.stdout.split()[1]
    assert f"refs/tags/base-images/v{version}^{{}}" in there(clone)

    again = clones.invoke(clone, environment, COMMAND)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout == (f"already released: base-images/v{version} is at origin, on {clone.head.commit.hexsha}\n")


def test_failed_preconditions_are_listed_line_by_line(clone: git.Repo, environment: dict[str, str]) -> None:
    recipe = Path(clone.working_dir) / "dockerfiles/cuda.Dockerfile"
    recipe.write_text(recipe.read_text().replace("-DGGML_CUDA=ON", "-DGGML_CUDA=OFF"))
    before = refs(clone)
    done = clones.invoke(clone, environment, COMMAND, "--yes")
    assert done.returncode == 1
    assert done.stderr == "error: nothing was released: fix what failed above and run the same command again.\n"
    lines = [[cell.strip() for cell in line.split("│")[1:3]] for line in done.stdout.splitlines() if "│" in line]
    assert [name for name, status in lines if status == "fail"] == ["clean tree", "recipes mirror upstream"]
    assert len(lines) == 9, "one line for each"
    assert refs(clone) == before


# CI cancels with SIGTERM, which is handled like Ctrl-C.
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_push_is_finished_by_the_next_run(
    clone: git.Repo, environment: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    # The first push hangs at the remote until the end of the test; those after it go through.
    pushing, go_on = tmp_path / "pushing", tmp_path / "go-on"
    pre_receive(
        clone,
        f"[ ! -e {pushing} ] || exit 0\necho $PPID >{pushing}.new; mv {pushing}.new {pushing}\n"
        f"tries=0; while [ ! -e {go_on} ] && [ $tries -lt 3000 ]; do tries=$((tries + 1)); sleep 0.1; done",
    )
    first = commands.start([*commands.INVOKE, COMMAND, "--yes"], cwd=clone.working_dir, env=environment)
    wait_for(lambda: pushing.exists() or first.poll() is not None)
    assert first.poll() is None, first.communicate()
    first.send_signal(how)
    said = first.communicate(timeout=300)[1]
    assert first.returncode == (-how if how is signal.SIGKILL else 130), said
    assert "Traceback" not in said
    assert len(clone.tags) == (how is signal.SIGKILL), "only what could not clean up leaves its tag"
    assert "tags" not in there(clone)

    second = clones.invoke(clone, environment, COMMAND, "--yes")
    assert second.returncode == 0, second.stderr
    released = there(clone)
    assert f"{clone.head.commit.hexsha}\trefs/tags/{clone.tags[0].name}^{{}}" in released

    left = int(pushing.read_text())
    assert is_alive(left) or how is not signal.SIGKILL
    go_on.touch()  # a process that survived the kill is too late to change anything
    wait_until_gone([left])
    assert there(clone) == released
    assert clones.invoke(clone, environment, COMMAND).stdout.startswith("already released: ")
