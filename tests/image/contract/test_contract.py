"""Defects planted in the real cpu image: each fails exactly the rows that it breaks, with its reason."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

import docker
import pytest

from base_images.adapters.engine import Engine, Image, connect
from base_images.contract import judge, sizes
from base_images.contract.verdict import Status
from base_images.errors import ImageNotFoundError
from base_images.labels import Label
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


def test_the_base_that_the_label_names_is_what_is_below_our_recipe(engine: Engine, cpu_image: Image) -> None:
    base = engine.image(cpu_image.labels[Label.BASE_NAME])
    assert sizes.of_ours(cpu_image.history) == len(cpu_image.diff_ids) - len(base.diff_ids)


BIN = "/app/bin/*/cpu"
CANNOT_START = {2, 3, 11, 13, 14, 15, 18, 20}

# What plants a defect, all rows that fail, and a pattern that one of their findings matches.
DEFECTS: dict[str, tuple[str, set[int], str]] = {
    "missing versioned library": (
        f"RUN rm {BIN}/libllama.so.0",
        CANNOT_START,
        r"libllama\.so\.0 is not found, needed by ",
    ),
    "rpath to the build directory": (
        rf"RUN sed -i 's,\$ORIGIN,/build:,' {BIN}/libllama-server-impl.so",
        CANNOT_START,
        r"RUNPATH '/build:' instead of RUNPATH '\$ORIGIN' on /app/bin/.*/cpu/libllama-server-impl\.so",
    ),
    "rpath of a library that this machine does not load": (
        rf"RUN sed -i 's,\$ORIGIN,/build:,' {BIN}/libggml-cpu-x64.so {BIN}/libggml-cpu-armv8.0_1.so || :",
        {2},
        r"RUNPATH '/build:' instead of RUNPATH '\$ORIGIN' on /app/bin/.*/cpu/libggml-cpu-",
    ),
    "payload owned by the user": ("RUN chown -R llama:llama /app/bin", {4, 12, 17}, "Not owned by root: /app/bin, "),
    "duplicated layer": (f"RUN touch {BIN}/*", {12, 17}, "stores again what a lower layer holds"),
    "empty label": ('LABEL org.opencontainers.image.licenses=""', {7}, r"image\.licenses is empty"),
    "broken version.json": ("RUN echo '{\"version\": ' > /app/version.json", {6}, "version.json is not valid JSON"),
    "health check on a wrong path": (
        'HEALTHCHECK CMD ["/app/llama-server", "--version"]',
        {8},
        "health check's program /app/llama-server is not in the image",
    ),
    "health check on a fixed port": (
        "HEALTHCHECK CMD curl -sSf http://localhost:8080/health",
        {8},
        "does not follow /app/bin/",
    ),
    "extra binary": (
        f"RUN cd {BIN} && cp llama-server llama-cli",
        {9},
        "Another program of llama.cpp in the image: /app/bin/.*/cpu/llama-cli",
    ),
    "world-writable directory": (
        "RUN mkdir -m 0777 /var/models",
        {10},
        "everyone may write, and not sticky: /var/models",
    ),
    "--version of another commit": (
        f"LABEL bodhi.llama_cpp.commit={'f' * 40}",
        {7, 13},
        "reports commit [0-9a-f]{7,40}, but the label bodhi.llama_cpp.commit is 'f+'",
    ),
    "setuid program": ("RUN chmod u+s /usr/bin/env", {10, 12}, "not so in the base image: /usr/bin/env"),
    "package lists": (
        "RUN echo x > /var/lib/apt/lists/deb_Packages",
        {9},
        "A package list or cache in the image: /var/lib/apt/lists/deb_Packages",
    ),
    "no curl": ("RUN rm /usr/bin/curl", {8}, "curl does not run"),
    "runs as root": ("USER root", {4}, "runs as 'root'"),
    "one CPU backend missing": (
        f"RUN rm -f {BIN}/libggml-cpu-sse42.so {BIN}/libggml-cpu-armv8.2_1.so",
        {13},
        "lacks 1 of the [0-9]+ portable CPU backends: ",
    ),
    "an argument of BodhiApp's refused": (
        f"RUN sed -i 's/--no-mmap/--no-mmaq/' {BIN}/libllama-common.so.*.*",
        {18},
        "cpu/llama-server refuses --no-mmap, which BodhiApp passes: error: invalid argument: --no-mmap",
    ),
    "a volume of root's": ("RUN chmod 755 /data", {19}, "54321:0 cannot write a new volume at /data"),
    "llama-server as process 1": (
        'ENTRYPOINT ["/usr/local/bin/llama-server"]',
        {20},
        "still runs 10 s after SIGTERM while it loads a model",
    ),
    "no license texts": ("RUN rm -r /usr/share/doc/llama.cpp", {21}, "lacks LICENSE, NOTICES, vendor/cpp-httplib"),
    "no shell": ('RUN ["rm", "/bin/sh"]', {2, 3, 8, 19, 20}, "no POSIX shell"),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_fails_its_rows_with_a_reason(
    engine: Engine, cpu_image: Image, build: Build, name: str
) -> None:
    dockerfile, rows, reason = DEFECTS[name]
    user = "" if dockerfile.startswith("USER") else f"USER {cpu_image.user}\n"
    report = judge.check(engine, build(f"FROM {cpu_image.id}\nUSER root\n{dockerfile}\n{user}"))
    findings = failed(report)
    assert set(findings) == rows, findings
    assert any(re.search(reason, finding) for texts in findings.values() for finding in texts), findings


def test_an_image_of_a_single_file(engine: Engine, build: Build) -> None:
    image_id = build("FROM scratch\nCOPY hello /hello\n", {"hello": b"hello"})
    report = judge.check(engine, image_id)
    assert [row.number for row in report.rows] == list(range(1, 22))
    assert set(failed(report)) == {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 18, 19, 20, 21}


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
