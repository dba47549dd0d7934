"""What a build is decided from: where base images and source come from, and which they are. Values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Origin(StrEnum):
    """Where base images and llama.cpp's source come from; AUTO is the first that can be reached."""

    AUTO = "auto"
    REGISTRIES = "registries"
    PACKAGES = "packages"


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """A base image that the engine has, or that it will pull by its digest.

    Attributes:
        reference: what FROM is given; it cannot come to mean another image.
        name: what the label base.name says.
        digest: what the label base.digest says; for a base that was made here, its image id.
    """

    reference: str
    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Bases:
    """The base images of one build, all from the same origin: a program built on one glibc may not start on another.

    Attributes:
        glibc: the runtime base's glibc, such as `2.41`; empty where nobody has looked into the base yet.
        arguments: ARGs of the recipe, other than the bases', that these bases need another value of.
        notices: what a person must be told, such as a registry that could not be reached.
    """

    origin: Origin
    web: BaseImage
    build: BaseImage
    runtime: BaseImage
    glibc: str
    arguments: Mapping[str, str]
    notices: tuple[str, ...]


class SourceKind(StrEnum):
    """Where a tree comes from."""

    GIT = "git"
    SDIST = "sdist"
    PATH = "path"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A llama.cpp tree whose commit is known.

    Attributes:
        tag: llama.cpp's own name of the commit, such as `b11312`.
        build_number: the number in `tag`, which llama-server reports.
        dirty: whether the files may differ from the commit's.
        digest: SHA-256 (hexadecimal) over the path, executable bit and content of every file.
        notices: what a person must be told about how it was had.
    """

    path: Path
    tag: str
    commit: str
    build_number: int
    kind: SourceKind
    dirty: bool
    digest: str
    notices: tuple[str, ...] = ()
