"""Bake with the real buildx: pushed by digest with attestations, loaded into the engine, and for two platforms."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import git
import pytest

from base_images import settings, variants, versions
from base_images.adapters import registry
from base_images.adapters.buildkit import Event, StepFinished
from base_images.adapters.engine import Engine, Image
from base_images.adapters.manifest import Manifest
from base_images.adapters.registry import Repository
from base_images.build import bakefile, local, source
from base_images.build.inputs import Origin
from base_images.build.plan import BuildPlan
from base_images.errors import BuildError, EngineError, UsageError
from base_images.labels import Label
from base_images.progress import silent
from base_images.release import publish
from base_images.release.actions import Outcome
from base_images.variants import Platform
from tests.support import builders, clones, commands
from tests.support.registries import Registry

CPU = variants.find("cpu")
PIN = settings.load().pin
GLIBC = (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")

RECIPE = """\
ARG WEB_BASE_IMAGE={address}/node:24
ARG BUILD_BASE_IMAGE={address}/ubuntu:24.04
ARG RUNTIME_BASE_IMAGE={address}/ubuntu:24.04
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
FROM ${{BUILD_BASE_IMAGE}} AS build
RUN echo "compiling" && echo built > /built
FROM ${{RUNTIME_BASE_IMAGE}} AS runtime
COPY --from=build /built /app/built
COPY llama.cpp/CMakeLists.txt /app/
ARG BUILD_VERSION
ARG BUILD_BRANCH
RUN echo "$BUILD_VERSION of $BUILD_BRANCH" > /app/version
"""

# Without RUN, which would need a machine of the platform.
RECIPE_WITHOUT_RUN = """\
FROM scratch AS runtime
COPY llama.cpp/CMakeLists.txt /app/
"""


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A checkout with a small recipe, and the registry that it publishes to."""

    root: Path
    repository: Repository
    generator: str
    version: versions.Version

    @property
    def anchor(self) -> str:
        return versions.platform_tag("cpu", self.version, "amd64")

    def settings(self) -> settings.Settings:
        return settings.Settings(registry=self.repository.name, release_branch="main", url="https://x.example", pin=PIN)

    def write(self, recipe: str) -> None:
        (self.root / CPU.dockerfile).write_text(recipe)
        with git.Repo(self.root) as opened:
            opened.git.add("--all")
            opened.git.commit("--quiet", "--allow-empty", "--message=x")


