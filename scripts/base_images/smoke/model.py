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
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import gguf
import numpy as np

from base_images.adapters import ownership
from base_images.smoke import reference, tolerances
from base_images.smoke.reference import Architecture, Array
from base_images.smoke.tolerances import Limits
from base_images.smoke.weights import Tensor, draw_matrix, generator_of

STEPS = 16
"""Tokens of the answer, to be requested as `n_predict` or `max_tokens`."""

TOP = 5
"""Most probable tokens per step, to be requested as `n_probs`, `logprobs` or `top_logprobs`."""

MARGIN = 0.4
"""Nats by which the best token must lead the second at every step."""

PROMPT_TOKENS = 32
"""Enough for the kernels that multiply many columns at once; generation uses those for a single column."""

LONG_TOKENS = 4500
"""More than the 4,096 at which other counters end, and than eight times the 512 that llama-server takes at once."""

WIDTH = 256  # the block of a K-quant is 256 weights of one row
FEED_FORWARD = 512
CONTEXT = 8192
"""More than a long prompt needs."""
END = "<end>"
TOKENS = (*map(chr, range(0x20, 0x7F)), END)
"""The vocabulary: printable ASCII and an end token. llama-server would merge the log-probabilities of tokens that are
not whole UTF-8 characters."""

_SHOWN = (*TOKENS[:-1], "")
"""The tokens in llama-server's answers: a control token is empty."""

ARCHITECTURE = Architecture(layers=2, heads=4, kv_heads=2, head_size=64, rope_base=1000.0, epsilon=1e-5)
"""The rope base differs from llama.cpp's default of 10000, so that ignoring the file's value changes the answer."""

LARGE_HEADS = dataclasses.replace(ARCHITECTURE, head_size=128)
"""Attention has kernels of its own for each size of a head: 64 and 128 are those of most models."""

EXPERTS = dataclasses.replace(ARCHITECTURE, experts=4, experts_used=2)
"""A mixture of experts."""

SSM_INNER = 2 * WIDTH  # llama.cpp takes no other in granitehybrid
SSM_HEADS = 8
SSM_STATE = 128  # the CUDA and Vulkan kernels of b10454 know 128 and 256
SSM_KERNEL = 4

RECURRENT = dataclasses.replace(ARCHITECTURE, recurrent=frozenset({0}))
"""The first layer is Mamba-2, the second attention."""


