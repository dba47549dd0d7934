"""Random matrices of each tensor type, for models made on the spot.

Only additions, products and square roots are used, which every machine rounds alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from base_images.smoke.reference import Array


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as GGUF stores it: numbers of its type, or rows of bytes with quantised blocks."""

    stored: NDArray[np.generic]
    type: GGMLQuantizationType


def generator_of(seed: int) -> np.random.Generator:
    """Returns the random stream of a seed; only `random()` is used, which is the same in every version of numpy."""
    return np.random.Generator(np.random.PCG64(seed))


def draw_matrix(
    generator: np.random.Generator, stored_type: GGMLQuantizationType, rows: int, columns: int, deviation: float
) -> Tensor:
    """Returns a matrix whose weights have about the given deviation, and a mean of about 0.

    The gguf package can dequantise all of these types, but not quantise the K-quants and IQ4_XS: for those the blocks
    are drawn.
    """
    stored: NDArray[np.generic]
    if stored_type == GGMLQuantizationType.Q4_K:
        stored = _draw_q4_k(generator, rows, columns, deviation)
    elif stored_type == GGMLQuantizationType.Q5_K:
        stored = _draw_q5_k(generator, rows, columns, deviation)
    elif stored_type in _ONE_SCALE:
        stored = _draw_bytes(generator, stored_type, rows, columns, deviation)
    else:
        values = _bell(generator, (rows, columns)) * (deviation / _BELL_DEVIATION)
        stored = gguf.quants.quantize(values.astype(np.float32), stored_type)
    return Tensor(stored=stored, type=stored_type)


_BELL_DEVIATION = math.sqrt(1 / 7)


def _bell(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Returns numbers from -1 to 1, most of them small: cubes of uniform ones, of deviation sqrt(1/7)."""
    uniform = 2 * generator.random(shape) - 1
    return uniform * uniform * uniform


def _draw_q4_k(generator: np.random.Generator, rows: int, columns: int, deviation: float) -> NDArray[np.uint8]:
    """Returns rows of valid Q4_K blocks.

    A block is 256 weights, d * scale * nibble - dmin * minimum, with a scale and a minimum of 6 bits per 32 weights
    (block_q4_K in ggml-common.h; their packing into 12 bytes: get_scale_min_k4 in ggml-quants.c).
    """
    blocks = rows * columns // 256
    scales, minima = _draw_scales(generator, blocks)
    nibbles = np.rint(7.5 + 7.5 * _bell(generator, (blocks, 4, 2, 32))).astype(np.uint8)
    d = deviation / (7.5 * _BELL_DEVIATION * _MEAN_SCALE)
    quants = (nibbles[:, :, 0] | nibbles[:, :, 1] << 4).reshape(blocks, 128)
    return np.concatenate([*_packed(d, 7.5, scales, minima), quants], axis=1).reshape(rows, -1)


def _draw_q5_k(generator: np.random.Generator, rows: int, columns: int, deviation: float) -> NDArray[np.uint8]:
    """Returns rows of valid Q5_K blocks: those of Q4_K with numbers of 5 bits, whose fifth bits come first."""
    blocks = rows * columns // 256
    scales, minima = _draw_scales(generator, blocks)
    quants = _draw_uniform(generator, (blocks, 32 + 128))
    d = deviation / (math.sqrt((32**2 - 1) / 12) * _MEAN_SCALE)
    return np.concatenate([*_packed(d, 15.5, scales, minima), quants], axis=1).reshape(rows, -1)


_MEAN_SCALE = 47.5


def _draw_scales(generator: np.random.Generator, blocks: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Returns a K-quant's scales and minima; where dmin is d times the middle quant, an equal minimum centres on 0."""
    scales = (32 + 32 * generator.random((blocks, 8))).astype(np.uint8)
    minima = np.minimum(63, scales + (8 * generator.random((blocks, 8))).astype(np.uint8) - 4).astype(np.uint8)
    return scales, minima


def _packed(
    d: float, middle: float, scales: NDArray[np.uint8], minima: NDArray[np.uint8]
) -> tuple[NDArray[np.generic], ...]:
    """Returns the first 16 bytes of Q4_K's and Q5_K's blocks; `middle` is the quant that becomes 0."""
    return (
        *(np.full((len(scales), 1), number, dtype=np.float16).view(np.uint8) for number in (d, middle * d)),
        scales[:, :4] | (scales[:, 4:] >> 4) << 6,
        minima[:, :4] | (minima[:, 4:] >> 4) << 6,
        (scales[:, 4:] & 0x0F) | (minima[:, 4:] & 0x0F) << 4,
    )


def _mean_square(numbers: Iterable[int]) -> float:
    squares = [number * number for number in numbers]
    return sum(squares) / len(squares)


# The place of d in a block, and the deviation of a block of random bytes when d is 1. Q6_K is d * scale * quant with
# scales of 8 bits and quants of 6; IQ4_XS has scales of 6 bits, and quants of 4 that stand for unevenly spaced numbers.
_ONE_SCALE: Mapping[GGMLQuantizationType, tuple[int, float]] = MappingProxyType(
    {
        GGMLQuantizationType.Q6_K: (208, math.sqrt(_mean_square(range(-128, 128)) * _mean_square(range(-32, 32)))),
        GGMLQuantizationType.IQ4_XS: (
            0,
            math.sqrt(_mean_square(range(-32, 32)) * _mean_square(gguf.quants.IQ4_NL.kvalues)),
        ),
    }
)


def _draw_bytes(
    generator: np.random.Generator, stored_type: GGMLQuantizationType, rows: int, columns: int, deviation: float
) -> NDArray[np.uint8]:
    """Returns rows of blocks in which any bytes are valid and only d, the scale of the whole block, is not random."""
    weights, size = gguf.GGML_QUANT_SIZES[stored_type]
    place, unscaled = _ONE_SCALE[stored_type]
    drawn = _draw_uniform(generator, (rows * columns // weights, size))
    drawn[:, place : place + 2] = np.full(1, deviation / unscaled, dtype=np.float16).view(np.uint8)
    return drawn.reshape(rows, -1)


def _draw_uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return (256 * generator.random(shape)).astype(np.uint8)
