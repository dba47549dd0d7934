"""Measures a device whose results are known to be right, for `noise.json`."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from base_images.image import loaded_backends
from base_images.progress import Listener, Progress, silent
from base_images.smoke import checks_http, model, precision, tolerances
from base_images.smoke.checks_http import Target, perform
from base_images.smoke.checks_server import check_buffers, check_offloaded, check_starts
from base_images.smoke.device import Granted
from base_images.smoke.model import TensorType
from base_images.smoke.report import Check, Device, ServerReport, SmokeReport, Status
from base_images.smoke.runner import CACHE_TYPES, TENSOR_TYPES, Prepare, ServerPlan, Subject, kind_of
from base_images.smoke.server import DEVICE_TIMEOUT_SECONDS, url
from base_images.smoke.tolerances import Kind, Noise
from base_images.variants import Variant

CACHES = ("f16", "q8_0")
"""The default, and what BodhiApp sets for some images."""

_NVIDIA = Path("/sys/module/nvidia/version")


def calibrate(
    subject: str,
    variant: Variant,
    prepare: Prepare,
    *,
    rows: list[Noise],
    driver: str = "",
    toolkit: str = "",
    device: Granted | None = None,
    tensor_types: Sequence[TensorType] = TENSOR_TYPES,
    listener: Listener = silent,
) -> SmokeReport:
    """Measures a server for each type of tensor and of cache, and returns a report of the checks that it needed.

    Args:
        subject: what is measured, for the report.
        variant: its variant.
        prepare: creates each server.
        rows: the measurements are added to it.
        driver: version of the device's driver; empty: NVIDIA's is read from this host.
        toolkit: that the server was built with; empty if unknown.
        device: of the servers; None: the CPU.
        tensor_types: the models.
        listener: called with each server as it begins.
    """
    started, clock = dt.datetime.now(dt.UTC), time.monotonic()
    servers = []
    for tensor_type in tensor_types:
        for cache in CACHES:
            if cache != CACHES[0] and rows and not rows[-1].flash_attention:
                continue  # the server would not start
            listener(Progress(what=f"calibration of {variant.name}", note=f"{tensor_type}, cache {cache}"))
            known = {"driver": driver or _driver(device), "toolkit": toolkit, "cache": cache}
            servers.append(_server(variant, prepare, device, tensor_type, known, rows))
    listener(Progress(what=f"calibration of {variant.name}", finished=True))
    return SmokeReport(
        image=subject,
        variant=variant.name,
        device=Device.NONE if device is None else Device.SOFTWARE if device.software else Device.HOST,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        servers=tuple(servers),
    )


def _driver(device: Granted | None) -> str:
    """Returns the version of the host's NVIDIA driver for its devices; empty for others."""
    if device and device.name == "CUDA" and _NVIDIA.exists():
        return _NVIDIA.read_text(encoding="utf-8").strip()
    return ""


def _server(
    variant: Variant,
    prepare: Prepare,
    device: Granted | None,
    tensor_type: TensorType,
    known: dict[str, str],
    rows: list[Noise],
) -> ServerReport:
    begun, cache = time.monotonic(), known["cache"]
    plan = ServerPlan(
        name=f"{tensor_type}, cache {cache}",
        directory=variant.name if device else variant.directories[-1],
        is_bodhi=False,
        tensor_type=tensor_type,
        checks=(),
        on_device=device is not None,
        arguments=(
            *("--embeddings", "--flash-attn", "auto"),
            *(word for option in CACHE_TYPES if cache != CACHES[0] for word in (option, cache)),
        ),
    )
    with prepare(plan, model.known_answer(tensor_type)) as subject:
        starts = partial(check_starts, subject.server, subject.port, DEVICE_TIMEOUT_SECONDS)
        results = [perform(Check.STARTS, starts)]
        if results[0].status is Status.PASS:
            results.append(perform(Check.PRECISION, partial(_measure, subject, device, tensor_type, known, rows)))
        log = subject.server.logs()
    seconds = time.monotonic() - begun
    return ServerReport(name=plan.name, arguments=subject.arguments, checks=tuple(results), log=log, seconds=seconds)


def _measure(
    subject: Subject, device: Granted | None, tensor_type: TensorType, known: dict[str, str], rows: list[Noise]
) -> str:
    log = subject.server.logs()
    if device:
        check_offloaded(log)
        check_buffers(log, device.name)
    address = url(subject.server, subject.port)
    build = checks_http.get(f"{address}/props", patience=DEVICE_TIMEOUT_SECONDS)["build_info"]  # b10454-4df29be4f
    kernels = [PurePosixPath(path).stem for path in loaded_backends(subject.server.maps())]
    cpu = next((kernel for kernel in kernels if kernel.startswith("libggml-cpu")), "CPU")
    target = Target(
        url=address, alias=subject.alias, answer=model.known_answer(tensor_type), patience=DEVICE_TIMEOUT_SECONDS
    )
    row = precision.noise(
        target,
        {
            **known,
            "kind": kind_of(device) if device else Kind.CPU,
            "backend": device.name if device else "CPU",
            "device": tolerances.device_of(log).partition(" (")[2].removesuffix(")") if device else cpu,
            "llama_cpp": build.partition("-")[0],
            "type": tensor_type,
            "flash_attention": "Flash Attention not supported" not in log,  # see agreement.check_flash_attention
        },
        precision.PROMPTS_IN_SOFTWARE if device and device.software else precision.CALIBRATION_PROMPTS,
    )
    rows.append(row)
    return f"{row.n:,} log-probabilities differ from the reference by {row.rms} nats (RMS)"
