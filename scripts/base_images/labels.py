"""The names of every label that this project writes or reads (CONTRACT row 7)."""

from __future__ import annotations

from enum import StrEnum


class Label(StrEnum):
    """Labels of an image; each has a value that is never empty."""

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
    LLAMA_CPP_TAG = "bodhi.llama_cpp.tag"
    LLAMA_CPP_COMMIT = "bodhi.llama_cpp.commit"
    GLIBC = "bodhi.glibc"


RESOURCE = "bodhi.resource"
"""On containers, volumes and base images that this project makes, with what they are for; never on a built image."""

OWNER = "bodhi.owner"
"""On containers and volumes that have to go, with the process that made them, as `adapters/ownership.py` names it."""

TOOLKIT_PREFIX = "bodhi.toolkit."
"""Followed by a toolkit's name as version.json has it, such as `bodhi.toolkit.cuda`; the value is its version."""
