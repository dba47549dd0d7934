# llama-server for AMD GPUs. Mirrors .devops/rocm.Dockerfile of llama.cpp; where it differs, a comment says why.
# What the recipes have in common is explained in cpu.Dockerfile.

ARG UBUNTU_VERSION=24.04
# The driver of the container's host has to be as new as this needs.
ARG ROCM_VERSION=7.2.1
ARG NODE_VERSION=24

ARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}
ARG BUILD_BASE_IMAGE=docker.io/rocm/dev-ubuntu-${UBUNTU_VERSION}:${ROCM_VERSION}-complete
ARG RUNTIME_BASE_IMAGE=docker.io/rocm/dev-ubuntu-${UBUNTU_VERSION}:${ROCM_VERSION}-complete
ARG SLIM_BASE_IMAGE=docker.io/ubuntu:${UBUNTU_VERSION}

# `toolkit`: upstream's base, the whole toolkit. `slim`: a small base and, of the toolkit, what the server loads.
ARG RUNTIME_LIBRARIES=toolkit

# Targets as LLVM has them; the default is a fat build, mostly of what rocBLAS supports.
ARG ROCM_DOCKER_ARCH='gfx908;gfx90a;gfx942;gfx1030;gfx1100;gfx1101;gfx1102;gfx1151;gfx1150;gfx1200;gfx1201'

ARG LLAMA_CPP_TAG=b10454
ARG LLAMA_CPP_COMMIT=4df29be4f4c3673f428170fda944a5b19f743bb8
ARG LLAMA_CPP_RELEASE=

FROM ${WEB_BASE_IMAGE} AS web

ARG LLAMA_CPP_TAG

WORKDIR /app/tools/ui

COPY llama.cpp/tools/ui/package.json llama.cpp/tools/ui/package-lock.json ./
RUN npm ci

COPY llama.cpp/tools/ui/ ./
RUN sed -i 's/^\tkit: {$/&version: { name: process.env.LLAMA_BUILD_NUMBER },/' svelte.config.js && \
    grep -q 'kit: {version' svelte.config.js && \
    LLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" npm run build

### Build image
FROM ${BUILD_BASE_IMAGE} AS build

ARG TARGETARCH

RUN apt-get update \
    && apt-get install -y \
    build-essential \
    cmake \
    git \
    libssl-dev \
    curl \
    libgomp1 \
    ccache \
    ninja-build

ENV CCACHE_DIR=/ccache CCACHE_COMPILERCHECK=content CCACHE_DEPEND=1 CCACHE_MAXSIZE=20G CCACHE_STATSLOG=/tmp/ccache-stats
ENV CMAKE_GENERATOR=Ninja NINJA_STATUS="[%p] "

WORKDIR /app

COPY llama.cpp/ .

ARG ROCM_DOCKER_ARCH
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE

# Set ROCm architectures
ENV AMDGPU_TARGETS=${ROCM_DOCKER_ARCH}

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    HIPCXX="$(hipconfig -l)/clang" HIP_PATH="$(hipconfig -R)" \
    cmake -S . -B build \
        -DGGML_HIP=ON \
        -DAMDGPU_TARGETS="$ROCM_DOCKER_ARCH" \
        -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
        -DCMAKE_BUILD_TYPE=Release -DLLAMA_BUILD_TESTS=OFF \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
        -DLLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" -DLLAMA_BUILD_COMMIT="$LLAMA_CPP_COMMIT" ${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF} \
    && cmake --build build --config Release --target mtmd -j$(nproc) \
    && ccache --show-log-stats \
    && rm -f "$CCACHE_STATSLOG"

COPY --from=web /app/tools/ui/dist tools/ui/dist
RUN find tools/ui/dist -exec touch -d @1 {} +

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    cmake --build build --config Release --target llama-server -j$(nproc) \
    && ccache --show-log-stats

# cpu/ is the same files by hard links, without the accelerator's backend: BodhiApp falls back to it in every image.
RUN --mount=type=bind,source=dockerfiles/llama-licenses,target=/mnt/llama-licenses \
    case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac && \
    directory="/payload/app/bin/$machine-unknown-linux-gnu/rocm" && \
    mkdir -p "$directory" /payload/usr/local/bin && \
    cp build/bin/llama-server "$directory" && \
    find build/bin -name "*.so*" -exec cp -P {} "$directory" \; && \
    sh /mnt/llama-licenses /payload && \
    cp -al "$directory" "${directory%/*}/cpu" && \
    rm "${directory%/*}/cpu/libggml-hip.so" && \
    ln -s "${directory#/payload}/llama-server" /payload/usr/local/bin/llama-server && \
    find /payload -exec touch -h -d @0 {} +

