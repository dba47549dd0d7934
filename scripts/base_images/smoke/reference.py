"""The reference for llama-server: a plain numpy forward pass of the llama architecture in float64, from the formulas.

It shares no code with llama.cpp and has no cache and no optimisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The hyperparameters of the model.

    Attributes:
        kv_heads: number of key and value heads; `heads // kv_heads` query heads share one.
        rope_base: the longest wavelength of the rotary position embedding is about 2 pi times this, in tokens.
        epsilon: added to the mean square in RMSNorm.
    """

    layers: int
    heads: int
    kv_heads: int
    rope_base: float
    epsilon: float


def hidden_states(weights: Mapping[str, Array], architecture: Architecture, tokens: Sequence[int]) -> Array:
    """Returns the last normalised state at each of `tokens`, of shape (tokens, width).

    `weights` have GGUF's names without `.weight`; a matrix has one row per output, as in GGUF.
    """
    state = weights["token_embd"][list(tokens)]
    for layer in range(architecture.layers):
        block = {
            name.removeprefix(f"blk.{layer}."): weight
            for name, weight in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        state = state + _attention(_norm(state, block["attn_norm"], architecture), block, architecture)
        state = state + _feed_forward(_norm(state, block["ffn_norm"], architecture), block)
    return _norm(state, weights["output_norm"], architecture)


def next_log_probabilities(weights: Mapping[str, Array], architecture: Architecture, tokens: Sequence[int]) -> Array:
    """Returns the natural log-probabilities of the next token after each of `tokens`: (tokens, vocabulary)."""
    logits = hidden_states(weights, architecture, tokens) @ weights["output"].T
    logits = logits - logits.max(axis=-1, keepdims=True)
    result: Array = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def mean_embedding(weights: Mapping[str, Array], architecture: Architecture, tokens: Sequence[int]) -> Array:
    """Returns the mean of the states at `tokens`, scaled to length 1: llama-server's "mean" pooling."""
    mean: Array = hidden_states(weights, architecture, tokens).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _norm(state: Array, weight: Array, architecture: Architecture) -> Array:
    """RMSNorm: each row divided by the root of its mean square, then scaled by `weight`."""
    mean_square = (state * state).mean(axis=-1, keepdims=True)
    result: Array = state / np.sqrt(mean_square + architecture.epsilon) * weight
    return result


def _attention(state: Array, block: Mapping[str, Array], architecture: Architecture) -> Array:
    """Causal self-attention; each group of query heads shares one head of keys and values."""
    group = architecture.heads // architecture.kv_heads
    query = _rotate(_split(state @ block["attn_q"].T, architecture.heads), architecture.rope_base)
    key = _rotate(_split(state @ block["attn_k"].T, architecture.kv_heads), architecture.rope_base)
    value = _split(state @ block["attn_v"].T, architecture.kv_heads)
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)

    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    scores[:, np.triu(np.ones(scores.shape[1:], dtype=bool), k=1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = (shares @ value).swapaxes(0, 1).reshape(len(state), -1)
    result: Array = mixed @ block["attn_output"].T
    return result


def _split(state: Array, heads: int) -> Array:
    """Reshapes (tokens, width) to (heads, tokens, size of a head)."""
    return state.reshape(len(state), heads, -1).swapaxes(0, 1)


def _rotate(heads: Array, base: float) -> Array:
    """Rotary position embedding of (heads, tokens, size).

    In GGUF's llama weights the rotated pairs are neighbours: (0, 1), (2, 3), and so on; the angle of pair i is
    position * base ** (-2 i / size).
    """
    size = heads.shape[-1]
    angle = np.arange(heads.shape[1])[:, None] * base ** (-np.arange(0, size, 2) / size)
    even, odd = heads[..., 0::2], heads[..., 1::2]
    rotated = np.empty_like(heads)
    rotated[..., 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    rotated[..., 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return rotated


def _feed_forward(state: Array, block: Mapping[str, Array]) -> Array:
    """SwiGLU: the gate's SiLU times the up projection, then the down projection."""
    gate = state @ block["ffn_gate"].T
    with np.errstate(over="ignore"):  # for a very negative gate, whose SiLU is 0
        silu = gate / (1 + np.exp(-gate))
    result: Array = (silu * (state @ block["ffn_up"].T)) @ block["ffn_down"].T
    return result
