"""The real server with a fault in its model, which the reference has not: the smoke test's checks fail for every type.

docs/testing.md has the numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from base_images import variants
from base_images.adapters.engine import Image
from base_images.smoke import checks_http, checks_server, model, precision, process
from base_images.smoke import server as servers
from base_images.smoke.checks_http import Target, perform
from base_images.smoke.model import TensorType
from base_images.smoke.report import Check, CheckResult, Device, ServerReport, SmokeReport, Status
from base_images.smoke.runner import Prepare, ServerPlan
from tests.support import faults, host_server

CPU = variants.find("cpu")


@pytest.fixture(scope="module")
def program(cpu_image: Image) -> Iterator[Path]:
    with host_server.copied_out(cpu_image) as path:
        yield path


def seen(program: Path, tensor_type: TensorType, gguf: bytes) -> dict[str, CheckResult]:
    """Returns the results of the known answer and of precision for a server that loads this file."""
    answer = model.known_answer(tensor_type)
    plan = ServerPlan(name="fault", directory="cpu", is_bodhi=False, tensor_type=tensor_type, checks=())
    checks = {Check.COMPLETION: checks_http.check_completion, Check.PRECISION: precision.check_precision}

    def check(subject: str, variant: variants.Variant, prepare: Prepare, **_: Any) -> SmokeReport:
        with prepare(plan, dataclasses.replace(answer, gguf=gguf)) as running:
            results = [perform(Check.STARTS, partial(checks_server.check_starts, running.server, running.port))]
            address = servers.url(running.server, running.port)
            target = Target(url=address, alias=running.alias, answer=answer)
            results += [perform(name, partial(run, target)) for name, run in checks.items()]
        server = ServerReport(name=plan.name, arguments="", checks=tuple(results), log="", seconds=0)
        return SmokeReport(
            image=subject, variant=variant.name, device=Device.NONE, started="", seconds=0, servers=(server,)
        )

    report = process.smoke(program, CPU, check=check)
    found = {result.name: result for result in report.servers[0].checks}
    assert found["starts"].status is Status.PASS, found["starts"].seen
    return found


@pytest.mark.parametrize("tensor_type", TensorType)
def test_a_right_server_passes(program: Path, tensor_type: TensorType) -> None:
    found = seen(program, tensor_type, model.known_answer(tensor_type).gguf)
    assert {result.status for result in found.values()} == {Status.PASS}, found


@pytest.mark.parametrize("tensor_type", TensorType)
@pytest.mark.parametrize("fault", [fault for fault in faults.FAULTS if fault not in faults.SMALL])
def test_a_fault_fails_with_every_type(program: Path, tensor_type: TensorType, fault: str) -> None:
    found = seen(program, tensor_type, faults.planted(fault, tensor_type))
    assert found["precision"].status is Status.FAIL, found
    assert found["precision"].seen.startswith("The server computes something else: ")


@pytest.mark.parametrize("fault", faults.SMALL)
def test_a_small_fault_fails_with_an_exact_type(program: Path, fault: str) -> None:
    found = seen(program, TensorType.F16, faults.planted(fault, TensorType.F16))
    assert found["precision"].status is Status.FAIL, found
