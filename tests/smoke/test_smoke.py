"""The smoke test on the real image with the real server passes, and fails if something is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from base_images import variants
from base_images.adapters.engine import Engine, Image
from base_images.smoke import checks_http, containers, model, runner
from base_images.smoke import report as smoke_report
from base_images.smoke.checks_http import CheckFailedError, Target, perform
from base_images.smoke.model import KnownAnswer, TensorType
from base_images.smoke.report import SmokeReport, Status
from tests.smoke.conftest import ANSWER, made_by, started
from tests.support import bodhi, commands
from tests.unit.smoke.test_model import flip_exponent_bit

CPU = variants.find("cpu")
CHECKS = [(server.name, check) for server in runner.plan(CPU) for check in ("starts", *server.checks)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    report: SmokeReport
    directory: Path
    seconds: float
    left: set[str]


@pytest.fixture(scope="module")
def recorded(engine: Engine, cpu_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    directory = tmp_path_factory.mktemp("record")
    before = made_by(os.getpid())
    began = time.monotonic()
    report = containers.smoke(engine, cpu_image.id, CPU)
    seconds = time.monotonic() - began
    smoke_report.write(report, directory)
    return Recorded(report=report, directory=directory, seconds=seconds, left=made_by(os.getpid()) - before)


@pytest.mark.parametrize(("server", "check"), CHECKS)
def test_check(recorded: Recorded, server: str, check: str) -> None:
    [row] = [row for row in recorded.report.rows if (row.server, row.check) == (server, check)]
    assert row.status is Status.PASS, row.seen


def test_the_report_has_these_checks_and_no_others(recorded: Recorded) -> None:
    assert [(row.server, row.check) for row in recorded.report.rows] == CHECKS
    assert recorded.report.ok


def test_the_report_has_consistent_times(recorded: Recorded) -> None:
    report = recorded.report
    print(f"the verdict was there after {recorded.seconds:.1f} s")  # noqa: T201 - the time is not judged
    assert recorded.seconds >= report.seconds >= sum(server.seconds for server in report.servers)
    for server in report.servers:
        assert server.seconds >= sum(check.seconds for check in server.checks) > 0


def test_nothing_is_left_behind(recorded: Recorded) -> None:
    assert recorded.left == set()


def test_the_record_is_complete(recorded: Recorded) -> None:
    content = json.loads((recorded.directory / "smoke-cpu.json").read_text(encoding="utf-8"))
    assert content["ok"]
    assert [(server["name"], check["name"]) for server in content["servers"] for check in server["checks"]] == CHECKS
    cases = ET.parse(recorded.directory / "smoke-cpu.xml").getroot().findall("./testsuite/testcase")  # noqa: S314 - ours
    assert len(cases) == len(CHECKS)
    logs = sorted(recorded.directory.glob("smoke-cpu-server-*.log"))
    assert len(logs) == len(runner.plan(CPU))
    assert all("model loaded" in log.read_text(encoding="utf-8") for log in logs)


# --- failures ---


def failures(target: Target) -> dict[str, str]:
    results = [perform(name, partial(check, target)) for name, check in checks_http.CHECKS.items()]
    return {result.name: result.seen for result in results if result.status is not Status.PASS}


def test_a_running_server_can_be_checked_by_its_url(target: Target) -> None:
    assert failures(target) == {}


KNOWN_ANSWER_CHECKS = {
    "completion",
    "openai completion",
    "chat",
    "chat streamed",
    "eight at once",
    "malformed request",
}


def test_another_answer_than_expected_fails(target: Target) -> None:
    steps = ANSWER.steps
    other = next(text for text in "ab" if text != steps[-1].text)
    last = dataclasses.replace(steps[-1], text=other, top=((other, steps[-1].log_probability), *steps[-1].top[1:]))
    wrong = dataclasses.replace(ANSWER, text=ANSWER.text[:-1] + other, steps=(*steps[:-1], last))
    failed = failures(dataclasses.replace(target, answer=wrong))
    assert set(failed) == KNOWN_ANSWER_CHECKS
    assert all(repr(other) in seen for seen in failed.values()), failed


def test_a_text_that_differs_from_its_tokens_fails(target: Target) -> None:
    failed = failures(dataclasses.replace(target, answer=dataclasses.replace(ANSWER, text="other")))
    assert set(failed) == KNOWN_ANSWER_CHECKS
    assert all("where 'other' is right, though its tokens are" in seen for seen in failed.values()), failed


def test_another_log_probability_than_expected_fails(target: Target) -> None:
    first, *rest = ANSWER.steps
    off = first.log_probability - 2 * ANSWER.limits.largest
    steps = (dataclasses.replace(first, log_probability=off), *rest)
    failed = failures(dataclasses.replace(target, answer=dataclasses.replace(ANSWER, steps=steps)))
    assert set(failed) == KNOWN_ANSWER_CHECKS


def test_another_embedding_than_expected_fails(target: Target) -> None:
    turned = dataclasses.replace(ANSWER, embedding=tuple(-number for number in ANSWER.embedding))
    assert set(failures(dataclasses.replace(target, answer=turned))) == {"embeddings"}


def test_another_model_name_than_expected_fails(target: Target) -> None:
    assert set(failures(dataclasses.replace(target, alias="other"))) == {"models"}


def test_a_missing_server_fails_every_check(target: Target) -> None:
    failed = failures(dataclasses.replace(target, url="http://127.0.0.1:1"))
    assert set(failed) == set(checks_http.CHECKS)
    assert failed["health"].startswith("The server gave no answer: ")


def damaged(answer: KnownAnswer) -> KnownAnswer:
    """Returns the model with one small value of its last tensor made large."""
    middle = len(answer.gguf) - 2
    return dataclasses.replace(answer, gguf=answer.gguf[:middle] + b"\x7e\x43" + answer.gguf[middle + 2 :])


def test_a_damaged_weight_fails(engine: Engine, cpu_image: Image) -> None:
    answer = damaged(model.known_answer(TensorType.F32))
    way = containers.quick_start(cpu_image.id, "damaged")
    wrong = pytest.raises(CheckFailedError, match=r"^Step \d+ is .* is right\.$")
    with started(engine, way, answer) as (_, target), wrong:
        checks_http.check_completion(target)


@pytest.mark.parametrize("tensor_type", [kind for kind in TensorType if kind is not TensorType.F32])
def test_a_damaged_block_of_any_type_fails(engine: Engine, cpu_image: Image, tensor_type: TensorType) -> None:
    """The first block in the row of `output` that makes the answer's first token."""
    answer, tensors = model.known_answer(tensor_type), model.draw_tensors(tensor_type)
    wrong = flip_exponent_bit(tensors["output"], answer.steps[0].token * model.WIDTH)
    gguf = model.to_gguf({**tensors, "output": wrong}, model.MODELS[tensor_type].architecture)
    way = containers.quick_start(cpu_image.id, "damaged")
    with (
        started(engine, way, dataclasses.replace(answer, gguf=gguf)) as (_, target),
        pytest.raises(CheckFailedError, match=r"^Step \d+ "),
    ):
        checks_http.check_completion(target)


