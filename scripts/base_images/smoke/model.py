"""The known-answer model: a small random llama model whose right answer is computed without llama.cpp.

A check that accepts any text accepts garbage from a broken kernel. Here the weights come from a fixed random stream and
are written as GGUF, and `reference` computes the answer. A random model's answer to a random prompt may be a near tie,
so the prompt is searched for: the first seed for which the best token leads by 0.4 nats or more at each of 16 greedy
steps, far more than rounding changes.

Facts about llama-server in this file are from b11312.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import gguf
import numpy as np
from numpy.typing import NDArray

from base_images.adapters import ownership
from base_images.smoke import reference, tolerances
from base_images.smoke.reference import Architecture, Array
from base_images.smoke.tolerances import Limits

STEPS = 16
"""Tokens of the answer, to be requested as `n_predict` or `max_tokens`."""

TOP = 5
"""Most probable tokens per step, to be requested as `n_probs`, `logprobs` or `top_logprobs`."""

MARGIN = 0.4
"""Nats by which the best token must lead the second at every step."""

PROMPT_TOKENS = 32
"""Enough for the kernels that multiply many columns at once; generation uses those for a single column."""

WIDTH = 256  # the block of a K-quant is 256 weights of one row
FEED_FORWARD = 512
CONTEXT = 4096
END = "<end>"
TOKENS = (*map(chr, range(0x20, 0x7F)), END)
"""The vocabulary: printable ASCII and an end token. llama-server would merge the log-probabilities of tokens that are
not whole UTF-8 characters."""

_SHOWN = (*TOKENS[:-1], "")
"""The tokens in llama-server's answers: a control token is empty."""

ARCHITECTURE = Architecture(layers=2, heads=4, kv_heads=2, rope_base=1000.0, epsilon=1e-5)
"""The rope base differs from llama.cpp's default of 10000, so that ignoring the file's value changes the answer."""

KV_WIDTH = WIDTH // ARCHITECTURE.heads * ARCHITECTURE.kv_heads


class TensorType(StrEnum):
    """The type of the matrices, by gguf's name; the norms' vectors are always F32."""

    F32 = "F32"
    F16 = "F16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_K = "Q4_K"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Values for one tensor type that were searched for or measured once.

    Attributes:
        weights_seed: of the weights' stream; arbitrary, but with 0 the search for Q4_K takes long.
        seed: of the prompt, the first that `search_seed` accepts with these weights.
    """

    weights_seed: int
    seed: int


CALIBRATIONS: Mapping[TensorType, Calibration] = MappingProxyType(
    {
        TensorType.F32: Calibration(weights_seed=0, seed=38),
        TensorType.F16: Calibration(weights_seed=0, seed=38),
        TensorType.Q8_0: Calibration(weights_seed=0, seed=32),
        TensorType.Q4_0: Calibration(weights_seed=0, seed=24),
        TensorType.Q4_K: Calibration(weights_seed=1, seed=1),
    }
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of the right answer.

    Attributes:
        log_probability: of `text`, natural logarithm.
        top: the TOP most probable tokens with their log-probabilities, the best (`text`) first.
    """

    token: int
    text: str
    log_probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class KnownAnswer:
    """A model and its right answer.

    Attributes:
        gguf: the model's file.
        prompt: plain text; as the only user message of a chat it gives the same tokens.
        text: the greedy answer of STEPS tokens, with no space at either end and no end token.
        embedding: the right answer of `/v1/embeddings` to `prompt`: the mean over its tokens, of length 1.
        margin: smallest lead of the best token over the second, in nats.
        limits: how far a right server's answer may be off.
    """

    tensor_type: TensorType
    gguf: bytes
    prompt: str
    prompt_tokens: tuple[int, ...]
    text: str
    steps: tuple[Step, ...]
    embedding: tuple[float, ...]
    margin: float
    limits: Limits


