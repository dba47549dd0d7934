"""The names of all labels that this project writes or reads (contract row 7, docs/contract.md)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Label(StrEnum):
    """Labels of an image; the values are never empty."""

    TITLE = "org.opencontainers.image.title"
    DESCRIPTION = "org.opencontainers.image.description"
    VERSION = "org.opencontainers.image.version"
    REVISION = "org.opencontainers.image.revision"
    CREATED = "org.opencontainers.image.created"
    SOURCE = "org.opencontainers.image.source"
    URL = "org.opencontainers.image.url"
    DOCUMENTATION = "org.opencontainers.image.documentation"
    LICENSES = "org.opencontainers.image.licenses"
    BASE_NAME = "org.opencontainers.image.base.name"
    BASE_DIGEST = "org.opencontainers.image.base.digest"
    REF_NAME = "org.opencontainers.image.ref.name"
    VARIANT = "bodhi.variant"
    VARIANTS = "bodhi.variants"
    PLATFORM = "bodhi.platform"
    ACCELERATION = "bodhi.acceleration"
    BUILD_TIMESTAMP = "bodhi.build.timestamp"
    BUILD_BRANCH = "bodhi.build.branch"
    BUILD_ORIGIN = "bodhi.build.origin"
    BUILD_ARGUMENTS = "bodhi.build.arguments"
    DEBIAN_SNAPSHOT = "bodhi.build.debian_snapshot"
    LLAMA_CPP_TAG = "bodhi.llama_cpp.tag"
    LLAMA_CPP_RELEASE = "bodhi.llama_cpp.release"
    LLAMA_CPP_COMMIT = "bodhi.llama_cpp.commit"
    GLIBC = "bodhi.glibc"


RESOURCE = "bodhi.resource"
"""The purpose of a container, volume or base image that this project created; never on a built image."""

OWNER = "bodhi.owner"
"""Process ownership of a container or volume that must be removed, as `adapters/ownership.py` writes it."""

TOOLKIT_PREFIX = "bodhi.toolkit."
"""Prefix of the labels with toolkit versions; a name of version.json follows, as in `bodhi.toolkit.cuda`."""


def toolkit(labels: Mapping[str, str]) -> dict[str, str]:
    """Returns the toolkit versions in an image's labels, by their names in version.json, sorted."""
    named = sorted((name, value) for name, value in labels.items() if name.startswith(TOOLKIT_PREFIX))
    return {name.removeprefix(TOOLKIT_PREFIX): value for name, value in named}
