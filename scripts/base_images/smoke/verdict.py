"""Judges what a server answered by the known answer; no server is needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from base_images.smoke.model import KnownAnswer, Step


@dataclass(frozen=True, kw_only=True)
class SeenStep:
    """One token as a server gave it; `log_probability` is None and `top` empty when it was not asked for them.

    A server that was asked and says `null` means not-a-number: that is `math.nan` here, and wrong.
    """

    text: str
    log_probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether what was seen is right.

    Attributes:
        largest_difference: of the log-probabilities compared, in nats, or the cosine distance; infinite when a number
            was not finite; None when there were no numbers.
        reason: one sentence; when wrong, the first thing that is, with what was seen and what is right.
    """

    ok: bool
    largest_difference: float | None
    reason: str


def compare(expected: KnownAnswer, seen: Sequence[SeenStep]) -> Verdict:
    """Returns whether a server's tokens, and the log-probabilities it gave, are the right ones.

    The first wrong step decides: what follows a wrong token answers another text. A token of the right top that the
    seen top lacks is taken to be as probable as the seen top's last, which it can be at most.
    """
    largest: float | None = None
    for number, (right, step) in enumerate(zip(expected.steps, seen, strict=False), start=1):
        if step.text != right.text:
            likelihood = "" if step.log_probability is None else f" (log-probability {step.log_probability:.4f})"
            return Verdict(
                ok=False,
                largest_difference=largest,
                reason=f"Step {number} is {step.text!r}{likelihood} where {right.text!r} "
                f"({right.log_probability:.4f}) is right.",
            )
        for text, is_right, is_seen in _log_probabilities(right, step):
            difference = abs(is_seen - is_right) if math.isfinite(is_seen) else math.inf
            largest = max(largest or 0.0, difference)
            if difference > expected.tolerance:
                return Verdict(
                    ok=False,
                    largest_difference=largest,
                    reason=f"Step {number} gives {text!r} the log-probability {is_seen:.4f} where {is_right:.4f} is "
                    f"right: {difference:.4f} apart, and {expected.tolerance} is allowed.",
                )
    if len(seen) != len(expected.steps):
        return Verdict(
            ok=False,
            largest_difference=largest,
            reason=f"The answer has {len(seen)} tokens where {len(expected.steps)} are right.",
        )
    numbers = "" if largest is None else f" and log-probabilities within {largest:.4f} of {expected.tolerance} allowed"
    return Verdict(ok=True, largest_difference=largest, reason=f"All {len(seen)} tokens are right{numbers}.")


def compare_embedding(expected: KnownAnswer, seen: Sequence[float]) -> Verdict:
    """Returns whether a server's embedding of the prompt points where the right one does and has length 1."""
    if len(seen) != len(expected.embedding):
        return Verdict(
            ok=False,
            largest_difference=None,
            reason=f"The embedding has {len(seen)} numbers where {len(expected.embedding)} are right.",
        )
    length = math.hypot(*seen)
    if not abs(length - 1) < 1e-3:  # noqa: PLR2004 (float32 keeps it within 1e-6; not-a-number fails too)
        return Verdict(
            ok=False, largest_difference=math.inf, reason=f"The embedding has length {length:.4f} where 1 is right."
        )
    cosine = math.fsum(a * b for a, b in zip(expected.embedding, seen, strict=True)) / length
    distance = max(0.0, 1 - cosine)
    ok = distance <= expected.embedding_tolerance
    return Verdict(
        ok=ok,
        largest_difference=distance,
        reason=f"The embedding's cosine distance from the right one is {distance:.2e}, "
        f"and {expected.embedding_tolerance:.1e} is allowed.",
    )


def _log_probabilities(right: Step, seen: SeenStep) -> Iterator[tuple[str, float, float]]:
    """Yields (token, right, seen) for every log-probability that can be compared, the chosen token's first."""
    if seen.log_probability is not None:
        yield right.text, right.log_probability, seen.log_probability
    if not seen.top:
        return
    given = dict(seen.top)
    last = min(given.values())
    for text, log_probability in right.top:
        yield text, log_probability, given.get(text, min(last, log_probability))
