"""The smoke test of a llama-server of this host, started as a process, for machines without a container engine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from base_images.adapters import ownership, programs
from base_images.adapters.container import ContainerState, ProbeResult
from base_images.errors import LaunchError, UsageError
from base_images.recipes import consumer
from base_images.smoke import runner
from base_images.smoke import server as servers
from base_images.smoke.model import KnownAnswer
from base_images.smoke.report import SmokeReport
from base_images.smoke.runner import Options, ServerPlan, Subject
from base_images.smoke.url import KEY_VARIABLE
from base_images.variants import Variant

# Executes the server, which the kernel kills when this process ends, for whatever reason (prctl(2), PR_SET_PDEATHSIG).
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the smoke test has ended")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


class Process:
    """A llama-server on this host, started or not; implements `server.Server`."""

    def __init__(self, arguments: Sequence[str], *, environment: Mapping[str, str], log: Path) -> None:
        """Prepares the process.

        Args:
            arguments: the absolute path of the program, and its arguments.
            environment: the whole environment.
            log: the file for its output.
        """
        self._arguments = tuple(arguments)
        self._environment = dict(environment)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it in its own process group and in the root directory, as in BodhiApp's containers."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *self._arguments),
                cwd="/",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def state(self) -> ContainerState:
        """Returns whether it runs, and how it ended; after a signal the exit code is 128 + signal, as in shells."""
        code = None if self._process is None else _exit_code(self._process.pid)
        running = self._process is not None and code is None
        status = "created" if self._process is None else "running" if running else "exited"
        return ContainerState(
            status=status, running=running, exit_code=code or 0, error="", out_of_memory=False, health=""
        )

    def logs(self) -> str:
        """Returns its standard output and standard error, interleaved."""
        return self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""

    def maps(self) -> str:
        """Returns its `/proc/<pid>/maps`; empty if it does not run."""
        if self._process is None or not self.state().running:
            return ""
        return Path(f"/proc/{self._process.pid}/maps").read_text(encoding="utf-8", errors="replace")

    def port(self, number: int, /) -> int:
        """Returns `number`: a process publishes its port itself."""
        return number

    def execute(self, arguments: Sequence[str], /) -> ProbeResult:
        """Runs a command in the server's environment and returns its result."""
        started = time.monotonic()
        outcome = programs.run(arguments, environment=self._environment, timeout=servers.DEVICE_TIMEOUT_SECONDS)
        return ProbeResult(
            exit_code=outcome.exit_code,
            stdout=outcome.stdout,
            stderr=outcome.stderr,
            seconds=time.monotonic() - started,
            timed_out=outcome.timed_out,
        )

    def signal(self, name: str, /) -> None:
        """Sends a signal, such as SIGTERM, to the server alone.

        Raises:
            LaunchError: the server does not run.
        """
        if self._process is None or not self.state().running:
            raise LaunchError("The server does not run, so it cannot be signalled; its log says why.")
        os.kill(self._process.pid, signal.Signals[name])

    def wait(self, timeout: float, /) -> int | None:
        """Returns the exit code, or None if it still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (state := self.state()).running:
            if time.monotonic() > deadline:
                return None
            time.sleep(servers.POLL_SECONDS)
        return state.exit_code

    def kill(self) -> None:
        """Kills its process group; does nothing if it was never started."""
        if self._process is not None:
            # It has not been waited for, so its id, also that of its group, cannot have been reused.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


NO_DEVICE = ("--device", "none")

_NOT_PASSED = ("LLAMA_ARG_", "LLAMA_API_KEY", KEY_VARIABLE)
"""Beginnings of variables that the user set for other servers."""


def _exit_code(pid: int) -> int | None:
    """Returns a child's exit code without reaping it, None while it runs."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def smoke(
    program: Path,
    variant: Variant,
    *,
    check: Callable[..., SmokeReport] = runner.check_servers,
    **options: Unpack[Options],
) -> SmokeReport:
    """Starts and checks a llama-server of this host, like `containers.smoke` those of an image.

    Args:
        program: the llama-server; its backends are in the same directory, or part of it.
        variant: the variant that it was built for.
        check: what is done with the servers; `calibration.calibrate` measures them.
        **options: see `runner.check_servers`; a process finds the device by itself.

    Raises:
        UsageError: there is no such program.
    """
    device = options.get("device")
    program = program.resolve()  # the server looks for its backends there
    if not program.is_file() or not os.access(program, os.X_OK):
        raise UsageError(f"{program} is not a program: name the llama-server to start.")
    with ownership.temporary_directory() as directory:
        cache = {"XDG_CACHE_HOME": str(directory)} if device and device.software else {}
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED)},
            **servers.ENVIRONMENT,
            **(device.environment if device else {}),
            **cache,
        }

        @contextlib.contextmanager
        def prepare(server: ServerPlan, answer: KnownAnswer) -> Iterator[Subject]:
            name = runner.model_name(server)
            path = server.model_file or directory / f"{name}.gguf"
            if not path.exists():  # a running server may have mapped it
                path.write_bytes(answer.gguf)
            port = free_port()
            alias = servers.bodhi_alias(name) if server.is_bodhi else str(path)
            if server.is_bodhi:
                arguments = consumer.load().command(alias=alias, model=str(path), port=port)
            else:
                arguments = ("--host", "127.0.0.1", "--port", str(port), "--model", str(path))
            # The program finds a device by itself; the server in place of cpu/ must not use it.
            layers = servers.device_arguments(server.arguments) if server.on_device else NO_DEVICE if device else ()
            arguments = (str(program), *arguments, *server.arguments, *layers)
            process = Process(arguments, environment=environment, log=directory / f"{port}.log")
            try:
                yield Subject(
                    server=process,
                    port=port,
                    alias=alias,
                    arguments=" ".join(arguments),
                    program=str(program),
                    linked_in=None,
                    healthcheck=None,
                )
            finally:
                process.kill()

        return check(str(program), variant, prepare, **options)


def free_port() -> int:
    """Returns a free port of 127.0.0.1."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
