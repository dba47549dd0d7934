"""The whole smoke test on a device that does not exist: only the checks of the device fail."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters.engine import Engine, Image
from base_images.smoke import agreement, containers, device, runner
from base_images.smoke.model import TensorType
from base_images.smoke.report import SmokeReport, Status
from tests.support import split_models

# An image without the backend, as if its library were missing.
WITHOUT_BACKEND = dataclasses.replace(variants.find("vulkan"), name="cpu", directories=("cpu", "cpu"))


@pytest.fixture(scope="module")
def report(engine: Engine, cpu_image: Image) -> SmokeReport:
    granted = device.in_software(WITHOUT_BACKEND)
    return containers.smoke(engine, cpu_image.id, WITHOUT_BACKEND, device=granted, tensor_types=[TensorType.Q8_0])


def test_an_unused_device_fails_the_device_checks_alone(report: SmokeReport) -> None:
    failed = {row.check for row in report.rows if row.status is Status.FAIL}
    assert failed == set(runner.DEVICE_CHECKS)


def test_agreement_computed_by_the_same_code_is_reported(report: SmokeReport) -> None:
    seen = [row.seen for row in report.rows if row.check == "agreement"]
    assert len(seen) == len(agreement.SOFTWARE_PAIRS)
    assert all("no bit differs" in observation for observation in seen)


def test_speeds_are_measured_and_not_judged(report: SmokeReport) -> None:
    names = [speed.name for speed in report.speeds]
    assert names == ["Prompt", "Generation", "Load time", "Memory on the device"]
    assert all(speed.device and speed.cpu for speed in report.speeds[:3])
    assert report.speeds[3].device is None
    assert [row.status for row in report.rows if row.check == "speed"] == [Status.PASS, Status.PASS]
    kept = report.as_dict()["speeds"][0]
    assert kept["unit"] == "tokens per second"
    assert kept["ratio"] == pytest.approx(kept["device"] / kept["cpu"])


def test_the_speed_of_a_given_model(engine: Engine, cpu_image: Image, tmp_path: Path) -> None:
    """A model in several files, in the directories and by the links of Hugging Face's cache, where only we may look."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    for directory in (blobs, snapshot):
        directory.mkdir(parents=True)
        directory.chmod(0o700)
    files = split_models.write(blobs)
    assert len(files) > 1
    for number, path in enumerate(files):
        path.chmod(0o644)
        (snapshot / path.name).symlink_to(Path("../../blobs", path.rename(blobs / str(number)).name))
    mine = snapshot / files[0].name
    found = containers.smoke(
        engine, cpu_image.id, variants.find("cpu"), tensor_types=[TensorType.Q8_0], model_file=mine
    )
    [server] = [server for server in found.servers if server.name.startswith("speed")]
    if "bind source path does not exist" in server.checks[0].seen:
        pytest.skip("the engine does not see this machine's files")
    assert str(mine) in server.arguments
    assert server.checks[0].status is Status.PASS, server.checks[0].seen
    assert found.speeds[0].cpu
    assert found.speeds[0].device is None
