"""The recipes and contexts of both sides, from this repository's recipes and those of upstream that tests keep."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import pytest

from base_images import settings
from base_images.bench import contexts
from base_images.bench.cases import EDITS, Part, Side
from base_images.build.inputs import Source, SourceKind
from base_images.build.local import Prepared
from base_images.build.plan import BuildPlan
from base_images.errors import SourceError
from base_images.versions import Target

UPSTREAM = """\
ARG UBUNTU_VERSION=24.04
ARG CUDA_DOCKER_ARCH=default
FROM docker.io/node:$NODE_VERSION AS web
RUN npm ci
FROM docker.io/ubuntu:$UBUNTU_VERSION AS build
COPY . .
RUN --mount=type=cache,id=a-cache,target=/c make
FROM docker.io/ubuntu:$UBUNTU_VERSION AS base
FROM base AS server
"""
BASES = {"web": "node@sha256:1", "build": "debian@sha256:2", "runtime": "debian@sha256:3"}


def prepared(tree: Path, files: frozenset[str] | None = None) -> Prepared:
    arguments = {f"{role.upper()}_BASE_IMAGE": base for role, base in BASES.items()}
    plan = BuildPlan(
        variant="cpu",
        version="2508201420-abc1234",
        platform="linux/amd64",
        dockerfile="dockerfiles/cpu.Dockerfile",
        target=Target.RUNTIME,
        arguments={**arguments, "CUDA_DOCKER_ARCH": "90", "LLAMA_CPP_TAG": "b7"},
        labels={"a": "b"},
        tags=("never",),
    )
    source = Source(
        path=tree, tag="b7", commit="0" * 40, build_number=7, kind=SourceKind.PATH, dirty=False, digest="", files=files
    )
    return Prepared(plan=plan, source=source, notices=())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        ".devops/cpu.Dockerfile": UPSTREAM,
        ".dockerignore": "# no\n*.o\n",
        "a.o": "ignored",
        ".base-images-source.json": "{}",
        ".git": "gitdir: elsewhere",
        **{edit.file: "int old;" for edit in EDITS.values()},
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def content(recipe: contexts.Recipe) -> dict[str, str]:
    stream = io.BytesIO()
    recipe.write(stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        return {one.name: (archive.extractfile(one) or io.BytesIO()).read().decode() for one in archive if one.isreg()}


def test_upstreams_stages_start_from_our_bases() -> None:
    based = contexts.on_bases(UPSTREAM, BASES, "cpu.Dockerfile")
    assert re.findall(r"^FROM (.+)$", based, re.MULTILINE) == [
        "node@sha256:1 AS web",
        "debian@sha256:2 AS build",
        "debian@sha256:3 AS base",
        "base AS server",
    ]
    with pytest.raises(SourceError, match=r"^cpu.Dockerfile has no stage base and web: it is no recipe"):
        contexts.on_bases("FROM a AS build\n", BASES, "cpu.Dockerfile")


def test_both_sides_have_the_same_source_with_the_same_edit(tree: Path) -> None:
    line = "struct base_images_bench_e1;\n"
    upstream, ours = (
        contexts.recipe(side, prepared(tree), root=settings.ROOT, mark="m1", part=Part.HEADER, edit="e1")
        for side in (Side.UPSTREAM, Side.OURS)
    )
    theirs = content(upstream)
    assert theirs.keys() == {".devops/cpu.Dockerfile", ".dockerignore", *(edit.file for edit in EDITS.values())}
    assert theirs["ggml/include/ggml.h"] == f"int old;\n{line}"
    assert theirs["tools/server/server.cpp"] == "int old;"
    assert "FROM debian@sha256:2 AS build\nSHELL" in theirs[".devops/cpu.Dockerfile"]
    own = content(ours)
    assert own["llama.cpp/ggml/include/ggml.h"] == f"int old;\n{line}"
    assert "llama-cpp-ccache-m1" in own["dockerfiles/cpu.Dockerfile"]
    assert (upstream.target, upstream.arguments) == ("server", {"CUDA_DOCKER_ARCH": "90"})
    assert (ours.target, ours.arguments["LLAMA_CPP_TAG"]) == ("runtime", "b7")
    assert (tree / "ggml/include/ggml.h").read_text() == "int old;", "the tree itself is never changed"


def test_of_a_git_checkout_only_what_git_has_is_built(tree: Path) -> None:
    files = frozenset({".devops/cpu.Dockerfile", "tools/server/server.cpp"})
    recipe = contexts.recipe(Side.UPSTREAM, prepared(tree, files), root=settings.ROOT, mark="m1")
    assert content(recipe).keys() == files


def test_a_source_without_the_file_to_change_is_refused(tree: Path) -> None:
    (tree / "tools/server/server.cpp").unlink()
    with pytest.raises(SourceError, match=r"has no tools/server/server\.cpp, which this part changes"):
        contexts.recipe(Side.OURS, prepared(tree), root=settings.ROOT, mark="m1", part=Part.SERVER, edit="e1")
