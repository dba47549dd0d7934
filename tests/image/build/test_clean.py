"""`invoke clean-local-images` on a real engine."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator

import docker
import pytest

from base_images import settings
from base_images.adapters.engine import Engine, Image
from base_images.build import clean
from base_images.labels import Label

REGISTRY = "registry.example.org/clean-test"
OLD = f"{REGISTRY}:cpu-2408201420-0000000"
FOREIGN = "clean-test:mine"
CHILD = "clean-test:child"


@pytest.fixture
def images(engine: Engine, cpu_image: Image) -> Iterator[None]:
    """An older version of ours and a child image, beside the existing image."""
    client = docker.from_env()
    engine.tag(cpu_image.id, OLD)
    child = f"FROM {OLD}\nUSER root\nRUN echo child > /child\n"
    client.images.build(fileobj=io.BytesIO(child.encode()), tag=CHILD, rm=True)
    yield
    for tag in (OLD, FOREIGN, CHILD):
        engine.remove_image(tag)
    client.close()


def planned(engine: Engine) -> list[clean.Removal]:
    return clean.removals(engine.images(label=Label.VARIANT), REGISTRY)


@pytest.mark.usefixtures("images")
def test_only_our_tags_are_removed(engine: Engine, cpu_image: Image) -> None:
    engine.tag(cpu_image.id, FOREIGN)
    [removal] = [removal for removal in planned(engine) if OLD in removal.references]
    assert CHILD not in str(planned(engine))
    assert FOREIGN in removal.kept
    # llama-cpp-cpu:local is ours too; the other tests need it.
    done = clean.apply(engine, [clean.Removal(image_id=removal.image_id, version="", references=(OLD,), kept=())])
    assert done.removed == (OLD,)
    assert done.failed == ()
    assert not engine.has_image(OLD)
    assert engine.has_image(CHILD)
    assert engine.has_image(FOREIGN)


@pytest.mark.usefixtures("images")
def test_an_image_in_use_stays_and_is_named(engine: Engine) -> None:
    client = docker.from_env()
    container = client.containers.create(CHILD)
    try:
        removal = clean.Removal(image_id="", version="", references=(engine.image(CHILD).id,), kept=())
        done = clean.apply(engine, [removal])
        assert done.removed == ()
        assert "is being used" in done.failed[0][1] or "is using" in done.failed[0][1]
    finally:
        container.remove()
        client.close()


def test_a_dry_run_removes_nothing(engine: Engine, cpu_image: Image) -> None:
    command = [sys.executable, "-m", "invoke", "clean-local-images", "--dry-run"]
    done = subprocess.run(command, cwd=settings.ROOT, capture_output=True, text=True, check=True)
    assert "would remove" in done.stdout
    assert "llama-cpp-cpu:local" in done.stdout
    assert engine.image("llama-cpp-cpu:local").id == cpu_image.id


def test_the_freed_bytes_are_reported(engine: Engine) -> None:
    client = docker.from_env()
    recipe = "FROM llama-cpp-cpu:local\nUSER root\nRUN head -c 20000000 /dev/urandom > /twenty-megabytes\n"
    built, _ = client.images.build(fileobj=io.BytesIO(recipe.encode()), rm=True)
    client.close()
    done = clean.apply(engine, [clean.Removal(image_id="", version="", references=(str(built.id),), kept=())])
    # The containerd image store keeps a layer twice, packed and unpacked.
    assert 19_000_000 < done.freed < 45_000_000
