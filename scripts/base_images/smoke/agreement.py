"""Does the device compute what the same image's `cpu/` computes? A longer run on both servers, number by number.

The known answer is short, asked of one sequence at a time and leads by far at every step. Here near ties are allowed,
several sequences run at once, the key-value cache fills, a prompt takes several batches, and flash attention is on or
off: other kernels than the known answer's. A device that is not used agrees, for the CPU agrees with itself: whether it
is used is for the log to say, see `checks_server`. What fails here is a device that computes something else.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from base_images.smoke import checks_http, model
from base_images.smoke.checks_http import ANSWER_SECONDS, CheckFailedError
from base_images.smoke.model import TensorType

STEPS = 64
"""Tokens that each prompt is continued by."""

TOP = 10
"""The most probable tokens that are compared at each step."""

BATCH = 64
"""Tokens that the servers take at once; `UBATCH` of them go through the model together."""

UBATCH = 32

PROMPT_LENGTHS = (3, 32, 75, 157)
"""In tokens: less than `UBATCH`, just as many, more than one `BATCH`, more than two; all at once, a slot for each."""

MAX_PARTINGS = 24
"""How often, in all, the device may choose another token than cpu/ where both are as good: twice what was seen, and a
tenth of the tokens."""

WRONG = "The device computes something else:"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What differences are accepted, in nats.

    Attributes:
        largest: of one log-probability; also how far cpu/'s best may lead where the device chooses another.
        mean: of the differences' sizes, over all that were compared: many small ones are wrong too.
    """

    largest: float
    mean: float


# Largest and mean difference seen with these prompts, llama-server b11312, in nats; other tokens chosen in brackets:
#
#                                           F16               Q8_0              Q4_0              Q4_K
#   cpu/, flash attention on against off    0.013 0.0022 (0)  0.168 0.0358 (3)  0.162 0.0337 (0)  0.327 0.0594 (8)
#   cpu/, batches of 512 against 32         0.007 0.0003 (0)  0.122 0.0069 (0)  0.118 0.0070 (1)  0.201 0.0108 (0)
#   cpu/, one thread against two            0     0      (0)  0     0      (0)  0     0      (0)  0     0      (0)
#   lavapipe (Mesa 25.0.7) against cpu/     0.031 0.0045 (0)  0.180 0.0338 (2)  0.148 0.0318 (3)  0.346 0.0580 (11)
#   a matrix 2% too large (blk.0.attn_v)    0.118 0.0229 (2)  0.270 0.0465 (2)  0.266 0.0445 (3)  0.484 0.0709 (5)
#   the same, 5%                            0.309 0.0568 (3)  0.422 0.0693 (5)  0.373 0.0669 (5)  0.676 0.0972 (9)
#
# The quantised types differ so much because cpu/ rounds the activations to 8 bits, which makes of the last bit of a sum
# a whole step. The means tell a small fault from that, and the largest a single wrong number.
TOLERANCES: Mapping[TensorType, Tolerance] = MappingProxyType(
    {
        TensorType.F16: Tolerance(largest=0.1, mean=0.015),
        TensorType.Q8_0: Tolerance(largest=0.4, mean=0.06),
        TensorType.Q4_0: Tolerance(largest=0.4, mean=0.06),
        TensorType.Q4_K: Tolerance(largest=0.7, mean=0.09),
    }
)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two servers to start with the same model and the same arguments: one on the device, one from `cpu/`."""

    tensor_type: TensorType
    flash_attention: bool

    @property
    def name(self) -> str:
        """Such as `Q4_K, flash attention on`."""
        return f"{self.tensor_type}, flash attention {'on' if self.flash_attention else 'off'}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """What both servers are given besides the model.

        With `on`, b11312 computes on the CPU whatever flash attention the device has no code for, without a word.
        `auto` turns it on unless that is so, and says which: see `check_flash_attention`.
        """
        return (
            *("--parallel", str(len(PROMPT_LENGTHS))),
            *("--batch-size", str(BATCH)),
            *("--ubatch-size", str(UBATCH)),
            *("--flash-attn", "auto" if self.flash_attention else "off"),
        )


PAIRS = tuple(
    Pair(tensor_type=tensor_type, flash_attention=flash_attention)
    for tensor_type in TOLERANCES
    for flash_attention in (True, False)
)
"""Neighbours have the same model."""

SOFTWARE_PAIRS = (PAIRS[0], PAIRS[-1])
"""What is compared on a device in software, where each pair takes minutes: both ends of the list."""


# --- The checks. As in `checks_http.py` each returns what it saw, on one line, or raises CheckFailedError. ---


def check_agreement(device: str, cpu: str, tolerance: Tolerance, *, patience: float = ANSWER_SECONDS) -> str:
    """The device's server gives the log-probabilities of cpu/'s, for all prompts at once.

    Greedy answers may part at a near tie. From there on the device is asked again, with what cpu/ has said so far
    added to the prompt, so that the rest is compared as well.

    Args:
        device: the URL of the device's server, without a slash at the end.
        cpu: that of the server from `cpu/`, with the same model and arguments.
        tolerance: for this model.
        patience: seconds to wait for an answer.
    """
    right = _ask("cpu/", cpu, prompts(), STEPS, patience)
    rests = [
        Rest(number=number, prompt=prompt, right=transcript)
        for number, (prompt, transcript) in enumerate(zip(prompts(), right, strict=True), start=1)
    ]
    differences: list[float] = []
    partings = 0
    while rests:
        longest = max(len(rest.right) for rest in rests)
        seen = _ask("the device", device, [rest.prompt for rest in rests], longest, patience)
        compared = [compare(rest, transcript, tolerance) for rest, transcript in zip(rests, seen, strict=True)]
        differences += itertools.chain.from_iterable(one.differences for one in compared)
        parted = [one.parted for one in compared if one.parted]
        partings += len(parted)
        if partings > MAX_PARTINGS:
            raise CheckFailedError(
                f"{WRONG} it chose another token than cpu/ {partings} times, if only at near ties, and {MAX_PARTINGS} "
                "are allowed."
            )
        rests = [rest for rest in parted if rest.right]
    return judge(differences, partings, tolerance)


def check_flash_attention(log: str, *, wanted: bool) -> str:
    """A server's log says that flash attention is on, and where the model is; or that it is off.

    What b11312 says from verbosity 4 on: llama_context's constructor and resolve_fused_ops in src/llama-context.cpp.
    """
    if re.search(r"flash_attn += disabled", log):
        seen = "off"
    elif re.search(r"Flash Attention enabled", log):
        seen = "on"
    elif refused := re.search(r"Flash Attention not supported, set to disabled", log):
        reason = re.search(r"layer \d+ is assigned to device .*Flash Attention is assigned.*", log)
        raise CheckFailedError(
            "The device has no code for this model's flash attention: the server has turned it off.",
            detail=(reason or refused)[0],
        )
    else:
        raise CheckFailedError("The log does not say whether flash attention is on.", detail=log)
    if (seen == "on") is not wanted:
        raise CheckFailedError(f"Flash attention is {seen}.")
    return f"flash attention is {seen}"


# --- Comparing; no server is needed. ---


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of an answer, and the natural log-probabilities of the TOP most probable ones; all are finite."""

    token: int
    top: Mapping[int, float]


