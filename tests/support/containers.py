"""Containers of docker-py, for what `ContainerSpec` cannot say: init processes, terminals, limits, networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import docker

from base_images.adapters.engine import Image
from base_images.image import ARBITRARY_USER


@contextlib.contextmanager
def created(image: Image, command: Sequence[str], **options: Any) -> Iterator[Any]:
    """Yields a container as a hardened host starts it: no network, read-only, any user; not yet started."""
    client = docker.from_env()
    hardened = {
        "network_mode": "none",
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "user": ARBITRARY_USER,
        "labels": {"bodhi.resource": "test"},
    }
    container = client.containers.create(image.id, list(command), **{**hardened, **options})
    try:
        yield container
    finally:
        container.remove(force=True)
        client.close()


@contextlib.contextmanager
def started(image: Image, command: Sequence[str], **options: Any) -> Iterator[Any]:
    """Yields such a container, started."""
    with created(image, command, **options) as container:
        container.start()
        yield container
