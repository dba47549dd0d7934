"""How fast is a running llama-server? Numbers, not verdicts: what a device gains depends on the model and the host.

The known-answer models are far too small for a device to gain anything; they show what an answer costs at least.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from base_images.smoke import checks_http
from base_images.smoke.checks_http import ANSWER_SECONDS, CheckFailedError
from base_images.smoke.report import Speed

PROMPT_TOKENS = 384
"""Less than the 512 that the server takes at once by default."""

GENERATED_TOKENS = 64

ROUNDS = 3
"""The best of them counts: everything else that happens on a machine only ever takes time."""

TEXT = "The quick brown fox jumps over the lazy dog, and nobody has ever asked the dog what it thinks of that. "
"""Repeated as the prompt; what it says makes no difference to the time."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a server does in a second.

    Attributes:
        prompt: tokens of a prompt that it reads.
        generated: tokens that it makes, one after the other.
    """

    prompt: float
    generated: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of one server.

    Attributes:
        load_seconds: from its start until it was healthy.
        memory: MiB that it held on the device; None where it did not say.
    """

    rates: Rates
    load_seconds: float
    memory: int | None = None


def measure(url: str, *, patience: float = ANSWER_SECONDS) -> Rates:
    """Returns the best of `ROUNDS` answers to one prompt, after one that does not count, by the server's own clock.

    Args:
        url: of a running llama-server with any model, without a slash at the end.
        patience: seconds to wait for an answer.

    Raises:
        CheckFailedError: the server refused, or did something else than asked.
        LookupError, TypeError, requests.RequestException: it answers otherwise than llama-server, or not at all.
    """
    tokens = checks_http.post(f"{url}/tokenize", {"content": TEXT}, patience=patience)["tokens"]
    body = {
        "prompt": list(itertools.islice(itertools.cycle(tokens), PROMPT_TOKENS)),
        "n_predict": GENERATED_TOKENS,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    answers = [checks_http.post(f"{url}/completion", body, patience=patience) for _ in range(1 + ROUNDS)]
    rounds = [rates_of(answer["timings"]) for answer in answers[1:]]
    return Rates(prompt=max(one.prompt for one in rounds), generated=max(one.generated for one in rounds))


def rates_of(timings: Mapping[str, Any]) -> Rates:
    """Returns the rates that an answer's `timings` tell (`/completion`, b11312).

    Raises:
        CheckFailedError: it read or made another number of tokens than it was asked for.
    """
    counts = timings["prompt_n"], timings["predicted_n"]
    if counts != (PROMPT_TOKENS, GENERATED_TOKENS):
        raise CheckFailedError(
            f"The server read {counts[0]} and made {counts[1]} tokens where {PROMPT_TOKENS} and {GENERATED_TOKENS} "
            "were asked for: its speed is not known."
        )
    return Rates(prompt=timings["prompt_per_second"], generated=timings["predicted_per_second"])


def device_memory(log: str, name: str) -> int | None:
    """Returns the MiB that a server had on its devices, weights, keys and values and room to compute; None if untold.

    A server that ends tells it, from verbosity 4 on (common_memory_breakdown_print in common/fit.cpp, b11312):
    `Vulkan0 (…) | total = free + (self = model + context + compute) + unaccounted`. While it starts it tells what it
    plans, so the last line of each device counts.

    Args:
        log: all of the server's log, its end included.
        name: how it calls the device, before its index.
    """
    line = rf"memory_breakdown_print: \|   - ({re.escape(name)}\d+) .*\| +\d+ = +-?\d+ \+ \( *(\d+) ="
    sizes = dict(re.findall(line, log))
    return sum(map(int, sizes.values())) if sizes else None


def speeds(device: Measured | None, cpu: Measured | None) -> tuple[Speed, ...]:
    """Returns the numbers side by side, in the order to show."""
    return (
        Speed(
            name="Prompt",
            unit="tokens per second",
            device=device.rates.prompt if device else None,
            cpu=cpu.rates.prompt if cpu else None,
        ),
        Speed(
            name="Generation",
            unit="tokens per second",
            device=device.rates.generated if device else None,
            cpu=cpu.rates.generated if cpu else None,
        ),
        Speed(
            name="Load time",
            unit="seconds",
            device=device.load_seconds if device else None,
            cpu=cpu.load_seconds if cpu else None,
        ),
        Speed(name="Memory on the device", unit="MiB", device=device.memory if device else None, cpu=None),
    )
