"""The test of every operation on the real image: right backends pass, and a wrong constant in one of them is found."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from base_images import settings, variants, versions
from base_images.adapters.engine import Engine, Image
from base_images.errors import BaseImagesError, ImageNotFoundError
from base_images.progress import silent
from base_images.smoke import containers, operations_run
from base_images.smoke.operations_run import Wanted
from base_images.smoke.report import Status
from base_images.versions import Target
from tests.support import bodhi, commands
from tests.support.releases import docker

CPU = variants.find("cpu")
COEFFICIENT = struct.pack("<f", float.fromhex("0x1.fffdb6p-2"))
"""Of x² in ggml_v_expf (ggml-cpu/vec.h), once for each lane: 0.49999."""


@pytest.fixture(scope="module")
def beside(engine: Engine) -> Image:
    try:
        return engine.image(versions.local_reference("cpu", Target.OPERATIONS))
    except BaseImagesError as error:
        pytest.skip(f"{error} `invoke build-local --variant cpu --operations` builds it.")


def test_the_command_finds_the_program_of_the_image_and_reports_each_operation(beside: Image, tmp_path: Path) -> None:
    done = commands.invoke(
        *("smoke", "--variant", "cpu", "--operations", "SNAKE_FUSE,RELU_SQR", "--json", "--record", str(tmp_path)),
        *("--html", str(tmp_path / "page.html")),
        cwd=settings.ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tested = json.loads(done.stdout)["servers"][-1]
    assert tested["name"].endswith("other CPU backends")
    assert [(check["name"], check["status"]) for check in tested["checks"]] == [
        ("RELU_SQR", "pass"),
        ("SNAKE_FUSE", "pass"),
    ]
    assert 'name="SNAKE_FUSE"' in (tmp_path / "smoke-cpu.xml").read_text()
    assert "SNAKE_FUSE" in (tmp_path / "page.html").read_text()
    assert beside.diff_ids[-1] not in json.dumps(tested)


def test_a_wrong_constant_in_one_backend_fails_there_alone(engine: Engine, beside: Image, tmp_path: Path) -> None:
    directory = f"/app/bin/{containers.triple(beside)}/cpu"
    with operations_run.in_containers(engine, beside, CPU, None) as subject:
        found = operations_run.plan(subject, CPU, Wanted(names=("SILU_MUL",), minutes=9, record=tmp_path))
    if not found.scope.devices:
        pytest.skip("needs a machine with two CPU backends")
    broken = max(device.shown for device in found.scope.devices.values())
    right = docker("run", "--rm", "--entrypoint", "cat", beside.id, f"{directory}/{broken}")
    assert COEFFICIENT in right
    plant = {"broken": right.replace(COEFFICIENT, struct.pack("<f", 0.45))}
    with (
        bodhi.built(engine, f"FROM {beside.tags[0]}\nCOPY broken {directory}/{broken}\n", plant) as planted,
        operations_run.in_containers(engine, planted, CPU, None) as subject,
    ):
        names = ("SILU_MUL", "SNAKE_FUSE")
        planned = operations_run.plan(subject, CPU, Wanted(names=names, minutes=9, record=tmp_path))
        wrong, right_one = operations_run.check(planned, silent).checks
    assert (wrong.name, wrong.status, right_one.status) == ("SILU_MUL", Status.FAIL, Status.PASS)
    assert wrong.seen.startswith(f"{broken}: SILU_MUL(type=f32,")
    assert {line.partition(":")[0] for line in wrong.detail.splitlines()} == {broken}


def test_the_image_of_operations_of_another_build_is_refused(engine: Engine, cpu_image: Image) -> None:
    version = "2508201420-abc1234"
    text = f"FROM {cpu_image.tags[0]}\nLABEL org.opencontainers.image.version={version}\nCOPY x /x\n"
    with bodhi.built(engine, text, {"x": b""}) as other:
        reference = "llama-cpp-test-operations:1"
        for image, tag in ((other, reference), (cpu_image, Target.OPERATIONS.tag(reference))):
            engine.tag(image.id, tag)
        try:
            with pytest.raises(
                ImageNotFoundError, match=rf"{reference}-operations is of another build.*build-local --variant cpu --op"
            ):
                operations_run.image_of(engine, engine.image(reference), CPU, engine.image)
            engine.tag(other.id, Target.OPERATIONS.tag(reference))
            assert operations_run.image_of(engine, engine.image(reference), CPU, engine.image).id == other.id
        finally:
            engine.remove_image(Target.OPERATIONS.tag(reference))
            engine.remove_image(reference)
