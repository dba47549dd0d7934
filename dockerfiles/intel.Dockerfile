# llama-server for Intel GPUs by SYCL. Mirrors .devops/intel.Dockerfile of llama.cpp; where it differs, a comment says why.
# What the recipes have in common is explained in cpu.Dockerfile.

ARG ONEAPI_VERSION=2025.3.3-0-devel-ubuntu24.04
ARG NODE_VERSION=24

ARG WEB_BASE_IMAGE=docker.io/node:${NODE_VERSION}
ARG BUILD_BASE_IMAGE=docker.io/intel/deep-learning-essentials:${ONEAPI_VERSION}
ARG RUNTIME_BASE_IMAGE=docker.io/intel/deep-learning-essentials:${ONEAPI_VERSION}
ARG SLIM_BASE_IMAGE=docker.io/ubuntu:24.04

# `toolkit`: upstream's base, the whole toolkit. `slim`: a small base and, of the toolkit, what the server loads.
ARG RUNTIME_LIBRARIES=toolkit

ARG GGML_SYCL_F16=ON
ARG LEVEL_ZERO_VERSION=1.28.2
ARG IGC_VERSION=v2.34.4
ARG COMPUTE_RUNTIME_VERSION=26.18.38308.1

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

ARG LEVEL_ZERO_VERSION
ARG LEVEL_ZERO_UBUNTU_VERSION=u24.04
RUN apt-get update && \
    apt-get install -y git libssl-dev wget ca-certificates ccache ninja-build && \
    cd /tmp && \
    wget -q "https://github.com/oneapi-src/level-zero/releases/download/v${LEVEL_ZERO_VERSION}/level-zero_${LEVEL_ZERO_VERSION}%2B${LEVEL_ZERO_UBUNTU_VERSION}_amd64.deb" -O level-zero.deb && \
    wget -q "https://github.com/oneapi-src/level-zero/releases/download/v${LEVEL_ZERO_VERSION}/level-zero-devel_${LEVEL_ZERO_VERSION}%2B${LEVEL_ZERO_UBUNTU_VERSION}_amd64.deb" -O level-zero-devel.deb && \
    apt-get -o Dpkg::Options::="--force-overwrite" install -y ./level-zero.deb ./level-zero-devel.deb && \
    rm -f /tmp/level-zero.deb /tmp/level-zero-devel.deb

ENV CCACHE_DIR=/ccache CCACHE_COMPILERCHECK=content CCACHE_DEPEND=1 CCACHE_MAXSIZE=20G CCACHE_STATSLOG=/tmp/ccache-stats
ENV CMAKE_GENERATOR=Ninja NINJA_STATUS="[%p] "

WORKDIR /app

COPY llama.cpp/ .

ARG GGML_SYCL_F16
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    if [ "${GGML_SYCL_F16}" = "ON" ]; then \
        echo "GGML_SYCL_F16 is set" \
        && export OPT_SYCL_F16="-DGGML_SYCL_F16=ON" \
        && export SYCL_PROGRAM_COMPILE_OPTIONS="-cl-fp32-correctly-rounded-divide-sqrt"; \
    fi && \
    echo "Building with dynamic libs" && \
    cmake -B build -DGGML_NATIVE=OFF -DGGML_SYCL=ON -DCMAKE_C_COMPILER=icx -DCMAKE_CXX_COMPILER=icpx -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DLLAMA_BUILD_TESTS=OFF ${OPT_SYCL_F16} \
        -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN' \
        -DLLAMA_BUILD_NUMBER="${LLAMA_CPP_TAG#b}" -DLLAMA_BUILD_COMMIT="$LLAMA_CPP_COMMIT" ${LLAMA_CPP_RELEASE:+-DLLAMA_BUILD_IS_DEV=OFF} && \
    cmake --build build --config Release --target mtmd -j$(nproc) && \
    ccache --show-log-stats && \
    rm -f "$CCACHE_STATSLOG"

COPY --from=web /app/tools/ui/dist tools/ui/dist
RUN find tools/ui/dist -exec touch -d @1 {} +

RUN --mount=type=cache,id=llama-cpp-ccache,target=/ccache \
    cmake --build build --config Release --target llama-server -j$(nproc) && \
    ccache --show-log-stats

# cpu/ is the same files by hard links, without the accelerator's backend: BodhiApp falls back to it in every image.
RUN --mount=type=bind,source=dockerfiles/llama-licenses,target=/mnt/llama-licenses \
    case "$TARGETARCH" in amd64) machine=x86_64 ;; arm64) machine=aarch64 ;; esac && \
    directory="/payload/app/bin/$machine-unknown-linux-gnu/intel" && \
    mkdir -p "$directory" /payload/usr/local/bin && \
    cp build/bin/llama-server "$directory" && \
    find build/bin -name "*.so*" -exec cp -P {} "$directory" \; && \
    sh /mnt/llama-licenses /payload && \
    cp -al "$directory" "${directory%/*}/cpu" && \
    rm "${directory%/*}/cpu/libggml-sycl.so" && \
    ln -s "${directory#/payload}/llama-server" /payload/usr/local/bin/llama-server && \
    find /payload -exec touch -h -d @0 {} +

## Base image
FROM ${RUNTIME_BASE_IMAGE} AS toolkit

FROM ${SLIM_BASE_IMAGE} AS slim

FROM ${RUNTIME_LIBRARIES} AS base

