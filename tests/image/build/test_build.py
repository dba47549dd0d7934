"""Builds with a real engine's BuildKit, from a recipe of a few lines instead of the one that takes minutes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import git
import pytest

from base_images import progress, settings, variants, versions
from base_images.adapters import buildkit, engine
from base_images.adapters.container import ContainerSpec
from base_images.build import bases as origin
from base_images.build import local as build
from base_images.build import source
from base_images.build.inputs import Origin
from base_images.errors import BuildError, EngineError, ImageNotFoundError, UsageError
from base_images.labels import Label
from tests.support import clones, commands
from tests.support.programs import need, wait_for

REGISTRY = "registry.example.org/base-images-test"
HEAD = """\
ARG WEB_BASE_IMAGE=docker.io/node:24
ARG BUILD_BASE_IMAGE=docker.io/ubuntu:24.04
ARG RUNTIME_BASE_IMAGE=docker.io/ubuntu:24.04
FROM ${RUNTIME_BASE_IMAGE} AS runtime
ARG TARGETARCH
ARG BUILD_VERSION
COPY llama.cpp/CMakeLists.txt /
"""
CPU = variants.find("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with one commit, whose recipe is HEAD."""
    made = tmp_path / "checkout"
    (made / "dockerfiles").mkdir(parents=True)
    shutil.copy(settings.ROOT / ".dockerignore", made)
    (made / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD)
    clones.commit_all(made)
    return made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree that is accepted as llama.cpp."""
    made = tmp_path / "llama"
    for mark in source._MARKS:
        path = made / mark
        if path.suffix:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('project("llama.cpp" C CXX)\n')
        else:
            path.mkdir(parents=True)
            (path / "file").touch()
    clones.commit_all(made).create_tag("b7")
    return made


@pytest.fixture
def clean(engine: engine.Engine) -> Iterator[None]:
    before = {image.id for image in engine.images(label=Label.VARIANT)}
    local = engine.image(versions.local_reference("cpu")).id if engine.has_image("llama-cpp-cpu:local") else None
    yield
    for image in engine.images(label=Label.VARIANT):
        if image.id not in before:
            for reference in image.tags or (image.id,):
                engine.remove_image(reference)
    if local:
        engine.tag(local, versions.local_reference("cpu"))


def prepare(connected: engine.Engine, root: Path, tree: Path) -> build.Prepared:
    found = source.resolve(settings.load().pin, path=tree, origin=Origin.PACKAGES, root=root, listener=progress.silent)
    return build.prepare(
        connected,
        CPU,
        settings=settings.Settings(registry=REGISTRY, release_branch="main", url="u", pin=settings.load().pin),
        root=root,
        source=found,
        wanted=Origin.PACKAGES,
        listener=progress.silent,
    )


def run(connected: engine.Engine, root: Path, tree: Path) -> tuple[build.Built, list[buildkit.Event]]:
    events: list[buildkit.Event] = []
    built = build.build(connected, prepare(connected, root, tree), root=root, on_event=events.append)
    return built, events


@pytest.mark.usefixtures("clean")
def test_a_build_has_the_plans_labels_and_tags(engine: engine.Engine, root: Path, tree: Path) -> None:
    built, events = run(engine, root, tree)
    image = engine.image(built.image_id)
    assert set(built.plan.tags) <= set(image.tags)
    assert {name: image.labels[name] for name in built.plan.labels} == built.plan.labels
    # The runtime base was made here; an image built from it must not have its label.
    assert set(image.labels) == {label.value for label in Label} - {Label.LLAMA_CPP_RELEASE, Label.DEBIAN_SNAPSHOT}
    assert all(image.labels.values())
    assert built.plan.version.endswith("-dirty"), "another source than the pin must not get HEAD's own version"
    assert buildkit.ImageBuilt(image_id=built.image_id) in events
    assert any(isinstance(event, buildkit.StepFinished) and "COPY" in event.name for event in events)


@pytest.mark.usefixtures("clean")
def test_a_repeated_build_is_cached_and_gives_the_same_image(engine: engine.Engine, root: Path, tree: Path) -> None:
    first, _ = run(engine, root, tree)
    second, events = run(engine, root, tree)
    assert second.image_id == first.image_id
    steps = [event for event in events if isinstance(event, buildkit.StepFinished) and "COPY" in event.name]
    assert steps
    assert all(step.cached for step in steps)


@pytest.mark.usefixtures("clean")
def test_a_build_argument_reaches_the_recipe(engine: engine.Engine, root: Path, tree: Path) -> None:
    (root / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD + 'RUN echo "$BUILD_VERSION $TARGETARCH" > /said\n')
    built, _ = run(engine, root, tree)
    probe = engine.probe(ContainerSpec(image=built.image_id, entrypoint=("cat", "/said")))
    assert probe.stdout.split() == [built.plan.version, engine.info().architecture]


def test_a_failing_step_is_named_with_the_tail_of_its_log(engine: engine.Engine, root: Path, tree: Path) -> None:
    (root / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD + "RUN echo about to fail && exit 3\n")
    with pytest.raises(BuildError, match=r"in the step '.*RUN echo about to fail") as caught:
        run(engine, root, tree)
    assert "about to fail" in caught.value.detail


def test_a_variant_without_a_recipe_is_refused(engine: engine.Engine, root: Path, tree: Path) -> None:
    (root / "dockerfiles" / "cpu.Dockerfile").unlink()
    with pytest.raises(UsageError, match="There is no recipe for cpu yet"):
        run(engine, root, tree)


def test_a_missing_image_is_one_sentence(engine: engine.Engine) -> None:
    for reference in ("llama-cpp-cpu:no-such-tag", "sha256:" + "0" * 64, "Not A Reference"):
        with pytest.raises(ImageNotFoundError, match="There is no image"):
            engine.image(reference)


# Ctrl-C.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A writable copy of this checkout, uncommitted changes included."""
    made = tmp_path / "copy"
    git.Repo.clone_from(str(settings.ROOT), made)
    return clones.fresh_copy(made, ".dockerignore")


