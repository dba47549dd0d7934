# llama-server for Huawei Ascend NPUs. Mirrors .devops/cann.Dockerfile of llama.cpp; where it differs, a comment says why.
# What the recipes have in common is explained in cpu.Dockerfile.

# The NPU that it is built for, as the tags of the base image have it: 910b, 310p.
ARG CHIP_TYPE=910b
ARG CANN_BASE_IMAGE=quay.io/ascend/cann:8.5.0-${CHIP_TYPE}-openeuler24.03-py3.11
ARG NODE_VERSION=24

ARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}
ARG BUILD_BASE_IMAGE=${CANN_BASE_IMAGE}
ARG RUNTIME_BASE_IMAGE=${CANN_BASE_IMAGE}

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

FROM ${BUILD_BASE_IMAGE} AS build

ARG TARGETARCH

RUN yum install -y gcc g++ cmake make git openssl-devel python3 python3-pip findutils ccache ninja-build && \
    yum clean all && \
    rm -rf /var/cache/yum

ENV CCACHE_DIR=/ccache CCACHE_COMPILERCHECK=content CCACHE_DEPEND=1 CCACHE_MAXSIZE=20G CCACHE_STATSLOG=/tmp/ccache-stats
ENV CMAKE_GENERATOR=Ninja NINJA_STATUS="[%p] "

WORKDIR /app

COPY llama.cpp/ .

ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE

# cpu/ is a build of its own, with the flags of cpu.Dockerfile: the other one has no dynamic backends, so its server does
# not start without the NPU's driver.
RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    cmake -S . -B build-cpu -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=OFF -DLLAMA_BUILD_TESTS=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
        -DLLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" -DLLAMA_BUILD_COMMIT="$LLAMA_CPP_COMMIT" ${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF} && \
    cmake --build build-cpu --target mtmd -j $(nproc) && \
    ccache --show-log-stats && \
    rm -f "$CCACHE_STATSLOG"

COPY --from=web /app/tools/ui/dist tools/ui/dist
RUN find tools/ui/dist -exec touch -d @1 {} +

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    cmake --build build-cpu --target llama-server -j $(nproc)

# The toolkit, and for the linker a stand-in for the driver's library, which only hosts have.
ENV ASCEND_TOOLKIT_HOME=/usr/local/Ascend/ascend-toolkit/latest
ENV LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/lib64:${LD_LIBRARY_PATH}
ENV PATH=${ASCEND_TOOLKIT_HOME}/bin:${PATH}
ENV ASCEND_OPP_PATH=${ASCEND_TOOLKIT_HOME}/opp
ENV LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/runtime/lib64/stub:$LD_LIBRARY_PATH

ARG CHIP_TYPE

# ACL graphs: llama.cpp's CMake refuses them for the 310P.
RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    case "$CHIP_TYPE" in 310[pP]*) acl_graph=OFF ;; *) acl_graph=ON ;; esac && \
    . /usr/local/Ascend/ascend-toolkit/set_env.sh --force \
    && \
    cmake -B build \
        -DGGML_NATIVE=OFF \
        -DGGML_CANN=ON \
        -DCMAKE_BUILD_TYPE=Release \
        -DSOC_TYPE=ascend${CHIP_TYPE} \
        -DUSE_ACL_GRAPH=$acl_graph \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
        -DLLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" -DLLAMA_BUILD_COMMIT="$LLAMA_CPP_COMMIT" ${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF} \
        . && \
    cmake --build build --config Release --target llama-server -j$(nproc) && \
    ccache --show-log-stats

# What both builds made alike is stored once.
RUN --mount=type=bind,source=dockerfiles/llama-licenses,target=/mnt/llama-licenses \
    case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac && \
    directory="/payload/app/bin/$machine-unknown-linux-gnu/cann" && \
    mkdir -p "$directory" "${directory%/*}/cpu" /payload/usr/local/bin && \
    cp build/bin/llama-server "$directory" && \
    find build/bin -name "*.so*" -exec cp -P {} "$directory" \; && \
    cp build-cpu/bin/llama-server "${directory%/*}/cpu" && \
    find build-cpu/bin -name "*.so*" -exec cp -P {} "${directory%/*}/cpu" \; && \
    sh /mnt/llama-licenses /payload && \
    for file in "$directory"/*; do \
        other="${directory%/*}/cpu/${file##*/}"; \
        if [ ! -L "$file" ] && cmp -s "$file" "$other"; then ln -f "$file" "$other"; fi; \
    done && \
    ln -s "${directory#/payload}/llama-server" /payload/usr/local/bin/llama-server && \
    find /payload -exec touch -h -d @0 {} +

## Base image
FROM ${RUNTIME_BASE_IMAGE} AS base

ARG RUNTIME_EXTRA_PACKAGES=""

# shadow-utils has groupadd and useradd, findutils and gawk what the health check calls; openEuler's image may lack them.
RUN yum install -y libgomp curl ca-certificates shadow-utils findutils gawk ${RUNTIME_EXTRA_PACKAGES} && \
    yum clean all && \
    rm -rf /var/cache/yum

# The loader's path does not build on that of CANN's image, which ends in an empty entry: the current directory. Instead it
# has the driver's directories, which the host mounts, and those that the toolkit's set_env.sh adds.
ENV ASCEND_TOOLKIT_HOME=/usr/local/Ascend/ascend-toolkit/latest
ENV LD_LIBRARY_PATH=/usr/local/Ascend/driver/lib64/common:/usr/local/Ascend/driver/lib64/driver
ENV LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/lib64/plugin/opskernel:${ASCEND_TOOLKIT_HOME}/lib64/plugin/nnengine:${ASCEND_TOOLKIT_HOME}/opp/built-in/op_impl/ai_core/tbe/op_tiling:${LD_LIBRARY_PATH}
ENV LD_LIBRARY_PATH=${ASCEND_TOOLKIT_HOME}/lib64:${LD_LIBRARY_PATH}
ENV PATH=${ASCEND_TOOLKIT_HOME}/bin:${PATH}
ENV ASCEND_OPP_PATH=${ASCEND_TOOLKIT_HOME}/opp

RUN --mount=type=bind,source=dockerfiles/llama-user,target=/mnt/llama-user \
    sh /mnt/llama-user

### What this repository adds
FROM base AS additions

WORKDIR /additions

COPY dockerfiles/llama-entrypoint dockerfiles/llama-threads dockerfiles/llama-healthcheck usr/local/bin/

ARG TARGETPLATFORM
ARG CANN_BASE_IMAGE
ARG CHIP_TYPE
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE
ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000
ARG BUILD_BRANCH=unknown
ARG BUILD_TIMESTAMP=""

RUN --mount=type=bind,source=dockerfiles/version-json,target=/mnt/version-json \
    mkdir app && \
    sh /mnt/version-json variant=cann variants=cann,cpu cann="$CANN_BASE_IMAGE" cann_chip="$CHIP_TYPE" > app/version.json && \
    find . -exec touch -d @0 {} +

### Runtime: the server alone
FROM base AS runtime

COPY --from=build /payload/ /
COPY --from=additions /additions/ /

WORKDIR /app

ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000

LABEL org.opencontainers.image.version=$BUILD_VERSION \
      org.opencontainers.image.revision=$BUILD_COMMIT \
      org.opencontainers.image.title="llama.cpp cann" \
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
    for directory in /payload/app/bin/*/cann; do \
        sh /mnt/operations/compile "$directory" "/operations${directory#/payload}/test-backend-ops"; \
    done

FROM runtime AS operations

COPY --from=operations-build /operations/ /

# Last, so that a build without --target makes it.
FROM runtime AS image
