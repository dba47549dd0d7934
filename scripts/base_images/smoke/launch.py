"""Starts llama-server in containers of an image, the ways people start it, and puts it through the smoke checks.

Most of it does not care what the server runs in: `process.py` has the same for a process of this host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

from base_images.adapters.container import Container, ContainerSpec, ContainerState, ProbeResult
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError, LaunchError
from base_images.image import ARBITRARY_USER, STOP_SECONDS, loaded_backends
from base_images.progress import Listener, Progress, silent
from base_images.recipes import consumer
from base_images.smoke import agreement, checks_client, model, speed
from base_images.smoke import device as devices
from base_images.smoke import report as smoke_report
from base_images.smoke.agreement import Pair
from base_images.smoke.checks_http import (
    ANSWER_SECONDS,
    CHECKS,
    CheckFailedError,
    CheckSkippedError,
    Target,
    is_healthy,
    perform,
)
from base_images.smoke.device import Granted
from base_images.smoke.model import KnownAnswer, TensorType
from base_images.smoke.report import Device, ServerReport, SmokeReport, Speed, Status
from base_images.smoke.speed import Measured
from base_images.variants import STATIC_BACKENDS, Platform, Variant

READY_TIMEOUT_SECONDS = 60
"""From the start of a container to its first healthy answer; two cores need less than one second."""

DEVICE_TIMEOUT_SECONDS = 300
"""The same on a device, and for an answer of it: what it has no code for is compiled when it is first needed. Lavapipe
was ready in 13 s on two cores and in 60 s on two busy ones; eight requests at once then took it more than 30 s."""

POLL_SECONDS = 0.05
LOG_TAIL_LINES = 25

CACHE = "/var/tmp"  # noqa: S108 - in the container; a volume there takes over that anybody may write
"""Where the volume is mounted that the servers on a device keep in common what was compiled."""

MODELS = "/models"
"""Where the volume with the model is mounted: the root of the container is read-only."""

BODHI_PORT = 51837
"""Any that is no default of llama-server's: BodhiApp takes a free one, and the health check has to follow it."""

ALL_LAYERS = "99"
"""More than the models have."""

DEVICE_ARGUMENTS = ("--n-gpu-layers", ALL_LAYERS)

CACHE_TYPES = ("--cache-type-k", "--cache-type-v")
EXACT_CACHES = ("f32", "f16")
"""Types of the key-value cache that the known answers' own tolerances hold for."""

TENSOR_TYPES = (TensorType.F32, TensorType.Q8_0, TensorType.F16, TensorType.Q4_0, TensorType.Q4_K)
"""All of them; the two that are checked thoroughly come first, see `plan`."""

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


# --- Ways to start llama-server. ---


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to start llama-server.

    Attributes:
        container: the container, but for the volume that the model comes in.
        port: what the server listens on inside the container, which `container` publishes.
        alias: the name under which the server offers the model.
        model_path: where the model has to be; below `MODELS`.
    """

    container: ContainerSpec
    port: int
    alias: str
    model_path: str

    @property
    def arguments(self) -> str:
        """The command line as a person reads it; `IMAGE` stands for the image's own entrypoint."""
        return " ".join((*(self.container.entrypoint or ("IMAGE",)), *self.container.command))


def quick_start(image: str, model_name: str) -> Way:
    """Returns the quick start `docker run IMAGE --host 0.0.0.0 --port 8080 …`, by a user the image does not know."""
    path = f"{MODELS}/{model_name}.gguf"
    return Way(
        container=ContainerSpec(
            image=image,
            command=(*devices.SERVER_ARGUMENTS, path),
            user=ARBITRARY_USER,
            environment=ENVIRONMENT,
            publish=devices.PORT,
            resource="smoke",
        ),
        port=devices.PORT,
        alias=path,  # what the server calls a model that was given no --alias
        model_path=path,
    )


