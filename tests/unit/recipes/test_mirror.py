"""The mirror, on a file in the manner of upstream's and our recipe for it, which is made from that file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import git
import pytest

from base_images import settings
from base_images.errors import SourceError, UsageError
from base_images.recipes import consumer, dockerfile, mirror
from base_images.recipes import facts as recipe_facts
from base_images.recipes.facts import Fact
from base_images.recipes.mirror import Record, Report, Status
from tests.unit.cli.test_tasks import fresh_copy, invoke
from tests.unit.recipes.test_server_arguments import ARG_CPP, COMMON_H

UPSTREAM = (Path(__file__).parent / "upstream/cuda.Dockerfile").read_text(encoding="utf-8")

ARCHITECTURE = '[if [ "${CUDA_DOCKER_ARCH}" != default ]]'
HALF = '[if [ "${FP16}" = ON ]]'

LIB64, STUB = "${TOOLKIT}/lib64:${LD_LIBRARY_PATH}", "${TOOLKIT}/stub:${LD_LIBRARY_PATH}"

RECORDS = (
    Record(variant="all", key="- base: apt ffmpeg", reason="large"),
    Record(variant="cuda", key="+ build: apt ccache", reason="fast"),
    Record(variant="cuda", key="- full: from = base", reason="one program"),
)


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new)


def our_recipe() -> str:
    """What a recipe of ours for that file looks like: our stage's name, our context, our ARGs for each base."""
    text = UPSTREAM
    for old, new in (
        ("FROM base AS server", "FROM base AS runtime"),
        ("FROM docker.io/node:$NODE_VERSION", "FROM ${WEB_BASE_IMAGE}"),
        ("FROM ${DEV_IMAGE}", "FROM $BUILD_BASE_IMAGE"),
        ("FROM ${RUN_IMAGE}", "FROM $RUNTIME_BASE_IMAGE"),
        ("COPY . .", "COPY llama.cpp/ ."),
        ("COPY tools/ui/ ./", "COPY llama.cpp/tools/ui ./"),
        ("COPY tools/ui/package.json tools/", "COPY llama.cpp/tools/ui/package.json llama.cpp/tools/"),
        (" ffmpeg", ""),
        ("git libssl-dev", "git libssl-dev ccache"),
        ("ARG APP_VERSION=N/A\n", "ARG APP_VERSION=N/A\nARG LLAMA_CPP_TAG=b1\nARG LLAMA_CPP_COMMIT=c\n"),
        (
            "ARG NODE_VERSION=24\n",
            (
                "ARG NODE_VERSION=24\nARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}\n"
                "ARG BUILD_BASE_IMAGE=${DEV_IMAGE}\nARG RUNTIME_BASE_IMAGE=${RUN_IMAGE}\n"
            ),
        ),
    ):
        text = replaced(text, old, new)
    return re.sub(r"FROM base AS full\n.*?(?=FROM)", "", text, flags=re.DOTALL)


def check(upstream: str = UPSTREAM, ours: str = "", records: tuple[Record, ...] = RECORDS) -> Report:
    return mirror.check({"cuda": upstream}, {"cuda": ours or our_recipe()}, records)


def unexplained(report: Report) -> list[str]:
    """What a person has to act on: differences that nobody recorded, and records without a difference."""
    findings = [finding for comparison in report.comparisons for finding in comparison.findings]
    keys = [finding.difference.key for finding in findings if finding.status is not Status.INTENDED]
    return sorted([*keys, *(f"stale {record.key}" for record in report.stale)])


def test_intended_differences_are_told_with_their_reason() -> None:
    report = check()
    [comparison] = report.comparisons
    assert report.ok
    assert {finding.difference.key: finding.reason for finding in comparison.findings} == {
        record.key: record.reason for record in RECORDS
    }
    assert comparison.same > 60


def test_without_records_each_difference_has_its_side() -> None:
    report = check(records=())
    assert not report.ok
    assert {finding.difference.key: finding.status for finding in report.comparisons[0].findings} == {
        "- base: apt ffmpeg": Status.NOT_PORTED,
        "+ build: apt ccache": Status.NOT_INTENDED,
        "- full: from = base": Status.NOT_PORTED,
    }


