"""Runs any llama-server: what it runs in, how it is started, and how long to wait until it is healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from base_images.adapters.engine import ContainerState, ProbeResult
from base_images.errors import EngineError, LaunchError
from base_images.smoke.checks_http import is_healthy

READY_TIMEOUT_SECONDS = 60
"""From the start of a container to its first healthy answer; two cores need less than one second."""

DEVICE_TIMEOUT_SECONDS = 300
"""The same on a device, and for an answer of it: what it has no code for is compiled when it is first needed. Lavapipe
was ready in 13 s on two cores and in 60 s on two busy ones; eight requests at once then took it more than 30 s."""

POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25

ALL_LAYERS = "99"
"""More than the models have."""

DEVICE_ARGUMENTS = ("--n-gpu-layers", ALL_LAYERS)

ENVIRONMENT = {
    # Where the model is, is logged from verbosity 4 on. As a variable it leaves the arguments alone.
    "LLAMA_ARG_LOG_VERBOSITY": "4",
    # By default the threads that wait spin; on a busy machine they take the time of those that they wait for, and an
    # answer of 0.02 s takes seconds. It does not change what is computed.
    "OMP_WAIT_POLICY": "passive",
}


class Server(Protocol):
    """What a llama-server runs in: `engine.Container` is one, `process.Process` another."""

    def start(self) -> None:
        """Starts it."""

    def state(self) -> ContainerState:
        """Returns whether it runs, and how it ended."""

    def logs(self) -> str:
        """Returns everything it wrote."""

    def maps(self) -> str:
        """Returns what its process has mapped, as proc(5) has it."""

    def port(self, number: int, /) -> int:
        """Returns the port of 127.0.0.1 at which the port that llama-server was given is reached."""

    def execute(self, command: Sequence[str], /) -> ProbeResult:
        """Runs a command where the server runs."""

    def signal(self, name: str, /) -> None:
        """Sends it a signal, such as SIGTERM."""

    def wait(self, timeout: float, /) -> int | None:
        """Returns the exit code, or None when it still runs after `timeout` seconds."""


def bodhi_alias(model_name: str) -> str:
    """Returns what a model is called that is started as BodhiApp does."""
    return f"bodhi-{model_name}"


def device_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns what puts all of a model on the device, where the arguments do not say how much of it."""
    return () if DEVICE_ARGUMENTS[0] in arguments else DEVICE_ARGUMENTS


def start(server: Server, port: int, *, timeout: float = READY_TIMEOUT_SECONDS) -> float:
    """Starts a server; returns the seconds until it was healthy.

    Raises:
        EngineError: the engine could not start the command, or publishes no port.
        LaunchError: the server ended, or was not healthy within `timeout` seconds.
    """
    server.start()

    def healthy() -> bool:
        try:
            return is_healthy(url(server, port))
        except EngineError:
            # No port is published when the container has just ended, which `wait` tells better.
            if server.state().running:
                raise
            return False

    return wait(healthy, state=server.state, log=server.logs, timeout=timeout)


def url(server: Server, port: int) -> str:
    """Returns where a running server's port is reached, without a slash at the end."""
    return f"http://127.0.0.1:{server.port(port)}"


def wait(
    healthy: Callable[[], bool],
    *,
    state: Callable[[], ContainerState],
    log: Callable[[], str],
    timeout: float,
) -> float:
    """Returns the seconds it took until `healthy` said yes.

    Raises:
        LaunchError: the server does not run (any more), or `timeout` seconds went by.
    """
    started = time.monotonic()
    while True:
        now = state()
        seconds = time.monotonic() - started
        if not now.running:
            cause = ", killed for want of memory" if now.out_of_memory else f", {now.error}" if now.error else ""
            raise LaunchError(
                f"The server ended with exit code {now.exit_code} after {seconds:.1f} s{cause}, before it was healthy; "
                "the end of its log follows.",
                detail=tail(log()),
            )
        if healthy():
            return time.monotonic() - started
        if seconds >= timeout:
            raise LaunchError(
                f"The server was not healthy within {timeout:g} s (waited {seconds:.1f} s, it is {now.status}, "
                f"exit code {now.exit_code}); the end of its log follows.",
                detail=tail(log()),
            )
        time.sleep(POLL_SECONDS)


def tail(log: str) -> str:
    """Returns the last lines of a log, or a word that there are none."""
    return "\n".join(log.rstrip().splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"
