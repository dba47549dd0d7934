"""`verify-latest`, `plan --format latest` and `status-page` as a person types them, with real registries."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from base_images import versions
from base_images.adapters import engine
from base_images.adapters.manifest import OCI_INDEX, OCI_MANIFEST
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import BaseImagesError, EngineError, RegistryError
from base_images.labels import Label
from base_images.release import evidence, latest
from base_images.variants import VARIANTS, Platform
from tests.support.registries import Registry, log_in, make_authority
from tests.support.releases import (
    CPU,
    PREDECESSORS,
    PROVEN,
    Release,
    Site,
    earn,
    labels,
    promoted,
    push,
    push_all,
    push_foreign,
    release,
    report,
    rolled_back,
)

SPDX = {"in-toto.io/predicate-type": "https://spdx.dev/Document"}
ODD_PREDICATES: tuple[object, ...] = ({}, [], None, {"packages": {"name": "llama.cpp"}})
ODD_SUBJECTS: tuple[object, ...] = (None, [1], [{}], "x")
REFUSED = "no basic auth credentials|unauthorized|authentication required"
PACKAGES = {"packages": [{"name": "libc6"}, {"name": "llama.cpp", "versionInfo": "b11312"}]}


def verified(site: Site, *, code: int, variant: str = "cpu", **environment: str) -> tuple[Any, dict[str, list[str]]]:
    """Returns what `verify-latest` prints as JSON, and its checks by status."""
    done = site.invoke("verify-latest", "--variant", variant, "--json", **environment)
    assert done.returncode == code, done.stdout + done.stderr
    told = json.loads(done.stdout)
    by_status: dict[str, list[str]] = {"pass": [], "fail": [], "skip": []}
    for check in told["checks"]:
        by_status[check["status"]].append(check["name"])
    return told, by_status


def seen(told: Any, name: str) -> str:
    [found] = [check["seen"] for check in told["checks"] if check["name"] == name]
    return str(found)


def promote(site: Site, minute: int) -> Release:
    """Releases and promotes an image that no engine can pull, and which is therefore not started either."""
    one = site.commit(minute)
    digest = push_all(site.repository, CPU, one, layers=True)
    for platform in CPU.platforms:
        for kind in PROVEN:
            layers = (f"sha256:{platform.architecture}",)
            subject = f"{site.repository.name}@{digest}"
            made = report(subject, platform.docker, kind, variant="cpu", version=one.version, diff_ids=layers)
            evidence.attach(site.repository, made)
    site.done("promote", "--variant", "cpu")
    return one


def test_what_is_latest_is_verified_as_anybody_gets_it(
    site: Site, served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = site.repository
    # What was never promoted is nothing to verify, whoever made it latest.
    push_foreign(repository, "cuda")
    assert "nothing of cuda was ever promoted" in site.done("verify-latest", "--variant", "cuda")
    one = promote(site, 1)
    jobs = json.loads(site.done("plan", "--format", "latest"))
    assert [(job["variant"], job["platform"], job["device"]) for job in jobs] == [
        ("cpu", platform.docker, "host") for platform in CPU.platforms
    ]
    assert {job["image"] for job in jobs} == {f"{repository.name}:latest-cpu"}

    record = tmp_path / "latest"
    done = site.invoke("verify-latest", "--variant", "cpu", "--record", str(record))
    assert done.returncode == 1
    told = json.loads((record / f"latest-cpu-{site.here.architecture}.json").read_text())
    statuses = {check["name"]: check["status"] for check in told["checks"]}
    assert statuses == {
        **dict.fromkeys(("public", "latest", "evidence"), "pass"),
        **dict.fromkeys(("signature", "sbom"), "skip"),
        "pull": "fail",
    }
    assert (told["ok"], told["digest"], told["version"]) == (False, repository.digest("latest-cpu"), str(one.version))

    # The same registry to those with a password alone: nobody else can pull, and the login that docker has is not used.
    authority = make_authority(tmp_path / "authority")
    data = served.configuration.parent / "data"
    with Registry(tmp_path / "private", password=True, tls=authority, data=data) as private:
        log_in(tmp_path, private.address)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))
        name = repository.name.replace(served.address, private.address)
        behind = dataclasses.replace(site, repository=open_repository(name))
        assert len(json.loads(behind.done("plan", "--format", "latest"))) == len(jobs), "with the login it can be read"
        told, found = verified(behind, code=1)
        assert found == {"pass": [], "fail": ["public"], "skip": []}
        assert seen(told, "public").startswith("nobody can read it without an account, make the package public: ")
        named = f"{name}@{repository.digest('latest-cpu')}"
        with pytest.raises(EngineError, match=REFUSED):
            site.engine.pull(named, anonymous=True)
        # With the login there is an answer: that its layers are missing.
        with contextlib.closing(engine.connect()) as logged_in, pytest.raises(EngineError) as error:
            logged_in.pull(named)
        assert not re.search(REFUSED, str(error.value)), error.value


def test_a_latest_that_somebody_moved_or_removed_fails(site: Site, served: Registry) -> None:
    repository = site.repository
    one, two = promote(site, 3), site.commit(4)
    push_all(repository, CPU, two, layers=True)
    moved = repository.manifest(versions.image_tag("cpu", two.version))
    assert moved
    repository.point("latest-cpu", moved.content)
    told, found = verified(site, code=1)
    assert "latest" in found["fail"]
    assert "evidence" in found["fail"], "the reports are of the recorded version"
    assert f"was made latest as {repository.digest(versions.image_tag('cpu', one.version))}" in seen(told, "latest")
    again = ("promote", "--version", str(one.version), "--variant", "cpu")
    assert seen(told, "latest").endswith(f"run `invoke {' '.join(again)}`.")

    path = repository.name.partition("/")[2]
    tags = served.configuration.parent / "data/docker/registry/v2/repositories" / path / "_manifests/tags"
    shutil.rmtree(tags / "latest-cpu")
    told, found = verified(site, code=1)
    assert found == {"pass": ["public"], "fail": ["latest"], "skip": []}
    assert f"{repository.name}:latest-cpu is gone" in seen(told, "latest")
    site.done(*again)
    assert repository.digest("latest-cpu") == repository.digest(versions.image_tag("cpu", one.version))


def attested(repository: Repository, statement: object, annotations: object = SPDX) -> str:
    """Pushes an image and its attestation as BuildKit does, and returns the digest of their index."""
    image = push(repository, "image", Platform.AMD64, labels(CPU, release(1)))
    if isinstance(statement, dict):
        subject = [{"name": "x", "digest": {"sha256": image.removeprefix("sha256:")}}]
        statement = {"subject": subject, "predicateType": SPDX["in-toto.io/predicate-type"], **statement}
    content = json.dumps(statement).encode()
    kind = "application/vnd.in-toto+json"
    layer = {"mediaType": kind, "digest": repository.put_blob(content), "size": len(content)}
    empty = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": repository.put_blob(b"{}"), "size": 2}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": empty,
        "layers": [{**layer, "annotations": annotations}],
    }
    attestation = repository.put_manifest("attestation", json.dumps(manifest).encode())
    entries = []
    for digest, os_, architecture in ((image, "linux", "amd64"), (attestation, "unknown", "unknown")):
        found = repository.manifest(digest)
        assert found
        entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(found.content)}
        entries.append({**entry, "platform": {"os": os_, "architecture": architecture}})
    entries[1]["annotations"] = {"vnd.docker.reference.digest": image}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return repository.put_manifest("index", json.dumps(index).encode())


def test_an_sbom_names_its_image_and_llama_cpp(repository: Repository) -> None:
    digest = attested(repository, {"predicate": PACKAGES})
    assert latest.sbom(repository, digest, "linux/amd64") == "2 packages, llama.cpp among them"
    index = repository.manifest(digest)
    assert index
    entries = index.document["manifests"]
    entries[1]["annotations"] = {"vnd.docker.reference.digest": digest}
    other = repository.put_manifest("other", json.dumps({**index.document, "manifests": entries}).encode())
    with pytest.raises(BaseImagesError, match="it has none"):
        latest.sbom(repository, other, "linux/amd64")
    with pytest.raises(RegistryError, match="has no image for linux/arm64"):
        latest.sbom(repository, digest, "linux/arm64")


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ({"predicate": {"packages": [{"name": "libc6"}, "llama.cpp"]}}, "has 1 packages, and llama.cpp is not among"),
        *(({"predicate": odd}, "has 0 packages") for odd in ODD_PREDICATES),
        ({"predicate": PACKAGES, "subject": [{"digest": {"sha256": "0" * 64}}]}, "is of another image"),
        *(({"predicate": PACKAGES, "subject": odd}, "cannot be read") for odd in ODD_SUBJECTS),
        ([], "cannot be read"),
    ],
)
def test_an_sbom_that_proves_nothing_is_a_failure(repository: Repository, statement: object, told: str) -> None:
    with pytest.raises(RegistryError, match=told):
        latest.sbom(repository, attested(repository, statement), "linux/amd64")


def test_the_status_page_shows_what_is_latest_why_and_every_move(site: Site, tmp_path: Path) -> None:
    repository = site.repository
    push_foreign(repository, "cpu", **{Label.VERSION: PREDECESSORS})
    one, two = site.commit(5), site.commit(6)
    digests = earn(repository, one, two, variant=CPU)
    for released in (one, two):
        assert promoted(repository, released, CPU).ok
    assert rolled_back(repository, one, CPU).ok
    push_foreign(repository, "cuda")
    push(repository, "move-cpu-0002-odd", Platform.AMD64, {})
    empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    repository.put_manifest("latest-musa", json.dumps(empty).encode())

    site.done("status-page", "--output", str(tmp_path))
    page = json.loads((tmp_path / "status.json").read_text())
    told = {one["published"]["variant"]: one for one in page["variants"]}
    assert list(told) == [variant.name for variant in VARIANTS]
    cpu = told["cpu"]
    assert (cpu["published"]["latest"]["digest"], cpu["git_tag"]) == (digests[0], one.version.git_tag)
    assert (cpu["release"]["status"], cpu["release"]["reasons"], cpu["signer"], cpu["problem"]) == (
        "latest",
        [],
        "",
        "",
    )
    moves = [(move["number"], move["version"], move["rollback"], move["before"]) for move in cpu["moves"]]
    assert moves == [
        (3, str(one.version), True, digests[1]),
        (2, str(two.version), False, digests[0]),
        (1, str(one.version), False, cpu["moves"][3]["digest"]),
        (0, PREDECESSORS, False, ""),
    ]
    assert all(move["by"] and move["at"] for move in cpu["moves"])
    assert (told["cuda"]["release"], told["cuda"]["moves"], told["cuda"]["published"]["newest"]) == (None, [], None)
    assert "is an index without an image" in told["musa"]["problem"]
    html = (tmp_path / "index.html").read_text()
    for shown in (one.version, two.version, PREDECESSORS, digests[0], f"rolled back to {one.version}"):
        assert str(shown) in html
    assert "is an index without an image" in html
    assert json.loads(site.done("status-page", "--json"))["variants"] == page["variants"]
    assert "Name a directory with --output" in site.refused("status-page", code=2)
