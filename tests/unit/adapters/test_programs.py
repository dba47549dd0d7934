from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from base_images.adapters import programs


def test_output_and_exit_code_are_returned() -> None:
    outcome = programs.run(["sh", "-c", "echo out; echo one >&2; echo 'the reason' >&2; exit 3"])

    assert (outcome.exit_code, outcome.stdout, outcome.last_words) == (3, "out\n", "the reason")


def test_a_missing_program_is_an_outcome() -> None:
    outcome = programs.run(["no-such-program-anywhere"])

    assert outcome.exit_code == programs.NOT_INSTALLED
    assert "no-such-program-anywhere" in outcome.last_words


def test_a_line_ends_at_a_newline_or_a_carriage_return() -> None:
    lines: list[str] = []
    programs.run(["sh", "-c", r"printf '10%%\r20%%\rdone\n' >&2"], on_line=lines.append)

    assert lines == ["10%", "20%", "done"]


def test_a_time_out_ends_children_too() -> None:
    started = time.monotonic()
    outcome = programs.run(["sh", "-c", "sleep 300 & sleep 300"], timeout=0.3)

    assert outcome.timed_out
    assert time.monotonic() - started < 150, "it waited for the children"


def test_nothing_is_left_running_when_the_caller_is_interrupted(tmp_path: Path) -> None:
    def interrupt(_line: str) -> None:
        raise KeyboardInterrupt

    script = f"trap 'echo cleaned >{tmp_path}/mark; exit' TERM; echo go >&2; while :; do sleep 0.1; done"
    with pytest.raises(KeyboardInterrupt):
        programs.run(["sh", "-c", script], on_line=interrupt)

    assert (tmp_path / "mark").read_text() == "cleaned\n"
    assert not subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False).stdout


def test_the_environment_is_passed_on() -> None:
    outcome = programs.run([sys.executable, "-c", "import os; print(os.environ['A'])"], environment={"A": "b"})

    assert outcome.stdout == "b\n"
