"""The device's checks on lavapipe, a Vulkan device in software, find that it is not used, or that it is wrong.

That they pass is for `nox -s smoke-lavapipe`, which runs the smoke test on it first.
"""

from __future__ import annotations

import dataclasses

import pytest

from base_images import variants
from base_images.adapters.engine import Engine, Image
from base_images.smoke import checks_http, checks_server, containers, device, model, tolerances
from base_images.smoke import server as servers
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.containers import Way
from base_images.smoke.model import TensorType
from base_images.smoke.report import Status
from base_images.smoke.tolerances import Kind
from tests.smoke.conftest import started

pytestmark = pytest.mark.lavapipe
VULKAN = variants.find("vulkan")
LAVAPIPE = device.in_software(VULKAN)
DIRECTORY = "/app/bin/x86_64-unknown-linux-gnu/vulkan"
SERVER = f"{DIRECTORY}/llama-server"
ANSWER = model.within(model.known_answer(TensorType.F32), tolerances.of(TensorType.F32, kind=Kind.SOFTWARE))


def offloading(image: Image, cache: str, layers: str) -> Way:
    way = containers.on_device(containers.quick_start(image.id, "model"), LAVAPIPE, cache)
    command = (*way.container.command[:-1], layers)
    return dataclasses.replace(way, container=dataclasses.replace(way.container, command=command))


def test_no_layer_on_the_device_is_found(engine: Engine, vulkan_image: Image, cache: str) -> None:
    with started(engine, offloading(vulkan_image, cache, "0"), ANSWER) as (container, target):
        checks_http.check_completion(target)  # right, but computed on the CPU
        checks_server.check_list_devices(container, SERVER, "Vulkan")
        with pytest.raises(CheckFailedError, match="Only 0 of 3 layers are on the device"):
            checks_server.check_offloaded(container.logs())
        with pytest.raises(CheckFailedError, match=r"The model buffer is in .*, not in Vulkan0"):
            checks_server.check_buffers(container.logs(), "Vulkan")


def test_a_missing_layer_on_the_device_is_found(engine: Engine, vulkan_image: Image, cache: str) -> None:
    with started(engine, offloading(vulkan_image, cache, "2"), ANSWER) as (container, _):
        log = container.logs()
    with pytest.raises(CheckFailedError, match="Only 2 of 3 layers are on the device"):
        checks_server.check_offloaded(log)


def test_a_hidden_device_is_found(engine: Engine, vulkan_image: Image, cache: str) -> None:
    way = containers.on_device(
        containers.quick_start(vulkan_image.id, "model"), dataclasses.replace(LAVAPIPE, environment={}), cache
    )
    with started(engine, way, ANSWER) as (container, target):
        checks_http.check_completion(target)
        with pytest.raises(CheckFailedError, match="names no device where Vulkan0 is right"):
            checks_server.check_list_devices(container, SERVER, "Vulkan")
        with pytest.raises(CheckFailedError, match="any layer is on a device"):
            checks_server.check_offloaded(container.logs())
        with pytest.raises(CheckFailedError, match="not in Vulkan0"):
            checks_server.check_buffers(container.logs(), "Vulkan")
        said = checks_server.check_backend(container.maps(), container.logs(), DIRECTORY, accelerator="Vulkan")
        assert "the Vulkan backend has found no device, THE CPU GAVE THE ANSWERS: the model is in CPU" in said


def test_a_missing_backend_is_found(engine: Engine, vulkan_image: Image, cache: str) -> None:
    # cpu/ has the same files except the accelerator's library.
    directory = f"{DIRECTORY.rpartition('/')[0]}/cpu"
    way = containers.on_device(containers.as_bodhi(vulkan_image.id, "model", directory), LAVAPIPE, cache)
    with started(engine, way, ANSWER) as (container, target):
        checks_http.check_completion(target)
        with pytest.raises(CheckFailedError, match="names no device where Vulkan0 is right"):
            checks_server.check_list_devices(container, f"{directory}/llama-server", "Vulkan")
        with pytest.raises(CheckFailedError, match="any layer is on a device"):
            checks_server.check_offloaded(container.logs())
        said = checks_server.check_backend(container.maps(), container.logs(), directory, accelerator="Vulkan")
        assert "the Vulkan backend WAS NOT LOADED, THE CPU GAVE THE ANSWERS" in said


def test_a_wrong_device_fails(engine: Engine, vulkan_image: Image, cache: str) -> None:
    # One small weight of the last tensor made large, like a damaged file or a broken kernel.
    wrong = dataclasses.replace(ANSWER, gguf=ANSWER.gguf[:-2] + b"\x7e\x43")
    with started(engine, offloading(vulkan_image, cache, servers.ALL_LAYERS), wrong) as (container, target):
        checks_server.check_offloaded(container.logs())
        checks_server.check_buffers(container.logs(), "Vulkan")
        with pytest.raises(CheckFailedError, match=r"^Step \d+ "):
            checks_http.check_completion(target)


def test_without_a_device_the_report_says_that_the_cpu_answered(engine: Engine, vulkan_image: Image) -> None:
    report = containers.smoke(engine, vulkan_image.id, VULKAN, tensor_types=[TensorType.Q8_0])
    assert report.ok
    said = {row.server: row.seen for row in report.rows if row.check == "backend"}
    for server in ("quick start, Q8_0", "as BodhiApp, Q8_0"):
        assert "the Vulkan backend has found no device, THE CPU GAVE THE ANSWERS" in said[server]
    assert said["as BodhiApp, from cpu/"].startswith("loaded libggml-cpu-")
    assert {row.status for row in report.rows if row.server == "as BodhiApp, from cpu/"} == {Status.PASS}
