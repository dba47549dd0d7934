"""The health check finds the server at any address and port, and judges nothing else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import docker
import pytest

from base_images.adapters.engine import Image

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - in a container without a network
CHECK = ["/usr/local/bin/llama-healthcheck"]


@contextlib.contextmanager
def started(image: Image, command: Sequence[str], **options: Any) -> Iterator[Any]:
    """Yields a container as a hardened host starts it: no network, read-only, any user."""
    client = docker.from_env()
    container = client.containers.run(
        image.id,
        list(command),
        detach=True,
        network_mode="none",
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        user="54321:54321",
        labels={"bodhi.resource": "test"},
        sysctls={"net.ipv6.conf.all.disable_ipv6": "0"},
        **options,
    )
    try:
        yield container
    finally:
        container.remove(force=True)
        client.close()


def becomes(container: Any, exit_code: int, seconds: float = 300) -> str:
    """Waits until the check ends with this exit code and returns its output."""
    deadline = time.monotonic() + seconds
    while True:
        code, output = container.exec_run(CHECK)
        if code == exit_code:
            return str(output.decode())
        container.reload()
        assert container.status == "running", container.logs().decode()
        assert time.monotonic() < deadline, (code, output, container.logs().decode())
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ((), {}),
        (("--port", "18123"), {}),
        ((), {"LLAMA_ARG_PORT": "18124"}),
        (("--host", ANY_ADDRESS, "--port", "18125"), {}),
        (("--host", "127.0.0.7", "--port", "18126"), {}),
        (("--host", "::1", "--port", "18127"), {}),
        (("--host", "/tmp/llama.sock"), {}),
        (("--api-prefix", "/llama"), {}),
        (("--api-key", "secret"), {}),
    ],
    ids=["default", "argument", "environment", "any-address", "one-address", "ipv6", "unix-socket", "prefix", "key"],
)
def test_the_check_finds_the_server(cpu_image: Image, command: Sequence[str], environment: Mapping[str, str]) -> None:
    with started(cpu_image, command, environment=dict(environment)) as container:
        becomes(container, 0)


def test_the_check_finds_the_server_under_an_init_process(cpu_image: Image) -> None:
    with started(cpu_image, ("--port", "18128"), init=True) as container:
        becomes(container, 0)
        # The check did not take the init process for a child image's program: a stopped server is unhealthy.
        container.exec_run(["sh", "-c", "kill -STOP $(cut -d ' ' -f 1 /proc/1/task/1/children)"])
        becomes(container, 1)


def test_a_server_that_does_not_answer_is_unhealthy(cpu_image: Image) -> None:
    with started(cpu_image, ("--port", "18129")) as container:
        becomes(container, 0)
        container.kill("SIGSTOP")
        assert "no socket that answers" in becomes(container, 1)


def test_another_program_of_a_child_image_is_healthy(cpu_image: Image) -> None:
    with started(cpu_image, ("sleep", "600")) as container:
        becomes(container, 0)


def test_the_engine_reports_the_server_as_healthy(cpu_image: Image) -> None:
    with started(cpu_image, ("--port", "18130")) as container:
        deadline = time.monotonic() + 300  # the check runs at an interval
        while container.attrs["State"].get("Health", {}).get("Status") != "healthy":
            assert time.monotonic() < deadline, container.attrs["State"]
            time.sleep(0.5)
            container.reload()
