"""A container's access to a device on a real engine, granted in every way; no device is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from base_images import settings, variants, versions
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import DeviceError, EngineError
from base_images.smoke import checks_http, device, model
from base_images.smoke.host import Host
from base_images.smoke.model import TensorType
from base_images.smoke.process import free_port
from base_images.variants import DeviceAccess, Gpus
from tests.support import commands
from tests.support.programs import engine_sees, need

PROJECT = "bodhi-device-test"
GROUP = 4242
NODES = ("/dev/kmsg", "/dev/net")
"""A device node, and a directory with one, which every Linux host has and no container gets by default."""


@pytest.fixture(scope="session")
def compose() -> list[str]:
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    need("docker-compose")
    return ["docker-compose"]


@pytest.fixture
def variant(tmp_path: Path) -> variants.Variant:
    """Returns a variant whose device exists on every Linux host."""
    if not all(Path(node).exists() for node in NODES):
        pytest.skip(f"needs {' and '.join(NODES)}")
    node = tmp_path / "node"
    node.touch()
    if os.geteuid() == 0:
        os.chown(node, 0, GROUP)
    access = DeviceAccess(
        name="X",
        check="x",
        nodes=NODES,
        group_nodes=(str(node),),
        runtime="io.containerd.runc.v2",  # not the default
        mounts=("/usr/lib/os-release",),
        environment={"DEVICE_TEST": "yes"},
    )
    return dataclasses.replace(variants.find("rocm"), name="device-test", device=access)


@pytest.fixture
def models(cpu_image: Image, tmp_path: Path) -> Path:
    """Yields a directory that the engine can mount."""
    made = tmp_path / "models"
    made.mkdir()
    (made / "model.gguf").touch()
    if not engine_sees(cpu_image.id, made):
        pytest.skip("the engine does not see this machine's files")
    return made


@pytest.fixture
def tagged(engine: Engine, cpu_image: Image) -> Iterator[str]:
    """Yields the name of a registry by which the engine has the cpu image, tagged as the variant and as cpu."""
    references = [f"{PROJECT}:{versions.latest_tag(name)}" for name in ("device-test", "cpu")]
    for reference in references:
        engine.tag(cpu_image.id, reference)
    yield PROJECT
    for reference in references:
        engine.remove_image(reference)


def given(container: str) -> dict[str, Any]:
    """Returns what a container was granted, according to the engine."""
    with contextlib.closing(docker.from_env().api) as api:
        found = api.inspect_container(container)
    host = found["HostConfig"]
    return {
        "nodes": sorted(
            (node["PathOnHost"], node["PathInContainer"], node["CgroupPermissions"]) for node in host["Devices"] or ()
        ),
        "groups": host["GroupAdd"],
        "gpus": [(request["Count"], request["Capabilities"]) for request in host["DeviceRequests"] or ()],
        "runtime": host["Runtime"],
        "mounts": [
            (mount["Source"], mount["RW"]) for mount in found["Mounts"] if mount["Destination"] == "/usr/lib/os-release"
        ],
        "environment": [pair for pair in found["Config"]["Env"] if pair.startswith("DEVICE_TEST")],
    }


def script(text: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run(["sh", "-eu", "-c", text], cwd=directory, env={**os.environ, **environment})


@contextlib.contextmanager
def composed(command: list[str], directory: Path, text: str) -> Iterator[str]:
    """Yields the compose command in a directory with the file, and runs `down` afterwards."""
    (directory / device.COMPOSE_FILE).write_text(text, encoding="utf-8")
    words = f"{' '.join(command)} --project-name {PROJECT} --file {device.COMPOSE_FILE} --profile device-test"
    words += " --profile cpu"
    try:
        yield words
    finally:
        done = script(f"{words} down --volumes --timeout 5", directory)
        assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("models")
def test_engine_command_line_and_compose_grant_the_same(
    engine: Engine,
    variant: variants.Variant,
    tagged: str,
    tmp_path: Path,
    compose: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = f"{tagged}:latest-device-test"
    spec = device.grant(ContainerSpec(image=image), device.of_host(variant, engine.devices()))
    with engine.container(spec) as container:
        ours = given(container.id)
    group = (tmp_path / "node").stat().st_gid
    assert ours == {
        "nodes": [(node, node, "rwm") for node in NODES],
        "groups": [str(group)],
        "gpus": [],
        "runtime": "io.containerd.runc.v2",
        "mounts": [("/usr/lib/os-release", False)],
        "environment": ["DEVICE_TEST=yes"],
    }

    line = device.run_line(variant, image).replace("docker run -d --rm --name llama", "docker create")
    done = script(line, tmp_path)
    assert done.returncode == 0, done.stderr
    try:
        assert given(done.stdout.strip()) == ours
    finally:
        script(f"docker rm {done.stdout.strip()}", tmp_path)

    monkeypatch.setattr(device, "VARIANTS", (variant,))
    with composed(compose, tmp_path, device.compose(tagged)) as words:
        done = script(f"{words} up --no-start && {words} ps -q -a", tmp_path, NODE_GROUP=str(group))
        assert done.returncode == 0, done.stderr
        assert given(done.stdout.split()[-1]) == ours


def test_a_process_has_the_container_s_groups_nodes_and_mounts(
    engine: Engine, cpu_image: Image, variant: variants.Variant
) -> None:
    granted = device.of_host(variant, engine.devices())
    look = "id -G; ls -d /dev/*; ls /dev/net; grep os-release /proc/self/mounts; env; touch /tmp/x && ls /tmp"
    spec = ContainerSpec(image=cpu_image.id, entrypoint=("/bin/sh", "-c", look), user="54321:54321")
    seen = engine.probe(device.grant(spec, granted)).output
    without = engine.probe(spec).output
    for word in (f"54321 {granted.groups[0]}\n", "/dev/kmsg\n", "tun\n", "/os-release ", "DEVICE_TEST=yes\n", "\nx\n"):
        assert word in seen
        assert word not in without


# --- a vendor's GPUs ---

LOADED = "LD_PRELOAD=libcuda.so.1 ls /dev/null"
"""Makes the loader look for the library, and say what is wrong with it."""


def with_gpus(**changes: Any) -> variants.Variant:
    """Returns a variant with GPUs whose driver's control node every host has."""
    gpus = Gpus(capabilities=("compute", "utility"), library="libcuda.so.1", control=("/dev/null",))
    access = DeviceAccess(name="X", check="x", gpus=dataclasses.replace(gpus, **changes))
    return dataclasses.replace(variants.find("cuda"), name="device-test", device=access)


