"""Images as the engine describes them, for tests without an engine."""

from __future__ import annotations

import dataclasses
from typing import Any

from base_images.adapters.engine import Image

PLAIN = Image(
    id="sha256:1",
    tags=(),
    repo_digests=(),
    labels={},
    architecture="amd64",
    created="",
    size=1,
    user="",
    working_directory="/app",
    entrypoint=(),
    command=(),
    environment={},
    healthcheck=(),
    diff_ids=(),
    history=(),
)


def image(**changes: Any) -> Image:
    """Returns a plain image with these fields replaced."""
    return dataclasses.replace(PLAIN, **changes)