@dataclass(frozen=True, kw_only=True)
class FoundSeed:
    """The result of a search: the seed, the smallest lead of its answer in nats, and the seed in CALIBRATIONS."""

    tensor_type: TensorType
    seed: int
    margin: float
    committed: int


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as GGUF stores it: numbers of its type, or rows of bytes with quantised blocks."""

    stored: NDArray[np.generic]
    type: gguf.GGMLQuantizationType


@functools.cache
def known_answer(tensor_type: TensorType) -> KnownAnswer:
    """Returns the model and its right answer, the same bytes in every process; takes a fraction of a second."""
    calibration = CALIBRATIONS[tensor_type]
    tensors = draw_tensors(tensor_type)
    weights = dequantise(tensors)
    prompt = prompt_of(calibration.seed)
    prompt_tokens = tokens_of(prompt)
    steps = tuple(map(_step, itertools.islice(greedy(weights, prompt_tokens), STEPS)))
    return KnownAnswer(
        tensor_type=tensor_type,
        gguf=to_gguf(tensors),
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        text="".join(step.text for step in steps),
        steps=steps,
        embedding=tuple(reference.mean_embedding(weights, ARCHITECTURE, prompt_tokens).tolist()),
        margin=min(_lead(step) for step in steps),
        limits=tolerances.of(tensor_type),
    )


def within(answer: KnownAnswer, limits: Limits) -> KnownAnswer:
    """Returns the answer with other limits, such as `tolerances.of` has for an accelerator."""
    return dataclasses.replace(answer, limits=limits)


def search_seed(tensor_type: TensorType) -> FoundSeed:
    """Returns the first seed, from 0, whose prompt has an answer as `KnownAnswer` describes it."""
    weights = dequantise(draw_tensors(tensor_type))
    for seed in itertools.count():
        steps: list[Step] = []
        for row in itertools.islice(greedy(weights, tokens_of(prompt_of(seed))), STEPS):
            steps.append(_step(row))
            if _lead(steps[-1]) < MARGIN or TOKENS[steps[-1].token] == END:
                break
        else:
            text = "".join(step.text for step in steps)
            if text == text.strip():
                margin = min(_lead(step) for step in steps)
                return FoundSeed(
                    tensor_type=tensor_type, seed=seed, margin=margin, committed=CALIBRATIONS[tensor_type].seed
                )
    raise AssertionError  # unreachable: the count does not end


def prompt_of(seed: int) -> str:
    """Returns PROMPT_TOKENS different letters and digits in the order that `seed` gives."""
    letters = string.ascii_letters + string.digits
    order = np.argsort(_generator(seed).random(len(letters)))[:PROMPT_TOKENS]
    return "".join(letters[index] for index in order)


def tokens_of(text: str) -> tuple[int, ...]:
    """Returns the tokens of printable ASCII text, one per character."""
    return tuple(map(TOKENS.index, text))


def greedy(
    weights: Mapping[str, Array], prompt_tokens: Sequence[int], architecture: Architecture = ARCHITECTURE
) -> Iterator[Array]:
    """Yields all tokens' log-probabilities at each next step, without end, always adding the most probable token."""
    tokens = list(prompt_tokens)
    while True:
        row = reference.next_log_probabilities(weights, architecture, tokens)[-1]
        yield row
        tokens.append(int(row.argmax()))


def _step(row: Array) -> Step:
    order = np.argsort(-row)[:TOP].tolist()
    return Step(
        token=order[0],
        text=_SHOWN[order[0]],
        log_probability=float(row[order[0]]),
        top=tuple((_SHOWN[token], float(row[token])) for token in order),
    )


def _lead(step: Step) -> float:
    return step.top[0][1] - step.top[1][1]


# --- The weights. Only additions, products and square roots are used, which every machine rounds alike. ---


def draw_tensors(tensor_type: TensorType) -> dict[str, Tensor]:
    """Returns the model's tensors by their names in the file, without `.weight`.

    With these deviations the state keeps a deviation of about 3 (the embedding's), the logits get one of about 4 and
    the attention scores one of about 2, so that every part affects the answer.
    """
    generator = _generator(CALIBRATIONS[tensor_type].weights_seed)
    tensors: dict[str, Tensor] = {}

    def norm(name: str) -> None:
        values = (0.75 + 0.5 * generator.random(WIDTH)).astype(np.float32)
        tensors[name] = Tensor(stored=values, type=gguf.GGMLQuantizationType.F32)

    def matrix(name: str, rows: int, columns: int, deviation: float) -> None:
        tensors[name] = _draw_matrix(generator, tensor_type, rows, columns, deviation)

    matrix("token_embd", len(TOKENS), WIDTH, 3.0)
    for layer in range(ARCHITECTURE.layers):
        norm(f"blk.{layer}.attn_norm")
        matrix(f"blk.{layer}.attn_q", WIDTH, WIDTH, 0.1)
        matrix(f"blk.{layer}.attn_k", KV_WIDTH, WIDTH, 0.1)
        matrix(f"blk.{layer}.attn_v", KV_WIDTH, WIDTH, 0.1)
        matrix(f"blk.{layer}.attn_output", WIDTH, WIDTH, 0.0625)
        norm(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH, 0.0625)
        matrix(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH, 0.0625)
        matrix(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD, 0.0625)
    norm("output_norm")
    matrix("output", len(TOKENS), WIDTH, 0.25)
    return tensors