def as_bodhi(image: str, model_name: str, directory: str) -> Way:
    """Returns what BodhiApp runs: the binary in `directory` with its own arguments, by the image's user.

    BodhiApp asks from within the container. Here the questions come from outside, so a variable opens the address to
    listen on; the arguments stay BodhiApp's own.
    """
    path = f"{MODELS}/{model_name}.gguf"
    alias = bodhi_alias(model_name)
    return Way(
        container=ContainerSpec(
            image=image,
            entrypoint=(f"{directory}/llama-server",),
            command=consumer.load().command(alias=alias, model=path, port=BODHI_PORT),
            environment={
                **ENVIRONMENT,
                "LLAMA_ARG_HOST": "0.0.0.0",  # noqa: S104 - published on 127.0.0.1 alone
                "LD_LIBRARY_PATH": "",  # to the loader the same as none; hides one that a base image sets
            },
            publish=BODHI_PORT,
            resource="smoke",
        ),
        port=BODHI_PORT,
        alias=alias,
        model_path=path,
    )


def bodhi_alias(model_name: str) -> str:
    """Returns what a model is called that is started as BodhiApp does."""
    return f"bodhi-{model_name}"


def on_device(way: Way, device: Granted, cache: str) -> Way:
    """Returns the same way with the device and the volume `cache` for compiled code.

    All of the model is on the device, unless the arguments say how much of it.
    """
    spec = devices.grant(way.container, device)
    command = (*spec.command, *device_arguments(spec.command))
    return dataclasses.replace(way, container=dataclasses.replace(spec, command=command, volumes={cache: CACHE}))


def device_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """Returns what puts all of a model on the device, where the arguments do not say how much of it."""
    return () if DEVICE_ARGUMENTS[0] in arguments else DEVICE_ARGUMENTS


def from_directory(way: Way, directory: str) -> Way:
    """Returns the same way with another directory's server, such as that of `cpu/`, in place of the image's own."""
    return dataclasses.replace(
        way, container=dataclasses.replace(way.container, entrypoint=(f"{directory}/llama-server",))
    )


def with_arguments(way: Way, arguments: tuple[str, ...], model_file: Path | None) -> Way:
    """Returns the same way with further arguments, and with a file of the engine's host as its model, if any."""
    spec = way.container
    command = spec.command
    if model_file:
        command = tuple(str(model_file) if word == way.model_path else word for word in command)
        spec = dataclasses.replace(spec, mounts=(*spec.mounts, str(model_file)))
    return dataclasses.replace(way, container=dataclasses.replace(spec, command=(*command, *arguments)))


# --- Starting and waiting. ---


@dataclass(kw_only=True)
class Kept:
    """Containers and volumes that stay, by name. It is filled as they are made: it is right whatever happens then."""

    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def removal(self) -> str:
        """The command that removes them; empty when there is nothing."""
        kinds = (("docker rm --force", self.containers), ("docker volume rm", self.volumes))
        return " && ".join(" ".join((command, *names)) for command, names in kinds if names)


@contextlib.contextmanager
def prepared(engine: Engine, way: Way, gguf: bytes, *, kept: Kept | None = None) -> Iterator[Container]:
    """Yields the container with the model in place, not started; removes it and the model's volume afterwards.

    With `kept` they stay, and it gets their names.
    """
    with _volume(engine, kept) as volume:
        spec = dataclasses.replace(way.container, volumes={**way.container.volumes, volume: MODELS})
        with engine.container(spec, files={way.model_path: gguf}, keep=kept is not None) as container:
            if kept is not None:
                kept.containers.append(container.name)
            yield container


@contextlib.contextmanager
def _volume(engine: Engine, kept: Kept | None) -> Iterator[str]:
    with engine.volume("smoke", keep=kept is not None) as volume:
        if kept is not None:
            kept.volumes.append(volume)
        yield volume


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


# --- Checks that need what the server runs in; as in `checks_http.py` each returns what it saw, or raises. ---


