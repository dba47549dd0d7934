"""What several builds show while they run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from rich.console import Console

from base_images import variants
from base_images.adapters.buildkit import StepLog, StepStarted
from base_images.build import many
from base_images.build.many import State, Work
from base_images.cli import board, views

STEP = "[build 6/7] RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache if [ x ]; then cmake -S . -B build"


def works() -> list[Work]:
    return [many.work(variants.find(name), Path("/nowhere")) for name in ("cpu", "vulkan")]


def compiling(one: Work, percent: int) -> None:
    one.state = State.BUILDING
    one.track.event(StepStarted(step="1", name=STEP))
    for number in range(percent + 1):
        one.track.event(StepLog(step="1", line=f"[{number:3d}%] Building CXX object x.cpp.o"))


def test_a_terminal_has_one_line_for_each_with_step_percentage_and_time_left() -> None:
    each = works()
    each[1].why = "for cpu, which fills the compiler's cache"
    each[0].since = time.monotonic() - 83
    compiling(each[0], 42)
    console = Console(width=80, file=None)
    with console.capture() as captured:
        console.print(board.Board(views.Mode.LIVE, each)._table())
    cpu, vulkan = captured.get().splitlines()
    assert cpu.startswith("cpu    [build 6/7] RUN --mount=type=cache,id=llama-cpp")
    assert "42 %" in cpu
    assert "1:23" in cpu
    assert cpu.rstrip().endswith("0:00 left")
    assert " ".join(vulkan.split()) == "vulkan waiting for cpu, which fills the compiler's cache"
    assert all(len(line) <= 80 for line in (cpu, vulkan))


def test_elsewhere_news_of_a_build_are_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    each = works()
    shown = board.Board(views.Mode.PLAIN, each)
    began = time.monotonic()

    def told(seconds: float) -> list[str]:
        shown.tell(began + seconds)
        return [line.split(" s  ")[1].split("  ")[0] for line in capsys.readouterr().out.splitlines()]

    assert told(1) == [], "both wait"
    each[0].state = State.FETCHING
    assert told(2) == ["cpu: base images"]
    compiling(each[0], 1)
    assert told(3) == ["cpu: building"], "a change of state is told at once"
    compiling(each[0], 20)
    assert told(4) == [], "a step or a percentage is not"
    assert told(3 + board.NEWS_SECONDS) == ["cpu: building"]
    assert told(4 + 2 * board.NEWS_SECONDS) == [], "nothing is new"
    assert told(3 + board.NEWS_SECONDS + board.SIGN_OF_LIFE_SECONDS) == ["cpu: building"]
    each[0].state, each[1].state = State.BUILT, State.FAILED
    assert told(90) == ["cpu: built", "vulkan: failed"]
    assert told(9000) == []


def test_nothing_is_shown_where_only_the_result_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with board.Board(views.Mode.QUIET, works()):
        pass
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")])
def test_a_clock(seconds: float, text: str) -> None:
    assert board.clock(seconds) == text
