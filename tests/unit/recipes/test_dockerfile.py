from __future__ import annotations

from pathlib import Path

import pytest

from base_images.errors import SourceError, UsageError
from base_images.recipes.dockerfile import (
    BASE_ARGUMENTS,
    base_arguments,
    base_references,
    global_arguments,
    slim_argument,
)

RECIPE = """\
# A recipe.
ARG UBUNTU_VERSION=24.04
ARG NODE_VERSION="24"   VARIANT=slim
arg NO_DEFAULT NEITHER
# ARG COMMENTED=1
ARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}-$VARIANT
ARG BUILD_BASE_IMAGE=docker.io/ubuntu:${UBUNTU_VERSION} \\
    # A comment in between.
    RUNTIME_BASE_IMAGE=docker.io/ubuntu:${UBUNTU_VERSION}

FROM ${BUILD_BASE_IMAGE} AS build
ARG INSIDE_A_STAGE=1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "cpu.Dockerfile"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_the_arguments_before_the_first_from(recipe: Path) -> None:
    assert global_arguments(recipe, {}) == {
        "UBUNTU_VERSION": "24.04",
        "NODE_VERSION": "24",
        "VARIANT": "slim",
        "WEB_BASE_IMAGE": "docker.io/node:24-slim",
        "BUILD_BASE_IMAGE": "docker.io/ubuntu:24.04",
        "RUNTIME_BASE_IMAGE": "docker.io/ubuntu:24.04",
    }


def test_an_override_reaches_dependent_arguments(recipe: Path) -> None:
    arguments = global_arguments(recipe, {"UBUNTU_VERSION": "26.04", "NO_DEFAULT": "x", "INSIDE_A_STAGE": "2"})

    assert arguments["BUILD_BASE_IMAGE"] == "docker.io/ubuntu:26.04"
    assert arguments["NO_DEFAULT"] == "x"
    assert "INSIDE_A_STAGE" not in arguments


def test_the_base_of_each_role(recipe: Path) -> None:
    assert base_references(recipe, {"RUNTIME_BASE_IMAGE": "debian:trixie"}) == {
        "web": "docker.io/node:24-slim",
        "build": "docker.io/ubuntu:24.04",
        "runtime": "debian:trixie",
    }


def test_a_role_without_a_base_is_an_error(recipe: Path) -> None:
    recipe.write_text("ARG WEB_BASE_IMAGE=node:24\nARG BUILD_BASE_IMAGE=ubuntu\nFROM scratch\n", encoding="utf-8")

    with pytest.raises(SourceError, match="RUNTIME_BASE_IMAGE"):
        base_references(recipe)


@pytest.mark.parametrize("default", ["${UNKNOWN}", "${UBUNTU_VERSION:-24.04}"])
def test_an_unsupported_default_is_an_error(recipe: Path, default: str) -> None:
    recipe.write_text(f"ARG UBUNTU_VERSION=24.04\nARG BUILD_BASE_IMAGE={default}\nFROM scratch\n", encoding="utf-8")

    with pytest.raises(SourceError, match="uses an ARG that is not declared"):
        global_arguments(recipe, {})


def test_a_missing_recipe_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        global_arguments(tmp_path / "none.Dockerfile", {})


SLIM = """\
ARG WEB_BASE_IMAGE=node:24
ARG BUILD_BASE_IMAGE=toolkit:1
ARG RUNTIME_BASE_IMAGE=toolkit:1
ARG SLIM_BASE_IMAGE=ubuntu:24.04
FROM scratch
"""


def test_a_slim_runtime_starts_from_a_small_base(recipe: Path) -> None:
    recipe.write_text(SLIM, encoding="utf-8")
    chosen = slim_argument(recipe)

    assert chosen == {"RUNTIME_LIBRARIES": "slim"}
    assert base_references(recipe)["runtime"] == "toolkit:1"
    assert base_references(recipe, chosen)["runtime"] == "ubuntu:24.04"
    assert base_arguments(chosen) == {**BASE_ARGUMENTS, "runtime": "SLIM_BASE_IMAGE"}
    assert base_arguments({}) == BASE_ARGUMENTS


def test_a_recipe_on_a_small_base_has_no_slim_runtime(recipe: Path) -> None:
    with pytest.raises(UsageError, match="has no slim runtime"):
        slim_argument(recipe)
