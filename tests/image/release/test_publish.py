"""`publish`, `attach-reports`, `promote` and `check-version` as a user types them, and the indexes that they make."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

from base_images import versions
from base_images.adapters.manifest import OCI_INDEX, OCI_MANIFEST
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import ImageNotFoundError, RegistryError
from base_images.release import publish
from base_images.release.actions import Action, Outcome
from base_images.smoke import command as smoke_command
from base_images.smoke import operations_run
from base_images.variants import Platform
from base_images.versions import Target
from tests.support import bodhi
from tests.support.registries import Registry, log_in, make_authority
from tests.support.releases import (
    CPU,
    CUDA,
    PROVEN,
    Site,
    build_directory,
    checked,
    docker,
    earn,
    first_word,
    labels,
    load,
    notes,
    program,
    promoted,
    prove,
    push,
    push_all,
    release,
    state,
)


def test_platforms_are_published_separately_and_merged_into_one_image(site: Site) -> None:
    repository = site.repository
    one = site.commit(1)
    site.build(one)
    anchor = versions.platform_tag("cpu", one.version, site.here.architecture)
    index = versions.image_tag("cpu", one.version)

    assert "would" in site.invoke("publish", "--variant", "cpu", "--dry-run").stdout
    assert state(repository) == {}
    waiting = site.refused("publish", "--variant", "cpu")
    assert f"{site.elsewhere.docker} is missing: run `invoke build-local --variant cpu`" in waiting
    assert set(state(repository)) == {anchor}
    site.push_elsewhere(one)
    before = state(repository)
    assert first_word(site.done("publish", "--variant", "cpu", BASE_IMAGES_DRY_RUN="true")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done("publish", "--variant", "cpu")) == Outcome.DONE
    published = state(repository)
    assert published == {**before, index: published[index]}
    assert first_word(site.done("publish", "--variant", "cpu")) == Outcome.ALREADY
    assert first_word(site.done("publish", "--variant", "cpu", "--dry-run")) == Outcome.ALREADY
    assert state(repository) == published
    assert site.done("image-digest", "--variant", "cpu").strip() == published[index]


def test_an_emulated_build_of_the_other_platform_is_published_too_to_rehearse(site: Site) -> None:
    one = site.commit(1)
    site.build(one, BUILD_ORIGIN="packages")
    emulated = f"{site.local(one)}-{site.elsewhere.architecture}"
    load(emulated, site.elsewhere, labels(CPU, one, BUILD_ORIGIN="packages"))
    tag = versions.image_tag("cpu", one.version)

    assert "waits" not in site.done("publish", "--variant", "cpu", "--dry-run")
    assert state(site.repository) == {}
    site.done("publish", "--variant", "cpu")
    published = site.repository.platform_manifests(tag)
    assert set(published) == {platform.docker for platform in CPU.platforms}
    assert site.engine.has_image(emulated)


def test_the_operations_are_published_beside_their_image_and_pulled_by_its_version(site: Site) -> None:
    repository, engine, operations = site.repository, site.engine, Target.OPERATIONS
    one = site.commit(1)
    site.build(one)
    told = site.refused("publish", "--variant", "cpu", "--operations")
    assert "build it with `invoke build-local --variant cpu --operations`" in told
    with bodhi.built(engine, f"FROM {site.local(one)}\nCOPY program /app/test\n", {"program": b"x"}) as beside:
        engine.tag(beside.id, operations.tag(site.local(one)))
        waiting = site.refused("publish", "--variant", "cpu", "--operations")
        assert f"{site.elsewhere.docker} is missing: run `invoke build-local --variant cpu --operations`" in waiting
        site.push_elsewhere(one)
        site.push_elsewhere(one, operations)
        site.done("publish", "--variant", "cpu", "--operations")
        engine.remove_image(operations.tag(site.local(one)))
    image, tag = (versions.image_tag("cpu", one.version, target) for target in Target)
    anchors = {f"{name}-{platform.architecture}" for name in (image, tag) for platform in Platform}
    assert set(state(repository)) == {image, tag, *anchors}
    # It is no version, so neither the newest one nor latest.
    shown = checked(json.loads(site.invoke("check-version", "--json").stdout))
    assert shown["newest"]["tag"] == image
    assert site.done("image-digest", "--variant", "cpu").strip() == repository.digest(image)

    engine.remove_image(site.local(one))
    pulled = smoke_command.pulled(engine, site.local(one))
    found = operations_run.image_of(engine, pulled, CPU, lambda named: smoke_command.pulled(engine, named))
    assert found.diff_ids[:-1] == pulled.diff_ids
    assert found.tags == (operations.tag(site.local(one)),)


def test_promotion_depends_on_the_attached_reports(site: Site, tmp_path: Path) -> None:
    repository = site.repository
    one = site.commit(1)
    site.build(one)
    site.push_elsewhere(one)
    site.done("publish", "--variant", "cpu")
    published = state(repository)

    # A tiny image breaks the contract, and its report says so.
    found = site.refused("check-image", site.local(one), "--record", str(tmp_path / "failed"))
    assert "llama-server" in found
    site.done("attach-reports", str(tmp_path / "failed"))
    failed = site.refused("promote", "--variant", "cpu")
    assert f"{site.here.docker}: its report contract says that it failed" in failed
    assert f"{site.elsewhere.docker}: no contract report is attached" in failed
    directory = site.reports(one, tmp_path / "passed")
    before = state(repository)
    site.done("attach-reports", directory, "--dry-run")
    assert state(repository) == before
    site.done("attach-reports", directory)
    attached = state(repository)
    assert len(attached) == len(published) + len(CPU.platforms) * len(PROVEN)
    site.done("attach-reports", directory)
    assert state(repository) == attached
    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == published[versions.image_tag("cpu", one.version)]


def test_two_promotions_and_a_rollback(site: Site) -> None:
    repository = site.repository
    one, two = site.commit(1), site.commit(2)
    [first] = earn(repository, one, variant=CPU)
    assert notes(repository) == ["published and never promoted"]

    before = state(repository)
    first_promotion = ("promote", "--version", str(one.version), "--variant", "cpu")
    assert first_word(site.done(*first_promotion, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*first_promotion)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    before = state(repository)
    assert first_word(site.done(*first_promotion)) == Outcome.ALREADY
    assert state(repository) == before

    [second] = earn(repository, two, variant=CPU)
    assert f"lags: {two.version} is published and not promoted" in notes(repository)
    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == second
    assert notes(repository) == []
    older = site.refused(*first_promotion)
    assert f"{two.version} is latest and newer: `invoke rollback --variant cpu --to {one.version}`" in older

    before = state(repository)
    back = ("rollback", "--variant", "cpu", "--to", str(one.version))
    assert first_word(site.done(*back, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*back)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    assert first_word(site.done(*back)) == Outcome.ALREADY
    assert "it was latest before and was rolled back" in site.refused("promote", "--variant", "cpu")
    recorded = [json.loads(line) for line in (build_directory(site) / "promote.jsonl").read_text().splitlines()]
    outcomes = [Outcome.WOULD, Outcome.DONE, Outcome.ALREADY, Outcome.DONE, Outcome.REFUSED, Outcome.REFUSED]
    assert [line["outcome"] for line in recorded] == outcomes
    assert [line["digest"] for line in recorded] == ["", first, first, second, "", ""]


def test_each_platform_gets_its_own_files(site: Site) -> None:
    """Both have real content and nothing is emulated: pulled files are inspected and not run."""
    one = site.commit(1)
    site.build(one)
    site.push_elsewhere(one)
    site.done("publish", "--variant", "cpu")
    docker("rmi", site.local(one))
    for platform in Platform:
        docker("pull", "--platform", platform.docker, site.local(one))
        container = docker("create", "--platform", platform.docker, site.local(one)).decode().strip()
        try:
            with tarfile.open(fileobj=io.BytesIO(docker("cp", f"{container}:/app/program", "-"))) as tar:
                content = tar.extractfile("program")
                assert content
                assert content.read() == program(platform)
        finally:
            docker("rm", container)
        docker("rmi", site.local(one))


def test_the_whole_way_through_tls_and_a_password(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine and the commands read both from docker's configuration, and print neither."""
    authority = make_authority(tmp_path / "authority")
    with Registry(tmp_path / "registry", password=True, tls=authority) as served:
        log_in(tmp_path, served.address)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))
        behind = dataclasses.replace(site, repository=open_repository(f"{served.address}/x"))
        one = behind.commit(1)
        behind.build(one)
        behind.push_elsewhere(one)
        behind.done("publish", "--variant", "cpu")
        behind.done("attach-reports", behind.reports(one, tmp_path / "reports"))
        behind.done("promote", "--variant", "cpu")
        index = behind.repository.digest(versions.image_tag("cpu", one.version))
        assert behind.repository.digest("latest-cpu") == index
        docker("rmi", behind.local(one))
        log_in(tmp_path, served.address, password="wrong")  # noqa: S106
        assert "log in with `docker login" in behind.refused("publish", "--variant", "cpu")


