"""The smoke test: plans the servers, starts them one by one, and checks them.

`containers.py` runs it on an image, `process.py` on a program of this host.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypedDict

from base_images.progress import Listener, Progress, silent
from base_images.recipes import consumer
from base_images.smoke import agreement, checks_client, checks_http, model, precision, speed, tolerances
from base_images.smoke.agreement import Pair
from base_images.smoke.checks_http import ANSWER_SECONDS, Target, perform
from base_images.smoke.checks_server import (
    check_backend,
    check_buffers,
    check_healthcheck,
    check_list_devices,
    check_offloaded,
    check_sigterm,
    check_starts,
)
from base_images.smoke.device import Granted
from base_images.smoke.model import KnownAnswer, TensorType
from base_images.smoke.report import Check, Device, ServerReport, SmokeReport, Speed, Status
from base_images.smoke.server import DEVICE_TIMEOUT_SECONDS, READY_TIMEOUT_SECONDS, Server, start, url
from base_images.smoke.speed import Measured
from base_images.smoke.tolerances import Kind, Limits
from base_images.variants import Variant, megabytes

CACHE_TYPES = ("--cache-type-k", "--cache-type-v")

TENSOR_TYPES = tuple(dict.fromkeys((TensorType.F32, TensorType.Q8_0, *TensorType)))
"""All types; the two with every check come first, see `plan`."""

SOFTWARE_TYPES = TENSOR_TYPES[:5]
"""For a device in software, where each server takes a minute: those that it was measured with."""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """A server to start, and the checks to run on it, in order.

    Attributes:
        directory: of the server, below `/app/bin/<triple>/`.
        on_device: whether the server gets the device.
        arguments: further arguments.
        model_file: model to load instead of the known-answer model.
    """

    name: str
    directory: str
    is_bodhi: bool
    tensor_type: TensorType
    checks: tuple[Check, ...]
    on_device: bool = False
    arguments: tuple[str, ...] = ()
    model_file: Path | None = None


CHECKS = {**checks_http.CHECKS, **checks_client.CHECKS, Check.PRECISION: precision.check_precision}
"""Every check that needs only a URL."""

DEVICE_CHECKS = (Check.LIST_DEVICES, Check.OFFLOADED, Check.BUFFERS)
"""Checks that the device is used; the others check that its results are right."""


def plan(
    variant: Variant,
    tensor_types: Sequence[TensorType] = TENSOR_TYPES,
    *,
    on_device: bool = False,
    long_prompts: Collection[TensorType] = model.LONG_PROMPTS,
) -> list[ServerPlan]:
    """Returns the servers to start: quick start and BodhiApp with all checks, and a short one for each other type.

    The first tensor type is for the quick start, the second for BodhiApp; a single one is for both. With `on_device`
    they get the device's checks too. A server for each fallback directory of BodhiApp's runs on the CPU in any case.
    The short ones of `long_prompts` are asked a long prompt too.
    """
    first, second = tensor_types[0], tensor_types[min(1, len(tensor_types) - 1)]
    # Only BodhiApp passes --embeddings, without which the server refuses them; it disables the web page.
    quick_start = tuple(name for name in CHECKS if name not in {Check.EMBEDDINGS, Check.CLIENT_EMBEDDINGS})
    bodhi = tuple(name for name in CHECKS if name is not Check.WEB_PAGE)
    ending = (Check.BACKEND, Check.HEALTHCHECK, Check.SIGTERM)

    def server(name: str, tensor_type: TensorType, *checks: Check, is_bodhi: bool = False) -> ServerPlan:
        return ServerPlan(
            name=name,
            directory=variant.name,
            is_bodhi=is_bodhi,
            tensor_type=tensor_type,
            checks=(*DEVICE_CHECKS, *checks) if on_device else checks,
            on_device=on_device,
            arguments=consumer.load().working(variant.name, variant.name) if is_bodhi else (),
        )

    def long_prompt(tensor_type: TensorType) -> tuple[Check, ...]:
        return (Check.LONG_PROMPT,) if tensor_type in long_prompts else ()

    return [
        server(f"quick start, {first}", first, *quick_start, *ending),
        server(f"as {consumer.NAME}, {second}", second, *bodhi, *ending, is_bodhi=True),
        *(
            server(f"quick start, {kind}", kind, Check.COMPLETION, Check.PRECISION, *long_prompt(kind), Check.SIGTERM)
            for kind in tensor_types[2:]
        ),
        *(
            ServerPlan(
                name=f"as {consumer.NAME}, from {directory}/",
                directory=directory,
                is_bodhi=True,
                tensor_type=second,
                checks=(Check.COMPLETION, Check.CHAT, Check.EMBEDDINGS, *ending),
                arguments=consumer.load().working(variant.name, directory),
            )
            for directory in variant.directories[1:]
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A llama-server, created and not started, and what the checks need to know about it.

    Attributes:
        port: the port in its arguments.
        alias: the model's name in its answers.
        arguments: its command line, for reports.
        program: path of llama-server where it runs; its backends are in the same directory.
        linked_in: whether its backends are part of it; None if unknown.
        healthcheck: command of its image's HEALTHCHECK; None without a container.
        emulated: whether it runs on an emulated processor, which takes ten times as long.
    """

    server: Server
    port: int
    alias: str
    arguments: str
    program: str
    linked_in: bool | None
    healthcheck: tuple[str, ...] | None
    emulated: bool = False


