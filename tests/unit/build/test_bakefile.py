from __future__ import annotations

import json

import pytest

from base_images.build import bakefile, local
from base_images.build.bases import glibc_version
from base_images.build.plan import BuildPlan, of_operations
from base_images.errors import EngineError, SourceError, UsageError
from base_images.labels import Label
from base_images.settings import ROOT
from base_images.variants import Platform, find
from tests.unit.build.test_plan import BASES, SETTINGS, SOURCE, made

REGISTRY = "ghcr.io/x/y"
AMD64 = made(bases=BASES)
ARM64 = made(bases=BASES, platform=Platform.ARM64)
VULKAN = made(bases=BASES, variant=find("vulkan"))


def file(*plans: BuildPlan, push: bool = False, dry_run: bool = False) -> dict[str, dict[str, dict[str, object]]]:
    return bakefile.bake_file(plans, REGISTRY, push=push, dry_run=dry_run)


def target(plan: BuildPlan, *, push: bool = False, dry_run: bool = False) -> dict[str, object]:
    return file(plan, push=push, dry_run=dry_run)["target"][bakefile.target(plan)]


def test_targets_and_groups_of_variants_and_platforms() -> None:
    made = file(AMD64, ARM64, VULKAN)
    assert made["group"] == {
        "default": {"targets": ["cpu", "vulkan"]},
        "cpu": {"targets": ["cpu-amd64", "cpu-arm64"]},
        "vulkan": {"targets": ["vulkan-amd64"]},
        "glibc": {"targets": ["glibc-cpu-amd64", "glibc-cpu-arm64", "glibc-vulkan-amd64"]},
    }
    assert made["variable"].keys() == {"GLIBC_CPU_AMD64", "GLIBC_CPU_ARM64", "GLIBC_VULKAN_AMD64"}
    assert made["target"].keys() == {
        *("cpu-amd64", "cpu-arm64", "vulkan-amd64"),
        *("glibc-cpu-amd64", "glibc-cpu-arm64", "glibc-vulkan-amd64"),
    }
    assert json.loads(json.dumps(made)) == made


def test_the_operations_are_a_target_beside_their_image() -> None:
    made = file(AMD64, of_operations(AMD64), push=True)
    assert made["group"]["cpu"] == {"targets": ["cpu-amd64", "cpu-operations-amd64"]}
    beside = made["target"]["cpu-operations-amd64"]
    assert beside["target"] == "operations"
    assert beside["output"] == made["target"]["cpu-amd64"]["output"]


def test_a_target_has_the_values_of_its_plan() -> None:
    result = target(ARM64)
    assert result["context"] == "."
    assert result["dockerfile"] == "dockerfiles/cpu.Dockerfile"
    assert result["target"] == "runtime"
    assert result["platforms"] == ["linux/arm64"]
    assert result["args"] == ARM64.arguments
    assert result["labels"] == {**ARM64.labels, Label.GLIBC: "${GLIBC_CPU_ARM64}"}


def test_the_local_engine_gets_tags_and_no_attestations() -> None:
    result = target(AMD64)
    assert result["tags"] == list(AMD64.tags)
    assert result["output"] == ["type=docker"]
    assert result["attest"] == ["type=provenance,disabled=true", "type=sbom,disabled=true"]
    assert not {"cache-from", "cache-to"} & result.keys()


def test_a_push_is_by_digest_with_attestations_and_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(bakefile.SBOM_GENERATOR_VARIABLE, raising=False)
    result = target(AMD64, push=True)
    assert "tags" not in result
    assert result["output"] == [
        "type=image,name=ghcr.io/x/y,push-by-digest=true,name-canonical=true,push=true,store=false"
    ]
    assert result["attest"] == ["type=provenance,mode=max", "type=sbom"]
    assert result["cache-from"] == ["type=registry,ref=ghcr.io/x/y:cache-cpu-amd64"]
    assert result["cache-to"] == ["type=registry,ref=ghcr.io/x/y:cache-cpu-amd64,mode=max,ignore-error=true"]
    monkeypatch.setenv(bakefile.SBOM_GENERATOR_VARIABLE, "mirror.example/scanner:1")
    assert target(AMD64, push=True)["attest"] == [
        "type=provenance,mode=max",
        "type=sbom,generator=mirror.example/scanner:1",
    ]


@pytest.mark.parametrize("push", [False, True])
def test_a_dry_run_has_no_output(push: bool) -> None:
    result = target(AMD64, push=push, dry_run=True)
    assert result["output"] == ["type=cacheonly"]
    assert not {"tags", "cache-to"} & result.keys()


def test_a_target_reads_the_glibc_of_the_runtime_base() -> None:
    result = file(AMD64)["target"]["glibc-cpu-amd64"]
    assert result["dockerfile-inline"] == (
        "FROM runtime:1@sha256:runtime AS base\n"
        "RUN getconf GNU_LIBC_VERSION > /glibc\n"
        "FROM scratch\n"
        "COPY --from=base /glibc /cpu-amd64\n"
    )
    assert result["output"] == ["type=local,dest=build/glibc"]
    slim = made(
        variant=find("rocm"),
        bases=BASES,
        recipe_arguments={"ROCM_VERSION": "7", "ROCM_DOCKER_ARCH": "gfx1100"},
        chosen={"RUNTIME_LIBRARIES": "slim"},
    )
    assert "FROM runtime:1@" in str(file(slim)["target"]["glibc-rocm-amd64"]["dockerfile-inline"])
    assert "SLIM_BASE_IMAGE" in slim.arguments


def test_what_bake_would_replace_is_escaped() -> None:
    text = "${A} %{if} $B 100% $${C}"
    assert bakefile._escaped({"a": text}) == {"a": "$${A} %%{if} $B 100% $$${C}"}


def test_missing_buildx_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineError, match=r"`docker buildx` is missing: install it .* `invoke build-local`"):
        bakefile.require_builder("", push=False)


def test_a_source_outside_the_checkout_is_refused() -> None:
    bakefile.require_own_source(ROOT / "llama.cpp", ROOT)
    with pytest.raises(UsageError, match="unset LLAMA_CPP_DIR"):
        bakefile.require_own_source(ROOT / "other", ROOT)


def test_an_unsupported_platform_is_refused_before_any_request() -> None:
    with pytest.raises(UsageError, match="cuda is not built for linux/arm64"):
        local.preview(find("cuda"), [Platform.ARM64], settings=SETTINGS, root=ROOT, source=SOURCE)


def test_a_base_without_glibc_is_refused() -> None:
    assert glibc_version("glibc 2.39\n", "x") == "2.39"
    with pytest.raises(SourceError, match="needs a base with glibc"):
        glibc_version("getconf: GNU_LIBC_VERSION: unknown variable\n", "alpine")
