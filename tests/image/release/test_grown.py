"""How much an image grew since the last release: read from its report in the registry, or from another image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import pytest

from base_images import settings, versions
from base_images.adapters.engine import Engine
from base_images.adapters.registry import Repository
from base_images.contract import facts
from base_images.contract.sizes import Sizes
from base_images.release import evidence, record
from base_images.release.evidence import Kind
from tests.support import commands, images
from tests.support.releases import CUDA, Release, earn, promoted, push_all, release, report

FILES = "FROM scratch\nLABEL bodhi.variant=cuda\nCOPY base /base\nCOPY small large /app/\n"


def build(engine: Engine, large: int) -> str:
    files = {"base": b"base", "small": b"small", "large": bytes(large), "Dockerfile": FILES.encode()}
    return images.build(engine, files)


@pytest.fixture(scope="module")
def pair(engine: Engine) -> Iterator[tuple[str, str]]:
    """Two images of cuda, of which the second has a larger file."""
    made = build(engine, 200_000), build(engine, 700_000)
    yield made
    for image in made:
        engine.remove_image(image)


def attach(repository: Repository, released: Release, sizes: Sizes) -> None:
    subject = f"{repository.name}@{repository.digest(versions.image_tag('cuda', released.version))}"
    made = report(subject, "linux/amd64", Kind.CONTRACT, variant="cuda", version=released.version)
    told = {"ok": True, "sizes": dataclasses.asdict(sizes)}
    evidence.attach(repository, dataclasses.replace(made, report=told))


def row_17(reference: str, *options: str, registry: str) -> dict[str, Any]:
    """Returns what `check-image` says of the size."""
    environment = {settings.REGISTRY_VARIABLE: registry}
    done = commands.invoke("check-image", reference, *options, "--json", environment=environment)
    assert done.returncode == 1, "the image has no server"
    found: dict[str, Any] = next(row for row in json.loads(done.stdout)["rows"] if row["number"] == 17)
    return found


GROWN = "Layer 1 of 1 above the base, COPY small large /app/, has 0.5 MB more: /app/large 0.5 MB more (0.7 MB)."


def test_an_image_is_compared_with_the_released_one_that_is_not_pulled(
    engine: Engine, repository: Repository, pair: tuple[str, str]
) -> None:
    first, second = pair
    nothing = row_17(second, "--since", "latest", registry=repository.name)
    assert f"not compared: {repository.name} has no latest-cuda for linux/amd64" in nothing["seen"]
    one = release(1)
    earn(repository, one)
    promoted(repository, one)
    without = evidence.released_sizes(repository, "cuda", "linux/amd64")
    assert (without.sizes, without.name.split(";")[0]) == (
        None,
        "not compared: latest-cuda has no contract report with sizes",
    )
    attach(repository, one, facts.sizes_of(engine, engine.image(first)))
    told = row_17(second, "--since", "latest", registry=repository.name)
    assert told["status"] == "not-applicable", "cuda has no budget yet"
    assert f"; 0.5 MB more than latest-cuda ({one.version}); no budget yet. {GROWN}" in told["seen"]
    asked = row_17(second, registry=repository.name)
    assert "latest-cuda" not in asked["seen"], "without a measured size no registry is asked"


def test_an_image_is_compared_with_another_one(pair: tuple[str, str]) -> None:
    first, second = pair
    told = row_17(second, "--since", first, registry="registry.invalid/nothing")
    assert told["seen"].endswith(f"; 0.5 MB more than {first}; no budget yet. {GROWN}")
    less = row_17(first, "--since", second, registry="registry.invalid/nothing")
    assert less["seen"].endswith(f"; 0.5 MB less than {second}; no budget yet")
    gone = row_17(first, "--since", "latest", registry="127.0.0.1:1/nothing")
    assert "; not compared with the last release: The registry 127.0.0.1:1 does not answer" in gone["seen"]


def test_a_release_has_the_download_sizes_of_the_one_before(repository: Repository) -> None:
    one, two = release(1), release(2)
    push_all(repository, CUDA, one)
    push_all(repository, CUDA, two, LLAMA_CPP_TAG="b11312-with-a-longer-name")
    [before] = repository.platform_manifests(versions.image_tag("cuda", one.version)).values()
    [seen] = record.look(repository, [CUDA], two.version, one.version)
    [image] = seen.images
    assert image.previous_size == before.layers_size < image.size
    for previous in (None, release(3).version):
        [seen] = record.look(repository, [CUDA], two.version, previous)
        assert seen.images[0].previous_size is None
