"""The build plan: recipe, arguments, labels and tags of an image. Pure functions."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from base_images import versions
from base_images.build import architectures
from base_images.build.inputs import Bases, Source
from base_images.errors import UsageError
from base_images.labels import TOOLKIT_PREFIX, Label
from base_images.recipes import dockerfile as recipe
from base_images.settings import Settings
from base_images.variants import Platform, Variant
from base_images.versions import Head, Target, Version


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """One image to build.

    Attributes:
        arguments: the recipe's ARGs; never secrets, as they stay in the image's history.
        labels: the image's labels; without that of glibc while the runtime base's version is unknown.
        tags: references for the image, the published one first.
    """

    variant: str
    version: str
    platform: str
    dockerfile: str
    target: Target
    arguments: Mapping[str, str]
    labels: Mapping[str, str]
    tags: tuple[str, ...]


def build_plan(
    variant: Variant,
    *,
    platform: Platform,
    settings: Settings,
    head: Head,
    source: Source,
    bases: Bases,
    recipe_arguments: Mapping[str, str],
    chosen: Mapping[str, str],
) -> BuildPlan:
    """Returns the plan of one variant for one platform.

    `recipe_arguments` are the recipe's global ARGs with the values of this build, `chosen` those set by the user.

    Raises:
        UsageError: the variant is not published for the platform, or its recipe lacks a toolkit version.
    """
    require_platform(variant, platform)
    reported = architectures.reported(variant, recipe_arguments)
    version = image_version(settings, head, source, narrowed=bool(chosen))
    tag = versions.image_tag(variant.name, version)
    references = {
        "web": bases.web.reference,
        "build": bases.build.reference,
        "runtime": bases.runtime.reference,
    }
    arguments = {
        **{argument: references[role] for role, argument in recipe.base_arguments(chosen).items()},
        **bases.arguments,
        **chosen,
        **{argument: recipe_arguments[argument] for argument in variant.toolkit.values()},
        "LLAMA_CPP_TAG": source.tag,
        "LLAMA_CPP_COMMIT": source.commit,
        "LLAMA_CPP_RELEASE": source.release,
        "BUILD_VERSION": str(version),
        "BUILD_COMMIT": head.commit,
        "BUILD_BRANCH": head.branch,
        "BUILD_TIMESTAMP": str(int(head.time.timestamp())),
    }
    labels = {
        **_labels(variant, platform, settings=settings, head=head, source=source, bases=bases, version=version),
        Label.BUILD_ARGUMENTS.value: json.dumps(arguments, sort_keys=True, separators=(",", ":")),
        **{f"{TOOLKIT_PREFIX}{name}": value for name, value in reported.items()},
    }
    return BuildPlan(
        variant=variant.name,
        version=str(version),
        platform=platform.docker,
        dockerfile=variant.dockerfile,
        target=Target.RUNTIME,
        arguments=arguments,
        labels=labels,
        tags=(f"{settings.registry}:{tag}", versions.local_reference(variant.name)),
    )


def of_operations(plan: BuildPlan) -> BuildPlan:
    """Returns the plan of the test of an image's operations, which is on top of the layers of the image's own plan."""
    target = Target.OPERATIONS
    labels = {**plan.labels, Label.REF_NAME.value: target.tag(plan.labels[Label.REF_NAME])}
    return dataclasses.replace(plan, target=target, labels=labels, tags=tuple(map(target.tag, plan.tags)))


def require_platform(variant: Variant, platform: Platform) -> None:
    """Checks that the variant is built for the platform.

    Raises:
        UsageError: the variant does not support it.
    """
    if platform not in variant.platforms:
        raise UsageError(
            f"The variant {variant.name} is not built for {platform.docker}: "
            f"it is for {', '.join(known.docker for known in variant.platforms)}."
        )


def image_version(settings: Settings, head: Head, source: Source, *, narrowed: bool = False) -> Version:
    """Returns the version of images of this checkout, dirty unless HEAD determines their content.

    HEAD contains the recipes and the pin: uncommitted changes, a changed source, a source other than the pin, and
    arguments other than the recipe's defaults make the version dirty.
    """
    dirty = head.version.dirty or source.dirty or source.commit != settings.pin.commit or narrowed
    return dataclasses.replace(head.version, dirty=dirty)


def as_command(plan: BuildPlan) -> str:
    """Returns the equivalent `docker buildx build` command, to be run in the root of the checkout."""
    words = ["docker", "buildx", "build", "--load", "--platform", plan.platform, "--target", plan.target]
    words += ["-f", plan.dockerfile]
    for flag, pairs in (("--build-arg", plan.arguments), ("--label", plan.labels)):
        for name, value in pairs.items():
            words += [flag, f"{name}={value}"]
    for tag in plan.tags:
        words += ["-t", tag]
    return shlex.join([*words, "."])


def _labels(
    variant: Variant,
    platform: Platform,
    *,
    settings: Settings,
    head: Head,
    source: Source,
    bases: Bases,
    version: Version,
) -> dict[str, str]:
    labels = {
        Label.TITLE: f"llama.cpp {variant.name}",
        Label.DESCRIPTION: f"llama-server of llama.cpp {source.tag} for {variant.title}, a base image for BodhiApp",
        Label.VERSION: str(version),
        Label.REVISION: head.commit,
        Label.CREATED: head.time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        Label.SOURCE: settings.url,
        Label.URL: settings.url,
        Label.DOCUMENTATION: f"{settings.url}/blob/{head.commit}/README.md",
        Label.LICENSES: "MIT",
        Label.BASE_NAME: bases.runtime.name,
        Label.BASE_DIGEST: bases.runtime.digest,
        Label.REF_NAME: versions.image_tag(variant.name, version),
        Label.VARIANT: variant.name,
        Label.VARIANTS: ",".join(variant.directories),
        Label.PLATFORM: platform.docker,
        Label.ACCELERATION: variant.acceleration,
        Label.BUILD_TIMESTAMP: version.timestamp,
        Label.BUILD_BRANCH: head.branch,
        Label.BUILD_ORIGIN: bases.origin.value,
        Label.LLAMA_CPP_TAG: source.tag,
        Label.LLAMA_CPP_COMMIT: source.commit,
        **({Label.LLAMA_CPP_RELEASE: source.release} if source.release else {}),
        **({Label.DEBIAN_SNAPSHOT: bases.snapshot} if bases.snapshot else {}),
        **({Label.GLIBC: bases.glibc} if bases.glibc else {}),
    }
    return {label.value: value for label, value in labels.items()}