## Base image
FROM ${RUNTIME_BASE_IMAGE} AS toolkit

FROM ${SLIM_BASE_IMAGE} AS slim

FROM ${RUNTIME_LIBRARIES} AS base

ARG RUNTIME_EXTRA_PACKAGES=""

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 curl ca-certificates ${RUNTIME_EXTRA_PACKAGES} \
    && apt autoremove -y \
    && apt clean -y \
    && rm -rf /tmp/* /var/tmp/* \
    && find /var/cache/apt/archives /var/lib/apt/lists -not -name lock -type f -delete \
    && find /var/cache -type f -delete

RUN --mount=type=bind,source=dockerfiles/llama-user,target=/mnt/llama-user \
    sh /mnt/llama-user

### What the server needs of the toolkit and the base does not have; in any case, where the loader finds it
FROM build AS vendor

# comgr: the HIP runtime opens it by itself. rocBLAS' kernels for other targets than ours are of no use.
# hadolint ignore=SC2046,DL4006
RUN --mount=type=bind,from=base,target=/mnt/base \
    --mount=type=bind,source=dockerfiles/vendor-libraries,target=/mnt/vendor-libraries \
    sh /mnt/vendor-libraries /mnt/base /vendor /payload/app/bin/*/rocm \
        $(find -L "$(hipconfig -R)/lib" -maxdepth 2 -name "libamd_comgr.so.[0-9]") && \
    set -f && \
    find /vendor -path "*/library/*gfx*" \
        $(echo "$ROCM_DOCKER_ARCH" | tr ';' '\n' | sed 's/:.*//; s/.*/! -path *&*/') -delete

### What this repository adds
FROM base AS additions

WORKDIR /additions

COPY dockerfiles/llama-entrypoint dockerfiles/llama-threads dockerfiles/llama-healthcheck usr/local/bin/

ARG TARGETPLATFORM
ARG ROCM_VERSION
ARG ROCM_DOCKER_ARCH
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE
ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000
ARG BUILD_BRANCH=unknown
ARG BUILD_TIMESTAMP=""

RUN --mount=type=bind,source=dockerfiles/version-json,target=/mnt/version-json \
    mkdir app && \
    sh /mnt/version-json variant=rocm variants=rocm,cpu rocm="$ROCM_VERSION" rocm_arch="$ROCM_DOCKER_ARCH" > app/version.json && \
    find . -exec touch -d @0 {} +

### Runtime: the server alone
FROM base AS runtime

COPY --from=vendor /vendor/ /
RUN if [ -e /etc/ld.so.conf.d/000-vendor-libraries.conf ]; then ldconfig; fi

COPY --from=build /payload/ /
COPY --from=additions /additions/ /

WORKDIR /app

ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000

LABEL org.opencontainers.image.version=$BUILD_VERSION \
      org.opencontainers.image.revision=$BUILD_COMMIT \
      org.opencontainers.image.title="llama.cpp rocm" \
      org.opencontainers.image.description="llama-server of llama.cpp for BodhiApp" \
      org.opencontainers.image.url="https://github.com/BodhiSearch/llama.cpp" \
      org.opencontainers.image.source="https://github.com/BodhiSearch/llama.cpp"

USER 999

HEALTHCHECK --interval=10s --timeout=5s --start-period=10m CMD [ "/usr/local/bin/llama-healthcheck" ]

ENTRYPOINT [ "/usr/local/bin/llama-entrypoint" ]

### llama.cpp's own test of every operation, beside this image's libraries: published by itself, never in the runtime
FROM build AS operations-build

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    --mount=type=bind,source=dockerfiles/operations,target=/mnt/operations \
    for directory in /payload/app/bin/*/rocm; do \
        sh /mnt/operations/compile "$directory" "/operations${directory#/payload}/test-backend-ops"; \
    done

FROM runtime AS operations

COPY --from=operations-build /operations/ /

# Last, so that a build without --target makes it.
FROM runtime AS image