def test_an_unreleased_commit_is_not_published(site: Site) -> None:
    one = site.commit(1, tagged=False)
    assert f"{one.version} is not released: origin has no tag" in site.refused("publish", code=7)
    site.clone.git.tag("--annotate", "--message=x", one.version.git_tag)
    (Path(site.clone.working_dir) / "new").touch()
    assert f"{one.version}-dirty is not released" in site.refused("publish", code=7)
    assert state(site.repository) == {}


def test_only_images_built_from_the_commit_are_published(site: Site) -> None:
    one = release(1)

    def publishing() -> Action:
        [action, *_] = publish.publish(
            site.repository, CPU, version=one.version, commit=one.commit, connect=lambda: site.engine
        )
        return action

    with pytest.raises(
        ImageNotFoundError, match=r"This engine has no .*: build it with `invoke build-local --variant cpu`"
    ):
        publishing()
    for changed, told in (
        ({"REVISION": "f" * 40}, "its label org.opencontainers.image.revision is 'fff"),
        ({"VERSION": f"{one.version}-dirty"}, "-dirty' and not '"),
        ({"VARIANT": "cuda"}, "its label bodhi.variant is 'cuda' and not 'cpu'"),
    ):
        site.build(one, **changed)
        with pytest.raises(RegistryError, match=f"cannot be published: .*{told}"):
            publishing()
        assert state(site.repository) == {}
    from_packages = labels(CPU, one, BUILD_ORIGIN="packages")
    publish.require_publishable(
        from_packages, variant=CPU, version=one.version, commit=one.commit, target=site.repository.name
    )
    with pytest.raises(RegistryError, match=r"its bases are from 'packages'.*build it with `--origin registries`"):
        publish.require_publishable(
            from_packages, variant=CPU, version=one.version, commit=one.commit, target="ghcr.io/x/y:cpu-1"
        )


