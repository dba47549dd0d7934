from __future__ import annotations

import json
from typing import Any

import pytest

from base_images import versions
from base_images.errors import UsageError
from base_images.release import matrix as ci_matrix
from base_images.variants import VARIANTS, Platform, find

VERSION = versions.parse("2508201420-abc1234")


def matrix(*names: str, runners: str = "", platforms: tuple[Platform, ...] = ()) -> dict[str, Any]:
    chosen = [find(name) for name in names] if names else list(VARIANTS)
    wanted = [(variant, platforms or variant.platforms) for variant in chosen]
    return ci_matrix.matrix(wanted, VERSION, registry="ghcr.io/x/y", runners=runners)


def test_every_platform_is_built_on_a_runner_of_its_architecture() -> None:
    made = matrix()
    assert (made["version"], made["tag"]) == ("2508201420-abc1234", "base-images/v2508201420-abc1234")
    assert made["variants"] == [variant.name for variant in VARIANTS]
    assert made["platforms"].keys() == made["checks"].keys() == set(made["variants"])
    assert made["platforms"]["cpu"] == [
        {"platform": "linux/amd64", "architecture": "amd64", "runner": "ubuntu-24.04"},
        {"platform": "linux/arm64", "architecture": "arm64", "runner": "ubuntu-24.04-arm"},
    ]
    for variant in VARIANTS:
        for jobs in (made["platforms"], made["checks"]):
            assert [job["platform"] for job in jobs[variant.name]] == [
                platform.docker for platform in variant.platforms
            ]
    assert "\n" not in json.dumps(made)


def test_hosted_runners_test_on_the_cpu_in_software_or_without_a_device() -> None:
    devices = {name: {job["device"] for job in jobs} for name, jobs in matrix()["checks"].items()}
    assert devices == {
        "cpu": {"host"},
        "vulkan": {"software"},
        **{name: {"nothing"} for name in ("cuda", "rocm", "musa", "intel", "cann")},
    }
    assert matrix()["checks"]["vulkan"][0]["image"] == "ghcr.io/x/y:vulkan-2508201420-abc1234"


@pytest.mark.parametrize(
    ("runners", "amd64", "arm64"),
    [
        ({}, ("ubuntu-24.04", "nothing"), ("ubuntu-24.04-arm", "nothing")),
        ({"RUNNER_CANN": "ascend"}, ("ascend", "host"), ("ubuntu-24.04-arm", "nothing")),
        ({"RUNNER_CANN_ARM64": "kunpeng"}, ("ubuntu-24.04", "nothing"), ("kunpeng", "host")),
        ({"RUNNER_CANN": " ", "RUNNER_CUDA": "gpu"}, ("ubuntu-24.04", "nothing"), ("ubuntu-24.04-arm", "nothing")),
    ],
)
def test_a_self_hosted_runner_tests_its_platform_on_the_device_and_builds_nothing(
    runners: dict[str, str], amd64: tuple[str, str], arm64: tuple[str, str]
) -> None:
    made = matrix("cann", runners=json.dumps(runners))
    assert [(job["runner"], job["device"]) for job in made["checks"]["cann"]] == [amd64, arm64]
    assert [job["runner"] for job in made["platforms"]["cann"]] == ["ubuntu-24.04", "ubuntu-24.04-arm"]


def test_images_without_a_device_are_built_again_on_hosted_runners() -> None:
    assert [(row["image"], row["runner"]) for row in matrix()["rebuilds"]] == [
        ("ghcr.io/x/y:cpu-2508201420-abc1234", "ubuntu-24.04"),
        ("ghcr.io/x/y:cpu-2508201420-abc1234", "ubuntu-24.04-arm"),
    ]


def test_variants_and_platforms_can_be_chosen() -> None:
    made = matrix("cpu", platforms=(Platform.ARM64,))
    assert made["variants"] == ["cpu"]
    assert [job["architecture"] for job in made["checks"]["cpu"]] == ["arm64"]


@pytest.mark.parametrize("runners", ["{", "[]", '"gpu"', '{"RUNNER_CUDA": 1}', '{"RUNNER_CUDA": ["a"]}'])
def test_invalid_runner_variables_are_a_usage_error(runners: str) -> None:
    with pytest.raises(UsageError, match=r"RUNNERS is not .*: set it to GitHub's `toJSON\(vars\)`"):
        matrix(runners=runners)
