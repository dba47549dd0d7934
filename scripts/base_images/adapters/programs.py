"""Runs a program of the machine, such as git or mmdebstrap, and never leaves it running behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

NOT_INSTALLED = 127
"""The exit code of a program that does not exist, as a shell says it."""

GRACE_SECONDS = 15
"""How long a program may take to clean up when told to end; mmdebstrap unmounts and removes its chroot."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        """The last line it wrote to standard error, which is where programs say why they failed."""
        lines = self.stderr.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {self.exit_code}")


def find_program(name: str) -> str | None:
    """Returns the path of a program: this Python environment's own, else the machine's; None when neither has it."""
    return shutil.which(name, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Runs `command` to its end and returns how it ended; a failure is an outcome, not an error.

    Args:
        command: the program and its arguments.
        environment: the whole environment; None is this process's own.
        directory: where it runs; None is this process's own.
        timeout: seconds after which it is ended, with every process it started.
        on_line: gets each line of standard error as it comes; a carriage return ends a line too.
    """
    try:
        # A session of its own: a time-out or Ctrl-C has to reach its children as well (git's transport helpers hold
        # git's pipes open), and Ctrl-C must not reach them before this process has decided what to do.
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        return Outcome(exit_code=NOT_INSTALLED, stdout="", stderr=f"{command[0]}: not installed")
    with process:
        assert process.stdout is not None  # noqa: S101 - both were asked for; this is for the type checker
        assert process.stderr is not None  # noqa: S101
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            _end(process)

        watchdog = threading.Timer(timeout or 0, expire)
        stdout: list[str] = []
        reader = threading.Thread(target=stdout.extend, args=(process.stdout,), daemon=True)
        stderr: list[str] = []
        try:
            reader.start()
            if timeout is not None:
                watchdog.start()
            for line in process.stderr:
                stderr.append(line)
                if on_line and line.strip():
                    on_line(line.strip())
            reader.join()
            process.wait()
        finally:
            watchdog.cancel()
            _end(process)
    return Outcome(
        exit_code=process.returncode, stdout="".join(stdout), stderr="".join(stderr), timed_out=expired.is_set()
    )


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the program and all it started, gently first; one that ended already is left alone."""
    for name, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, name)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