Transcript = tuple[Step, ...]
"""A server's greedy answer to one prompt."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """What there is still to compare of the answer to one prompt.

    Attributes:
        number: of the prompt, from 1.
        prompt: the tokens to be continued: the prompt, and what of the answer is compared already.
        right: how cpu/ goes on.
    """

    number: int
    prompt: tuple[int, ...]
    right: Transcript

    def after(self, steps: int) -> Rest:
        """Returns what there is to compare after so many steps more."""
        said = tuple(step.token for step in self.right[:steps])
        return Rest(number=self.number, prompt=self.prompt + said, right=self.right[steps:])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How two answers compare that are not wrong.

    Attributes:
        differences: of the log-probabilities, in nats.
        parted: what comes after the step at which another token was chosen; None where none was.
    """

    differences: tuple[float, ...]
    parted: Rest | None


def compare(rest: Rest, seen: Transcript, tolerance: Tolerance) -> Comparison:
    """Returns how the device's answer compares with cpu/'s, up to and with the step at which they part.

    Raises:
        CheckFailedError: a difference is larger than `tolerance.largest`, or another token was chosen where cpu/'s
            choice leads by more.
    """
    differences: list[float] = []
    for index, (right, step) in enumerate(zip(rest.right, seen, strict=False)):
        where = f"prompt {rest.number}, position {len(rest.prompt) + index}:"
        for token, is_right, is_seen in _log_probabilities(right, step):
            differences.append(abs(is_seen - is_right))
            if differences[-1] > tolerance.largest:
                raise CheckFailedError(
                    f"{WRONG} {where} it gives {_shown(token)} the log-probability {is_seen:.4f} and cpu/ "
                    f"{is_right:.4f}; {differences[-1]:.4f} apart, and {tolerance.largest} is allowed."
                )
        if step.token != right.token:
            lead = right.top[right.token] - right.top.get(step.token, -math.inf)
            if lead > tolerance.largest:
                raise CheckFailedError(
                    f"{WRONG} {where} it chooses {_shown(step.token)} where {_shown(right.token)} leads by "
                    f"{lead:.4f} on cpu/, and {tolerance.largest} is allowed."
                )
            return Comparison(differences=tuple(differences), parted=rest.after(index + 1))
    return Comparison(differences=tuple(differences), parted=None)


