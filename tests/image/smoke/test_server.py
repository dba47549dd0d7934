"""Servers that do not become healthy: the error, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import time
import uuid
from typing import Any

import docker
import pytest
from urllib3.connection import HTTPConnection

from base_images.adapters.container import Container, ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError, LaunchError
from base_images.labels import RESOURCE
from base_images.smoke import containers
from base_images.smoke import server as servers
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.checks_server import check_sigterm
from tests.support.programs import wait_for

SERVER = "/app/bin/x86_64-unknown-linux-gnu/cpu/llama-server"
SECONDS = 300
"""Time-out for what takes less than a second unless it hangs."""


def spec(image: Image, *command: str, entrypoint: tuple[str, ...] | None = None) -> ContainerSpec:
    return ContainerSpec(
        image=image.id,
        entrypoint=entrypoint,
        command=command,
        publish=8080,
        resource="test",
        tmpfs={"/tmp": "mode=1777"},
    )


def error_of(engine: Engine, container_spec: ContainerSpec, *, timeout: float = SECONDS) -> LaunchError:
    with engine.container(container_spec) as made, pytest.raises(LaunchError) as caught:
        servers.start(made, 8080, timeout=timeout)
    return caught.value


def start_until(container: Container, words: str) -> None:
    """Starts a container and waits until its log has these words."""
    container.start()
    wait_for(lambda: words in container.logs())


def test_waiting_ends_when_a_container_ends_at_once(engine: Engine, cpu_image: Image) -> None:
    began = time.monotonic()
    error = error_of(engine, spec(cpu_image, "-c", "echo out of luck >&2; exit 3", entrypoint=("/bin/sh",)))
    assert "ended with exit code 3" in str(error)
    assert error.detail == "out of luck"
    assert time.monotonic() - began < SECONDS


def test_a_missing_model_is_reported_with_the_server_s_log(engine: Engine, cpu_image: Image) -> None:
    error = error_of(engine, containers.quick_start(cpu_image.id, "missing").container)
    assert "ended with exit code 1" in str(error)
    assert "failed to open GGUF file '/models/missing.gguf'" in error.detail


def test_an_unknown_argument_is_reported(engine: Engine, cpu_image: Image) -> None:
    error = error_of(engine, spec(cpu_image, "--no-such-argument"))
    assert "ended with exit code 1" in str(error)
    assert "--no-such-argument" in error.detail


def test_a_taken_port_is_reported(engine: Engine, cpu_image: Image) -> None:
    first = f"{SERVER} --port 8080 >/tmp/log 2>&1 & until grep 'listening on' /tmp/log; do sleep 0.1; done"
    script = f"{first}; exec {SERVER} --port 8080"
    # llama.cpp's logger is a thread, and the process may end before it has written its last line.
    errors = [error_of(engine, spec(cpu_image, "-c", script, entrypoint=("/bin/sh",))) for _ in range(3)]
    assert all("ended with exit code 1" in str(error) for error in errors)
    assert any("couldn't bind HTTP server socket" in error.detail for error in errors)


def test_a_server_on_another_port_is_never_healthy(engine: Engine, cpu_image: Image) -> None:
    with engine.container(spec(cpu_image, "--host", "0.0.0.0", "--port", "8081")) as made:  # noqa: S104 - inside it
        start_until(made, "listening on http://0.0.0.0:8081")
        with pytest.raises(LaunchError, match=r"not healthy within 1 s .* it is running") as caught:
            servers.start(made, 8080, timeout=1)  # starting a running container does nothing
    assert "listening on http://0.0.0.0:8081" in caught.value.detail


def test_a_hanging_server_ends_in_a_timeout(engine: Engine, cpu_image: Image) -> None:
    error = error_of(engine, spec(cpu_image, "-c", "exec sleep 600", entrypoint=("/bin/sh",)), timeout=1)
    assert "not healthy within 1 s" in str(error)
    assert error.detail == "(the log is empty)"


def test_a_container_without_a_network_is_an_error(engine: Engine, cpu_image: Image) -> None:
    unpublished = dataclasses.replace(spec(cpu_image, "-c", "exec sleep 600", entrypoint=("/bin/sh",)), publish=None)
    with engine.container(unpublished) as made, pytest.raises(EngineError, match="published no port for 8080"):
        servers.start(made, 8080)


def test_a_command_missing_in_the_image_is_an_error(engine: Engine, cpu_image: Image) -> None:
    way = containers.as_bodhi(cpu_image.id, "any", "/app/bin/no-such-triple/cpu")
    with containers.prepared(engine, way, b"") as made, pytest.raises(EngineError, match="no-such-triple"):
        servers.start(made, way.port)


def test_a_first_process_that_ignores_sigterm_fails_the_check(engine: Engine, cpu_image: Image) -> None:
    script = "trap '' TERM; echo trapped; sleep 600"
    with engine.container(spec(cpu_image, "-c", script, entrypoint=("/bin/sh",))) as made:
        start_until(made, "trapped")
        with pytest.raises(CheckFailedError, match=r"still runs \d+\.\d s after SIGTERM"):
            check_sigterm(made, timeout=1)


def test_an_exit_code_that_is_not_zero_fails_the_sigterm_check(engine: Engine, cpu_image: Image) -> None:
    script = "trap 'exit 7' TERM; echo trapped; while :; do sleep 0.1; done"
    with engine.container(spec(cpu_image, "-c", script, entrypoint=("/bin/sh",))) as made:
        start_until(made, "trapped")
        with pytest.raises(CheckFailedError, match="exit code 7"):
            check_sigterm(made, timeout=SECONDS)


class Interruptions:
    """Raises KeyboardInterrupt before, during, or after one request to the engine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.at = 0
        request, response = HTTPConnection.request, HTTPConnection.getresponse

        def ask(connection: HTTPConnection, *arguments: Any, **options: Any) -> None:
            self.moment()
            request(connection, *arguments, **options)
            self.moment()

        def answer(connection: HTTPConnection) -> Any:
            answered = response(connection)
            self.moment()
            return answered

        monkeypatch.setattr(HTTPConnection, "request", ask)
        monkeypatch.setattr(HTTPConnection, "getresponse", answer)

    def moment(self) -> None:
        self.count += 1
        if self.count == self.at:
            signal.raise_signal(signal.SIGINT)


def test_ctrl_c_during_creation_or_removal_leaves_nothing_behind(
    engine: Engine, cpu_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = f"interrupted-{uuid.uuid4().hex}"
    mine = {"label": f"{RESOURCE}={resource}"}

    def make_and_remove(interruptions: Interruptions) -> None:
        with engine.volume(resource) as volume:
            mounted = ContainerSpec(image=cpu_image.id, volumes={volume: "/models"}, resource=resource)
            with engine.container(mounted):
                interruptions.moment()

    with monkeypatch.context() as patch:
        uninterrupted = Interruptions(patch)
        make_and_remove(uninterrupted)
    assert uninterrupted.count > 3 * 4, "a volume and a container are made and removed"
    for moment in range(1, uninterrupted.count + 1):
        with monkeypatch.context() as patch:
            interruptions = Interruptions(patch)
            interruptions.at = moment
            with pytest.raises(KeyboardInterrupt):
                make_and_remove(interruptions)
        with contextlib.closing(docker.from_env()) as client:
            assert client.api.containers(all=True, filters=mine) == [], moment
            assert client.volumes.list(filters={**mine}) == [], moment
