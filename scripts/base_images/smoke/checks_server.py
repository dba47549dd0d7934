"""Checks that need a server's log, memory map or process; each returns its observation on one line, or raises."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import PurePosixPath

from base_images.errors import LaunchError
from base_images.image import STOP_SECONDS, loaded_backends
from base_images.recipes import consumer
from base_images.smoke.checks_http import CheckFailedError, CheckSkippedError
from base_images.smoke.server import READY_TIMEOUT_SECONDS, Server, start, tail


def check_starts(server: Server, port: int, timeout: float = READY_TIMEOUT_SECONDS) -> str:
    """The server starts and becomes healthy; an argument that it refuses is named."""
    try:
        return f"healthy after {start(server, port, timeout=timeout):.2f} s"
    except LaunchError as error:
        if refused := consumer.refused(server.logs()):
            passed = refused.argument in consumer.load().options
            source = f", which {consumer.NAME} passes" if passed else ""
            raise CheckFailedError(
                f"The server refuses {refused.argument}{source}: {refused.sentence}", detail=error.detail
            ) from error
        raise


# The next checks read log lines that b10454 and b11312 write from verbosity 4 on: load_tensors in src/llama-model.cpp,
# and src/llama-kv-cache.cpp.


def check_backend(maps: str, log: str, directory: str, *, accelerator: str = "", linked_in: bool | None = False) -> str:
    """The server has loaded a CPU backend from its own directory.

    Args:
        maps: `/proc/<pid>/maps` of the server.
        log: the server's log.
        directory: the server's directory.
        accelerator: llama-server's name of the device; the result says whether it is used.
        linked_in: whether the backends are part of the server; None: they are if no backend is loaded.
    """
    loaded = [PurePosixPath(path) for path in loaded_backends(maps)]
    cpu = [path for path in loaded if path.name.startswith("libggml-cpu")]
    if linked_in is None:
        linked_in = not loaded
    if linked_in:
        backend = "backends are linked in"
    else:
        if not cpu:
            raise CheckFailedError("The server has loaded no CPU backend.", detail=tail(log))
        if str(cpu[0].parent) != directory:
            raise CheckFailedError(f"The CPU backend was loaded from {cpu[0].parent} instead of {directory}.")
        backend = f"loaded {cpu[0].name}"
    if not accelerator:
        return backend
    buffers = _buffers(log, "model")
    where = f"the model is in {' and '.join(buffers)}" if buffers else "the log does not say where the model is"
    if any(map(_device_name(accelerator).fullmatch, buffers)):
        return f"{backend}; {where}"
    why = "has found no device" if linked_in or loaded != cpu else "WAS NOT LOADED"
    return f"{backend}; the {accelerator} backend {why}, THE CPU GAVE THE ANSWERS: {where}"


def check_list_devices(server: Server, program: str, name: str) -> str:
    """`--list-devices`, run where the server runs, names a device of the accelerator."""
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


_CPU_KERNELS = re.compile(r"AMX|CPU_(?!Mapped$).+")
"""Buffers whose weights only the CPU multiplies: AMX, CPU_REPACK, CPU_KLEIDIAI, CPU_HBM, CPU_RISCV64_SPACEMIT
(`get_name` of the buffer types in ggml/src/ggml-cpu, b10454)."""

_HOST_SHARE = 0.1
"""Of the device's part of the model, that the host may hold: the tokens' embeddings, which are looked up and not
multiplied. In the known-answer models they are 2 %."""


def check_buffers(log: str, name: str) -> str:
    """The log says that weights, keys and values are in the device's own memory.

    `offloaded 3/3 layers` does not: llama.cpp writes it before it finds that a device has no code for a weight's type
    and leaves that weight to the CPU (load_tensors in src/llama-model.cpp, b10454).
    """
    found = []
    for what in ("model", "KV"):
        buffers = _buffers(log, what)
        own = {buffer for buffer in buffers if _device_name(name).fullmatch(buffer)}
        if not own:
            raise CheckFailedError(
                f"The {what} buffer is in {' and '.join(buffers) or 'no place that the log names'}, not in {name}0."
            )
        elsewhere = {buffer: float(size) for buffer, size in buffers.items() if buffer not in own}
        allowed = 0 if what == "KV" else _HOST_SHARE * sum(float(buffers[buffer]) for buffer in own)
        if sum(elsewhere.values()) > allowed or any(map(_CPU_KERNELS.fullmatch, elsewhere)):
            sizes = " and ".join(f"{size:g} MiB in {buffer}" for buffer, size in elsewhere.items())
            raise CheckFailedError(
                f"The {what} buffer is in {' and '.join(sorted(own))} only in part: {sizes}, where the CPU computes."
            )
        found += [f"{buffer} {what} buffer {size} MiB" for buffer, size in buffers.items()]
    return ", ".join(found)


def _buffers(log: str, what: str) -> dict[str, str]:
    """Returns the size in MiB of each buffer by its location, such as `Vulkan0` or `CPU_Mapped`."""
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
    """SIGTERM ends the server with exit code 0 within `timeout` seconds (contract row 15, docs/contract.md)."""
    started = time.monotonic()
    server.signal("SIGTERM")
    code = server.wait(timeout)
    seconds = time.monotonic() - started
    if code is None:
        raise CheckFailedError(f"The server still runs {seconds:.1f} s after SIGTERM.")
    if code != 0:
        raise CheckFailedError(f"SIGTERM ends the server with exit code {code} after {seconds:.1f} s instead of 0.")
    return f"exit code 0 after {seconds:.2f} s"
