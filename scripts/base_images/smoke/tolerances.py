"""How far a right llama-server's answers may be off: limits made from measured noise.

`noise.json` has what was measured, one row per device, tensor type, key-value cache and state of flash attention;
`invoke calibrate` makes such rows. Every kernel rounds in its own way, so a right device differs from the exact
reference by its noise, and a wrong one by more. The rule:

- A device is judged by its own rows; one without rows by the noisiest row of its kind; a type that was measured on no
  device of the kind is taken to be `UNMEASURED` times as noisy as on the CPU. Nobody has to be closer than `EXACT`.
- The RMS of the differences of n steps may be `(1 + SPREAD) * exp(SIGMAS * variation * sqrt(16 / n))` times the row's.
  The variation is that of the RMS of one prompt's 16 steps, from prompt to prompt. Prompts are counted, and not
  numbers, because the numbers of one prompt depend on each other.
- A single difference may be `FAR` times the row's RMS.
- A token has to be the right one if that leads by `LEAD` times the row's RMS.

With these factors a right device fails by chance in fewer than 1 of 10,000 runs, see `chance`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images.errors import UsageError

FILE = Path(__file__).with_name("noise.json")

SPREAD = 0.05
"""Between devices that one row stands for, and of the row itself, whose RMS is known to 2 %."""

SIGMAS = 5

VARIATION = 0.17
"""Of log-probabilities, the largest measured: 0.11 (F16) to 0.12 (Q4_K) on the CPU, 0.12 to 0.17 on lavapipe."""

VARIATION_OF_LOGITS = 0.09
"""0.035 (F16) to 0.055 (Q4_K) on the CPU, 0.045 to 0.081 on lavapipe."""

FAR = 20
"""The largest of 98,304 logits was 5.3 times the RMS on the CPU, and 5.4 (F32) to 9.5 (Q8_0) on lavapipe."""

LEAD = 6.5
"""4.6 standard deviations of the difference of two. On the CPU the tokens of all known answers lead by more."""

UNMEASURED = 2.5
"""The largest ratio of a GPU's row to the CPU's, for a quantised type, is 2.3 (Q4_0 on CUDA)."""

COSINE = 0.06
"""Accepted cosine distance of the embedding per square of the row's RMS, for rows without a measured one: those that
have one have 0.013 to 0.022 on the CPU and on CUDA."""

EMBEDDING = 3
"""Otherwise the accepted one is this times the measured one."""

STEPS = 16
"""Of one prompt, in the rows and in the variations."""

EXACT_CACHES = {None, "f32", "f16"}
"""Types of the key-value cache that are measured as `f16`; None is llama-server's default, f16."""


class Kind(StrEnum):
    """What computes."""

    CPU = "CPU"
    GPU = "GPU"
    SOFTWARE = "GPU in software"


EXACT = {Kind.CPU: 0.003, Kind.GPU: 0.01, Kind.SOFTWARE: 0.01}
"""Nats. F32 and F16 are computed with 10 to 24 bits and summed in any order: 0.0018 and 0.0024 on CPUs, 0.0018 to
0.0082 on GPUs. A matrix that is 5 % too large makes 0.04 and more."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A row of the table: the differences of a right device's log-probabilities from the reference's, in nats.

    Attributes:
        device: the beginning of the name that llama-server gives it; for the CPU that of the kernels.
        backend: of llama.cpp, such as `CUDA`.
        driver, toolkit, llama_cpp: their versions; empty where that is not known.
        type: of the model's matrices.
        cache: type of the key-value cache.
        n: number of differences: those of the five most probable tokens at each step of 64 prompts.
        mean, rms, p99, largest: of their absolute values.
        logits: RMS over the whole vocabulary of the logits' differences, less each step's mean; None if not measured.
        embedding: cosine distance of the embedding of the known answer's prompt; None if not measured.
    """

    device: str
    kind: Kind
    backend: str
    driver: str
    toolkit: str
    llama_cpp: str
    type: str
    cache: str
    flash_attention: bool
    n: int
    mean: float
    rms: float
    p99: float
    largest: float
    logits: float | None = None
    embedding: float | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The accepted differences.

    Attributes:
        noise: RMS of the log-probabilities' differences of a right device, in nats.
        logits: the same of the logits.
        embedding: largest cosine distance of the embedding.
    """

    noise: float
    logits: float
    embedding: float

    @property
    def largest(self) -> float:
        """Largest difference of one log-probability, in nats."""
        return FAR * self.noise

    @property
    def lead(self) -> float:
        """Lead of a token, in nats, from which on no other may be chosen."""
        return LEAD * self.noise

    def rms(self, steps: int) -> float:
        """Returns the largest RMS of the log-probabilities' differences of this many steps, in nats."""
        return self.noise * _factor(steps, VARIATION)

    def rms_of_logits(self, steps: int) -> float:
        """Returns the same of the logits."""
        return self.logits * _factor(steps, VARIATION_OF_LOGITS)


def _factor(steps: int, variation: float) -> float:
    return (1 + SPREAD) * math.exp(SIGMAS * variation * math.sqrt(STEPS / steps))


