"""The sessions of noxfile.py, as far as they need no engine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from base_images import settings
from base_images.variants import VARIANTS
from tests.support import commands


def nox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run(
        [sys.executable, "-m", "nox", *arguments], env={**os.environ, "PATH": "/usr/bin:/bin", **environment}
    )


def test_every_recipe_has_a_session_with_a_sentence() -> None:
    listed = nox("--list").stdout
    for variant in VARIANTS:
        if (settings.ROOT / variant.dockerfile).exists():
            assert f" image-{variant.name} -> Builds the {variant.name} image" in listed


def test_every_variant_has_a_smoke_session_with_a_sentence_and_none_is_a_default() -> None:
    listed = nox("--list").stdout
    for variant in VARIANTS:
        assert f"- smoke-{variant.name} -> Whether the {variant.name} image computes right on " in listed
    assert "* smoke -> " in listed
    assert "- smoke-lavapipe -> " in listed


@pytest.mark.parametrize(("session", "start"), [("smoke", "Exit: "), ("smoke-cpu", "error: ")])
def test_a_smoke_session_without_an_engine_is_one_sentence(session: str, start: str) -> None:
    done = nox("--session", session, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"{start}No container engine answers at unix:///nowhere/docker.sock (there is no such socket)" in said
    assert "Traceback" not in said


def test_arguments_after_two_dashes_reach_the_smoke_test() -> None:
    done = nox("--session", "smoke-cpu", "--", "--url", "nowhere")
    assert "error: 'nowhere' is not a URL of a server" in done.stdout + done.stderr