def check_starts(server: Server, port: int, timeout: float = READY_TIMEOUT_SECONDS) -> str:
    """The server starts and gets healthy; an argument that it refuses is named."""
    try:
        return f"healthy after {start(server, port, timeout=timeout):.2f} s"
    except LaunchError as error:
        if refused := consumer.refused(server.logs()):
            passed = refused.argument in consumer.load().options
            who = f", which {consumer.NAME} passes" if passed else ""
            raise CheckFailedError(
                f"The server refuses {refused.argument}{who}: {refused.sentence}", detail=error.detail
            ) from error
        raise


# What the log says in the next checks is what b10454 and b11312 say from verbosity 4 on: load_tensors in
# src/llama-model.cpp, and src/llama-kv-cache.cpp.


def check_backend(maps: str, log: str, directory: str, *, accelerator: str = "", linked_in: bool | None = False) -> str:
    """The server has loaded a CPU backend, and from the directory that it is in.

    Args:
        maps: what the server has mapped.
        log: of the server.
        directory: where the server is.
        accelerator: how it calls the device that it could use; what became of that is told, whatever it was.
        linked_in: whether the backends are part of the server; None where the absence of others says so.
    """
    loaded = [PurePosixPath(path) for path in loaded_backends(maps)]
    cpu = [path for path in loaded if path.name.startswith("libggml-cpu")]
    if linked_in is None:
        linked_in = not loaded
    if linked_in:
        seen = "backends are linked in"
    else:
        if not cpu:
            raise CheckFailedError("The server has loaded no CPU backend.", detail=tail(log))
        if str(cpu[0].parent) != directory:
            raise CheckFailedError(f"The CPU backend was loaded from {cpu[0].parent} instead of {directory}.")
        seen = f"loaded {cpu[0].name}"
    if not accelerator:
        return seen
    buffers = _buffers(log, "model")
    where = f"the model is in {' and '.join(buffers)}" if buffers else "the log does not say where the model is"
    if any(map(_device_name(accelerator).fullmatch, buffers)):
        return f"{seen}; {where}"
    why = "has found no device" if linked_in or loaded != cpu else "WAS NOT LOADED"
    return f"{seen}; the {accelerator} backend {why}, THE CPU GAVE THE ANSWERS: {where}"


def check_list_devices(server: Server, program: str, name: str) -> str:
    """`--list-devices` names a device of the accelerator, asked where the server runs."""
    result = server.execute([program, "--list-devices"])
    names = re.findall(r"^  (\w+): ", result.stdout, re.MULTILINE)
    if result.exit_code != 0 or not any(map(_device_name(name).fullmatch, names)):
        raise CheckFailedError(
            f"--list-devices names {', '.join(names) or 'no device'} where {name}0 is right.", detail=result.output
        )
    return ", ".join(line.strip() for line in result.stdout.splitlines() if line.startswith("  "))


def check_offloaded(log: str) -> str:
    """The log says that every layer is on the device."""
    found = re.search(r"offloaded (\d+)/(\d+) layers to GPU", log)
    if not found:
        raise CheckFailedError("The log does not say that any layer is on a device: none is used.", detail=tail(log))
    if found[1] != found[2]:
        raise CheckFailedError(f"Only {found[1]} of {found[2]} layers are on the device.")
    return found[0]


def check_buffers(log: str, name: str) -> str:
    """The log says that weights, keys and values are in the device's own memory."""
    seen = []
    for what in ("model", "KV"):
        buffers = _buffers(log, what)
        if not any(map(_device_name(name).fullmatch, buffers)):
            raise CheckFailedError(
                f"The {what} buffer is in {' and '.join(buffers) or 'no place that the log names'}, not in {name}0."
            )
        seen += [f"{buffer} {what} buffer {size} MiB" for buffer, size in buffers.items()]
    return ", ".join(seen)


def _buffers(log: str, what: str) -> dict[str, str]:
    """Returns the place of each such buffer, such as `Vulkan0` or `CPU_Mapped`, and its size in MiB."""
    return dict(re.findall(rf"(\S+) {what} buffer size = +([\d.]+) MiB", log))


