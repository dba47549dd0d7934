"""`scripts/bootstrap.sh`, as far as it needs no engine and no network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from base_images import settings
from tests.support import commands

SCRIPT = settings.ROOT / "scripts" / "bootstrap.sh"


def bootstrap(*arguments: str, cwd: Path = settings.ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run(["sh", SCRIPT, *arguments], cwd=cwd, env={**os.environ, **environment}, timeout=1800)


@pytest.fixture
def ready() -> None:
    """Skips where this checkout has no environment yet: the test would install one."""
    if not (settings.ROOT / ".venv" / "stamp").exists():
        pytest.skip("this checkout's environment was not made by bootstrap.sh")


def test_without_a_command_it_asks_for_one() -> None:
    done = bootstrap()
    assert done.returncode == 3
    assert "say what to run" in done.stderr


@pytest.mark.usefixtures("ready")
def test_an_engine_chosen_by_docker_host_is_not_replaced() -> None:
    done = bootstrap("invoke", "--list", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == 3
    # Where the lock file has changed, earlier lines say that the environment is made anew.
    assert done.stderr.strip().splitlines()[-1] == (
        "bootstrap: No container engine answers at unix:///nowhere/docker.sock (there is no such socket): start it, or "
        "choose another with DOCKER_HOST or `docker context`."
    )


def test_without_a_supported_python_it_names_the_versions(tmp_path: Path) -> None:
    # A machine with basic tools only, where nothing may be installed.
    tools = ("cat", "cksum", "cp", "dirname", "git", "id", "rm", "sh")
    for tool in tools:
        path = next(Path(directory, tool) for directory in ("/usr/bin", "/bin") if Path(directory, tool).exists())
        (tmp_path / tool).symlink_to(path)
    done = bootstrap("true", PATH=str(tmp_path))
    assert done.returncode == 3
    assert "Python 3.11 to 3.14 with its venv module is needed" in done.stderr
