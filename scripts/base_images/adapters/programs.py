"""Runs programs of this machine, such as git or mmdebstrap, and never leaves one running."""

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
"""The exit code for a missing program, as in a shell."""

GRACE_SECONDS = 15
"""How long a program may clean up after SIGTERM; mmdebstrap unmounts and removes its chroot."""

_REPOSITORY_VARIABLES = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"})
"""Set by git for its hooks; they override the current directory."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False

    @property
    def last_words(self) -> str:
        """The last line of standard error, which usually holds the reason for a failure."""
        lines = self.stderr.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), f"exit status {self.exit_code}")


def find_program(name: str) -> str | None:
    """Returns the path of a program in this Python environment, else in PATH; None when it is in neither."""
    return shutil.which(name, path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", ""))))


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Runs `command` and returns how it ended; a failure is an outcome, not an error.

    Args:
        command: the program and its arguments.
        environment: the complete environment; None inherits this process's.
        directory: the working directory; None inherits this process's.
        timeout: seconds after which the program and every process it started are terminated.
        on_line: receives each line of standard error; a carriage return ends a line too.
    """
    try:
        # In its own session, so that a time-out ends its children too (git's transport helpers keep git's pipes open),
        # and Ctrl-C reaches this process alone, which then ends them.
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
        assert process.stdout is not None  # noqa: S101 - for the type checker; both are pipes
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


def git(
    *arguments: str,
    directory: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Runs git with English messages and without prompts, ignoring the repository of a calling git hook.

    `directory` is the work tree or repository to run in, None the current directory; for the rest see `run`.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    environment |= {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    where = ("-C", str(directory)) if directory else ()
    return run(["git", *where, *arguments], environment=environment, timeout=timeout, on_line=on_line)


def _end(process: subprocess.Popen[str]) -> None:
    """Terminates the program and all it started, by SIGKILL after a grace period, unless it has ended already."""
    for name, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, name)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
