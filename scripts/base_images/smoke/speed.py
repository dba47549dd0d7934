"""Measures the speed of a running llama-server. It is not judged: the gain of a device depends on model and host.

The known-answer models are too small for a device to be faster. So a model of the size that people run is written on
the spot, of random weights: the time does not depend on their values.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from base_images.adapters import ownership
from base_images.smoke import checks_http, model, weights
from base_images.smoke.checks_http import ANSWER_SECONDS, CheckFailedError
from base_images.smoke.reference import Architecture
from base_images.smoke.report import Speed

PROMPT_TOKENS = 384
"""Less than the server's default batch of 512."""

GENERATED_TOKENS = 64

ROUNDS = 3
"""The best one counts: other load on the machine only makes a round slower."""

ROUNDS_SECONDS = 20
"""No other round starts after so long: a model that takes that long on the CPU has been measured."""

TEXT = "The quick brown fox jumps over the lazy dog, and nobody has ever asked the dog what it thinks of that. "
"""Repeated as the prompt; the content does not affect the time."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """A server's rates, in tokens per second.

    Attributes:
        prompt: prompt processing.
        generated: generation.
    """

    prompt: float
    generated: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of one server.

    Attributes:
        load_seconds: from its start until it was healthy.
        memory: MiB in use on the device; None if the log does not say.
    """

    rates: Rates
    load_seconds: float
    memory: int | None = None


