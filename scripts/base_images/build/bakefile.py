"""Builds plans with `docker buildx bake`: on any builder, with provenance, SBOM, registry cache, for several platforms.

A bake file has a target for each variant and platform, such as `cpu-arm64`, and groups of targets. For each there is
also `glibc-cpu-arm64`, which reads the glibc version of the runtime base: that takes a program in the base, which need
not be on this machine. It runs first, on the same builder, and a variable of the file passes the result to the label.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from base_images.adapters import buildkit, ownership, programs
from base_images.build import bases
from base_images.build.context import SOURCE_DIRECTORY
from base_images.build.plan import BuildPlan
from base_images.errors import EngineError, UsageError
from base_images.labels import Label
from base_images.recipes import dockerfile

SBOM_GENERATOR_VARIABLE = "BASE_IMAGES_SBOM_GENERATOR"
"""The image of the SBOM generator, for networks with a mirror; buildx's default if unset."""

GLIBC_DIRECTORY = "build/glibc"
"""Output directory of the glibc targets, below the checkout."""

_SECONDS = 60
"""Time-out of buildx commands that do not build."""


def target(plan: BuildPlan) -> str:
    """Returns the name of a plan's target, such as `cpu-arm64` or `cpu-operations-arm64`."""
    return f"{plan.target.tag(plan.variant)}-{plan.platform.rpartition('/')[2]}"


def bake_file(plans: Sequence[BuildPlan], registry: str, *, push: bool, dry_run: bool = False) -> dict[str, Any]:
    """Returns the content of a bake file, with paths relative to the root of the checkout.

    Args:
        plans: what to build.
        registry: the repository for images and cache.
        push: whether to push the images there, by digest and with attestations, or load them into the local engine.
        dry_run: whether to build without any output.
    """
    variants: dict[str, list[str]] = {}
    for plan in plans:
        variants.setdefault(plan.variant, []).append(target(plan))
    return {
        "group": {
            "default": {"targets": list(variants)},
            **{variant: {"targets": targets} for variant, targets in variants.items()},
            "glibc": {"targets": [_glibc_target(plan) for plan in plans]},
        },
        "variable": {_glibc_variable(plan): {"default": ""} for plan in plans},
        "target": {
            **{_glibc_target(plan): _reading_glibc(plan) for plan in plans},
            **{target(plan): _building(plan, registry, push=push, dry_run=dry_run) for plan in plans},
        },
    }


def run(
    plans: Sequence[BuildPlan],
    file: Mapping[str, Any],
    *,
    root: Path,
    builder: str,
    on_event: Callable[[buildkit.Event], None],
) -> dict[str, str]:
    """Builds a bake file and returns the digest of each pushed target.

    With attestations, the digest is that of an index of the image and its attestations.

    Args:
        plans: what to build.
        file: the bake file of `plans`, from `bake_file`.
        root: the checkout, with the source in `llama.cpp/`.
        builder: name of the buildx builder; empty for the current one.
        on_event: receives the steps of the build.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
        SourceError: a runtime base has no glibc.
    """
    bake(file, ["glibc"], root=root, builder=builder, on_event=on_event)
    known = {_glibc_variable(plan): _read_glibc(plan, root) for plan in plans}
    targets = list(map(target, plans))
    results = bake(file, targets, root=root, builder=builder, environment=known, on_event=on_event)
    digests = {name: results.get(name, {}).get("containerimage.digest") for name in map(target, plans)}
    return {name: digest for name, digest in digests.items() if digest}


