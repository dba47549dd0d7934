"""The exit code of a command is its verdict, whatever becomes of its output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import settings

PRINTED = ("show-git-info", "--json")
USAGE = ("build-local", "--variant", "cuba")


def invoke(*arguments: str, stdout: int | None = None, stderr: int | None = None) -> tuple[int, str]:
    """Runs invoke with these file descriptors, or with pipes; returns exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "invoke", *arguments],
        cwd=settings.ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE if stderr is None else stderr,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, (done.stdout or "") + (done.stderr or "")


@pytest.fixture
def gone() -> Iterator[int]:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def full() -> Iterator[int]:
    """A device on which there is never space."""
    with Path("/dev/full").open("w") as device:
        yield device.fileno()


@pytest.fixture
def broken(tmp_path: Path) -> tuple[str, ...]:
    """A command that prints what it saw and ends with 1."""
    (tmp_path / "devops").mkdir()
    (tmp_path / "devops" / "cpu.Dockerfile").write_text("FROM scratch\n")
    return ("check-consumer", "--source", str(tmp_path), "--json")


@pytest.mark.parametrize("arguments", [PRINTED, ("--list",), ("--help", "smoke")])
def test_a_reader_that_has_gone_is_no_failure(arguments: tuple[str, ...], gone: int) -> None:
    assert invoke(*arguments, stdout=gone) == (0, "")


def test_a_reader_that_has_gone_hides_no_failure(broken: tuple[str, ...], gone: int) -> None:
    assert invoke(*broken, stdout=gone) == (1, "")
    assert invoke(*USAGE, stderr=gone) == (2, "")


def test_a_full_disk_is_a_failure(full: int) -> None:
    for arguments in (PRINTED, ("--list",)):
        code, printed = invoke(*arguments, stdout=full)
        assert (code, printed) == (
            1,
            "error: it is done, but not all was printed: standard output: No space left on device.\n",
        )
    assert invoke(*USAGE, stderr=full) == (2, "")


@pytest.mark.parametrize(
    ("closed", "arguments", "code"), [(">&-", PRINTED, 0), ("2>&-", USAGE, 2), ("<&- >&- 2>&-", ("--list",), 0)]
)
def test_closed_streams_change_nothing(closed: str, arguments: tuple[str, ...], code: int) -> None:
    shell = ["sh", "-c", f'exec "$0" -m invoke "$@" {closed}', sys.executable, *arguments]
    done = subprocess.run(shell, cwd=settings.ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