def look(engine: Engine, image: Image, granted: device.Granted, script: str) -> str:
    """Returns what a hardened container with the device prints."""
    spec = ContainerSpec(image=image.id, entrypoint=("/bin/sh", "-c", script), user="54321:54321")
    return engine.probe(device.grant(spec, granted)).output


@pytest.mark.usefixtures("models")
def test_gpus_are_requested_with_the_capabilities(
    engine: Engine, tagged: str, tmp_path: Path, compose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, image = with_gpus(), f"{tagged}:latest-device-test"
    granted = device.choose(variant, Host(groups={"/dev/null": 0}, toolkit=True))
    with engine.container(device.grant(ContainerSpec(image=image), granted)) as container:
        assert given(container.id)["gpus"] == [(-1, [["gpu", "compute", "utility"]])]
    done = script(device.run_line(variant, image).replace("docker run -d --rm --name llama", "docker create"), tmp_path)
    assert done.returncode == 0, done.stderr
    try:
        assert given(done.stdout.strip())["gpus"] == [(-1, [["gpu"]])]
    finally:
        script(f"docker rm {done.stdout.strip()}", tmp_path)
    monkeypatch.setattr(device, "VARIANTS", (variant,))
    with composed(compose, tmp_path, device.compose(tagged)) as words:
        done = script(f"{words} up --no-start && {words} ps -q -a", tmp_path)
        assert done.returncode == 0, done.stderr
        assert given(done.stdout.split()[-1])["gpus"] == [(-1, [["gpu"]])]


def test_a_container_gets_the_nodes_and_libraries_of_the_host_s_driver(engine: Engine, cpu_image: Image) -> None:
    variant = with_gpus(nodes=("/dev/kmsg",), optional=())
    host = Host(groups={"/dev/null": 0, "/dev/kmsg": GROUP}, libraries={"libcuda.so.1": "/usr/lib/os-release"})
    granted = device.choose(variant, host)
    seen = look(engine, cpu_image, granted, f"id -G; ls /dev/kmsg; grep nvidia /proc/self/mounts; {LOADED}")
    assert f"54321 {GROUP}\n/dev/kmsg\n" in seen
    assert re.search(r" /usr/local/nvidia/lib64/libcuda\.so\.1 \S+ ro,", seen)
    assert "libcuda.so.1' from LD_PRELOAD cannot be preloaded (invalid ELF header)" in seen
    without = look(engine, cpu_image, device.Granted(name="X"), LOADED)
    assert "libcuda.so.1' from LD_PRELOAD cannot be preloaded (cannot open shared object file)" in without


@pytest.fixture
def described(cpu_image: Image) -> Iterator[str]:
    """Yields the name of a device that the engine's machine describes for a while."""
    kind = f"example.com/bodhi-test-{os.getpid()}"
    edits = {"env": ["DESCRIBED=yes"], "deviceNodes": [{"path": "/dev/described", "hostPath": "/dev/null"}]}
    spec = {"cdiVersion": "0.5.0", "kind": kind, "devices": [{"name": "all", "containerEdits": edits}]}
    path = f"/cdi/{kind.partition('/')[2]}.json"
    with contextlib.closing(docker.from_env()) as client:
        directories = client.info().get("CDISpecDirs")
        if not directories:
            pytest.skip("this engine has no device descriptions (CDI): Engine 28 has them by default")

        def run(command: str) -> None:
            client.containers.run(
                cpu_image.id, ["-c", command], entrypoint="/bin/sh", user="0", remove=True, network_mode="none",
                volumes=[f"{directories[-1]}:/cdi"],
            )  # fmt: skip

        try:
            run(f"cat >{path} <<'END'\n{json.dumps(spec)}\nEND\n")
            yield f"{kind}=all"
        finally:
            run(f"rm -f {path}")


def test_a_container_gets_a_described_device(engine: Engine, cpu_image: Image, described: str) -> None:
    devices = engine.devices()
    assert described in devices.cdi
    granted = device.of_host(with_gpus(cdi=described, helpers=("no-such-program", "no-such-program")), devices)
    assert granted.how == f"the device description (CDI) {described}"
    seen = look(engine, cpu_image, granted, "ls /dev/described; env")
    assert "/dev/described\n" in seen
    assert "DESCRIBED=yes\n" in seen


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": ("/dev/no-such-node",)}, r"/dev/no-such-node.*no such file"),
        ({"mounts": ("/no-such-directory",)}, "/no-such-directory"),
        ({"runtime": "no-such-runtime"}, "no-such-runtime"),
        ({"gpus": ("graphics",)}, "could not select device driver|no known GPU vendor"),
        ({"cdi": ("example.com/no-such=device",)}, "example.com/no-such=device|could not select device driver"),
    ],
)
def test_what_the_host_lacks_is_an_engine_error(
    engine: Engine, cpu_image: Image, changes: dict[str, Any], said: str
) -> None:
    spec = dataclasses.replace(ContainerSpec(image=cpu_image.id, command=("true",)), **changes)
    with pytest.raises(EngineError, match=said), engine.container(spec) as container:
        container.start()