def _device_name(name: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(name)}\d+")


def check_healthcheck(server: Server, command: Sequence[str] | None) -> str:
    """The image's own HEALTHCHECK, run in the container, finds the server healthy."""
    if command is None:
        raise CheckSkippedError("there is no container")
    if not command:
        raise CheckSkippedError("the image has no HEALTHCHECK")
    result = server.execute(command)
    if result.exit_code != 0:
        raise CheckFailedError(
            f"The image's health check {' '.join(command)} ends with exit code {result.exit_code}.",
            detail=result.output,
        )
    return f"exit code 0 in {result.seconds:.2f} s"


def check_sigterm(server: Server, timeout: float = STOP_SECONDS) -> str:
    """SIGTERM ends the server with exit code 0 within `timeout` seconds (CONTRACT row 15)."""
    started = time.monotonic()
    server.signal("SIGTERM")
    code = server.wait(timeout)
    seconds = time.monotonic() - started
    if code is None:
        raise CheckFailedError(f"The server still runs {seconds:.1f} s after SIGTERM.")
    if code != 0:
        raise CheckFailedError(f"SIGTERM ends the server with exit code {code} after {seconds:.1f} s instead of 0.")
    return f"exit code 0 after {seconds:.2f} s"


# --- The servers of a smoke test. ---


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """A server to start, and what to check on it once it started, in this order.

    Attributes:
        directory: of the server, below `/app/bin/<triple>/`.
        on_device: whether it gets the device, and all of the model on it.
        arguments: further ones.
        model_file: loaded in place of the known-answer model.
    """

    name: str
    directory: str
    is_bodhi: bool
    tensor_type: TensorType
    checks: tuple[str, ...]
    on_device: bool = False
    arguments: tuple[str, ...] = ()
    model_file: Path | None = None


DEVICE_CHECKS = ("list-devices", "offloaded", "buffers")
"""What shows that the device is used; that it computes right is for the others."""