class TensorType(StrEnum):
    """The type of the matrices, by gguf's name; the norms' vectors are always F32."""

    F32 = "F32"
    F16 = "F16"
    Q8_0 = "Q8_0"
    Q4_0 = "Q4_0"
    Q4_K = "Q4_K"
    Q5_K = "Q5_K"
    Q6_K = "Q6_K"
    IQ4_XS = "IQ4_XS"
    MXFP4 = "MXFP4"
    BF16 = "BF16"


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model of a tensor type.

    Attributes:
        seed: of the prompt, the first that `search_seed` accepts with these weights.
        weights_seed: of the weights' stream; arbitrary, but with 0 the search for Q4_K takes long.
        margin: like MARGIN; more where noise may turn that over, see `Limits.lead`.
    """

    architecture: Architecture = ARCHITECTURE
    seed: int
    weights_seed: int = 0
    margin: float = MARGIN


MODELS: Mapping[TensorType, Model] = MappingProxyType(
    {
        TensorType.F32: Model(seed=38),
        TensorType.F16: Model(seed=38),
        TensorType.Q8_0: Model(seed=32),
        TensorType.Q4_0: Model(seed=24),
        TensorType.Q4_K: Model(seed=1, weights_seed=1),
        TensorType.Q5_K: Model(architecture=LARGE_HEADS, seed=30),
        TensorType.Q6_K: Model(architecture=LARGE_HEADS, seed=72, margin=0.5),
        TensorType.IQ4_XS: Model(architecture=LARGE_HEADS, seed=28, margin=0.55),
        TensorType.MXFP4: Model(architecture=EXPERTS, seed=6),  # most models in MXFP4 are like that, such as gpt-oss
        TensorType.BF16: Model(architecture=RECURRENT, seed=69),
    }
)
"""One model per type: they share out the kinds of layers and the sizes of heads, which every type need not repeat."""


LONG_PROMPTS: Mapping[TensorType, tuple[int, str]] = MappingProxyType({TensorType.F16: (7, "Y+3mVY+3mVY+3mVY")})
"""By type, the first seed of a prompt of LONG_TOKENS whose answer leads like the others, and that answer: finding it
takes the reference STEPS passes of seconds, and verifying it one. F16 has the least noise of the types that people run:
32 tokens missing in the middle of the prompt move the answer by 0.4 nats."""


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
    """The result of a search.

    Attributes:
        name: of the model, and whether its prompt is long.
        found: the seed; for a long prompt the answer too.
        committed: the same in this file.
        margin: the smallest lead of the answer, in nats.
    """

    name: str
    found: tuple[int, str] | int
    committed: tuple[int, str] | int
    margin: float


@functools.cache
def known_answer(tensor_type: TensorType) -> KnownAnswer:
    """Returns the model and its right answer, the same bytes in every process; takes a fraction of a second."""
    architecture = MODELS[tensor_type].architecture
    tensors = draw_tensors(tensor_type)
    weights = dequantise(tensors)
    prompt = prompt_of(MODELS[tensor_type].seed)
    prompt_tokens = tokens_of(prompt)
    steps = tuple(map(_step, itertools.islice(greedy(weights, prompt_tokens, architecture), STEPS)))
    return KnownAnswer(
        tensor_type=tensor_type,
        gguf=to_gguf(tensors, architecture),
        prompt=prompt,
        prompt_tokens=prompt_tokens,
        text="".join(step.text for step in steps),
        steps=steps,
        embedding=tuple(reference.mean_embedding(weights, architecture, prompt_tokens).tolist()),
        margin=min(_lead(step) for step in steps),
        limits=tolerances.of(tensor_type),
    )


@functools.cache
def long_answer(tensor_type: TensorType) -> KnownAnswer:
    """Returns the right answer to a prompt of LONG_TOKENS, without its embedding; takes seconds and 300 MB of memory.

    Raises:
        KeyError: the model has no such prompt.
    """
    seed, text = LONG_PROMPTS[tensor_type]
    prompt = long_prompt_of(seed)
    tokens = tokens_of(prompt + text[:-1])
    weights = dequantise(draw_tensors(tensor_type))
    rows = reference.next_log_probabilities(weights, MODELS[tensor_type].architecture, tokens)[LONG_TOKENS - 1 :]
    steps = tuple(map(_step, rows))
    return dataclasses.replace(
        known_answer(tensor_type),
        prompt=prompt,
        prompt_tokens=tokens[:LONG_TOKENS],
        text="".join(step.text for step in steps),
        steps=steps,
        embedding=(),
        margin=min(map(_lead, steps)),
    )


def within(answer: KnownAnswer, limits: Limits) -> KnownAnswer:
    """Returns the answer with other limits, such as `tolerances.of` has for an accelerator."""
    return dataclasses.replace(answer, limits=limits)


def search_seed(tensor_type: TensorType) -> FoundSeed:
    """Returns the first seed, from 0, whose prompt has an answer as `KnownAnswer` describes it."""
    seed, _, margin = _search(tensor_type, prompt_of)
    return FoundSeed(name=tensor_type, found=seed, committed=MODELS[tensor_type].seed, margin=margin)


def search_long_seed(tensor_type: TensorType) -> FoundSeed:
    """The same for a long prompt; takes minutes."""
    seed, text, margin = _search(tensor_type, long_prompt_of)
    committed = LONG_PROMPTS[tensor_type]
    return FoundSeed(name=f"{tensor_type}, long prompt", found=(seed, text), committed=committed, margin=margin)


def _search(tensor_type: TensorType, prompt: Callable[[int], str]) -> tuple[int, str, float]:
    weights = dequantise(draw_tensors(tensor_type))
    architecture = MODELS[tensor_type].architecture
    for seed in itertools.count():
        if steps := _decided(weights, architecture, prompt(seed), MODELS[tensor_type].margin, STEPS):
            return seed, "".join(step.text for step in steps), min(map(_lead, steps))
    raise AssertionError  # unreachable: the count does not end


def _decided(
    weights: Mapping[str, Array], architecture: Architecture, prompt: str, margin: float, count: int
) -> tuple[Step, ...]:
    """Returns the steps of the answer to a prompt; none where one leads by less or is the end, or a space ends it."""
    steps: list[Step] = []
    for row in itertools.islice(greedy(weights, tokens_of(prompt), architecture), count):
        steps.append(_step(row))
        if _lead(steps[-1]) < margin or TOKENS[steps[-1].token] == END:
            return ()
    text = "".join(step.text for step in steps)
    return tuple(steps) if text == text.strip() else ()


def answers(tensor_type: TensorType, prompts: Iterable[str], count: int) -> Iterator[KnownAnswer]:
    """Yields those of the prompts that have one right answer of `count` tokens: no near tie, no end token in it.

    Each takes the reference `count` passes, and has no embedding.
    """
    known = known_answer(tensor_type)
    weights = dequantise(draw_tensors(tensor_type))
    for prompt in prompts:
        steps = _decided(weights, MODELS[tensor_type].architecture, prompt, known.limits.lead, count)
        if steps:
            yield dataclasses.replace(
                known,
                prompt=prompt,
                prompt_tokens=tokens_of(prompt),
                text="".join(step.text for step in steps),
                steps=steps,
                embedding=(),
                margin=min(map(_lead, steps)),
            )


def prompt_of(seed: int) -> str:
    """Returns PROMPT_TOKENS different letters and digits in the order that `seed` gives."""
    letters = string.ascii_letters + string.digits
    order = np.argsort(generator_of(seed).random(len(letters)))[:PROMPT_TOKENS]
    return "".join(letters[index] for index in order)


def long_prompt_of(seed: int) -> str:
    """Returns LONG_TOKENS letters and digits that `seed` gives."""
    letters = string.ascii_letters + string.digits
    return "".join(letters[int(number * len(letters))] for number in generator_of(seed).random(LONG_TOKENS))


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


# --- The weights. ---


def draw_tensors(tensor_type: TensorType) -> dict[str, Tensor]:
    """Returns the model's tensors by their names in the file, without `.weight`.

    With these deviations the state keeps a deviation of about 3 (the embedding's), the logits get one of about 4 and
    the attention scores one of about 2, so that every part affects the answer.
    """
    architecture = MODELS[tensor_type].architecture
    generator = generator_of(MODELS[tensor_type].weights_seed)
    stored_type = gguf.GGMLQuantizationType[tensor_type]
    tensors: dict[str, Tensor] = {}

    def vector(name: str, low: float, high: float, shape: tuple[int, ...] = (WIDTH,)) -> None:
        values = (low + (high - low) * generator.random(shape)).astype(np.float32)
        tensors[name] = Tensor(stored=values, type=gguf.GGMLQuantizationType.F32)

    def norm(name: str) -> None:
        vector(name, 0.75, 1.25)

    def matrix(name: str, rows: int, columns: int, deviation: float, *, count: int = 0) -> None:
        drawn = draw_matrix(generator, stored_type, (count or 1) * rows, columns, deviation)
        stored = drawn.stored.reshape(count, rows, -1) if count else drawn.stored
        tensors[name] = dataclasses.replace(drawn, stored=stored)

    matrix("token_embd", len(TOKENS), WIDTH, 3.0)
    if architecture.experts:
        tensors["token_embd"] = _with_routes(generator, tensors["token_embd"])
    for layer in range(architecture.layers):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        if layer in architecture.recurrent:
            matrix(f"{block}.ssm_in", 2 * SSM_INNER + 2 * SSM_STATE + SSM_HEADS, WIDTH, 0.1)
            vector(f"{block}.ssm_conv1d", -1, 1, (SSM_INNER + 2 * SSM_STATE, SSM_KERNEL))
            vector(f"{block}.ssm_conv1d.bias", -0.5, 0.5, (SSM_INNER + 2 * SSM_STATE,))
            vector(f"{block}.ssm_dt.bias", -3, -1, (SSM_HEADS,))
            vector(f"{block}.ssm_a", -1, 0, (SSM_HEADS, 1))
            vector(f"{block}.ssm_d", 0.5, 1.5, (SSM_HEADS, 1))
            vector(f"{block}.ssm_norm", 0.75, 1.25, (1, SSM_INNER))
            matrix(f"{block}.ssm_out", WIDTH, SSM_INNER, 0.0625)
        else:
            queries, keys = architecture.heads * architecture.head_size, architecture.kv_heads * architecture.head_size
            matrix(f"{block}.attn_q", queries, WIDTH, 0.1)
            matrix(f"{block}.attn_k", keys, WIDTH, 0.1)
            matrix(f"{block}.attn_v", keys, WIDTH, 0.1)
            matrix(f"{block}.attn_output", WIDTH, queries, 0.0625)
        norm(f"{block}.ffn_norm")
        if architecture.experts:
            noise = 0.1 * generator.random((architecture.experts, WIDTH)) - 0.05
            router = (np.eye(architecture.experts, WIDTH) + noise).astype(np.float32)
            tensors[f"{block}.ffn_gate_inp"] = Tensor(stored=router, type=gguf.GGMLQuantizationType.F32)
        several = "_exps" if architecture.experts else ""
        matrix(f"{block}.ffn_gate{several}", FEED_FORWARD, WIDTH, 0.0625, count=architecture.experts)
        matrix(f"{block}.ffn_up{several}", FEED_FORWARD, WIDTH, 0.0625, count=architecture.experts)
        matrix(f"{block}.ffn_down{several}", WIDTH, FEED_FORWARD, 0.0625, count=architecture.experts)
    norm("output_norm")
    matrix("output", len(TOKENS), WIDTH, 0.25)
    return tensors


ROUTES = (-9.0, -6.0, 6.0, 9.0)
"""Of a token, for each expert: the numbers in the first columns of its embedding, which the router reads.

A router is a switch: where two experts are near a tie, rounding decides, and the answer is another. These numbers are
so far apart that no near tie occurs."""


def _with_routes(generator: np.random.Generator, embedding: Tensor) -> Tensor:
    values = gguf.quants.dequantize(embedding.stored, embedding.type)
    order = np.argsort(generator.random((len(values), len(ROUTES))))
    values[:, : len(ROUTES)] = np.take(ROUTES, order)
    return dataclasses.replace(embedding, stored=gguf.quants.quantize(values, embedding.type))


def dequantise(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Returns the values of the stored tensors."""
    return {
        name: gguf.quants.dequantize(tensor.stored, tensor.type).astype(np.float64) for name, tensor in tensors.items()
    }


# --- The file. ---


def to_gguf(tensors: Mapping[str, Tensor], architecture: Architecture = ARCHITECTURE) -> bytes:
    """Returns the model's file."""
    with ownership.temporary_directory() as directory:
        path = directory / "model.gguf"
        writer = gguf.GGUFWriter(path, "granitehybrid" if architecture.recurrent else "llama")
        describe(writer, architecture)
        if {tensor.type for tensor in tensors.values()} >= {gguf.GGMLQuantizationType.MXFP4}:
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_MXFP4_MOE)  # the only type that llama.cpp does not guess
        for name, tensor in tensors.items():
            writer.add_tensor(file_name(name), tensor.stored, raw_dtype=tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def file_name(name: str) -> str:
    """Returns a tensor's name in the file: all but biases, and two parameters of Mamba-2, end in `.weight`."""
    return name if name.endswith((".bias", ".ssm_a", ".ssm_d")) else f"{name}.weight"


def describe(
    writer: gguf.GGUFWriter,
    architecture: Architecture,
    *,
    name: str = "known-answer",
    width: int = WIDTH,
    feed_forward: int = FEED_FORWARD,
    tokens: Sequence[str] = TOKENS,
    context: int | None = None,
) -> None:
    """Adds all metadata of a model's file: its sizes, and a vocabulary with the end token."""
    writer.add_name(name)
    writer.add_context_length(context or CONTEXT)
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed_forward)
    writer.add_block_count(architecture.layers)
    writer.add_head_count(architecture.heads)
    if architecture.recurrent:
        # A layer is recurrent where this is 0.
        layers = range(architecture.layers)
        writer.add_head_count_kv([0 if layer in architecture.recurrent else architecture.kv_heads for layer in layers])
        writer.add_ssm_conv_kernel(SSM_KERNEL)
        writer.add_ssm_inner_size(SSM_INNER)
        writer.add_ssm_state_size(SSM_STATE)
        writer.add_ssm_time_step_rank(SSM_HEADS)
        writer.add_ssm_group_count(1)
    else:
        writer.add_head_count_kv(architecture.kv_heads)
    writer.add_key_length(architecture.head_size)
    writer.add_value_length(architecture.head_size)
    writer.add_rope_dimension_count(architecture.head_size)
    writer.add_rope_freq_base(architecture.rope_base)
    writer.add_layer_norm_rms_eps(architecture.epsilon)
    if architecture.experts:
        writer.add_expert_count(architecture.experts)
        writer.add_expert_used_count(architecture.experts_used)
    writer.add_pooling_type(gguf.PoolingType.MEAN)

    end = tokens.index(END)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token.replace(" ", "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}") for token in tokens])
    writer.add_token_types([gguf.TokenType.CONTROL if token == END else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([f"{END[0]} {END[1:]}"])  # may not be empty; the second half of this one never occurs
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}{% endfor %}")
