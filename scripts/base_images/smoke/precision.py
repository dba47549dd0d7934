"""Measures how far a running llama-server is from the reference: many prompts, and the whole vocabulary at each step.

What the server chose is what the reference continues with, so nothing is lost where answers part at a near tie. The
logits are compared without each step's mean, which no answer has and on which no answer depends: their noise is nearly
the same at every step, and 32 prompts give its RMS to within 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from base_images.smoke import checks_http, model, reference, tolerances
from base_images.smoke.checks_http import CheckFailedError, CheckSkippedError, Target
from base_images.smoke.model import END, TOKENS, TensorType
from base_images.smoke.reference import Array
from base_images.smoke.tolerances import STEPS

PROMPTS = 32
"""Where a step takes milliseconds: a second on two cores, most of it for the reference."""

CALIBRATION_PROMPTS = 64
"""In the rows of `noise.json`."""

PROMPTS_IN_SOFTWARE = 8
"""On a device in software, where a step takes a tenth of a second and more."""

FIRST_SEED = 1000
"""Of the prompts: far from the seeds of the known answers and of `agreement`."""

AT_ONCE = 16
"""Prompts per request: an answer has half a megabyte per prompt."""

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Differences from the reference, in nats.

    Attributes:
        n, mean, rms, p99, largest: of the log-probabilities of the TOP most probable tokens of each step.
        logits: RMS of the logits' differences, less each step's mean.
        largest_logit: of the same.
        steps: number of steps.
        lead: the largest lead of a token in the reference where the server chose another.
    """

    n: int
    mean: float
    rms: float
    p99: float
    largest: float
    logits: float
    largest_logit: float
    steps: int
    lead: float


def check_precision(target: Target, prompts: int = PROMPTS) -> str:
    """The answers to many prompts differ from the reference by no more than a right device's noise."""
    if target.answer is None:
        raise CheckSkippedError("the right answers of its model are not known")
    limits = target.answer.limits
    seen = measure(target, prompts)
    allowed = limits.rms_of_logits(seen.steps)
    numbers = f"{seen.steps * len(TOKENS):,} logits differ from the reference by"
    if not seen.largest_logit <= limits.largest:
        raise CheckFailedError(
            f"The server computes something else: {numbers} up to {seen.largest_logit:.4f} nats, and "
            f"{limits.largest:.4f} is allowed."
        )
    if not seen.logits <= allowed:
        raise CheckFailedError(
            f"The server computes something else: {numbers} {seen.logits:.5f} nats (RMS), and {allowed:.5f} is allowed."
        )
    if seen.lead > limits.largest:
        raise CheckFailedError(
            f"The server computes something else: it chooses another token where the right one leads by "
            f"{seen.lead:.4f} nats, and {limits.largest:.4f} is allowed."
        )
    return f"{numbers} {seen.logits:.5f} nats (RMS; {allowed:.5f} allowed), at most {seen.largest_logit:.4f}"


def measure(target: Target, prompts: int = PROMPTS) -> Precision:
    """Asks a server with a known-answer model, and returns its differences from the reference.

    Raises:
        CheckFailedError: an answer has a log-probability that is not a number, or too few of them.
        LookupError, TypeError, requests.RequestException: the answer is not llama-server's, or there is none.
    """
    assert target.answer  # noqa: S101 - its callers have looked
    asked = [model.tokens_of(model.prompt_of(FIRST_SEED + number)) for number in range(prompts)]
    chosen, seen = _ask(target, asked)
    right = _reference(target.answer.tensor_type, asked, chosen)
    difference = seen - right
    logits = difference - difference.mean(axis=-1, keepdims=True)
    top = np.abs(np.take_along_axis(difference, np.argsort(-right, axis=-1)[..., :TOP], axis=-1))
    leads = (
        np.delete(right, TOKENS.index(END), axis=-1).max(axis=-1)
        - np.take_along_axis(right, chosen[..., None], axis=-1)[..., 0]
    )
    return Precision(
        n=top.size,
        mean=float(top.mean()),
        rms=_rms(top),
        p99=float(np.quantile(top, 0.99)),
        largest=float(top.max()),
        logits=_rms(logits),
        largest_logit=float(np.abs(logits).max()),
        steps=chosen.size,
        lead=float(leads.max()),
    )


def noise(target: Target, row: dict[str, object], prompts: int = CALIBRATION_PROMPTS) -> tolerances.Noise:
    """Returns the row for `noise.json` of a server that is known to be right; `row` has what no answer shows."""
    seen = measure(target, prompts)
    embedding = checks_http.embedding_of(target)
    assert target.answer  # noqa: S101 - as above
    distance = 1 - float(np.dot(embedding, target.answer.embedding)) / math.hypot(*embedding)
    numbers = {name: float(f"{getattr(seen, name):.4g}") for name in ("mean", "rms", "p99", "largest", "logits")}
    return tolerances.row_of({**row, "n": seen.n, **numbers, "embedding": float(f"{max(0.0, distance):.3g}")})


def _ask(target: Target, prompts: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], Array]:
    """Returns the chosen tokens, (prompts, steps), and all log-probabilities, (prompts, steps, vocabulary)."""
    chosen = np.zeros((len(prompts), STEPS), dtype=int)
    seen = np.full((len(prompts), STEPS, len(TOKENS)), np.nan)
    for first in range(0, len(prompts), AT_ONCE):
        body = {
            "model": target.alias,
            "prompt": list(map(list, prompts[first : first + AT_ONCE])),
            "n_predict": STEPS,
            "n_probs": len(TOKENS),
            "ignore_eos": True,  # the end token keeps its log-probability, and is never chosen
            **checks_http.GREEDY,
        }
        for answer in checks_http.post(f"{target.url}/completion", body, key=target.key, patience=target.patience):
            number = first + answer["index"]
            for step, entry in enumerate(answer["completion_probabilities"]):
                chosen[number, step] = entry["id"]
                for candidate in entry["top_logprobs"]:
                    seen[number, step, candidate["id"]] = candidate["logprob"]  # a broken kernel's null becomes NaN
    if not np.isfinite(seen).all():
        raise CheckFailedError("An answer lacks a token's log-probability, or it is not a number.")
    return chosen, seen


def _reference(tensor_type: TensorType, prompts: Sequence[Sequence[int]], chosen: NDArray[np.int64]) -> Array:
    weights, architecture = model.dequantise(model.draw_tensors(tensor_type)), model.MODELS[tensor_type].architecture
    rows = []
    for prompt, tokens in zip(prompts, chosen.tolist(), strict=True):
        sequence = [*prompt, *tokens[:-1]]
        rows.append(reference.next_log_probabilities(weights, architecture, sequence)[len(prompt) - 1 :])
    return np.array(rows)


def _rms(values: Array) -> float:
    return float(np.sqrt((values * values).mean()))
