"""How far a right llama-server's answers may be off, by tensor type and by what computes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from base_images.errors import UsageError

EXACT_CACHES = {None, "f32", "f16"}
"""Types of the key-value cache of 16 bits or more; None is llama-server's default, f16."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The accepted differences.

    Attributes:
        largest: of one log-probability, in nats; also the largest lead of a token where another is chosen.
        mean: of all absolute differences, in nats: many small ones are wrong too.
        embedding: the cosine distance of the embedding.
    """

    largest: float
    mean: float
    embedding: float


# The limits are about twice the largest differences of llama-server's CPU kernels (the x64, sse42, haswell,
# skylakex and zen4 builds) for these prompts, one at a time and eight at once: 0.0080, 0.0082, 0.146, 0.133 and 0.255
# nats, and a cosine distance of 4.2e-8, 8e-8, 2.9e-5, 3.4e-5 and 6.7e-5; over 100 other prompts 0.008, 0.011, 0.25,
# 0.20 and 0.38 nats. F32 and F16 differ because the KV cache and attention's sums have 16 bits (with 32 bits for both,
# F32 agrees to four decimals). The quantised types differ because the activations are rounded to 8 bits before they
# are multiplied, for K-quants with one scale per 256 of them.
_CPU: Mapping[str, Limits] = MappingProxyType(
    {
        "F32": Limits(largest=0.02, mean=0.02, embedding=1e-6),
        "F16": Limits(largest=0.02, mean=0.02, embedding=1e-6),
        "Q8_0": Limits(largest=0.3, mean=0.3, embedding=1e-4),
        "Q4_0": Limits(largest=0.25, mean=0.25, embedding=1e-4),
        "Q4_K": Limits(largest=0.4, mean=0.4, embedding=2.5e-4),
        "Q5_K": Limits(largest=0.4, mean=0.4, embedding=2.5e-4),
        "Q6_K": Limits(largest=0.4, mean=0.4, embedding=2.5e-4),
        "IQ4_XS": Limits(largest=0.4, mean=0.4, embedding=2.5e-4),
        "MXFP4": Limits(largest=0.25, mean=0.25, embedding=1e-4),
        "BF16": Limits(largest=0.1, mean=0.1, embedding=1e-5),
    }
)

# Largest differences of llama-server b11312 on lavapipe (Mesa 25.0.7), one at a time and eight at once: 0.0060, 0.0223,
# 0.0406, 0.0218 and 0.0397 nats, and a cosine distance of 1.2e-7, 3.7e-6, 3.8e-6, 2.8e-6 and 6.3e-6; F16 with other
# prompts 0.028 nats. F32 has F16's tolerance because a device may round factors to as few bits (CUDA's TF32). The
# quantised types keep their tolerance on the CPU: other devices may round the activations to 8 bits too, as lavapipe
# does not.
_DEVICE: Mapping[str, Limits] = MappingProxyType(
    {
        **_CPU,
        "F32": Limits(largest=0.06, mean=0.06, embedding=1e-5),
        "F16": Limits(largest=0.06, mean=0.06, embedding=1e-5),
    }
)

# Largest differences of llama-server's CPU kernels with keys and values cached in 8 bits (q8_0) and flash attention on:
# 0.0660, 0.0675, 0.160, 0.136 and 0.273 nats for these prompts, 0.111, 0.155, 0.243, 0.250 and 0.389 nats over 100
# others, and a cosine distance of 2.4e-5, 2.3e-5, 7.4e-5, 7.7e-5 and 1.7e-4: on average a tenth more than with 16 bits
# where the activations are rounded to 8 bits anyway, and ten times as much where not. The tolerances are about twice.
_Q8_0_CACHE: Mapping[str, Limits] = MappingProxyType(
    {
        "F32": Limits(largest=0.15, mean=0.15, embedding=5e-5),
        "F16": Limits(largest=0.15, mean=0.15, embedding=5e-5),
        "Q8_0": Limits(largest=0.35, mean=0.35, embedding=1.5e-4),
        "Q4_0": Limits(largest=0.3, mean=0.3, embedding=1.5e-4),
        "Q4_K": Limits(largest=0.55, mean=0.55, embedding=3.5e-4),
    }
)

# Largest and mean difference for agreement's prompts, llama-server b11312, in nats; in brackets how often another token
# was chosen:
#
#                                           F16               Q8_0              Q4_0              Q4_K
#   cpu/, flash attention on against off    0.013 0.0022 (0)  0.168 0.0358 (3)  0.162 0.0337 (0)  0.327 0.0594 (8)
#   cpu/, batches of 512 against 32         0.007 0.0003 (0)  0.122 0.0069 (0)  0.118 0.0070 (1)  0.201 0.0108 (0)
#   cpu/, one thread against two            0     0      (0)  0     0      (0)  0     0      (0)  0     0      (0)
#   lavapipe (Mesa 25.0.7) against cpu/     0.031 0.0045 (0)  0.180 0.0338 (2)  0.148 0.0318 (3)  0.346 0.0580 (11)
#   a matrix 2% too large (blk.0.attn_v)    0.118 0.0229 (2)  0.270 0.0465 (2)  0.266 0.0445 (3)  0.484 0.0709 (5)
#   the same, 5%                            0.309 0.0568 (3)  0.422 0.0693 (5)  0.373 0.0669 (5)  0.676 0.0972 (9)
#
# The quantised types differ more because cpu/ rounds the activations to 8 bits, which can turn a difference in the last
# bit into a whole step. The mean detects small errors in many values, the largest a single wrong value.
AGREEMENT: Mapping[str, Limits] = MappingProxyType(
    {
        "F16": Limits(largest=0.1, mean=0.015, embedding=0),
        "Q8_0": Limits(largest=0.4, mean=0.06, embedding=0),
        "Q4_0": Limits(largest=0.4, mean=0.06, embedding=0),
        "Q4_K": Limits(largest=0.7, mean=0.09, embedding=0),
    }
)
"""Of a device and `cpu/`."""


def of(tensor_type: str, *, on_device: bool = False, caches: Collection[str | None] = ()) -> Limits:
    """Returns the limits of one server's answers.

    Args:
        tensor_type: of its model.
        on_device: whether an accelerator computes.
        caches: the types of its key-value cache, such as `q8_0`.

    Raises:
        UsageError: nothing is known of a type of cache.
    """
    limits = (_DEVICE if on_device else _CPU)[tensor_type]
    for cache in sorted(str(cache) for cache in set(caches) - EXACT_CACHES):
        if cache != "q8_0":
            raise UsageError(
                f"How far a right server's answers may be off with a key-value cache of {cache} is not known: measure "
                "it, and enter it in tolerances.py."
            )
        limits = _Q8_0_CACHE[tensor_type]
    return limits
