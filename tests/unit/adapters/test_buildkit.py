from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from base_images.adapters import buildkit
from base_images.errors import BuildError


def trace(vertexes: Sequence[dict[str, Any]] = (), logs: Sequence[tuple[str, bytes]] = ()) -> dict[str, Any]:
    status = buildkit.StatusResponse()
    for vertex in vertexes:
        added = status.vertexes.add(digest=vertex["digest"], name=vertex["name"], cached=vertex.get("cached", False))
        added.error = vertex.get("error", "")
        if "started" in vertex:
            added.started.FromMilliseconds(vertex["started"])
        if "completed" in vertex:
            added.completed.FromMilliseconds(vertex["completed"])
    for digest, text in logs:
        status.logs.add(vertex=digest, data=text)
    return {"id": buildkit.TRACE, "aux": base64.b64encode(status.SerializeToString()).decode()}


STEP = {"digest": "sha256:1", "name": "[build 1/2] RUN make"}


def test_each_step_is_reported_once_and_in_order() -> None:
    stream = [
        trace([STEP]),
        trace([{**STEP, "started": 1000}]),
        trace([{**STEP, "started": 1000}], [("sha256:1", b"[ 10%] one\n[ 2")]),
        trace([{**STEP, "started": 1000, "completed": 3500}], [("sha256:1", b"0%] two\r\n")]),
        trace([{**STEP, "started": 1000, "completed": 3500}]),
        {"id": buildkit.IMAGE_ID, "aux": {"ID": "sha256:image"}},
    ]
    assert list(buildkit.events(stream)) == [
        buildkit.StepStarted(step="sha256:1", name="[build 1/2] RUN make"),
        buildkit.StepLog(step="sha256:1", line="[ 10%] one"),
        buildkit.StepFinished(
            step="sha256:1", name="[build 1/2] RUN make", seconds=2.5, cached=False, error="", started=1
        ),
        buildkit.StepLog(step="sha256:1", line="[ 20%] two"),
        buildkit.ImageBuilt(image_id="sha256:image"),
    ]


def test_a_failure_names_the_failing_step_with_the_tail_of_its_log() -> None:
    other = {"digest": "sha256:2", "name": "[web 1/2] RUN npm ci", "started": 1, "completed": 2}
    stream = [
        trace([{**STEP, "started": 0}], [("sha256:1", b"cc: error\n"), ("sha256:2", b"fetching\n")]),
        trace([{**STEP, "started": 0, "completed": 9, "error": "exit code: 2"}]),
        trace([{**other, "error": "context canceled"}]),
        {"errorDetail": {"message": "process did not\ncomplete: exit code: 2"}, "error": "…"},
    ]
    with pytest.raises(BuildError) as caught:
        list(buildkit.events(stream))
    assert str(caught.value) == (
        "The build failed in the step '[build 1/2] RUN make': process did not complete: exit code: 2."
    )
    assert caught.value.detail == "cc: error"


def test_only_the_logs_tail_is_kept() -> None:
    lines = b"".join(b"line %d\n" % number for number in range(500))
    stream = [
        trace([{**STEP, "started": 0, "completed": 1, "error": "exit code: 1"}], [("sha256:1", lines)]),
        {"errorDetail": {"message": "failed"}},
    ]
    with pytest.raises(BuildError) as caught:
        list(buildkit.events(stream))
    assert caught.value.detail.splitlines() == [f"line {n}" for n in range(500 - buildkit.LOG_TAIL_LINES, 500)]


@pytest.mark.parametrize("where", ["log", "reason"])
def test_a_full_disk_is_reported(where: str) -> None:
    text = "write /app: No space left on device"
    stream = [
        trace([{**STEP, "started": 0, "completed": 1, "error": "exit code: 1"}],
              [("sha256:1", text.encode())] if where == "log" else []),
        {"errorDetail": {"message": text if where == "reason" else "exit code: 1"}},
    ]  # fmt: skip
    with pytest.raises(BuildError, match="the engine's disk is full: free some"):
        list(buildkit.events(stream))


@pytest.mark.parametrize(
    ("line", "percentage"), [("[  3%] Building CXX", 3), ("[100%] Built target", 100), ("-- [ 3%]", None), ("", None)]
)
def test_compile_percentage(line: str, percentage: int | None) -> None:
    assert buildkit.compile_percentage(line) == percentage


def percentages(*printed: int) -> list[int]:
    known = itertools.accumulate(printed, buildkit.next_percentage, initial=buildkit.Compiled())
    return [compiled.percent for compiled in known][1:]