# What upstream may do, and what must be said of it: - upstream has it, + we have it, ! upstream's value -> ours.
MUTATIONS: dict[str, tuple[str, str, list[str]]] = {
    "flag flipped": (
        "-DGGML_NATIVE=OFF",
        "-DGGML_NATIVE=ON",
        ["! build: cmake build -DGGML_NATIVE: ON -> OFF"],
    ),
    "flag added": (
        "-DGGML_CUDA=ON",
        "-DGGML_CUDA=ON -DGGML_CUDA_NCCL=OFF",
        ["- build: cmake build -DGGML_CUDA_NCCL = OFF"],
    ),
    "flag dropped": (" -DGGML_BACKEND_DL=ON", "", ["+ build: cmake build -DGGML_BACKEND_DL = ON"]),
    "flag given again with another value": (
        "-DGGML_CUDA=ON",
        "-DGGML_CUDA=ON -DGGML_CUDA=OFF",
        ["! build: cmake build -DGGML_CUDA: ON then OFF -> ON"],
    ),
    "flag moved to an ENV": (
        "ENV CC=gcc-14",
        "ENV CMAKE_ARGS='-DGGML_NATIVE=OFF' CC=gcc-14",
        ["- build: env CMAKE_ARGS -DGGML_NATIVE = OFF"],
    ),
    "flag moved to an ARG": (
        "-DGGML_CUDA=ON",
        "$EXTRA",
        ["- build: cmake build ${EXTRA}", "+ build: cmake build -DGGML_CUDA = ON"],
    ),
    "value of a flag moved to an ARG": (
        "-DGGML_CUDA=ON",
        '-DGGML_CUDA="$USE_CUDA"',
        ['! build: cmake build -DGGML_CUDA: "${USE_CUDA}" -> ON'],
    ),
    "flag in an ENV flipped": (
        "-DGGML_RPC=OFF",
        "-DGGML_RPC=ON",
        ["! build: env OPTIONS -DGGML_RPC: ON -> OFF"],
    ),
    "flag behind an if changed": (
        "-DGGML_FP16=ON",
        "-DGGML_FP16=OFF",
        [f"! build: variable OPTION_FP16 -DGGML_FP16: OFF {HALF} -> ON {HALF}"],
    ),
    "condition of a flag changed": (
        '"${CUDA_DOCKER_ARCH}" != "default"',
        '"${CUDA_DOCKER_ARCH}" != "all"',
        [
            (
                "! build: variable CMAKE_ARGS -DCMAKE_CUDA_ARCHITECTURES: ${CUDA_DOCKER_ARCH} "
                f'[if [ "${{CUDA_DOCKER_ARCH}}" != all ]] -> ${{CUDA_DOCKER_ARCH}} {ARCHITECTURE}'
            )
        ],
    ),
    "command put behind an if": (
        "RUN npm ci",
        'RUN if [ -n "$CI" ]; then npm ci; fi',
        ['! web: run npm ci: [if [ -n "${CI}" ]] -> no value'],
    ),
    "quotes that held an expansion together dropped": (
        '-DARCHS="$CUDA_DOCKER_ARCH"',
        "-DARCHS=$CUDA_DOCKER_ARCH",
        ['! build: cmake build -DARCHS: ${CUDA_DOCKER_ARCH} -> "${CUDA_DOCKER_ARCH}"'],
    ),
    "linker flags changed": (
        "-Wl,--allow-shlib-undefined",
        "-Wl,--as-needed",
        ["! build: cmake build -DCMAKE_EXE_LINKER_FLAGS: -Wl,--as-needed -> -Wl,--allow-shlib-undefined"],
    ),
    "generator set": ("cmake -S .", "cmake -G Ninja -S .", ["- build: cmake build -G = Ninja"]),
    "environment of cmake changed": (
        "/clang",
        "/clang++",
        ["! build: cmake environment HIPCXX: $(toolkit -l)/clang++ -> $(toolkit -l)/clang"],
    ),
    "configuration changed": (
        "--config Release",
        "--config RelWithDebInfo",
        ["! build: cmake --build build --config: RelWithDebInfo -> Release"],
    ),
    "target added": (
        "--config Release",
        "--target a b --config Release",
        [
            "- build: cmake --build build --target a",
            "- build: cmake --build build --target b",
        ],
    ),
    "jobs changed": ("-j$(nproc)", "-j4", ["! build: cmake --build build -j: 4 -> $(nproc)"]),
    "failure of the build ignored": (
        "-j$(nproc)",
        "-j$(nproc) || true",
        ["- build: run true = [if `cmake --build build --config Release -j$(nproc)` fails]"],
    ),
    "failure ignored by a semicolon": (
        "apt-get update && \\",
        "apt-get update; \\",
        ["! build: run apt update: [whether it fails or not] then no value -> no value"],
    ),
    "package added": ("cmake git", "cmake git ninja-build", ["- build: apt ninja-build"]),
    "package dropped": (" curl ffmpeg", " ffmpeg", ["+ base: apt curl"]),
    "package of another version": (
        "gcc-14 g++-14 cmake",
        "gcc-13 g++-14 cmake",
        ["- build: apt gcc-13", "+ build: apt gcc-14"],
    ),
    "package held to another version": (
        "thrust=12.8-1",
        "thrust=12.9-1",
        [
            "! build: apt thrust: =12.9-1 -> =12.8-1",
            "! build: apt option -o Dpkg::Options::=--force-overwrite: for thrust=12.9-1 -> for thrust=12.8-1",
        ],
    ),
    "package moved to another stage": (
        "COPY --from=build /app/lib/ /app",
        "COPY --from=build /app/lib/ /app\nRUN apt-get install -y libssl-dev",
        ["- base: apt libssl-dev"],
    ),
    "option of an install dropped": (
        '-o Dpkg::Options::="--force-overwrite" ',
        "",
        ["+ build: apt option -o Dpkg::Options::=--force-overwrite = for thrust=12.8-1"],
    ),
    "package behind an if": (
        "&& apt-get install -y -o",
        '&& [ "$FP16" = ON ] || apt-get install -y -o',
        [
            '- build: run [ "${FP16}" = ON ]',
            '! build: apt thrust: =12.8-1 [if `[ "${FP16}" = ON ]` fails] -> =12.8-1',
        ],
    ),
    "python package added": ("setuptools", "setuptools wheel", ["- build: pip wheel"]),
    "base bumped through an ARG": (
        "CUDA_VERSION=12.8.1",
        "CUDA_VERSION=13.1.0",
        [
            (
                "! base: from: docker.io/nvidia/cuda:13.1.0-runtime-ubuntu24.04 by CUDA_VERSION UBUNTU_VERSION -> "
                "docker.io/nvidia/cuda:12.8.1-runtime-ubuntu24.04 by CUDA_VERSION UBUNTU_VERSION"
            ),
            (
                "! build: from: docker.io/nvidia/cuda:13.1.0-devel-ubuntu24.04 by CUDA_VERSION UBUNTU_VERSION -> "
                "docker.io/nvidia/cuda:12.8.1-devel-ubuntu24.04 by CUDA_VERSION UBUNTU_VERSION"
            ),
            "! global: arg CUDA_VERSION: 13.1.0 -> 12.8.1",
        ],
    ),
    "base written out": (
        "docker.io/node:$NODE_VERSION",
        "docker.io/node:24",
        ["! web: from: docker.io/node:24 -> docker.io/node:24 by NODE_VERSION"],
    ),
    "base from another registry": (
        "docker.io/node:",
        "quay.io/node:",
        ["! web: from: quay.io/node:24 by NODE_VERSION -> docker.io/node:24 by NODE_VERSION"],
    ),
    "platform of a base fixed": (
        "FROM docker.io/node",
        "FROM --platform=$BUILDPLATFORM docker.io/node",
        [
            (
                "! web: from: --platform=${BUILDPLATFORM} docker.io/node:24 by NODE_VERSION -> "
                "docker.io/node:24 by NODE_VERSION"
            )
        ],
    ),
    "ARG default of a stage changed": (
        "CUDA_DOCKER_ARCH=default",
        "CUDA_DOCKER_ARCH=all",
        ["! build: arg CUDA_DOCKER_ARCH: all -> default"],
    ),
    "ARG default dropped": (
        "ARG CUDA_DOCKER_ARCH=default",
        "ARG CUDA_DOCKER_ARCH",
        ["! build: arg CUDA_DOCKER_ARCH: no value -> default"],
    ),
    "ARG default emptied": ("FP16=ON\n", "FP16=\n", ['! build: arg FP16: "" -> ON']),
    "ARG added": ("ARG FP16=ON", "ARG FP16=ON\nARG FLASH=ON", ["- build: arg FLASH = ON"]),
    "stage renamed": (
        "FROM base AS full",
        "FROM base AS tools",
        [
            "- tools: apt option -y",
            "- tools: apt python3",
            "- tools: copy --from=build /app/full = /app",
            '- tools: entrypoint = ["/app/tools.sh"]',
            "- tools: from = base",
            "stale - full: from = base",
        ],
    ),
    "stage renamed to what we call it": (
        "FROM base AS server",
        "FROM base AS runtime",
        [
            "+ runtime: copy --from=build /app/full/llama-server = /app",
            '+ runtime: entrypoint = ["/app/llama-server"]',
            "+ runtime: env LLAMA_ARG_HOST = 0.0.0.0",
            "+ runtime: expose 8080",
            "+ runtime: from = base",
            '+ runtime: healthcheck = --interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]',
            "+ runtime: user = 1000",
            "+ runtime: workdir = /app",
            "- upstream's runtime: copy --from=build /app/full/llama-server = /app",
            '- upstream\'s runtime: entrypoint = ["/app/llama-server"]',
            "- upstream's runtime: env LLAMA_ARG_HOST = 0.0.0.0",
            "- upstream's runtime: expose 8080",
            "- upstream's runtime: from = base",
            '- upstream\'s runtime: healthcheck = --interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]',
            "- upstream's runtime: user = 1000",
            "- upstream's runtime: workdir = /app",
        ],
    ),
    "stage added on top of the server": (
        "EXPOSE 8080",
        "EXPOSE 8080\nFROM server AS more\nCOPY --from=server /a /b\nFROM base AS server2",
        [
            "- more: copy --from=runtime /a = /b",
            "- more: from = runtime",
            '- server2: entrypoint = ["/app/llama-server"]',
            "- server2: from = base",
            '- server2: healthcheck = --interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]',
            '+ runtime: entrypoint = ["/app/llama-server"]',
            '+ runtime: healthcheck = --interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]',
        ],
    ),
    "stage started from another": (
        "FROM base AS server",
        "FROM build AS server",
        ["! runtime: from: build -> base"],
    ),
    "copied from another stage": (
        "COPY --from=build /app/lib/",
        "COPY --from=web /app/lib/",
        ["+ base: copy --from=build /app/lib = /app", "- base: copy --from=web /app/lib = /app"],
    ),
    "copied elsewhere": (
        "/app/full/llama-server /app",
        "/app/full/llama-server /opt",
        ["! runtime: copy --from=build /app/full/llama-server: /opt -> /app"],
    ),
    "copied with another owner": (
        "COPY . .",
        "COPY --chown=1000 . .",
        ["! build: copy .: . --chown=1000 -> ."],
    ),
    "ENV changed": ("CXX=g++-14", "CXX=clang++", ["! build: env CXX: clang++ -> g++-14"]),
    "ENV that builds on itself reordered": (
        "ENV LD_LIBRARY_PATH=${TOOLKIT}/lib64:$LD_LIBRARY_PATH\nENV LD_LIBRARY_PATH=${TOOLKIT}/stub:$LD_LIBRARY_PATH",
        "ENV LD_LIBRARY_PATH=${TOOLKIT}/stub:$LD_LIBRARY_PATH\nENV LD_LIBRARY_PATH=${TOOLKIT}/lib64:$LD_LIBRARY_PATH",
        [f"! build: env LD_LIBRARY_PATH: {STUB} then {LIB64} -> {LIB64} then {STUB}"],
    ),
    "ENV no longer expanded": (
        "ENV TOOLKIT=/usr/local/toolkit",
        "ENV TOOLKIT='/usr/local/$VERSION'",
        [r"! build: env TOOLKIT: /usr/local/\$VERSION -> /usr/local/toolkit"],
    ),
    "WORKDIR moved": ("WORKDIR /app/tools/ui", "WORKDIR /src/ui", ["! web: workdir: /src/ui -> /app/tools/ui"]),
    "label added": (
        "image.title=",
        'image.vendor="ggml" org.opencontainers.image.title=',
        ["- base: label org.opencontainers.image.vendor"],
    ),
    "user changed": ("USER 1000", "USER 2000", ["! runtime: user: 2000 -> 1000"]),
    "entry point changed": (
        'ENTRYPOINT [ "/app/llama-server" ]',
        'ENTRYPOINT [ "/app/llama", "serve" ]',
        ['! runtime: entrypoint: ["/app/llama", "serve"] -> ["/app/llama-server"]'],
    ),
    "entry point in the shell form": (
        'ENTRYPOINT [ "/app/llama-server" ]',
        "ENTRYPOINT /app/llama-server",
        ['! runtime: entrypoint: /app/llama-server -> ["/app/llama-server"]'],
    ),
    "command added": (
        'ENTRYPOINT [ "/app/llama-server" ]',
        'ENTRYPOINT [ "/app/llama-server" ]\nCMD ["--help"]',
        ['- runtime: cmd = ["--help"]'],
    ),
    "health check's interval changed": (
        "--interval=5m",
        "--interval=1m",
        [
            (
                '! runtime: healthcheck: --interval=1m CMD ["curl", "-f", "http://localhost:8080/health"] -> '
                '--interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]'
            )
        ],
    ),
    "health check's port changed": (
        "localhost:8080",
        "localhost:9931",
        [
            (
                '! runtime: healthcheck: --interval=5m CMD ["curl", "-f", "http://localhost:9931/health"] -> '
                '--interval=5m CMD ["curl", "-f", "http://localhost:8080/health"]'
            )
        ],
    ),
    "port changed": ("EXPOSE 8080", "EXPOSE 9931", ["+ runtime: expose 8080", "- runtime: expose 9931"]),
    "file written elsewhere": (
        "> /etc/ld.so.conf.d/toolkit.conf",
        "> /etc/ld.so.conf.d/other.conf",
        [
            (
                "! base: run echo /usr/local/toolkit/lib: [> /etc/ld.so.conf.d/other.conf] -> "
                "[> /etc/ld.so.conf.d/toolkit.conf]"
            )
        ],
    ),
    "any other command dropped": (" && ldconfig", "", ["+ base: run ldconfig"]),
    "what the loader of patterns sees quoted": (
        "rm -rf /tmp/*",
        "rm -rf '/tmp/*'",
        ["+ base: run rm -rf /tmp/* /var/tmp/*", "- base: run rm -rf '/tmp/*' /var/tmp/*"],
    ),
    "cache mounted": (
        "RUN npm ci",
        "RUN --mount=type=cache,target=/root/.npm npm ci",
        ["- web: run option --mount=type=cache,target=/root/.npm"],
    ),
    "shell changed": (
        "WORKDIR /app/tools/ui",
        'SHELL ["/bin/bash", "-c"]\nWORKDIR /app/tools/ui',
        ['- web: shell = ["/bin/bash", "-c"]'],
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_upstream_changes_is_seen(name: str) -> None:
    old, new, expected = MUTATIONS[name]
    assert unexplained(check(replaced(UPSTREAM, old, new))) == sorted(expected)


HARMLESS: dict[str, tuple[str, str]] = {
    "comment": ("FROM base AS server", "# The server.\nFROM base AS server"),
    "comment inside a command": ("    && rm -rf", "    # Not needed later.\n    && rm -rf"),
    "comment at the end of a shell line": (" && ldconfig", " && ldconfig # at once"),
    "blank line inside a command": ("    && rm -rf", "\n    && rm -rf"),
    "line breaks": (" libgomp1 curl ffmpeg", " \\\n    libgomp1 \\\n    curl \\\n    ffmpeg"),
    "one line": ("apt-get update && \\\n    apt-get", "apt-get update && apt-get"),
    "indentation": ("    && ", "\t  && "),
    "lower case": ("FROM base AS server\n", "from base as server\n"),
    "Windows line ends": ("\n", "\r\n"),
    "order of packages": ("gcc-14 g++-14 cmake git", "git cmake g++-14 gcc-14"),
    "order of flags": ("-DGGML_CUDA=ON -DGGML_BACKEND_DL=ON", "-DGGML_BACKEND_DL=ON -DGGML_CUDA=ON"),
    "order of ARGs": ("ARG NODE_VERSION=24\nARG APP_VERSION=N/A", "ARG APP_VERSION=N/A\nARG NODE_VERSION=24"),
    "order of ENVs": ("ENV CC=gcc-14 CXX=g++-14", "ENV CXX=g++-14 CC=gcc-14"),
    "two ENVs for one": ("ENV CC=gcc-14 CXX=g++-14", "ENV CC=gcc-14\nENV CXX=g++-14"),
    "the old form of ENV": ("ENV TOOLKIT=/usr/local/toolkit", "ENV TOOLKIT /usr/local/toolkit"),
    "two ARGs in one": ("ARG CUDA_DOCKER_ARCH=default\nARG FP16=ON", "ARG CUDA_DOCKER_ARCH=default FP16=ON"),
    "two RUNs for one": (" && ldconfig", "\nRUN ldconfig"),
    "two installs for one": ("curl ffmpeg \\", "curl && apt-get install -y ffmpeg \\"),
    "two COPYs for one": (
        "COPY tools/ui/package.json tools/ui/package-lock.json ./",
        "COPY tools/ui/package-lock.json ./\nCOPY tools/ui/package.json ./",
    ),
    "COPY as a list": ("COPY . .", 'COPY [".", "."]'),
    "slash at the end of a directory": ("COPY tools/ui/ ./", "COPY ./tools/ui ."),
    "apt for apt-get": ("apt-get", "apt"),
    "braces around variables": ("$APP_VERSION", "${APP_VERSION}"),
    "no braces around variables": ("FROM ${DEV_IMAGE}", "FROM $DEV_IMAGE"),
    "quotes around a word": ("-DGGML_NATIVE=OFF", "'-DGGML_NATIVE=OFF'"),
    "quotes around a whole option": ('-DARCHS="$CUDA_DOCKER_ARCH"', '"-DARCHS=$CUDA_DOCKER_ARCH"'),
    "other quotes": ('"*.so*"', "'*.so*'"),
    "quotes around a default": ("CUDA_VERSION=12.8.1", 'CUDA_VERSION="12.8.1"'),
    "quotes in an ENV": ("TOOLKIT=/usr/local/toolkit", "TOOLKIT='/usr/local/toolkit'"),
    "a label's text": ('"llama server"', '"llama.cpp"'),
    "space in a list": ('[ "/app/llama-server" ]', '["/app/llama-server"]'),
    "space before a number of jobs": ("-j$(nproc)", "-j $(nproc)"),
    "long form of jobs": ("-j$(nproc)", "--parallel $(nproc)"),
    "joined options of cmake": ("-S . -B build", "-S. -Bbuild"),
    "source directory without -S": ("cmake -S . -B build", "cmake . -B build"),
    "separated flags": ("-DGGML_CUDA=ON", "-D GGML_CUDA=ON"),
    "type of a flag": ("-DGGML_CUDA=ON", "-DGGML_CUDA:BOOL=ON"),
    "backticks": ("-j$(nproc)", "-j`nproc`"),
    "then on its own line": ('"ON" ]; then \\', '"ON" ]; \\\n    then \\'),
    "what is in another program's image": ("apt-get install -y python3", "apt-get install -y python3 python3-pip"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_nothing_is_not_reported(name: str) -> None:
    old, new = HARMLESS[name]
    report = check(replaced(UPSTREAM, old, new))
    assert unexplained(report) == []
    assert report.ok


def test_a_flag_we_dropped_is_not_ported() -> None:
    report = check(ours=our_recipe().replace(" -DGGML_CUDA=ON", ""))
    assert unexplained(report) == ["- build: cmake build -DGGML_CUDA = ON"]


def test_one_of_two_installs_with_an_option() -> None:
    ours = replaced(our_recipe(), "install -y libgomp1 curl", "install -y libgomp1 && apt-get install -yq curl")
    assert unexplained(check(ours=ours)) == [
        "! base: apt option -y: no value -> for libgomp1",
        "+ base: apt option -yq = for curl",
    ]


def test_a_second_build_directory_has_its_own_flags() -> None:
    ours = replaced(
        our_recipe(), "RUN mkdir -p /app/lib", "RUN cmake -B build-cpu -DGGML_NATIVE=ON .\nRUN mkdir -p /app/lib"
    )
    assert unexplained(check(ours=ours)) == [
        "+ build: cmake build-cpu -DGGML_NATIVE = ON",
        "+ build: cmake build-cpu -S = .",
    ]


def test_another_name_for_a_base_is_no_difference() -> None:
    ours = replaced(
        our_recipe(),
        "FROM $RUNTIME_BASE_IMAGE AS base",
        "FROM $RUNTIME_BASE_IMAGE AS toolkit\nFROM ${LIBRARIES} AS base",
    )
    ours = replaced(ours, "ARG NODE_VERSION=24\n", "ARG NODE_VERSION=24\nARG LIBRARIES=toolkit\n")
    assert unexplained(check(ours=ours)) == ["+ global: arg LIBRARIES = toolkit"]
    # A name that no stage starts from is a target, and one that does something is no mere name.
    assert unexplained(check(ours=f"{ours}FROM base AS more\n")) == [
        "+ global: arg LIBRARIES = toolkit",
        "+ more: from = base",
    ]
    busy = replaced(ours, "AS toolkit\n", "AS toolkit\nUSER 1\n")
    assert "+ toolkit: user = 1" in unexplained(check(ours=busy))


# Facts.


def lost_words(text: str, facts: tuple[Fact, ...]) -> set[str]:
    """The words of a Dockerfile that no fact repeats: a parser that drops something shows here."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\$(\w+)", r" \1 ", lines)
    lines = re.sub(r'(image\.\w+=)("[^"]*"|\S+)', r"\1", lines)  # only the name of a label is a fact
    syntax = {"if", "then", "else", "fi", "case", "esac", "in", "export", "AS", "apt-get", "pip3", "install", "cmake"}
    words = set(re.findall(r"[\w.+:/%~*-]+", lines)) - syntax
    said = " ".join(f"{fact.stage} {fact.kind.upper()} {fact.kind} {fact.name} {fact.value}" for fact in facts)
    return {word for word in words if word.rstrip("/").removeprefix("./") not in said} - {";", "RUN", "-j"}


def test_nothing_of_a_file_is_lost() -> None:
    facts = recipe_facts.read(UPSTREAM, "cuda")
    # Replaced in FROM by what they stand for.
    assert lost_words(UPSTREAM, facts) <= {"DEV_IMAGE", "RUN_IMAGE"}
    # And the test can fail.
    without = tuple(fact for fact in facts if fact.name != "ldconfig")
    assert "ldconfig" in lost_words(UPSTREAM, without)


def test_each_subject_stands_once() -> None:
    facts = recipe_facts.read(UPSTREAM, "cuda")
    assert len({fact.subject for fact in facts}) == len(facts)


@pytest.mark.parametrize(
    ("run", "fact"),
    [
        ("a | b > c", "x: run a | b > c"),
        ("yes | apt-get install -y nano", "x: run yes | apt-get install -y nano"),
        ("for i in 1 2; do echo $i; done", "x: run for i in 1 2; do echo ${i}; done"),
        ("(cd y && make)", "x: run (cd y && make)"),
        ("! test -e y", "x: run ! test -e y"),
        ("[ -e y ] && make", "x: run [ -e y ]"),
        ('["make", "all"]', 'x: run ["make", "all"]'),
        ("{ make; }", "x: run make"),
        ("DEBIAN_FRONTEND=noninteractive apt install -y y", "x: apt environment DEBIAN_FRONTEND = noninteractive"),
        ("python3 -m pip install 'y>=2'", "x: pip y = >=2"),
        ("uv pip install y", "x: pip y"),
        ("dnf install -y y", "x: dnf y"),
        ("npm install -g y", "x: npm y"),
        ("pip install -r requirements.txt", "x: run pip install -r requirements.txt"),
        ("if a; then b; elif c; then d; fi", "x: run d = [unless a, if c]"),
        ("cmake --install build --prefix /y", "x: run cmake --install build --prefix /y"),
        ("cmake ..", "x: cmake . -S = .."),
        ("export PATH", "x: run export PATH"),
        ("export A=b C=", "x: run export A=b C="),
        ("A=(b c)", "x: run A=(b c)"),
        ("case $A in b|c) d ;; esac", "x: run d = [case ${A} is b|c]"),
        ("export A='-DX=$O'", "x: variable A -DX = \\$O"),
        ('export A="-DX=$O"', "x: variable A -DX = ${O}"),
        ("A+=b", "x: run A+=b"),
        ("A=", 'x: variable A = ""'),
        ("a || b && c || d", "x: run d = [if `c` fails]"),
        ("echo $'a' \"b\\\"c\" '' d\\ e", "x: run echo $'a' 'b\"c' '' 'd e'"),
        ("""echo "it's $A" """, """x: run echo "it's ${A}\""""),
    ],
)
def test_commands_of_many_forms(run: str, fact: str) -> None:
    assert fact in [str(one) for one in recipe_facts.read(f"FROM scratch AS x\nRUN {run}\n", "x")]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            'COPY <<EOF /a\n# no\nA: "1" # one\nB = x y\nplain\nEOF\n',
            ["copy << = /a", "file /a = plain", "file /a A = 1", "file /a B = x y"],
        ),
        (
            "COPY <<A <<'B' /d/\nX: 1\nA\nX: 2\nB\n",
            ["copy <<A = /d", "copy <<B = /d", "file /d/A X = 1", "file /d/B X = 2"],
        ),
        ("RUN cat > /a << EOF\nA: $B\nEOF\n", ["file /a A = $B", "run cat = [> /a, <<]"]),
        (
            "RUN x && \\\n # no\n cat <<-EOF >> /a && y\n\tA: 1\n\tEOF\n",
            ["file /a A = 1", "run cat = [<<, >> /a]", "run x", "run y"],
        ),
        (
            "RUN <<EOF\nset -e\napt-get install -y a\nEOF\n",
            ["apt a", "apt option -y", "run set -e = [whether it fails or not]"],
        ),
        ("RUN python3 <<EOF\nprint(1)\nEOF\nRUN z\n", ["run python3 = [<< print(1)]", "run z"]),
        (
            "RUN echo 'a << b'\nRUN echo $((1<<2))\nRUN cat <<< b\n",
            ["run cat = [<<< b]", "run echo 'a << b'", "run echo $((1<<2))"],
        ),
    ],
    ids=["copied", "two to a directory", "cat", "tabs", "a script", "to a program", "none"],
)
def test_heredocs(text: str, facts: list[str]) -> None:
    said = [str(one).removeprefix("x: ") for one in recipe_facts.read(f"FROM scratch AS x\n{text}USER u\n", "x")]
    assert said == sorted([*facts, "from = scratch", "user = u"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RUN if true; then", "line 2: the shell cannot be parsed"),
        ("RAN true", "line 2: RAN is not a Dockerfile instruction"),
        ('ENV X="y', "a quote"),
    ],
)
def test_what_cannot_be_read_is_an_error(line: str, said: str) -> None:
    with pytest.raises(SourceError, match=f"(?i){said}"):
        recipe_facts.read(f"FROM scratch\n{line}\n", "x")


