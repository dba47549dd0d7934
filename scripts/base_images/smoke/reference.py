"""The reference for llama-server: a plain numpy forward pass in float64, from the formulas.

It knows the layers of the known-answer models: attention or Mamba-2, then one feed-forward network or a mixture of
experts. It shares no code with llama.cpp and has no cache and no optimisation.
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
        head_size: numbers of a head.
        rope_base: the longest wavelength of the rotary position embedding is about 2 pi times this, in tokens.
        epsilon: added to the mean square in RMSNorm.
        recurrent: the layers with Mamba-2 instead of attention.
        experts: number of feed-forward networks per layer of which the router chooses; 0 without a router.
        experts_used: how many it chooses for a token.
    """

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_base: float
    epsilon: float
    recurrent: frozenset[int] = frozenset()
    experts: int = 0
    experts_used: int = 0


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
        mix = _mamba2 if layer in architecture.recurrent else _attention
        state = state + mix(_norm(state, block["attn_norm"], architecture), block, architecture)
        feed_forward = _experts if architecture.experts else _feed_forward
        state = state + feed_forward(_norm(state, block["ffn_norm"], architecture), block, architecture)
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


_ROWS = 256
"""Queries at once: the scores of all queries of a long prompt would take gigabytes."""


def _attention(state: Array, block: Mapping[str, Array], architecture: Architecture) -> Array:
    """Causal self-attention; each group of query heads shares one head of keys and values."""
    group = architecture.heads // architecture.kv_heads
    query = _rotate(_split(state @ block["attn_q"].T, architecture.heads), architecture.rope_base)
    key = _rotate(_split(state @ block["attn_k"].T, architecture.kv_heads), architecture.rope_base)
    value = _split(state @ block["attn_v"].T, architecture.kv_heads)
    key, value = np.repeat(key, group, axis=0), np.repeat(value, group, axis=0)

    mixed = np.empty_like(query)
    position = np.arange(len(state))
    for first in range(0, len(state), _ROWS):
        rows, until = slice(first, first + _ROWS), first + _ROWS
        scores = query[:, rows] @ key[:, :until].swapaxes(1, 2) / np.sqrt(query.shape[-1])
        scores[:, position[rows, None] < position[:until]] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed[:, rows] = shares @ value[:, :until]
    mixed = mixed.swapaxes(0, 1).reshape(len(state), -1)
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


def _mamba2(state: Array, block: Mapping[str, Array], architecture: Architecture) -> Array:
    """Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) with one group: a state per head that decays from token to token.

    One product gives, per token, a gate, the input, the vectors that write to and read from the states, and the step.
    Input and vectors first pass a causal convolution over the last few tokens, each channel by itself.
    """
    step_bias = block["ssm_dt.bias"]
    inner, heads = block["ssm_out"].shape[1], len(step_bias)
    gate, channels, step = np.split(state @ block["ssm_in"].T, [inner, -heads], axis=-1)

    kernel = block["ssm_conv1d"]
    padded = np.pad(channels, ((kernel.shape[1] - 1, 0), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1], axis=0)
    channels = _silu((windows * kernel).sum(axis=-1) + block["ssm_conv1d.bias"])
    size = (channels.shape[1] - inner) // 2
    inputs, write, read = np.split(channels, [inner, inner + size], axis=-1)
    inputs = inputs.reshape(len(state), heads, -1)

    step = np.logaddexp(0, step + step_bias)  # softplus
    kept = np.exp(step * block["ssm_a"].reshape(-1))
    states = np.zeros((heads, inputs.shape[2], size))
    mixed = block["ssm_d"].reshape(-1, 1) * inputs
    for token in range(len(state)):
        new = (step[token, :, None] * inputs[token])[:, :, None] * write[token]
        states = kept[token, :, None, None] * states + new
        mixed[token] += states @ read[token]
    gated = mixed.reshape(len(state), inner) * _silu(gate)
    result: Array = _norm(gated, block["ssm_norm"].reshape(-1), architecture) @ block["ssm_out"].T
    return result


def _feed_forward(state: Array, block: Mapping[str, Array], _: Architecture) -> Array:
    return _swiglu(state, block["ffn_gate"], block["ffn_up"], block["ffn_down"])


def _experts(state: Array, block: Mapping[str, Array], architecture: Architecture) -> Array:
    """Mixture of experts: the router chooses some of the networks per token, and their softmax is their shares."""
    router = state @ block["ffn_gate_inp"].T
    last = np.sort(router, axis=-1)[:, -architecture.experts_used, None]
    shares = np.where(router >= last, np.exp(router - router.max(axis=-1, keepdims=True)), 0)
    shares /= shares.sum(axis=-1, keepdims=True)
    networks = zip(shares.T, block["ffn_gate_exps"], block["ffn_up_exps"], block["ffn_down_exps"], strict=True)
    result: Array = sum(share[:, None] * _swiglu(state, *network) for share, *network in networks)
    return result


def _swiglu(state: Array, gate: Array, up: Array, down: Array) -> Array:
    """The gate's SiLU times the up projection, then the down projection."""
    result: Array = (_silu(state @ gate.T) * (state @ up.T)) @ down.T
    return result


def _silu(values: Array) -> Array:
    with np.errstate(over="ignore"):  # for a very negative value, whose SiLU is 0
        result: Array = values / (1 + np.exp(-values))
    return result
