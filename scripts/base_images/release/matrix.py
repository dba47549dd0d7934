"""The jobs of a release on GitHub: which runner builds each variant for each platform, and which one tests it.

Builds run on GitHub-hosted runners. A self-hosted runner with a device is named by its label in a variable of the
GitHub repository: RUNNER_CUDA for cuda on amd64, RUNNER_CUDA_ARM64 for arm64. So no workflow lists the variants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from base_images import versions
from base_images.errors import UsageError
from base_images.variants import Platform, Variant
from base_images.versions import Version

RUNNERS_VARIABLE = "RUNNERS"
"""Environment variable with the variables of the GitHub repository as JSON, `toJSON(vars)`."""

HOSTED_RUNNERS = {Platform.AMD64: "ubuntu-24.04", Platform.ARM64: "ubuntu-24.04-arm"}
"""Labels of GitHub-hosted runners, which build natively and have no device."""


def matrix(
    wanted: Sequence[tuple[Variant, Sequence[Platform]]], version: Version, *, registry: str, runners: str
) -> dict[str, Any]:
    """Returns the jobs as JSON values.

    `registry` is the repository to publish to, `runners` the value of RUNNERS, empty for none.

    Raises:
        UsageError: `runners` is not a JSON object of strings.
    """
    labels = _labels(runners)
    return {
        "version": str(version),
        "tag": version.git_tag,
        "repository": registry,
        "variants": [variant.name for variant, _ in wanted],
        "platforms": {
            variant.name: [{**_names(platform), "runner": HOSTED_RUNNERS[platform]} for platform in platforms]
            for variant, platforms in wanted
        },
        # Without an accelerator's toolkit, a build is short enough to be repeated.
        "rebuilds": [
            {
                **_names(platform),
                "runner": HOSTED_RUNNERS[platform],
                "image": f"{registry}:{versions.image_tag(variant.name, version)}",
            }
            for variant, platforms in wanted
            if variant.device is None
            for platform in platforms
        ],
        "checks": {
            variant.name: [
                {
                    **_names(platform),
                    **_tested(variant, platform, labels),
                    "image": f"{registry}:{versions.image_tag(variant.name, version)}",
                }
                for platform in platforms
            ]
            for variant, platforms in wanted
        },
    }


def nightly(wanted: Sequence[tuple[Variant, Sequence[Platform]]], *, registry: str) -> list[dict[str, str]]:
    """Returns the jobs that verify what is latest, as JSON values; all on GitHub's own runners."""
    return [
        {
            "variant": variant.name,
            **_names(platform),
            **_tested(variant, platform, {}),
            "image": f"{registry}:{versions.latest_tag(variant.name)}",
        }
        for variant, platforms in wanted
        for platform in platforms
    ]


def device_without_one(variant: Variant) -> str:
    """Returns what a smoke test on a machine without accelerators can be on: a value of `invoke smoke --on`."""
    if variant.device is None:
        return "host"  # the CPU is its device, and every host has one
    return "software" if variant.device.software else "nothing"


def _labels(runners: str) -> Mapping[str, str]:
    try:
        found = json.loads(runners or "{}")
    except ValueError as error:
        raise UsageError(f"{RUNNERS_VARIABLE} is not JSON ({error}): set it to GitHub's `toJSON(vars)`.") from error
    if not isinstance(found, dict) or not all(isinstance(label, str) for label in found.values()):
        raise UsageError(f"{RUNNERS_VARIABLE} is not an object of names and texts: set it to GitHub's `toJSON(vars)`.")
    return found


def _names(platform: Platform) -> dict[str, str]:
    return {"platform": platform.docker, "architecture": platform.architecture}


def _tested(variant: Variant, platform: Platform, labels: Mapping[str, str]) -> dict[str, str]:
    """Returns the runner that tests a variant, and the device: a value of `invoke smoke --on`."""
    hosted = HOSTED_RUNNERS[platform]
    suffix = "" if platform is Platform.AMD64 else f"_{platform.architecture.upper()}"
    if variant.device and (label := labels.get(f"RUNNER_{variant.name.upper()}{suffix}", "").strip()):
        return {"runner": label, "device": "host"}
    return {"runner": hosted, "device": device_without_one(variant)}
