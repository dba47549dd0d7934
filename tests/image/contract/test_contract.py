"""Defects planted in the real cpu image: each fails exactly the rows that it breaks, with its reason."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import docker
import pytest

from base_images.adapters.engine import Engine, Image, connect
from base_images.contract import judge
from base_images.contract.verdict import Status
from base_images.errors import ImageNotFoundError
from base_images.variants import find
from tests.support import images

Build = Callable[..., str]


@pytest.fixture
def build(engine: Engine) -> Iterator[Build]:
    """Builds a Dockerfile without network, returns the image's id, and removes the image afterwards."""
    client = docker.from_env()
    built: list[str] = []

    def build(dockerfile: str, files: Mapping[str, bytes] | None = None) -> str:
        context = io.BytesIO(images.archive({"Dockerfile": dockerfile.encode(), **(files or {})}))
        image, _log = client.images.build(
            fileobj=context, custom_context=True, rm=True, forcerm=True, network_mode="none"
        )
        built.append(str(image.id))
        return built[-1]

    yield build
    for image_id in built:
        engine.remove_image(image_id)
    client.close()


def failed(report: judge.ContractReport) -> dict[int, tuple[str, ...]]:
    return {row.number: row.findings for row in report.rows if row.status is Status.FAIL}


def test_the_cpu_image_passes_every_row(engine: Engine, cpu_image: Image) -> None:
    report = judge.check(engine, cpu_image.id)
    assert failed(report) == {}
    assert [(row.number, row.status) for row in report.rows] == [(number, Status.PASS) for number in range(1, 22)]
    assert (report.variant, report.image_id, report.ok) == ("cpu", cpu_image.id, True)


@dataclass(frozen=True, kw_only=True)
class Defect:
    """A Dockerfile that plants a defect, all rows that fail, and a pattern that one of their findings matches."""

    dockerfile: str
    rows: set[int]
    reason: str


BIN = "/app/bin/*/cpu"
CANNOT_START = {2, 3, 11, 13, 14, 15, 18, 20}

