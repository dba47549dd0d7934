"""Runs programs of this machine, such as git or mmdebstrap, and never leaves one running."""

from __future__ import annotations

import os
import re
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

_FOREIGN_NAMES = (
    # Which repository: git sets these for its hooks (`git rev-parse --local-env-vars` lists most of them).
    "DIR WORK_TREE IMPLICIT_WORK_TREE INDEX_FILE INDEX_VERSION OBJECT_DIRECTORY ALTERNATE_OBJECT_DIRECTORIES "
    "COMMON_DIR PREFIX NAMESPACE GRAFT_FILE SHALLOW_FILE REPLACE_REF_BASE NO_REPLACE_OBJECTS QUARANTINE_PATH "
    "CEILING_DIRECTORIES DISCOVERY_ACROSS_FILESYSTEM CONFIG CONFIG_PARAMETERS "
    # What git reads, writes and prints.
    "ATTR_SOURCE DEFAULT_HASH DEFAULT_REF_FORMAT TEMPLATE_DIR LITERAL_PATHSPECS GLOB_PATHSPECS NOGLOB_PATHSPECS "
    "ICASE_PATHSPECS REF_PARANOIA NOTES_REF EXTERNAL_DIFF DIFF_OPTS PAGER PAGER_IN_USE CURL_VERBOSE ADVICE "
    "PROGRESS_DELAY PRINT_SHA1_ELLIPSIS REFLOG_ACTION TEXTDOMAINDIR"
)
_FOREIGN = frozenset(f"GIT_{name}" for name in _FOREIGN_NAMES.split())
_FOREIGN_PREFIXES = ("GIT_TRACE", "GIT_INTERNAL_", "GIT_TEST_")
"""The variables of git that no program is given; those of its transports and of who somebody is stay, and so do names
that git does not know, such as the credentials of an askpass program."""

_GIT_SETTINGS = {
    **dict.fromkeys(("color.advice", "color.push", "color.remote", "color.transport"), "false"),  # each before color.ui
    "core.fsmonitor": "false",  # a program that says which files have changed
    "core.hooksPath": os.devnull,
    "i18n.logOutputEncoding": "UTF-8",
    "log.showSignature": "false",
}
"""The settings of a user that would change what git prints here or what it does; all others stay, such as proxies."""


_NOT_THE_REASON = re.compile(
    r"To \S+$|hint:|error: failed to push some refs|.*atomic push failed|fatal: Could not read from remote repository"
    r"|Please make sure you have the correct access rights|and the repository exists\."
    r"|.*\d+% \("  # progress
)
"""Lines that git prints around the reason for a failure."""

_LINES_OF_REASON = 3


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended."""

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool = False

    @property
    def git_reason(self) -> str:
        """Why git failed: the end of its error output on one line, including what a hook of the remote printed."""
        lines = (line.strip().removeprefix("remote:").strip() for line in self.stderr.splitlines())
        reasons = [line for line in lines if line and not _NOT_THE_REASON.match(line)]
        return "; ".join(reasons[-_LINES_OF_REASON:]).replace(":;", ":") or f"exit status {self.exit_code}"

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
        environment: the complete environment; None is that of `inherited`.
        directory: the working directory; None inherits this process's.
        timeout: seconds after which the program and every process it started are terminated.
        on_line: receives each line of standard error; a carriage return ends a line too.
    """
    try:
        # In its own session, so that a time-out ends its children too (git's transport helpers keep git's pipes open),
        # and Ctrl-C reaches this process alone, which then ends them.
        process = subprocess.Popen(
            command,
            env=inherited() if environment is None else environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",  # not the locale's: git prints UTF-8 whatever that is
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


def inherited() -> dict[str, str]:
    """Returns this process's environment without the variables by which git describes the repository of a hook."""
    return {name: value for name, value in os.environ.items() if not is_foreign(name)}


def is_foreign(name: str) -> bool:
    """Returns whether a variable changes where git looks, or what it prints."""
    return name in _FOREIGN or name.startswith(_FOREIGN_PREFIXES)


def git_environment(directory: Path | None) -> dict[str, str]:
    """Returns the variables of every git process: English, no prompt, and no repository but the one at `directory`."""
    # Git ignores a ceiling that is no directory, so a directory whose name has a colon has none.
    ceiling = {"GIT_CEILING_DIRECTORIES": str(directory.resolve().parent)} if directory else {}
    return {
        "LC_ALL": "C",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",  # `git status` would write the index
        "GIT_NO_REPLACE_OBJECTS": "1",  # refs/replace are one clone's: a commit is what everybody else has
        **ceiling,
    }


def git_command(*arguments: str, directory: Path | None = None, hooks: bool = False) -> list[str]:
    """Returns a git command in which the user's settings do not change the output; with `hooks`, it runs his hooks."""
    chosen = {name: value for name, value in _GIT_SETTINGS.items() if not (hooks and name == "core.hooksPath")}
    where = ("-C", str(directory)) if directory else ()
    return ["git", *where, *(word for name, value in chosen.items() for word in ("-c", f"{name}={value}")), *arguments]


def git(
    *arguments: str,
    directory: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
    hooks: bool = False,
) -> Outcome:
    """Runs git so that neither a calling git hook nor the user's settings change what it prints or where it looks.

    `directory` is the work tree or repository to run in, None the current directory; for the rest see `run` and
    `git_command`.
    """
    command = git_command(*arguments, directory=directory, hooks=hooks)
    return run(command, environment=inherited() | git_environment(directory), timeout=timeout, on_line=on_line)


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
