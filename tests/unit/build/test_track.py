"""What is said of a build while it runs: its step, its percentage, and the time that it has left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from base_images.adapters.buildkit import StepFinished, StepLog, StepStarted
from base_images.build import track
from base_images.build.track import Moment, Run, Track
from base_images.progress import Progress

COMPILE = "[build 2/2] RUN cmake --build"
APT = "[build 1/2] RUN apt-get"
COLD = Run(seconds=900, steps={APT: (0, 60), COMPILE: (60, 860), "[runtime 1/1] COPY": (860, 870)})
NO_APT = Run(seconds=40, steps={COMPILE: (1, 31)})
CACHED = Run(seconds=2, steps={})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("base_images.build.track.time.monotonic", made)
    return made


def started(name: str) -> StepStarted:
    return StepStarted(step=name, name=name)


def finished(name: str, *, cached: bool = False, error: str = "") -> StepFinished:
    return StepFinished(step=name, name=name, seconds=1, cached=cached, error=error)


def compiled(percent: int) -> StepLog:
    return StepLog(step=COMPILE, line=f"[{percent:3d}%] Building CXX object x.cpp.o")


def test_the_time_left_is_what_the_step_and_all_after_it_took_last_time(clock: Clock) -> None:
    now = Track([COLD])
    now.event(started(APT))
    clock.now += 20
    assert now.moment() == Moment(step=APT, percent=None, left=40 + 840)
    clock.now += 100  # longer than last time
    assert now.moment().left == 840


def test_the_percentage_of_a_compilation_corrects_the_time_left(clock: Clock) -> None:
    now = Track([COLD])
    now.event(started(COMPILE))
    for percent in range(1, 11):
        clock.now += 1
        now.event(compiled(percent))
    assert now.moment() == Moment(step=COMPILE, percent=10, left=90 + 40)
    assert Track().moment() == Moment()
    first = Track()
    first.event(started(COMPILE))
    assert first.moment() == Moment(step=COMPILE, percent=None, left=None), "nothing is known of a first build"
    clock.now += 10
    for percent in (*range(1, 11), 20):
        first.event(compiled(percent))
    assert first.moment() == Moment(step=COMPILE, percent=20, left=40)
    clock.now += 10
    for percent in (*range(21, 101, 9), 100):
        now.event(compiled(percent))
        first.event(compiled(percent))
    assert first.moment() == Moment(step=COMPILE, percent=100, left=None), "it links, and nothing says for how long"
    assert now.moment().left == 800 - 30 + 40


def test_of_several_steps_the_one_that_compiles_is_shown() -> None:
    now = Track()
    for event in (started(COMPILE), started(APT), compiled(1)):
        now.event(event)
    assert now.moment().step == COMPILE
    now.event(finished(COMPILE))
    assert now.moment().step == APT
    now.event(StepStarted(step="i", name="[internal] load build context"))
    now.event(finished(APT))
    assert now.moment() == Moment()


def test_an_estimate_follows_the_past_build_that_had_the_same_steps_cached() -> None:
    runs = [COLD, NO_APT, CACHED]
    assert track.likely(runs, {APT}, ()) is COLD
    assert track.likely(runs, {COMPILE}, {APT}) is NO_APT
    assert track.likely(runs, (), {APT, COMPILE}) is CACHED
    assert track.likely(runs, (), ()) is CACHED, "the newest, while nothing is known"
    assert track.likely([], (), ()) is None


def test_bases_have_progress_too() -> None:
    now = Track([COLD])
    now.progress(Progress(what="pull ubuntu", done=3, total=4))
    assert now.moment() == Moment(step="pull ubuntu", percent=75)
    now.progress(Progress(what="pull ubuntu", finished=True))
    assert now.moment() == Moment()


def test_a_build_is_remembered_in_the_place_of_one_with_the_same_steps(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "logs" / "cpu.json"
    assert track.past(path) == ()
    for number in range(track.KEPT_RUNS + 2):
        for seconds in (1, 2):
            now = Track()
            now.begin()
            name = f"step {number}"
            now.event(started(name))
            clock.now += seconds
            now.event(finished(name))
            now.event(finished("cached", cached=True))
            track.remember(path, track.past(path), now.run())
    assert track.past(path) == tuple(
        Run(seconds=2, steps={f"step {number}": (0, 2)}) for number in range(2, track.KEPT_RUNS + 2)
    )


@pytest.mark.parametrize(
    "text", ["", "{", "7", "[7]", '[{"seconds": 1}]', '[{"seconds": 1, "steps": {"a": 1}}]', "[" * 9999]
)
def test_a_file_that_is_damaged_or_of_another_version_has_no_builds(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.json").write_text(text)
    assert track.past(tmp_path / "cpu.json") == ()


def test_the_log_has_every_line_and_tells_steps_apart(clock: Clock) -> None:
    written = io.StringIO()
    log = track.Log(written)
    for event in (
        StepStarted(step="i", name="[internal] load build context"),
        started(APT),
        started(COMPILE),
        StepLog(step=COMPILE, line="x.cpp: error"),
        StepLog(step=APT, line="Get:1"),
        finished(APT, cached=True),
        finished(COMPILE, error="exit code: 2"),
    ):
        clock.now += 1
        log.event(event)
    assert [line.split(" s  ")[1] for line in written.getvalue().splitlines()] == [
        f"#1 {APT}",
        f"#2 {COMPILE}",
        "#2 x.cpp: error",
        "#1 Get:1",
        "#1 cached",
        "#2 failed: exit code: 2",
    ]
