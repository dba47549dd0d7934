"""Compares the device with the same image's `cpu/`: a longer run on both servers, log-probability by log-probability.

The known answer is short, for a single sequence, and without near ties. Here near ties are allowed, several sequences
run at once, the key-value cache fills, a prompt takes several batches, and flash attention is on or off, which uses
other kernels. A device that is not used passes, because the CPU agrees with itself; `checks_server` shows from the log
whether the device is used.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from base_images.smoke import checks_http, model
from base_images.smoke.checks_http import ANSWER_SECONDS, CheckFailedError
from base_images.smoke.model import TensorType
from base_images.smoke.tolerances import Limits

STEPS = 64
"""Generated tokens per prompt."""

TOP = 10
"""Most probable tokens to compare at each step."""

BATCH = 64
"""The servers' logical batch size, in tokens; `UBATCH` is the physical one."""

UBATCH = 32

PROMPT_LENGTHS = (3, 32, 75, 157)
"""In tokens: less than `UBATCH`, as many, more than one `BATCH`, more than two; all in parallel, one per slot."""

MAX_PARTINGS = 24
"""How often, in all, the device may choose another token than cpu/ at near ties: twice the largest number seen, and a
tenth of the tokens."""

WRONG = "The device computes something else:"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two servers with the same model and arguments: one on the device, one from `cpu/`."""

    tensor_type: TensorType
    flash_attention: bool

    @property
    def name(self) -> str:
        """Such as `Q4_K, flash attention on`."""
        return f"{self.tensor_type}, flash attention {'on' if self.flash_attention else 'off'}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of both servers, besides the model.

        With `on`, b11312 computes flash attention on the CPU if the device does not support it, and logs nothing.
        `auto` turns it off then, and logs which: see `check_flash_attention`.
        """
        return (
            *("--parallel", str(len(PROMPT_LENGTHS))),
            *("--batch-size", str(BATCH)),
            *("--ubatch-size", str(UBATCH)),
            *("--flash-attn", "auto" if self.flash_attention else "off"),
        )


TYPES = (
    *(TensorType.F16, TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_K),
    *(TensorType.Q6_K, TensorType.MXFP4, TensorType.BF16),
)
"""The usual ones, and one for each other kind of model; F16 has the same weights and kernels as exact as F32."""

PAIRS = tuple(
    Pair(tensor_type=tensor_type, flash_attention=flash_attention)
    for tensor_type in TYPES
    for flash_attention in (True, False)
)
"""Ordered by model."""

SOFTWARE_PAIRS = (
    Pair(tensor_type=TensorType.F16, flash_attention=True),
    Pair(tensor_type=TensorType.Q4_K, flash_attention=False),
)
"""For a device in software, where each pair takes minutes."""


# --- The checks. As in `checks_http.py` each returns its observation on one line, or raises CheckFailedError. ---


def check_agreement(device: str, cpu: str, tolerance: Limits, *, patience: float = ANSWER_SECONDS) -> str:
    """The device's server gives the same log-probabilities as cpu/'s, for all prompts at once.

    Greedy answers may part at a near tie. From there on the request to the device is repeated with cpu/'s answer so
    far added to the prompt, so that the rest is compared as well.

    Args:
        device: URL of the device's server, without a trailing slash.
        cpu: URL of the server from `cpu/`, with the same model and arguments.
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
        answers = _ask("the device", device, [rest.prompt for rest in rests], longest, patience)
        compared = [compare(rest, transcript, tolerance) for rest, transcript in zip(rests, answers, strict=True)]
        differences += itertools.chain.from_iterable(comparison.differences for comparison in compared)
        parted = [comparison.parted for comparison in compared if comparison.parted]
        partings += len(parted)
        if partings > MAX_PARTINGS:
            raise CheckFailedError(
                f"{WRONG} it chose another token than cpu/ {partings} times, always at near ties, and {MAX_PARTINGS} "
                "are allowed."
            )
        rests = [rest for rest in parted if rest.right]
    return judge(differences, len(PROMPT_LENGTHS) * STEPS, partings, tolerance)


def check_flash_attention(log: str, *, wanted: bool) -> str:
    """A server's log says that flash attention is on and supported by the device, or that it is off.

    b11312 logs it from verbosity 4 on: llama_context's constructor and resolve_fused_ops in src/llama-context.cpp.
    """
    if re.search(r"flash_attn += disabled", log):
        state = "off"
    elif re.search(r"Flash Attention enabled", log):
        state = "on"
    elif refused := re.search(r"Flash Attention not supported, set to disabled", log):
        reason = re.search(r"layer \d+ is assigned to device .*Flash Attention is assigned.*", log)
        raise CheckFailedError(
            "The device has no code for this model's flash attention: the server has turned it off.",
            detail=(reason or refused)[0],
        )
    else:
        raise CheckFailedError("The log does not say whether flash attention is on.", detail=log)
    if (state == "on") is not wanted:
        raise CheckFailedError(f"Flash attention is {state}.")
    return f"flash attention is {state}"


# --- The comparison: pure functions. ---


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of an answer, and the finite natural log-probabilities of the TOP most probable ones."""

    token: int
    top: Mapping[int, float]


Transcript = tuple[Step, ...]
"""A server's greedy answer to one prompt."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """The part of the answer to one prompt that is still to be compared.

    Attributes:
        number: of the prompt, from 1.
        prompt: the tokens of the next request: the prompt and the part of the answer that has been compared.
        right: the rest of cpu/'s answer.
    """

    number: int
    prompt: tuple[int, ...]
    right: Transcript

    def after(self, steps: int) -> Rest:
        """Returns the rest after `steps` more steps."""
        compared = tuple(step.token for step in self.right[:steps])
        return Rest(number=self.number, prompt=self.prompt + compared, right=self.right[steps:])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences of an answer that is not wrong.

    Attributes:
        differences: of the log-probabilities, in nats.
        parted: the rest after the step at which another token was chosen; None if the tokens are the same.
    """

    differences: tuple[float, ...]
    parted: Rest | None