def invoke(checkout: Checkout, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {
        settings.REGISTRY_VARIABLE: checkout.repository.name,
        bakefile.SBOM_GENERATOR_VARIABLE: checkout.generator,
        "COLUMNS": "200",
    }
    return commands.invoke(*arguments, cwd=checkout.root, environment={**known, **environment})


@pytest.fixture(scope="module", autouse=True)
def buildx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Skips without buildx, and keeps the builders made here out of the user's configuration."""
    if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode:
        pytest.skip("needs docker buildx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUILDX_CONFIG", str(tmp_path_factory.mktemp("buildx")))
        yield


@pytest.fixture(scope="module")
def served(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry with a base image that has a shell and getconf, and with an SBOM generator."""
    directory = tmp_path_factory.mktemp("registry")
    with Registry(directory) as running:
        tar = builders.write_root(directory / "root.tar", "sh", "getconf", "cat")
        for name in ("ubuntu:24.04", "node:24"):
            builders.push_root(engine, tar, f"{running.address}/{name}", f'CMD ["{name}"]')
        builders.push_generator(engine, f"{running.address}/generator:1", directory, file="/app/built")
        yield running


@pytest.fixture
def checkout(served: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Checkout:
    root = clones.fresh_copy(tmp_path / "checkout", ".dockerignore", ".gitignore")
    (root / "dockerfiles").mkdir()
    (root / CPU.dockerfile).write_text(RECIPE.format(address=served.address))
    tree = root / source.DIRECTORY
    tree.mkdir()
    (tree / "CMakeLists.txt").write_text('project("llama.cpp")\n')
    stamp = {"tag": PIN.tag, "commit": PIN.commit, "kind": "git", "digest": source.tree_digest(tree)}
    (tree / source.STAMP).write_text(json.dumps(stamp))
    with clones.commit_all(root) as opened:
        commit = opened.head.commit
        version = versions.of_commit(commit.hexsha, commit.committed_date, dirty=False)
    name = re.sub(r"\W", "", str(request.node.name))[:40].strip("_").lower()
    return Checkout(
        root=root,
        repository=registry.open_repository(f"{served.address}/{name}"),
        generator=f"{served.address}/generator:1",
        version=version,
    )


@pytest.fixture(scope="module")
def builder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not builders.can_be_remote(engine):
        pytest.skip("needs an engine of this machine with the containerd image store")
    with builders.of_engine(tmp_path_factory.mktemp("buildkit")) as name:
        yield name


def attested(repository: Repository, index: Manifest) -> dict[str, Mapping[str, Any]]:
    """Returns the predicates of the attestations in an index, by type."""
    [entry] = [entry for entry in index.document["manifests"] if entry["platform"]["os"] == "unknown"]
    assert entry["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
    manifest = repository.manifest(entry["digest"])
    assert manifest
    statements = [json.loads(repository.blob(layer["digest"])) for layer in manifest.document["layers"]]
    return {statement["predicateType"]: statement["predicate"] for statement in statements}


def test_a_push_has_the_values_of_the_plan_and_attestations(checkout: Checkout, builder: str) -> None:
    arguments = ("bake", "--variant", "cpu", "--platform", "amd64", "--push", "--builder", builder)
    done = invoke(checkout, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr

    repository = checkout.repository
    # One tag for the image, which was pushed by its digest, and one for the cache.
    assert set(repository.tags()) == {checkout.anchor, "cache-cpu-amd64"}
    index = repository.manifest(checkout.anchor)
    assert index
    assert index.is_index
    [image] = repository.platform_manifests(checkout.anchor).values()
    labels = repository.labels(image)
    assert labels[Label.GLIBC] == GLIBC
    assert labels[Label.VERSION] == str(checkout.version)
    assert labels[Label.BUILD_ORIGIN] == "registries"
    assert set(labels) == {label.value for label in Label} - {Label.LLAMA_CPP_RELEASE, Label.DEBIAN_SNAPSHOT}
    predicates = attested(repository, index)
    assert predicates["https://spdx.dev/Document"]["name"] == "built"
    provenance = json.dumps(predicates["https://slsa.dev/provenance/v0.2"])
    assert str(checkout.version) in provenance
    assert base64.b64encode((checkout.root / CPU.dockerfile).read_bytes()).decode() in provenance, "not mode=max"
    assert f"{checkout.repository.name}:{checkout.anchor}" in done.stdout
    assert "RUN echo" in done.stdout
    assert "load build definition" not in done.stdout

    again = invoke(checkout, *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.split()[0] == Outcome.ALREADY
    assert len(again.stdout.splitlines()) == 1
    assert index.digest in again.stdout


def test_a_dry_run_builds_and_publishes_nothing(checkout: Checkout, builder: str) -> None:
    arguments = ("bake", "--variant", "cpu", "--platform", "amd64", "--push", "--builder", builder)
    done = invoke(checkout, *arguments, BASE_IMAGES_DRY_RUN="true")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "RUN echo" in done.stdout
    assert Outcome.WOULD in done.stdout
    assert checkout.repository.tags() == []


def test_every_step_is_cached_in_the_registry(checkout: Checkout, builder: str) -> None:
    run(checkout, builder, [])
    cached = checkout.repository.manifest("cache-cpu-amd64")
    assert cached
    # The base, three steps of the runtime, and the compile, which is in no layer of the image.
    assert len(cached.document["layers"]) == 5
    events: list[Event] = []
    run(checkout, builder, events)
    [asked] = [event for event in events if isinstance(event, StepFinished) and "importing cache" in event.name]
    assert asked.name.endswith(f"{checkout.repository.name}:cache-cpu-amd64")
    assert asked.error == ""


def run(checkout: Checkout, builder: str, events: list[Event]) -> dict[str, str]:
    tree = source.expected(PIN, path=None, root=checkout.root)
    plans = local.preview(CPU, [Platform.AMD64], settings=checkout.settings(), root=checkout.root, source=tree)
    file = bakefile.bake_file(plans, checkout.repository.name, push=True)
    for target in file["target"].values():
        target["attest"] = [value for value in target["attest"] if "sbom" not in value]
    return bakefile.run(plans, file, root=checkout.root, builder=builder, on_event=events.append)


def test_a_failed_step_is_reported_with_its_log(checkout: Checkout, builder: str) -> None:
    recipe = (checkout.root / CPU.dockerfile).read_text()
    (checkout.root / CPU.dockerfile).write_text(recipe.replace('echo "compiling"', 'echo "no such header" && false'))
    with pytest.raises(BuildError, match=r"failed in the step .*RUN echo .no such header") as caught:
        run(checkout, builder, [])
    assert "no such header" in caught.value.detail
    (checkout.root / CPU.dockerfile).write_text(recipe + "NONSENSE\n")
    with pytest.raises(BuildError, match="unknown instruction: NONSENSE"):
        run(checkout, builder, [])


def test_the_local_engine_gets_the_image_and_its_tags(checkout: Checkout, engine: Engine) -> None:
    tags = (f"{checkout.repository.name}:cpu-{checkout.version}", "llama-cpp-cpu:baked")
    tree = source.expected(PIN, path=None, root=checkout.root)
    here = engine.platform()
    [plan] = local.preview(CPU, [here], settings=checkout.settings(), root=checkout.root, source=tree)
    file = bakefile.bake_file([plan], checkout.repository.name, push=False)
    file["target"][bakefile.target(plan)]["tags"] = list(tags)  # not the tag that other tests take for theirs
    try:
        assert bakefile.run([plan], file, root=checkout.root, builder="", on_event=lambda _: None)
        image = engine.image(tags[0])
        assert image.labels[Label.GLIBC] == GLIBC
        assert {label for label in image.labels if label.startswith("bodhi.")} <= {label.value for label in Label}
        assert set(tags) <= set(image.tags)
    finally:
        for tag in tags:
            engine.remove_image(tag)


def test_bake_and_build_local_give_the_same_image(engine: Engine, cpu_image: Image) -> None:
    root, known = settings.ROOT, settings.load()
    origin = Origin(cpu_image.labels[Label.BUILD_ORIGIN])
    tree = source.resolve(PIN, path=None, origin=origin, root=root, listener=silent)
    prepared = local.prepare(engine, CPU, settings=known, root=root, source=tree, wanted=origin, listener=silent)
    if prepared.plan.labels != {name: cpu_image.labels.get(name) for name in prepared.plan.labels}:
        pytest.skip("the local cpu image is not of this commit, so its steps may have to run again")
    file = bakefile.bake_file([prepared.plan], known.registry, push=False)
    [tag] = file["target"][bakefile.target(prepared.plan)]["tags"] = ["llama-cpp-cpu:baked"]
    try:
        bakefile.run([prepared.plan], file, root=root, builder="", on_event=lambda _: None)
        baked = engine.image(tag)
        assert baked.diff_ids == cpu_image.diff_ids
        assert baked.labels == cpu_image.labels
        assert baked.history == cpu_image.history
    finally:
        engine.remove_image(tag)


def test_two_platforms_in_one_file_become_one_image(checkout: Checkout, builder: str) -> None:
    tree = source.expected(PIN, path=None, root=checkout.root)
    plans = local.preview(CPU, CPU.platforms, settings=checkout.settings(), root=checkout.root, source=tree)
    checkout.write(RECIPE_WITHOUT_RUN)
    file = bakefile.bake_file(plans, checkout.repository.name, push=True)
    for target in file["target"].values():
        target["attest"] = [value for value in target["attest"] if "sbom" not in value]
    known = {"GLIBC_CPU_AMD64": "2.39", "GLIBC_CPU_ARM64": "2.40"}
    results = bakefile.bake(
        file, ["default"], root=checkout.root, builder=builder, environment=known, on_event=lambda _: None
    )
    for platform in CPU.platforms:
        digest = results[f"cpu-{platform.architecture}"]["containerimage.digest"]
        publish.anchor(checkout.repository, CPU, checkout.version, platform, digest)
    publish.merge(checkout.repository, CPU, checkout.version)
    found = checkout.repository.platform_manifests(versions.image_tag("cpu", checkout.version))
    assert {platform: checkout.repository.labels(manifest)[Label.GLIBC] for platform, manifest in found.items()} == {
        "linux/amd64": "2.39",
        "linux/arm64": "2.40",
    }
    assert {platform: checkout.repository.labels(manifest)[Label.PLATFORM] for platform, manifest in found.items()} == {
        "linux/amd64": "linux/amd64",
        "linux/arm64": "linux/arm64",
    }


@pytest.mark.parametrize("push", [False, True])
def test_buildx_parses_the_file_of_every_variant(checkout: Checkout, served: Registry, push: bool) -> None:
    plans: list[BuildPlan] = []
    for variant in variants.VARIANTS:
        text = (settings.ROOT / variant.dockerfile).read_text()
        lines = [f"ARG {role}_BASE_IMAGE={served.address}/ubuntu:24.04" for role in ("WEB", "BUILD", "RUNTIME")]
        text = re.sub(r"^ARG (WEB|BUILD|RUNTIME)_BASE_IMAGE=.*$", "", text, flags=re.MULTILINE)
        (checkout.root / variant.dockerfile).write_text("\n".join([*lines, text]))
        plans += local.preview(
            variant,
            variant.platforms,
            settings=checkout.settings(),
            root=checkout.root,
            source=source.expected(PIN, path=None, root=checkout.root),
        )
    path = checkout.root / "build" / "bake.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(bakefile.bake_file(plans, checkout.repository.name, push=push)))
    printed = subprocess.run(
        ["docker", "buildx", "bake", "--print", "--file", str(path), "default", "glibc"],
        cwd=checkout.root,
        env={**os.environ, "GLIBC_CANN_ARM64": "2.38"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    targets = json.loads(printed)["target"]

    assert len(targets) == 2 * len(plans)
    for plan in plans:
        read = targets[bakefile.target(plan)]
        assert read["args"] == plan.arguments
        labels = {name: value for name, value in read["labels"].items() if name != Label.GLIBC}
        assert labels == plan.labels
        assert read["platforms"] == [plan.platform]
    assert targets["cann-arm64"]["labels"][Label.GLIBC] == "2.38"


def test_a_failed_push_is_one_sentence(checkout: Checkout, builder: str) -> None:
    with pytest.raises(UsageError, match="buildx has no builder 'nowhere'"):
        bakefile.require_builder("nowhere", push=False)
    with pytest.raises(EngineError, match="cannot push by digest: make another"):
        bakefile.require_builder("default", push=True)
    bakefile.require_builder("default", push=False)
    bakefile.require_builder(builder, push=True)
    (checkout.root / "dirty").touch()
    done = invoke(checkout, "bake", "--variant", "cpu", "--push", "--builder", builder)
    assert done.returncode == 2
    assert "only a commit is published" in done.stderr
    (checkout.root / "dirty").unlink()
    (checkout.root / source.DIRECTORY / "new.cpp").touch()
    done = invoke(checkout, "bake", "--variant", "cpu", "--push", "--builder", builder)
    assert done.returncode == 2
    assert "is not the pin as it was fetched" in done.stderr
    assert checkout.repository.tags() == []


def test_the_plan_is_the_file_of_the_build_and_fetches_nothing(checkout: Checkout) -> None:
    nothing = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
    done = invoke(checkout, "plan", "--variant", "cpu", "--format", "bake", "--push", **nothing)
    assert done.returncode == 0, done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(bakefile.SBOM_GENERATOR_VARIABLE, checkout.generator)
        tree = source.expected(PIN, path=None, root=checkout.root)
        chosen = settings.Settings(
            registry=checkout.repository.name, release_branch="main", url=settings.load().url, pin=PIN
        )
        plans = local.preview(CPU, CPU.platforms, settings=chosen, root=checkout.root, source=tree)
        assert json.loads(done.stdout) == bakefile.bake_file(plans, checkout.repository.name, push=True)
    for form in ("table", "json"):
        done = invoke(checkout, "plan", "--variant", "cpu", "--format", form, **nothing)
        assert done.returncode == 0, done.stderr
        assert "@sha256:" in done.stdout
