"""The known-answer model: its claims hold, and its verdict changes when the model is damaged.

The damage: the highest exponent bit flips in the number that scales a weight. That is the weight itself for F32, F16
and BF16 and its block's scale for the quantised types. It is done to SAMPLES weights of each tensor of each type, drawn
from all of them but for `token_embd`, where they are in the row of the prompt's last token: other rows are never read,
or move the answer less than rounding does. For F32 and F16 the largest weight of each tensor with the wrong sign is
enough. Not covered: one quantised weight that moves within its own block, which is less than what llama-server's
rounding of the activations moves.
"""

from __future__ import annotations

import cmath
import dataclasses
import functools
import hashlib
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest

from base_images.smoke import model, reference, tolerances
from base_images.smoke.model import ARCHITECTURE, MODELS, KnownAnswer, Step, TensorType, known_answer
from base_images.smoke.reference import Architecture, Array
from base_images.smoke.verdict import SeenStep, Verdict, compare, compare_embedding, demanded
from base_images.smoke.weights import Tensor

SAMPLES = 3
ALL_TYPES = pytest.mark.parametrize("tensor_type", list(TensorType))

cached_tensors = functools.cache(model.draw_tensors)


ALL_TENSORS = pytest.mark.parametrize(
    ("tensor_type", "name"), [(tensor_type, name) for tensor_type in TensorType for name in cached_tensors(tensor_type)]
)
HEADS = {"attn_q", "attn_k", "attn_v"}
ALL_HEADS = pytest.mark.parametrize(
    ("tensor_type", "name"),
    [(kind, name) for kind in TensorType for name in cached_tensors(kind) if name.rpartition(".")[2] in HEADS],
)


@functools.cache
def cached_weights(tensor_type: TensorType) -> dict[str, Array]:
    return model.dequantise(cached_tensors(tensor_type))


def judge(
    expected: KnownAnswer,
    weights: Mapping[str, Array],
    architecture: Architecture | None = None,
    *,
    tolerance: float = 1,
) -> Verdict:
    """Returns the verdict on a server that computes with `weights`; `tolerance` multiplies the accepted difference.

    One pass over the right answer will do: up to the first wrong token it is the server's own, and there the verdict
    ends.
    """
    tokens = [*expected.prompt_tokens, *(step.token for step in expected.steps[:-1])]
    with np.errstate(all="ignore"):  # damaged weights overflow
        one = architecture or MODELS[expected.tensor_type].architecture
        rows = reference.next_log_probabilities(weights, one, tokens)[model.PROMPT_TOKENS - 1 :]
    seen = seen_of(map(model._step, rows))
    limits = dataclasses.replace(expected.limits, noise=tolerance * expected.limits.noise)
    return compare(model.within(expected, limits), seen)


def seen_of(steps: Iterable[Step]) -> list[SeenStep]:
    return [SeenStep(text=step.text, log_probability=step.log_probability, top=step.top) for step in steps]


# --- The model. ---


@ALL_TYPES
def test_the_search_finds_the_committed_seed_and_margin(tensor_type: TensorType) -> None:
    found = model.search_seed(tensor_type)
    assert found.found == found.committed == MODELS[tensor_type].seed
    assert found.margin == pytest.approx(known_answer(tensor_type).margin, abs=1e-9)
    assert found.margin >= model.MARGIN


@ALL_TYPES
def test_every_step_leads_by_the_margin(tensor_type: TensorType) -> None:
    answer = known_answer(tensor_type)
    leads = [step.top[0][1] - step.top[1][1] for step in answer.steps]
    assert min(leads) == answer.margin >= model.MARGIN
    assert len(answer.steps) == model.STEPS
    assert answer.text == "".join(step.text for step in answer.steps) == answer.text.strip()
    assert all(" " <= step.text <= "~" for step in answer.steps)


