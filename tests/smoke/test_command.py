"""`invoke smoke` on the command line, and that it leaves nothing behind unless `--keep` asks for that."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import docker
import pytest

from base_images import progress, settings, variants
from base_images.adapters import engine as engines
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError, ImageNotFoundError, UsageError
from base_images.labels import OWNER, RESOURCE, Label
from base_images.smoke import checks_http, containers, model, runner
from base_images.smoke import command as smoke_command
from base_images.smoke import server as servers
from base_images.smoke import url as running
from base_images.smoke.model import TensorType
from base_images.smoke.report import Status
from tests.image.build.test_bases import references, registry  # noqa: F401 - a fixture
from tests.smoke.conftest import made_by, things
from tests.support import clones, commands
from tests.support.registries import Registry

CPU, CUDA = variants.find("cpu"), variants.find("cuda")


IMPORTS = """
from base_images import variants
from base_images.adapters import engine
from base_images.smoke import containers, model
from base_images.smoke import server as servers
"""


def invoke(*arguments: str) -> tuple[int, str, str]:
    done = commands.invoke(*arguments)
    return done.returncode, done.stdout, done.stderr


# --- the image under test ---


def test_two_concurrent_tests_do_not_collide(cpu_image: Image, tmp_path: Path) -> None:
    record = tmp_path / "record"
    common = (*commands.INVOKE, "smoke", "--variant", "cpu", "--image", cpu_image.id, "--record", str(record))
    files = [(tmp_path / "made" / f"{name}.xml", tmp_path / f"{name}.html") for name in "ab"]
    both = [commands.start([*common, "--json", "--junit", str(junit), "--html", str(html)]) for junit, html in files]
    for process, (junit, html) in zip(both, files, strict=True):
        printed, errors = process.communicate(timeout=600)
        assert (process.returncode, errors) == (0, "")
        report = json.loads(printed)
        assert report["ok"]
        assert report["image"] == cpu_image.id
        suites = ET.parse(junit).getroot().findall("testsuite")  # noqa: S314 - ours
        assert [suite.get("name") for suite in suites] == [server["name"] for server in report["servers"]]
        page = html.read_text(encoding="utf-8")
        assert re.search(r"<h1[^>]*>Passed</h1>", page)
        assert cpu_image.labels[Label.BASE_DIGEST] in page
        assert made_by(process.pid) == set()
    # Both write the same record; either may be the last, and neither is incomplete.
    assert json.loads((record / "smoke-cpu.json").read_text(encoding="utf-8"))["ok"]
    assert not [path for path in record.iterdir() if path.name.startswith(".")]


def test_keep_leaves_the_containers_and_prints_their_removal(engine: Engine, cpu_image: Image) -> None:
    code, printed, errors = invoke("smoke", "--variant", "cpu", "--image", cpu_image.id, "--keep", "--json")
    command = errors.partition("`")[2].rpartition("`")[0]
    names = errors.removeprefix("kept: ").partition(";")[0].split(", ")
    volumes = command.partition("docker volume rm ")[2].split()
    try:
        assert (code, json.loads(printed)["ok"]) == (0, True)
        assert len(names) == len(volumes) == len(runner.plan(CPU))
        # They have no owner, so the next run does not remove them as leftovers.
        engine.remove_abandoned()
        with contextlib.closing(docker.from_env()) as client:
            for name, volume in zip(names, volumes, strict=True):
                container = client.containers.get(name)
                assert OWNER not in container.labels
                assert b"model loaded" in container.logs()
                assert volume in things()
    finally:
        subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
    with contextlib.closing(docker.from_env()) as client:
        assert not {container.name for container in client.containers.list(all=True)} & set(names)
    assert not set(volumes) & set(things())


def test_an_image_of_another_variant_is_an_error(cpu_image: Image) -> None:
    assert variants.find(cpu_image.labels[Label.VARIANT]) == CPU
    code, printed, errors = invoke("smoke", "--variant", "vulkan", "--software-device", "--image", cpu_image.id)
    assert (code, printed) == (2, "")
    assert "is of cpu, not of vulkan" in errors


def test_a_failed_check_is_exit_code_1(cpu_image: Image, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {cpu_image.tags[0]}\nUSER root\nRUN rm /app/bin/*/cpu/libggml-cpu-*\n")
    built = subprocess.run(
        ["docker", "build", "--quiet", tmp_path], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        code, printed, errors = invoke("smoke", "--variant", "cpu", "--image", built, "--record", str(tmp_path))
    finally:
        subprocess.run(["docker", "rmi", "--force", built], check=True, capture_output=True)
    assert (code, errors) == (1, "")
    assert "no backends are loaded" in printed


def under_test(engine: Engine, reference: str, notices: list[str], **arguments: object) -> Image:
    return smoke_command.image_under_test(
        engine,
        arguments.get("variant", CPU),  # type: ignore[arg-type]
        reference,
        checkout=settings.ROOT,
        notice=notices.append,
    )


def test_a_missing_tag_or_digest_is_pulled(engine: Engine, registry: Registry) -> None:  # noqa: F811
    reference = references(registry)["web"]
    notices: list[str] = []
    image = under_test(engine, reference, notices)
    [digest] = image.repo_digests
    engine.remove_image(image.id)
    assert not engine.has_image(digest)
    seen: list[progress.Progress] = []
    again = smoke_command.image_under_test(
        engine, CPU, digest, checkout=settings.ROOT, listener=seen.append, notice=notices.append
    )
    assert again.id == image.id
    engine.remove_image(again.id)
    assert seen[-1].finished
    assert notices == []


def test_an_unknown_image_is_an_error(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:1/none"):
        under_test(engine, "127.0.0.1:1/none:1", [])


def test_without_a_reference_the_local_build_is_tested(engine: Engine, cpu_image: Image, tmp_path: Path) -> None:
    notices: list[str] = []
    assert under_test(engine, "", notices).id == cpu_image.id
    assert all("was built from" in notice and "is checked out." in notice for notice in notices)
    elsewhere = tmp_path / "clone"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    clones.commit_all(elsewhere)
    smoke_command.image_under_test(engine, CPU, "", checkout=elsewhere, notice=notices.append)
    assert notices[-1].startswith(f"llama-cpp-cpu:local was built from {cpu_image.labels[Label.REVISION][:7]}, and ")
    del notices[:]
    smoke_command.image_under_test(engine, CPU, "", checkout=tmp_path, notice=notices.append)  # no repository
    assert notices == []


def test_a_missing_local_build_is_reported_in_one_sentence(engine: Engine) -> None:
    absent = (variant for variant in variants.VARIANTS if not engine.has_image(f"llama-cpp-{variant.name}:local"))
    missing = next(absent, None)
    if missing is None:
        pytest.skip("there is a local build of every variant")
    with pytest.raises(ImageNotFoundError, match=f"`invoke build-local --variant {missing.name}`, or name an image"):
        under_test(engine, "", [], variant=missing)


@pytest.mark.usefixtures("cpu_image")
def test_by_default_every_local_build_is_tested(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = smoke_command.local_variants(engine)
    assert CPU in found
    assert all(engine.has_image(f"llama-cpp-{variant.name}:local") for variant in found)
    monkeypatch.setattr("base_images.versions.LOCAL_TAG", "no-such-tag")
    with pytest.raises(ImageNotFoundError, match="no local build of any variant"):
        smoke_command.local_variants(engine)


# --- a running server ---


@contextlib.contextmanager
def serving(
    engine: Engine, image: Image, gguf: bytes, *, embeddings: bool, more: tuple[str, ...] = ()
) -> Iterator[str]:
    way = (
        containers.as_bodhi(image.id, "mine", "/app/bin/x86_64-unknown-linux-gnu/cpu")
        if embeddings
        else containers.quick_start(image.id, "mine")
    )
    with containers.prepared(engine, containers.with_arguments(way, more, None), gguf) as container:
        servers.start(container, way.port)
        yield servers.url(container, way.port)


SKIPPED = {"backend", "list-devices", "offloaded", "buffers", "healthcheck", "sigterm"}


def test_a_running_server_with_the_known_answer_model(engine: Engine, cpu_image: Image, tmp_path: Path) -> None:
    path = tmp_path / "mine.gguf"
    code, printed, _ = invoke("known-answer-model", "--type", "q4_k", "--output", str(path))
    answer = model.known_answer(TensorType.Q4_K)
    assert (code, path.read_bytes()) == (0, answer.gguf)
    assert answer.prompt in printed
    with serving(engine, cpu_image, path.read_bytes(), embeddings=True) as url:
        code, printed, errors = invoke("smoke", "--variant", "cpu", "--url", f"{url}/", "--json")
    assert (code, errors) == (0, "")
    report = json.loads(printed)
    [server] = report["servers"]
    is_ = {check["name"]: check["status"] for check in server["checks"]}
    assert {name for name, status in is_.items() if status == "skip"} == SKIPPED
    seen = {check["name"]: check["seen"] for check in server["checks"]}
    assert seen["known answer"].startswith("the model is the known-answer model of type Q4_K")
    assert seen["chat"].startswith("All 16 tokens are right")
    assert all(seen[name] for name in SKIPPED)
    assert (report["image"], report["device"]) == (url, "unknown device")


@pytest.mark.parametrize("tensor_type", TensorType)
def test_every_known_answer_model_is_recognised(engine: Engine, cpu_image: Image, tensor_type: TensorType) -> None:
    with serving(engine, cpu_image, model.known_answer(tensor_type).gguf, embeddings=False) as url:
        target = checks_http.Target(url=url, alias="", answer=None)
        assert checks_http.find_model(target) == ("/models/mine.gguf", tensor_type)


def test_a_running_server_with_a_wrong_answer_fails(engine: Engine, cpu_image: Image) -> None:
    answer = model.known_answer(TensorType.F32)
    with serving(engine, cpu_image, answer.gguf[:-2] + b"\x7e\x43", embeddings=True) as url:
        report = running.smoke_url(url, CPU)
    failed = {row.check for row in report.rows if row.status is Status.FAIL}
    assert {"completion", "openai completion", "chat", "chat streamed", "eight at once"} <= failed
    assert "models" not in failed


def test_a_running_server_with_another_model_is_not_judged(
    engine: Engine, cpu_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "CONTEXT", 2048)
    gguf = model.to_gguf(model.draw_tensors(TensorType.F32))
    monkeypatch.undo()
    with serving(engine, cpu_image, gguf, embeddings=False, more=("--no-ui",)) as url:
        report = running.smoke_url(url, CUDA)
    assert report.ok, [row.seen for row in report.rows if row.status is Status.FAIL]
    skipped = {row.check: row.seen for row in report.rows if row.status is Status.SKIP}
    assert set(skipped) == SKIPPED | {"known answer", "precision", "embeddings", "client: embeddings", "web page"}
    assert "`invoke known-answer-model" in skipped["known answer"]
    seen = {row.check: row.seen for row in report.rows if row.status is Status.PASS}
    assert seen["completion"] == "16 tokens with their log-probabilities, not judged."
    assert seen["eight at once"] == "an answer 8 times"


def test_a_router_is_checked_by_the_name_of_a_model_and_with_its_key(
    engine: Engine, cpu_image: Image, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("# of this router\nopen-sesame-4711\n")
    served = containers.quick_start(cpu_image.id, "known").container
    arguments = ("--models-dir", "/models", "--api-key", "open-sesame-4711")
    with engine.volume("smoke") as volume:
        spec = dataclasses.replace(
            served, command=(*served.command[:-2], *arguments), volumes={volume: "/models"}, tmpfs={"/tmp": ""}
        )
        files = {
            f"/models/{tensor_type}.gguf": model.known_answer(tensor_type).gguf
            for tensor_type in (TensorType.F32, TensorType.Q8_0)
        }
        with engine.container(spec, files) as container:
            servers.start(container, 8080)
            common = ("smoke", "--variant", "cpu", "--url", servers.url(container, 8080), "--record", f"{tmp_path}/r")
            refused = {
                "The server has 2 models, F32, Q8_0: name one with --model-name.": (),
                "The server has no model 'F16': name one of F32, Q8_0 with --model-name.": ("--model-name", "F16"),
                "The server asks for an API key: name the file that has it with --api-key-file.": (
                    "--model-name",
                    "F32",
                ),
            }
            outcomes = {says: invoke(*common, *arguments) for says, arguments in refused.items()}
            passed = invoke(*common, "--json", "--model-name", "Q8_0", "--api-key-file", str(key))
    for says, (code, printed, errors) in outcomes.items():
        assert (code, errors) == (1, "")
        assert says in printed
        assert printed.count("│ fail │") == 1
    code, printed, errors = passed
    assert (code, errors) == (0, ""), printed
    assert "the known-answer model of type Q8_0: its answers are judged" in printed
    shown = [printed, errors, *(path.read_text() for path in (tmp_path / "r").iterdir())]
    assert not [text for text in shown if "sesame" in text]


@pytest.mark.parametrize("url", ["localhost:8080", "http://", "ftp://x", "/tmp/llama-server"])
def test_a_malformed_url_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="is not a URL of a server"):
        running.smoke_url(url, CPU)


def test_a_closed_port_fails_the_health_check() -> None:
    report = running.smoke_url("http://127.0.0.1:1", CPU)
    assert [(row.check, row.status) for row in report.rows] == [("health", Status.FAIL)]


# --- nothing is left behind ---


def test_leftovers_of_a_killed_test_are_removed_and_others_stay(cpu_image: Image) -> None:
    holds = f"""{IMPORTS}
