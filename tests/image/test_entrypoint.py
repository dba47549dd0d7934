"""What dockerfiles/llama-entrypoint does with signals, limits, the home directory, and other commands."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Sequence
from signal import Signals
from typing import Any

import pytest

from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.smoke import model
from base_images.smoke import server as servers
from base_images.smoke.model import TensorType
from tests.support.containers import created, started

ENDLESS = 'mkfifo /tmp/model.gguf && exec llama-entrypoint --host 127.0.0.1 "$@" --model /tmp/model.gguf'
"""A model that never finishes loading. The first process stays the first, as `exec` keeps its number."""

PATIENCE = 300


def wait(container: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        container.reload()
        assert container.status == "running", container.logs().decode()
        assert time.monotonic() < deadline, container.logs().decode()
        time.sleep(0.1)


def says(container: Any, text: bytes) -> None:
    wait(container, lambda: text in container.logs())


def loading(image: Image, **options: Any) -> Any:
    return started(image, ("-c", ENDLESS, "sh", "--port", "18140"), entrypoint=["sh"], **options)


def ends(container: Any) -> int:
    """Returns the exit code; a container that ignores signals is killed, with 137."""
    try:
        return int(container.wait(timeout=PATIENCE)["StatusCode"])
    except Exception:
        container.kill("SIGKILL")
        raise


@pytest.mark.parametrize(("signal", "code"), [("SIGTERM", 143), ("SIGINT", 143), ("SIGQUIT", 143), ("SIGHUP", 129)])
def test_a_server_that_loads_a_model_stops(cpu_image: Image, signal: str, code: int) -> None:
    with loading(cpu_image) as container:
        says(container, b"loading model")
        container.kill(signal)
        assert ends(container) == code


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_server_with_a_loaded_model_stops_cleanly(engine: Engine, cpu_image: Image, signal: str) -> None:
    with engine.volume("test") as volume:
        spec = ContainerSpec(image=cpu_image.id, command=("--model", "/models/m.gguf"), volumes={volume: "/models"})
        answer = model.known_answer(TensorType.Q8_0)
        with engine.container(spec, files={"/models/m.gguf": answer.gguf}) as container:
            container.start()
            servers.wait(
                lambda: "listening on" in container.logs(),
                state=container.state,
                log=container.logs,
                timeout=PATIENCE,
            )
            container.signal(signal)
            assert container.wait(PATIENCE) == 0, container.logs()
            assert "cleaning up before exit" in container.logs()


def test_a_server_stops_before_it_has_begun_to_load(cpu_image: Image) -> None:
    """As soon as process 1 handles signals: what comes before its first line, the kernel drops (signal(7), kill(2))."""

    def handles_sigterm() -> bool:
        caught = container.exec_run(["sed", "-n", "s/^SigCgt://p", "/proc/1/status"]).output
        return bool(int(caught, 16) & 1 << Signals.SIGTERM - 1)

    with created(cpu_image, ("--port", "18141")) as container:
        container.start()
        wait(container, handles_sigterm)
        container.stop(timeout=PATIENCE)
        container.reload()
        assert container.attrs["State"]["ExitCode"] in {0, 143}


def test_a_command_that_is_no_server_stops(cpu_image: Image) -> None:
    with started(cpu_image, ("sleep", "600")) as container:
        container.kill("SIGTERM")
        assert ends(container) == 143


def ends_by_ctrl_c(container: Any) -> int:
    """Presses Ctrl-C in the container's terminal and returns the exit code."""
    attached = container.attach_socket(params={"stdin": 1, "stream": 1})
    # The socket belongs to the response that docker-py keeps with it.
    with contextlib.closing(attached._sock), attached, contextlib.closing(attached._response):
        attached._sock.sendall(b"\x03")
        return ends(container)


def test_ctrl_c_in_a_terminal_is_one_signal(cpu_image: Image) -> None:
    """A second one would end llama-server at once, with 1."""
    with started(cpu_image, ("--port", "18142"), tty=True, stdin_open=True) as container:
        says(container, b"listening on")
        assert ends_by_ctrl_c(container) == 0


def test_ctrl_c_in_a_terminal_stops_a_server_that_loads_a_model(cpu_image: Image) -> None:
    with loading(cpu_image, tty=True, stdin_open=True) as container:
        says(container, b"loading model")
        assert ends_by_ctrl_c(container) == 143