def compare(rest: Rest, seen: Transcript, tolerance: Limits) -> Comparison:
    """Compares the device's answer with cpu/'s, up to and including the step at which they part.

    Raises:
        CheckFailedError: a difference is larger than `tolerance.largest`, or another token was chosen where cpu/'s
            token leads by more.
    """
    differences: list[float] = []
    for index, (right, step) in enumerate(zip(rest.right, seen, strict=False)):
        where = f"prompt {rest.number}, position {len(rest.prompt) + index}:"
        for token, is_right, is_seen in _log_probabilities(right, step):
            differences.append(abs(is_seen - is_right))
            if differences[-1] > tolerance.largest:
                raise CheckFailedError(
                    f"{WRONG} {where} it gives {_shown(token)} the log-probability {is_seen:.4f} and cpu/ "
                    f"{is_right:.4f}; {differences[-1]:.4f} apart, and {tolerance.largest:.4f} is allowed."
                )
        if step.token != right.token:
            lead = right.top[right.token] - right.top.get(step.token, -math.inf)
            if lead > tolerance.largest:
                raise CheckFailedError(
                    f"{WRONG} {where} it chooses {_shown(step.token)} where {_shown(right.token)} leads by "
                    f"{lead:.4f} on cpu/, and {tolerance.largest:.4f} is allowed."
                )
            return Comparison(differences=tuple(differences), parted=rest.after(index + 1))
    return Comparison(differences=tuple(differences), parted=None)


def judge(differences: Sequence[float], steps: int, partings: int, tolerance: Limits) -> str:
    """Returns a summary of all differences, those of `steps` steps.

    Raises:
        CheckFailedError: their RMS is too large.
    """
    seen, allowed = math.sqrt(math.fsum(one * one for one in differences) / len(differences)), tolerance.rms(steps)
    if seen > allowed:
        raise CheckFailedError(
            f"{WRONG} {len(differences):,} log-probabilities differ from cpu/'s by {seen:.4f} nats (RMS), and "
            f"{allowed:.4f} is allowed."
        )
    largest = max(differences)
    return (
        f"{len(differences):,} log-probabilities differ by {seen:.4f} nats (RMS; {allowed:.4f} allowed) and by at most "
        f"{largest:.4f} ({tolerance.largest:.4f} allowed); {partings} near ties decided differently"
        + ("" if largest else "; no bit differs, as if the same code had computed both")
    )


def read(who: str, answer: Mapping[str, Any]) -> Transcript:
    """Returns the transcript in an answer of `/completion`.

    Raises:
        CheckFailedError: a log-probability is missing, or not a number (null in JSON).
        LookupError, TypeError: the answer has another shape.
    """
    transcript = []
    for number, entry in enumerate(answer.get("completion_probabilities", ()), start=1):
        top = {candidate["id"]: candidate["logprob"] for candidate in entry["top_logprobs"]}
        if any(value is None or not math.isfinite(value) for value in (*top.values(), entry["logprob"])):
            raise CheckFailedError(f"Token {number} of {who}'s answer has a log-probability that is not a number.")
        if len(top) != TOP or entry["id"] not in top:
            raise CheckFailedError(f"Token {number} of {who}'s answer comes without its {TOP} log-probabilities.")
        transcript.append(Step(token=entry["id"], top=top))
    return tuple(transcript)


@functools.cache
def prompts() -> tuple[tuple[int, ...], ...]:
    """Returns the prompts in tokens of the known-answer models; no two have a common prefix."""
    text = "".join(map(model.prompt_of, range(1, 10)))
    starts = itertools.accumulate(PROMPT_LENGTHS, initial=0)
    return tuple(
        model.tokens_of(text[start : start + length]) for start, length in zip(starts, PROMPT_LENGTHS, strict=False)
    )


def _ask(who: str, url: str, prompts: Sequence[Sequence[int]], steps: int, patience: float) -> list[Transcript]:
    """Returns the greedy answers of `steps` tokens; one request with all prompts, so that they run in parallel."""
    body = {
        "prompt": list(map(list, prompts)),
        "n_predict": steps,
        "n_probs": TOP,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    answers = checks_http.post(f"{url}/completion", body, patience=patience)
    if len(prompts) == 1:  # b11312 does not answer a list of one prompt with a list
        answers = [answers]
    transcripts = [read(who, answer) for answer in sorted(answers, key=lambda answer: int(answer["index"]))]
    for number, transcript in enumerate(transcripts, start=1):
        if len(transcript) != steps:
            raise CheckFailedError(
                f"Answer {number} of {who} has {len(transcript)} tokens with log-probabilities instead of {steps}."
            )
    return transcripts


def _log_probabilities(right: Step, seen: Step) -> Iterator[tuple[int, float, float]]:
    """Yields (token, right, seen); a token that one side lacks is at most as probable as the last one there."""
    last_right, last_seen = min(right.top.values()), min(seen.top.values())
    for token in {**right.top, **seen.top}:
        is_right, is_seen = right.top.get(token), seen.top.get(token)
        if is_right is None:
            yield token, min(last_right, seen.top[token]), seen.top[token]
        elif is_seen is None:
            yield token, is_right, min(last_seen, is_right)
        else:
            yield token, is_right, is_seen


def _shown(token: int) -> str:
    return repr(model.TOKENS[token])