Prepare = Callable[[ServerPlan, KnownAnswer], AbstractContextManager[Subject]]
"""Yields the planned server with the model of the answer, and removes it afterwards."""


def model_name(server: ServerPlan) -> str:
    """Returns the name of the model's file, without its suffix."""
    return f"known-answer-{server.tensor_type.lower()}"


class Options(TypedDict, total=False):
    """The options of every smoke test, see `check_servers`."""

    device: Granted | None
    tensor_types: Sequence[TensorType]
    listener: Listener
    model_file: Path | None
    shares_files: bool


def check_servers(
    subject: str,
    variant: Variant,
    prepare: Prepare,
    *,
    device: Granted | None = None,
    tensor_types: Sequence[TensorType] = (),
    listener: Listener = silent,
    model_file: Path | None = None,
    shares_files: bool = True,
) -> SmokeReport:
    """Starts the planned servers one after the other, checks them, and returns the report.

    Args:
        subject: what is tested, for the report.
        variant: its variant.
        prepare: creates each server, in whatever it runs.
        device: the device of the servers; None: the CPU, which shows nothing about the accelerator.
        tensor_types: the models, see `plan`; empty: all that suit the device.
        listener: called with each check as it begins.
        model_file: model for the speeds, a file of the servers' host; None: see `_model_for_speed`.
        shares_files: whether the servers' host is this one.
    """
    started = dt.datetime.now(dt.UTC)
    clock = time.monotonic()
    title = f"smoke test of {variant.name}"

    def say(note: str) -> None:
        listener(Progress(what=title, note=note))

    in_software = device is not None and device.software
    planned = plan(
        variant,
        tensor_types or (SOFTWARE_TYPES if in_software else TENSOR_TYPES),
        on_device=device is not None,
        long_prompts=() if in_software else model.LONG_PROMPTS,
    )
    servers = [_check_server(variant, server, prepare, say, device) for server in planned]
    speeds: tuple[Speed, ...] = ()
    if device:
        pairs = agreement.SOFTWARE_PAIRS if device.software else agreement.PAIRS
        servers += [_check_pair(variant, pair, prepare, say, device) for pair in pairs]
    if device or model_file:
        measured = []
        with _model_for_speed(model_file, known_answer=in_software or not shares_files, say=say) as (path, described):
            for on_device in (True, False) if device else (False,):
                server, result = _measure(variant, prepare, say, path, described, on_device=on_device)
                servers.append(server)
                measured.append(result)
        speeds = speed.speeds(measured[0] if device else None, measured[-1])
    report = SmokeReport(
        image=subject,
        variant=variant.name,
        device=Device.NONE if device is None else Device.SOFTWARE if device.software else Device.HOST,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        servers=tuple(servers),
        speeds=speeds,
        given_by=device.how if device else "",
    )
    listener(Progress(what=title, note="passed" if report.ok else "failed", finished=True))
    return report


def kind_of(device: Granted) -> Kind:
    """Returns what computes on a device."""
    return Kind.SOFTWARE if device.software else Kind.GPU


def _check_server(
    variant: Variant, server: ServerPlan, prepare: Prepare, say: Callable[[str], None], device: Granted | None
) -> ServerReport:
    clock = time.monotonic()
    caches = {consumer.value_of(option, server.arguments) for option in CACHE_TYPES}
    answer = model.known_answer(server.tensor_type)
    ready, patience = READY_TIMEOUT_SECONDS, ANSWER_SECONDS
    kind = Kind.CPU
    if device and server.on_device:
        ready = patience = DEVICE_TIMEOUT_SECONDS
        kind = kind_of(device)
    prompts = precision.PROMPTS_IN_SOFTWARE if kind is Kind.SOFTWARE else precision.PROMPTS
    accelerator = variant.device.name if variant.device and server.directory == variant.name else ""
    with prepare(server, answer) as subject:
        running = subject.server
        if subject.emulated:
            ready = patience = DEVICE_TIMEOUT_SECONDS
        say(f"{server.name}: starts")
        results = [perform(Check.STARTS, partial(check_starts, running, subject.port, ready))]
        if results[0].status is Status.PASS:
            address = url(running, subject.port)
            limits = tolerances.of(
                server.tensor_type, kind=kind, device=tolerances.device_of(running.logs()), caches=caches
            )
            target = Target(url=address, alias=subject.alias, answer=model.within(answer, limits), patience=patience)
            directory = PurePosixPath(subject.program).parent
            backend = partial(check_backend, accelerator=accelerator, linked_in=subject.linked_in)
            checks: dict[Check, Callable[[], str]] = {
                **{name: partial(check, target) for name, check in CHECKS.items()},
                Check.LONG_PROMPT: lambda: _check_long_prompt(target, server.tensor_type, limits),
                Check.PRECISION: partial(precision.check_precision, target, prompts=prompts),
                Check.BACKEND: lambda: backend(running.maps(), running.logs(), str(directory)),
                Check.HEALTHCHECK: partial(check_healthcheck, running, subject.healthcheck),
                Check.SIGTERM: partial(check_sigterm, running),
                Check.LIST_DEVICES: partial(check_list_devices, running, subject.program, accelerator),
                Check.OFFLOADED: lambda: check_offloaded(running.logs()),
                Check.BUFFERS: lambda: check_buffers(running.logs(), accelerator),
            }
            for name in server.checks:
                say(f"{server.name}: {name}")
                results.append(perform(name, checks[name]))
        log = running.logs()
    seconds = time.monotonic() - clock
    return ServerReport(name=server.name, arguments=subject.arguments, checks=tuple(results), log=log, seconds=seconds)


