"""Recipes built from end to end, with stand-ins for the tools that no package mirror has.

A stand-in leaves its arguments where its output would be, and real ELF files of the base image for what is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from base_images import settings, variants
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.labels import Label
from base_images.recipes import dockerfile as recipe
from base_images.variants import Variant
from tests.support import images

BACKENDS = {variant.name: variant.backend for variant in variants.VARIANTS if variant.backend} | {
    "cann": "libggml-cann.so"
}

BASE = """
ARG BASE
FROM ${BASE} AS base
COPY stand-in /usr/local/bin/stand-in
RUN for tool in apt apt-get ccache cmake dpkg hipconfig npm objcopy wget yum; do \\
        install /usr/local/bin/stand-in "/usr/local/bin/$tool"; \\
    done
RUN library=$(echo /usr/lib/*-linux-gnu/libz.so.1) && \\
    mkdir -p /opt/toolkit/lib /usr/local/Ascend/ascend-toolkit && \\
    touch /usr/local/Ascend/ascend-toolkit/set_env.sh && \\
    for name in libamd_comgr libur_adapter_level_zero libur_adapter_opencl libmkl_def libmkl_avx2 libmkl_avx512; do \\
        cp "$library" "/opt/toolkit/lib/$name.so.3"; \\
    done
# CANN's own image also has a path that ends in an empty entry.
ENV CMPLR_ROOT=/opt/toolkit MKLROOT=/opt/toolkit TCM_ROOT=/opt/toolkit LD_LIBRARY_PATH=/opt/driver:
"""

STAND_IN = """#!/bin/sh
set -eu
case ${0##*/} in
hipconfig) echo /opt/toolkit ;;
npm) mkdir -p dist ;;
wget) touch "${@##*/}" /tmp/level-zero.deb /tmp/level-zero-devel.deb ;;
cmake)
    case " $* " in *" --build "*) exit ;; esac
    directory=build
    case " $* " in *" build-cpu "*) directory=build-cpu ;; esac
    mkdir -p $directory/bin
    cd $directory/bin
    echo "$*" > arguments.so.txt
    cp /bin/true llama-server
    cp /usr/lib/*-linux-gnu/libz.so.1 libllama.so.0.1
    ln -s libllama.so.0.1 libllama.so.0
    for backend in BACKENDS; do
        cp libllama.so.0.1 "$backend"
    done
    ;;
esac
"""

TERMS = "/* Copyright of somebody:\n * anything goes. */\n"
SOURCE = {
    **{f"tools/ui/{file}": "{}" for file in ("package.json", "package-lock.json", "src/main.ts")},
    "tools/ui/svelte.config.js": "const config = {\n\tkit: {\n",
    **{f"{directory}LICENSE": "MIT" for directory in ("", "licenses/", "vendor/http/")},
    **{f"{directory}/one.cpp": TERMS for directory in ("vendor", "common", "src", "tools/mtmd", "tools/server")},
    **{f"ggml/{directory}/two.h": "// Not about terms.\n" for directory in ("include", "src")},
}


@dataclass(frozen=True, kw_only=True)
class Built:
    variant: Variant
    arguments: Mapping[str, str]
    image_id: str


def build(engine: Engine, files: Mapping[str, str], dockerfile: str, arguments: Mapping[str, str], target: str) -> str:
    encoded = {name: content.encode() for name, content in files.items()}
    return images.build(engine, encoded, dockerfile=dockerfile, target=target, arguments=arguments, mode=0o755)


@pytest.fixture(scope="module")
def stand_in(engine: Engine, cpu_image: Image) -> Iterator[str]:
    """A base image with the stand-ins."""
    tools = STAND_IN.replace("BACKENDS", " ".join(BACKENDS.values()))
    files = {"Dockerfile": BASE, "stand-in": tools}
    image_id = build(engine, files, "Dockerfile", {"BASE": cpu_image.labels[Label.BASE_NAME]}, "base")
    # A build names its base by a tag; with an id alone it asks a registry.
    engine.tag(image_id, "llama-cpp-stand-in:test")
    yield "llama-cpp-stand-in:test"
    engine.remove_image("llama-cpp-stand-in:test")


