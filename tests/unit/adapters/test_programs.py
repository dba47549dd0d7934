from __future__ import annotations

import os
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


def test_no_program_is_told_the_repository_of_a_calling_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = subprocess.run(["git", "rev-parse", "--local-env-vars"], check=True, capture_output=True, text=True)
    local = set(listed.stdout.split()) - {"GIT_CONFIG_COUNT"}  # the settings that it counts are a user's
    kept = {
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_ASKPASS": "/bin/askpass",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "GIT_CONFIG_COUNT": "0",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_PASSWORD": "for an askpass program",
        "GIT_SSH_COMMAND": "ssh -x",
        "GIT_SSL_CAINFO": "/ca",
        "HTTPS_PROXY": "http://proxy.example.org",
    }
    for name in (*local, *kept):
        monkeypatch.setenv(name, kept.get(name, "x"))
    printed = programs.run(["env"]).stdout.splitlines()
    assert local & {line.partition("=")[0] for line in printed} == set()
    assert set(printed) >= {f"{name}={value}" for name, value in kept.items()}


def test_git_is_told_what_a_user_s_network_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path / "real"], check=True)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{tmp_path}/real.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://mirrored.example.org")
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {tmp_path}/asked; false")
    assert programs.git("ls-remote", "https://mirrored.example.org").exit_code == 0
    assert programs.git("ls-remote", "ssh://git.example.org/x").exit_code != 0
    assert (tmp_path / "asked").exists()


def test_output_is_utf_8_whatever_the_locale() -> None:
    script = (
        "from base_images.adapters import programs; print(ascii(programs.run(['printf', r'Ger\\303\\244t']).stdout))"
    )
    latin = {**os.environ, "LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment = {**latin, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == r"'Ger\xe4t'"
