"""What is no image behind the tags of a variant: a sentence for that variant, and the others go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from base_images import versions
from base_images.adapters.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST
from base_images.adapters.registry import Repository
from base_images.errors import RegistryError
from base_images.release import promote, record
from base_images.release import status as published
from base_images.release.actions import Outcome, with_failure
from base_images.variants import Platform
from tests.support.releases import CPU, CUDA, Release, Site, checked, earn, labels, promoted, push, release

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


def put(repository: Repository, reference: str, media_type: str, content: bytes) -> bool:
    """Pushes anything, as other clients can; returns whether the registry took it."""
    host, _, path = repository.name.partition("/")
    url = f"http://{host}/v2/{path}/manifests/{reference}"
    return requests.put(url, data=content, headers={"Content-Type": media_type}, timeout=60).ok


def descriptor(repository: Repository, media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": repository.put_blob(content), "size": len(content)}


def manifest(repository: Repository, configuration: object, media_type: str = CONFIG, **more: object) -> dict[str, Any]:
    config = descriptor(repository, media_type, json.dumps(configuration).encode())
    return {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], **more}


def index(repository: Repository, media_type: str = OCI_INDEX, **entry: object) -> dict[str, Any]:
    """An index of one image, whose entry is changed."""
    image = push(repository, "image", Platform.AMD64, labels(CPU, release(1)))
    found = repository.manifest(image)
    assert found
    known = {"mediaType": OCI_MANIFEST, "digest": image, "size": len(found.content)}
    platform = {"os": "linux", "architecture": "amd64"}
    return {"schemaVersion": 2, "mediaType": media_type, "manifests": [{**known, "platform": platform, **entry}]}


def nested(repository: Repository) -> dict[str, Any]:
    inner = json.dumps(index(repository)).encode()
    assert put(repository, "inner", OCI_INDEX, inner)
    return index(repository, mediaType=OCI_INDEX, digest=repository.digest("inner"), size=len(inner))


def twice(repository: Repository) -> dict[str, Any]:
    document = index(repository)
    other = push(repository, "image", Platform.AMD64, labels(CPU, release(2)))
    return {**document, "manifests": [*document["manifests"], {**document["manifests"][0], "digest": other}]}


ODD: dict[str, Callable[[Repository], dict[str, Any]]] = {
    "artifact of oras": lambda repository: manifest(repository, {}, EMPTY, artifactType="text/plain"),
    "artifact without a type": lambda repository: manifest(repository, {}, "application/vnd.unknown.config.v1+json"),
    "nested index": nested,
    "empty index": lambda repository: {**index(repository), "manifests": []},
    "platform null": lambda repository: index(repository, platform=None),
    "two of one platform": twice,
    "manifests null": lambda repository: {**index(repository), "manifests": None},
    "layers null": lambda repository: {**manifest(repository, {}), "layers": None},
    "configuration of a list": lambda repository: manifest(repository, []),
    "labels of a list": lambda repository: manifest(repository, {"config": {"Labels": [1]}}),
    "labels of numbers": lambda repository: manifest(repository, {"config": {"Labels": {"a": 1}}}),
    "rootfs of a list": lambda repository: manifest(repository, {"rootfs": [1]}),
    "layers of numbers": lambda repository: manifest(repository, {"rootfs": {"diff_ids": [1]}}),
    "configuration nested deeply": lambda repository: manifest(repository, _deep()),
    "index of docker without platforms": lambda repository: index(repository, DOCKER_LIST, platform={}),
    "no type": lambda repository: {name: value for name, value in index(repository).items() if name != "mediaType"},
}


def _deep() -> object:
    value: object = []
    for _ in range(900):  # json.dumps' own limit is near; 100,000 are in the fuzzer
        value = [value]
    return {"config": {"Labels": value}}


@pytest.fixture
def cuda(repository: Repository) -> Release:
    """A version of cuda that may become latest."""
    made = release(1)
    earn(repository, made)
    return made


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_artifact_behind_a_tag_of_one_variant_does_not_hide_the_others(
    kind: str, repository: Repository, cuda: Release
) -> None:
    content = json.dumps(ODD[kind](repository)).encode()
    media_type = json.loads(content).get("mediaType", OCI_INDEX)
    version = versions.image_tag("cpu", cuda.version)
    for tag in (version, "latest-cpu"):
        assert put(repository, tag, media_type, content)
        cpu, other = published.look(repository, [CPU, CUDA], cuda.version)
        if kind != "no type":
            assert cpu.problem
            assert cpu.problem.count("\n") == 0
        assert not other.problem
        assert other.newest
        actions = list(
            with_failure(CPU, "promote", lambda each: promote.promote(repository, each, cuda.version, cuda.commit))
        )
        assert not any(action.ok for action in actions)
        assert all(action.reason and "Traceback" not in action.reason for action in actions)
    seen = record.look(repository, [CPU, CUDA], cuda.version)
    assert [bool(one.problem) for one in seen] == [kind != "no type", False]
    assert promoted(repository, cuda).outcome is Outcome.DONE


def test_the_commands_name_the_variant_and_go_on(site: Site) -> None:
    repository = site.repository
    made = site.commit(1)
    earn(repository, made)
    content = json.dumps(nested(repository)).encode()
    assert put(repository, "latest-cpu", OCI_INDEX, content)

    assert "what the registry has of cpu cannot be read: see above" in (said := site.refused("check-version"))
    assert "latest-cpu cannot be read: " in said
    assert str(made.version) in said, "cuda's"
    done = site.invoke("check-version", "--json")
    assert done.returncode == 1
    facts = json.loads(done.stdout)
    assert "which is no image" in checked(facts)["problem"]
    said = site.refused("promote", "--variant", "cpu", "--variant", "cuda")
    assert "failed promote cpu" in said or "not done for cpu" in said
    assert repository.digest("latest-cuda") == repository.digest(versions.image_tag("cuda", made.version))


@pytest.mark.parametrize("kind", ["artifact of oras", "nested index", "labels of numbers"])
def test_a_promotion_replaces_an_odd_latest(kind: str, repository: Repository, cuda: Release) -> None:
    content = json.dumps(ODD[kind](repository)).encode()
    assert put(repository, "latest-cuda", json.loads(content)["mediaType"], content)
    assert promoted(repository, cuda).outcome is Outcome.DONE
    [seen] = published.look(repository, [CUDA], None)
    assert not seen.problem


def test_an_odd_artifact_in_place_of_a_record_or_a_report_is_a_sentence(repository: Repository, cuda: Release) -> None:
    assert promoted(repository, cuda).outcome is Outcome.DONE
    [move] = [tag for tag in repository.tags() if tag.startswith("move-cuda-0001")]
    kept = repository.manifest(move)
    assert kept
    assert put(repository, move, OCI_INDEX, json.dumps(index(repository)).encode())
    [action] = with_failure(CUDA, "rollback", lambda each: promote.roll_back(repository, each, cuda.version))
    assert action.outcome is Outcome.FAILED
    assert "names an image that is gone" in action.reason
    assert repository.point(move, kept.content)
    [image] = repository.platform_manifests("latest-cuda").values()
    report = f"{image.digest.replace(':', '-')}.contract"
    assert put(repository, report, OCI_INDEX, json.dumps(index(repository)).encode())
    with pytest.raises(RegistryError, match=r"\.contract has no report: attach it again"):
        promote.candidates(repository, "latest-cuda")
