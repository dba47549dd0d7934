"""`invoke release-notes` as a user types it, in a clone with a bare remote, with a real registry."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import git
import pytest
from jsonschema import Draft202012Validator

from base_images import settings, variants, versions
from base_images.adapters import registry, repository
from base_images.release import publish
from base_images.release import record as release_record
from base_images.release.evidence import Kind
from base_images.variants import Platform
from base_images.versions import Version
from tests.support import clones, releases
from tests.support.registries import Registry
from tests.support.releases import CPU, PROVEN, VULKAN

SCHEMA = json.loads(release_record.SCHEMA.read_text(encoding="utf-8"))


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release of tiny images, in its own registry."""

    clone: git.Repo
    version: Version
    commit: str
    where: registry.Repository
    environment: Mapping[str, str]

    def notes(self, *arguments: str, **environment: str) -> Any:
        """Runs the command."""
        return clones.invoke(self.clone, {**self.environment, **environment}, "release-notes", *arguments)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The cpu image is latest, rocm failed its contract, vulkan lacks a platform, musa is unreadable; no others."""
    directory = tmp_path_factory.mktemp("release")
    environment = clones.environment()
    with Registry(directory / "registry") as server:
        name = f"{server.address}/llama.cpp"
        where = registry.open_repository(name)
        with clones.clone(directory) as clone:
            head = repository.head(clone.git)
            clone.git.tag("--annotate", "--message", "a release", head.version.git_tag)
            made = releases.Release(version=head.version, commit=head.commit)

            def push(variant: str, **labels: str) -> None:
                tag = versions.platform_tag(variant, made.version, "amd64")
                known = releases.labels(variants.find(variant), made)
                releases.push(where, tag, Platform.AMD64, {**known, **labels})

            releases.push_all(where, CPU, made, BUILD_ARGUMENTS=json.dumps({"BUILD_COMMIT": made.commit}))
            releases.prove(where, CPU, made, *PROVEN)
            assert releases.promoted(where, made, CPU).ok
            push("rocm", **{"bodhi.toolkit.rocm": "7.2.1"})
            rocm = variants.find("rocm")
            publish.merge(where, rocm, made.version)
            releases.prove(where, rocm, made, Kind.CONTRACT, ok=False)
            releases.prove(where, rocm, made, Kind.SMOKE)
            push(VULKAN.name)
            push("musa", **{"bodhi.build.arguments": "[1]"})
            yield Release(
                clone=clone,
                version=head.version,
                commit=head.commit,
                where=where,
                environment={**environment, settings.REGISTRY_VARIABLE: name},
            )


def test_the_notes_have_every_variant_in_its_state(release: Release) -> None:
    done = release.notes("--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert not list(Draft202012Validator(SCHEMA).iter_errors(told))
    assert (told["version"], told["commit"]) == (str(release.version), release.commit)
    assert told["git_tag"] == f"base-images/v{release.version}"
    assert told["llama_cpp"]["commit"] == settings.load().pin.commit
    assert (told["previous"], told["changes"]) == (None, None)

    found = {variant["name"]: variant for variant in told["variants"]}
    assert {name: variant["status"] for name, variant in found.items()} == {
        "cpu": "latest",
        "cuda": "missing",
        "rocm": "published",
        "vulkan": "incomplete",
        "musa": "unreadable",
        "intel": "missing",
        "cann": "missing",
    }
    cpu = found["cpu"]
    assert cpu["reasons"] == []
    assert cpu["digest"] == release.where.digest("latest-cpu")
    tags = [f"cpu-{release.version}", f"cpu-{release.version}-amd64", f"cpu-{release.version}-arm64", "latest-cpu"]
    assert cpu["tags"] == tags
    assert set(tags) <= set(release.where.tags())
    for image in cpu["platforms"]:
        manifest = release.where.manifest(image["digest"])
        assert manifest is not None
        assert image["size"] == manifest.layers_size > 0
        assert image["arguments"] == {"BUILD_COMMIT": release.commit}
        for report in image["reports"]:
            artifact = release.where.manifest(report["digest"])
            assert artifact is not None
            assert artifact.document["subject"]["digest"] == image["digest"]

    assert found["rocm"]["reasons"] == ["linux/amd64: its report contract says that it failed."]
    assert found["rocm"]["platforms"][0]["toolkit"] == {"rocm": "7.2.1"}
    assert found["rocm"]["device_waiver"] is None
    assert found["vulkan"]["missing_platforms"] == ["linux/arm64"]
    assert "linux/arm64 is missing" in found["vulkan"]["reasons"][0]
    assert len(found["vulkan"]["platforms"]) == 1
    assert "is not an image that this version can read" in found["musa"]["reasons"][0]
    assert "publish it first" in found["cuda"]["reasons"][0]


def test_writing_the_files_again_gives_the_same_bytes(release: Release, tmp_path: Path) -> None:
    tags = release.where.tags()
    contents = []
    for dry_run in ("", "true"):
        done = release.notes("--output", str(tmp_path / "files"), **{settings.DRY_RUN_VARIABLE: dry_run})
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{tmp_path / 'files'}: 8 files, for {release.version.git_tag}\n"
        texts = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "files").rglob("*")}
        made = json.loads(texts["release.json"])["made"]
        contents.append({name: text.replace(made, "NOW") for name, text in texts.items()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [
        "contract-cpu-amd64.evidence.json",
        "contract-cpu-arm64.evidence.json",
        "contract-rocm-amd64.evidence.json",
        "notes.md",
        "release.json",
        "smoke-cpu-amd64.evidence.json",
        "smoke-cpu-arm64.evidence.json",
        "smoke-rocm-amd64.evidence.json",
    ]
    assert release.where.tags() == tags, "nothing was changed"

    printed = release.notes("--output", str(tmp_path / "other"), "--dry-run")
    assert not (tmp_path / "other").exists()
    assert printed.stdout.splitlines()[1:] == contents[0]["notes.md"].splitlines()[1:]
    assert f"FROM {release.where.name}@{release.where.digest('latest-cpu')}\n" in printed.stdout


def test_errors_are_one_sentence(release: Release, tmp_path: Path) -> None:
    nowhere = release.notes("--output", str(tmp_path / "a"), **{settings.REGISTRY_VARIABLE: "127.0.0.1:1/llama.cpp"})
    assert nowhere.returncode == 10
    assert nowhere.stderr.startswith("error: The registry 127.0.0.1:1 does not answer")

    unknown = release.notes("--output", str(tmp_path / "a"), "--version", "2508201420-abc1234")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: 2508201420-abc1234 is not a release in this clone")

    for done in (nowhere, unknown):
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "a").exists()
