"""Tests of one variant's local image: `nox -s image-<variant>` runs `pytest tests/variants --variant NAME`."""

from __future__ import annotations

import pytest

from base_images import variants, versions
from base_images.adapters.engine import Engine, Image


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--variant", required=True, help="whose local image is tested, such as cuda")


@pytest.fixture(scope="session")
def variant(request: pytest.FixtureRequest) -> variants.Variant:
    return variants.find(request.config.getoption("--variant"))


@pytest.fixture(scope="session")
def image(engine: Engine, variant: variants.Variant) -> Image:
    return engine.image(versions.local_reference(variant.name))