@ALL_TYPES
def test_rounding_does_not_change_a_token(tensor_type: TensorType) -> None:
    answer = known_answer(tensor_type)
    assert answer.limits.lead <= answer.margin


def test_the_bytes_are_the_same_in_every_process() -> None:
    program = (
        "import hashlib; from base_images.smoke.model import TensorType, known_answer\n"
        "for kind in TensorType: print(hashlib.sha256(known_answer(kind).gguf).hexdigest())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(model.__file__).parents[2]), "PYTHONHASHSEED": "1"}
    other = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert other == [hashlib.sha256(known_answer(kind).gguf).hexdigest() for kind in TensorType]
    assert len(set(other)) == len(TensorType)


@ALL_TYPES
def test_the_file_has_the_weights_of_the_answer(tensor_type: TensorType, tmp_path: Path) -> None:
    answer = known_answer(tensor_type)
    assert len(answer.gguf) < 5_000_000
    path = tmp_path / "model.gguf"
    path.write_bytes(answer.gguf)
    reader = gguf.GGUFReader(path)
    weights = cached_weights(tensor_type)
    assert [tensor.name for tensor in reader.tensors] == [model.file_name(name) for name in weights]
    for tensor, (name, weight) in zip(reader.tensors, weights.items(), strict=True):
        assert tensor.tensor_type == cached_tensors(tensor_type)[name].type, name
        assert tensor.tensor_type.name == tensor_type or weight.size < model.WIDTH * model.WIDTH, name
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values.reshape(weight.shape), weight.astype(np.float32)), name
    fields = {name: field.contents() for name, field in reader.fields.items()}
    name = fields["general.architecture"]
    assert name == ("granitehybrid" if tensor_type is TensorType.BF16 else "llama")
    assert fields[f"{name}.rope.freq_base"] == ARCHITECTURE.rope_base
    assert fields[f"{name}.pooling_type"] == gguf.PoolingType.MEAN
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == weights["output"].shape[0]


@ALL_TYPES
def test_the_weights_have_their_deviations(tensor_type: TensorType) -> None:
    weights = cached_weights(tensor_type)
    down = "blk.1.ffn_down_exps" if tensor_type is TensorType.MXFP4 else "blk.1.ffn_down"
    for name, deviation in {"token_embd": 3.0, "blk.1.attn_q": 0.1, down: 0.0625, "output": 0.25}.items():
        assert weights[name].std() == pytest.approx(deviation, rel=0.1)
        assert abs(weights[name].mean()) < 0.1 * deviation


@ALL_TYPES
def test_the_document_has_every_type(tensor_type: TensorType) -> None:
    text = (Path(__file__).parents[3] / "docs" / "testing.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| [^|]*\b{tensor_type}\b", text, re.MULTILINE)


# --- The reference: properties of its formulas. ---


def test_a_token_does_not_affect_earlier_ones() -> None:
    weights = cached_weights(TensorType.F32)
    one = reference.hidden_states(weights, ARCHITECTURE, [1, 2, 3, 4])
    other = reference.hidden_states(weights, ARCHITECTURE, [1, 2, 3, 5])
    assert np.allclose(one[:3], other[:3], rtol=0, atol=1e-12)
    assert not np.allclose(one[3], other[3], rtol=0, atol=0.1)


def test_rotation_keeps_lengths_and_depends_on_distance_alone() -> None:
    size, count = 64, 9
    vectors = np.random.default_rng(0).standard_normal((2, 1, size))
    query, key = (reference._rotate(np.repeat(vector[None], count, axis=1), 1000.0)[0] for vector in vectors)
    assert np.allclose(np.linalg.norm(query, axis=1), np.linalg.norm(vectors[0]))
    assert np.allclose(query[0], vectors[0, 0])
    scores = query @ key.T
    assert np.allclose(scores[1:, 1:], scores[:-1, :-1])
    # The first pair of neighbours rotates by one radian per token, the last by base ** (-62 / 64).
    for pair, speed in ((slice(0, 2), 1.0), (slice(62, 64), 1000.0 ** (-62 / 64))):
        turned = complex(*query[1, pair]) / complex(*query[0, pair])
        assert cmath.phase(turned) == pytest.approx(speed)