connected = engine.connect()
way = containers.quick_start({cpu_image.id!r}, "model")
with containers.prepared(connected, way, model.known_answer(model.TensorType.F32).gguf) as container:
    servers.start(container, way.port)
    print("there", flush=True)
    input()
"""
    with (
        commands.python(holds) as dead,
        commands.python(holds) as living,
        contextlib.closing(docker.from_env()) as client,
    ):
        assert len(made_by(dead.pid)) == len(made_by(living.pid)) == 2  # a container and its volume
        dead.kill()
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and has not been reaped
        assert len(made_by(dead.pid)) == 2
        # A volume of another host, whose processes are unknown here, and one without an owner.
        elsewhere = f"000000000000.4026531836.{dead.pid}.1"
        others = [client.volumes.create(labels={RESOURCE: "smoke", **more}) for more in ({OWNER: elsewhere}, {})]
        try:
            # The next command that needs a container or a volume: any.
            with contextlib.closing(engines.connect()) as next_one, next_one.volume("smoke"):
                assert made_by(dead.pid) == set()
            assert len(made_by(living.pid)) == 2
            assert {volume.name for volume in others} <= set(things())
        finally:
            for volume in others:
                volume.remove()
        living.communicate("\n", timeout=600)
        assert made_by(living.pid) == set()


def test_two_concurrent_clean_ups(cpu_image: Image) -> None:
    leaves = f"""{IMPORTS}
import os, signal
connected = engine.connect()
way = containers.quick_start({cpu_image.id!r}, "model")
contexts = [containers.prepared(connected, way, b"") for _ in range(4)]
for context in contexts:
    context.__enter__()
print("there", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with commands.python(leaves) as dead:
        pass
    assert len(made_by(dead.pid)) == 8
    cleans = f"{IMPORTS}connected = engine.connect()\nprint('there', flush=True)\ninput()\nconnected.remove_abandoned()"
    both = [commands.python(cleans) for _ in range(2)]
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=600)
        assert process.returncode == 0
    assert made_by(dead.pid) == set()
