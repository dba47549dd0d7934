"""A short soak of the real server: it survives being killed, and what is planted in it is found."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from base_images.adapters.engine import Engine, Image
from base_images.smoke import containers, soak
from base_images.smoke.model import TensorType
from base_images.smoke.report import Status
from base_images.smoke.soak_report import Plan
from tests.smoke.conftest import made_by
from tests.support import commands, faults

LEAK = """
one=$(head -c 1000000 /dev/zero | tr '\\0' x)
while sleep 0.2; do all=$all$one; done &
exec "$0" "$@"
"""
"""A shell that grows by a megabyte five times a second, beside the server."""


def test_a_wrong_model_and_a_leak_beside_the_server_fail_and_nothing_else(engine: Engine, cpu_image: Image) -> None:
    way = soak.quick_start(cpu_image)
    server = f"/app/bin/{containers.triple(cpu_image)}/cpu/llama-server"
    spec = dataclasses.replace(way.container, entrypoint=("sh", "-c", LEAK, server))
    fault = "a matrix 5 % too large (blk.0.attn_v)"
    report = soak.soak(
        engine,
        cpu_image,
        Plan(clients=20, seconds=12),
        way=dataclasses.replace(way, container=spec),
        gguf=faults.planted(fault, TensorType.F32),
    )
    found = {check.name: check for check in report.servers[0].checks}
    assert {name: check.status for name, check in found.items()} == {
        "answers": Status.FAIL,
        "failures": Status.PASS,
        "memory": Status.FAIL,
    }, found
    assert re.search(r"answers are wrong, such as: (Step|\d+ log-probabilities)", found["answers"].seen)
    assert report.soak.memory is not None
    assert report.soak.memory.last > 2 * report.soak.memory.first


def test_a_killed_server_comes_back_and_no_answer_is_wrong(cpu_image: Image, tmp_path: Path) -> None:
    options = ("--image", cpu_image.id, "--clients", "20", "--minutes", "0.2", "--kill-every", "3")
    files = ("--record", str(tmp_path / "record"), "--html", str(tmp_path / "soak.html"), "--json")
    process = commands.start([*commands.INVOKE, "soak", *options, *files])
    printed, errors = process.communicate(timeout=600)
    assert (process.returncode, errors) == (0, ""), printed
    report = json.loads((tmp_path / "record" / "soak-cpu-with-kills.json").read_text(encoding="utf-8"))
    assert report["ok"]
    assert json.loads(printed) == report
    seen = report["soak"]
    assert seen["right"] > 0
    assert (seen["wrong"], seen["failed"]) == (0, 0)
    assert seen["failed_in_restarts"] > 0  # twenty clients wait for one of its slots at any time
    assert len(seen["kills"]) == len(seen["restarts"]) > 0
    assert (tmp_path / "record" / "soak-cpu-with-kills.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert "<svg " in (tmp_path / "soak.html").read_text(encoding="utf-8")
    assert made_by(process.pid) == set()
