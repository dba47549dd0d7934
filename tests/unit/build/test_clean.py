from __future__ import annotations

from dataclasses import replace

import pytest

from base_images.adapters.engine import Image
from base_images.build import clean
from base_images.labels import Label
from tests.support.images import image

REGISTRY = "ghcr.io/bodhisearch/llama.cpp"
OURS = image(
    tags=(f"{REGISTRY}:cpu-2508201420-abc1234", "llama-cpp-cpu:local"),
    labels={Label.VARIANT: "cpu", Label.VERSION: "2508201420-abc1234"},
    history=("FROM", 'ENTRYPOINT ["/usr/local/bin/llama-entrypoint"]'),
)


def references(image: Image) -> list[str]:
    return [reference for removal in clean.removals([image], REGISTRY) for reference in removal.references]


def test_our_tags_are_removed() -> None:
    assert references(OURS) == list(OURS.tags)


def test_older_and_dirty_versions_are_removed_too() -> None:
    tags = (f"{REGISTRY}:cpu-2408201420-0000000", f"{REGISTRY}:cuda-2508201420-abc1234-dirty")
    assert references(replace(OURS, tags=tags)) == list(tags)


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_tag_that_a_killed_publish_leaves_is_removed(architecture: str) -> None:
    tags = (*OURS.tags, f"{REGISTRY}:cpu-2508201420-abc1234-{architecture}")
    [removal] = clean.removals([replace(OURS, tags=tags)], REGISTRY)
    assert (removal.references, removal.kept) == (tags, ())


def test_an_emulated_build_is_removed() -> None:
    tags = (f"{REGISTRY}:cpu-2508201420-abc1234-dirty-arm64", "llama-cpp-cpu:local-arm64")
    assert references(replace(OURS, tags=tags)) == list(tags)


def test_the_image_of_the_operations_is_removed() -> None:
    tags = (f"{REGISTRY}:cpu-2508201420-abc1234-operations", "llama-cpp-cpu:local-operations")
    arm64 = f"{REGISTRY}:cpu-2508201420-abc1234-operations-arm64"
    beside = replace(OURS, tags=(*tags, arm64), history=(*OURS.history, "COPY /operations/ / # buildkit"))
    assert references(beside) == [*tags, arm64]


def test_an_untagged_build_is_removed_by_its_id() -> None:
    assert references(replace(OURS, tags=())) == ["sha256:1"]


def test_a_foreign_tag_keeps_the_image() -> None:
    image = replace(OURS, tags=(*OURS.tags, "my/image:v1"))
    removal = clean.removals([image], REGISTRY)[0]
    assert removal.references == OURS.tags
    assert removal.kept == ("my/image:v1",)


@pytest.mark.parametrize("tags", [("bodhi:dev",), ()])
def test_a_child_image_inherits_our_labels_and_stays(tags: tuple[str, ...]) -> None:
    child = replace(OURS, tags=tags, history=(*OURS.history, "COPY bodhi /app/bodhi"))
    assert references(child) == []


@pytest.mark.parametrize(
    "tag", [f"{REGISTRY}:latest-cpu", f"{REGISTRY}:cpu-202512281717-e118046", "llama-cpp-mine:local"]
)
def test_tags_outside_our_grammar_stay(tag: str) -> None:
    assert references(replace(OURS, tags=(tag,))) == []


def test_an_image_without_our_labels_stays() -> None:
    assert references(replace(OURS, labels={})) == []


def test_only_bases_that_were_made_here_are_removed() -> None:
    base = replace(OURS, id="sha256:2", tags=("llama-cpp-packages-origin:build-1",), labels={})
    other = replace(OURS, id="sha256:3", tags=("debian:trixie",), labels={})
    assert [removal.references for removal in clean.bases([base, other, OURS])] == [base.tags]