def of(tensor_type: str, *, kind: Kind = Kind.CPU, device: str = "", caches: Collection[str | None] = ()) -> Limits:
    """Returns the limits of one server's answers.

    Args:
        tensor_type: of its model.
        kind: of what computes.
        device: see `device_of`; empty if unknown: then it may be the CPU too, as where the device is not used.
        caches: the types of its key-value cache, such as `q8_0`.

    Raises:
        UsageError: nothing is known of the type, or of a type of cache.
    """
    inexact = sorted(str(cache) for cache in set(caches) - EXACT_CACHES)
    kinds = (kind,) if device else dict.fromkeys((kind, Kind.CPU))
    limits = [_of(tensor_type, kind, device, cache) for kind in kinds for cache in inexact or ["f16"]]
    return Limits(
        noise=max(found.noise for found in limits),
        logits=max(found.logits for found in limits),
        embedding=max(found.embedding for found in limits),
    )


def between(one: Limits, other: Limits) -> Limits:
    """Returns the limits of the differences of two servers, whose noises do not depend on each other."""
    return Limits(
        noise=math.hypot(one.noise, other.noise),
        logits=math.hypot(one.logits, other.logits),
        embedding=one.embedding + other.embedding,
    )


def device_of(log: str) -> str:
    """Returns the device that a server's log says it uses, such as `Vulkan0 (llvmpipe (LLVM 19.1.7))`; empty if none.

    `using device Vulkan0 (llvmpipe (LLVM 19.1.7, 256 bits)) (unknown id) - 23265 MiB free`: llama_prepare_model_devices
    in src/llama.cpp, from verbosity 4 on (b10454).
    """
    found = re.search(r"using device (\w+ \(.+\)) \([^()]*\) - \d+ MiB free", log)
    return found[1] if found else ""


def chance(numbers: Iterable[int]) -> float:
    """Returns an upper bound of the chance that a right device fails one of the given judgements.

    The logarithm of an RMS is taken to be normally distributed: of 448 prompts on lavapipe the worst had 1.66 times
    the RMS of all, and such a distribution expects 1.68. A single difference has at most the tail that Q4_K has on
    lavapipe, the longest of all: one of 10,000 is beyond 5.9 times the RMS, and each further 2 times is ten times as
    rare.

    Args:
        numbers: how many differences each judgement has.
    """
    by_rms = math.erfc(SIGMAS / math.sqrt(2)) / 2
    by_one = 1e-4 * 10 ** (-(FAR - 5.9) / 2)
    return sum(by_rms + count * by_one for count in numbers)


def _of(tensor_type: str, kind: Kind, device: str, cache: str) -> Limits:
    rows = [row for row in table() if (row.type, row.cache) == (tensor_type, cache)]
    judging = [row for row in rows if row.kind is kind]
    if not judging and cache != "f16" and rows and kind is not Kind.CPU:
        # A cache is rounded in the same way everywhere: what that adds on the CPU it adds here.
        exact, rounded = (_of(tensor_type, Kind.CPU, "", one) for one in ("f16", cache))
        here = _of(tensor_type, kind, device, "f16")
        return Limits(
            noise=math.sqrt(here.noise**2 + max(0, rounded.noise**2 - exact.noise**2)),
            logits=math.sqrt(here.logits**2 + max(0, rounded.logits**2 - exact.logits**2)),
            embedding=here.embedding + rounded.embedding,
        )
    own = [row for row in judging if device.startswith(row.backend) and f"({row.device}" in device]
    if not own and judging and kind is Kind.GPU:  # the same kernels, and rounding that hardware may do too
        judging += [row for row in rows if row.kind is Kind.SOFTWARE]
    judging = own or judging
    scale = 1.0
    if not judging:
        judging, scale = [row for row in rows if row.kind is Kind.CPU], UNMEASURED
    if not judging:
        raise UsageError(
            f"How far a right server's answers may be off with {tensor_type} and a key-value cache of {cache} is not "
            f"known: measure it with `invoke calibrate`, and enter it in {FILE.name}."
        )
    distances = [COSINE * row.rms**2 if row.embedding is None else EMBEDDING * row.embedding for row in judging]
    return Limits(
        noise=max(EXACT[kind], scale * max(row.rms for row in judging)),
        # Where the logits' RMS was not measured, that of the log-probabilities stands for it: it is 2 to 10 % larger.
        logits=max(EXACT[kind], scale * max(row.rms if row.logits is None else row.logits for row in judging)),
        embedding=max(COSINE * EXACT[kind] ** 2, scale**2 * max(distances)),
    )


@functools.cache
def table() -> tuple[Noise, ...]:
    """Returns all rows."""
    return tuple(map(row_of, json.loads(FILE.read_text(encoding="utf-8"))))


def row_of(fields: dict[str, Any]) -> Noise:
    """Returns the row that JSON has, as `invoke calibrate` writes it."""
    return Noise(**{**fields, "kind": Kind(fields["kind"])})


def as_json(rows: Iterable[Noise]) -> str:
    """Returns rows as the table has them: a JSON array, one row per line."""
    return "[\n" + ",\n".join(f"  {json.dumps(dataclasses.asdict(row))}" for row in rows) + "\n]\n"