@pytest.fixture(
    scope="module",
    params=[
        ("rocm", {}),
        ("rocm", {"RUNTIME_LIBRARIES": "slim"}),
        ("musa", {"MUSA_DOCKER_ARCH": "22;31"}),
        ("intel", {"GGML_SYCL_F16": "OFF"}),
        ("intel", {"RUNTIME_LIBRARIES": "slim"}),
        ("cann", {}),
        ("cann", {"CHIP_TYPE": "310p"}),
    ],
    ids=lambda param: "-".join([param[0], *param[1].values()]),
)
def built(engine: Engine, stand_in: str, request: pytest.FixtureRequest) -> Iterator[Built]:
    name, arguments = request.param
    variant = variants.find(name)
    files = {
        str(path.relative_to(settings.ROOT)): path.read_text(encoding="utf-8")
        for path in (settings.ROOT / "dockerfiles").rglob("*")
        if path.is_file()
    }
    source = {f"llama.cpp/{file}": text for file, text in SOURCE.items()}
    bases = dict.fromkeys([*recipe.BASE_ARGUMENTS.values(), "SLIM_BASE_IMAGE"], stand_in)
    image_id = build(engine, {**files, **source}, variant.dockerfile, {**bases, **arguments}, "runtime")
    yield Built(variant=variant, arguments=arguments, image_id=image_id)
    engine.remove_image(image_id)


def run(engine: Engine, built: Built, *command: str) -> str:
    done = engine.probe(ContainerSpec(image=built.image_id, entrypoint=command))
    assert done.exit_code == 0, done.output
    return done.output


def test_a_recipe_from_end_to_end(engine: Engine, built: Built) -> None:
    triple = engine.platform().triple
    own, cpu = (f"/app/bin/{triple}/{name}" for name in built.variant.directories)
    assert run(engine, built, "sh", "-c", "cd / && llama-server && id -u").strip() == "999"

    backend = BACKENDS[built.variant.name]
    assert {backend, "llama-server", "libllama.so.0"} <= set(run(engine, built, "ls", own).split())
    both = run(engine, built, "stat", "-c", "%i", f"{own}/llama-server", f"{cpu}/llama-server").split()
    assert both[0] == both[1], "one file with two names"
    if built.variant.name == "cann":
        directories = run(engine, built, "printenv", "LD_LIBRARY_PATH").strip().split(":")
        assert all(directory.startswith("/usr/local/Ascend/") for directory in directories)
    else:
        assert backend not in run(engine, built, "ls", cpu).split()

    texts = "/usr/share/doc/llama.cpp"
    assert run(engine, built, "cat", f"{texts}/LICENSE", f"{texts}/vendor/http/LICENSE") == "MITMIT"
    names = ("common/one.cpp", "src/one.cpp", "tools/mtmd/one.cpp", "tools/server/one.cpp", "vendor/one.cpp", "", TERMS)
    assert run(engine, built, "cat", f"{texts}/NOTICES") == "\n".join((*names, ""))

    defaults = recipe.global_arguments(settings.ROOT / built.variant.dockerfile, built.arguments)
    toolkit = {key: defaults[argument] for key, argument in built.variant.toolkit.items()}
    assert json.loads(run(engine, built, "cat", "/app/version.json"))["toolkit"] == toolkit


def test_the_cmake_arguments_of_a_recipe(engine: Engine, built: Built) -> None:
    triple = engine.platform().triple
    own = run(engine, built, "cat", f"/app/bin/{triple}/{built.variant.name}/arguments.so.txt").split()
    cpu = run(engine, built, "cat", f"/app/bin/{triple}/cpu/arguments.so.txt").split()
    for arguments in (own, cpu):
        assert "-DCMAKE_INSTALL_RPATH=$ORIGIN" in arguments
        assert f"-DLLAMA_BUILD_NUMBER={settings.load().pin.tag.removeprefix('b')}" in arguments
    if built.variant.name == "cann":
        assert {"-DGGML_NATIVE=OFF", "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON"} <= set(cpu)
        graphs = "OFF" if built.arguments.get("CHIP_TYPE") == "310p" else "ON"
        assert {"-DGGML_NATIVE=OFF", "-DGGML_CANN=ON", f"-DUSE_ACL_GRAPH={graphs}"} <= set(own)
    if built.variant.name == "musa":
        assert "-DMUSA_ARCHITECTURES=22;31" in own
    if built.variant.name == "intel":
        assert ("-DGGML_SYCL_F16=ON" in own) == ("GGML_SYCL_F16" not in built.arguments)
