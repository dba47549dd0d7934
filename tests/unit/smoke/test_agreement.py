from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from base_images.smoke import agreement, model
from base_images.smoke.agreement import PAIRS, Comparison, Rest, Step, Transcript
from base_images.smoke.checks_http import CheckFailedError
from base_images.smoke.model import TOKENS, TensorType
from base_images.smoke.tolerances import FAR, Limits

TOLERANCE = Limits(noise=0.1 / FAR, logits=0, embedding=0)


def step(token: int, top: Mapping[int, float]) -> Step:
    return Step(token=token, top=top)


CLEAR = step(1, {1: -0.5, 2: -1.5, 3: -2.0})
TIE = step(1, {1: -1.00, 2: -1.04, 3: -2.0})
RIGHT: Transcript = (CLEAR, TIE, CLEAR, CLEAR)
REST = Rest(number=2, prompt=(7, 8), right=RIGHT)


def compare(*seen: Step) -> Comparison:
    return agreement.compare(REST, seen, TOLERANCE)


# --- The pairs. ---


def test_pairs_cover_each_kind_of_model_with_and_without_flash_attention() -> None:
    assert {pair.tensor_type for pair in PAIRS if pair.flash_attention} == set(agreement.TYPES)
    assert {pair.tensor_type for pair in PAIRS if not pair.flash_attention} == set(agreement.TYPES)
    kinds = {model.MODELS[tensor_type].architecture for tensor_type in TensorType}
    assert {model.MODELS[tensor_type].architecture for tensor_type in agreement.TYPES} == kinds
    assert set(agreement.SOFTWARE_PAIRS) < set(PAIRS)


def test_the_arguments_of_a_pair() -> None:
    assert PAIRS[0].name == "F16, flash attention on"
    assert " ".join(PAIRS[0].arguments) == "--parallel 4 --batch-size 64 --ubatch-size 32 --flash-attn auto"
    assert PAIRS[1].name == "F16, flash attention off"
    assert PAIRS[1].arguments[-2:] == ("--flash-attn", "off")


def test_prompts_have_their_lengths_and_no_common_prefix() -> None:
    prompts = agreement.prompts()
    assert [len(prompt) for prompt in prompts] == [3, 32, 75, 157]
    assert len({prompt[0] for prompt in prompts}) == 4
    assert all(0 <= token < len(TOKENS) - 1 for prompt in prompts for token in prompt)


# --- The comparison. ---


def test_equal_answers_agree() -> None:
    assert compare(*RIGHT) == Comparison(differences=(0.0,) * 12, parted=None)


def test_every_log_probability_is_compared() -> None:
    seen = compare(CLEAR, TIE, CLEAR, step(1, {1: -0.5, 2: -1.5, 3: -2.09}))
    assert max(seen.differences) == pytest.approx(0.09)
    with pytest.raises(
        CheckFailedError,
        match=r"^The device computes something else: prompt 2, position 5: it gives '#' the log-probability -2\.1100 "
        r"and cpu/ -2\.0000; 0\.1100 apart, and 0\.1000 is allowed\.$",
    ):
        compare(CLEAR, TIE, CLEAR, step(1, {1: -0.5, 2: -1.5, 3: -2.11}))


def test_the_log_probability_of_the_chosen_token_is_compared() -> None:
    with pytest.raises(CheckFailedError, match=r"position 2: it gives '!' the log-probability -0\.7000"):
        compare(step(1, {1: -0.7, 2: -1.5, 3: -2.0}), TIE, CLEAR, CLEAR)


def test_a_token_that_one_side_lacks_is_at_most_as_probable_as_its_last() -> None:
    # The device lacks 3, with it at most -2.05; cpu/ lacks 4, with it at most -2.0.
    seen = compare(step(1, {1: -0.5, 2: -1.5, 4: -2.05}), TIE, CLEAR, CLEAR)
    assert sorted(seen.differences)[-2:] == pytest.approx([0.0, 0.05])
    with pytest.raises(CheckFailedError, match=r"it gives '#' the log-probability -2\.5000 and cpu/ -2\.0000"):
        compare(step(1, {1: -0.5, 2: -1.5, 4: -2.5}), TIE, CLEAR, CLEAR)
    with pytest.raises(CheckFailedError, match=r"it gives '\$' the log-probability -1\.5000 and cpu/ -2\.0000"):
        compare(step(1, {1: -0.5, 2: -1.5, 4: -1.5}), TIE, CLEAR, CLEAR)


def test_answers_may_part_at_a_near_tie_and_the_rest_is_compared_next() -> None:
    other = step(2, {1: -1.05, 2: -1.01, 3: -2.0})
    garbage = step(5, {5: 0.0, 6: -50.0, 7: -51.0})
    seen = compare(CLEAR, other, garbage)
    assert seen.differences == pytest.approx((0, 0, 0, 0.05, 0.03, 0))
    assert seen.parted == Rest(number=2, prompt=(7, 8, 1, 1), right=(CLEAR, CLEAR))


