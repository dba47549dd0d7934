"""Several builds at once: their order, what one that fails does to the others, and Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters.buildkit import StepStarted
from base_images.build import many
from base_images.build.many import State, Work
from base_images.errors import BuildError, SourceError

SECONDS = 60
"""A deadline that no test reaches unless it fails."""


def works(*names: str) -> list[Work]:
    return [many.work(variants.find(name), Path("/nowhere")) for name in names]


def run(each: list[Work], build: Callable[[Work], object], *, jobs: int = 3) -> None:
    def prepare(one: Work) -> None:
        one.build = lambda: build(one)

    many.run(each, jobs=jobs, prepare=prepare, cancel=lambda _: None)


@pytest.mark.parametrize(
    ("cores", "memory", "jobs"), [(1, 1, 1), (2, 25, 1), (4, 16, 2), (8, 16, 2), (8, 64, 4), (16, 64, 4), (64, 2, 1)]
)
def test_as_many_builds_as_cores_and_memory_bear(cores: int, memory: int, jobs: int) -> None:
    assert many.at_once(cores, memory * variants.GIGABYTE) == jobs


def test_the_first_is_built_alone_and_the_others_together() -> None:
    each = works("cpu", "vulkan", "cuda")
    together = threading.Barrier(2)
    seen = []

    def build(one: Work) -> None:
        seen.append((one.variant.name, each[0].state))
        if one is not each[0]:
            together.wait(SECONDS)

    run(each, build)
    assert seen[0] == ("cpu", State.BUILDING)
    assert sorted(seen[1:]) == [("cuda", State.BUILT), ("vulkan", State.BUILT)]
    assert [(one.state, one.error, one.why) for one in each] == [(State.BUILT, None, "")] * 3


def test_no_more_than_jobs_run_at_once() -> None:
    each = works("cpu", "vulkan", "cuda", "rocm")
    running: set[str] = set()
    most = []

    def build(one: Work) -> None:
        running.add(one.variant.name)
        most.append(len(running))
        running.remove(one.variant.name)

    run(each, build, jobs=1)
    assert most == [1] * 4


@pytest.mark.parametrize("in_prepare", [True, False])
def test_one_that_fails_lets_the_others_go_on(in_prepare: bool) -> None:
    each = works("cpu", "vulkan", "cuda")
    failure = SourceError("no base")

    def fail(one: Work) -> None:
        if one is each[0]:
            raise failure

    def prepare(one: Work) -> None:
        if in_prepare:
            fail(one)
        one.build = lambda: fail(one)

    many.run(each, jobs=2, prepare=prepare, cancel=lambda _: None)
    assert [one.state for one in each] == [State.FAILED, State.BUILT, State.BUILT]
    assert many.failure(each[0]) is failure


def test_ctrl_c_ends_every_build_and_begins_no_other() -> None:
    each = works("cpu", "vulkan", "cuda", "rocm", "musa")
    running, ended = threading.Barrier(3), {name: threading.Event() for name in ("vulkan", "cuda")}
    cancelled = []

    def build(one: Work) -> None:
        if one is each[0]:
            return
        one.build_id = one.variant.name
        running.wait(SECONDS)
        assert ended[one.build_id].wait(SECONDS)
        raise BuildError("The build was cancelled.")

    def prepare(one: Work) -> None:
        if one is each[4]:
            running.wait(SECONDS)
            raise KeyboardInterrupt
        one.build = lambda: build(one)

    def cancel(build_id: str) -> None:
        cancelled.append(build_id)
        if cancelled.count(build_id) > 1:  # the engine does not know a build at once
            ended[build_id].set()

    with pytest.raises(KeyboardInterrupt):
        many.run(each, jobs=2, prepare=prepare, cancel=cancel)
    assert {*cancelled} == {"vulkan", "cuda"}
    assert [one.state for one in each] == [State.BUILT, *[State.ENDED] * 4]


def test_a_failed_build_names_its_log(tmp_path: Path) -> None:
    one = many.work(variants.find("cpu"), tmp_path)
    one.error = BuildError("The build failed.", detail="the end")
    assert many.failure(one) is one.error, "there is no log"
    with many.recorded(one):
        pass
    told = many.failure(one)
    assert str(told) == f"The build failed. Its log: {tmp_path}/build/logs/cpu.log"
    assert isinstance(told, BuildError)
    assert told.detail == "the end"


def test_a_build_without_a_place_for_its_log_goes_on(tmp_path: Path) -> None:
    (tmp_path / "build").write_text("a file")
    one = many.work(variants.find("cpu"), tmp_path)
    with many.recorded(one) as record:
        record(StepStarted(step="1", name="RUN x"))
    assert (tmp_path / "build").read_text() == "a file"
    assert one.track.moment().step == "RUN x"
