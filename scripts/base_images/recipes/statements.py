"""What a file of llama.cpp states outside of its Dockerfiles, as values by subject."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from base_images import variants

ALL = tuple(variant.name for variant in variants.VARIANTS)
"""The names of our variants."""


class Area(StrEnum):
    """The part of upstream that a statement is about."""

    PUBLISHED = "published images"
    OPTION = "CMake option"
    ARCHITECTURES = "architectures"
    TOOLKIT = "toolkit"
    TARGET = "target"
    BACKEND = "backend library"
    SERVER = "server"
    HELPER = "helper file"
    MOVED = "moved file"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a statement is about.

    Attributes:
        area: the part of upstream.
        variants: our variants that it concerns, in the order of the table; empty if it concerns none of them. Two that
            differ only here are the same.
        what: its name, such as `GGML_CUDA_NCCL`.
    """

    area: Area
    variants: tuple[str, ...] = field(compare=False)
    what: str


Statements = dict[Subject, tuple[str, ...]]
"""The values of each subject; a subject that depends on conditions has one value for each."""