def test_another_token_without_a_near_tie_fails() -> None:
    # The log-probabilities are right, only the choice is wrong.
    with pytest.raises(
        CheckFailedError,
        match=r"prompt 2, position 2: it chooses '\"' where '!' leads by 1\.0000 on cpu/, and 0\.1000 is allowed",
    ):
        compare(step(2, CLEAR.top), TIE, CLEAR, CLEAR)
    with pytest.raises(CheckFailedError, match="leads by inf on cpu/"):
        compare(step(9, CLEAR.top), TIE, CLEAR, CLEAR)


def test_many_small_differences_fail() -> None:
    assert agreement.judge([0.004, 0.006], 256, 3, TOLERANCE) == (
        "2 log-probabilities differ by 0.0051 nats (RMS; 0.0065 allowed) and by at most 0.0060 (0.1000 allowed); "
        "3 near ties decided differently"
    )
    with pytest.raises(
        CheckFailedError,
        match=r"^The device computes something else: 2 log-probabilities differ from cpu/'s by 0\.0071 nats \(RMS\)",
    ):
        agreement.judge([0.008, 0.006], 256, 3, TOLERANCE)


def test_identical_answers_are_reported() -> None:
    assert agreement.judge([0.0, 0.0], 256, 0, TOLERANCE).endswith(
        "; no bit differs, as if the same code had computed both"
    )


# --- Transcripts. ---


def entry(values: Mapping[int, float | None]) -> dict[str, Any]:
    top = [{"id": token, "logprob": value} for token, value in values.items()]
    return {"id": 0, "logprob": values.get(0), "top_logprobs": top}


SOUND = {token: -float(token + 1) for token in range(agreement.TOP)}


def test_a_transcript_is_read() -> None:
    assert agreement.read("cpu/", {"completion_probabilities": [entry(SOUND)]}) == (Step(token=0, top=SOUND),)


@pytest.mark.parametrize("value", [None, math.nan, -math.inf])
@pytest.mark.parametrize("token", [0, 9])
def test_a_log_probability_that_is_not_a_number_fails(token: int, value: float | None) -> None:
    with pytest.raises(CheckFailedError, match=r"Token 2 of cpu/'s answer has a log-probability that is not a number"):
        agreement.read("cpu/", {"completion_probabilities": [entry(SOUND), entry({**SOUND, token: value})]})


@pytest.mark.parametrize("token", [0, 9])
def test_a_missing_log_probability_fails(token: int) -> None:
    broken = entry({key: value for key, value in SOUND.items() if key != token})
    broken["logprob"] = -1.0
    with pytest.raises(CheckFailedError, match="Token 1 of the device's answer comes without its 10 log-probabilities"):
        agreement.read("the device", {"completion_probabilities": [broken]})


def test_a_chosen_token_missing_in_the_top_fails() -> None:
    chosen = entry({token + 1: value for token, value in SOUND.items()}) | {"logprob": -1.0}
    with pytest.raises(CheckFailedError, match="comes without its 10 log-probabilities"):
        agreement.read("the device", {"completion_probabilities": [chosen]})


def test_an_answer_without_log_probabilities_is_empty() -> None:
    assert agreement.read("cpu/", {"content": "text"}) == ()


# --- Flash attention; lines of llama-server b11312 at verbosity 4. ---

AUTO = "0.00.231.261 I llama_context: flash_attn            = auto\n"
ENABLED = f"{AUTO}0.00.245.797 I resolve_fused_ops: Flash Attention enabled\n"
DISABLED = "0.00.054.547 I llama_context: flash_attn            = disabled\n"
REASON = (
    "layer 0 is assigned to device Vulkan0 but Flash Attention is assigned to device CPU "
    "(usually due to missing support)"
)
REFUSED = f"{AUTO}W resolve_fused_ops: {REASON}\nW resolve_fused_ops: Flash Attention not supported, set to disabled\n"


def test_flash_attention() -> None:
    assert agreement.check_flash_attention(ENABLED, wanted=True) == "flash attention is on"
    assert agreement.check_flash_attention(DISABLED, wanted=False) == "flash attention is off"


@pytest.mark.parametrize(
    ("log", "wanted", "reason"),
    [
        (ENABLED, False, "Flash attention is on"),
        (DISABLED, True, "Flash attention is off"),
        # With `on` the log does not say where it is computed.
        (AUTO.replace("auto", "enabled"), True, "does not say whether flash attention is on"),
        (AUTO, True, "does not say"),
        ("", False, "does not say"),
        (REFUSED, True, "no code for this model's flash attention"),
    ],
)
def test_another_state_of_flash_attention_fails(log: str, wanted: bool, reason: str) -> None:
    with pytest.raises(CheckFailedError, match=reason) as caught:
        agreement.check_flash_attention(log, wanted=wanted)
    if log == REFUSED:
        assert caught.value.detail == REASON