def _check_long_prompt(target: Target, tensor_type: TensorType, limits: Limits) -> str:
    """A prompt of more than 4,096 tokens, which the server takes in several batches, gets the known answer."""
    answer = model.within(model.long_answer(tensor_type), limits)
    patient = dataclasses.replace(target, answer=answer, patience=DEVICE_TIMEOUT_SECONDS)
    return f"{model.LONG_TOKENS:,} tokens: {checks_http.check_completion(patient)}"


def _check_pair(
    variant: Variant, pair: Pair, prepare: Prepare, say: Callable[[str], None], granted: Granted
) -> ServerReport:
    """Starts the same model on the device and from `cpu/`, and compares their answers in a longer run."""
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
        patience = DEVICE_TIMEOUT_SECONDS if cpu.emulated else READY_TIMEOUT_SECONDS
        results = [
            perform(Check.STARTS, partial(check_starts, device.server, device.port, DEVICE_TIMEOUT_SECONDS)),
            perform(Check.CPU_STARTS, partial(check_starts, cpu.server, cpu.port, patience)),
        ]
        if all(result.status is Status.PASS for result in results):
            own_limits = tolerances.of(
                pair.tensor_type, kind=kind_of(granted), device=tolerances.device_of(device.server.logs())
            )
            tolerance = tolerances.between(own_limits, tolerances.of(pair.tensor_type))
            addresses = url(device.server, device.port), url(cpu.server, cpu.port)
            agree = partial(agreement.check_agreement, patience=DEVICE_TIMEOUT_SECONDS)
            attention = partial(agreement.check_flash_attention, wanted=pair.flash_attention)
            checks: dict[Check, Callable[[], str]] = {
                Check.OFFLOADED: lambda: check_offloaded(device.server.logs()),
                Check.BUFFERS: lambda: check_buffers(device.server.logs(), accelerator),
                Check.AGREEMENT: partial(agree, *addresses, tolerance),
                Check.FLASH_ATTENTION: lambda: attention(device.server.logs()),
                Check.CPU_FLASH_ATTENTION: lambda: attention(cpu.server.logs()),
            }
            results += [perform(check, run) for check, run in checks.items()]
        log = device.server.logs()
    return ServerReport(
        name=name, arguments=device.arguments, checks=tuple(results), log=log, seconds=time.monotonic() - clock
    )


@contextmanager
def _model_for_speed(
    model_file: Path | None, *, known_answer: bool, say: Callable[[str], None]
) -> Iterator[tuple[Path | None, str]]:
    """Yields the model for the speeds and its description: the given one, one of real shape, or the known-answer model.

    The last, whose file is None, is for a device in software, a host elsewhere, and a disk without space.
    """
    if model_file or known_answer:
        yield model_file, model_file.name if model_file else SMALL
        return
    say("writes a model of real shape")
    shape = speed.Shape()
    with speed.written_model(shape) as path:
        yield path, f"{megabytes(shape.bytes)} of random {TensorType.Q4_K}" if path else f"{SMALL}, for want of disk"


SMALL = "a small known-answer model"


def _measure(
    variant: Variant,
    prepare: Prepare,
    say: Callable[[str], None],
    model_file: Path | None,
    described: str,
    *,
    on_device: bool,
) -> tuple[ServerReport, Measured | None]:
    """Measures the speed of one server; None if the measurement failed."""
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
            check_sigterm(running)  # the server logs its memory on the device when it ends
            memory = speed.device_memory(running.logs(), accelerator) if on_device else None
            measured = Measured(rates=rates, load_seconds=seconds, memory=memory)
            return (
                f"{described}: prompt {rates.prompt:,.0f} and generation {rates.generated:,.0f} tokens per second, "
                f"loaded in {seconds:.2f} s" + (f", {memory} MiB on the device" if memory is not None else "")
            )

        result = perform(Check.SPEED, check)
        log = running.logs()
    seconds = time.monotonic() - clock
    report = ServerReport(name=server.name, arguments=subject.arguments, checks=(result,), log=log, seconds=seconds)
    return report, measured