ARG RUNTIME_EXTRA_PACKAGES=""

# 26.x has trouble with several GPUs (llama.cpp issue 21747); 25.40.35563.10 with IGC v2.20.5 and GMM 22.8.2 has not.
ARG IGC_VERSION
ARG IGC_VERSION_FULL=2_2.34.4+21428
ARG COMPUTE_RUNTIME_VERSION
ARG COMPUTE_RUNTIME_VERSION_FULL=26.18.38308.1-0
ARG IGDGMM_VERSION=22.10.0

# In one RUN: a package that a later one removes stays in the layer. By apt, which installs what they need on the slim
# base, and may replace the toolkit's newer ones. Upstream's .ddeb files are debug symbols, which it does not install.
RUN apt-get update \
  && apt-get install -y --no-install-recommends libgomp1 curl ca-certificates wget ${RUNTIME_EXTRA_PACKAGES} \
  && mkdir /tmp/neo/ && cd /tmp/neo/ \
  && wget https://github.com/intel/intel-graphics-compiler/releases/download/$IGC_VERSION/intel-igc-core-${IGC_VERSION_FULL}_amd64.deb \
  && wget https://github.com/intel/intel-graphics-compiler/releases/download/$IGC_VERSION/intel-igc-opencl-${IGC_VERSION_FULL}_amd64.deb \
  && wget https://github.com/intel/compute-runtime/releases/download/$COMPUTE_RUNTIME_VERSION/intel-ocloc_${COMPUTE_RUNTIME_VERSION_FULL}_amd64.deb \
  && wget https://github.com/intel/compute-runtime/releases/download/$COMPUTE_RUNTIME_VERSION/intel-opencl-icd_${COMPUTE_RUNTIME_VERSION_FULL}_amd64.deb \
  && wget https://github.com/intel/compute-runtime/releases/download/$COMPUTE_RUNTIME_VERSION/libigdgmm12_${IGDGMM_VERSION}_amd64.deb \
  && wget https://github.com/intel/compute-runtime/releases/download/$COMPUTE_RUNTIME_VERSION/libze-intel-gpu1_${COMPUTE_RUNTIME_VERSION_FULL}_amd64.deb \
  && apt-get install -y --no-install-recommends --allow-downgrades ./*.deb \
  && apt autoremove -y \
  && apt clean -y \
  && rm -rf /tmp/* /var/tmp/* \
  && find /var/cache/apt/archives /var/lib/apt/lists -not -name lock -type f -delete \
  && find /var/cache -type f -delete

RUN --mount=type=bind,source=dockerfiles/llama-user,target=/mnt/llama-user \
    sh /mnt/llama-user

### What the server needs of the toolkit and the base does not have; in any case, where the loader finds it
FROM build AS vendor

# What the SYCL runtime, oneMKL and oneTBB open by themselves, as in the list that llama.cpp's release for Windows packs.
# Those that a release of oneAPI may not have are asked for by find.
# hadolint ignore=SC2046
RUN --mount=type=bind,from=base,target=/mnt/base \
    --mount=type=bind,source=dockerfiles/vendor-libraries,target=/mnt/vendor-libraries \
    sh /mnt/vendor-libraries /mnt/base /vendor /payload/app/bin/*/intel \
        "${CMPLR_ROOT:?}/lib/libur_adapter_level_zero"*.so.* "$CMPLR_ROOT/lib/libur_adapter_opencl.so."* \
        "${MKLROOT:?}/lib/libmkl_def.so."* "$MKLROOT/lib/libmkl_avx2.so."* "$MKLROOT/lib/libmkl_avx512.so."* \
        $(find "$CMPLR_ROOT/lib" -name "libsycl-*.spv") $(find "${TCM_ROOT:?}/lib" -name "libtcm.so.*" -o -name "libhwloc.so.*")

### What this repository adds
FROM base AS additions

WORKDIR /additions

COPY dockerfiles/llama-entrypoint dockerfiles/llama-threads dockerfiles/llama-healthcheck usr/local/bin/

ARG TARGETPLATFORM
ARG ONEAPI_VERSION
ARG GGML_SYCL_F16
ARG LEVEL_ZERO_VERSION
ARG IGC_VERSION
ARG COMPUTE_RUNTIME_VERSION
ARG LLAMA_CPP_TAG
ARG LLAMA_CPP_COMMIT
ARG LLAMA_CPP_RELEASE
ARG BUILD_VERSION=0000000000-0000000
ARG BUILD_COMMIT=0000000000000000000000000000000000000000
ARG BUILD_BRANCH=unknown
ARG BUILD_TIMESTAMP=""

RUN --mount=type=bind,source=dockerfiles/version-json,target=/mnt/version-json \
    mkdir app && \
    sh /mnt/version-json variant=intel variants=intel,cpu oneapi="$ONEAPI_VERSION" sycl_f16="$GGML_SYCL_F16" \
        level_zero="$LEVEL_ZERO_VERSION" compute_runtime="$COMPUTE_RUNTIME_VERSION" igc="$IGC_VERSION" > app/version.json && \
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
      org.opencontainers.image.title="llama.cpp intel" \
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
    for directory in /payload/app/bin/*/intel; do \
        sh /mnt/operations/compile "$directory" "/operations${directory#/payload}/test-backend-ops"; \
    done

FROM runtime AS operations

COPY --from=operations-build /operations/ /

# Last, so that a build without --target makes it.
FROM runtime AS image
