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
    the server's top is taken to be as probable as the last one there, its upper bound. Another token than the right
    one is accepted at a near tie, see `Limits.lead`; what follows it is not compared.
    """
    differences: list[float] = []
    tokens = 0  # compared
    for right, step in zip(expected.steps, seen, strict=False):
        tokens += 1
        if step.text != right.text:
            lead = right.log_probability - dict(right.top).get(step.text, -math.inf)
            if lead > expected.limits.lead:
                likelihood = "" if step.log_probability is None else f" (log-probability {step.log_probability:.4f})"
                return Verdict(
                    ok=False,
                    largest_difference=max(differences, default=None),
                    reason=f"Step {tokens} is {step.text!r}{likelihood} where {right.text!r} "
                    f"({right.log_probability:.4f}) is right.",
                )
        for text, is_right, is_seen in _log_probabilities(right, step):
            differences.append(abs(is_seen - is_right) if math.isfinite(is_seen) else math.inf)
            if differences[-1] > expected.limits.largest:
                return Verdict(
                    ok=False,
                    largest_difference=max(differences),
                    reason=f"Step {tokens} gives {text!r} the log-probability {is_seen:.4f} where {is_right:.4f} is "
                    f"right: {differences[-1]:.4f} apart, and {expected.limits.largest:.4f} is allowed.",
                )
        if step.text != right.text:
            break
    wrong, numbers = _judge_all(expected, differences, tokens)
    if len(seen) != len(expected.steps):
        wrong = f"The answer has {len(seen)} tokens where {len(expected.steps)} are right."
    right_tokens = sum(step.text == right.text for right, step in zip(expected.steps[:tokens], seen, strict=False))
    what = f"All {tokens} tokens are right" if right_tokens == tokens else f"{right_tokens} tokens are right"
    end = "." if right_tokens == tokens else "; there the server decides a near tie otherwise."
    return Verdict(
        ok=not wrong, largest_difference=max(differences, default=None), reason=wrong or f"{what}{numbers}{end}"
    )


def _judge_all(expected: KnownAnswer, differences: Sequence[float], tokens: int) -> tuple[str, str]:
    """Returns what is wrong with the differences of so many tokens together, and what to say of them otherwise."""
    if not differences:
        return "", ""
    rms, allowed = math.hypot(*differences) / math.sqrt(len(differences)), expected.limits.rms(tokens)
    if rms > allowed:
        wrong = f"{len(differences)} log-probabilities are {rms:.4f} nats from the right ones (RMS), and {allowed:.4f} "
        return f"{wrong}is allowed.", ""
    return "", f", log-probabilities within {max(differences):.4f} ({expected.limits.largest:.4f} allowed)"


def demanded(expected: KnownAnswer) -> str:
    """Returns the beginning of the text that a right server's answer has: all of it unless there is a near tie."""
    for number, step in enumerate(expected.steps):
        if step.top[0][1] - step.top[1][1] <= expected.limits.lead:
            return expected.text[:number]  # a token is one character
    return expected.text


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
    if seen.log_probability is not None and seen.text == right.text:
        yield right.text, right.log_probability, seen.log_probability
    if not seen.top:
        return
    top = dict(seen.top)
    last = min(top.values())
    for text, log_probability in right.top:
        yield text, log_probability, top.get(text, min(last, log_probability))
