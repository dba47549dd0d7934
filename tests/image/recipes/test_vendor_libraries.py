"""`dockerfiles/vendor-libraries` on a small toolkit: a packaged program with its libraries in a vendor's directory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from base_images import settings
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import BuildError
from base_images.labels import Label
from tests.support import images

SCRIPT = settings.ROOT / "dockerfiles/vendor-libraries"

TOOLKIT = """
ARG BASE
ARG RUNTIME=slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends jq
RUN mkdir -p /payload /opt/toolkit-1/lib/onig && ln -s toolkit-1 /opt/toolkit && \\
    mv /usr/bin/jq /payload && \\
    mv /usr/lib/*-linux-gnu/libjq.so* /usr/lib/*-linux-gnu/libonig.so* /opt/toolkit/lib && \\
    cp /opt/toolkit/lib/libonig.so.5 /opt/toolkit/lib/plugin.so && \\
    touch /opt/toolkit/lib/onig/kernel /opt/toolkit/lib/unused.so /opt/toolkit/device.spv && \\
    echo /opt/toolkit/lib > /etc/ld.so.conf.d/toolkit.conf && ldconfig
ARG BREAK=true
RUN $BREAK

FROM ${BASE} AS slim
FROM build AS toolkit
FROM ${RUNTIME} AS base
RUN rm -f /etc/ld.so.conf.d/toolkit.conf && ldconfig

FROM build AS vendor
RUN --mount=type=bind,from=base,target=/mnt/base \\
    --mount=type=bind,source=vendor-libraries,target=/mnt/vendor-libraries \\
    sh /mnt/vendor-libraries /mnt/base /vendor /payload /opt/toolkit/lib/plugin.so /opt/toolkit/device.spv && \\
    cd /vendor && find . ! -type d > /tmp/listing && sort /tmp/listing > /vendor/listing

FROM base AS runtime
COPY --from=vendor /vendor/ /
RUN ldconfig
COPY --from=build /payload/ /payload/
"""

REGISTERED = "./etc/ld.so.conf.d/000-vendor-libraries.conf"


def build(engine: Engine, base: str, **arguments: str) -> str:
    """Returns the id of an image with the payload and its libraries from the toolkit."""
    files = {"Dockerfile": TOOLKIT.encode(), "vendor-libraries": SCRIPT.read_bytes()}
    return images.build(engine, files, arguments={"BASE": base, **arguments})


@pytest.fixture(scope="module")
def base(cpu_image: Image) -> str:
    return cpu_image.labels[Label.BASE_NAME]


@pytest.fixture(params=["slim", "toolkit"])
def image(engine: Engine, base: str, request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """The payload on a base without the toolkit, and on one where the toolkit is not registered."""
    image_id = build(engine, base, RUNTIME=request.param)
    yield request.param, image_id
    engine.remove_image(image_id)


def run(engine: Engine, image_id: str, *command: str) -> str:
    done = engine.probe(ContainerSpec(image=image_id, entrypoint=command))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_payload_finds_its_libraries(engine: Engine, image: tuple[str, str]) -> None:
    runtime, image_id = image
    assert run(engine, image_id, "/payload/jq", "-n", "40 + 2").strip() == "42"
    found = run(engine, image_id, "ldd", "-r", "/payload/jq")
    assert "libonig.so.5 => /opt/toolkit-1/lib/libonig.so.5" in found
    assert "not found" not in found
    assert run(engine, image_id, "cat", REGISTERED.removeprefix(".")) == "/opt/toolkit-1/lib\n"

    taken = run(engine, image_id, "cat", "/listing").split()
    if runtime == "toolkit":
        assert taken == [REGISTERED]
    else:
        libraries = {name for name in taken if ".so." in name and name.startswith("./opt/")}
        assert {name.partition(".so.")[0] for name in libraries} == {
            "./opt/toolkit-1/lib/libjq",
            "./opt/toolkit-1/lib/libonig",
        }
        assert len(libraries) == 4, "each library and its link"
        assert set(taken) - libraries == {
            REGISTERED,
            "./opt/toolkit-1/device.spv",
            "./opt/toolkit-1/lib/onig/kernel",
            "./opt/toolkit-1/lib/plugin.so",
        }


def test_a_missing_library_fails_the_build(engine: Engine, base: str) -> None:
    with pytest.raises(BuildError, match="vendor-libraries") as failed:
        build(engine, base, BREAK="rm /opt/toolkit/lib/libonig.so.5")
    assert "libonig.so.5 => not found" in failed.value.detail


def test_a_missing_file_that_a_library_opens_fails_the_build(engine: Engine, base: str) -> None:
    with pytest.raises(BuildError, match="vendor-libraries") as failed:
        build(engine, base, BREAK="rm /opt/toolkit/device.spv")
    assert "/opt/toolkit-1/device.spv" in failed.value.detail
