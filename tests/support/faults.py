"""Faults that a wrong kernel or a damaged file would cause, planted in a known-answer model."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Callable, Mapping
from functools import partial

import gguf
import numpy as np

from base_images.smoke import model, precision, reference
from base_images.smoke.model import ARCHITECTURE, TensorType
from base_images.smoke.weights import Tensor

BLOCK = 32
"""Weights that are damaged, or as many as the type has in one block."""

SCALES: Mapping[TensorType, tuple[str, int, int]] = {
    TensorType.F32: ("<f4", 1, 0),
    TensorType.F16: ("<f2", 1, 0),
    TensorType.Q8_0: ("<f2", 1, 0),
    TensorType.Q4_0: ("<f2", 1, 0),
    TensorType.Q4_K: ("<f2", 2, 0),  # d and dmin
    TensorType.Q5_K: ("<f2", 2, 0),
    TensorType.Q6_K: ("<f2", 1, 208),
    TensorType.IQ4_XS: ("<f2", 1, 0),
}
"""The numbers of each block, or weight, that all of its weights are multiplied by: type, count and place."""

ROPE_BASE = 1.05 * ARCHITECTURE.rope_base

Tensors = dict[str, Tensor]


def matrix_too_large(tensors: Tensors, name: str = "") -> None:
    """Makes every weight of one matrix 5 % too large; of MXFP4, whose scales are powers of two, what it multiplies."""
    name = name or _values(tensors)
    if tensors[name].type == gguf.GGMLQuantizationType.MXFP4:
        name = f"{name.rpartition('.')[0]}.attn_norm"
    tensor = tensors[name]
    if tensor.type == gguf.GGMLQuantizationType.BF16:
        values = np.float32(1.05) * gguf.quants.dequantize(tensor.stored, tensor.type)
        tensors[name] = dataclasses.replace(tensor, stored=gguf.quants.quantize(values, tensor.type))
        return
    stored = tensor.stored.copy()
    blocks = stored.view(np.uint8).reshape(-1, gguf.GGML_QUANT_SIZES[tensor.type][1])
    number, count, place = SCALES[TensorType(tensor.type.name)]
    part = slice(place, place + np.dtype(number).itemsize * count)
    scales = blocks[:, part].copy().view(number)
    blocks[:, part] = (scales * np.float32(1.05)).astype(number).view(np.uint8)
    tensors[name] = dataclasses.replace(tensor, stored=stored)


def heads_swapped(tensors: Tensors, name: str = "blk.1.attn_q") -> None:
    """Swaps the first two heads."""
    stored = tensors[name].stored.copy()
    size = len(stored) // ARCHITECTURE.heads
    stored[: 2 * size] = np.roll(stored[: 2 * size], size, axis=0)
    tensors[name] = dataclasses.replace(tensors[name], stored=stored)


def block_damaged(tensors: Tensors, name: str = "") -> None:
    """Gives a block of one row the weights of another row's; of several experts, of the first one's."""
    name = name or _values(tensors)
    name = name if name in tensors else f"{name}_exps"
    weights, size = gguf.GGML_QUANT_SIZES[tensors[name].type]
    stored = tensors[name].stored.copy()
    width = max(1, BLOCK // weights) * size // stored.itemsize
    rows = stored.reshape(-1, stored.shape[-1])
    rows[7, :width] = rows[8, :width]
    tensors[name] = dataclasses.replace(tensors[name], stored=stored)


def _values(tensors: Tensors) -> str:
    """Returns the name of the first attention's matrix for the values."""
    return next(name for name in tensors if name.endswith(".attn_v"))


def rope_shifted(gguf_file: bytes) -> bytes:
    """Makes the rope base 5 % larger."""
    key = b".rope.freq_base" + struct.pack("<I", gguf.GGUFValueType.FLOAT32)
    before, after = (key + struct.pack("<f", base) for base in (ARCHITECTURE.rope_base, ROPE_BASE))
    assert gguf_file.count(before) == 1
    return gguf_file.replace(before, after)


IN_WEIGHTS: Mapping[str, Callable[[Tensors], None]] = {
    "a matrix 5 % too large (blk.0.attn_v)": matrix_too_large,
    "the same of the matrix that matters least (blk.1.attn_q)": partial(matrix_too_large, name="blk.1.attn_q"),
    "two heads swapped (blk.1.attn_q)": heads_swapped,
    "a block of one row damaged (blk.0.attn_v)": block_damaged,
    "the same where it matters least (blk.1.ffn_up)": partial(block_damaged, name="blk.1.ffn_up"),
}

SHIFTED = "rope base 5 % too large"

FAULTS = (*IN_WEIGHTS, SHIFTED)

SMALL = frozenset(fault for fault in FAULTS if "matters least" in fault)
"""They are found with some types only."""


def planted(fault: str, tensor_type: TensorType) -> bytes:
    """Returns the model's file with a fault."""
    tensors, architecture = model.draw_tensors(tensor_type), model.MODELS[tensor_type].architecture
    if fault == SHIFTED:
        return rope_shifted(model.to_gguf(tensors, architecture))
    IN_WEIGHTS[fault](tensors)
    return model.to_gguf(tensors, architecture)


@functools.cache
def effect(fault: str, tensor_type: TensorType) -> float:
    """Returns the RMS, in nats, of what a fault alone does to the logits, over a few prompts of the reference."""
    tensors, architecture = model.draw_tensors(tensor_type), model.MODELS[tensor_type].architecture
    right = _logits(tensor_type)
    if fault == SHIFTED:
        architecture = dataclasses.replace(architecture, rope_base=ROPE_BASE)
    else:
        IN_WEIGHTS[fault](tensors)
    difference = _rows(model.dequantise(tensors), architecture) - right
    return float(np.sqrt((difference * difference).mean()))


@functools.cache
def _logits(tensor_type: TensorType) -> reference.Array:
    return _rows(model.dequantise(model.draw_tensors(tensor_type)), model.MODELS[tensor_type].architecture)


def _rows(weights: Mapping[str, reference.Array], architecture: reference.Architecture) -> reference.Array:
    rows = []
    for seed in range(precision.FIRST_SEED, precision.FIRST_SEED + 8):
        tokens = model.tokens_of(model.prompt_of(seed) + model.prompt_of(seed + 8)[: model.STEPS])
        rows.append(reference.next_log_probabilities(weights, architecture, tokens)[-model.STEPS :])
    logits = np.array(rows)
    centred: reference.Array = logits - logits.mean(axis=-1, keepdims=True)
    return centred
