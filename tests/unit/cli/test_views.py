"""Output without a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from base_images import settings
from base_images.adapters import buildkit
from base_images.cli import views
from tests.support import smoke_reports


def test_a_compilation_prints_a_line_every_ten_percent(capsys: pytest.CaptureFixture[str]) -> None:
    said = [*range(9), 50, 100, 100, *range(9, 101)]

    with views.Display(views.Mode.PLAIN) as display:
        display.event(buildkit.StepStarted(step="1", name="[build 7/8] RUN cmake"))
        for percent in said:
            display.event(buildkit.StepLog(step="1", line=f"[{percent:3d}%] Building CXX object x.cpp.o"))

    printed = [line.split(" s ")[1].split("%")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert printed == [str(tenth) for tenth in range(10, 101, 10)]


def test_the_speeds_of_device_and_cpu_are_printed_with_their_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    views.print_smoke(smoke_reports.failed())
    printed = capsys.readouterr().out
    for number in ("18,234", "313", "58.3", "33.5"):
        assert number in printed
    views.print_smoke(smoke_reports.passed())
    assert "not judged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "utf-8"},
    ],
)
def test_characters_that_the_output_lacks_do_not_end_a_command(environment: dict[str, str]) -> None:
    script = r"""
from base_images.adapters import buildkit
from base_images.cli import views
with views.Display(views.Mode.PLAIN) as display:
    display.event(buildkit.StepStarted(step="1", name="RUN " + 200 * "x"))  # shortened, by an ellipsis
    display.event(buildkit.StepFinished(step="1", name="RUN " + 200 * "x", cached=True, seconds=0, error=""))
views.print_table("device \u00f7 cpu/", ["name"], [["\udcff"]])
views.complain("\u2502 \udcff")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(settings.ROOT / "scripts"), "LC_ALL": "C", **environment},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cached  RUN xxx" in done.stdout
    assert done.stderr.endswith(("?\n", "\ufffd\n"))