# --- compose ---


def test_compose_accepts_the_file_with_a_profile_per_variant(compose: list[str]) -> None:
    for variant in variants.VARIANTS:
        done = commands.run(
            [*compose, "--file", device.COMPOSE_FILE, "--profile", variant.name, "config", "--services"]
        )
        assert done.returncode == 0, done.stderr
        assert variant.name in done.stdout.split()


@pytest.mark.usefixtures("models")
def test_a_missing_group_is_named(
    tagged: str, variant: variants.Variant, tmp_path: Path, compose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variant.device
    access = DeviceAccess(name="X", check="x", group_nodes=variant.device.group_nodes)
    monkeypatch.setattr(device, "VARIANTS", (dataclasses.replace(variant, device=access),))
    with composed(compose, tmp_path, device.compose(tagged)) as words:
        done = script(f"{words} up --detach", tmp_path)
    assert done.returncode != 0
    assert "NODE_GROUP is not set, see compose.yaml" in done.stderr


def test_compose_starts_a_server(
    tagged: str, tmp_path: Path, compose: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = model.known_answer(TensorType.Q8_0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.gguf").write_bytes(answer.gguf)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(device, "VARIANTS", (variants.find("cpu"),))
    with composed(compose, tmp_path, device.compose(tagged)) as words:
        command = (
            f"{words} up --detach && curl --fail --silent --retry 20 --retry-delay 1 --retry-all-errors {url}/health"
        )
        done = script(command, tmp_path, MODELS="./mine", MODEL="small.gguf", PORT=str(port))
        if "bind source path does not exist" in done.stderr:
            pytest.skip("the engine does not see this machine's files")
        assert done.returncode == 0, done.stderr
        checks_http.check_completion(checks_http.Target(url=url, alias="/models/small.gguf", answer=answer))
        container = script(f"{words} ps -q", tmp_path).stdout.strip()
        with contextlib.closing(docker.from_env().api) as api:
            host = api.inspect_container(container)["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]


# --- the command line ---


def test_a_missing_device_is_reported_before_anything_starts() -> None:
    for variant in variants.VARIANTS:
        if variant.device is None or any(Path(node).exists() for node in ("/dev/dri", "/dev/nvidiactl", "/dev/dxg")):
            continue
        done = commands.invoke("test-local-images", "--variant", variant.name, "--device", "--image", "not-looked-for")
        assert (done.returncode, done.stdout) == (DeviceError.exit_code, ""), variant.name
        assert len(done.stderr.splitlines()) == 1
        assert f"{variant.name} needs: install" in done.stderr  # and not that the image is missing


def test_devices_that_cannot_be_requested() -> None:
    done = commands.invoke("test-local-images", "--variant", "vulkan", "--device", "--software-device")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--device and --software-device exclude each other" in done.stderr
    done = commands.invoke("test-local-images", "--variant", "cuda", "--software-device")
    assert (done.returncode, done.stdout) == (DeviceError.exit_code, "")
    assert "only vulkan has one" in done.stderr


def test_the_compose_file_is_what_the_task_prints() -> None:
    assert commands.invoke("compose").stdout == (settings.ROOT / device.COMPOSE_FILE).read_text(encoding="utf-8")
