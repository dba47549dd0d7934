"""A running server for several test files, and the resources of a process on the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import docker
import pytest

from base_images import versions
from base_images.adapters import ownership as owner
from base_images.adapters.container import Container
from base_images.adapters.engine import Engine, Image
from base_images.errors import BaseImagesError
from base_images.labels import OWNER, RESOURCE
from base_images.smoke import containers, model
from base_images.smoke import server as servers
from base_images.smoke.checks_http import Target
from base_images.smoke.containers import Way
from base_images.smoke.model import KnownAnswer, TensorType

ANSWER = model.known_answer(TensorType.F32)


@contextlib.contextmanager
def started(engine: Engine, way: Way, answer: KnownAnswer = ANSWER) -> Iterator[tuple[Container, Target]]:
    """Yields a running server in its container."""
    patience = servers.DEVICE_TIMEOUT_SECONDS
    with containers.prepared(engine, way, answer.gguf) as container:
        servers.start(container, way.port, timeout=patience)
        url = servers.url(container, way.port)
        yield container, Target(url=url, alias=way.alias, answer=answer, patience=patience)


@pytest.fixture(scope="module")
def target(engine: Engine, cpu_image: Image) -> Iterator[Target]:
    """Yields a running server, started like BodhiApp's, with its right answer."""
    way = containers.as_bodhi(cpu_image.id, "model", "/app/bin/x86_64-unknown-linux-gnu/cpu")
    with started(engine, way) as (_, running):
        yield running


@pytest.fixture(scope="module")
def vulkan_image(engine: Engine) -> Image:
    try:
        return engine.image(versions.local_reference("vulkan"))
    except BaseImagesError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cache(engine: Engine) -> Iterator[str]:
    with engine.volume("smoke") as volume:
        yield volume


def things() -> dict[str, dict[str, str]]:
    """Returns the labels of this project's containers, by id, and volumes, by name; other tests may be running."""
    mine = {"label": [RESOURCE]}
    with contextlib.closing(docker.from_env().api) as api:
        found = [*api.containers(all=True, filters=mine), *(api.volumes(filters=mine)["Volumes"] or [])]
    return {thing.get("Id") or thing["Name"]: thing["Labels"] or {} for thing in found}


def made_by(pid: int) -> set[str]:
    """Returns the resources that a process of this host has made and has to remove."""
    own = owner.current().split(".")[:2]
    return {name for name, labels in things().items() if labels.get(OWNER, "").split(".")[:3] == [*own, str(pid)]}
