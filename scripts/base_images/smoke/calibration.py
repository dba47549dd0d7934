"""Measures a device whose results are known to be right, for `noise.json`."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from base_images.image import loaded_backends
from base_images.progress import Listener, Progress, silent
from base_images.smoke import agreement, checks_http, model, precision, tolerances
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
    kind = kind_of(device) if device else Kind.CPU
    prompts = precision.PROMPTS_IN_SOFTWARE if kind is Kind.SOFTWARE else precision.CALIBRATION_PROMPTS
    name = variant.device.name if variant.device and device else ""
    if name == "CUDA" and not driver and _NVIDIA.exists():
        driver = _NVIDIA.read_text(encoding="utf-8").strip()
    servers = []
    for tensor_type in tensor_types:
        for cache in CACHES:
            known: dict[str, object] = {
                "kind": kind,
                "backend": name or "CPU",
                "driver": driver,
                "toolkit": toolkit,
                "type": tensor_type,
                "cache": cache,
                "flash_attention": True,
            }
            arguments = ["--embeddings", "--flash-attn", "auto"]
            for option in CACHE_TYPES if cache != CACHES[0] else ():
                arguments += [option, cache]
            plan = ServerPlan(
                name=f"{tensor_type}, cache {cache}",
                directory=variant.name if device else variant.directories[-1],
                is_bodhi=False,
                tensor_type=tensor_type,
                checks=(),
                on_device=device is not None,
                arguments=tuple(arguments),
            )
            listener(Progress(what=f"calibration of {variant.name}", note=plan.name))
            begun = time.monotonic()
            with prepare(plan, model.known_answer(tensor_type)) as running:
                results = [
                    perform(Check.STARTS, partial(check_starts, running.server, running.port, DEVICE_TIMEOUT_SECONDS))
                ]
                if results[0].status is Status.PASS:
                    results.append(perform(Check.PRECISION, partial(_measure, running, known, name, prompts, rows)))
                log = running.server.logs()
            servers.append(
                ServerReport(
                    name=plan.name,
                    arguments=running.arguments,
                    checks=tuple(results),
                    log=log,
                    seconds=time.monotonic() - begun,
                )
            )
    listener(Progress(what=f"calibration of {variant.name}", finished=True))
    return SmokeReport(
        image=subject,
        variant=variant.name,
        device=Device.NONE if device is None else Device.SOFTWARE if device.software else Device.HOST,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        servers=tuple(servers),
    )


def _measure(subject: Subject, known: dict[str, Any], name: str, prompts: int, rows: list[Noise]) -> str:
    log = subject.server.logs()
    if name:
        check_offloaded(log)
        check_buffers(log, name)
    if (
        known["cache"] == CACHES[0]
    ):  # with another the server refuses to start without flash attention, and logs nothing
        agreement.check_flash_attention(log, wanted=True)
    address = url(subject.server, subject.port)
    build = checks_http.get(f"{address}/props", patience=DEVICE_TIMEOUT_SECONDS)["build_info"]  # b10454-4df29be4f
    kernels = [PurePosixPath(path).stem for path in loaded_backends(subject.server.maps())]
    cpu = next((kernel for kernel in kernels if kernel.startswith("libggml-cpu")), "CPU")
    answer = model.known_answer(known["type"])
    target = Target(url=address, alias=subject.alias, answer=answer, patience=DEVICE_TIMEOUT_SECONDS)
    row = precision.noise(
        target,
        {
            **known,
            "device": tolerances.device_of(log).partition(" (")[2].removesuffix(")") if name else cpu,
            "llama_cpp": build.partition("-")[0],
        },
        prompts,
    )
    rows.append(row)
    return f"{row.n:,} log-probabilities differ from the reference by {row.rms} nats (RMS)"
