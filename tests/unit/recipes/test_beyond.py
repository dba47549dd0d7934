"""What upstream changes outside of its Dockerfiles: a change that counts is told once, any other not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from base_images.errors import SourceError
from base_images.recipes import argument_changes, beyond, mirror, upstream_report, upstream_server
from base_images.recipes.statements import ALL, Area
from base_images.settings import ROOT
from tests.support import clones
from tests.support.commands import invoke
from tests.unit.recipes.conftest import UPSTREAM
from tests.unit.recipes.test_server_arguments import ARG_CPP, COMMON_H

WORKFLOW = ".github/workflows/docker.yml"
ROOT_CMAKE, GGML, SOURCES = "CMakeLists.txt", "ggml/CMakeLists.txt", "ggml/src/CMakeLists.txt"
CUDA, HIP, MUSA = (f"ggml/src/ggml-{name}/CMakeLists.txt" for name in ("cuda", "hip", "musa"))
TARGETS, ARGUMENTS, HTTP = "tools/server/CMakeLists.txt", "common/arg.cpp", "tools/server/server-http.cpp"
SERVER, MODEL, CACHE = "tools/server/server.cpp", "src/llama-model.cpp", "src/llama-kv-cache.cpp"

BEFORE = {
    WORKFLOW: """\
name: Publish  # the images
on: {schedule: [{cron: '12 4 * * *'}]}
jobs:
  prepare:
    steps:
      - run: |
          cat > build-matrix.json <<'JSON'
          [
            { "tag": "cpu", "dockerfile": ".devops/cpu.Dockerfile", "platforms": "linux/amd64", "server": true, "runs_on": "a" },
            { "tag": "cpu", "dockerfile": ".devops/cpu.Dockerfile", "platforms": "linux/arm64", "server": true, "runs_on": "b" },
            { "tag": "cuda cuda12", "dockerfile": ".devops/cuda.Dockerfile", "cuda_version": "12.8.1", "platforms": "linux/amd64", "server": true },
            { "tag": "cuda13", "dockerfile": ".devops/cuda.Dockerfile", "cuda_version": "13.1.1", "platforms": "linux/amd64", "server": true },
            { "tag": "cuda13", "dockerfile": ".devops/cuda.Dockerfile", "cuda_version": "13.1.1", "platforms": "linux/arm64", "server": true },
            { "tag": "rocm", "dockerfile": ".devops/rocm.Dockerfile", "platforms": "linux/amd64", "server": true }
          ]
          JSON
          jq -c . build-matrix.json
  push:
    steps:
      - uses: docker/build-push-action@v7
        with:
          target: server
          build-args: |
            ${{ matrix.config.cuda_version && format('CUDA_VERSION={0}', matrix.config.cuda_version) || '' }}
            ROCM_DOCKER_ARCH=gfx90a;gfx1100
""",  # noqa: E501
    ROOT_CMAKE: """\
cmake_minimum_required(VERSION 3.14...3.28) # for targets
set(LLAMA_VERSION_MAJOR 0)
if (CMAKE_SYSTEM_NAME STREQUAL "iOS")
    set(LLAMA_SUBPROCESS_DEFAULT OFF)
else()
    set(LLAMA_SUBPROCESS_DEFAULT ON)
endif()
option(LLAMA_BUILD_UI   "llama: build the UI"   ON)
option(LLAMA_SUBPROCESS "llama: use subprocess" ${LLAMA_SUBPROCESS_DEFAULT})
llama_option_depr(WARNING LLAMA_CUDA GGML_CUDA)
""",
    GGML: """\
option(GGML_CUDA_FA        "ggml: compile kernels" ON)
option(GGML_CUDA_NO_VMM    "ggml: no VMM"          OFF)
option(GGML_HIP_GRAPHS     "ggml: graphs"          OFF)
set   (GGML_SCHED_COPIES   "4" CACHE STRING
                           "ggml: copies")
if (NOT MSVC)
    option(GGML_FMA        "ggml: enable FMA"      ON)
endif()
cmake_dependent_option(GGML_BLAS "ggml: use BLAS" ON "GGML_CPU" OFF)
option(GGML_METAL          "ggml: use Metal"       OFF)
""",
    SOURCES: """\