@pytest.mark.parametrize(
    ("arguments", "base"),
    [
        ("ARG A=1\nARG B=x:${A}\nARG C=$B", "x:1 by A"),
        ("ARG C=x:1", "x:1 by C"),
        ("ARG A=1\nARG A=${A}-slim\nARG C=x:$A", "x:1-slim by A"),
        ("ARG C=x:${C}", "x:${C} by C"),
        ("ARG C", "${C}"),
    ],
)
def test_a_base_is_followed_to_its_arguments(arguments: str, base: str) -> None:
    assert f"y: from = {base}" in [str(fact) for fact in recipe_facts.read(f"{arguments}\nFROM ${{C}} AS y\n", "y")]


# Variants and records.


def test_variants_that_only_one_side_has() -> None:
    one_program = "FROM scratch AS build\n"
    report = mirror.check(
        {"cuda": UPSTREAM, "s390x": UPSTREAM, "llama-cli-cann": one_program},
        {"cuda": our_recipe(), "rocm": our_recipe()},
        (*RECORDS, Record(variant="rocm", key="- base: apt ffmpeg, formerly", reason="large")),
    )
    assert not report.stale
    assert report.upstream_only == ("s390x",)
    assert report.gone == ("rocm",)
    assert report.without_recipe == ("cpu", "vulkan", "musa", "intel", "cann")
    assert not report.ok


