"""Images for tests: as the engine describes them, without one, and built from a Dockerfile."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tarfile
from collections.abc import Mapping
from typing import Any

from base_images.adapters import buildkit
from base_images.adapters.engine import Engine, Image
from base_images.variants import Platform

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


def archive(files: Mapping[str, bytes], mode: int = 0o755) -> bytes:
    """Returns a tar archive; all files have these permissions."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def build(
    engine: Engine,
    files: Mapping[str, bytes],
    *,
    dockerfile: str = "Dockerfile",
    target: str = "",
    arguments: Mapping[str, str] | None = None,
    mode: int = 0o644,
    platform: Platform | None = None,
) -> str:
    """Builds a Dockerfile with BuildKit and returns the image's id.

    Args:
        engine: which engine builds.
        files: the context, the Dockerfile among them.
        dockerfile: its name in the context.
        target: the stage; empty for the last one.
        arguments: the build arguments.
        mode: the permissions of all files.
        platform: what it is built for; None for the engine's own.

    Raises:
        BuildError: a step failed.
    """
    stream = engine.build(
        io.BytesIO(archive(files, mode)),
        dockerfile=dockerfile,
        target=target,
        arguments=arguments or {},
        labels={},
        platform=(platform or engine.platform()).docker,
    )
    with contextlib.closing(stream):
        [image_id] = [event.image_id for event in buildkit.events(stream) if isinstance(event, buildkit.ImageBuilt)]
    return image_id
