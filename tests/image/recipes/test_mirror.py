"""Our recipes against the real files of the pin."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from base_images import settings, variants
from base_images.build import source
from base_images.build.inputs import Origin
from base_images.errors import SourceError
from base_images.progress import silent
from base_images.recipes import differences, mirror
from base_images.recipes import facts as recipe_facts
from tests.unit.recipes.test_facts import lost_words
from tests.unit.recipes.test_mirror import unexplained


@pytest.fixture(scope="module")
def tree() -> Path:
    pin = settings.load().pin
    return source.resolve(pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=silent).path


def test_our_recipes_mirror_the_pin(tree: Path) -> None:
    records = mirror.load_records(settings.ROOT / mirror.DIFFERENCES)
    report = mirror.check(mirror.upstream_texts(tree), mirror.our_texts(settings.ROOT), records)
    assert unexplained(report) == []
    assert report.ok
    assert [comparison.variant for comparison in report.comparisons] == [variant.name for variant in variants.VARIANTS]
    assert report.upstream_only == ("openvino", "s390x", "zendnn")


# Changes of upstream's files and the expected keys.
MUTATIONS: tuple[tuple[str, str, str, list[str]], ...] = (
    (
        "cuda",
        "CUDA_DOCKER_ARCH=default",
        "CUDA_DOCKER_ARCH=all",
        ["! build: arg CUDA_DOCKER_ARCH: all -> no value", "stale ! build: arg CUDA_DOCKER_ARCH: default -> no value"],
    ),
    ("cuda", "-DGGML_CUDA=ON", "-DGGML_CUDA=ON -DGGML_CUDA_FA=OFF", ["- build: cmake build -DGGML_CUDA_FA = OFF"]),
    ("rocm", "-DGGML_HIP=ON", "-DGGML_HIP=ON -DGGML_NATIVE=OFF", ["- build: cmake build -DGGML_NATIVE = OFF"]),
    (
        "rocm",
        "FROM ${BASE_ROCM_DEV_CONTAINER} AS base",
        "FROM docker.io/rocm/runtime:7.2.1 AS base",
        [
            (
                "! base: from: docker.io/rocm/runtime:7.2.1 -> "
                "docker.io/rocm/dev-ubuntu-24.04:7.2.1-complete by ROCM_VERSION UBUNTU_VERSION"
            )
        ],
    ),
    (
        "musa",
        "    python3-pip \\\n",
        "    python3-venv \\\n",
        ["+ build: apt python3-pip", "- build: apt python3-venv"],
    ),
    (
        "musa",
        "-DMUSA_ARCHITECTURES=",
        "-DMUSA_ARCH=",
        ["+ build: variable CMAKE_ARGS -DMUSA_ARCHITECTURES *", "- build: variable CMAKE_ARGS -DMUSA_ARCH *"],
    ),
    ("intel", "libigdgmm12_$", "libigdgmm13_$", ["*libigdgmm12_*", "*libigdgmm13_*"]),
    ("intel", "GGML_SYCL_F16=ON\n", "GGML_SYCL_F16=OFF\n", ["*GGML_SYCL_F16: OFF*", "stale *GGML_SYCL_F16: ON*"]),
    ("cann", "-DUSE_ACL_GRAPH=ON", "-DUSE_ACL_GRAPH=OFF", ["*USE_ACL_GRAPH: OFF*", "stale *USE_ACL_GRAPH: ON*"]),
    ("cann", "ENV ASCEND_OPP_PATH=", "ENV ASCEND_OPP=", ["* ASCEND_OPP_PATH *"] * 2 + ["* ASCEND_OPP *"] * 2),
)


@pytest.mark.parametrize(("name", "old", "new", "expected"), MUTATIONS)
def test_a_change_of_any_upstream_file_is_reported(
    tree: Path, name: str, old: str, new: str, expected: list[str]
) -> None:
    upstream = mirror.upstream_texts(tree)
    assert old in upstream[name]
    records = mirror.load_records(settings.ROOT / mirror.DIFFERENCES)
    changed = {**upstream, name: upstream[name].replace(old, new)}
    found = unexplained(mirror.check(changed, mirror.our_texts(settings.ROOT), records))
    assert len(found) == len(expected), found
    for pattern in expected:
        assert [key for key in found if key == pattern or fnmatchcase(key, pattern)], (pattern, found)


@pytest.mark.parametrize("name", [variant.name for variant in variants.VARIANTS])
def test_facts_lose_no_word_of_upstreams_files(tree: Path, name: str) -> None:
    text = mirror.upstream_texts(tree)[name]
    facts = recipe_facts.read(text, name)
    assert lost_words(text, facts) == set()
    assert {"web", "build", "base", "full", "light", "server"} <= {fact.stage for fact in facts}
    assert [fact for fact in facts if fact.subject == "build: cmake --build build"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "cuda",
            (
                "global: arg CUDA_VERSION = 12.8.1",
                "build: cmake build -DGGML_CUDA = ON",
                (
                    "build: variable CMAKE_ARGS -DCMAKE_CUDA_ARCHITECTURES = ${CUDA_DOCKER_ARCH} "
                    '[if [ "${CUDA_DOCKER_ARCH}" != default ]]'
                ),
            ),
        ),
        (
            "rocm",
            (
                'build: cmake build -DAMDGPU_TARGETS = "${ROCM_DOCKER_ARCH}"',
                "build: cmake environment HIPCXX = $(hipconfig -l)/clang",
                "base: from = docker.io/rocm/dev-ubuntu-24.04:7.2.1-complete by ROCM_VERSION UBUNTU_VERSION",
            ),
        ),
        ("vulkan", ("build: apt glslc", "base: apt mesa-vulkan-drivers", "build: cmake build -DGGML_VULKAN = ON")),
        (
            "musa",
            (
                "base: from = docker.io/mthreads/musa:rc4.3.0-runtime-ubuntu22.04-amd64 by MUSA_VERSION UBUNTU_VERSION",
                "build: apt python3-pip",
                "build: cmake build -DGGML_MUSA = ON",
            ),
        ),
        (
            "intel",
            (
                'build: variable OPT_SYCL_F16 -DGGML_SYCL_F16 = ON [if [ "${GGML_SYCL_F16}" = ON ]]',
                "base: arg COMPUTE_RUNTIME_VERSION = 26.18.38308.1",
                "build: apt ./level-zero.deb",
            ),
        ),
        (
            "cann",
            (
                "build: cmake build -DSOC_TYPE = ascend${CHIP_TYPE}",
                "build: yum openssl-devel",
                "build: run source /usr/local/Ascend/ascend-toolkit/set_env.sh --force",
            ),
        ),
    ],
)
def test_facts_of_each_upstream_file(tree: Path, name: str, facts: tuple[str, ...]) -> None:
    found = {str(fact) for fact in recipe_facts.read(mirror.upstream_texts(tree)[name], name)}
    assert set(facts) <= found


@pytest.mark.parametrize("name", [variant.name for variant in variants.VARIANTS])
def test_every_line_of_upstreams_files_matters(tree: Path, name: str) -> None:
    """A file without any one of its compared lines has other facts, or cannot be read."""
    text = mirror.upstream_texts(tree)[name]
    whole = differences.upstream_facts(text, name)
    lines = text.splitlines()
    other_program = False
    unseen = []
    for number, line in enumerate(lines):
        if line.upper().startswith("FROM "):
            other_program = line.endswith((" full", " light"))
        if not line.strip() or line.strip().startswith("#") or other_program:
            continue
        try:
            without = differences.upstream_facts("\n".join(lines[:number] + lines[number + 1 :]), name)
        except SourceError:
            continue
        if without == whole:
            unseen.append(line)
    assert unseen == []
