"""Starts llama-server in containers of an image, the ways people start it, and puts it through the smoke checks."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from base_images import device as devices
from base_images import model, smoke_report
from base_images.contract import STATIC_BACKENDS
from base_images.device import Granted
from base_images.engine import Container, ContainerSpec, ContainerState, Engine, Image
from base_images.errors import EngineError, LaunchError
from base_images.image_facts import ARBITRARY_USER, STOP_SECONDS
from base_images.model import TensorType
from base_images.progress import Listener, Progress, silent
from base_images.smoke import ANSWER_SECONDS, CHECKS, CheckFailedError, CheckSkippedError, Target, is_healthy, perform
from base_images.smoke_report import Device, ServerReport, SmokeReport, Status
from base_images.variants import Platform, Variant

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

TENSOR_TYPES = (TensorType.F32, TensorType.Q8_0, TensorType.F16, TensorType.Q4_0, TensorType.Q4_K)
"""All of them; the two that are checked thoroughly come first, see `plan`."""

_ENVIRONMENT = {
    # Which backend was loaded is logged from verbosity 4 on (b11312). As a variable it leaves the arguments alone.
    "LLAMA_ARG_LOG_VERBOSITY": "4",
    # By default the threads that wait spin; on a busy machine they take the time of those that they wait for, and an
    # answer of 0.02 s takes seconds. It does not change what is computed.
    "OMP_WAIT_POLICY": "passive",
}


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
            environment=_ENVIRONMENT,
            publish=devices.PORT,
            resource="smoke",
        ),
        port=devices.PORT,
        alias=path,  # what the server calls a model that was given no --alias
        model_path=path,
    )


def as_bodhi(image: str, model_name: str, directory: str) -> Way:
    """Returns what BodhiApp runs: the binary in `directory`, its own arguments, another working directory.

    BodhiApp asks from within the container. Here the questions come from outside, so a variable opens the address to
    listen on; the arguments stay BodhiApp's own.
    """
    path = f"{MODELS}/{model_name}.gguf"
    alias = f"bodhi-{model_name}"
    return Way(
        container=ContainerSpec(
            image=image,
            entrypoint=(f"{directory}/llama-server",),
            command=("--alias", alias, "--model", path, "--embeddings", "--port", str(BODHI_PORT)),
            working_directory="/",
            environment={
                **_ENVIRONMENT,
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


def on_device(way: Way, device: Granted, cache: str) -> Way:
    """Returns the same way with the device, all of the model on it, and the volume `cache` for compiled code."""
    spec = devices.grant(way.container, device)
    command = (*spec.command, "--n-gpu-layers", ALL_LAYERS)
    return dataclasses.replace(way, container=dataclasses.replace(spec, command=command, volumes={cache: CACHE}))


# --- Starting and waiting. ---


@contextlib.contextmanager
def prepared(engine: Engine, way: Way, gguf: bytes) -> Iterator[Container]:
    """Yields the container with the model in place, not started; removes it and the model's volume afterwards."""
    with engine.volume("smoke") as volume:
        spec = dataclasses.replace(way.container, volumes={**way.container.volumes, volume: MODELS})
        with engine.container(spec, files={way.model_path: gguf}) as container:
            yield container


def start(container: Container, port: int, *, timeout: float = READY_TIMEOUT_SECONDS) -> float:
    """Starts a container; returns the seconds until its server was healthy.

    Raises:
        EngineError: the engine could not start the command, or publishes no port.
        LaunchError: the container ended, or was not healthy within `timeout` seconds.
    """
    container.start()

    def healthy() -> bool:
        try:
            return is_healthy(url(container, port))
        except EngineError:
            # No port is published when the container has just ended, which `wait` tells better.
            if container.state().running:
                raise
            return False

    return wait(healthy, state=container.state, log=container.logs, timeout=timeout)


def url(container: Container, port: int) -> str:
    """Returns where a running container's published port is reached, without a slash at the end."""
    return f"http://127.0.0.1:{container.port(port)}"


def wait(
    healthy: Callable[[], bool],
    *,
    state: Callable[[], ContainerState],
    log: Callable[[], str],
    timeout: float,
) -> float:
    """Returns the seconds it took until `healthy` said yes.

    Raises:
        LaunchError: the container does not run (any more), or `timeout` seconds went by.
    """
    started = time.monotonic()
    while True:
        now = state()
        seconds = time.monotonic() - started
        if not now.running:
            cause = ", killed for want of memory" if now.out_of_memory else f", {now.error}" if now.error else ""
            raise LaunchError(
                f"The container ended with exit code {now.exit_code} after {seconds:.1f} s{cause}, before its server "
                "was healthy; the end of its log follows.",
                detail=tail(log()),
            )
        if healthy():
            return time.monotonic() - started
        if seconds >= timeout:
            raise LaunchError(
                f"The server was not healthy within {timeout:g} s (waited {seconds:.1f} s, container {now.status}, "
                f"exit code {now.exit_code}); the end of its log follows.",
                detail=tail(log()),
            )
        time.sleep(POLL_SECONDS)


