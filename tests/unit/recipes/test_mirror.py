"""Comparing a file like upstream's with a recipe like ours that is made from it."""

from __future__ import annotations

import re

import pytest

from base_images.recipes import mirror
from base_images.recipes.mirror import Record, Report, Status
from tests.unit.recipes.conftest import UPSTREAM

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
    """Returns our recipe for that file: with our stage's name, our context, and our ARG for each base."""
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
    """Returns the keys that need action: unrecorded differences, and records without a difference."""
    findings = [finding for comparison in report.comparisons for finding in comparison.findings]
    keys = [finding.difference.key for finding in findings if finding.status is not Status.INTENDED]
    outdated = [*report.stale, *(lost.record for lost in report.lost)]
    return sorted([*keys, *(f"stale {record.key}" for record in outdated)])


def test_intended_differences_have_their_reason() -> None:
    report = check()
    [comparison] = report.comparisons
    assert report.ok
    assert {finding.difference.key: finding.reason for finding in comparison.findings} == {
        record.key: record.reason for record in RECORDS
    }
    assert comparison.same > 60


def test_unrecorded_differences_name_their_side() -> None:
    report = check(records=())
    assert not report.ok
    assert {finding.difference.key: finding.status for finding in report.comparisons[0].findings} == {
        "- base: apt ffmpeg": Status.NOT_PORTED,
        "+ build: apt ccache": Status.NOT_INTENDED,
        "- full: from = base": Status.NOT_PORTED,
    }


# Changes by upstream and the expected keys: - only upstream, + only ours, ! upstream's value -> ours.
MUTATIONS: dict[str, tuple[str, str, list[str]]] = {
    "flag flipped": ("-DGGML_NATIVE=OFF", "-DGGML_NATIVE=ON", ["! build: cmake build -DGGML_NATIVE: ON -> OFF"]),
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
    "flag in an ENV flipped": ("-DGGML_RPC=OFF", "-DGGML_RPC=ON", ["! build: env OPTIONS -DGGML_RPC: ON -> OFF"]),
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
        ["- build: cmake --build build --target a", "- build: cmake --build build --target b"],
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
        ['- build: run [ "${FP16}" = ON ]', '! build: apt thrust: =12.8-1 [if `[ "${FP16}" = ON ]` fails] -> =12.8-1'],
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
        ["! runtime: stage: upstream's runtime -> runtime"],
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
    "stage started from another": ("FROM base AS server", "FROM build AS server", ["! runtime: from: build -> base"]),
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
    "copied with another owner": ("COPY . .", "COPY --chown=1000 . .", ["! build: copy .: . --chown=1000 -> ."]),
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
def test_a_change_by_upstream_is_reported(name: str) -> None:
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
def test_equivalent_forms_are_not_reported(name: str) -> None:
    old, new = HARMLESS[name]
    report = check(replaced(UPSTREAM, old, new))
    assert unexplained(report) == []
    assert report.ok


def test_a_renamed_stage_is_one_difference_beside_what_differs_in_it() -> None:
    newer = replaced(replaced(UPSTREAM, "AS build\n", "AS builder\n"), "--from=build ", "--from=builder ")
    assert unexplained(check(newer)) == ["! build: stage: builder -> build"]
    newer = replaced(newer, "-DGGML_NATIVE=OFF", "-DGGML_NATIVE=ON")
    flag = "build: cmake build -DGGML_NATIVE"
    assert unexplained(check(newer)) == [f"! {flag}: ON -> OFF", "! build: stage: builder -> build"]
    changed = mirror.compare_refs({"cuda": UPSTREAM}, {"cuda": newer}).as_dict()["variants"]
    assert changed == {"cuda": [f"! {flag}: OFF -> ON", "! build: stage: build -> builder"]}


def test_a_flag_that_our_recipe_lacks_is_not_ported() -> None:
    report = check(ours=our_recipe().replace(" -DGGML_CUDA=ON", ""))
    assert unexplained(report) == ["- build: cmake build -DGGML_CUDA = ON"]


def test_a_value_that_upstream_moved_is_not_ported() -> None:
    newer = replaced(UPSTREAM, "ARG NODE_VERSION=24", "ARG NODE_VERSION=26")
    [comparison] = check(newer).comparisons
    assert {finding.status for finding in comparison.findings if not finding.reason} == {Status.NOT_PORTED}


def test_an_option_of_one_of_two_installs() -> None:
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


def test_an_alias_of_a_base_is_not_a_difference() -> None:
    ours = replaced(
        our_recipe(),
        "FROM $RUNTIME_BASE_IMAGE AS base",
        "FROM $RUNTIME_BASE_IMAGE AS toolkit\nFROM ${LIBRARIES} AS base",
    )
    ours = replaced(ours, "ARG NODE_VERSION=24\n", "ARG NODE_VERSION=24\nARG LIBRARIES=toolkit\n")
    assert unexplained(check(ours=ours)) == ["+ global: arg LIBRARIES = toolkit"]
    # A name that no stage starts from is a target, and one that does something does not only rename.
    assert unexplained(check(ours=f"{ours}FROM base AS more\n")) == [
        "+ global: arg LIBRARIES = toolkit",
        "+ more: from = base",
    ]
    busy = replaced(ours, "AS toolkit\n", "AS toolkit\nUSER 1\n")
    assert "+ toolkit: user = 1" in unexplained(check(ours=busy))