def test_a_server_without_embeddings(engine: Engine, cpu_image: Image) -> None:
    answer = model.known_answer(TensorType.F32)
    way = containers.with_arguments(containers.quick_start(cpu_image.id, "model"), ("--no-ui",), None)
    with started(engine, way, answer) as (_, target):
        failed = failures(target)
    assert set(failed) == {"embeddings", "web page"}
    assert "501" in failed["embeddings"]
    assert "404" in failed["web page"]


def test_an_image_that_cannot_start_is_reported_and_not_raised(engine: Engine, cpu_image: Image) -> None:
    report = containers.smoke(engine, cpu_image.id, variants.find("cuda"), tensor_types=[TensorType.F32])
    assert not report.ok
    bodhi = [row for row in report.rows if row.server == "as BodhiApp, F32"]
    assert [(row.check, row.status) for row in bodhi] == [("starts", Status.FAIL)]
    assert "/cuda/llama-server" in bodhi[0].seen
    # The fallback directory exists and its server answers, in the same report.
    fallback = [row for row in report.rows if row.server == "as BodhiApp, from cpu/"]
    assert len(fallback) > 2
    assert {row.status for row in fallback} == {Status.PASS}


def test_a_refused_argument_of_bodhi_is_named(engine: Engine, cpu_image: Image) -> None:
    """Changes a few letters of the argument's name in the library, as if a newer llama.cpp refused it."""
    plant = "RUN sed -i 's/--no-mmap/--no-mmaq/' /app/bin/*/cpu/libllama-common.so.*.*"
    with bodhi.built(engine, f"FROM {cpu_image.tags[0]}\nUSER root\n{plant}\nUSER llama\n") as planted:
        report = containers.smoke(engine, planted.id, CPU, tensor_types=[TensorType.Q8_0])
    said = {row.server: row.seen for row in report.rows if row.status is Status.FAIL}
    assert said == {
        "as BodhiApp, Q8_0": "The server refuses --no-mmap, which BodhiApp passes: error: invalid argument: --no-mmap"
    }


@pytest.mark.parametrize("check", ["starts", "eight at once"])
def test_ctrl_c_leaves_nothing_behind(cpu_image: Image, check: str) -> None:
    script = f"""
import time
from base_images import variants
from base_images.adapters import engine
from base_images.smoke import containers
def listener(progress):
    while progress.note.endswith(": {check}"):
        print("there", flush=True)
        time.sleep(0.1)
containers.smoke(engine.connect(), {cpu_image.id!r}, variants.find("cpu"), listener=listener)
"""
    with commands.python(script) as process:
        assert len(made_by(process.pid)) == 2, "a container and its volume"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert "KeyboardInterrupt" in errors
    assert made_by(process.pid) == set()