@pytest.mark.usefixtures("clean")
def test_ctrl_c_while_building_leaves_nothing_running_and_the_next_run_works(
    engine: engine.Engine, checkout: Path, tree: Path
) -> None:
    recipe = checkout / "dockerfiles" / "cpu.Dockerfile"
    unique = f"{30_000_000 + os.getpid()}"
    recipe.write_text(HEAD + f"RUN echo {unique} && sleep {unique}\n")
    command = [*commands.INVOKE, "build-local", "--variant", "cpu", "--source", str(tree)]
    command += ["--origin", "packages"]
    with commands.start(command, cwd=checkout, new_session=True) as process:
        wait_for(lambda: running("sleep", unique))
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.strip() == "Interrupted: nothing is left running; the same command starts again."
    wait_for(lambda: not running("sleep", unique))
    recipe.write_text(HEAD)
    done = commands.run(command, cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert engine.has_image(versions.local_reference("cpu"))


@pytest.mark.usefixtures("clean")
def test_ctrl_c_ends_a_build_beside_others_and_the_table_says_so(checkout: Path, tree: Path) -> None:
    unique = f"{40_000_000 + os.getpid()}"
    (checkout / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD)
    (checkout / "dockerfiles" / "vulkan.Dockerfile").write_text(HEAD + f"RUN echo {unique} && sleep {unique}\n")
    command = [*commands.INVOKE, "build-local", "--variant", "vulkan", "--variant", "cpu", "--source", str(tree)]
    command += ["--origin", "packages", "--jobs", "2"]
    with commands.start(command, cwd=checkout, new_session=True) as process:
        wait_for(lambda: running("sleep", unique))
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.strip() == "Interrupted: nothing is left running; the same command starts again."
    wait_for(lambda: not running("sleep", unique))
    rows = [line.split("│")[1:3] for line in stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [["vulkan", "ended"], ["cpu", "built"]]
    assert unique in (checkout / "build" / "logs" / "vulkan.log").read_text()


def running(*words: str) -> bool:
    """Returns whether any process of this machine, in containers too, has this command line."""
    wanted = "\0".join(words).encode() + b"\0"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False


# Other engines.


@pytest.fixture
def small_engine(engine: engine.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[engine.Engine]:
    """A second engine with 600 MB of disk and no bridge, which has the bases of the packages origin."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("starting a second engine needs root and dockerd")
    bases = origin.resolve_bases(engine, variants.find("cpu"), {}, origin=Origin.PACKAGES, listener=progress.silent)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", disk], check=True)
    address = f"unix://{tmp_path}/s"
    # In its own network namespace: an engine without a bridge deletes docker0, which the first engine uses.
    command = ["unshare", "--net", "dockerd", "--bridge=none", "--iptables=false", f"--data-root={disk}/data"]
    command += [f"--exec-root={tmp_path}/exec", f"--pidfile={tmp_path}/pid", f"--host={address}"]
    try:
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                monkeypatch.setenv("DOCKER_HOST", address)
                connected = connect_when_there(tmp_path / "s")
                # One image for all three roles: the recipe uses the runtime's only.
                for base in (bases.web, bases.build, bases.runtime):
                    load(connected, engine, bases.runtime.reference, base.reference)
                yield connected
                connected.close()
            finally:
                process.terminate()
                process.wait(30)
    finally:
        subprocess.run(["umount", "-R", "-l", disk], check=True)


def connect_when_there(path: Path) -> engine.Engine:
    def accepts() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return path.exists() and client.connect_ex(str(path)) == 0

    wait_for(accepts)
    return engine.connect()


def load(target: engine.Engine, source_engine: engine.Engine, reference: str, name: str) -> None:
    if not target.has_image(name):
        images = target._client.images.load(b"".join(source_engine.save(reference)))
        target.tag(str(images[0].id), name)


def test_a_full_disk_is_one_sentence(small_engine: engine.Engine, root: Path, tree: Path) -> None:
    (root / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD + "RUN dd if=/dev/zero of=/big bs=1M count=2000\n")
    with pytest.raises(BuildError, match="the engine's disk is full: free some"):
        run(small_engine, root, tree)


def test_an_engine_without_a_bridge_builds_on_the_hosts_network(
    small_engine: engine.Engine, root: Path, tree: Path
) -> None:
    assert not small_engine.info().has_bridge
    (root / "dockerfiles" / "cpu.Dockerfile").write_text(HEAD + "RUN cat /proc/net/dev > /interfaces\n")
    built, _ = run(small_engine, root, tree)
    assert small_engine.image(built.image_id).labels[Label.VARIANT] == "cpu"


@pytest.fixture
def podman(monkeypatch: pytest.MonkeyPatch) -> Iterator[engine.Engine]:
    """An engine with docker's API but without BuildKit."""
    need("podman")
    # Podman refuses a run root of over 50 characters, which pytest's directories exceed.
    with tempfile.TemporaryDirectory() as directory:
        address = f"unix://{directory}/s"
        command = ["podman", f"--root={directory}/root", f"--runroot={directory}/run", "--storage-driver=vfs"]
        with subprocess.Popen([*command, "system", "service", "--time=0", address]) as process:
            monkeypatch.setenv("DOCKER_HOST", address)
            try:
                connected = connect_when_there(Path(directory) / "s")
                yield connected
                connected.close()
            finally:
                process.terminate()


def test_an_engine_without_buildkit_is_refused(podman: engine.Engine) -> None:
    with pytest.raises(EngineError, match="without BuildKit, which the recipes need"):
        podman.require_buildkit()


@pytest.mark.usefixtures("clean")
def test_a_failed_variant_is_named_and_the_others_are_built(engine: engine.Engine, tmp_path: Path, tree: Path) -> None:
    checkout = tmp_path / "checkout"
    clones.copy_files(checkout)
    for recipe in (checkout / "dockerfiles").glob("*.Dockerfile"):
        recipe.unlink()
    # In the table's order the failing variant is between two others.
    for name, last in (("cpu", ""), ("vulkan", "RUN echo the-reason && false\n"), ("cann", "ARG CHIP_TYPE\n")):
        (checkout / "dockerfiles" / f"{name}.Dockerfile").write_text(HEAD + last)
    clones.commit_all(checkout)
    options = ("--quiet", "--origin", "packages", "--source", str(tree))
    environment = {"BASE_IMAGES_REGISTRY": REGISTRY}
    done = commands.invoke("build-local", *options, cwd=checkout, environment=environment)

    assert done.returncode == 1, done.stdout + done.stderr
    assert f"built {REGISTRY}:cpu-" in done.stdout
    assert "the-reason" in done.stderr
    log = checkout / "build" / "logs" / "vulkan.log"
    assert f" Its log: {log}" in done.stderr
    assert "the-reason" in log.read_text()
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [row[:2] for row in table] == [["cpu", "built"], ["vulkan", "failed"], ["cann", "failed"]]
    assert table[0][4] == versions.local_reference("cpu")
    assert "cann: error: No Debian package has the compiler of CANN" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: failed: vulkan, cann (see above); done: cpu."
    assert "Traceback" not in done.stderr
    assert engine.has_image(versions.local_reference("cpu"))
