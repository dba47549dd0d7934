"""Fixtures that every kind of test shares: the real engine and the real cpu image."""

from __future__ import annotations

import pytest

from base_images import engine as engines


@pytest.fixture(scope="session")
def engine() -> engines.Engine:
    return engines.connect()


@pytest.fixture(scope="session")
def cpu_image(engine: engines.Engine) -> engines.Image:
    return engine.image("llama-cpp-cpu:local")
