"""`scripts/bootstrap.sh`, as far as it needs no engine and no network."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from base_images import settings
from tests.support import commands, disks

SCRIPT = settings.ROOT / "scripts" / "bootstrap.sh"


def bootstrap(
    *arguments: str, cwd: Path = settings.ROOT, script: Path = SCRIPT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return commands.run(["sh", script, *arguments], cwd=cwd, env={**os.environ, **environment}, timeout=1800)


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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Returns the script of a checkout whose lock file names one small package, a wheel in `wheels/`."""
    wheel = tmp_path / "wheels" / "tiny-1-py3-none-any.whl"
    wheel.parent.mkdir()
    files = {
        "tiny.py": "",
        "tiny-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        "tiny-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for name, text in files.items()}
    record = [f"{name},sha256={digests[name].decode().rstrip('=')},{len(text)}" for name, text in files.items()]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {
            **files,
            "tiny-1.dist-info/RECORD": "\n".join([*record, "tiny-1.dist-info/RECORD,,\n"]),
        }.items():
            archive.writestr(name, text)
    lock = tmp_path / "checkout" / "requirements.lock"
    (lock.parent / "scripts").mkdir(parents=True)
    (lock.parent / "scripts" / "bootstrap.sh").symlink_to(SCRIPT)
    (lock.parent / "scripts" / "base_images").symlink_to(SCRIPT.with_name("base_images"))
    lock.write_text(f"tiny==1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return lock.parent / "scripts" / "bootstrap.sh"


@pytest.fixture
def apt(tmp_path: Path) -> Path:
    """Returns the directory of an apt-get that notes its calls in the file `called` and fails."""
    program = tmp_path / "apt" / "apt-get"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $* >>{program.parent}/called\nexit 100\n")
    program.chmod(0o755)
    return program.parent


def test_pip_installs_into_the_environment_whatever_the_user_has_set(tmp_path: Path, small: Path, apt: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    configuration = tmp_path / "pip.conf"
    configuration.write_text(
        f"[global]\nuser = true\nconstraint = /nowhere\nfind-links = {tmp_path / 'wheels'}\n"
        f"[install]\ntarget = {elsewhere}\nindex-url = https://127.0.0.1:1/\n"
    )
    done = bootstrap(
        "true",
        script=small,
        PATH=f"{apt}:{os.environ['PATH']}",
        PIP_CONFIG_FILE=str(configuration),
        PIP_FIND_LINKS="",  # means nothing to pip
        PIP_NO_INDEX="1",  # a setting of the network, which stays
        PIP_USER="1",
        PIP_TARGET=str(elsewhere),
        PIP_REQUIRE_VIRTUALENV="1",
        PIP_DRY_RUN="1",
        PIP_PYTHON="/nowhere/python",
        PIP_PLATFORM="win32",
    )
    environment = small.parents[1] / ".venv"
    assert (environment / "stamp").exists(), done.stderr
    assert list(environment.glob("lib/python3*/site-packages/tiny.py"))
    assert not elsewhere.exists()
    # The environment lacks the packages to ask an engine with, which is no reason to install one.
    assert done.returncode == 3
    assert done.stderr.strip().splitlines()[-1] == "bootstrap: the container engine could not be asked: see above."
    assert not (apt / "called").exists()


def test_a_full_disk_for_temporary_files_is_the_cause_that_is_told(tmp_path: Path, small: Path, apt: Path) -> None:
    with disks.full(tmp_path / "full") as full:
        done = bootstrap("true", script=small, PATH=f"{apt}:{os.environ['PATH']}", TMPDIR=str(full))
    assert done.returncode == 3
    [line] = done.stderr.strip().splitlines()
    assert line.startswith(f"bootstrap: no temporary file can be written to {full} (")
    assert "No space left on device): free some space there" in line
    assert not (apt / "called").exists()
