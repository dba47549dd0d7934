"""The verdict on what test-backend-ops prints, and runs that go on; the program is a shell script, a real process."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from base_images import variants
from base_images.errors import DeviceError, UsageError
from base_images.progress import Listener, Progress, silent
from base_images.smoke import operations, operations_run
from base_images.smoke.operations import Device, Ended, Known, Outcome, Scope
from base_images.smoke.operations_run import Wanted
from base_images.smoke.report import CheckResult, ServerReport, Status

CPU, CUDA = variants.find("cpu"), variants.find("cuda")
GPU = Device(name="CUDA0", description="NVIDIA H200", path="/app/libggml-cuda.so")
ONE = Scope(option="CUDA0", devices={1: GPU})
GREEN, RED, OFF = "\x1b[1;32m", "\x1b[1;31m", "\x1b[0m"
HEAD = "Testing 2 devices\n\nBackend 1/2: CUDA0\n  Device description: NVIDIA H200\n\n"
END = "Backend 2/2: CPU\n  Skipping\n1/2 backends passed\n"
RIGHT = f"""\
{HEAD}  ROPE(type=f32,ne_a=[128,32,2,1]): {GREEN}OK{OFF}
  ROPE(type=f16,ne_a=[128,32,2,1]): {GREEN}OK{OFF}
  ROPE(type=bf16,v=1): not supported [CUDA0]
  2/2 tests passed
  Backend CUDA0: {GREEN}OK{OFF}
{END}"""
WRONG = f"""\
{HEAD}  ROPE(type=f32,ne_a=[128,32,2,1]): {GREEN}OK{OFF}
[ROPE] ERR = 0.012345678 > 0.000000100   ROPE(type=f16,ne_a=[128,32,2,1]): {RED}FAIL{OFF}
failed to allocate tensors [CUDA0]   1/3 tests passed