def test_grouped_heads_equal_repeated_ones() -> None:
    weights = cached_weights(TensorType.F32)
    repeated = dict(weights)
    for layer in range(ARCHITECTURE.layers):
        for name in (f"blk.{layer}.attn_k", f"blk.{layer}.attn_v"):
            heads = weights[name].reshape(ARCHITECTURE.kv_heads, -1, model.WIDTH)
            repeated[name] = np.repeat(heads, 2, axis=0).reshape(-1, model.WIDTH)
    full = dataclasses.replace(ARCHITECTURE, kv_heads=ARCHITECTURE.heads)
    tokens = known_answer(TensorType.F32).prompt_tokens
    assert np.allclose(
        reference.hidden_states(repeated, full, tokens),
        reference.hidden_states(weights, ARCHITECTURE, tokens),
        rtol=0,
        atol=1e-12,
    )


def test_long_prompts_in_parts_give_what_they_give_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, tokens = cached_weights(TensorType.F32), known_answer(TensorType.F32).prompt_tokens
    at_once = reference.hidden_states(weights, ARCHITECTURE, tokens)
    monkeypatch.setattr(reference, "_ROWS", 5)
    in_parts = reference.hidden_states(weights, ARCHITECTURE, tokens)
    assert np.allclose(in_parts, at_once, rtol=0, atol=1e-12)


def test_experts_alike_are_one_network() -> None:
    """Whichever are chosen, and however their shares are, which add to 1."""
    weights, tokens = cached_weights(TensorType.MXFP4), [1, 2, 3]
    name = "blk.{}.ffn_{}"
    parts = [name.format(layer, part) for layer in range(2) for part in ("gate", "up", "down")]
    one = {part: weights[f"{part}_exps"][0] for part in parts}
    alike = {f"{part}_exps": np.stack([weight] * 4) for part, weight in one.items()}
    mixed = reference.hidden_states({**weights, **alike}, model.EXPERTS, tokens)
    assert np.allclose(mixed, reference.hidden_states({**weights, **one}, ARCHITECTURE, tokens), rtol=0, atol=1e-12)


