# A file in the manner of llama.cpp's .devops, for the tests of the mirror: every construct that theirs use, shorter.
ARG UBUNTU_VERSION=24.04
ARG CUDA_VERSION=12.8.1
ARG DEV_IMAGE=docker.io/nvidia/cuda:${CUDA_VERSION}-devel-ubuntu${UBUNTU_VERSION}
ARG RUN_IMAGE=docker.io/nvidia/cuda:${CUDA_VERSION}-runtime-ubuntu${UBUNTU_VERSION}
ARG NODE_VERSION=24
ARG APP_VERSION=N/A

FROM docker.io/node:$NODE_VERSION AS web

ARG APP_VERSION

WORKDIR /app/tools/ui

COPY tools/ui/package.json tools/ui/package-lock.json ./
RUN npm ci

COPY tools/ui/ ./
RUN BUILD_NUMBER="$APP_VERSION" npm run build

FROM ${DEV_IMAGE} AS build

ARG CUDA_DOCKER_ARCH=default
ARG FP16=ON

RUN apt-get update && \
    apt-get install -y gcc-14 g++-14 cmake git libssl-dev

RUN apt-get update \
    && apt-get install -y -o Dpkg::Options::="--force-overwrite" thrust=12.8-1 \
    && pip install --upgrade setuptools

ENV CC=gcc-14 CXX=g++-14
ENV TOOLKIT=/usr/local/toolkit
ENV LD_LIBRARY_PATH=${TOOLKIT}/lib64:$LD_LIBRARY_PATH
ENV LD_LIBRARY_PATH=${TOOLKIT}/stub:$LD_LIBRARY_PATH
ENV OPTIONS="-DGGML_RPC=OFF"

WORKDIR /app

COPY . .

COPY --from=web /app/tools/ui/dist tools/ui/dist

RUN if [ "${CUDA_DOCKER_ARCH}" != "default" ]; then \
        export CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=${CUDA_DOCKER_ARCH}"; \
    fi && \
    if [ "${FP16}" = "ON" ]; then \
        echo "half precision" \
        && export OPTION_FP16="-DGGML_FP16=ON"; \
    else \
        echo "single precision"; \
    fi && \
    HIPCXX="$(toolkit -l)/clang" \
    cmake -S . -B build -DGGML_NATIVE=OFF -DGGML_CUDA=ON -DGGML_BACKEND_DL=ON -DARCHS="$CUDA_DOCKER_ARCH" \
        ${CMAKE_ARGS} ${OPTION_FP16} -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined && \
    cmake --build build --config Release -j$(nproc)

RUN mkdir -p /app/lib && \
    find build -name "*.so*" -exec cp -P {} /app/lib \;

FROM ${RUN_IMAGE} AS base

ARG IMAGE_URL=https://example.org/llama.cpp
LABEL org.opencontainers.image.version=$APP_VERSION \
      org.opencontainers.image.title="llama server"

RUN apt-get update \
    && apt-get install -y libgomp1 curl ffmpeg \
    && rm -rf /tmp/* /var/tmp/* \
    && find /var/cache -type f -delete

# The library directory is not registered.
RUN echo "/usr/local/toolkit/lib" > /etc/ld.so.conf.d/toolkit.conf && ldconfig

COPY --from=build /app/lib/ /app

FROM base AS full

COPY --from=build /app/full /app
RUN apt-get install -y python3
ENTRYPOINT ["/app/tools.sh"]

FROM base AS server

ENV LLAMA_ARG_HOST=0.0.0.0

COPY --from=build /app/full/llama-server /app

WORKDIR /app

USER 1000
EXPOSE 8080

HEALTHCHECK --interval=5m CMD [ "curl", "-f", "http://localhost:8080/health" ]

ENTRYPOINT [ "/app/llama-server" ]