def test_a_shell_in_a_terminal_has_its_own_ctrl_c(cpu_image: Image) -> None:
    script = "trap 'exit 7' INT; echo ready; while :; do sleep 0.1; done"
    with started(cpu_image, ("sh", "-c", script), tty=True, stdin_open=True) as container:
        says(container, b"ready")
        assert ends_by_ctrl_c(container) == 7


@pytest.mark.parametrize(
    ("command", "code"),
    [(("sh", "-c", "exit 7"), 7), (("no-such-command",), 127), (("sh", "-c", "kill -9 $$"), 137), (("--version",), 0)],
)
def test_the_exit_code_is_the_command_s(engine: Engine, cpu_image: Image, command: Sequence[str], code: int) -> None:
    assert engine.probe(ContainerSpec(image=cpu_image.id, command=tuple(command))).exit_code == code


def test_a_command_has_its_input_and_its_arguments(cpu_image: Image) -> None:
    script = 'cat; printf "<%s>" "$@"'
    command = ["docker", "run", "--rm", "--interactive", cpu_image.id, "sh", "-c", script, "sh", "a b", "", "*"]
    done = subprocess.run(command, input="hello", capture_output=True, text=True, check=True)
    assert done.stdout == "hello<a b><><*>"


def variables(image: Image, command: Sequence[str] = (), **options: Any) -> dict[str, str]:
    with started(image, ("env", *command), **options) as container:
        assert ends(container) == 0
        return dict(line.split("=", 1) for line in container.logs().decode().splitlines())


HALF = {"nano_cpus": 500_000_000}


@pytest.fixture(scope="module")
def processors(engine: Engine, cpu_image: Image) -> int:
    """How many threads llama-server starts without a limit, at most."""
    return int(engine.probe(ContainerSpec(image=cpu_image.id, command=("nproc",))).stdout)


@pytest.mark.parametrize("limit", [HALF, {"nano_cpus": 1_000_000_000}, {"cpuset_cpus": "0"}], ids=str)
def test_the_server_starts_no_more_threads_than_the_container_may_use(
    cpu_image: Image, processors: int, limit: dict[str, Any]
) -> None:
    if processors == 1:
        pytest.skip("llama-server starts one thread on this machine")
    assert "LLAMA_ARG_THREADS" not in variables(cpu_image)
    assert variables(cpu_image, **limit)["LLAMA_ARG_THREADS"] == "1"


CONFIGURED = 'mkdir -p /tmp/llama.cpp && echo "threads = 2" >/tmp/llama.cpp/config.ini && exec llama-entrypoint "$@"'


@pytest.mark.parametrize(
    ("options", "arguments", "shown"),
    [
        ({}, (), "1"),
        ({"environment": {"LLAMA_ARG_THREADS": "2"}}, (), "2"),
        ({}, ("-t", "2"), "none"),
        ({}, ("--threads", "2"), "none"),
        (
            {"environment": {"XDG_CONFIG_HOME": "/tmp"}, "entrypoint": ["sh", "-c", CONFIGURED, "sh"]},
            (),
            "none",
        ),
    ],
    ids=["not chosen", "variable", "short", "long", "file"],
)
def test_a_number_of_threads_that_was_chosen_stays(
    cpu_image: Image, processors: int, options: dict[str, Any], arguments: Sequence[str], shown: str
) -> None:
    if processors == 1 and shown == "1":
        pytest.skip("llama-server starts one thread on this machine")
    show = ("sh", "-c", 'echo "${LLAMA_ARG_THREADS-none}"', "sh", *arguments)
    with started(cpu_image, show, **HALF, **options) as container:
        assert ends(container) == 0
        assert container.logs().decode().strip() == shown


@pytest.mark.parametrize("user", ["999", "54321:54321", "54321:0", "0"])
def test_a_user_has_a_home_with_a_cache(cpu_image: Image, user: str) -> None:
    found = variables(cpu_image, user=user)
    assert found["HOME"] == ("/root" if user == "0" else "/home/llama")


def test_a_home_that_was_chosen_stays(cpu_image: Image) -> None:
    assert variables(cpu_image, environment={"HOME": "/data"})["HOME"] == "/data"
