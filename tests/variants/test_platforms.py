"""A variant's local builds for both platforms, one of them emulated: published as one image and pulled by platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from base_images import versions
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.adapters.registry import open_repository
from base_images.labels import Label
from base_images.release import publish
from base_images.release.actions import Outcome
from base_images.variants import Platform, Variant
from tests.support.registries import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "registry")
    yield registry
    registry.stop()


def test_both_platforms_are_published_as_one_image_and_each_is_pulled(
    engine: Engine, variant: Variant, image: Image, registry: Registry
) -> None:
    """`image` is the engine's own; the manifests, configurations and layers in the registry are the real ones."""
    here = engine.platform()
    version, commit = versions.parse(image.labels[Label.VERSION]), image.labels[Label.REVISION]
    repository = open_repository(f"{registry.address}/published")
    tag = versions.image_tag(variant.name, version)
    local = {platform: f"{repository.name}:{tag}-{platform.architecture}" for platform in variant.platforms}
    local[here] = f"{repository.name}:{tag}"
    built = {here: image.id}
    try:
        for platform, reference in local.items():
            suffix = "" if platform is here else f"-{platform.architecture}"
            found = engine.image(f"{versions.local_reference(variant.name)}{suffix}")
            assert (found.architecture, found.labels[Label.PLATFORM]) == (platform.architecture, platform.docker)
            built[platform] = found.id
            engine.tag(found.id, reference)
        done = list(publish.publish(repository, variant, version=version, commit=commit, connect=lambda: engine))
        assert [(action.what, action.outcome) for action in done] == [
            *(("push", Outcome.DONE) for _ in variant.platforms),
            ("merge", Outcome.DONE),
        ]
        assert set(repository.platform_manifests(tag)) == {platform.docker for platform in variant.platforms}
    finally:
        for reference in local.values():
            engine.remove_image(reference)
    client = docker.from_env()
    for platform in variant.platforms:
        pulled = client.images.pull(repository.name, tag=tag, platform=platform.docker)
        try:
            spec = ContainerSpec(image=str(pulled.id), command=("uname", "-m"))
            assert engine.probe(spec).stdout.strip() == platform.triple.partition("-")[0]
            content = engine.probe(ContainerSpec(image=str(pulled.id), command=("llama-server", "--version")))
            assert content.exit_code == 0, content.output
        finally:
            engine.remove_image(f"{repository.name}:{tag}")
    client.close()
    assert {platform: engine.image(built[platform]).architecture for platform in built} == {
        platform: platform.architecture for platform in Platform if platform in built
    }
