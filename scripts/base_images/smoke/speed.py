"""Measures the speed of a running llama-server. It is not judged: the gain of a device depends on model and host.

The known-answer models are too small for a device to be faster; they show the minimal time of an answer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from base_images.smoke import checks_http
from base_images.smoke.checks_http import ANSWER_SECONDS, CheckFailedError
from base_images.smoke.report import Speed

PROMPT_TOKENS = 384
"""Less than the server's default batch of 512."""

GENERATED_TOKENS = 64

ROUNDS = 3
"""The best one counts: other load on the machine only makes a round slower."""

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


def measure(url: str, *, patience: float = ANSWER_SECONDS) -> Rates:
    """Returns the best of `ROUNDS` answers to one prompt, after one for warming up, by the server's own clock.

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
    answers = [checks_http.post(f"{url}/completion", body, patience=patience) for _ in range(1 + ROUNDS)]
    rounds = [rates_of(answer["timings"]) for answer in answers[1:]]
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