_ARCHITECTURE = Architecture(layers=28, heads=16, kv_heads=8, head_size=128, rope_base=1e6, epsilon=1e-6)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a model; by default 2,000 million weights, 1.1 GB, as many people run."""

    architecture: Architecture = _ARCHITECTURE
    width: int = 2048
    feed_forward: int = 6144
    vocabulary: int = 150_000

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """The rows and columns of the matrices, by name without `.weight`."""
        one = self.architecture
        queries, keys = one.heads * one.head_size, one.kv_heads * one.head_size
        block = {
            "attn_q": (queries, self.width),
            "attn_k": (keys, self.width),
            "attn_v": (keys, self.width),
            "attn_output": (self.width, queries),
            "ffn_gate": (self.feed_forward, self.width),
            "ffn_up": (self.feed_forward, self.width),
            "ffn_down": (self.width, self.feed_forward),
        }
        outer = {"token_embd": (self.vocabulary, self.width), "output": (self.vocabulary, self.width)}
        return outer | {f"blk.{layer}.{name}": size for layer in range(one.layers) for name, size in block.items()}

    @property
    def bytes(self) -> int:
        """Of the matrices, which are all but a thousandth of the file."""
        per_block, size = gguf.GGML_QUANT_SIZES[_TYPE]
        return sum(rows * columns for rows, columns in self.matrices.values()) // per_block * size


CONTEXT = 2048
"""Of the written model; more would take memory on the device and change nothing."""

_TYPE = gguf.GGMLQuantizationType.Q4_K

_DRAWN_ROWS = 4096
"""Drawn once and repeated in every matrix."""

_SPARE = 1 << 30
"""Bytes that stay free on the disk."""


@contextlib.contextmanager
def written_model(shape: Shape, directories: Sequence[Path] = ()) -> Iterator[Path | None]:
    """Yields the file of a model, which is removed afterwards; None where no directory has the space.

    Args:
        shape: of the model.
        directories: candidates; by default TMPDIR, which may be in memory, and /var/tmp.
    """
    candidates = directories or (Path(tempfile.gettempdir()), Path("/var/tmp"))  # noqa: S108 - a directory of ours in it
    usable = [path for path in candidates if os.access(path, os.W_OK | os.X_OK)]
    roomy = [path for path in usable if shutil.disk_usage(path).free > shape.bytes + _SPARE]
    if not roomy:
        yield None
        return
    with ownership.temporary_directory(roomy[0]) as directory:
        path = directory / "model-of-real-shape.gguf"
        try:
            write_model(path, shape)
            path.chmod(0o644)  # the container's user is another
        except OSError:  # such as a quota
            path.unlink(missing_ok=True)
        yield path if path.exists() else None


def write_model(path: Path, shape: Shape) -> None:
    """Writes a model with random weights in Q4_K; of a large one only a matrix at a time is in memory."""
    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*model.TOKENS, *(f"t{number}" for number in range(len(model.TOKENS), shape.vocabulary))]
    model.describe(
        writer,
        shape.architecture,
        name="speed",
        width=shape.width,
        feed_forward=shape.feed_forward,
        tokens=tokens,
        context=CONTEXT,
    )
    drawn = weights.draw_matrix(weights.generator_of(0), _TYPE, _DRAWN_ROWS, shape.width, 0.02).stored
    ones = np.ones(shape.width, dtype=np.float32)
    layers = range(shape.architecture.layers)
    norms = ["output_norm", *(f"blk.{layer}.{name}_norm" for layer in layers for name in ("attn", "ffn"))]
    tensors: dict[str, tuple[int, ...]] = {**shape.matrices, **dict.fromkeys(norms, ones.shape)}
    per_block, size = gguf.GGML_QUANT_SIZES[_TYPE]
    for name, (rows, *columns) in tensors.items():
        if columns:
            stored = (rows, columns[0] // per_block * size)
            writer.add_tensor_info(f"{name}.weight", stored, drawn.dtype, stored[0] * stored[1], raw_dtype=_TYPE)
        else:
            writer.add_tensor_info(f"{name}.weight", ones.shape, ones.dtype, ones.nbytes)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for rows, *columns in tensors.values():
            writer.write_tensor_data(np.resize(drawn, rows * columns[0] // per_block * size) if columns else ones)


def measure(url: str, *, patience: float = ANSWER_SECONDS) -> Rates:
    """Returns the best of up to `ROUNDS` answers to one prompt, after one for warming up, by the server's own clock.

    Args:
        url: of a running llama-server with any model, without a trailing slash.
        patience: seconds to wait for an answer.

    Raises:
        CheckFailedError: the server refused the request, or did not process it as requested.
        LookupError, TypeError, requests.RequestException: the answer is not llama-server's, or there is none.
    """
    tokens = checks_http.post(f"{url}/tokenize", {"content": TEXT}, patience=patience)["tokens"]
    body = {
        "prompt": list(itertools.islice(itertools.cycle(tokens), PROMPT_TOKENS)),
        "n_predict": GENERATED_TOKENS,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }

    def ask() -> Rates:
        return rates_of(checks_http.post(f"{url}/completion", body, patience=patience)["timings"])

    ask()
    began = time.monotonic()
    rounds = [ask()]
    while len(rounds) < ROUNDS and time.monotonic() - began < ROUNDS_SECONDS:
        rounds.append(ask())
    return Rates(prompt=max(rates.prompt for rates in rounds), generated=max(rates.generated for rates in rounds))


def rates_of(timings: Mapping[str, Any]) -> Rates:
    """Returns the rates in an answer's `timings` (`/completion`, b11312).

    Raises:
        CheckFailedError: the server processed or generated another number of tokens than requested.
    """
    counts = timings["prompt_n"], timings["predicted_n"]
    if counts != (PROMPT_TOKENS, GENERATED_TOKENS):
        raise CheckFailedError(
            f"The server read {counts[0]} and made {counts[1]} tokens where {PROMPT_TOKENS} and {GENERATED_TOKENS} "
            "were asked for: its speed is not known."
        )
    return Rates(prompt=timings["prompt_per_second"], generated=timings["predicted_per_second"])


def device_memory(log: str, name: str) -> int | None:
    """Returns the MiB of a server on its devices (weights, keys and values, compute buffers); None if not logged.

    The server logs it at its end, from verbosity 4 on (common_memory_breakdown_print in common/fit.cpp, b11312):
    `Vulkan0 (…) | total = free + (self = model + context + compute) + unaccounted`. At its start it logs the planned
    values in the same form, so the last line of each device counts.

    Args:
        log: the server's whole log.
        name: llama-server's name of the device, without its index.
    """
    line = rf"memory_breakdown_print: \|   - ({re.escape(name)}\d+) .*\| +\d+ = +-?\d+ \+ \( *(\d+) ="
    sizes = dict(re.findall(line, log))
    return sum(map(int, sizes.values())) if sizes else None


def speeds(device: Measured | None, cpu: Measured | None) -> tuple[Speed, ...]:
    """Returns both servers' measurements side by side, in display order."""
    rows: tuple[tuple[str, str, Callable[[Measured], float | None]], ...] = (
        ("Prompt", "tokens per second", lambda measured: measured.rates.prompt),
        ("Generation", "tokens per second", lambda measured: measured.rates.generated),
        ("Load time", "seconds", lambda measured: measured.load_seconds),
        ("Memory on the device", "MiB", lambda measured: measured.memory),
    )
    return tuple(
        Speed(name=name, unit=unit, device=value(device) if device else None, cpu=value(cpu) if cpu else None)
        for name, unit, value in rows
    )