def tail(log: str) -> str:
    """Returns the last lines of a log, or a word that there are none."""
    return "\n".join(log.rstrip().splitlines()[-LOG_TAIL_LINES:]) or "(the log is empty)"


# --- Checks that need the container; as in `smoke.py` each returns what it saw, on one line, or raises. ---


def check_starts(container: Container, port: int, timeout: float = READY_TIMEOUT_SECONDS) -> str:
    """The container starts and its server gets healthy."""
    return f"healthy after {start(container, port, timeout=timeout):.2f} s"


# What the log says in the next checks is what b11312 says from verbosity 4 on: load_backend in
# ggml/src/ggml-backend-reg.cpp, load_tensors in src/llama-model.cpp, and src/llama-kv-cache.cpp.


def check_backend(log: str, directory: str, *, accelerator: str = "", linked_in: bool = False) -> str:
    """The log says that a CPU backend was loaded, and from the directory that the server is in.

    Args:
        log: of the server.
        directory: where the server is.
        accelerator: how it calls the device that it could use; what became of that is told, whatever it was.
        linked_in: whether the backends are part of the server, which is silent about them then.
    """
    if linked_in:
        seen = "backends are linked in"
    else:
        found = re.search(r"loaded CPU backend from (\S+)/(\S+\.so)", log)
        if not found:
            raise CheckFailedError("The log does not say that a CPU backend was loaded.", detail=tail(log))
        if found[1] != directory:
            raise CheckFailedError(f"The CPU backend was loaded from {found[1]} instead of {directory}.")
        seen = f"loaded {found[2]}"
    if not accelerator:
        return seen
    buffers = _buffers(log, "model")
    where = f"the model is in {' and '.join(buffers)}" if buffers else "the log does not say where the model is"
    if any(map(_device_name(accelerator).fullmatch, buffers)):
        return f"{seen}; {where}"
    loaded = linked_in or f"loaded {accelerator} backend" in log
    why = "has found no device" if loaded else "WAS NOT LOADED"
    return f"{seen}; the {accelerator} backend {why}, THE CPU GAVE THE ANSWERS: {where}"


def check_list_devices(container: Container, server: str, name: str) -> str:
    """`--list-devices` names a device of the accelerator, asked where the server runs."""
    result = container.execute([server, "--list-devices"])
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


def check_healthcheck(container: Container, command: Sequence[str]) -> str:
    """The image's own HEALTHCHECK, run in the container, finds the server healthy."""
    if not command:
        raise CheckSkippedError("the image has no HEALTHCHECK")
    result = container.execute(command)
    if result.exit_code != 0:
        raise CheckFailedError(
            f"The image's health check {' '.join(command)} ends with exit code {result.exit_code}.",
            detail=result.output,
        )
    return f"exit code 0 in {result.seconds:.2f} s"


def check_sigterm(container: Container, timeout: float = STOP_SECONDS) -> str:
    """SIGTERM ends the server with exit code 0 within `timeout` seconds (CONTRACT row 15)."""
    started = time.monotonic()
    container.signal("SIGTERM")
    code = container.wait(timeout)
    seconds = time.monotonic() - started
    if code is None:
        raise CheckFailedError(f"The server still runs {seconds:.1f} s after SIGTERM.")
    if code != 0:
        raise CheckFailedError(f"SIGTERM ends the server with exit code {code} after {seconds:.1f} s instead of 0.")
    return f"exit code 0 after {seconds:.2f} s"


# --- The servers of an image. ---


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """A server to start, and what to check on it once it started, in this order.

    Attributes:
        directory: of the server, below `/app/bin/<triple>/`.
    """

    name: str
    directory: str
    is_bodhi: bool
    tensor_type: TensorType
    checks: tuple[str, ...]


DEVICE_CHECKS = ("list-devices", "offloaded", "buffers")
"""What shows that the device is used; that it computes right is for the others."""


