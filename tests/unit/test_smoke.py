"""The parts of the smoke test that need neither an engine nor a server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import requests

from base_images import launch, model, smoke, smoke_report
from base_images.engine import ContainerState
from base_images.errors import LaunchError, UsageError
from base_images.model import TensorType
from base_images.smoke import CheckFailedError, CheckSkippedError
from base_images.smoke_report import CheckResult, ServerReport, SmokeReport, Status

RUNNING = ContainerState(status="running", running=True, exit_code=0, error="", out_of_memory=False, health="")
KILLED = ContainerState(status="exited", running=False, exit_code=137, error="", out_of_memory=True, health="")

CLOSED_PORT = "http://127.0.0.1:1"


# --- waiting ---


def test_waiting_ends_when_the_condition_holds() -> None:
    answers = iter([False, False, True])
    seconds = launch.wait(lambda: next(answers), state=lambda: RUNNING, log=str, timeout=10)
    assert 2 * launch.POLL_SECONDS <= seconds < 5


def test_waiting_ends_at_once_when_the_container_is_gone() -> None:
    states = iter([RUNNING, KILLED])
    began = time.monotonic()
    with pytest.raises(LaunchError, match=r"exit code 137 after 0\.\d s, killed for want of memory") as caught:
        launch.wait(lambda: False, state=lambda: next(states), log=lambda: "one\ntwo\n", timeout=60)
    assert time.monotonic() - began < 5
    assert caught.value.detail == "one\ntwo"


def test_a_condition_that_would_hold_does_not_excuse_a_container_that_is_gone() -> None:
    with pytest.raises(LaunchError, match="exit code 137"):
        launch.wait(lambda: True, state=lambda: KILLED, log=str, timeout=60)


def test_the_deadline_says_status_exit_code_elapsed_and_the_logs_tail() -> None:
    log = "".join(f"line {number}\n" for number in range(100))
    with pytest.raises(
        LaunchError, match=r"within 0\.1 s \(waited 0\.\d s, container running, exit code 0\)"
    ) as caught:
        launch.wait(lambda: False, state=lambda: RUNNING, log=lambda: log, timeout=0.1)
    assert caught.value.detail.splitlines() == [f"line {number}" for number in range(75, 100)]


# --- ways to start ---


def test_the_quick_start_is_the_specifications_command() -> None:
    way = launch.quick_start("sha256:1", "m")
    assert way.arguments == "IMAGE --host 0.0.0.0 --port 8080 --model /models/m.gguf"
    assert way.container.read_only
    assert re.fullmatch(r"\d+:\d+", way.container.user or "")
    assert way.container.publish == way.port == 8080


def test_bodhi_starts_the_binary_by_its_path_with_its_own_arguments() -> None:
    way = launch.as_bodhi("sha256:1", "m", "/app/bin/x86_64-unknown-linux-gnu/cpu")
    assert way.arguments == (
        "/app/bin/x86_64-unknown-linux-gnu/cpu/llama-server "
        f"--alias bodhi-m --model /models/m.gguf --embeddings --port {way.port}"
    )
    assert way.container.working_directory == "/"
    assert way.container.environment["LD_LIBRARY_PATH"] == ""
    assert way.port not in {8080, 9931}


def test_every_tensor_type_is_tried_and_both_ways_are_thorough() -> None:
    servers = launch.plan()
    assert {server.tensor_type for server in servers} == set(TensorType)
    assert {check for server in servers if server.is_bodhi for check in server.checks} >= set(smoke.CHECKS)
    assert all("completion" in server.checks and server.checks[-1] == "sigterm" for server in servers)


def test_one_tensor_type_is_enough_for_both_ways() -> None:
    assert [server.name for server in launch.plan([TensorType.F32])] == ["quick start, F32", "as BodhiApp, F32"]


# --- how a check ends ---


def fail() -> str:
    raise CheckFailedError("wrong", detail="more")


def skip() -> str:
    raise CheckSkippedError("not here")


def not_json() -> str:
    response = requests.Response()
    response._content = b"<html>"
    return str(response.json())


def ask_nobody() -> str:
    return requests.get(CLOSED_PORT, timeout=5).text


@pytest.mark.parametrize(
    ("check", "status", "seen"),
    [
        (lambda: "fine", Status.PASS, "fine"),
        (fail, Status.FAIL, "wrong"),
        (skip, Status.SKIP, "not here"),
        (ask_nobody, Status.FAIL, "The server gave no answer: "),
        (
            lambda: str(json.loads("{}")["choices"]),
            Status.FAIL,
            "The answer has another shape than expected: KeyError: 'choices'",
        ),
        (not_json, Status.FAIL, "The answer has another shape than expected: JSONDecodeError"),
    ],
)
def test_a_check_passes_fails_or_is_skipped(check: Callable[[], str], status: Status, seen: str) -> None:
    result = smoke.perform("name", check)
    assert (result.name, result.status) == ("name", status)
    assert result.seen.startswith(seen)
    assert result.seconds >= 0


def test_ctrl_c_is_no_failed_check() -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smoke.perform("name", interrupted)


def test_nobody_there_is_not_healthy() -> None:
    assert not smoke.is_healthy(CLOSED_PORT)


# --- reading answers ---


def test_events_of_a_stream() -> None:
    stream = 'data: {"a": 1}\n\n: comment\n\ndata: {"b": "data: x"}\n\ndata: [DONE]\n\n'
    assert smoke.read_events(stream) == ([{"a": 1}, {"b": "data: x"}], True)


@pytest.mark.parametrize("stream", ["", 'data: {"a": 1}\n\n', 'data: [DONE]\n\ndata: {"a": 1}\n\n'])
def test_a_stream_that_is_not_done(stream: str) -> None:
    try:
        _, done = smoke.read_events(stream)
    except ValueError:
        return  # an event after [DONE] makes [DONE] an event, and that is not JSON
    assert not done


def test_the_script_of_a_page() -> None:
    page = '<script>x = 1;\nimport("./_app/immutable/bundle.Ab_1.js").then((app) => app.start())</script>'
    assert smoke.find_script(page) == "./_app/immutable/bundle.Ab_1.js"
    assert smoke.find_script("<html><body>It works!</body></html>") is None


LOADED = "0.00.0 I load_backend: loaded CPU backend from /app/bin/t/cpu/libggml-cpu-zen4.so\n"


def test_the_log_names_the_backend() -> None:
    assert launch.check_backend(f"before\n{LOADED}after\n", "/app/bin/t/cpu") == "loaded libggml-cpu-zen4.so"


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("main: loading model\n", "does not say that a CPU backend was loaded"),
        (LOADED.replace("loaded CPU", "failed to load CPU"), "does not say that a CPU backend was loaded"),
        (LOADED.replace("/app/bin/t/cpu", "/usr/lib"), "from /usr/lib instead of /app/bin/t/cpu"),
    ],
)
def test_a_backend_that_is_missing_or_from_elsewhere(log: str, reason: str) -> None:
    with pytest.raises(CheckFailedError, match=reason):
        launch.check_backend(log, "/app/bin/t/cpu")


# --- the record ---


def report_of(*statuses: Status) -> SmokeReport:
    checks = tuple(
        CheckResult(name=f"check {number}", status=status, seen="a <b> & \x1b[31mred", seconds=0.5, detail="more\x00")
        for number, status in enumerate(statuses)
    )
    server = ServerReport(name="quick start, F32", arguments="IMAGE --port 8080", checks=checks, log="log\n", seconds=2)
    return SmokeReport(
        image="sha256:1", variant="cpu", started="2026-10-01T00:00:00+00:00", seconds=3, servers=(server,)
    )


@pytest.mark.parametrize(
    ("statuses", "ok"),
    [
        ([], False),
        ([Status.SKIP], False),
        ([Status.PASS], True),
        ([Status.PASS, Status.SKIP], True),
        ([Status.PASS, Status.FAIL], False),
    ],
)
def test_a_report_is_ok_when_something_passed_and_nothing_failed(statuses: list[Status], ok: bool) -> None:
    assert report_of(*statuses).ok is ok


def test_rows_are_in_order() -> None:
    rows = report_of(Status.PASS, Status.FAIL).rows
    assert [(row.server, row.check, row.status) for row in rows] == [
        ("quick start, F32", "check 0", Status.PASS),
        ("quick start, F32", "check 1", Status.FAIL),
    ]


def test_the_record_is_written_whole(tmp_path: Path) -> None:
    report = report_of(Status.PASS, Status.FAIL, Status.SKIP)
    paths = smoke_report.write(report, tmp_path / "made")
    assert [path.name for path in paths] == ["smoke-cpu.json", "smoke-cpu.xml", "smoke-cpu-server-1.log"]

    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["ok"] is False
    assert [check["status"] for check in content["servers"][0]["checks"]] == ["pass", "fail", "skip"]
    assert content["servers"][0]["checks"][0]["seen"] == "a <b> & \x1b[31mred"
    assert "log" not in content["servers"][0]

    suite = ET.parse(paths[1]).getroot()[0]  # noqa: S314 - our own file
    assert {name: suite.get(name) for name in ("tests", "failures", "skipped", "errors", "time")} == {
        "tests": "3",
        "failures": "1",
        "skipped": "1",
        "errors": "0",
        "time": "2.000",
    }
    assert [[child.tag for child in case] for case in suite] == [["system-out"], ["failure"], ["skipped"]]
    assert suite[1][0].get("message") == "a <b> & \N{REPLACEMENT CHARACTER}[31mred"
    assert suite[1][0].text == "more\N{REPLACEMENT CHARACTER}"

    assert paths[2].read_text(encoding="utf-8") == "log\n"


def test_a_record_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot be written to .*file/record \(Not a directory\)"):
        smoke_report.write(report_of(Status.PASS), tmp_path / "file" / "record")


def test_a_log_probability_of_null_is_a_wrong_one() -> None:
    answer = model.known_answer(TensorType.Q8_0)
    steps = [{"token": step.text, "logprob": step.log_probability, "top_logprobs": []} for step in answer.steps]
    assert "All 16 tokens are right" in smoke._judge(answer, answer.text, steps)
    steps[3]["logprob"] = None
    with pytest.raises(CheckFailedError, match=r"Step 4 gives .* the log-probability nan"):
        smoke._judge(answer, answer.text, steps)
