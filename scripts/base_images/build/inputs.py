"""The inputs of a build plan: origin, base images and source. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Origin(StrEnum):
    """Where base images and llama.cpp's source come from; AUTO is the first one available."""

    AUTO = "auto"
    REGISTRIES = "registries"
    PACKAGES = "packages"


@dataclass(frozen=True, kw_only=True)
class BaseImage:
    """A base image that the engine has, or will pull by its digest.

    Attributes:
        reference: the immutable reference for FROM.
        name: value of the label base.name.
        digest: value of the label base.digest; the image id for a base that was made here.
    """

    reference: str
    name: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Bases:
    """The base images of one build, all from one origin, since a program may not start with an older glibc.

    Attributes:
        glibc: glibc version of the runtime base, such as `2.41`; empty while unknown.
        arguments: other ARGs of the recipe whose values depend on these bases.
        notices: messages for the user, such as about an unreachable registry.
        snapshot: the time of the Debian archive that the bases were made from; empty for the packages of the day.
    """

    origin: Origin
    web: BaseImage
    build: BaseImage
    runtime: BaseImage
    glibc: str
    arguments: Mapping[str, str]
    notices: tuple[str, ...]
    snapshot: str


class SourceKind(StrEnum):
    """Where a source tree comes from."""

    GIT = "git"
    SDIST = "sdist"
    PATH = "path"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A llama.cpp tree whose commit is known.

    Attributes:
        tag: llama.cpp's tag of the commit, such as `b11312`.
        release: llama.cpp's release of the commit, such as `v0.6.0`; empty where there is none.
        build_number: the number in `tag`, which llama-server reports.
        dirty: whether files may differ from the commit.
        digest: SHA-256 (hexadecimal) over the path, executable bit and content of every file.
        files: the files of a git checkout that are built: all but those that git ignores; None takes the whole tree.
        notices: messages for the user, such as about a fallback to the sdist.
    """

    path: Path
    tag: str
    commit: str
    build_number: int
    kind: SourceKind
    dirty: bool
    digest: str
    release: str = ""
    files: frozenset[str] | None = None
    notices: tuple[str, ...] = ()