def plan(
    variant: Variant, tensor_types: Sequence[TensorType] = TENSOR_TYPES, *, on_device: bool = False
) -> list[ServerPlan]:
    """Returns the servers to start: a thorough quick start, a thorough BodhiApp, and a brief one for each other type.

    The first tensor type goes to the first, the second to the second; a lone one goes to both. On a device each has the
    checks of the device too. One more for each directory that BodhiApp falls back to is on the CPU in any case.
    """
    first, second = tensor_types[0], tensor_types[min(1, len(tensor_types) - 1)]
    thorough = (*CHECKS, *checks_client.CHECKS)
    # Only BodhiApp gives --embeddings; without it the server refuses to make any. It does without the web page.
    without_embeddings = tuple(name for name in thorough if "embeddings" not in name)
    without_page = tuple(name for name in thorough if name != "web page")
    extra = DEVICE_CHECKS if on_device else ()
    known = consumer.load()
    servers = [
        ServerPlan(
            name=f"quick start, {first}",
            directory=variant.name,
            is_bodhi=False,
            tensor_type=first,
            checks=(*extra, *without_embeddings, "backend", "healthcheck", "sigterm"),
        ),
        ServerPlan(
            name=f"as {consumer.NAME}, {second}",
            directory=variant.name,
            is_bodhi=True,
            tensor_type=second,
            checks=(*extra, *without_page, "backend", "healthcheck", "sigterm"),
            arguments=known.working(variant.name, variant.name),
        ),
        *(
            ServerPlan(
                name=f"quick start, {other}",
                directory=variant.name,
                is_bodhi=False,
                tensor_type=other,
                checks=(*extra, "completion", "sigterm"),
            )
            for other in tensor_types[2:]
        ),
    ]
    return [dataclasses.replace(server, on_device=on_device) for server in servers] + [
        ServerPlan(
            name=f"as {consumer.NAME}, from {directory}/",
            directory=directory,
            is_bodhi=True,
            tensor_type=second,
            checks=("completion", "chat", "embeddings", "backend", "healthcheck", "sigterm"),
            arguments=known.working(variant.name, directory),
        )
        for directory in variant.directories[1:]
    ]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A llama-server that is there and not started, and what the checks have to know of it.

    Attributes:
        port: what it was told to listen on.
        alias: the name under which it offers the model.
        arguments: its command line as a person reads it.
        program: the path of llama-server where it runs; its backends are beside it.
        linked_in: whether its backends are part of it; None when that is not known.
        healthcheck: of its image; None where there is no container.
    """

    server: Server
    port: int
    alias: str
    arguments: str
    program: str
    linked_in: bool | None
    healthcheck: tuple[str, ...] | None


Prepare = Callable[[ServerPlan, KnownAnswer], AbstractContextManager[Subject]]
"""Yields the planned server with the model of that answer; it is gone afterwards, running or not."""


def smoke(
    engine: Engine,
    image_id: str,
    variant: Variant,
    *,
    device: Granted | None = None,
    tensor_types: Sequence[TensorType] = TENSOR_TYPES,
    record_dir: Path | None = None,
    listener: Listener = silent,
    kept: Kept | None = None,
    model_file: Path | None = None,
) -> SmokeReport:
    """Starts llama-server in containers of an image, checks it, and returns what was seen.

    What an earlier run left behind that was killed hard is removed first.

    Args:
        engine: where the image is; what it publishes must be reachable at 127.0.0.1.
        image_id: an id or a reference; it is looked up once.
        variant: what the image is of.
        device: what the servers are to use; None: the CPU, and nothing is shown of the accelerator.
        tensor_types: which models to use, see `plan`.
        record_dir: where to write the report and the servers' logs; None: nowhere.
        listener: told of each check as it begins.
        kept: gets the names of the containers and volumes, which stay then; None: they are removed.
        model_file: what the speeds are measured on, a file of the engine's host; None: a known-answer model.

    Raises:
        ImageNotFoundError: the engine has no such image.
        LaunchError: the image is for an architecture that this project does not know.
        EngineError: the engine cannot make a container.
        UsageError: `record_dir` cannot be written.
    """
    image = engine.image(image_id)
    binaries = f"/app/bin/{_triple(image)}"
    engine.remove_abandoned()
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(_volume(engine, kept)) if device else ""

        @contextlib.contextmanager
        def prepare(server: ServerPlan, answer: KnownAnswer) -> Iterator[Subject]:
            directory = f"{binaries}/{server.directory}"
            name = model_name(server)
            way = as_bodhi(image.id, name, directory) if server.is_bodhi else quick_start(image.id, name)
            if not server.is_bodhi and server.directory != variant.name:
                way = from_directory(way, directory)
            way = with_arguments(way, server.arguments, server.model_file)
            if device and server.on_device:
                way = on_device(way, device, cache)
            with prepared(engine, way, answer.gguf, kept=kept) as container:
                yield Subject(
                    server=container,
                    port=way.port,
                    alias=way.alias,
                    arguments=way.arguments,
                    program=f"{directory}/llama-server",
                    linked_in=server.directory in STATIC_BACKENDS,
                    healthcheck=image.healthcheck,
                )

        return check_servers(
            image.id,
            variant,
            prepare,
            device=device,
            tensor_types=tensor_types,
            record_dir=record_dir,
            listener=listener,
            model_file=model_file,
        )


def model_name(server: ServerPlan) -> str:
    """Returns what the model's file is called, but for its ending."""
    return f"known-answer-{server.tensor_type.lower()}"