# Indexes.


def test_a_published_version_never_changes(repository: Repository) -> None:
    one = release(1)
    digest = push_all(repository, CUDA, one)
    assert publish.merge(repository, CUDA, one.version).outcome is Outcome.ALREADY
    tag = versions.image_tag("cuda", one.version)
    other = push(repository, tag, Platform.AMD64, labels(CUDA, one))
    assert other != digest
    with pytest.raises(RegistryError, match=rf"{tag} is published already and is another image \({other}\)"):
        publish.merge(repository, CUDA, one.version)
    assert repository.digest(tag) == other


def test_the_same_images_make_the_same_index(repository: Repository, served: Registry) -> None:
    again = open_repository(f"{served.address}/again")
    assert push_all(repository, CPU, release(1)) == push_all(again, CPU, release(1))


def test_an_image_for_another_platform_than_its_tag_says_is_not_merged(repository: Repository) -> None:
    one = release(1)
    for platform in CPU.platforms:
        tag = versions.platform_tag("cpu", one.version, platform.architecture)
        push(repository, tag, Platform.AMD64, labels(CPU, one))
    with pytest.raises(RegistryError, match=r"-arm64 is not an image for linux/arm64 alone"):
        publish.merge(repository, CPU, one.version)
    assert repository.digest(versions.image_tag("cpu", one.version)) is None


def test_attestations_stay_with_their_image(repository: Repository) -> None:
    """BuildKit pushes an index of the image and its attestations, also for one platform."""
    one = release(1)
    attested = []
    for platform in CPU.platforms:
        tag = versions.platform_tag("cpu", one.version, platform.architecture)
        entries = []
        for name, described in (("", platform.architecture), ("statement", "unknown")):
            digest = push(repository, f"{tag}{name}", platform, {**labels(CPU, one), "x": name})
            manifest = repository.manifest(digest)
            assert manifest
            entry = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest.content)}
            os_ = "unknown" if name else "linux"
            entries.append({**entry, "platform": {"os": os_, "architecture": described}})
        entries[1]["annotations"] = {
            "vnd.docker.reference.digest": entries[0]["digest"],
            "vnd.docker.reference.type": "attestation-manifest",
        }
        attested += entries
        content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        repository.put_manifest(tag, json.dumps(content).encode())
    publish.merge(repository, CPU, one.version)
    index = repository.manifest(versions.image_tag("cpu", one.version))
    assert index
    assert index.document["manifests"] == attested
    assert set(repository.platform_manifests(index.digest)) == {"linux/amd64", "linux/arm64"}
    prove(repository, CPU, one, *PROVEN)
    assert promoted(repository, one, CPU).digest == index.digest
