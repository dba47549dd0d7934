"""Fixtures that every kind of test shares: the real engine and the real cpu image."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from base_images import engine as engines


@pytest.fixture(scope="session")
def engine() -> Iterator[engines.Engine]:
    connected = engines.connect()
    yield connected
    connected.close()


@pytest.fixture(scope="session")
def cpu_image(engine: engines.Engine) -> engines.Image:
    return engine.image("llama-cpp-cpu:local")
