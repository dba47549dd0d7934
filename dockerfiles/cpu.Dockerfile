# llama-server for CPUs. Mirrors .devops/cpu.Dockerfile of llama.cpp; where it differs, a comment says why.
# The build context is the checkout, with llama.cpp's source in llama.cpp/ (`invoke fetch-source` puts it there).
# Written for BuildKit as of Docker 20.10: no heredocs, no COPY --link, no `# syntax=` line.

ARG UBUNTU_VERSION=24.04
ARG NODE_VERSION=24

# Each stage's base by itself, so that a digest or a base from another origin can stand in for upstream's.
ARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}
ARG BUILD_BASE_IMAGE=docker.io/ubuntu:${UBUNTU_VERSION}
ARG RUNTIME_BASE_IMAGE=docker.io/ubuntu:${UBUNTU_VERSION}

# The pin of pyproject.toml, for builds by hand; invoke passes that of the source it found.
ARG LLAMA_CPP_TAG=b10454
ARG LLAMA_CPP_COMMIT=4df29be4f4c3673f428170fda944a5b19f743bb8
ARG LLAMA_CPP_RELEASE=

FROM ${WEB_BASE_IMAGE} AS web

ARG LLAMA_CPP_TAG

WORKDIR /app/tools/ui

COPY llama.cpp/tools/ui/package.json llama.cpp/tools/ui/package-lock.json ./
RUN npm ci

COPY llama.cpp/tools/ui/ ./
# SvelteKit would name the page's version by the time, and each build would make another page.
RUN sed -i 's/^\tkit: {$/&version: { name: process.env.LLAMA_BUILD_NUMBER },/' svelte.config.js && \
    grep -q 'kit: {version' svelte.config.js && \
    LLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" npm run build

FROM ${BUILD_BASE_IMAGE} AS build

ARG TARGETARCH

# ccache: llama.cpp's CMake finds it by itself; all variants share one cache. In depend mode it takes the included files from
# the compiler, instead of running the preprocessor over each file before that.
RUN apt-get update && \
    apt-get install -y gcc-14 g++-14 build-essential git cmake libssl-dev ccache ninja-build

ENV CC=gcc-14 CXX=g++-14
ENV CCACHE_DIR=/ccache CCACHE_COMPILERCHECK=content CCACHE_DEPEND=1 CCACHE_MAXSIZE=20G CCACHE_STATSLOG=/tmp/ccache-stats
# Ninja compiles on while a library is linked, for which Makefiles wait; its status is the percentage that Makefiles print.
ENV CMAKE_GENERATOR=Ninja NINJA_STATUS="[%p] "

WORKDIR /app

COPY llama.cpp/ .

ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE

# - RUNPATH $ORIGIN everywhere: CMake's build rpath ends in an empty entry, which means the current directory.
# - Build number and commit: a shallow clone would say 1, a tree without .git 0.
# - A release says its version without -dev, a build with it.
# - Only llama-server and what it loads; first the libraries (mtmd is on top of them), while the web stage still runs.
RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    if [ "$TARGETARCH" = "amd64" ] || [ "$TARGETARCH" = "arm64" ]; then \
        cmake -S . -B build -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DLLAMA_BUILD_TESTS=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
            -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
            -DLLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" -DLLAMA_BUILD_COMMIT="$LLAMA_CPP_COMMIT" ${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF}; \
    else \
        echo "Unsupported architecture"; \
        exit 1; \
    fi && \
    cmake --build build --target mtmd -j $(nproc) && \
    ccache --show-log-stats && \
    rm -f "$CCACHE_STATSLOG"

COPY --from=web /app/tools/ui/dist tools/ui/dist
# gzip packs the files' times into the server, and refuses time 0. BuildKit's cache would keep the times of an earlier build.
RUN find tools/ui/dist -exec touch -d @1 {} +

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    cmake --build build --target llama-server -j $(nproc) && \
    ccache --show-log-stats

# Everything that was built for the server, whatever the libraries are called today, links and versioned names included.
# Without the time of the build: the same files make the same layer.
RUN --mount=type=bind,source=dockerfiles/llama-licenses,target=/mnt/llama-licenses \
    case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac && \
    directory="/payload/app/bin/$machine-unknown-linux-gnu/cpu" && \
    mkdir -p "$directory" /payload/usr/local/bin && \
    cp build/bin/llama-server "$directory" && \
    find build/bin -name "*.so*" -exec cp -P {} "$directory" \; && \
    sh /mnt/llama-licenses /payload && \
    ln -s "${directory#/payload}/llama-server" /payload/usr/local/bin/llama-server && \
    find /payload -exec touch -h -d @0 {} +

## Base image
FROM ${RUNTIME_BASE_IMAGE} AS base

# Such as ffmpeg, for webp and video input: upstream installs it, 731 MB that a text server does not need.
ARG RUNTIME_EXTRA_PACKAGES=""

# curl also brings libssl, which llama-server is linked with.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 curl ca-certificates ${RUNTIME_EXTRA_PACKAGES} \
    && apt autoremove -y \
    && apt clean -y \
    && rm -rf /tmp/* /var/tmp/* \
    && find /var/cache/apt/archives /var/lib/apt/lists -not -name lock -type f -delete \
    && find /var/cache -type f -delete

RUN --mount=type=bind,source=dockerfiles/llama-user,target=/mnt/llama-user \
    sh /mnt/llama-user

### What this repository adds, in a stage of its own: a RUN in the published one would leave its time in the layer
FROM base AS additions

WORKDIR /additions

COPY dockerfiles/llama-entrypoint dockerfiles/llama-threads dockerfiles/llama-healthcheck usr/local/bin/

ARG TARGETPLATFORM
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE
ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000
ARG BUILD_BRANCH=unknown
# Unix time of the commit. The version already says it; builds by hand may pass it.
ARG BUILD_TIMESTAMP=""

RUN --mount=type=bind,source=dockerfiles/version-json,target=/mnt/version-json \
    mkdir app && \
    sh /mnt/version-json variant=cpu variants=cpu > app/version.json && \
    find . -exec touch -d @0 {} +

### Runtime: the server alone
FROM base AS runtime

COPY --from=build /payload/ /
COPY --from=additions /additions/ /

WORKDIR /app

ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000

# The rest of the labels is the plan's (scripts/base_images/build/plan.py); these are upstream's.
LABEL org.opencontainers.image.version=$BUILD_VERSION \
      org.opencontainers.image.revision=$BUILD_COMMIT \
      org.opencontainers.image.title="llama.cpp cpu" \
      org.opencontainers.image.description="llama-server of llama.cpp for BodhiApp" \
      org.opencontainers.image.url="https://github.com/BodhiSearch/llama.cpp" \
      org.opencontainers.image.source="https://github.com/BodhiSearch/llama.cpp"

# By number, so that Kubernetes' runAsNonRoot can tell that it is not root. Its group is the one in /etc/passwd.
USER 999

# Loading a large model takes minutes; until then a failed check does not count.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD [ "/usr/local/bin/llama-healthcheck" ]

ENTRYPOINT [ "/usr/local/bin/llama-entrypoint" ]

### llama.cpp's own test of every operation, beside this image's libraries: published by itself, never in the runtime
FROM build AS operations-build

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    --mount=type=bind,source=dockerfiles/operations,target=/mnt/operations \
    for directory in /payload/app/bin/*/cpu; do \
        sh /mnt/operations/compile "$directory" "/operations${directory#/payload}/test-backend-ops"; \
    done

FROM runtime AS operations

COPY --from=operations-build /operations/ /

# Last, so that a build without --target makes it.
FROM runtime AS image
