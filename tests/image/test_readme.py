"""Every command that the documents show is run unchanged."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tasks
from invoke.collection import Collection
from invoke.parser import Parser

from base_images import progress, settings, variants, versions
from base_images.adapters.engine import Engine, Image
from base_images.build import bases as origin
from base_images.build.inputs import Origin
from base_images.smoke import model
from base_images.smoke.model import TensorType
from tests.support import commands, documents
from tests.support.programs import engine_sees

RELEASING = documents.TEXTS["docs/releasing.md"]
"""tests/image/test_whole_way.py runs its blocks, in a clone."""

BLOCKS = re.findall(r"^```sh\n(.*?)^```$", documents.TEXT.replace(RELEASING, ""), re.MULTILINE | re.DOTALL)
CHECKOUT_COMMANDS = ("sh", "invoke", "nox")
TESTS = "sh scripts/bootstrap.sh nox\n"
"""The command that runs these tests."""

LATEST = f"{settings.load().registry}:{versions.latest_tag('cpu')}"


def block_name(block: str) -> str:
    return block.splitlines()[0][:50]


def script(text: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return commands.run(
        ["sh", "-eux", "-c", text], cwd=directory, env={**os.environ, "PATH": path, **environment}, timeout=1800
    )


@pytest.fixture
def user(engine: Engine, cpu_image: Image, tmp_path: Path) -> Iterator[Path]:
    """Yields a directory with a model and a child image's Dockerfile; `latest-cpu` is the local image."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.gguf").write_bytes(model.known_answer(TensorType.Q8_0).gguf)
    (tmp_path / "bodhi").write_text('#!/bin/sh\necho "bodhi $*"\n')
    (tmp_path / "bodhi").chmod(0o755)
    [dockerfile] = re.findall(rf"^```dockerfile\n(FROM {LATEST}\n.*?)^```$", documents.TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "Dockerfile").write_text(dockerfile)
    before = engine.image(LATEST).id if engine.has_image(LATEST) else None
    engine.tag(cpu_image.id, LATEST)
    yield tmp_path
    # The server of a block that failed still runs.
    subprocess.run(["docker", "rm", "--force", "llama"], capture_output=True, check=False)
    engine.remove_image("bodhi:latest")
    if before:
        engine.tag(before, LATEST)
    else:
        engine.remove_image(LATEST)


def blocks_of(*, checkout: bool) -> list[str]:
    chosen = [block for block in BLOCKS if block.startswith(CHECKOUT_COMMANDS) is checkout]
    return [block for block in chosen if block != TESTS and not block.startswith("docker buildx")]


@pytest.mark.usefixtures("cpu_image")
@pytest.mark.parametrize("block", blocks_of(checkout=True), ids=block_name)
def test_a_block_for_the_checkout_runs(block: str) -> None:
    done = script(block, settings.ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks_of(checkout=False), ids=block_name)
def test_a_block_for_users_of_an_image_runs(block: str, user: Path, cpu_image: Image) -> None:
    if " -v " in block and not engine_sees(cpu_image.id, user / "models"):
        pytest.skip("the engine does not see this machine's files")
    done = script(block, user)
    assert done.returncode == 0, done.stdout + done.stderr
    if "docker run --rm bodhi" in block:
        assert done.stdout.endswith("bodhi serve\n")
    if "/completion" in block:
        assert '"content"' in done.stdout


def test_the_test_command_is_what_ci_runs() -> None:
    assert TESTS in BLOCKS
    assert TESTS.strip() in (settings.ROOT / ".ci" / "run").read_text()
    assert script(TESTS.strip() + " --list", settings.ROOT).returncode == 0


def buildx() -> tuple[str, dict[str, str]]:
    """Returns the command for `docker buildx build` and its environment: older clients have BuildKit built in."""
    if subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0:
        return "docker buildx build", {}
    for directory in os.environ["PATH"].split(":"):
        if docker := shutil.which("docker", path=directory):
            version = subprocess.run([docker, "--version"], capture_output=True, text=True, check=True).stdout
            if int(re.findall(r"\d+", version)[0]) < 23:
                return f"{docker} build", {"DOCKER_BUILDKIT": "1"}
    pytest.skip("no command line with BuildKit is installed")


def test_a_build_by_hand_makes_the_image(engine: Engine, cpu_image: Image) -> None:
    [block] = [block for block in BLOCKS if block.startswith("docker buildx")]
    command, environment = buildx()
    # The bases of the local image: no registry is needed, and all but the last steps are cached.
    bases = origin.resolve_bases(engine, variants.find("cpu"), {}, origin=Origin.PACKAGES, listener=progress.silent)
    arguments = (
        f"--build-arg WEB_BASE_IMAGE={bases.web.reference} --build-arg BUILD_BASE_IMAGE={bases.build.reference} "
    )
    arguments += f"--build-arg RUNTIME_BASE_IMAGE={bases.runtime.reference}"
    if cpu_image.labels["bodhi.build.origin"] != Origin.PACKAGES.value:
        arguments = ""
    try:
        done = script(block.replace("docker buildx build", f"{command} {arguments}"), settings.ROOT, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert engine.image("llama-cpp-cpu:by-hand").user == cpu_image.user
    finally:
        engine.remove_image("llama-cpp-cpu:by-hand")


def test_commands_in_the_text_exist() -> None:
    sessions = script("nox --list", settings.ROOT).stdout
    for name in re.findall(r"nox -s ([a-z0-9-]+)", documents.TEXT.replace("-<name>", "-cpu")):
        assert f" {name} " in sessions, name
    for variant in re.findall(r"--variant ([a-z]+)", documents.TEXT):
        variants.find(variant)


def commands_in_the_text() -> list[str]:
    text = re.sub(r"<\w+>", "cpu", documents.TEXT)
    inline = re.findall(r"`(?:sh scripts/bootstrap\.sh )?invoke ([^`]+)`", text)
    return sorted({*inline, *re.findall(r"^(?:sh scripts/bootstrap\.sh )?invoke (.+)$", text, re.MULTILINE)})


@pytest.mark.parametrize("command", commands_in_the_text())
def test_a_command_has_the_options_that_the_text_shows(command: str) -> None:
    collection = Collection.from_module(tasks)
    name, *options = shlex.split(command)
    if options:
        Parser(contexts=collection.to_contexts()).parse_argv([name, *options])
    elif name != "--list":
        collection[name]  # the text has its name without its arguments