Failing tests:
  ROPE(type=f16,ne_a=[128,32,2,1])
  ROPE(type=bf16,v=1)
  Backend CUDA0: {RED}FAIL{OFF}
{END}"""
LISTING = """\
device\tCUDA0\tNVIDIA H200\t/app/libggml-cuda.so
device\tCPU\tAMD EPYC\t/app/libggml-cpu-zen4.so
device\tother-cpus\tAMD EPYC\t/app/libggml-cpu-x64.so
device\tother-cpus\tAMD EPYC\t/app/libggml-cpu-haswell.so
cases\tADD\t2
cases\tROPE\t3
"""
KNOWN = Known(device="H200", operation="ROPE", case="type=f16,ne_a=[128,32,2,1]", reason="Why.", issue="https://x/1")


def outcome(output: str, exit_code: int | None = 0, cases: int = 3) -> Outcome:
    return operations.read(Ended(output=output, exit_code=exit_code), ONE, "ROPE", cases)


def judged(seen: Outcome, *baseline: Known) -> CheckResult:
    return operations.judge(seen, baseline, seconds=1)


def test_right_results_pass_with_their_counts() -> None:
    check = judged(outcome(RIGHT))
    assert (check.name, check.status, check.seen) == ("ROPE", Status.PASS, "2 cases passed, 1 not supported")


def test_what_the_device_cannot_do_is_skipped() -> None:
    text = RIGHT.replace(f"{GREEN}OK{OFF}", "not supported [CUDA0]").replace("2/2 tests", "0/0 tests")
    assert (judged(outcome(text)).status, judged(outcome(text)).seen) == (Status.SKIP, "not supported")


def test_a_wrong_result_fails_with_its_case_and_error() -> None:
    check = judged(outcome(WRONG, 1))
    assert check.status is Status.FAIL
    first = "CUDA0: ROPE(type=f16,ne_a=[128,32,2,1]) fails: [ROPE] ERR = 0.012345678 > 0.000000100"
    assert check.seen == f"{first} 1 of 3 cases passed"
    assert check.detail.splitlines()[1].startswith("CUDA0: ROPE(type=bf16,v=1) fails: it has no result")


@pytest.mark.parametrize(
    ("exit_code", "said"),
    [
        (139, "ended with the signal SIGSEGV"),
        (134, "ended with the signal SIGABRT"),
        (127, "ended with exit code 127"),
        (0, "ended with exit code 0"),
        (None, "printed nothing for long and was killed"),
    ],
)
def test_a_crash_is_the_operations_failure(exit_code: int | None, said: str) -> None:
    check = judged(outcome(RIGHT.partition("  ROPE(type=bf16")[0] + "GGML_ASSERT(x) failed\n", exit_code))
    last = "ROPE(type=f16,ne_a=[128,32,2,1])"
    assert check.status is Status.FAIL
    assert check.seen.startswith(f"test-backend-ops {said} after 2 of 3 cases, the last of which was {last}.")
    assert "GGML_ASSERT(x) failed" in check.detail


@pytest.mark.parametrize("text", [HEAD + END, RIGHT.replace("  ROPE(type=bf16,v=1): not supported [CUDA0]\n", "")])
def test_cases_that_did_not_run_fail(text: str) -> None:
    assert judged(outcome(text)).status is Status.FAIL


def test_a_known_failure_passes_with_its_reason_and_issue() -> None:
    seen = replace(outcome(WRONG, 1), failures=outcome(WRONG, 1).failures[:1])
    check = judged(seen, KNOWN)
    assert check.status is Status.PASS
    assert check.seen == "1 of 2 cases passed, 1 known to fail (Why. https://x/1)"


def test_a_case_that_is_there_twice_is_one_known_failure() -> None:
    wrong = re.sub(r"failed to allocate.*$", WRONG.splitlines()[6] + "\n  1/3 tests passed", WRONG, flags=re.MULTILINE)
    seen = outcome(wrong.replace("  ROPE(type=bf16,v=1)\n", ""), 1)
    assert judged(seen, KNOWN).status is Status.PASS


def test_another_failure_than_the_known_one_fails() -> None:
    check = judged(outcome(WRONG, 1), KNOWN)
    assert check.status is Status.FAIL
    assert check.seen.startswith("CUDA0: ROPE(type=bf16,v=1) fails")


@pytest.mark.parametrize("case", [KNOWN.case, "gone"])
def test_a_known_failure_that_passes_or_is_gone_fails(case: str) -> None:
    check = judged(outcome(RIGHT), replace(KNOWN, case=case))
    assert check.status is Status.FAIL
    assert check.seen.startswith(f"CUDA0: ROPE({case}) is known to fail and does not: remove it")


@pytest.mark.parametrize("changed", [{"device": "llvmpipe"}, {"operation": "ADD"}])
def test_the_baseline_is_of_a_device_and_an_operation(changed: dict[str, str]) -> None:
    assert judged(outcome(RIGHT), replace(KNOWN, **changed)).status is Status.PASS
    assert judged(outcome(WRONG, 1), replace(KNOWN, **changed)).seen.startswith("CUDA0: ROPE(type=f16")


def test_the_baseline_is_read_and_an_entry_has_its_reason_and_issue() -> None:
    operations.parse_baseline(operations.BASELINE.read_text(encoding="utf-8"))
    example = re.findall(
        r"^# (\[\[failure\]\]|\w+ = .*)$", operations.BASELINE.read_text(encoding="utf-8"), re.MULTILINE
    )
    [entry] = operations.parse_baseline("\n".join(example))
    assert (entry.device, entry.case, bool(entry.reason)) == ("llvmpipe", "type=f32,...", True)
    with pytest.raises(UsageError, match="has no issue"):
        operations.parse_baseline("\n".join(example[:-1]))


def test_the_first_device_is_tested_or_every_other_cpu_backend() -> None:
    listing = operations.parse_listing(LISTING)
    assert operations.scope(listing, "CUDA") == ONE
    others = operations.scope(listing, "")
    assert {number: device.shown for number, device in others.devices.items()} == {
        3: "libggml-cpu-x64.so",
        4: "libggml-cpu-haswell.so",
    }
    assert others.title == "operations on 2 other CPU backends"
    with pytest.raises(DeviceError, match="finds no device Vulkan0, only CUDA0, CPU"):
        operations.scope(listing, "Vulkan")


def test_a_failure_names_the_cpu_backend() -> None:
    others = operations.scope(operations.parse_listing(LISTING), "")
    text = RIGHT.replace("Backend 1/2", "Backend 3/4") + WRONG.replace("Backend 1/2", "Backend 4/4")
    check = operations.judge(operations.read(Ended(output=text, exit_code=1), others, "ROPE", 3), [], seconds=1)
    assert check.seen.startswith("libggml-cpu-haswell.so: ROPE(type=f16,ne_a=[128,32,2,1]) fails: [ROPE] ERR")
    assert check.seen.endswith(" 3 of 5 cases passed, 1 not supported")
    known = [
        replace(KNOWN, device="haswell", case=failure.split("ROPE(")[1].split(") ")[0])
        for failure in check.detail.splitlines()
    ]
    outcome = operations.read(Ended(output=text, exit_code=1), others, "ROPE", 3)
    assert operations.judge(outcome, known, seconds=1).status is Status.PASS
    stale = operations.judge(outcome, [replace(one, device="EPYC") for one in known], seconds=1)
    assert stale.seen.startswith("libggml-cpu-x64.so: ROPE(type=f16,ne_a=[128,32,2,1]) is known to fail and does not")


def test_another_program_and_an_unknown_operation_are_one_sentence() -> None:
    with pytest.raises(UsageError, match="it printed 'Usage: x'"):
        operations.parse_listing("Usage: x\n")
    with pytest.raises(UsageError, match="There is no operation MUL, BAD: choose from ADD, ROPE"):
        operations.chosen(operations.parse_listing(LISTING), ["ADD", "MUL", "BAD"])


# The runs.

SCRIPT = """\
#!/bin/sh
echo "$*" >> "$0.calls"
case "$*" in
--list) cat "$0.list" ;;
*ADD) kill -SEGV $$ ;;
*) cat "$0.rope" ;;
esac
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A llama-server with a stand-in for the program beside it: ROPE is right, ADD crashes."""
    program = tmp_path / operations.PROGRAM
    program.write_text(SCRIPT)
    program.chmod(0o755)
    (tmp_path / f"{program.name}.list").write_text(LISTING)
    (tmp_path / f"{program.name}.rope").write_text(RIGHT)
    return tmp_path / "llama-server"


def check(server: Path, *names: str, minutes: float = 9, listener: Listener = silent) -> ServerReport:
    wanted = Wanted(names=names, minutes=minutes, record=server.parent / "record")
    with operations_run.of_host(server, None) as subject:
        return operations_run.check(operations_run.plan(subject, CUDA, wanted), listener)


def calls(server: Path) -> list[str]:
    path = server.with_name(f"{operations.PROGRAM}.calls")
    found = path.read_text().splitlines()
    path.unlink()
    return found


def test_a_crash_does_not_stop_the_other_operations(server: Path) -> None:
    said: list[Progress] = []
    report = check(server, listener=said.append)
    assert [(one.name, one.status) for one in report.checks] == [("ADD", Status.FAIL), ("ROPE", Status.PASS)]
    assert "signal SIGSEGV after 0 of 2 cases" in report.checks[0].seen
    assert report.name == "operations on CUDA0 (NVIDIA H200)"
    assert calls(server) == ["--list", "test -b CUDA0 -o ADD", "test -b CUDA0 -o ROPE"]
    assert [(one.done, one.total, one.note) for one in said[:2]] == [(0, 2, "ADD"), (1, 2, "ROPE")]
    assert not list((server.parent / "record").iterdir())


def test_an_interrupted_run_goes_on_where_it_stopped(server: Path) -> None:
    def interrupt(moment: Progress) -> None:
        if moment.note == "ROPE":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(server, listener=interrupt)
    assert calls(server) == ["--list", "test -b CUDA0 -o ADD"]
    report = check(server)
    assert calls(server) == ["--list", "test -b CUDA0 -o ROPE"]
    assert [one.status for one in report.checks] == [Status.FAIL, Status.PASS]
    check(server)
    assert len(calls(server)) == 3  # all of it again


def test_another_program_begins_anew(server: Path) -> None:
    (server.parent / "record").mkdir()
    done = [{"name": "ADD", "status": "pass", "seen": "x", "seconds": 1, "detail": ""}]
    (server.parent / "record" / "operations-cuda.json").write_text(json.dumps({"of": "another", "done": done}))
    check(server)
    assert len(calls(server)) == 3


def test_what_time_does_not_suffice_for_is_skipped_and_comes_next(server: Path) -> None:
    report = check(server, minutes=-1)
    [skipped] = report.checks
    told = "2 of 2 operations, ADD the first, were not tested within -1 minutes: the same command goes on with them"
    assert (skipped.status, skipped.seen) == (Status.SKIP, told)
    calls(server)
    assert check(server).checks[1].status is Status.PASS


def test_a_named_operation_is_always_tested(server: Path) -> None:
    for _ in range(2):
        assert [one.name for one in check(server, "ROPE").checks] == ["ROPE"]
        assert calls(server) == ["--list", "test -b CUDA0 -o ROPE"]


def test_a_silent_program_is_killed(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = server.with_name(operations.PROGRAM)
    program.write_text(SCRIPT.replace("kill -SEGV $$", "exec sleep 600"))
    with operations_run.of_host(server, None) as subject:
        planned = operations_run.plan(subject, CUDA, Wanted(names=("ADD",), minutes=9, record=server.parent))
        monkeypatch.setattr(operations_run, "SILENCE_SECONDS", 0.2)
        monkeypatch.setattr(operations_run, "LOOK_SECONDS", 0.1)
        [seen] = operations_run.check(planned, silent).checks
    assert seen.status is Status.FAIL
    assert "printed nothing for long and was killed after 0 of 2 cases" in seen.seen


def test_a_machine_with_one_cpu_backend_has_nothing_to_compare(server: Path) -> None:
    lines = [
        line for line in LISTING.splitlines() if "cuda" not in line and "x64" not in line and "haswell" not in line
    ]
    server.with_name(f"{operations.PROGRAM}.list").write_text("\n".join(lines))
    with operations_run.of_host(server, None) as subject:
        planned = operations_run.plan(subject, CPU, Wanted(names=(), minutes=9, record=server.parent))
        report = operations_run.check(planned, silent)
    assert [one.status for one in report.checks] == [Status.SKIP]


def test_a_known_failure_of_an_operation_that_is_gone_fails(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = server.parent / "known.toml"
    baseline.write_text(
        '[[failure]]\ndevice = "H200"\noperation = "OLD"\ncases = ["x"]\nreason = "Why."\nissue = "https://x/1"\n'
    )
    monkeypatch.setattr(operations, "BASELINE", baseline)
    assert check(server, "ROPE").checks[-1].seen == (
        "OLD is known to fail, and is not tested: remove it from the baseline."
    )


def test_without_the_program_it_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no .*/test-backend-ops: copy it there"):
        check(tmp_path / "llama-server")
