"""What a person sees of a build without a terminal."""

from __future__ import annotations

import pytest

from base_images import buildkit, report


def test_a_compilation_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    said = [*range(9), 50, 100, 100, *range(9, 101)]

    with report.Display(report.Mode.PLAIN) as display:
        display.event(buildkit.StepStarted(step="1", name="[build 7/8] RUN cmake"))
        for percent in said:
            display.event(buildkit.StepLog(step="1", line=f"[{percent:3d}%] Building CXX object x.cpp.o"))

    printed = [line.split(" s ")[1].split("%")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert printed == [str(tenth) for tenth in range(10, 101, 10)]
