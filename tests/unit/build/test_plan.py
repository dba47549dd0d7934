from __future__ import annotations

import json
import shlex
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from base_images import settings, variants, versions
from base_images.build import plan
from base_images.build.inputs import BaseImage, Bases, Origin, Source, SourceKind
from base_images.errors import UsageError
from base_images.labels import Label
from base_images.variants import Platform
from base_images.versions import Head

PIN = settings.load().pin
SETTINGS = settings.Settings(registry="ghcr.io/x/y", release_branch="main", url="https://example.org/x", pin=PIN)
COMMIT = "abc1234567890abcdef1234567890abcdef12345"
TIME = datetime(2025, 8, 20, 14, 20, 31, tzinfo=UTC)
HEAD = Head(
    commit=COMMIT,
    time=TIME,
    branch="main",
    changes=(),
    version=versions.of_commit(COMMIT, int(TIME.timestamp()), dirty=False),
)
SOURCE = Source(
    path=Path("llama.cpp"),
    tag=PIN.tag,
    commit=PIN.commit,
    build_number=11312,
    kind=SourceKind.GIT,
    dirty=False,
    digest="d",
)


def base(role: str) -> BaseImage:
    return BaseImage(reference=f"{role}:1@sha256:{role}", name=f"{role}:1", digest=f"sha256:{role}")


BASES = Bases(
    origin=Origin.REGISTRIES,
    web=base("web"),
    build=base("build"),
    runtime=base("runtime"),
    glibc="2.39",
    arguments={},
    notices=(),
    snapshot="",
)


def made(**changes: object) -> plan.BuildPlan:
    known = {
        "variant": variants.find("cpu"),
        "platform": Platform.AMD64,
        "settings": SETTINGS,
        "head": HEAD,
        "source": SOURCE,
        "bases": BASES,
        "recipe_arguments": {},
        "chosen": {},
    }
    return plan.build_plan(**{**known, **changes})  # type: ignore[arg-type]


def test_tags() -> None:
    assert made().tags == ("ghcr.io/x/y:cpu-2508201420-abc1234", "llama-cpp-cpu:local")


def test_the_operations_are_the_same_build_with_another_target_and_tags() -> None:
    image, beside = made(), plan.of_operations(made())
    assert beside.target == "operations"
    assert beside.tags == (
        "ghcr.io/x/y:cpu-2508201420-abc1234-operations",
        "llama-cpp-cpu:local-operations",
    )
    assert beside.arguments == image.arguments
    assert dict(set(beside.labels.items()) - set(image.labels.items())) == {
        Label.REF_NAME.value: "cpu-2508201420-abc1234-operations"
    }


def test_labels_are_all_there_and_none_is_empty() -> None:
    snapshot = replace(BASES, snapshot="20261101T000000Z")
    labels = made(source=replace(SOURCE, release="v0.6.0"), bases=snapshot).labels
    assert set(labels) == {label.value for label in Label}
    assert all(labels.values())
    assert labels[Label.LLAMA_CPP_RELEASE] == "v0.6.0"
    absent = {Label.LLAMA_CPP_RELEASE.value, Label.DEBIAN_SNAPSHOT.value}
    assert set(labels) - set(made().labels) == absent, "no release, no snapshot, no label"
    assert labels[Label.DEBIAN_SNAPSHOT] == "20261101T000000Z"
    assert labels[Label.CREATED] == "2025-08-20T14:20:31Z"
    assert labels[Label.BUILD_TIMESTAMP] == "2508201420"
    assert labels[Label.REVISION] == COMMIT
    assert labels[Label.BASE_NAME] == "runtime:1"
    assert labels[Label.BASE_DIGEST] == "sha256:runtime"
    assert labels[Label.BUILD_ORIGIN] == "registries"
    assert labels[Label.GLIBC] == "2.39"


def test_arguments_are_those_of_the_recipe() -> None:
    recipe = (settings.ROOT / "dockerfiles" / "cpu.Dockerfile").read_text()
    for name in made().arguments:
        assert f"\nARG {name}" in recipe, name
    assert made().arguments["LLAMA_CPP_RELEASE"] == ""
    assert made().arguments["BUILD_BASE_IMAGE"] == "build:1@sha256:build"


@pytest.mark.parametrize(
    "changes",
    [
        {"source": replace(SOURCE, dirty=True)},
        {"source": replace(SOURCE, commit="f" * 40)},
        {"head": replace(HEAD, version=replace(HEAD.version, dirty=True))},
        {"chosen": {"RUNTIME_LIBRARIES": "slim"}},
    ],
    ids=["changed source", "another source", "changed checkout", "another choice"],
)
def test_a_version_is_dirty_unless_the_commit_determines_the_image(changes: dict[str, object]) -> None:
    assert made(**changes).version == "2508201420-abc1234-dirty"


def test_an_unsupported_platform_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda is not built for linux/arm64: it is for linux/amd64"):
        made(variant=variants.find("cuda"), platform=Platform.ARM64)


def test_toolkit_versions_are_in_arguments_and_labels() -> None:
    values = {"CUDA_VERSION": "12.4.1", "CUDA_DOCKER_ARCH": "90", "GCC_VERSION": "13", "UBUNTU_VERSION": "24.04"}
    result = made(
        variant=variants.find("cuda"),
        bases=replace(BASES, arguments={"GCC_VERSION": "13", "CUDA_VERSION": "12.4.1"}),
        recipe_arguments=values,
    )

    assert result.labels["bodhi.toolkit.cuda"] == "12.4.1"
    assert result.labels["bodhi.toolkit.cuda_arch"] == "90"
    assert {name: result.arguments[name] for name in ("CUDA_VERSION", "CUDA_DOCKER_ARCH", "GCC_VERSION")} == {
        "CUDA_VERSION": "12.4.1",
        "CUDA_DOCKER_ARCH": "90",
        "GCC_VERSION": "13",
    }
    assert "UBUNTU_VERSION" not in result.arguments


@pytest.mark.parametrize("values", [{}, {"CUDA_VERSION": "", "CUDA_DOCKER_ARCH": "default"}])
def test_a_toolkit_without_a_version_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="ARG CUDA_VERSION"):
        made(variant=variants.find("cuda"), recipe_arguments=values)


def test_the_command_contains_the_whole_plan() -> None:
    result = made(head=replace(HEAD, branch='it\'s "odd"'))
    words = shlex.split(plan.as_command(result))
    assert words[:3] == ["docker", "buildx", "build"]
    assert words[-1] == "."
    assert f"BUILD_BRANCH={result.arguments['BUILD_BRANCH']}" in words
    for name, value in result.labels.items():
        assert f"{name}={value}" in words
    for tag in result.tags:
        assert words[words.index(tag) - 1] == "-t"


def test_a_plan_is_json() -> None:
    assert json.loads(json.dumps(asdict(made())))["variant"] == "cpu"
