from __future__ import annotations

from dataclasses import replace

import pytest

from base_images.build import clean
from base_images.build.bases import PACKAGES_REPOSITORY
from base_images.labels import Label
from tests.support.images import image

REGISTRY = "ghcr.io/bodhisearch/llama.cpp"
OURS = image(
    tags=(f"{REGISTRY}:cpu-2508201420-abc1234", "llama-cpp-cpu:local"),
    labels={Label.VARIANT: "cpu", Label.VERSION: "2508201420-abc1234"},
    history=("FROM", 'ENTRYPOINT ["/usr/local/bin/llama-entrypoint"]'),
)


OLDER = (f"{REGISTRY}:cpu-2408201420-0000000", f"{REGISTRY}:cuda-2508201420-abc1234-dirty")
KILLED = (*OURS.tags, *(f"{REGISTRY}:cpu-2508201420-abc1234-{architecture}" for architecture in ("amd64", "arm64")))
EMULATED = (f"{REGISTRY}:cpu-2508201420-abc1234-dirty-arm64", "llama-cpp-cpu:local-arm64")
OPERATIONS = (
    *(f"{REGISTRY}:cpu-2508201420-abc1234-operations", f"{REGISTRY}:cpu-2508201420-abc1234-operations-arm64"),
    "llama-cpp-cpu:local-operations",
)

REMOVED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ours": (OURS.tags, OURS.tags),
    "older and dirty versions": (OLDER, OLDER),
    "what a killed publish leaves": (KILLED, KILLED),
    "an emulated build": (EMULATED, EMULATED),
    "the test of its operations": (OPERATIONS, OPERATIONS),
    "an untagged build, by its id": ((), ("sha256:1",)),
    "beside a foreign one, which keeps the image": ((*OURS.tags, "my/image:v1"), OURS.tags),
    "latest": ((f"{REGISTRY}:latest-cpu",), ()),
    "the predecessor's": ((f"{REGISTRY}:cpu-202512281717-e118046",), ()),
    "a local name of somebody's": (("llama-cpp-mine:local",), ()),
}


@pytest.mark.parametrize(("tags", "removed"), REMOVED.values(), ids=REMOVED)
def test_tags_of_our_grammar_are_removed(tags: tuple[str, ...], removed: tuple[str, ...]) -> None:
    found = clean.removals([replace(OURS, tags=tags)], REGISTRY)
    assert tuple(reference for removal in found for reference in removal.references) == removed
    assert all(set(removal.kept) == set(tags) - set(removed) for removal in found)


@pytest.mark.parametrize("tags", [("bodhi:dev",), ()])
def test_a_child_image_inherits_our_labels_and_stays(tags: tuple[str, ...]) -> None:
    child = replace(OURS, tags=tags, history=(*OURS.history, "COPY bodhi /app/bodhi"))
    assert not any(removal.references for removal in clean.removals([child, replace(OURS, labels={})], REGISTRY))


def test_only_bases_that_were_made_here_are_removed() -> None:
    base = replace(OURS, id="sha256:2", tags=("llama-cpp-packages-origin:build-1",), labels={})
    other = replace(OURS, id="sha256:3", tags=("debian:trixie",), labels={})
    assert [removal.references for removal in clean.in_repository([base, other, OURS], PACKAGES_REPOSITORY)] == [
        base.tags
    ]
