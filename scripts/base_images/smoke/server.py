"""A llama-server in whatever it runs: the protocol, the start, and the wait until it is healthy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from base_images.adapters.container import ContainerState, ProbeResult
from base_images.errors import EngineError, LaunchError
from base_images.smoke.checks_http import is_healthy

READY_TIMEOUT_SECONDS = 60
"""From the start of a container to its first healthy answer; two cores need less than one second."""

DEVICE_TIMEOUT_SECONDS = 300
"""The same on a device, and for an answer from it: kernels are compiled when they are first needed. Lavapipe was ready
in 13 s on two idle cores and in 60 s on two busy ones, where eight requests at once took more than 30 s."""

POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25

ALL_LAYERS = "99"
"""More layers than the models have."""

DEVICE_ARGUMENTS = ("--n-gpu-layers", ALL_LAYERS)

ENVIRONMENT = {
    # The location of the model is logged from verbosity 4 on. A variable keeps the arguments as they are.
    "LLAMA_ARG_LOG_VERBOSITY": "4",
    # By default waiting threads spin; on a busy machine they take time from the threads they wait for, and an answer of
    # 0.02 s takes seconds. The results do not change.
    "OMP_WAIT_POLICY": "passive",
}


class Server(Protocol):
    """What a llama-server runs in; implemented by `engine.Container` and `process.Process`."""

    def start(self) -> None:
        """Starts the server."""

    def state(self) -> ContainerState:
        """Returns whether the server runs, and how it ended."""

    def logs(self) -> str:
        """Returns all output of the server."""

    def maps(self) -> str:
        """Returns `/proc/<pid>/maps` of the server, see proc(5)."""

    def port(self, number: int, /) -> int:
        """Returns the port of 127.0.0.1 that leads to the server's port `number`."""

    def execute(self, command: Sequence[str], /) -> ProbeResult:
        """Runs a command where the server runs."""

    def signal(self, name: str, /) -> None:
        """Sends a signal, such as SIGTERM, to the server."""

    def wait(self, timeout: float, /) -> int | None:
        """Returns the exit code, or None if the server still runs after `timeout` seconds."""


def bodhi_alias(model_name: str) -> str:
    """Returns the alias of a model on a server that is started as BodhiApp starts it."""
    return f"bodhi-{model_name}"


def device_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns the arguments that put all layers on the device; none if `arguments` already set the number of layers."""
    return () if DEVICE_ARGUMENTS[0] in arguments else DEVICE_ARGUMENTS


def start(server: Server, port: int, *, timeout: float = READY_TIMEOUT_SECONDS) -> float:
    """Starts a server and returns the seconds until it was healthy.

    Raises:
        EngineError: the engine could not start the command, or publishes no port.
        LaunchError: the server ended, or was not healthy within `timeout` seconds.
    """
    server.start()

    def healthy() -> bool:
        try:
            return is_healthy(url(server, port))
        except EngineError:
            # A container that has just ended publishes no port; `wait` reports its end more clearly.
            if server.state().running:
                raise
            return False

    return wait(healthy, state=server.state, log=server.logs, timeout=timeout)


def url(server: Server, port: int) -> str:
    """Returns the URL of a running server's port, without a trailing slash."""
    return f"http://127.0.0.1:{server.port(port)}"


def wait(
    healthy: Callable[[], bool],
    *,
    state: Callable[[], ContainerState],
    log: Callable[[], str],
    timeout: float,
) -> float:
    """Waits until `healthy` returns True, and returns the seconds that took.

    Raises:
        LaunchError: the server does not run, or `timeout` seconds passed.
    """
    started = time.monotonic()
    while True:
        now = state()
        seconds = time.monotonic() - started
        if not now.running:
            cause = ", out of memory" if now.out_of_memory else f", {now.error}" if now.error else ""
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
    """Returns the last `LOG_TAIL_LINES` lines of a log, or a note that it is empty."""
    return "\n".join(log.rstrip().splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"
