"""The health check finds the server at any address and port, and judges nothing else."""

from __future__ import annotations

import ipaddress
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import docker
import pytest

from base_images.adapters.engine import Engine, Image
from tests.support.containers import created, started

ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - in a container without a network
CHECK = ["/usr/local/bin/llama-healthcheck"]

# An address is tentative, and cannot be bound to, until the kernel has seen that nobody else has it.
LINK_LOCAL = r"""
address=
while [ -z "$address" ]; do
    address=$(awk '/^fe80/ && $5 == "80" && $6 == "eth0" { print $1 }' /proc/net/if_inet6)
    sleep 0.1
done
exec llama-server --port 18132 --host "$(echo "$address" | sed 's/..../:&/g; s/://')%eth0"
"""


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


def suspend(container: Any) -> None:
    """Suspends the server, the child of the first process."""
    assert container.exec_run(["sh", "-c", "kill -STOP $(cut -d ' ' -f 1 /proc/1/task/1/children)"]).exit_code == 0


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
    ipv6 = {"net.ipv6.conf.all.disable_ipv6": "0"}
    with started(cpu_image, command, environment=dict(environment), sysctls=ipv6) as container:
        becomes(container, 0)


@pytest.fixture
def network(engine: Engine) -> Iterator[Any]:
    """A network in which containers have IPv6 addresses."""
    if not engine.info().has_bridge:
        pytest.skip("this engine makes no networks")
    client = docker.from_env()
    pool = docker.types.IPAMPool(subnet=f"fd00:{secrets.token_hex(2)}:{secrets.token_hex(2)}::/64")
    made = client.networks.create(
        f"test-{secrets.token_hex(8)}",
        internal=True,
        enable_ipv6=True,
        ipam=docker.types.IPAMConfig(pool_configs=[pool]),
        labels={"bodhi.resource": "test"},
    )
    try:
        yield made
    finally:
        made.remove()
        client.close()


def test_the_check_asks_the_one_ipv6_address_that_the_server_has(cpu_image: Image, network: Any) -> None:
    [subnet] = [pool["Subnet"] for pool in network.attrs["IPAM"]["Config"] if ":" in pool["Subnet"]]
    address = str(ipaddress.ip_network(subnet)[0x95])
    with created(cpu_image, ("--host", address, "--port", "18131")) as container:
        container.client.networks.get("none").disconnect(container)
        network.connect(container, ipv6_address=address)
        container.start()
        becomes(container, 0)


def test_the_check_asks_a_link_local_address_by_its_interface(cpu_image: Image, network: Any) -> None:
    with started(cpu_image, ("sh", "-c", LINK_LOCAL), network_mode=network.name) as container:
        deadline = time.monotonic() + 300
        while "listening on http://[fe80" not in container.logs().decode():
            assert time.monotonic() < deadline, container.logs().decode()
            time.sleep(0.2)
        becomes(container, 0)


def test_the_check_finds_the_server_under_an_init_process(cpu_image: Image) -> None:
    with started(cpu_image, ("--port", "18128"), init=True) as container:
        becomes(container, 0)
        # The check did not take the init process for a child image's program: a stopped server is unhealthy.
        suspend(container)
        becomes(container, 1)


def test_a_server_that_does_not_answer_is_unhealthy(cpu_image: Image) -> None:
    with started(cpu_image, ("--port", "18129")) as container:
        becomes(container, 0)
        suspend(container)
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
