"""Compares a server's answer with the known answer; pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from base_images.smoke.model import KnownAnswer, Step


@dataclass(frozen=True, kw_only=True)
class SeenStep:
    """One token of a server's answer; `log_probability` is None and `top` is empty if they were not requested.

    A server's `null` for a requested log-probability means NaN; it is `math.nan` here, and wrong.
    """

    text: str
    log_probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether an answer is right.

    Attributes:
        largest_difference: of the compared log-probabilities, in nats, or the cosine distance; infinite if a number
            was not finite; None if there were no numbers.
        reason: one sentence; for a wrong answer the first error, with the observed and the right value.
    """

    ok: bool
    largest_difference: float | None
    reason: str


def compare(expected: KnownAnswer, seen: Sequence[SeenStep]) -> Verdict:
    """Returns whether a server's tokens and log-probabilities are right.

    The first wrong step decides, because what follows a wrong token continues another text. A token that is missing in
    the server's top is taken to be as probable as the last one there, its upper bound.
    """
    largest: float | None = None

    def verdict(reason: str, *, ok: bool = False) -> Verdict:
        return Verdict(ok=ok, largest_difference=largest, reason=reason)

    for number, (right, step) in enumerate(zip(expected.steps, seen, strict=False), start=1):
        if step.text != right.text:
            likelihood = "" if step.log_probability is None else f" (log-probability {step.log_probability:.4f})"
            return verdict(
                f"Step {number} is {step.text!r}{likelihood} where {right.text!r} "
                f"({right.log_probability:.4f}) is right."
            )
        for text, is_right, is_seen in _log_probabilities(right, step):
            difference = abs(is_seen - is_right) if math.isfinite(is_seen) else math.inf
            largest = max(largest or 0.0, difference)
            if difference > expected.limits.largest:
                return verdict(
                    f"Step {number} gives {text!r} the log-probability {is_seen:.4f} where {is_right:.4f} is "
                    f"right: {difference:.4f} apart, and {expected.limits.largest} is allowed."
                )
    if len(seen) != len(expected.steps):
        return verdict(f"The answer has {len(seen)} tokens where {len(expected.steps)} are right.")
    numbers = "" if largest is None else f", log-probabilities within {largest:.4f} ({expected.limits.largest} allowed)"
    return verdict(f"All {len(seen)} tokens are right{numbers}.", ok=True)


def compare_embedding(expected: KnownAnswer, seen: Sequence[float]) -> Verdict:
    """Returns whether a server's embedding of the prompt has the right direction, and length 1."""
    if len(seen) != len(expected.embedding):
        return Verdict(
            ok=False,
            largest_difference=None,
            reason=f"The embedding has {len(seen)} numbers where {len(expected.embedding)} are right.",
        )
    length = math.hypot(*seen)
    if not abs(length - 1) < 1e-3:  # noqa: PLR2004 (float32 keeps it within 1e-6; NaN fails too)
        return Verdict(
            ok=False, largest_difference=math.inf, reason=f"The embedding has length {length:.4f} where 1 is right."
        )
    cosine = math.fsum(a * b for a, b in zip(expected.embedding, seen, strict=True)) / length
    distance = max(0.0, 1 - cosine)
    ok = distance <= expected.limits.embedding
    return Verdict(
        ok=ok,
        largest_difference=distance,
        reason=f"The embedding's cosine distance from the right one is {distance:.2e}, "
        f"and {expected.limits.embedding:.1e} is allowed.",
    )


def _log_probabilities(right: Step, seen: SeenStep) -> Iterator[tuple[str, float, float]]:
    """Yields (token, right, seen) for every comparable log-probability, the chosen token's first."""
    if seen.log_probability is not None:
        yield right.text, right.log_probability, seen.log_probability
    if not seen.top:
        return
    top = dict(seen.top)
    last = min(top.values())
    for text, log_probability in right.top:
        yield text, log_probability, top.get(text, min(last, log_probability))