def test_a_record_that_matches_nothing_is_an_error() -> None:
    stale = (
        Record(variant="all", key="- base: apt nano", reason="x"),
        Record(variant="cuda", key="- base: apt vim", reason="x"),
        Record(variant="rocm", key="- base: apt ffmpeg", reason="x"),
    )
    report = check(records=(*RECORDS, *stale))
    assert (report.stale, report.ok) == (stale, False)


def test_records_of_variants_that_were_not_asked_for_are_left_alone() -> None:
    upstream, ours = {"cuda": UPSTREAM, "musa": UPSTREAM}, {"cuda": our_recipe(), "musa": our_recipe()}
    records = (*RECORDS, Record(variant="musa", key="- base: apt vim", reason="x"))
    report = mirror.check(upstream, ours, records, chosen=["cuda"])
    assert [comparison.variant for comparison in report.comparisons] == ["cuda"]
    assert report.ok
    assert not mirror.check(upstream, ours, records).ok


def test_a_variant_without_a_recipe_cannot_be_chosen() -> None:
    with pytest.raises(UsageError, match=r"no recipe dockerfiles/rocm\.Dockerfile yet"):
        mirror.check({"cuda": UPSTREAM}, {"cuda": our_recipe()}, RECORDS, chosen=["rocm"])