def judge(differences: Sequence[float], partings: int, tolerance: Tolerance) -> str:
    """Returns what was seen in all.

    Raises:
        CheckFailedError: the mean difference is too large.
    """
    mean = math.fsum(differences) / len(differences)
    if mean > tolerance.mean:
        raise CheckFailedError(
            f"{WRONG} {len(differences):,} log-probabilities differ from cpu/'s by {mean:.4f} nats in the mean, and "
            f"{tolerance.mean} is allowed."
        )
    largest = max(differences)
    return (
        f"{len(differences):,} log-probabilities within {largest:.4f} of {tolerance.largest} allowed, "
        f"{mean:.4f} in the mean of {tolerance.mean}; {partings} near ties chosen otherwise"
        + ("" if largest else "; not one bit differs, as if the same code had computed both")
    )


def read(who: str, answer: Mapping[str, Any]) -> Transcript:
    """Returns the transcript in an answer of `/completion`.

    Raises:
        CheckFailedError: a log-probability is missing, or is not a number, which JSON has as null.
        LookupError, TypeError: the answer has another shape.
    """
    transcript = []
    for number, entry in enumerate(answer.get("completion_probabilities", ()), start=1):
        top = {one["id"]: one["logprob"] for one in entry["top_logprobs"]}
        if any(value is None or not math.isfinite(value) for value in (*top.values(), entry["logprob"])):
            raise CheckFailedError(f"Token {number} of {who}'s answer has a log-probability that is not a number.")
        if len(top) != TOP or entry["id"] not in top:
            raise CheckFailedError(f"Token {number} of {who}'s answer comes without its {TOP} log-probabilities.")
        transcript.append(Step(token=entry["id"], top=top))
    return tuple(transcript)


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    """Returns the prompts as the known-answer models' tokens; no two begin alike."""
    text = "".join(map(model.prompt_of, range(1, 10)))
    starts = itertools.accumulate(PROMPT_LENGTHS, initial=0)
    return tuple(
        model.tokens_of(text[start : start + length]) for start, length in zip(starts, PROMPT_LENGTHS, strict=False)
    )


def _ask(who: str, url: str, prompts: Sequence[Sequence[int]], steps: int, patience: float) -> list[Transcript]:
    """Returns the greedy answers of `steps` tokens; all prompts are in one request, so that they run at once."""
    body = {
        "prompt": list(map(list, prompts)),
        "n_predict": steps,
        "n_probs": TOP,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    answers = checks_http.post(f"{url}/completion", body, patience=patience)
    if len(prompts) == 1:  # b11312 answers a list of one prompt as it answers a prompt
        answers = [answers]
    transcripts = [read(who, answer) for answer in sorted(answers, key=lambda answer: int(answer["index"]))]
    for number, transcript in enumerate(transcripts, start=1):
        if len(transcript) != steps:
            raise CheckFailedError(
                f"Answer {number} of {who} has {len(transcript)} tokens with log-probabilities instead of {steps}."
            )
    return transcripts


def _log_probabilities(right: Step, seen: Step) -> Iterator[tuple[int, float, float]]:
    """Yields (token, right, seen); one that only one side reports is at most as probable as the other side's last."""
    last_right, last_seen = min(right.top.values()), min(seen.top.values())
    for token in {**right.top, **seen.top}:
        # At least one of them is there, and bounds the other.
        is_right, is_seen = right.top.get(token), seen.top.get(token)
        if is_right is None:
            yield token, min(last_right, seen.top[token]), seen.top[token]
        elif is_seen is None:
            yield token, is_right, min(last_seen, is_right)
        else:
            yield token, is_right, is_seen


def _shown(token: int) -> str:
    return repr(model.TOKENS[token])