def test_no_router_is_near_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding to 8 bits moves a lead by 0.015 on average."""
    leads = []
    mix = reference._experts

    def recorded(state: Array, block: Mapping[str, Array], architecture: Architecture) -> Array:
        router = np.sort(state @ block["ffn_gate_inp"].T, axis=-1)
        leads.append((router[:, -2] - router[:, -3]).min())
        return mix(state, block, architecture)

    monkeypatch.setattr(reference, "_experts", recorded)
    verdict = judge(known_answer(TensorType.MXFP4), cached_weights(TensorType.MXFP4))
    assert verdict.ok
    assert min(leads) > 1


def test_mamba_forgets_what_its_decay_says() -> None:
    """The sum over all earlier tokens that the recurrence stands for, each decayed by every step since."""
    weights = cached_weights(TensorType.BF16)
    block = {name.removeprefix("blk.0."): weight for name, weight in weights.items() if name.startswith("blk.0.")}
    state = np.random.default_rng(0).standard_normal((7, model.WIDTH))
    inner, size, heads = model.SSM_INNER, model.SSM_STATE, model.SSM_HEADS
    projected = state @ block["ssm_in"].T
    gate, step = projected[:, :inner], np.log1p(np.exp(projected[:, -heads:] + block["ssm_dt.bias"]))
    channels = np.zeros((7, inner + 2 * size))
    for token in range(7):
        for back in range(min(token + 1, model.SSM_KERNEL)):
            seen = projected[token - back, inner:-heads]
            channels[token] += seen * block["ssm_conv1d"][:, model.SSM_KERNEL - 1 - back]
    channels = reference._silu(channels + block["ssm_conv1d.bias"])
    mixed = np.zeros((7, heads, inner // heads))
    for token in range(7):
        for earlier in range(token + 1):
            decay = np.exp((step[earlier + 1 : token + 1] * block["ssm_a"][:, 0]).sum(axis=0))
            write, read = channels[earlier, inner : inner + size], channels[token, inner + size :]
            share = decay * step[earlier] * (write @ read)
            mixed[token] += share[:, None] * channels[earlier, :inner].reshape(heads, -1)
        mixed[token] += block["ssm_d"] * channels[token, :inner].reshape(heads, -1)
    normed = reference._norm(mixed.reshape(7, inner) * reference._silu(gate), block["ssm_norm"][0], ARCHITECTURE)
    assert np.allclose(normed @ block["ssm_out"].T, reference._mamba2(state, block, ARCHITECTURE), rtol=0, atol=1e-12)


def test_log_probabilities_are_those_of_a_distribution() -> None:
    rows = reference.next_log_probabilities(cached_weights(TensorType.F32), ARCHITECTURE, [1, 2, 3])
    assert np.allclose(np.exp(rows).sum(axis=1), 1)


# --- Damage. ---


def test_a_long_prompt_notices_32_keys_that_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = model.long_answer(TensorType.F16)
    assert len(answer.prompt_tokens) == model.LONG_TOKENS
    assert answer.text == model.LONG_PROMPTS[TensorType.F16][1] == answer.text.strip()
    assert answer.margin >= model.MARGIN
    rotate = reference._rotate

    def hiding(heads: Array, base: float) -> Array:
        rotated = rotate(heads, base)
        if len(heads) == ARCHITECTURE.kv_heads:
            rotated[:, 2048:2080] = 0
        return rotated

    monkeypatch.setattr(reference, "_rotate", hiding)
    tokens = [*answer.prompt_tokens, *(step.token for step in answer.steps[:-1])]
    rows = reference.next_log_probabilities(cached_weights(TensorType.F16), ARCHITECTURE, tokens)
    verdict = compare(answer, seen_of(map(model._step, rows[model.LONG_TOKENS - 1 :])))
    assert not verdict.ok, verdict.reason


HIGHEST_BIT = {
    gguf.GGMLQuantizationType.F32: (3, 0x40),
    gguf.GGMLQuantizationType.MXFP4: (0, 0x80),  # its scale is an exponent, without a sign
    gguf.GGMLQuantizationType.Q6_K: (209, 0x40),
}
"""The byte of a block and the bit in it, where they are not those of a number of 16 bits at the block's start."""