DEFECTS = {
    "missing versioned library": Defect(
        dockerfile=f"RUN rm {BIN}/libllama.so.0", rows=CANNOT_START, reason=r"libllama\.so\.0 is not found, needed by "
    ),
    "rpath to the build directory": Defect(
        dockerfile=rf"RUN sed -i 's,\$ORIGIN,/build:,' {BIN}/libllama-server-impl.so",
        rows=CANNOT_START,
        reason=r"RUNPATH '/build:' instead of RUNPATH '\$ORIGIN' on /app/bin/.*/cpu/libllama-server-impl\.so",
    ),
    "rpath of a library that this machine does not load": Defect(
        dockerfile=rf"RUN sed -i 's,\$ORIGIN,/build:,' {BIN}/libggml-cpu-x64.so {BIN}/libggml-cpu-armv8.0_1.so || :",
        rows={2},
        reason=r"RUNPATH '/build:' instead of RUNPATH '\$ORIGIN' on /app/bin/.*/cpu/libggml-cpu-",
    ),
    "payload owned by the user": Defect(
        dockerfile="RUN chown -R llama:llama /app/bin", rows={4, 12, 17}, reason="Not owned by root: /app/bin, "
    ),
    "duplicated layer": Defect(
        dockerfile=f"RUN touch {BIN}/*", rows={12, 17}, reason="stores again what a lower layer holds"
    ),
    "empty label": Defect(
        dockerfile='LABEL org.opencontainers.image.licenses=""', rows={7}, reason=r"image\.licenses is empty"
    ),
    "broken version.json": Defect(
        dockerfile="RUN echo '{\"version\": ' > /app/version.json", rows={6}, reason="version.json is not valid JSON"
    ),
    "health check on a wrong path": Defect(
        dockerfile='HEALTHCHECK CMD ["/app/llama-server", "--version"]',
        rows={8},
        reason="health check's program /app/llama-server is not in the image",
    ),
    "health check on a fixed port": Defect(
        dockerfile="HEALTHCHECK CMD curl -sSf http://localhost:8080/health",
        rows={8},
        reason="does not follow /app/bin/",
    ),
    "extra binary": Defect(
        dockerfile=f"RUN cd {BIN} && cp llama-server llama-cli",
        rows={9},
        reason="Another program of llama.cpp in the image: /app/bin/.*/cpu/llama-cli",
    ),
    "world-writable directory": Defect(
        dockerfile="RUN mkdir -m 0777 /var/models", rows={10}, reason="everyone may write, and not sticky: /var/models"
    ),
    "--version of another commit": Defect(
        dockerfile=f"LABEL bodhi.llama_cpp.commit={'f' * 40}",
        rows={7, 13},
        reason="reports commit [0-9a-f]{7,40}, but the label bodhi.llama_cpp.commit is 'f+'",
    ),
    "setuid program": Defect(
        dockerfile="RUN chmod u+s /usr/bin/env", rows={10, 12}, reason="not so in the base image: /usr/bin/env"
    ),
    "package lists": Defect(
        dockerfile="RUN echo x > /var/lib/apt/lists/deb_Packages",
        rows={9},
        reason="A package list or cache in the image: /var/lib/apt/lists/deb_Packages",
    ),
    "no curl": Defect(dockerfile="RUN rm /usr/bin/curl", rows={8}, reason="curl does not run"),
    "runs as root": Defect(dockerfile="USER root", rows={4}, reason="runs as 'root'"),
    "one CPU backend missing": Defect(
        dockerfile=f"RUN rm -f {BIN}/libggml-cpu-sse42.so {BIN}/libggml-cpu-armv8.2_1.so",
        rows={13},
        reason="lacks 1 of the [0-9]+ portable CPU backends: ",
    ),
    "an argument of BodhiApp's refused": Defect(
        dockerfile=f"RUN sed -i 's/--no-mmap/--no-mmaq/' {BIN}/libllama-common.so.*.*",
        rows={18},
        reason="cpu/llama-server refuses --no-mmap, which BodhiApp passes: error: invalid argument: --no-mmap",
    ),
    "a volume of root's": Defect(
        dockerfile="RUN chmod 755 /data",
        rows={19},
        reason="54321:0 cannot write a new volume at /data",
    ),
    "llama-server as process 1": Defect(
        dockerfile='ENTRYPOINT ["/usr/local/bin/llama-server"]',
        rows={20},
        reason="still runs 10 s after SIGTERM while it loads a model",
    ),
    "no license texts": Defect(
        dockerfile="RUN rm -r /usr/share/doc/llama.cpp", rows={21}, reason="lacks LICENSE, NOTICES, vendor/cpp-httplib"
    ),
    "no shell": Defect(dockerfile='RUN ["rm", "/bin/sh"]', rows={2, 3, 8, 19, 20}, reason="no POSIX shell"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_fails_its_rows_with_a_reason(
    engine: Engine, cpu_image: Image, build: Build, name: str
) -> None:
    defect = DEFECTS[name]
    user = "" if defect.dockerfile.startswith("USER") else f"USER {cpu_image.user}\n"
    report = judge.check(engine, build(f"FROM {cpu_image.id}\nUSER root\n{defect.dockerfile}\n{user}"))
    findings = failed(report)
    assert set(findings) == defect.rows, findings
    assert any(re.search(defect.reason, finding) for texts in findings.values() for finding in texts), findings


def test_an_image_of_a_single_file(engine: Engine, build: Build) -> None:
    image_id = build("FROM scratch\nCOPY hello /hello\n", {"hello": b"hello"})
    report = judge.check(engine, image_id)
    assert [row.number for row in report.rows] == list(range(1, 21))
    assert set(failed(report)) == {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 18, 19, 20}


def test_a_child_image_with_its_own_program_passes(engine: Engine, cpu_image: Image, build: Build) -> None:
    dockerfile = f"""\
        FROM {cpu_image.id}
        USER root
        COPY bodhi /app/bodhi
        RUN mkdir -p /data && chown llama:llama /data
        USER llama
        ENTRYPOINT ["/app/bodhi"]
        CMD ["serve"]
    """
    image_id = build(textwrap.dedent(dockerfile), {"bodhi": b"#!/bin/sh\nsleep 60\n"})
    assert failed(judge.check(engine, image_id)) == {}


def test_an_image_of_another_variant_than_expected(engine: Engine, cpu_image: Image) -> None:
    report = judge.check(engine, cpu_image.id, find("vulkan"))
    assert failed(report) == {7: ("The label bodhi.variant is 'cpu', but 'vulkan' was asked for.",)}


def test_a_missing_image(engine: Engine) -> None:
    with pytest.raises(ImageNotFoundError, match="There is no image 'llama-cpp-cpu:no-such-tag'"):
        judge.check(engine, "llama-cpp-cpu:no-such-tag")


def test_a_tag_that_moves_during_the_check(cpu_image: Image, build: Build) -> None:
    reference = "llama-cpp-contract-test:moving"
    other = build("FROM scratch\nCOPY hello /hello\n", {"hello": b"other"})

    class Moving(Engine):
        """The real engine, with a tag that moves after its first lookup."""

        def image(self, name: str) -> Image:
            image = super().image(name)
            if name == reference:
                self.tag(other, reference)
            return image

    connected = connect()
    engine = Moving(connected._client, connected._endpoint)
    engine.tag(cpu_image.id, reference)
    try:
        report = judge.check(engine, reference)
    finally:
        engine.remove_image(reference)
    assert (report.image_id, failed(report)) == (cpu_image.id, {})


def test_the_check_leaves_no_containers(engine: Engine, cpu_image: Image, build: Build) -> None:
    image_id = build(f"FROM {cpu_image.id}\nUSER root\nRUN rm {BIN}/libllama.so.0\n")
    assert not judge.check(engine, image_id).ok
    client = docker.from_env()
    assert client.containers.list(all=True, filters={"ancestor": image_id}) == []
    client.close()
