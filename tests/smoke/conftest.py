"""A running server that several files of tests ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from base_images.adapters.engine import Engine, Image
from base_images.smoke import launch, model
from base_images.smoke.checks_http import Target
from base_images.smoke.model import TensorType

ANSWER = model.known_answer(TensorType.F32)


@pytest.fixture(scope="module")
def target(engine: Engine, cpu_image: Image) -> Iterator[Target]:
    """A running server as BodhiApp starts it, with the right answer."""
    way = launch.as_bodhi(cpu_image.id, "model", "/app/bin/x86_64-unknown-linux-gnu/cpu")
    with launch.prepared(engine, way, ANSWER.gguf) as container:
        launch.start(container, way.port)
        yield Target(url=launch.url(container, way.port), alias=way.alias, answer=ANSWER)