def test_records_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(
        '[[all]]\nreason = "large"\nkeys = ["- base: apt ffmpeg", "- b"]\n[[cuda]]\nreason = "r"\nkeys = ["+ c"]\n'
    )
    assert mirror.load_records(path) == (
        Record(variant="all", key="- base: apt ffmpeg", reason="large"),
        Record(variant="all", key="- b", reason="large"),
        Record(variant="cuda", key="+ c", reason="r"),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[all", "not valid TOML"),
        ('[[cuba]]\nreason = "r"\nkeys = ["k"]', "did you mean cuda"),
        ('[[all]]\nkeys = ["k"]', "needs a reason"),
        ('[[all]]\nreason = " "\nkeys = ["k"]', "needs a reason"),
        ('[[all]]\nreason = "r"\nkeys = []', "list of keys"),
        ('[[all]]\nreason = "r"\nkeys = "k"', "list of keys"),
        ('[[all]]\nreason = "r"\nkeys = ["k"]\nnote = "n"', "nothing else"),
        ('[all]\nreason = "r"\nkeys = ["k"]', "needs a reason"),
        ('[[cuda]]\nreason = "r"\nkeys = ["k"]\n[[all]]\nreason = "r"\nkeys = ["k"]', "twice for all"),
    ],
)
def test_bad_records_are_told(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        mirror.load_records(path)


def test_records_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        mirror.load_records(tmp_path / "differences.toml")


def test_our_own_records_and_recipes_can_be_read() -> None:
    records = mirror.load_records(settings.ROOT / mirror.DIFFERENCES)
    texts = mirror.our_texts(settings.ROOT)
    assert records
    for name, text in texts.items():
        facts = recipe_facts.read(text, name)
        assert lost_words(text, facts) <= {*dockerfile.BASE_ARGUMENTS.values(), "source=dockerfiles/version-json"}
        assert {"web", "build", "base", "runtime"} <= {fact.stage for fact in facts}


# Trees and refs.


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of an upstream with the tags b1 and b2: b2 flipped a flag, dropped s390x and added zendnn."""
    path = tmp_path / "clone"
    repository = git.Repo.init(path)
    repository.config_writer().set_value("user", "name", "test").set_value("user", "email", "t@example.org").release()
    directory = path / ".devops"
    directory.mkdir()
    (directory / "cuda.Dockerfile").write_text(UPSTREAM)
    (directory / "s390x.Dockerfile").write_text(UPSTREAM)
    (directory / "tools.sh").write_text("true\n")
    repository.git.add("--all")
    repository.git.commit("--quiet", "--message=one")
    repository.create_tag("b1")
    (directory / "cuda.Dockerfile").write_text(UPSTREAM.replace("GGML_NATIVE=OFF", "GGML_NATIVE=ON"))
    (directory / "s390x.Dockerfile").rename(directory / "zendnn.Dockerfile")
    repository.git.add("--all")
    repository.git.commit("--quiet", "--message=two")
    repository.create_tag("b2", message="annotated")
    repository.close()
    return path


def test_two_refs_of_a_clone(clone: Path) -> None:
    report = mirror.compare_refs(mirror.upstream_texts(clone, "b1"), mirror.upstream_texts(clone, "b2"))
    assert report.as_dict() == {
        "variants": {"cuda": ["! build: cmake build -DGGML_NATIVE: OFF -> ON"]},
        "appeared": ["zendnn"],
        "disappeared": ["s390x"],
    }


def test_the_refs_report_of_a_variant(clone: Path) -> None:
    old, new = mirror.upstream_texts(clone, "b1"), mirror.upstream_texts(clone, "b2")
    assert mirror.compare_refs(old, new, ["zendnn"]).appeared == ("zendnn",)
    with pytest.raises(UsageError, match=r"Neither ref has \.devops/cpu\.Dockerfile"):
        mirror.compare_refs(old, new, ["cpu"])


def test_the_work_tree_and_a_ref(clone: Path) -> None:
    assert mirror.upstream_texts(clone) == mirror.upstream_texts(clone, "b2")
    assert set(mirror.upstream_texts(clone, "HEAD~1")) == {"cuda", "s390x"}


def test_trees_and_refs_that_are_none(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no ref 'b3'"):
        mirror.upstream_texts(clone, "b3")
    with pytest.raises(SourceError, match="is not a git clone"):
        mirror.upstream_texts(tmp_path, "b1")
    with pytest.raises(SourceError, match=r"has no \.devops"):
        mirror.upstream_texts(tmp_path)
    (clone / "file").write_text("x")
    with git.Repo(clone) as repository:
        repository.git.rm("-r", "--quiet", ".devops")
        repository.git.commit("--quiet", "--message=three")
    with pytest.raises(SourceError, match=r"HEAD of .* has no \.devops"):
        mirror.upstream_texts(clone, "HEAD")


@pytest.fixture
def clone_with_source(clone: Path) -> Path:
    """The clone with the tags b3 and b4, which have the source of llama-server's arguments: b4 has another port."""
    (clone / "common").mkdir()
    with git.Repo(clone) as repository:
        for tag, port in (("b3", "8080"), ("b4", "9931")):
            (clone / "common" / "arg.cpp").write_text(ARG_CPP)
            (clone / "common" / "common.h").write_text(COMMON_H.replace("8080", port))
            repository.git.add("--all")
            repository.git.commit("--quiet", f"--message={tag}")
            repository.create_tag(tag)
    return clone


def test_arguments_of_two_refs(clone_with_source: Path) -> None:
    sources = tuple(mirror.argument_source(clone_with_source, ref) for ref in ("b3", "b4"))
    texts = mirror.upstream_texts(clone_with_source, "b4")
    changed = mirror.compare_refs(texts, texts, sources=(sources[0], sources[1]), used=["-p"])
    line = "--port: default 8080 -> 9931"
    assert changed.arguments
    assert [(str(one), one.used) for one in changed.arguments.changes] == [(line, True)]
    said = {"change": "changed", "names": ["--port"], "detail": "default 8080 -> 9931", "used": True}
    assert changed.as_dict()["arguments"] == {"changes": [said], "breaks": [], "not_compared": ""}
    nothing = mirror.check({}, {}, ())
    text = mirror.markdown(changed, nothing, before="b3", after="b4")
    assert f"## What changed in llama-server's arguments\n\n**used by BodhiApp**\n\n- `{line}`\n\n## What our" in text
    others = mirror.compare_refs(texts, texts, sources=(sources[0], sources[1]))
    assert f"arguments\n\n**others**\n\n- `{line}`\n" in mirror.markdown(others, nothing, before="b3", after="b4")
    same = mirror.compare_refs(texts, texts, sources=(sources[1], sources[1]))
    assert "arguments\n\nNothing.\n" in mirror.markdown(same, nothing, before="b3", after="b4")


def test_what_breaks_the_consumer_is_said_first(clone_with_source: Path) -> None:
    path = clone_with_source / "common" / "arg.cpp"
    path.write_text(path.read_text().replace('"--port"', '"--the-port"'))
    with git.Repo(clone_with_source) as repository:
        repository.git.commit("--quiet", "--all", "--message=b5")
        repository.create_tag("b5")
    texts = mirror.upstream_texts(clone_with_source, "b5")
    sources = (mirror.argument_source(clone_with_source, "b4"), mirror.argument_source(clone_with_source, "b5"))
    changed = mirror.compare_refs(texts, texts, sources=sources, used=consumer.load().options)
    assert changed.as_dict()["arguments"]["breaks"] == ["--port"]
    text = mirror.markdown(changed, mirror.check({}, {}, ()), before="b4", after="b5")
    assert text.startswith("llama.cpp b4 → b5.\n\n**BodhiApp passes `--port`, which llama-server refuses now: ")
    unused = mirror.compare_refs(texts, texts, sources=sources)
    assert unused.as_dict()["arguments"]["breaks"] == []
    assert "BodhiApp passes" not in mirror.markdown(unused, mirror.check({}, {}, ()), before="b4", after="b5")


def test_a_ref_without_the_source_is_said_by_the_name_that_a_person_knows(clone_with_source: Path) -> None:
    commit = mirror.tag_commit(str(clone_with_source), "b1")
    source = mirror.argument_source(clone_with_source, commit, "b1")
    assert (source.name, source.texts) == ("b1", {})
    with pytest.raises(SourceError, match="has no ref 'b5'"):
        mirror.argument_source(clone_with_source, "b5")
    with pytest.raises(SourceError, match="is not a git clone"):
        mirror.argument_source(clone_with_source / ".devops", "b1")


def test_check_upstream_shows_what_changed_of_the_arguments(clone_with_source: Path) -> None:
    def run(before: str, after: str, *more: str) -> str:
        refs = ("--from", before, "--to", after)
        done = invoke("check-upstream", "--source", str(clone_with_source), *refs, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "│ changed │ --port │ default 8080 -> 9931│" in run("b3", "b4")
    assert "llama-server takes the same in b4 and b4." in run("b4", "b4")
    assert "llama-server's arguments cannot be compared: b2 has no common/arg.cpp." in run("b2", "b3")
    assert [one["names"] for one in json.loads(run("b3", "b4", "--json"))["arguments"]["changes"]] == [["--port"]]


# Moving the pin.

NEW_COMMIT = "f" * 40


def test_the_pin_moves_and_nothing_else(tmp_path: Path) -> None:
    before = mirror.pinned_texts(settings.ROOT)
    assert "dockerfiles/cpu.Dockerfile" in before
    after = mirror.bump(before, settings.load().pin, tag="b99999", commit=NEW_COMMIT)
    assert after.keys() == before.keys()
    for path, text in before.items():
        changed = [new for old, new in zip(text.splitlines(), after[path].splitlines(), strict=True) if old != new]
        assert len(changed) == 2, path
        assert after[path].endswith("\n")
    (tmp_path / "pyproject.toml").write_text(after["pyproject.toml"])
    moved = settings.load(tmp_path).pin
    assert (moved.tag, moved.commit, moved.sdist) == ("b99999", NEW_COMMIT, settings.load().pin.sdist)
    assert f"\nARG LLAMA_CPP_TAG=b99999\nARG LLAMA_CPP_COMMIT={NEW_COMMIT}\n" in after["dockerfiles/cpu.Dockerfile"]


@pytest.mark.parametrize(("tag", "commit"), [("v1", NEW_COMMIT), ("b1", "abc1234"), ("b1\n", NEW_COMMIT)])
def test_a_pin_that_is_none(tag: str, commit: str) -> None:
    with pytest.raises(UsageError, match="is no tag of llama"):
        mirror.bump(mirror.pinned_texts(settings.ROOT), settings.load().pin, tag=tag, commit=commit)


@pytest.mark.parametrize(("line", "count"), [("", 0), ("ARG LLAMA_CPP_TAG=b11312\nARG LLAMA_CPP_TAG=b11312\n", 2)])
def test_a_recipe_without_the_pin_is_named(line: str, count: int) -> None:
    pin = settings.load().pin
    text = line.replace("b11312", pin.tag)
    with pytest.raises(UsageError, match=rf"cpu\.Dockerfile has the line .* {count} times"):
        mirror.bump({"dockerfiles/cpu.Dockerfile": text}, pin, tag="b2", commit=NEW_COMMIT)


def test_the_commit_of_a_tag(clone: Path, tmp_path: Path) -> None:
    with git.Repo(clone) as repository:
        commits = [repository.commit(tag).hexsha for tag in ("b1", "b2")]
    assert [mirror.tag_commit(str(clone), tag) for tag in ("b1", "b2")] == commits
    with pytest.raises(SourceError, match="has no tag 'b3'"):
        mirror.tag_commit(str(clone), "b3")
    with pytest.raises(SourceError, match="cannot be asked for b1"):
        mirror.tag_commit(str(tmp_path / "nowhere"), "b1")


def test_the_newest_tag_is_that_of_the_highest_number(clone: Path, tmp_path: Path) -> None:
    assert mirror.newest_tag(str(clone)) == "b2"
    with git.Repo(clone) as repository:
        for tag in ("b10", "b9", "b11-rc", "bb12", "master-13", "x/b14"):
            repository.create_tag(tag)
    assert mirror.newest_tag(str(clone)) == "b10"
    with git.Repo.init(tmp_path / "empty"), pytest.raises(SourceError, match="has no tag of llama"):
        mirror.newest_tag(str(tmp_path / "empty"))
    with pytest.raises(SourceError, match="cannot be asked for its tags"):
        mirror.newest_tag(str(tmp_path / "nowhere"))


def test_a_pull_request_says_what_changed_and_what_is_lacking(clone: Path) -> None:
    changed = mirror.compare_refs(mirror.upstream_texts(clone, "b1"), mirror.upstream_texts(clone, "b2"))
    lacking = mirror.check(mirror.upstream_texts(clone, "b2"), {"cuda": UPSTREAM.replace("server", "runtime")}, ())
    text = mirror.markdown(changed, lacking, before="b1", after="b2")
    assert text.startswith(
        "llama.cpp b1 → b2.\n\n## What upstream changed in its Dockerfiles\n\n**cuda**\n\n- `! build:"
    )
    assert "**new at upstream**\n\n- zendnn\n" in text
    assert "**gone at upstream**\n\n- s390x\n" in text
    needed = text.partition("## What our recipes need for it\n")[2]
    assert "**cuda**" in needed
    assert "- not intended: `" in needed
    assert "GGML_NATIVE" in needed
    assert "Nothing" not in text
    assert "llama-server's arguments" not in text

    same = mirror.compare_refs(mirror.upstream_texts(clone, "b2"), mirror.upstream_texts(clone, "b2"))
    nothing = mirror.check({}, {}, ())
    text = mirror.markdown(same, nothing, before="b2", after="b3")
    assert text.count("Nothing") == 2
    assert mirror.code("a `b`\n  c") == "`` a `b` c ``"


@pytest.fixture
def checkout(clone: Path, tmp_path: Path) -> Path:
    """A checkout whose pin is b1 of the clone."""
    root = fresh_copy(tmp_path / "checkout")
    shutil.copytree(settings.ROOT / "dockerfiles", root / "dockerfiles")
    pin = settings.load().pin
    moved = mirror.bump(mirror.pinned_texts(root), pin, tag="b1", commit=mirror.tag_commit(str(clone), "b1"))
    for path, text in moved.items():
        (root / path).write_text(text)
    (root / ".gitignore").write_text("build/\n__pycache__/\n")
    with git.Repo.init(root) as repository:
        repository.config_writer().set_value("user", "name", "t").set_value("user", "email", "t@example.org").release()
        repository.git.add("--all")
        repository.git.commit("--quiet", "--message=one")
    return root


def bump_to_newest(checkout: Path, clone: Path) -> subprocess.CompletedProcess[str]:
    environment = {"BASE_IMAGES_CALLER_DIRECTORY": str(checkout)}
    arguments = ("bump-upstream", "--to", "newest", "--source", str(clone), "--report", "build/upstream.md")
    return invoke(*arguments, cwd=checkout, environment=environment)


def test_the_pin_follows_the_newest_tag_and_then_stays(checkout: Path, clone: Path) -> None:
    done = bump_to_newest(checkout, clone)
    assert done.returncode == 0, done.stderr
    assert settings.load(checkout).pin.tag == "b2"
    written = (checkout / "build" / "upstream.md").read_text()
    assert written.startswith("The pin is b2 (")
    assert "## What upstream changed in its Dockerfiles" in written
    cannot = "llama-server's arguments cannot be compared: b1 has no common/arg.cpp."
    assert f"## What changed in llama-server's arguments\n\n`{cannot}`\n" in written
    assert cannot in done.stdout
    assert "## What our recipes need for it" in written

    with git.Repo(checkout) as repository:
        repository.git.commit("--quiet", "--all", "--message=two")
        done = bump_to_newest(checkout, clone)
        assert done.returncode == 0, done.stderr
        assert "the newest tag of llama.cpp is b2: nothing to move" in done.stdout
        assert not repository.is_dirty(untracked_files=True)
    assert "nothing to move" in (checkout / "build" / "upstream.md").read_text()


def test_an_older_clone_does_not_move_the_pin_back(checkout: Path, clone: Path) -> None:
    with git.Repo(clone) as repository:
        repository.create_tag("b3")
    assert bump_to_newest(checkout, clone).returncode == 0
    with git.Repo(checkout) as opened, git.Repo(clone) as repository:
        opened.git.commit("--quiet", "--all", "--message=two")
        repository.git.tag("--delete", "b3")
    assert "nothing to move" in bump_to_newest(checkout, clone).stdout
    assert settings.load(checkout).pin.tag == "b3"


def test_refs_are_fetched_without_a_clone(clone: Path, tmp_path: Path) -> None:
    directory = tmp_path / "fetched"
    directory.mkdir()
    commit = mirror.tag_commit(str(clone), "b1")
    mirror.fetch_refs(str(clone), [commit, "b2"], directory)
    assert mirror.upstream_texts(directory, commit) == mirror.upstream_texts(clone, "b1")
    assert mirror.upstream_texts(directory, "b2") == mirror.upstream_texts(clone, "b2")
    with pytest.raises(SourceError, match="b3 cannot be fetched"):
        mirror.fetch_refs(str(clone), ["b3"], directory)
