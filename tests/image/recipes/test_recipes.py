"""Options of recipes that no published image uses."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import settings
from base_images.adapters import buildkit
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.build import context
from base_images.labels import Label


@pytest.fixture
def with_an_extra_package(engine: Engine, cpu_image: Image, tmp_path: Path) -> Iterator[str]:
    """The stage `base` of the cpu recipe, on the same base as the cpu image."""
    with tempfile.TemporaryFile() as tar:
        context.write(tar, root=settings.ROOT, source=tmp_path)
        tar.seek(0)
        stream = engine.build(
            tar,
            dockerfile="dockerfiles/cpu.Dockerfile",
            target="base",
            arguments={"RUNTIME_BASE_IMAGE": cpu_image.labels[Label.BASE_NAME], "RUNTIME_EXTRA_PACKAGES": "tini less"},
            labels={},
            platform=engine.platform().docker,
        )
        [image_id] = [event.image_id for event in buildkit.events(stream) if isinstance(event, buildkit.ImageBuilt)]
    yield image_id
    engine.remove_image(image_id)


def test_extra_packages_are_installed(engine: Engine, with_an_extra_package: str) -> None:
    for program in ("tini", "less"):
        done = engine.probe(ContainerSpec(image=with_an_extra_package, entrypoint=(program, "--version")))
        assert done.exit_code == 0, done.output