if (GGML_CPU_ALL_VARIANTS AND NOT GGML_BACKEND_DL)
    message(FATAL_ERROR "GGML_CPU_ALL_VARIANTS requires GGML_BACKEND_DL")
endif()
option(GGML_CPU_ALL_VARIANTS "ggml: all variants" OFF)
option(GGML_BACKEND_DL "ggml: backends as libraries" OFF)
option(GGML_CPU "ggml: the CPU" ON)
function(ggml_add_backend_library backend)
    add_library(${backend} MODULE ${ARGN})
endfunction()
ggml_add_backend(CUDA)
ggml_add_cpu_backend_variant(haswell SSE42 AVX AVX2)
set_target_properties(ggml-base PROPERTIES SOVERSION ${LLAMA_VERSION_MAJOR})
""",
    CUDA: """\
find_package(CUDAToolkit)
if (CUDAToolkit_FOUND)
    if (NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
        list(APPEND CMAKE_CUDA_ARCHITECTURES 75-virtual 80-virtual)
        if (CUDAToolkit_VERSION VERSION_GREATER_EQUAL "11.8")
            list(APPEND CMAKE_CUDA_ARCHITECTURES 89-real)
        endif()
    endif()
    ggml_add_backend_library(ggml-cuda a.cu)
endif()
""",
    HIP: """\
if (${hip_VERSION} VERSION_LESS 6.1)
    message(FATAL_ERROR "At least ROCM/HIP V6.1 is required")
endif()
""",
    MUSA: 'if (NOT DEFINED MUSA_ARCHITECTURES)\n    set(MUSA_ARCHITECTURES "21;22;31")\nendif()\n',
    TARGETS: "set(TARGET llama-server)\nadd_executable(${TARGET} main.cpp)\nadd_library(server-context STATIC a.cpp)\n",
    "common/common.h": """\
struct common_params {
    int32_t port = 8080; // server listens on this network port
    bool reuse_port = false;
    std::vector<std::string> hostnames = {"127.0.0.1"};
};
""",
    ARGUMENTS: 'void print() { fprintf(stderr, "version: %d (%s)\\n", number(), commit()); }\n',
    HTTP: 'void f() { std::unordered_set<std::string> endpoints { "/health", "/v1/models" }; }\n',
    SERVER: """\
void start() {
    ctx_http.get ("/health",    wrap(routes.get_health)); // public
    ctx_http.get ("/v1/models", wrap(routes.get_models));
    ctx_http.post("/tokenize",  wrap(routes.tokenize));
    ctx_http.get ("/slots",     wrap(routes.get_slots));
    SRV_INF("server is listening on %s\\n", address);
}
""",
    MODEL: """\
void load() {
    LLAMA_LOG_INFO("%s: offloaded %d/%d layers to GPU\\n", __func__, a, b);
    LLAMA_LOG_INFO("%s: %12s model buffer size = %8.2f MiB\\n", __func__, name, size);
}
""",
    CACHE: 'void f() { LLAMA_LOG_INFO("%s: %10s KV buffer size = %8.2f MiB\\n", __func__, name, size); }\n',
    ".devops/cpu.Dockerfile": "FROM ubuntu:24.04 AS build\nCOPY .devops/tools.sh /app/tools.sh\nRUN make\n",
    ".devops/tools.sh": "#!/bin/sh\n# runs a program\nset -e\nexec /app/llama-server\n",
    ".devops/unused.sh": "true\n",
}


def changed(path: str, *pairs: tuple[str, str]) -> dict[str, str]:
    text = BEFORE[path]
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return {**BEFORE, path: text}


def told(after: dict[str, str]) -> list[str]:
    return [str(change) for change in beyond.compare(BEFORE, after)]


ROCM = ' "dockerfile": ".devops/rocm.Dockerfile", "platforms": "linux/amd64", "server": true }'
ARM = '"cpu", "dockerfile": ".devops/cpu.Dockerfile", "platforms": "linux/arm64"'


@pytest.mark.parametrize(
    ("path", "old", "new", "expected"),
    [
        # The images.
        (
            WORKFLOW,
            "13.1.1",
            "13.3.0",
            "published images: cuda13 (amd64, arm64): cuda_version (cuda): 13.1.1 -> 13.3.0",
        ),
        (
            WORKFLOW,
            f',\n            {{ "tag": "rocm",{ROCM}',
            "",
            "published images: rocm (amd64) (rocm): .devops/rocm.Dockerfile -> none",
        ),
        (
            WORKFLOW,
            ARM,
            ARM.replace("arm64", "riscv64"),
            [
                "published images: cpu (arm64) (cpu): .devops/cpu.Dockerfile -> none",
                "published images: cpu (riscv64) (cpu): none -> .devops/cpu.Dockerfile",
            ],
        ),
        (
            WORKFLOW,
            'rocm.Dockerfile", "platforms"',
            'rocm.Dockerfile", "ubuntu_version": "26.04", "platforms"',
            "published images: rocm (amd64): ubuntu_version (rocm): none -> 26.04",
        ),
        (
            WORKFLOW,
            'rocm.Dockerfile", "platforms": "linux/amd64", "server": true',
            'rocm.Dockerfile", "platforms": "linux/amd64", "server": false',
            "published images: rocm (amd64): server (rocm): true -> false",
        ),
        (
            WORKFLOW,
            "gfx90a;gfx1100",
            "gfx90a;gfx1100;gfx1201",
            "published images: build argument ROCM_DOCKER_ARCH: gfx90a;gfx1100 -> gfx90a;gfx1100;gfx1201",
        ),
        # CMake's options.
        (
            ROOT_CMAKE,
            '"llama: build the UI"   ON',
            '"llama: build the UI"   OFF',
            "CMake option: LLAMA_BUILD_UI: ON -> OFF",
        ),
        (
            ROOT_CMAKE,
            "else()\n    set(LLAMA_SUBPROCESS_DEFAULT ON)",
            "else()\n    set(LLAMA_SUBPROCESS_DEFAULT OFF)",
            (
                "CMake option: LLAMA_SUBPROCESS_DEFAULT: ON if not (CMAKE_SYSTEM_NAME STREQUAL iOS) -> "
                "OFF if not (CMAKE_SYSTEM_NAME STREQUAL iOS)"
            ),
        ),
        (
            ROOT_CMAKE,
            "depr(WARNING",
            "depr(FATAL_ERROR",
            "CMake option: LLAMA_CUDA, as deprecated: WARNING GGML_CUDA -> FATAL_ERROR GGML_CUDA",
        ),
        (
            GGML,
            "option(GGML_METAL ",
            'set(GGML_CUDA_FA_QUANTS "q4_0" CACHE STRING "ggml: types")\noption(GGML_METAL ',
            "CMake option: GGML_CUDA_FA_QUANTS (cuda, rocm, musa): none -> q4_0",
        ),
        (GGML, '"ggml: graphs"          OFF', '"ggml: graphs" ON', "CMake option: GGML_HIP_GRAPHS (rocm): OFF -> ON"),
        (GGML, '"4" CACHE', '"8" CACHE', "CMake option: GGML_SCHED_COPIES: 4 -> 8"),
        (
            GGML,
            "NOT MSVC",
            "NOT MSVC AND NOT GGML_X",
            "CMake option: GGML_FMA: ON if NOT MSVC -> ON if NOT MSVC AND NOT GGML_X",
        ),
        (
            GGML,
            '"GGML_CPU" OFF',
            '"GGML_CPU;NOT APPLE" OFF',
            "CMake option: GGML_BLAS: ON if GGML_CPU, else OFF -> ON if GGML_CPU;NOT APPLE, else OFF",
        ),
        (
            GGML,
            '"ggml: use Metal"       OFF',
            '"ggml: use Metal" ON',
            "CMake option: GGML_METAL (no variant of ours): OFF -> ON",
        ),
        (
            SOURCES,
            "AND NOT GGML_BACKEND_DL)",
            "AND NOT GGML_CPU)",
            (
                f"CMake option: refused by {SOURCES}: error if GGML_CPU_ALL_VARIANTS AND NOT GGML_BACKEND_DL -> "
                "error if GGML_CPU_ALL_VARIANTS AND NOT GGML_CPU"
            ),
        ),
        # Architectures and toolkits.
        (
            CUDA,
            "89-real)",
            "89-real 90-virtual)",
            (
                "architectures: CMAKE_CUDA_ARCHITECTURES (cuda): 89-real if CUDAToolkit_VERSION >= 11.8 -> "
                "89-real 90-virtual if CUDAToolkit_VERSION >= 11.8"
            ),
        ),
        (
            CUDA,
            "11.8",
            "12.0",
            (
                "architectures: CMAKE_CUDA_ARCHITECTURES (cuda): 89-real if CUDAToolkit_VERSION >= 11.8 -> "
                "89-real if CUDAToolkit_VERSION >= 12.0"
            ),
        ),
        (MUSA, "21;22;31", "22;31", "architectures: MUSA_ARCHITECTURES (musa): 21 22 31 -> 22 31"),
        (HIP, "VERSION_LESS 6.1", "VERSION_LESS 6.4", None),
        (
            CUDA,
            "CUDAToolkit)\nif",
            "CUDAToolkit 12.4 REQUIRED)\nif",
            f"toolkit: package CUDAToolkit for {CUDA} (cuda): optional -> 12.4 REQUIRED",
        ),
        (ROOT_CMAKE, "3.14...3.28", "3.20...3.28", "toolkit: CMake for CMakeLists.txt: 3.14...3.28 -> 3.20...3.28"),
        # Targets and libraries.
        (
            TARGETS,
            "TARGET llama-server)",
            "TARGET llama-serve)",
            ["target: llama-serve: none -> executable", "target: llama-server: executable -> none"],
        ),
        (
            TARGETS,
            "server-context STATIC",
            "server-context SHARED",
            "target: server-context: library STATIC -> library SHARED",
        ),
        (ROOT_CMAKE, "_MAJOR 0", "_MAJOR 1", "target: SOVERSION of ggml-base: 0 -> 1"),
        (
            CUDA,
            "library(ggml-cuda a.cu",
            "library(ggml-nvidia a.cu",
            ["backend library: ggml-cuda (cuda): built -> none", "backend library: ggml-nvidia (cuda): none -> built"],
        ),
        (
            SOURCES,
            "haswell SSE42 AVX AVX2",
            "haswell SSE42 AVX AVX2 FMA",
            "backend library: ggml-cpu-haswell: SSE42 AVX AVX2 -> SSE42 AVX AVX2 FMA",
        ),
        (
            SOURCES,
            "backend(CUDA)",
            "backend(CUDA)\nggml_add_backend(TPU)",
            "backend library: backend TPU: none -> built",
        ),
        # The server.
        ("common/common.h", "port = 8080", "port = 9931", "server: default port: 8080 -> 9931"),
        (
            "common/common.h",
            '"127.0.0.1"',
            '"127.0.0.1", "::1"',
            "server: default address: 127.0.0.1 -> 127.0.0.1, ::1",
        ),
        (SERVER, '"/health", ', '"/healthz", ', "server: GET /health: answered -> none"),
        (
            SERVER,
            'post("/tokenize"',
            'get("/tokenize"',
            ["server: GET /tokenize: none -> answered", "server: POST /tokenize: answered -> none"],
        ),
        (HTTP, ', "/v1/models"', "", "server: /v1/models without an API key: answered -> none"),
        (
            SERVER,
            "server is listening on %s",
            "listening at %s",
            "server: log line 'listening on': server is listening on %s (SRV_INF) -> none",
        ),
        (
            MODEL,
            'LLAMA_LOG_INFO("%s: offloaded',
            'LLAMA_LOG_DEBUG("%s: offloaded',
            (
                "server: log line 'offloaded %d': %s: offloaded %d/%d layers to GPU (LLAMA_LOG_INFO) -> "
                "%s: offloaded %d/%d layers to GPU (LLAMA_LOG_DEBUG)"
            ),
        ),
        (
            ARGUMENTS,
            'stderr, "version: %d (%s)',
            'stdout, "version: %s (build %d, commit %s)',
            (
                "server: output of --version: version: %d (%s) (fprintf to stderr) -> "
                "version: %s (build %d, commit %s) (fprintf to stdout)"
            ),
        ),
        # Helper files.
        (".devops/tools.sh", "set -e\n", "set -eu\n", "helper file: .devops/tools.sh (cpu): set -e -> set -eu"),
    ],
)
def test_a_change_is_told_once(path: str, old: str, new: str, expected: str | list[str] | None) -> None:
    if expected is None:
        expected = f"toolkit: hip_VERSION that {path} refuses (rocm): < 6.1 -> < 6.4"
    assert told(changed(path, (old, new))) == ([expected] if isinstance(expected, str) else expected)


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        (WORKFLOW, "name: Publish  # the images", "# Images.\nname: Publish all"),
        (WORKFLOW, "12 4 * * *", "30 5 * * *"),
        (WORKFLOW, '"runs_on": "a"', '"runs_on": "c"'),
        (
            WORKFLOW,
            '"tag": "cpu", "dockerfile": ".devops/cpu.Dockerfile",',
            '"dockerfile": ".devops/cpu.Dockerfile",  "tag": "cpu",',
        ),
        (WORKFLOW, "build-push-action@v7", "build-push-action@v8"),
        (WORKFLOW, "'JSON'\n", "JSON\n"),
        (ROOT_CMAKE, " # for targets", '\n#[[ option(LLAMA_BUILD_UI "no" OFF)\n]]\n# option(LLAMA_OLD "no" ON)'),
        (ROOT_CMAKE, "set(", "SET ("),
        (ROOT_CMAKE, "option(LLAMA_BUILD_UI   ", "OPTION( LLAMA_BUILD_UI\n    "),
        (ROOT_CMAKE, '"llama: build the UI"   ON', '"llama: build the (embedded) \\"UI\\"" "on"'),
        (ROOT_CMAKE, "else()", 'else(CMAKE_SYSTEM_NAME STREQUAL "iOS")'),
        (GGML, '"ggml: no VMM"          OFF', '"ggml: no virtual memory"'),
        (GGML, "option(GGML_METAL ", 'message(STATUS "Metal: ${GGML_METAL}")\noption(GGML_METAL '),
        (SOURCES, '"GGML_CPU_ALL_VARIANTS requires GGML_BACKEND_DL"', '"set GGML_BACKEND_DL"'),
        (CUDA, "75-virtual 80-virtual", "75-virtual  # Turing\n            80-virtual"),
        (MUSA, '"21;22;31"', "21 22 31"),
        (HIP, "At least ROCM/HIP V6.1 is required", "HIP is too old"),
        (HIP, "${hip_VERSION}", "hip_VERSION"),
        (
            TARGETS,
            "set(TARGET llama-server)\nadd_executable(${TARGET} main.cpp)",
            "add_executable(llama-server main.cpp more.cpp)",
        ),
        ("common/common.h", " // server listens on this network port", ""),
        ("common/common.h", "int32_t port = 8080", "int32_t port{8080}"),
        (SERVER, '"/slots",     wrap(routes.get_slots)', '"/slot", wrap(get_slots)'),
        (SERVER, "wrap(routes.get_health)); // public", "wrap(get_health_2));"),
        (
            SERVER,
            '    SRV_INF("server is listening on %s\\n", address);',
            '    // listening on\n    SRV_INF("server is "\n        "listening on %s\\n", text);',
        ),
        (MODEL, "__func__, a, b", "__func__,\n        one, two"),
        (MODEL, "%12s model buffer size = ", "%16s model  buffer size =  "),
        (".devops/tools.sh", "# runs a program\nset -e", "\n# runs one of the programs\n    set   -e"),
        (".devops/unused.sh", "true", "false"),
    ],
)
def test_what_does_not_count_is_not_told(path: str, old: str, new: str) -> None:
    assert told(changed(path, (old, new))) == []


@pytest.mark.parametrize(
    ("instruction", "used"),
    [
        ("COPY .devops/run.d /app/", True),
        ('COPY ["./.devops/run.d/", "/app"]', True),
        ("COPY .devops/*/*.sh /app/", True),
        ("RUN --mount=type=bind,source=.devops/run.d/a.sh,target=/a.sh sh /a.sh", True),
        ("RUN sh .devops/run.d/a.sh; true", True),
        ("COPY .devops/ /app/", True),
        ("# COPY .devops/run.d /app/", False),
        ("COPY .devops/run.d/a.sh.old /app/", False),
        ("COPY . .", False),
    ],
)
def test_a_helper_counts_if_an_instruction_names_it(instruction: str, used: bool) -> None:
    recipe = {".devops/cuda.Dockerfile": f"FROM ubuntu\n{instruction}\n"}
    before, after = ({**recipe, ".devops/run.d/a.sh": text} for text in ("true\n", "false\n"))
    found = [str(change) for change in beyond.compare(before, after)]
    assert found == ["helper file: .devops/run.d/a.sh (cuda): true -> false"] * used
    assert bool(beyond.compare(before, recipe)) is used


def test_a_statement_that_moved_to_another_file_says_the_same() -> None:
    after = changed(ARGUMENTS, (BEFORE[ARGUMENTS], "void print();\n"))
    assert told({**after, "common/build-info.cpp.in": BEFORE[ARGUMENTS]}) == []
    after = changed(TARGETS, ("add_library(server-context STATIC a.cpp)\n", ""))
    assert told({**after, "tools/mtmd/CMakeLists.txt": "add_library(server-context STATIC b.cpp)\n"}) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "why"),
    [
        (WORKFLOW, "jobs:", "jobs: [", "while parsing"),
        (WORKFLOW, "          [\n", "          [,\n", "the matrix within it is not JSON"),
        (GGML, "endif()", "", "the last if does not end"),
        (CUDA, "find_package(CUDAToolkit)", "find_package(CUDAToolkit", "line 1: this is not CMake"),
        (SOURCES, "endfunction()", "endfunction()\nendif()", "line 10: endif without if"),
        (MUSA, "endif()", "else()", "the last if does not end"),
        (HIP, "endif()", '"endif()', "line 3: this is not CMake"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_change(path: str, old: str, new: str, why: str) -> None:
    after = changed(path, (old, new))
    for found in (beyond.compare(BEFORE, after), beyond.compare(after, BEFORE)):
        (change,) = found
        assert change.what == f"{path} cannot be read and was not compared"
        assert why in (change.before or change.after or "")
    # An option of that file may be set in another one.
    elsewhere = {"ggml/src/ggml-blas/CMakeLists.txt": "if (A)\n    set(GGML_CUDA_FA OFF)\nendif()\n"}
    assert len(beyond.compare({**BEFORE, **elsewhere}, {**after, **elsewhere})) == 1
    # The rest is still compared.
    after["common/common.h"] = BEFORE["common/common.h"].replace("8080", "9931")
    assert [change.what for change in beyond.compare(BEFORE, after)][-1] == "default port"
    assert beyond.compare(after, after) == ()


def test_broken_cpp_hides_only_what_is_broken() -> None:
    after = changed(SERVER, ("void start() {", "void other( {{\nvoid start() {"))
    assert [change for change in told(after) if "cannot be read" in change] == []


MATRIX = """\
env: { ROCM_VERSION: 7.2, TOKEN: one }
shared: &shared { server: true, dockerfile: .devops/cuda.Dockerfile }
jobs:
  push:
    strategy:
      matrix:
        config:
          - { tag: cuda12, platforms: "linux/amd64,linux/arm64", cuda_version: 12.8.1, <<: *shared }
          - { tag: cuda13, platforms: "linux/amd64", cuda_version: 13.3.0, <<: *shared }
    steps:
      - run: docker build --build-arg UBUNTU_VERSION=24.04 .
"""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("12.8.1", "12.9.0", ["cuda12 (amd64, arm64): cuda_version (cuda): 12.8.1 -> 12.9.0"]),
        ("server: true", "server: false", ["cuda12 (amd64, arm64); cuda13 (amd64): server (cuda): true -> false"]),
        (',linux/arm64"', '"', ["cuda12 (arm64) (cuda): .devops/cuda.Dockerfile -> none"]),
        ("ROCM_VERSION: 7.2", "ROCM_VERSION: 7.3", ["variable ROCM_VERSION: 7.2 -> 7.3"]),
        ("TOKEN: one", "TOKEN: two", []),
        ("24.04", "26.04", ["build argument UBUNTU_VERSION: 24.04 -> 26.04"]),
        ('"linux/amd64,linux/arm64"', "'linux/arm64, linux/amd64'", []),
    ],
)
def test_the_matrix_may_be_yaml(old: str, new: str, expected: list[str]) -> None:
    assert old in MATRIX
    found = beyond.compare({WORKFLOW: MATRIX}, {WORKFLOW: MATRIX.replace(old, new)})
    assert [change.told for change in found] == expected


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (WORKFLOW, "a: &a [*a, {dockerfile: x, tag: y}]\n"),
        (WORKFLOW, "a: &a0 [{}]\n" + "".join(f"a{n}: &a{n + 1} [*a{n}, *a{n}, *a{n}]\n" for n in range(40))),
        (WORKFLOW, "run: |\n" + '  <<A "dockerfile"\n' * 20_000),
        (GGML, "[[ " * 30_000),
        (GGML, "#[[\n" * 30_000),
        (GGML, "if(" * 30_000),
        (GGML, "if(A)\n" * 3_000),
        (".devops/tools.sh", "true\n" * 30_000),
    ],
)
def test_a_hostile_file_ends_in_a_change_or_in_none(path: str, text: str) -> None:
    assert len(beyond.compare(BEFORE, {**BEFORE, path: text})) < 30
    assert beyond.compare({path: text}, {path: text}) == ()


# Moved files.


def test_a_renamed_file_is_one_move() -> None:
    text = BEFORE[".devops/cpu.Dockerfile"]
    after = {path: text for path, text in BEFORE.items() if path != ".devops/cpu.Dockerfile"}
    found = beyond.compare(BEFORE, {**after, ".devops/server.Dockerfile": text + "ENV A=b\n"})
    assert [(change.area, change.variants, change.before, change.after) for change in found] == [
        (Area.MOVED, ("cpu",), ".devops/cpu.Dockerfile", ".devops/server.Dockerfile")
    ]


def test_a_renamed_file_is_compared_with_what_it_was() -> None:
    after = {("tools/srv/server.cpp" if path == SERVER else path): text for path, text in BEFORE.items()}
    after["tools/srv/server.cpp"] = BEFORE[SERVER].replace('"/health"', '"/healthz"')
    assert told(after) == [
        "server: GET /health: answered -> none",
        f"moved file: {SERVER} (no variant of ours): {SERVER} -> tools/srv/server.cpp",
    ]


def test_a_moved_directory_is_one_move() -> None:
    before = {**BEFORE, ".devops/nix/a.nix": "a = 1; # first\n", ".devops/nix/b.nix": "b = 2; # second\n"}
    after = {path.replace(".devops/", "docker/"): text for path, text in before.items()}
    assert [(change.before, change.after) for change in beyond.compare(before, after)] == [(".devops/", "docker/")]
    after = {f"llama/{path}": text for path, text in before.items()}
    assert [(change.before, change.after) for change in beyond.compare(before, after)] == [("./", "llama/")]


def test_a_new_file_like_one_that_stayed_is_no_move() -> None:
    """Another variant's recipe has most lines of the cpu's too."""
    lines = "".join(f"RUN step number {number}\n" for number in range(20))
    before = {".devops/cpu.Dockerfile": lines, ".devops/old.Dockerfile": f"{lines}RUN one more step\nRUN a third\n"}
    after = {".devops/cpu.Dockerfile": lines, ".devops/new.Dockerfile": f"{lines}RUN something else\n"}
    assert beyond.moves(before, after) == {}


# Where it is seen.


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A clone: b2 has another port, and the directory of the Dockerfiles moved; in b3 cpu has another name."""
    path = tmp_path / "upstream"

    def write(texts: dict[str, str]) -> None:
        for name, text in texts.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)

    write({**BEFORE, ".devops/cpu.Dockerfile": UPSTREAM, ".devops/cuda.Dockerfile": UPSTREAM + "ENV A=b\n"})
    clones.commit_all(path).create_tag("b1")
    write(
        {
            "common/common.h": BEFORE["common/common.h"].replace("8080", "9931"),
            MUSA: 'set(MUSA_ARCHITECTURES "22;31")\n',
        }
    )
    (path / ".devops").rename(path / "docker")
    clones.commit_all(path).create_tag("b2")
    (path / "docker/cpu.Dockerfile").rename(path / "docker/server.Dockerfile")
    clones.commit_all(path).create_tag("b3")
    return path