def bake(
    file: Mapping[str, Any],
    targets: Sequence[str],
    *,
    root: Path,
    builder: str,
    on_event: Callable[[buildkit.Event], None],
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Builds targets of a bake file and returns buildx's metadata, by target; `environment` sets the file's variables.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
    """
    progress = buildkit.RawProgress()

    def read(line: str) -> None:
        for event in progress.read(line):
            on_event(event)

    with ownership.temporary_directory() as directory:
        written, metadata = directory / "bake.json", directory / "metadata.json"
        written.write_text(json.dumps(file), encoding="utf-8")
        options = [*(("--builder", builder) if builder else ()), "--file", str(written)]
        done = programs.run(
            ["docker", "buildx", "bake", "--progress", "rawjson", *options, "--metadata-file", str(metadata), *targets],
            environment={**programs.inherited(), **(environment or {})},
            directory=root,
            on_line=read,
        )
        if done.exit_code:
            raise progress.failure()
        results: dict[str, Any] = json.loads(metadata.read_text(encoding="utf-8"))
    return results


def require_builder(builder: str, *, push: bool) -> None:
    """Checks that buildx is installed and has the builder, and that the builder can push by digest if `push` is set.

    Raises:
        EngineError: buildx is missing, or the builder cannot push by digest.
        UsageError: there is no such builder.
    """
    if programs.run(["docker", "buildx", "version"], timeout=_SECONDS).exit_code:
        raise EngineError(
            "`docker buildx` is missing: install it (docker-buildx-plugin or docker-buildx), or build with "
            "`invoke build-local`, which does not need it."
        )
    inspected = programs.run(["docker", "buildx", "inspect", *([builder] if builder else [])], timeout=_SECONDS)
    if builder and "no builder" in inspected.stderr:
        raise UsageError(f"buildx has no builder {builder!r}: `docker buildx ls` lists those that there are.")
    if inspected.exit_code:
        raise EngineError(f"buildx cannot look at the builder {builder or 'it would use'}: {inspected.last_words}.")
    driver = re.search(r"^Driver:\s+(\S+)", inspected.stdout, re.MULTILINE)
    if push and driver and driver[1] == "docker":
        # buildx 0.29 refuses: "push-by-digest is currently not implemented for docker driver".
        raise EngineError(
            "The engine's own builder cannot push by digest: make another with `docker buildx create --name release`, "
            "and name it with --builder release."
        )


def require_own_source(source: Path, root: Path) -> None:
    """Checks that the source is the checkout's `llama.cpp/`, as in the context of a bake file.

    Raises:
        UsageError: the source is elsewhere.
    """
    if source != root / SOURCE_DIRECTORY:
        raise UsageError(f"Bake builds the checkout's llama.cpp/, and not {source}: unset LLAMA_CPP_DIR.")


def _building(plan: BuildPlan, registry: str, *, push: bool, dry_run: bool) -> Mapping[str, object]:
    # Not escaped: bake replaces the variable.
    labels = {**_escaped(plan.labels), Label.GLIBC.value: f"${{{_glibc_variable(plan)}}}"}
    if push:
        # store=false: a builder with an image store would keep all images there under one name.
        output = f"type=image,name={registry},push-by-digest=true,name-canonical=true,push=true,store=false"
        generator = f",generator={image}" if (image := os.environ.get(SBOM_GENERATOR_VARIABLE)) else ""
        attestations = ["type=provenance,mode=max", f"type=sbom{generator}"]
    else:
        # buildx refuses to build with attestations for an engine without the containerd store.
        output, attestations = "type=docker", NO_ATTESTATIONS
    cache = f"type=registry,ref={registry}:cache-{target(plan)}"
    return {
        "context": ".",
        "dockerfile": plan.dockerfile,
        "target": plan.target,
        "platforms": [plan.platform],
        "args": _escaped(plan.arguments),
        "labels": labels,
        "output": ["type=cacheonly" if dry_run else output],
        "attest": attestations,
        **({} if push or dry_run else {"tags": list(plan.tags)}),
        **({"cache-from": [cache]} if push else {}),
        # ignore-error: a failed cache export must not fail the build.
        **({"cache-to": [f"{cache},mode=max,ignore-error=true"]} if push and not dry_run else {}),
    }


NO_ATTESTATIONS = ["type=provenance,disabled=true", "type=sbom,disabled=true"]


def _reading_glibc(plan: BuildPlan) -> Mapping[str, object]:
    """Returns the target whose output is a file with the glibc version of the runtime base."""
    lines = (
        f"FROM {_runtime_base(plan)} AS base",
        "RUN getconf GNU_LIBC_VERSION > /glibc",
        "FROM scratch",
        f"COPY --from=base /glibc /{target(plan)}",
    )
    return {
        "context": ".",
        "dockerfile-inline": "".join(f"{line}\n" for line in lines),
        "platforms": [plan.platform],
        "output": [f"type=local,dest={GLIBC_DIRECTORY}"],
        "attest": NO_ATTESTATIONS,
    }


def _read_glibc(plan: BuildPlan, root: Path) -> str:
    text = (root / GLIBC_DIRECTORY / target(plan)).read_text(encoding="utf-8")
    return bases.glibc_version(text, _runtime_base(plan))


def _runtime_base(plan: BuildPlan) -> str:
    return plan.arguments[dockerfile.base_arguments(plan.arguments)["runtime"]]


def _glibc_target(plan: BuildPlan) -> str:
    return f"glibc-{target(plan)}"


def _glibc_variable(plan: BuildPlan) -> str:
    return _glibc_target(plan).upper().replace("-", "_")


def _escaped(values: Mapping[str, str]) -> dict[str, str]:
    """Escapes `${…}` and `%{…}`, which bake replaces in every string, as in HCL, by doubling the first character."""
    return {name: re.sub(r"[$%](?=\{)", r"\g<0>\g<0>", value) for name, value in values.items()}