def check_servers(
    subject: str,
    variant: Variant,
    prepare: Prepare,
    *,
    device: Granted | None,
    tensor_types: Sequence[TensorType],
    record_dir: Path | None,
    listener: Listener,
    model_file: Path | None = None,
) -> SmokeReport:
    """Starts the planned servers one after the other, checks them, and returns what was seen, written if wanted.

    Args:
        subject: what is tested, for the report.
        variant: what it is of.
        prepare: makes each server; what it runs in is its own affair.
        device: what the servers use.
        tensor_types: see `plan`.
        record_dir: see `smoke`.
        listener: told of each check as it begins.
        model_file: see `smoke`.

    Raises:
        UsageError: `record_dir` cannot be written.
    """
    started = dt.datetime.now(dt.UTC)
    clock = time.monotonic()
    what = f"smoke test of {variant.name}"

    def say(note: str) -> None:
        listener(Progress(what=what, note=note))

    servers = [
        _check_server(variant, server, prepare, say)
        for server in plan(variant, tensor_types, on_device=device is not None)
    ]
    speeds: tuple[Speed, ...] = ()
    if device:
        pairs = agreement.SOFTWARE_PAIRS if device.software else agreement.PAIRS
        servers += [_check_pair(variant, pair, prepare, say) for pair in pairs]
    if device or model_file:
        measured = []
        for on_device in (True, False) if device else (False,):
            server, found = _measure(variant, prepare, say, model_file=model_file, on_device=on_device)
            servers.append(server)
            measured.append(found)
        speeds = speed.speeds(measured[0] if device else None, measured[-1])
    report = SmokeReport(
        image=subject,
        variant=variant.name,
        device=Device.NONE if device is None else Device.SOFTWARE if device.software else Device.HOST,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        servers=tuple(servers),
        speeds=speeds,
    )
    if record_dir:
        smoke_report.write(report, record_dir)
    listener(Progress(what=what, note="passed" if report.ok else "failed", finished=True))
    return report


def _check_server(variant: Variant, server: ServerPlan, prepare: Prepare, say: Callable[[str], None]) -> ServerReport:
    clock = time.monotonic()
    answer = model.known_answer(server.tensor_type)
    ready, patience = READY_TIMEOUT_SECONDS, ANSWER_SECONDS
    if server.on_device:
        answer = model.on_device(answer)
        ready = patience = DEVICE_TIMEOUT_SECONDS
    for option in CACHE_TYPES:
        cache_type = consumer.value_of(option, server.arguments)
        if cache_type not in {None, *EXACT_CACHES}:
            answer = model.with_cache(answer, str(cache_type))
    accelerator = variant.device.name if variant.device and server.directory == variant.name else ""
    with prepare(server, answer) as subject:
        running = subject.server
        say(f"{server.name}: starts")
        results = [perform("starts", partial(check_starts, running, subject.port, ready))]
        if results[0].status is Status.PASS:
            address = url(running, subject.port)
            target = Target(url=address, alias=subject.alias, answer=answer, patience=patience)
            checks: dict[str, Callable[[], str]] = {
                **{name: partial(check, target) for name, check in {**CHECKS, **checks_client.CHECKS}.items()},
                "backend": lambda: _check_backend_of(subject, accelerator),
                "healthcheck": partial(check_healthcheck, running, subject.healthcheck),
                "sigterm": partial(check_sigterm, running),
                "list-devices": partial(check_list_devices, running, subject.program, accelerator),
                "offloaded": lambda: check_offloaded(running.logs()),
                "buffers": lambda: check_buffers(running.logs(), accelerator),
            }
            for name in server.checks:
                say(f"{server.name}: {name}")
                results.append(perform(name, checks[name]))
        log = running.logs()
    return ServerReport(
        name=server.name,
        arguments=subject.arguments,
        checks=tuple(results),
        log=log,
        seconds=time.monotonic() - clock,
    )