def plan(
    variant: Variant, tensor_types: Sequence[TensorType] = TENSOR_TYPES, *, on_device: bool = False
) -> list[ServerPlan]:
    """Returns the servers to start: a thorough quick start, a thorough BodhiApp, and a brief one for each other type.

    The first tensor type goes to the first, the second to the second; a lone one goes to both. Without a device there
    is one more for each directory that BodhiApp falls back to; on a device each has the checks of the device too.
    """
    first, second = tensor_types[0], tensor_types[min(1, len(tensor_types) - 1)]
    # Only BodhiApp gives --embeddings; without it the server refuses to make any.
    without_embeddings = tuple(name for name in CHECKS if name != "embeddings")
    extra = DEVICE_CHECKS if on_device else ()
    servers = [
        ServerPlan(
            name=f"quick start, {first}",
            directory=variant.name,
            is_bodhi=False,
            tensor_type=first,
            checks=(*extra, *without_embeddings, "backend", "healthcheck", "sigterm"),
        ),
        ServerPlan(
            name=f"as BodhiApp, {second}",
            directory=variant.name,
            is_bodhi=True,
            tensor_type=second,
            checks=(*extra, *CHECKS, "backend", "healthcheck", "sigterm"),
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
    if on_device:
        return servers
    return servers + [
        ServerPlan(
            name=f"as BodhiApp, from {directory}/",
            directory=directory,
            is_bodhi=True,
            tensor_type=second,
            checks=("completion", "embeddings", "backend", "healthcheck", "sigterm"),
        )
        for directory in variant.directories[1:]
    ]


def smoke(
    engine: Engine,
    image_id: str,
    variant: Variant,
    *,
    device: Granted | None = None,
    tensor_types: Sequence[TensorType] = TENSOR_TYPES,
    record_dir: Path | None = None,
    listener: Listener = silent,
) -> SmokeReport:
    """Starts llama-server in containers of an image, checks it, and returns what was seen.

    Args:
        engine: where the image is; what it publishes must be reachable at 127.0.0.1.
        image_id: an id or a reference; it is looked up once.
        variant: what the image is of.
        device: what the servers are to use; None: the CPU, and nothing is shown of the accelerator.
        tensor_types: which models to use, see `plan`.
        record_dir: where to write the report and the servers' logs; None: nowhere.
        listener: told of each check as it begins.

    Raises:
        ImageNotFoundError: the engine has no such image.
        LaunchError: the image is for an architecture that this project does not know.
        EngineError: the engine cannot make a container.
        UsageError: `record_dir` cannot be written.
    """
    started = dt.datetime.now(dt.UTC)
    clock = time.monotonic()
    what = f"smoke test of {variant.name}"
    image = engine.image(image_id)

    def say(note: str) -> None:
        listener(Progress(what=what, note=note))

    with contextlib.ExitStack() as stack:
        given = (device, stack.enter_context(engine.volume("smoke"))) if device else None
        servers = tuple(
            _check_server(engine, image, variant, server, given, say)
            for server in plan(variant, tensor_types, on_device=device is not None)
        )
    report = SmokeReport(
        image=image.id,
        variant=variant.name,
        device=Device.NONE if device is None else Device.SOFTWARE if device.software else Device.HOST,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        servers=servers,
    )
    if record_dir:
        smoke_report.write(report, record_dir)
    listener(Progress(what=what, note="passed" if report.ok else "failed", finished=True))
    return report


def _check_server(
    engine: Engine,
    image: Image,
    variant: Variant,
    server: ServerPlan,
    given: tuple[Granted, str] | None,
    say: Callable[[str], None],
) -> ServerReport:
    clock = time.monotonic()
    directory = f"/app/bin/{_triple(image)}/{server.directory}"
    model_name = f"known-answer-{server.tensor_type.lower()}"
    way = as_bodhi(image.id, model_name, directory) if server.is_bodhi else quick_start(image.id, model_name)
    answer = model.known_answer(server.tensor_type)
    ready, patience = READY_TIMEOUT_SECONDS, ANSWER_SECONDS
    if given:
        way, answer = on_device(way, *given), model.on_device(answer)
        ready = patience = DEVICE_TIMEOUT_SECONDS
    accelerator = variant.device.name if variant.device and server.directory == variant.name else ""
    with prepared(engine, way, answer.gguf) as container:
        say(f"{server.name}: starts")
        results = [perform("starts", partial(check_starts, container, way.port, ready))]
        if results[0].status is Status.PASS:
            target = Target(url=url(container, way.port), alias=way.alias, answer=answer, patience=patience)
            checks: dict[str, Callable[[], str]] = {
                **{name: partial(check, target) for name, check in CHECKS.items()},
                "backend": lambda: check_backend(
                    container.logs(), directory, accelerator=accelerator, linked_in=server.directory in STATIC_BACKENDS
                ),
                "healthcheck": partial(check_healthcheck, container, image.healthcheck),
                "sigterm": partial(check_sigterm, container),
                "list-devices": partial(check_list_devices, container, f"{directory}/llama-server", accelerator),
                "offloaded": lambda: check_offloaded(container.logs()),
                "buffers": lambda: check_buffers(container.logs(), accelerator),
            }
            for name in server.checks:
                say(f"{server.name}: {name}")
                results.append(perform(name, checks[name]))
        log = container.logs()
    return ServerReport(
        name=server.name,
        arguments=way.arguments,
        checks=tuple(results),
        log=log,
        seconds=time.monotonic() - clock,
    )


def _triple(image: Image) -> str:
    platform = Platform.of_architecture(image.architecture)
    if platform is None:
        known = " and ".join(platform.architecture for platform in Platform)
        raise LaunchError(f"The image is for {image.architecture}: choose one for {known}.")
    return platform.triple
