"""Names of registries, manifests and ages, without a registry."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import pytest

from base_images.adapters import registry
from base_images.adapters.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Manifest
from base_images.release import status as published


@pytest.mark.parametrize(
    ("name", "host", "path"),
    [
        ("ubuntu", "docker.io", "library/ubuntu"),
        ("nvidia/cuda", "docker.io", "nvidia/cuda"),
        ("docker.io/nvidia/cuda", "docker.io", "nvidia/cuda"),
        ("docker.io/ubuntu", "docker.io", "library/ubuntu"),
        ("ghcr.io/bodhisearch/llama.cpp", "ghcr.io", "bodhisearch/llama.cpp"),
        ("localhost/llama.cpp", "localhost", "llama.cpp"),
        ("localhost:5000/a/b", "localhost:5000", "a/b"),
        ("127.0.0.1:5000/llama.cpp", "127.0.0.1:5000", "llama.cpp"),
        ("[::1]:5000/llama.cpp", "[::1]:5000", "llama.cpp"),
        ("registry:5000/x", "registry:5000", "x"),
    ],
)
def test_a_name_is_a_host_and_a_path(name: str, host: str, path: str) -> None:
    assert registry._split(name) == (host, path)


LOOPBACK = ("127.0.0.1:5000/x", "127.0.0.1/x", "127.8.9.1:5000/x", "localhost/x", "localhost:5000/x", "[::1]:5000/x")
ELSEWHERE = (
    *("ghcr.io/bodhisearch/llama.cpp", "ubuntu", "localhost.example.org/x", "127.0.0.1.example.org:5000/x"),
    *("127.0.0.1@example.org/x", "10.0.0.1:5000/x", "0.0.0.0:5000/x"),
    *("registry:5000/127.0.0.1", "[2001:db8::1]:5000/x"),
)


@pytest.mark.parametrize("name", [*LOOPBACK, *ELSEWHERE])
def test_loopback_is_this_machine_and_not_what_is_called_like_it(name: str) -> None:
    assert registry.is_loopback(name) is (name in LOOPBACK)


def manifest(document: dict[str, object], media_type: str) -> Manifest:
    content = json.dumps(document).encode()
    return Manifest(digest=f"sha256:{hashlib.sha256(content).hexdigest()}", media_type=media_type, content=content)


def entry(platform: dict[str, str] | None) -> dict[str, object]:
    described: dict[str, object] = {"mediaType": OCI_MANIFEST, "digest": "sha256:1", "size": 3}
    return {**described, "platform": platform} if platform else described


def test_an_index_lists_its_entries_in_order() -> None:
    platforms = [{"os": "linux", "architecture": "arm64", "variant": "v8"}, {"os": "linux", "architecture": "amd64"}]
    index = manifest({"manifests": [*map(entry, platforms), entry(None)]}, OCI_INDEX)
    assert index.is_index
    assert [named for named, _ in index.entries] == ["linux/arm64", "linux/amd64", "unknown/unknown"]
    assert manifest({}, DOCKER_LIST).is_index


def test_an_image_has_a_size_and_no_entries() -> None:
    image = manifest({"config": {"size": 2}, "layers": [{"size": 30}, {"size": 400}]}, OCI_MANIFEST)
    assert (image.is_index, image.entries, image.layers_size) == (False, (), 432)


@pytest.mark.parametrize(
    ("created", "text"),
    [
        ("2025-08-20T14:20:00Z", "0 hours"),
        ("2025-08-20T13:20:00Z", "1 hour"),
        ("2025-08-20T16:00:00+05:00", "3 hours"),
        ("2025-08-19T14:20:00Z", "1 day"),
        ("2025-08-10T00:00:00Z", "10 days"),
        ("2025-08-20T14:20:01Z", "in the future: one of the clocks is wrong"),
        ("2025-08-20T14:20:00", "unknown"),
        ("yesterday", "unknown"),
        ("", "unknown"),
    ],
)
def test_how_long_ago(created: str, text: str) -> None:
    assert published.age(created, datetime(2025, 8, 20, 14, 20, tzinfo=UTC)) == text