def _check_pair(variant: Variant, pair: Pair, prepare: Prepare, say: Callable[[str], None]) -> ServerReport:
    """Starts the same model on the device and from `cpu/`, and compares what they say in a longer run."""
    clock = time.monotonic()
    name = f"agreement, {pair.name}"
    say(name)
    answer = model.known_answer(pair.tensor_type)
    own = ServerPlan(
        name=name,
        directory=variant.name,
        is_bodhi=False,
        tensor_type=pair.tensor_type,
        checks=(),
        on_device=True,
        arguments=pair.arguments,
    )
    fallback = dataclasses.replace(own, directory=variant.directories[-1], on_device=False)
    accelerator = variant.device.name if variant.device else ""
    with prepare(own, answer) as device, prepare(fallback, answer) as cpu:
        results = [
            perform("starts", partial(check_starts, device.server, device.port, DEVICE_TIMEOUT_SECONDS)),
            perform("cpu/ starts", partial(check_starts, cpu.server, cpu.port)),
        ]
        if all(result.status is Status.PASS for result in results):
            tolerance = agreement.TOLERANCES[pair.tensor_type]
            addresses = url(device.server, device.port), url(cpu.server, cpu.port)
            checks: dict[str, Callable[[], str]] = {
                "offloaded": lambda: check_offloaded(device.server.logs()),
                "buffers": lambda: check_buffers(device.server.logs(), accelerator),
                "agreement": partial(agreement.check_agreement, *addresses, tolerance, patience=DEVICE_TIMEOUT_SECONDS),
                "flash attention": lambda: agreement.check_flash_attention(
                    device.server.logs(), wanted=pair.flash_attention
                ),
                "flash attention of cpu/": lambda: agreement.check_flash_attention(
                    cpu.server.logs(), wanted=pair.flash_attention
                ),
            }
            results += [perform(check, checks[check]) for check in checks]
        log = device.server.logs()
    return ServerReport(
        name=name, arguments=device.arguments, checks=tuple(results), log=log, seconds=time.monotonic() - clock
    )


def _measure(
    variant: Variant,
    prepare: Prepare,
    say: Callable[[str], None],
    *,
    model_file: Path | None,
    on_device: bool,
) -> tuple[ServerReport, Measured | None]:
    """Measures one server's speed; None where it did not tell."""
    clock = time.monotonic()
    server = ServerPlan(
        name=f"speed {'on the device' if on_device else 'from cpu/'}",
        directory=variant.name if on_device else variant.directories[-1],
        is_bodhi=False,
        tensor_type=TensorType.Q8_0,
        checks=(),
        on_device=on_device,
        model_file=model_file,
    )
    accelerator = variant.device.name if variant.device else ""
    say(server.name)
    measured: Measured | None = None
    with prepare(server, model.known_answer(server.tensor_type)) as subject:
        running = subject.server

        def check() -> str:
            nonlocal measured
            seconds = start(running, subject.port, timeout=DEVICE_TIMEOUT_SECONDS)
            rates = speed.measure(url(running, subject.port), patience=DEVICE_TIMEOUT_SECONDS)
            check_sigterm(running)  # what it had on the device it says at its end
            memory = speed.device_memory(running.logs(), accelerator) if on_device else None
            measured = Measured(rates=rates, load_seconds=seconds, memory=memory)
            return (
                f"prompt {rates.prompt:,.0f} and generation {rates.generated:,.0f} tokens per second, loaded in "
                f"{seconds:.2f} s" + (f", {memory} MiB on the device" if memory is not None else "")
            )

        result = perform("speed", check)
        log = running.logs()
    seconds = time.monotonic() - clock
    report = ServerReport(name=server.name, arguments=subject.arguments, checks=(result,), log=log, seconds=seconds)
    return report, measured


def _check_backend_of(subject: Subject, accelerator: str) -> str:
    directory = str(PurePosixPath(subject.program).parent)
    server = subject.server
    return check_backend(server.maps(), server.logs(), directory, accelerator=accelerator, linked_in=subject.linked_in)


def _triple(image: Image) -> str:
    platform = Platform.of_architecture(image.architecture)
    if platform is None:
        known = " and ".join(platform.architecture for platform in Platform)
        raise LaunchError(f"The image is for {image.architecture}: choose one for {known}.")
    return platform.triple
