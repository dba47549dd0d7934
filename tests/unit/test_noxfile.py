"""The front door for checks, where no engine is needed."""

from __future__ import annotations

import os
import subprocess
import sys

from base_images import settings
from base_images.variants import VARIANTS


def nox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nox", *arguments],
        cwd=settings.ROOT,
        # Without a PATH to this environment: sessions find their programs all the same.
        env={**os.environ, "PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_every_recipe_has_a_session_with_a_sentence() -> None:
    listed = nox("--list").stdout
    for variant in VARIANTS:
        if (settings.ROOT / variant.dockerfile).exists():
            assert f" image-{variant.name} -> Builds the {variant.name} image" in listed


def test_a_smoke_session_without_an_engine_is_one_sentence() -> None:
    done = nox("--session", "smoke-cpu", DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode != 0
    assert "Exit: No container engine answers at unix:///nowhere/docker.sock: start it" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