def test_a_nested_project_does_not_change_the_percentage() -> None:
    assert percentages(1, 8, 50, 100, 100, 9, 11, 12) == [1, 8, 8, 8, 8, 9, 11, 12]


def test_lines_out_of_order_do_not_lower_the_percentage() -> None:
    assert percentages(8, 10, 9, 11) == [8, 10, 10, 11]


def test_the_percentage_continues_after_dropped_lines() -> None:
    assert percentages(2, 3, *range(40, 60))[-1] == 59
    assert percentages(80, *range(3, 30))[-1] == 29


def test_the_percentage_restarts_with_a_second_project() -> None:
    assert percentages(*range(101), 1, 1, 2, 5) == [*range(101), 1, 1, 2, 5]


def test_raw_progress_of_buildx_gives_the_same_events() -> None:
    raw = buildkit.RawProgress()
    lines = (
        (
            '{"vertexes":[{"digest":"sha256:a","name":"[cpu-amd64 build 2/3] RUN make",'
            '"started":"2026-11-23T06:55:00.500000001Z"}]}'
        ),
        (
            '{"logs":[{"vertex":"sha256:a","stream":1,"data":"WyA0MiVdIEJ1aWxkaW5nCg==","timestamp":"2026-11-23T06:55:00Z"}],'
            '"statuses":[{"id":"x","vertex":"sha256:a","current":1}]}'
        ),
        "WARNING: something",
        (
            '{"vertexes":[{"digest":"sha256:a","name":"[cpu-amd64 build 2/3] RUN make",'
            '"started":"2026-11-23T06:55:00.5Z","completed":"2026-11-23T06:55:02Z","error":"exit code: 1"}]}'
        ),
        "ERROR: target cpu-amd64: failed to solve: exit code: 1",
    )
    events = [event for line in lines for event in raw.read(line)]
    name = "[cpu-amd64 build 2/3] RUN make"
    assert events == [
        buildkit.StepStarted(step="sha256:a", name=name),
        buildkit.StepLog(step="sha256:a", line="[ 42%] Building"),
        buildkit.StepFinished(
            step="sha256:a", name=name, seconds=1.5, cached=False, error="exit code: 1", started=1795416900.5
        ),
    ]
    failure = raw.failure()
    assert str(failure) == f"The build failed in the step {name!r}: target cpu-amd64: failed to solve: exit code: 1."
    assert failure.detail == "[ 42%] Building"


def test_messages_of_buildx_are_the_detail_without_a_failed_step() -> None:
    raw = buildkit.RawProgress()
    assert not list(raw.read("Dockerfile:2"))
    assert not list(raw.read(">>> NONSENSE"))
    assert not list(raw.read("ERROR: failed to push: errors:"))
    assert not list(raw.read("denied: not you"))
    assert str(raw.failure()) == "The build failed: failed to push: errors: denied: not you."
    assert raw.failure().detail == "Dockerfile:2\n>>> NONSENSE"
    assert str(buildkit.RawProgress().failure()) == "The build failed: the engine gave no reason."


@pytest.mark.parametrize(
    ("name", "internal"),
    [
        ("[internal] load build definition from Dockerfile", True),
        ("[cpu-amd64 internal] load .dockerignore", True),
        ("[build 2/3] RUN [internal]", False),
        ("[cpu-amd64 build 2/3] RUN make", False),
        ("exporting to image", False),
    ],
)
def test_internal_steps_are_recognised(name: str, internal: bool) -> None:
    assert buildkit.is_internal(name) is internal


@pytest.mark.parametrize("parents", [lambda *ids: {"Parent": (ids or ("",))[0]}, lambda *ids: {"Parents": list(ids)}])
def test_steps_in_the_cache_are_found_by_their_command_with_what_is_on_top(parents: Any) -> None:
    cache = [
        {"ID": "base", "Description": "pulled from node", **parents()},
        {"ID": "copied", "Description": "[2/9] COPY a", **parents("made")},
        {"ID": "made", "Description": "mount / from exec env MARK=1 sh -c make", **parents("base")},
        {"ID": "last", "Description": "mount / from exec sh -c true", **parents("copied")},
        {"ID": "other", "Description": "mount / from exec env MARK=2 sh -c make", **parents("base")},
        {"ID": "odd", "Parents": None},
    ]
    assert buildkit.steps_with("MARK=1", cache) == {"made", "copied", "last"}
    assert buildkit.steps_with("MARK=3", cache) == set()