def flip_exponent_bit(tensor: Tensor, index: int) -> Tensor:
    """Flips the highest exponent bit of weight `index`, or of its block's scale."""
    weights_per_block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
    stored = tensor.stored.copy()
    place, bit = HIGHEST_BIT.get(tensor.type, (1, 0x40))
    stored.reshape(-1).view(np.uint8)[index // weights_per_block * block_bytes + place] ^= bit
    return Tensor(stored=stored, type=tensor.type)


def sample(expected: KnownAnswer, name: str, weights: Array) -> list[int]:
    """Returns the indices of weights to damage."""
    generator = np.random.default_rng(1)
    if name != "token_embd":
        return [int(index) for index in generator.integers(0, weights.size, SAMPLES)]
    row, columns = expected.prompt_tokens[-1], generator.integers(0, model.WIDTH, SAMPLES)
    return [int(row * model.WIDTH + column) for column in columns]


@ALL_TENSORS
def test_a_damaged_weight_of_any_tensor_changes_the_verdict(tensor_type: TensorType, name: str) -> None:
    expected, weights = known_answer(tensor_type), cached_weights(tensor_type)
    tensor = cached_tensors(tensor_type)[name]
    for index in sample(expected, name, weights[name]):
        with np.errstate(all="ignore"):
            damaged = model.dequantise({name: flip_exponent_bit(tensor, index)})
        verdict = judge(expected, {**weights, **damaged}, tolerance=1.35)
        assert not verdict.ok, f"weight {index}: {verdict.reason}"


@pytest.mark.parametrize("tensor_type", [TensorType.F32, TensorType.F16])
@pytest.mark.parametrize("name", cached_tensors(TensorType.F32))
def test_without_quantisation_one_wrong_sign_is_enough(tensor_type: TensorType, name: str) -> None:
    expected, weights = known_answer(tensor_type), cached_weights(tensor_type)
    damaged = weights[name].copy()
    # A row of the vocabulary that is certainly read: the prompt's last token, the answer's first one.
    row = {"token_embd": expected.prompt_tokens[-1], "output": expected.steps[0].token}.get(name)
    part = damaged.reshape(-1) if row is None else damaged[row]
    part[int(np.argmax(np.abs(part)))] *= -1
    verdict = judge(expected, {**weights, name: damaged})
    assert not verdict.ok, verdict.reason


@ALL_HEADS
def test_two_swapped_heads_change_the_verdict(tensor_type: TensorType, name: str) -> None:
    expected, weights = known_answer(tensor_type), cached_weights(tensor_type)
    heads = weights[name].reshape(-1, MODELS[tensor_type].architecture.head_size, model.WIDTH).copy()
    heads[[0, 1]] = heads[[1, 0]]
    verdict = judge(expected, {**weights, name: heads.reshape(weights[name].shape)})
    assert not verdict.ok, verdict.reason


@ALL_TYPES
@pytest.mark.parametrize("rope_base", [500.0, 2000.0, 10000.0])
def test_a_shifted_rope_base_changes_the_verdict(tensor_type: TensorType, rope_base: float) -> None:
    shifted = dataclasses.replace(MODELS[tensor_type].architecture, rope_base=rope_base)
    verdict = judge(known_answer(tensor_type), cached_weights(tensor_type), shifted)
    assert not verdict.ok, verdict.reason


@ALL_TYPES
@pytest.mark.parametrize("dropped", range(ARCHITECTURE.layers))
def test_a_dropped_layer_changes_the_verdict(tensor_type: TensorType, dropped: int) -> None:
    kept = {name: w for name, w in cached_weights(tensor_type).items() if not name.startswith(f"blk.{dropped}.")}
    renamed = {name.replace("blk.1.", "blk.0."): weight for name, weight in kept.items()}
    architecture = MODELS[tensor_type].architecture
    recurrent = frozenset(architecture.recurrent - {dropped})
    verdict = judge(
        known_answer(tensor_type), renamed, dataclasses.replace(architecture, layers=1, recurrent=recurrent)
    )
    assert not verdict.ok, verdict.reason


@pytest.mark.parametrize("layer", range(ARCHITECTURE.layers))
def test_two_swapped_experts_change_the_verdict(layer: int) -> None:
    expected, weights = known_answer(TensorType.MXFP4), cached_weights(TensorType.MXFP4)
    for part in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        name = f"blk.{layer}.{part}"
        verdict = judge(expected, {**weights, name: weights[name][[1, 0, 2, 3]]})
        assert not verdict.ok, verdict.reason


def test_the_second_expert_left_out_changes_the_verdict() -> None:
    architecture = dataclasses.replace(model.EXPERTS, experts_used=1)
    verdict = judge(known_answer(TensorType.MXFP4), cached_weights(TensorType.MXFP4), architecture)
    assert not verdict.ok, verdict.reason


def without_decay(block: dict[str, Array]) -> None:
    block["ssm_a"] = 0 * block["ssm_a"]


def backwards(block: dict[str, Array]) -> None:
    block["ssm_conv1d"] = block["ssm_conv1d"][:, ::-1]


def swapped(block: dict[str, Array]) -> None:
    block["ssm_d"] = block["ssm_d"][::-1]


@pytest.mark.parametrize("change", [without_decay, backwards, swapped])
def test_a_wrong_recurrence_changes_the_verdict(change: Callable[[dict[str, Array]], None]) -> None:
    weights = cached_weights(TensorType.BF16)
    block = {name.removeprefix("blk.0."): weight for name, weight in weights.items() if name.startswith("blk.0.")}
    change(block)
    damaged = {f"blk.0.{name}": weight for name, weight in block.items()}
    verdict = judge(known_answer(TensorType.BF16), {**weights, **damaged})
    assert not verdict.ok, verdict.reason


@ALL_TYPES
def test_the_undamaged_model_agrees_to_rounding(tensor_type: TensorType) -> None:
    verdict = judge(known_answer(tensor_type), cached_weights(tensor_type), tolerance=1e-6)
    assert verdict.ok, verdict.reason
    assert verdict.reason.startswith("All 16 tokens are right, log-probabilities within 0.0000 (")


@ALL_TYPES
def test_a_dropped_layer_or_another_rope_base_changes_the_embedding(tensor_type: TensorType) -> None:
    expected, weights = known_answer(tensor_type), cached_weights(tensor_type)
    for change in ({"layers": 1}, {"rope_base": 2000.0}):
        architecture = dataclasses.replace(MODELS[tensor_type].architecture, **change)
        seen = reference.mean_embedding(weights, architecture, expected.prompt_tokens)
        assert not compare_embedding(expected, seen.tolist()).ok


# --- The comparison. ---

EXPECTED = known_answer(TensorType.Q8_0)


def test_tokens_alone_can_be_compared() -> None:
    verdict = compare(EXPECTED, [SeenStep(text=step.text) for step in EXPECTED.steps])
    assert verdict == Verdict(ok=True, largest_difference=None, reason="All 16 tokens are right.")


def test_the_first_wrong_token_is_named_with_the_right_one() -> None:
    seen = seen_of(EXPECTED.steps)
    seen[4] = SeenStep(text="?", log_probability=-1.0)
    seen[6] = SeenStep(text="!")
    verdict = compare(EXPECTED, seen)
    right = EXPECTED.steps[4]
    assert not verdict.ok
    assert verdict.reason == (
        f"Step 5 is '?' (log-probability -1.0000) where {right.text!r} ({right.log_probability:.4f}) is right."
    )


@pytest.mark.parametrize("share", [0.5, 1.01])
def test_one_log_probability_may_be_far_off(share: float) -> None:
    seen = seen_of(EXPECTED.steps)
    allowed = EXPECTED.limits.largest
    off = share * allowed
    right = EXPECTED.steps[7]
    seen[7] = SeenStep(text=right.text, log_probability=right.log_probability + off)
    verdict = compare(EXPECTED, seen)
    assert verdict.largest_difference == pytest.approx(off)
    assert verdict.ok is (share < 1)
    if verdict.ok:
        assert verdict.reason == f"All 16 tokens are right, log-probabilities within {off:.4f} ({allowed:.4f} allowed)."
    else:
        assert verdict.reason == (
            f"Step 8 gives {right.text!r} the log-probability {right.log_probability + off:.4f} where "
            f"{right.log_probability:.4f} is right: {off:.4f} apart, and {allowed:.4f} is allowed."
        )


@pytest.mark.parametrize(("share", "ok"), [(0.99, True), (1.01, False)])
def test_all_log_probabilities_together_may_be_off_by_less(share: float, ok: bool) -> None:
    off = share * EXPECTED.limits.rms(model.STEPS)
    seen = [
        SeenStep(text=step.text, top=tuple((text, number + off * (-1) ** place) for place, (text, number) in top))
        for step in EXPECTED.steps
        for top in [list(enumerate(step.top))]
    ]
    verdict = compare(EXPECTED, seen)
    assert verdict.ok is ok
    if not ok:
        assert verdict.reason == (
            f"80 log-probabilities are {off:.4f} nats from the right ones (RMS), and {off / share:.4f} is allowed."
        )


def test_a_token_that_leads_by_little_may_be_another() -> None:
    number, step = min(enumerate(EXPECTED.steps), key=lambda entry: entry[1].top[0][1] - entry[1].top[1][1])
    lead = step.top[0][1] - step.top[1][1]
    seen = [*seen_of(EXPECTED.steps[:number]), SeenStep(text=step.top[1][0], top=step.top)]
    seen += [SeenStep(text="?")] * (model.STEPS - len(seen))
    for share, ok in ((1.01, True), (0.99, False)):
        noise = share * lead / tolerances.LEAD
        noisy = model.within(EXPECTED, dataclasses.replace(EXPECTED.limits, noise=noise))
        verdict = compare(noisy, seen)
        assert verdict.ok is ok, verdict.reason
        assert demanded(noisy) == (EXPECTED.text if not ok else EXPECTED.text[:number])
    assert not compare(noisy, [SeenStep(text="?")] * model.STEPS).ok


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_wrong(number: float) -> None:
    seen = seen_of(EXPECTED.steps)
    seen[2] = dataclasses.replace(seen[2], log_probability=number)
    verdict = compare(EXPECTED, seen)
    assert not verdict.ok
    assert verdict.largest_difference == math.inf


def test_a_wrong_or_missing_runner_up_is_wrong() -> None:
    right = EXPECTED.steps[3]
    for top in (
        tuple(
            (text, number - (EXPECTED.limits.largest + 0.01) * (place == 1))
            for place, (text, number) in enumerate(right.top)
        ),
        (right.top[0], ("?", right.top[1][1] - EXPECTED.limits.largest - 0.01)),
    ):
        seen = seen_of(EXPECTED.steps)
        seen[3] = dataclasses.replace(seen[3], top=top)
        verdict = compare(EXPECTED, seen)
        assert not verdict.ok
        assert verdict.reason.startswith(f"Step 4 gives {right.top[1][0]!r} the log-probability ")


def test_a_near_tie_at_the_end_of_the_top_may_fall_either_way() -> None:
    seen = seen_of(EXPECTED.steps)
    top = seen[3].top
    seen[3] = dataclasses.replace(seen[3], top=(*top[:-1], ("?", top[-1][1] + EXPECTED.limits.largest / 2)))
    assert compare(EXPECTED, seen).ok


@pytest.mark.parametrize("count", [0, 15, 17])
def test_an_answer_of_another_length_is_wrong(count: int) -> None:
    verdict = compare(EXPECTED, [*seen_of(EXPECTED.steps), SeenStep(text="?")][:count])
    assert not verdict.ok
    assert verdict.reason == f"The answer has {count} tokens where 16 are right."


def test_the_right_embedding_in_single_precision_is_right() -> None:
    seen = np.array(EXPECTED.embedding, dtype=np.float32).astype(float).tolist()
    verdict = compare_embedding(EXPECTED, seen)
    assert verdict.ok
    assert verdict.largest_difference is not None
    assert verdict.largest_difference < 1e-12


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ([2 * number for number in EXPECTED.embedding], "The embedding has length 2.0000 where 1 is right."),
        ([math.nan, *EXPECTED.embedding[1:]], "The embedding has length nan where 1 is right."),
        ([0.0] * model.WIDTH, "The embedding has length 0.0000 where 1 is right."),
        (EXPECTED.embedding[:-1], "The embedding has 255 numbers where 256 are right."),
        (
            [-number for number in EXPECTED.embedding],
            "The embedding's cosine distance from the right one is 2.00e+00, and 1.0e-04 is allowed.",
        ),
    ],
)
def test_a_wrong_embedding_is_named(seen: list[float], reason: str) -> None:
    verdict = compare_embedding(EXPECTED, seen)
    assert not verdict.ok
    assert verdict.reason == reason