def dequantise(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Returns the values of the stored tensors."""
    return {
        name: gguf.quants.dequantize(tensor.stored, tensor.type).astype(np.float64) for name, tensor in tensors.items()
    }


def _draw_matrix(
    generator: np.random.Generator, tensor_type: TensorType, rows: int, columns: int, deviation: float
) -> Tensor:
    stored_type = gguf.GGMLQuantizationType[tensor_type]
    if tensor_type is TensorType.Q4_K:
        return Tensor(stored=_draw_q4_k(generator, rows, columns, deviation), type=stored_type)
    values = _bell(generator, (rows, columns)) * (deviation / _BELL_DEVIATION)
    return Tensor(stored=gguf.quants.quantize(values.astype(np.float32), stored_type), type=stored_type)


_BELL_DEVIATION = math.sqrt(1 / 7)


def _bell(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Returns numbers from -1 to 1, most of them small: cubes of uniform ones, of deviation sqrt(1/7)."""
    uniform = 2 * generator.random(shape) - 1
    return uniform * uniform * uniform


def _draw_q4_k(generator: np.random.Generator, rows: int, columns: int, deviation: float) -> NDArray[np.uint8]:
    """Returns rows of valid Q4_K blocks; the gguf package can dequantise them but not quantise.

    A block is 256 weights, d * scale * nibble - dmin * minimum, with a scale and a minimum of 6 bits per 32 weights
    (block_q4_K in ggml-common.h; their packing into 12 bytes: get_scale_min_k4 in ggml-quants.c).
    """
    blocks = rows * columns // 256
    scales = (32 + 32 * generator.random((blocks, 8))).astype(np.uint8)
    # The middle of a nibble is 7.5, so with dmin = 7.5 d a minimum equal to the scale centres the weights on 0.
    minima = np.minimum(63, scales + (8 * generator.random((blocks, 8))).astype(np.uint8) - 4).astype(np.uint8)
    nibbles = np.rint(7.5 + 7.5 * _bell(generator, (blocks, 4, 2, 32))).astype(np.uint8)
    d = deviation / (7.5 * _BELL_DEVIATION * 47.5)  # 47.5 is the mean scale
    return np.concatenate(
        [
            np.full((blocks, 1), d, dtype=np.float16).view(np.uint8),
            np.full((blocks, 1), 7.5 * d, dtype=np.float16).view(np.uint8),
            scales[:, :4] | (scales[:, 4:] >> 4) << 6,
            minima[:, :4] | (minima[:, 4:] >> 4) << 6,
            (scales[:, 4:] & 0x0F) | (minima[:, 4:] & 0x0F) << 4,
            (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(blocks, 128),
        ],
        axis=1,
    ).reshape(rows, -1)


def _generator(seed: int) -> np.random.Generator:
    """Returns the random stream of a seed; only `random()` is used, which is the same in every version of numpy."""
    return np.random.Generator(np.random.PCG64(seed))


# --- The file. ---


def to_gguf(tensors: Mapping[str, Tensor]) -> bytes:
    """Returns the model's file."""
    with ownership.temporary_directory() as directory:
        path = directory / "model.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        _describe(writer)
        for name, tensor in tensors.items():
            writer.add_tensor(f"{name}.weight", tensor.stored, raw_dtype=tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("known-answer")
    writer.add_context_length(CONTEXT)
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(ARCHITECTURE.layers)
    writer.add_head_count(ARCHITECTURE.heads)
    writer.add_head_count_kv(ARCHITECTURE.kv_heads)
    writer.add_rope_dimension_count(WIDTH // ARCHITECTURE.heads)
    writer.add_rope_freq_base(ARCHITECTURE.rope_base)
    writer.add_layer_norm_rms_eps(ARCHITECTURE.epsilon)
    writer.add_pooling_type(gguf.PoolingType.MEAN)

    end = TOKENS.index(END)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token.replace(" ", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}") for token in TOKENS])
    writer.add_token_types([gguf.TokenType.CONTROL if token == END else gguf.TokenType.NORMAL for token in TOKENS])
    writer.add_token_merges([f"{END[0]} {END[1:]}"])  # may not be empty; the second half of this one never occurs
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
