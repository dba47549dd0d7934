"""The parts of the smoke test that need neither an engine nor a server."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import requests

from base_images import variants
from base_images.adapters.container import ContainerState
from base_images.cli import views as report
from base_images.errors import LaunchError, UsageError
from base_images.recipes import consumer
from base_images.smoke import checks_http, checks_server, containers, device, model, runner, speed, tolerances
from base_images.smoke import report as smoke_report
from base_images.smoke import server as servers
from base_images.smoke.checks_http import CheckFailedError, CheckSkippedError
from base_images.smoke.model import TensorType
from base_images.smoke.report import Device, SmokeReport, Status
from tests.support import smoke_reports
from tests.unit.smoke.test_speed import SMALL, Usage

CPU, VULKAN = variants.find("cpu"), variants.find("vulkan")

RUNNING = ContainerState(status="running", running=True, exit_code=0, error="", out_of_memory=False, health="")
KILLED = ContainerState(status="exited", running=False, exit_code=137, error="", out_of_memory=True, health="")

CLOSED_PORT = "http://127.0.0.1:1"


# --- waiting ---


def test_waiting_returns_when_the_condition_holds() -> None:
    answers = iter([False, False, True])
    began = time.monotonic()
    seconds = servers.wait(lambda: next(answers), state=lambda: RUNNING, log=str, timeout=600)
    assert 2 * servers.POLL_SECONDS <= seconds <= time.monotonic() - began


def test_waiting_fails_at_once_when_the_container_has_ended() -> None:
    states = iter([RUNNING, KILLED])  # a further call would raise StopIteration
    with pytest.raises(LaunchError, match=r"exit code 137 after \d+\.\d s, out of memory") as caught:
        servers.wait(lambda: False, state=lambda: next(states), log=lambda: "one\ntwo\n", timeout=600)
    assert caught.value.detail == "one\ntwo"


def test_an_ended_container_fails_even_if_the_condition_holds() -> None:
    with pytest.raises(LaunchError, match="exit code 137"):
        servers.wait(lambda: True, state=lambda: KILLED, log=str, timeout=60)


def test_a_timeout_reports_status_exit_code_elapsed_time_and_log_tail() -> None:
    log = "".join(f"line {number}\n" for number in range(100))
    with pytest.raises(LaunchError, match=r"within 0\.1 s \(waited \d+\.\d s, it is running, exit code 0\)") as caught:
        servers.wait(lambda: False, state=lambda: RUNNING, log=lambda: log, timeout=0.1)
    assert caught.value.detail.splitlines() == [f"line {number}" for number in range(75, 100)]


# --- ways to start ---


def test_quick_start_runs_the_specified_command() -> None:
    way = containers.quick_start("sha256:1", "m")
    assert way.arguments == "IMAGE --host 0.0.0.0 --port 8080 --model /models/m.gguf"
    assert way.container.read_only
    assert re.fullmatch(r"\d+:\d+", way.container.user or "")
    assert way.container.publish == way.port == 8080


def test_bodhi_starts_the_binary_by_path_with_its_own_arguments() -> None:
    way = containers.as_bodhi("sha256:1", "m", "/app/bin/x86_64-unknown-linux-gnu/cpu")
    assert way.arguments == (
        "/app/bin/x86_64-unknown-linux-gnu/cpu/llama-server "
        f"--alias bodhi-m --model /models/m.gguf --embeddings --port {way.port}"
    )
    assert way.container.working_directory is None  # the image's, /app
    assert way.container.environment["LD_LIBRARY_PATH"] == ""
    assert way.port not in {8080, 9931}


def test_plan_covers_every_tensor_type_and_every_check() -> None:
    servers = runner.plan(VULKAN)
    assert {server.tensor_type for server in servers} == set(TensorType)
    quick, bodhi = (
        {check for server in servers if server.is_bodhi is way for check in server.checks} for way in (False, True)
    )
    assert quick | bodhi >= set(checks_http.CHECKS)
    assert set(checks_http.CHECKS) - bodhi == {"web page"}  # which BodhiApp's servers do not serve: --no-webui
    assert all("completion" in server.checks and server.checks[-1] == "sigterm" for server in servers)


def test_one_server_is_asked_a_long_prompt_but_none_on_a_device_in_software() -> None:
    asked = [server.tensor_type for server in runner.plan(VULKAN) if "long prompt" in server.checks]
    assert asked == list(model.LONG_PROMPTS)
    in_software = runner.plan(VULKAN, runner.SOFTWARE_TYPES, on_device=True, long_prompts=())
    assert not [server for server in in_software if "long prompt" in server.checks]


def test_software_devices_get_the_types_that_they_were_measured_with() -> None:
    measured = {row.type for row in tolerances.table() if row.kind is tolerances.Kind.SOFTWARE}
    assert set(runner.SOFTWARE_TYPES) == measured


def test_the_model_for_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "Shape", lambda: SMALL)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)

    def found(*, given: Path | None = None, known_answer: bool) -> tuple[bool, str]:
        with runner._model_for_speed(given, known_answer=known_answer, say=lambda _: None) as (path, described):
            return path is not None and (path == given or tmp_path in path.parents), described

    assert found(given=tmp_path / "mine.gguf", known_answer=False) == (True, "mine.gguf")
    assert found(known_answer=True) == (False, "a small known-answer model")
    assert found(known_answer=False) == (True, "2.8 MB of random Q4_K")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    assert found(known_answer=False) == (False, "a small known-answer model, for want of disk")


def test_a_single_tensor_type_is_used_for_both_ways() -> None:
    names = [server.name for server in runner.plan(CPU, [TensorType.F32])]
    assert names == ["quick start, F32", "as BodhiApp, F32"]


def test_every_fallback_directory_gets_a_server() -> None:
    assert {server.directory for server in runner.plan(CPU)} == {"cpu"}
    *own, fallback = runner.plan(VULKAN)
    assert {server.directory for server in own} == {"vulkan"}
    assert (fallback.name, fallback.directory, fallback.is_bodhi) == ("as BodhiApp, from cpu/", "cpu", True)
    assert {"completion", "chat", "embeddings", "backend"} <= set(fallback.checks)


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("on_device", [False, True])
def test_bodhi_servers_get_the_arguments_of_its_images(variant: variants.Variant, on_device: bool) -> None:
    servers = [server for server in runner.plan(variant, on_device=on_device) if server.is_bodhi]
    arguments = {server.directory: server.arguments for server in servers}
    assert arguments == {name: consumer.load().working(variant.name, name) for name in variant.directories}
    assert all("--no-webui" in server.arguments for server in servers)


def test_every_cache_type_of_bodhi_has_tolerances() -> None:
    for variant in variants.VARIANTS:
        for server in runner.plan(variant):
            for cache_type in (consumer.value_of(option, server.arguments) for option in runner.CACHE_TYPES):
                tolerances.of(TensorType.Q8_0, caches={cache_type})
    with pytest.raises(UsageError, match="key-value cache of q4_1 is not known: measure it"):
        tolerances.of(TensorType.Q8_0, caches={"q4_1"})


def test_only_the_fallback_server_runs_without_the_device() -> None:
    *servers, fallback = runner.plan(VULKAN, on_device=True)
    assert (fallback.directory, fallback.on_device) == ("cpu", False)
    assert not {"list-devices", "offloaded", "buffers"} & set(fallback.checks)
    assert {server.tensor_type for server in servers} == set(TensorType)
    for server in servers:
        assert server.on_device
        assert server.directory == "vulkan"
        assert {"list-devices", "offloaded", "buffers", "completion"} <= set(server.checks)


def test_a_container_on_a_device() -> None:
    way = containers.on_device(containers.quick_start("sha256:1", "m"), device.in_software(VULKAN), "cache")
    assert way.arguments == "IMAGE --host 0.0.0.0 --port 8080 --model /models/m.gguf --n-gpu-layers 99"
    assert way.container.environment["GGML_VK_VISIBLE_DEVICES"] == "0"
    assert way.container.environment["LLAMA_ARG_LOG_VERBOSITY"] == "4"
    assert way.container.tmpfs == {"/tmp": "mode=1777"}
    assert way.container.volumes == {"cache": way.container.environment["XDG_CACHE_HOME"]}


def test_a_given_number_of_layers_is_kept() -> None:
    bodhi = containers.with_arguments(containers.quick_start("sha256:1", "m"), ("--n-gpu-layers", "-1"), None)
    way = containers.on_device(bodhi, device.in_software(VULKAN), "cache")
    assert way.arguments.count("--n-gpu-layers") == 1


# --- results of a check ---


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
    result = checks_http.perform("name", check)
    assert (result.name, result.status) == ("name", status)
    assert result.seen.startswith(seen)
    assert result.seconds >= 0


def test_ctrl_c_is_not_reported_as_a_failed_check() -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks_http.perform("name", interrupted)


def test_a_closed_port_is_not_healthy() -> None:
    assert not checks_http.is_healthy(CLOSED_PORT)


# --- reading answers ---


def test_events_of_a_stream() -> None:
    stream = 'data: {"a": 1}\n\n: comment\n\ndata: {"b": "data: x"}\n\ndata: [DONE]\n\n'
    assert checks_http.read_events(stream) == ([{"a": 1}, {"b": "data: x"}], True)


@pytest.mark.parametrize("stream", ["", 'data: {"a": 1}\n\n', 'data: [DONE]\n\ndata: {"a": 1}\n\n'])
def test_a_stream_without_done(stream: str) -> None:
    try:
        _, done = checks_http.read_events(stream)
    except ValueError:
        return  # an event after [DONE] makes [DONE] an event, and that is not JSON
    assert not done


def test_the_script_of_a_page() -> None:
    page = '<script>x = 1;\nimport("./_app/immutable/bundle.Ab_1.js").then((app) => app.start())</script>'
    assert checks_http.find_script(page) == "./_app/immutable/bundle.Ab_1.js"
    assert checks_http.find_script("<html><body>It works!</body></html>") is None


def mapped(*paths: str) -> str:
    """Returns the memory map of a process that loaded these libraries, with their data and code."""
    rows = ("r--p 00000000", "r-xp 00001000", "rw-p 00002000")
    return "".join(f"5641b0c3c000-5641b0c3d000 {row} 00:27 21217      {path}\n" for path in paths for row in rows)


def read(path: str) -> str:
    """Returns the memory map of a process that reads this file and does not execute it."""
    return mapped(path).replace("r-xp", "r--p").replace("rw-p", "r--p")


SERVER = mapped(
    "/app/bin/t/cpu/llama-server", "/app/bin/t/cpu/libggml-base.so.0.20.0", "/app/bin/t/cpu/libggml.so.0.20.0"
)
LOADED = SERVER + mapped("/app/bin/t/cpu/libggml-cpu-zen4.so")


def test_the_backend_is_found_in_the_memory_map() -> None:
    assert checks_server.check_backend(LOADED, "", "/app/bin/t/cpu") == "loaded libggml-cpu-zen4.so"


def test_the_backend_of_an_emulated_process_is_found() -> None:
    """As qemu-user 7.2 maps it: code is read, not executed."""
    emulated = LOADED.replace("r-xp", "---p")
    assert checks_server.check_backend(emulated, "", "/app/bin/t/cpu") == "loaded libggml-cpu-zen4.so"


@pytest.mark.parametrize(
    ("maps", "reason"),
    [
        (SERVER, "has loaded no CPU backend"),
        (SERVER + read("/app/bin/t/cpu/libggml-cpu-zen4.so"), "has loaded no CPU backend"),
        (SERVER + mapped("/app/bin/t/cpu/libggml-vulkan.so"), "has loaded no CPU backend"),
        ("", "has loaded no CPU backend"),
        (
            LOADED.replace("/app/bin/t/cpu/libggml-cpu", "/usr/lib/libggml-cpu"),
            "from /usr/lib instead of /app/bin/t/cpu",
        ),
    ],
)
def test_a_missing_backend_or_one_of_another_directory_fails(maps: str, reason: str) -> None:
    with pytest.raises(CheckFailedError, match=reason):
        checks_server.check_backend(maps, "", "/app/bin/t/cpu")


# The log of b11312 on a machine with a device, without the lines in between.
ON_DEVICE = """\
0.00.2 I load_tensors: offloading output layer to GPU
0.00.2 I load_tensors: offloaded 3/3 layers to GPU
0.00.2 I load_tensors:      Vulkan0 model buffer size =     2.30 MiB
0.00.2 I load_tensors:   CPU_Mapped model buffer size =     0.05 MiB
0.00.2 I llama_kv_cache:    Vulkan0 KV buffer size =     4.00 MiB
"""
WITHOUT = """\
0.00.2 I load_tensors:   CPU_Mapped model buffer size =     4.69 MiB
0.00.2 I llama_kv_cache:        CPU KV buffer size =     4.00 MiB
"""


CPU_ALONE = mapped("/app/bin/t/vulkan/libggml-cpu-zen4.so")
WITH_VULKAN = mapped("/app/bin/t/vulkan/libggml-vulkan.so") + CPU_ALONE


@pytest.mark.parametrize(
    ("maps", "log", "said"),
    [
        (WITH_VULKAN, ON_DEVICE, "the model is in Vulkan0 and CPU_Mapped"),
        (CPU_ALONE, WITHOUT, "the Vulkan backend WAS NOT LOADED, THE CPU GAVE THE ANSWERS: the model is in CPU_Mapped"),
        (
            WITH_VULKAN,
            WITHOUT,
            "the Vulkan backend has found no device, THE CPU GAVE THE ANSWERS: the model is in CPU_Mapped",
        ),
    ],
)
def test_the_result_says_whether_the_accelerator_is_used(maps: str, log: str, said: str) -> None:
    seen = checks_server.check_backend(maps, log, "/app/bin/t/vulkan", accelerator="Vulkan")
    assert seen == f"loaded libggml-cpu-zen4.so; {said}"


@pytest.mark.parametrize("linked_in", [True, None])
def test_linked_in_backends_are_not_expected_in_the_memory_map(linked_in: bool | None) -> None:
    said = checks_server.check_backend(SERVER, WITHOUT, "/app/bin/t/cann", accelerator="CANN", linked_in=linked_in)
    assert said.startswith("backends are linked in; the CANN backend has found no device, THE CPU GAVE THE ANSWERS")
    assert checks_server.check_backend(SERVER, "", "/app/bin/t/cann", linked_in=linked_in) == "backends are linked in"


def test_every_layer_has_to_be_on_the_device() -> None:
    assert checks_server.check_offloaded(ON_DEVICE) == "offloaded 3/3 layers to GPU"
    with pytest.raises(CheckFailedError, match="Only 2 of 3 layers"):
        checks_server.check_offloaded(ON_DEVICE.replace("3/3", "2/3"))
    with pytest.raises(CheckFailedError, match="does not say that any layer is on a device"):
        checks_server.check_offloaded(WITHOUT)


# What llama.cpp b10454 calls the buffers of a CPU's own kernels.
CPU_BUFFERS = ("AMX", "CPU_REPACK", "CPU_KLEIDIAI", "CPU_HBM", "CPU_RISCV64_SPACEMIT")


@pytest.mark.parametrize("buffer", CPU_BUFFERS)
def test_weights_for_the_kernels_of_the_cpu_are_not_on_the_device(buffer: str) -> None:
    line = f"0.00.2 I load_tensors: {buffer:>12} model buffer size =     0.03 MiB\n"
    for log, reason in (
        (
            ON_DEVICE + line,
            rf"The model buffer is in Vulkan0 only in part: .*0\.03 MiB in {buffer}, where the CPU computes",
        ),
        (WITHOUT + line, rf"The model buffer is in CPU_Mapped and {buffer}, not in Vulkan0"),
    ):
        with pytest.raises(CheckFailedError, match=reason):
            checks_server.check_buffers(log, "Vulkan")
    said = checks_server.check_backend(WITH_VULKAN, WITHOUT + line, "/app/bin/t/vulkan", accelerator="Vulkan")
    assert said.endswith(f"THE CPU GAVE THE ANSWERS: the model is in CPU_Mapped and {buffer}")


@pytest.mark.parametrize("buffer", ["CPU_Mapped", "CPU", "Vulkan_Host"])
def test_the_host_may_hold_the_embeddings_and_no_more(buffer: str) -> None:
    for size, ok in (("0.22", True), ("0.24", False), ("2.30", False)):
        log = ON_DEVICE.replace("CPU_Mapped model buffer size =     0.05", f"{buffer} model buffer size =     {size}")
        if ok:
            assert f"{buffer} model buffer {size} MiB" in checks_server.check_buffers(log, "Vulkan")
            continue
        with pytest.raises(CheckFailedError, match=rf"only in part: {float(size):g} MiB in {buffer}, where the CPU"):
            checks_server.check_buffers(log, "Vulkan")


def test_keys_and_values_of_every_layer_have_to_be_on_the_device() -> None:
    log = f"{ON_DEVICE}0.00.2 I llama_kv_cache:        CPU KV buffer size =     2.00 MiB\n"
    with pytest.raises(CheckFailedError, match="The KV buffer is in Vulkan0 only in part: 2 MiB in CPU, where the CPU"):
        checks_server.check_buffers(log, "Vulkan")


def test_weights_and_cache_have_to_be_in_device_memory() -> None:
    seen = checks_server.check_buffers(ON_DEVICE, "Vulkan")
    assert seen == "Vulkan0 model buffer 2.30 MiB, CPU_Mapped model buffer 0.05 MiB, Vulkan0 KV buffer 4.00 MiB"
    for log, name, reason in (
        (WITHOUT, "Vulkan", "The model buffer is in CPU_Mapped, not in Vulkan0"),
        (ON_DEVICE, "CUDA", "The model buffer is in Vulkan0 and CPU_Mapped, not in CUDA0"),
        (ON_DEVICE.replace("Vulkan0 KV", "CPU KV"), "Vulkan", "The KV buffer is in CPU, not in Vulkan0"),
        (ON_DEVICE.replace("Vulkan0 model", "Vulkan_Host model"), "Vulkan", "The model buffer is in Vulkan_Host and"),
        ("", "Vulkan", "is in no place that the log names"),
    ):
        with pytest.raises(CheckFailedError, match=reason):
            checks_server.check_buffers(log, name)


# --- the record ---


def test_a_report_says_where_the_answers_were_computed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = dataclasses.replace(report_of(Status.PASS), variant="vulkan")
    unknown = dataclasses.replace(without, device=Device.UNKNOWN)
    on_software = dataclasses.replace(without, device=Device.SOFTWARE)
    assert without.as_dict()["device"] == "no device"
    assert on_software.as_dict()["device"] == "software device"
    assert smoke_report.write(without, tmp_path)[0].name == "smoke-vulkan.json"
    assert smoke_report.write(on_software, tmp_path)[0].name == "smoke-vulkan-on-software-device.json"
    report.print_smoke(without)
    assert "no device was given, so nothing here shows that the Vulkan backend" in capsys.readouterr().out
    report.print_smoke(on_software)
    said = capsys.readouterr().out
    assert "smoke vulkan on software device (sha256:1): pass" in said
    assert "no device was given" not in said
    report.print_smoke(unknown)
    assert "nothing here shows that the Vulkan device is used" in capsys.readouterr().out
    report.print_smoke(report_of(Status.PASS))
    assert "nothing here shows" not in capsys.readouterr().out


def report_of(*statuses: Status) -> SmokeReport:
    checks = [
        smoke_reports.check(f"check {number}", status, "a <b> & \x1b[31mred", detail="more\x00")
        for number, status in enumerate(statuses)
    ]
    server = smoke_reports.server("quick start, F32", *checks, log="log\n")
    report = smoke_reports.report(server, variant="cpu", device=Device.NONE)
    return dataclasses.replace(report, image="sha256:1")


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


def test_the_record_has_json_junit_and_logs(tmp_path: Path) -> None:
    report = report_of(Status.PASS, Status.FAIL, Status.SKIP)
    paths = smoke_report.write(report, tmp_path / "made")
    assert [path.name for path in paths] == ["smoke-cpu.json", "smoke-cpu.xml", "smoke-cpu-server-1.log"]

    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["ok"] is False
    assert [check["status"] for check in content["servers"][0]["checks"]] == ["pass", "fail", "skip"]
    assert content["servers"][0]["checks"][0]["seen"] == "a <b> & \x1b[31mred"
    assert "log" not in content["servers"][0]

    suite = ET.parse(paths[1]).getroot()[0]  # noqa: S314 - our own file
    counts = [suite.get(name) for name in ("tests", "failures", "skipped", "errors", "time")]
    assert counts == ["3", "1", "1", "0", "1.500"]
    assert [[child.tag for child in case] for case in suite] == [["system-out"], ["failure"], ["skipped"]]
    assert suite[1][0].get("message") == "a <b> & red"
    assert suite[1][0].text == "more\N{REPLACEMENT CHARACTER}"

    assert paths[2].read_text(encoding="utf-8") == "log\n"


def test_a_log_probability_of_null_is_wrong() -> None:
    answer = model.known_answer(TensorType.Q8_0)
    steps = [{"token": step.text, "logprob": step.log_probability, "top_logprobs": []} for step in answer.steps]
    assert "All 16 tokens are right" in checks_http.judge(answer, answer.text, steps)
    steps[3]["logprob"] = None
    with pytest.raises(CheckFailedError, match=r"Step 4 gives .* the log-probability nan"):
        checks_http.judge(answer, answer.text, steps)