def test_check_upstream_shows_it(upstream: Path) -> None:
    def run(*options: str) -> str:
        done = invoke("check-upstream", "--source", str(upstream), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    report = json.loads(run("--from", "b1", "--to", "b2", "--json"))
    assert report["variants"] == {"cpu": [], "cuda": []}
    assert [(each["area"], each["variants"], each["before"], each["after"]) for each in report["beyond"]] == [
        ("architectures", ["musa"], "21 22 31", "22 31"),
        ("server", list(ALL), "8080", "9931"),
        ("moved file", ["cpu", "cuda"], ".devops/", "docker/"),
    ]
    shown = run("--from", "b1", "--to", "b2", "--variant", "cuda")
    assert "server: `default port`: `8080` → `9931`\n" in shown
    assert "MUSA_ARCHITECTURES" not in shown


def test_the_pull_request_says_it(upstream: Path) -> None:
    texts = beyond.read(upstream, "b1", "b3")
    # Under its old name the recipe is compared with ours, so no record matches nothing.
    newer = mirror.following(mirror.upstream_texts(upstream, "b3"), beyond.moves(*texts))
    assert newer == mirror.upstream_texts(upstream, "b1")
    changed = mirror.compare_refs(newer, newer, others=beyond.compare(*texts))
    text = upstream_report.as_markdown(upstream_report.tell("b1 → b3", mirror.check({}, {}, ()), changed))
    assert "- **musa**: architectures: `MUSA_ARCHITECTURES`: `21 22 31` → `22 31`\n" in text


def test_a_tree_whose_recipes_moved_is_llama_cpp(upstream: Path) -> None:
    assert set(mirror.upstream_texts(upstream)) == {"server", "cuda"}
    (upstream / ARGUMENTS).unlink()
    with pytest.raises(SourceError, match=r"has no \.devops"):
        mirror.upstream_texts(upstream)


def test_a_recipe_that_is_gone_leaves_the_records_for_all_alone() -> None:
    records = (mirror.Record(variant="all", key="- base: apt ffmpeg", reason="large"),)
    recipe = "FROM ubuntu:24.04 AS build\nRUN make\nFROM build AS runtime\n"
    upstream = {"cuda": recipe.replace("runtime", "server")}
    assert mirror.check(upstream, {"cuda": recipe, "cpu": recipe}, records).stale == ()
    assert mirror.check(upstream, {"cuda": recipe}, records).stale == records


def test_a_default_that_the_arguments_tell_is_not_told_again(upstream: Path) -> None:
    after = COMMON_H.replace("8080", "9931")
    assert after != COMMON_H
    sources = [
        argument_changes.Source(name=name, texts={"common/arg.cpp": ARG_CPP, "common/common.h": text})
        for name, text in (("b1", COMMON_H), ("b2", after))
    ]
    others = beyond.compare(*(source.texts for source in sources))
    assert [change.what for change in others] == ["default port"]
    texts = mirror.upstream_texts(upstream, "b1")
    assert mirror.compare_refs(texts, texts, others=others).beyond == others
    told_twice = mirror.compare_refs(texts, texts, sources=(sources[0], sources[1]), others=others)
    assert told_twice.beyond == ()
    assert [change.names for change in told_twice.arguments.changes] == [("--port",)]  # type: ignore[union-attr]


def test_the_paths_and_log_lines_are_those_that_our_checks_read() -> None:
    rooms = (ROOT / "scripts/base_images" / room for room in ("smoke", "contract"))
    files = [*(path for room in rooms for path in room.glob("*.py")), ROOT / "dockerfiles/consumer.toml"]
    sources = "\n".join(path.read_text() for path in files)
    for path in upstream_server.PATHS:
        assert f'"{path}' in sources, path
    for line in (*upstream_server.LOG_LINES, upstream_server.VERSION):
        read = (
            re.sub(r"%s | %s but| = %s| ?%d?$", "", line)
            .replace("model buffer", "buffer")
            .replace("KV buffer", "buffer")
        )
        assert read in sources, line
