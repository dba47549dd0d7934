"""The real engine elsewhere: behind ssh, behind TLS, in another network namespace, and as docker's contexts say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from base_images.adapters import endpoint
from base_images.adapters import engine as engines
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError
from base_images.settings import ROOT
from tests.support import elsewhere
from tests.support.registries import Authority

pytestmark = pytest.mark.skipif(
    elsewhere.engine_socket() is None or shutil.which("docker") is None,
    reason="needs docker's client and an engine with a socket on this machine",
)

DEVELOPMENT = "hostname devbox && ip link set lo up && exec"
"""Its own loopback and host name, as in a development container that has the host's socket."""

NAMESPACE = "ip link set lo up && exec"


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere.without_configuration(tmp_path, monkeypatch)


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)


def context(name: str, endpoint_options: str) -> None:
    """Stores a context with docker's own client."""
    done = docker("context", "create", name, "--docker", endpoint_options)
    assert done.returncode == 0, done.stderr


def test_behind_ssh(cpu_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = elsewhere.stand_in_for_ssh(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@Some-Host:2222")
    with closing(engines.connect()) as engine:
        assert not engine.is_local
        assert elsewhere.ask(engine, cpu_image.id)
    assert set(log.read_text().splitlines()) == {
        "-o ConnectTimeout=30 -T -l me -p 2222 -- Some-Host docker system dial-stdio"
    }
    monkeypatch.delenv("DOCKER_HOST")
    context("far", "host=ssh://you@far")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    with closing(engines.connect()) as engine:
        assert engine.image(cpu_image.id).id == cpu_image.id
    assert log.read_text().splitlines()[-1] == "-o ConnectTimeout=30 -T -l you -- far docker system dial-stdio"


def test_behind_tls(cpu_image: Image, tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"ca": authority.authority, "cert": authority.certificate, "key": authority.key}
    for name, path in files.items():
        shutil.copy(path, tmp_path / f"{name}.pem")
    with elsewhere.behind_tls(authority) as address:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://{address}")
        with pytest.raises(EngineError, match=f"No container engine answers at tcp://{address}"):
            engines.connect()
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
        with closing(engines.connect()) as engine:
            assert elsewhere.ask(engine, cpu_image.id)
            spec = ContainerSpec(image=cpu_image.id, entrypoint=("/bin/sleep", "1000"), publish=8080)
            with engine.container(spec) as container:
                container.start()
                done = container.execute(("sh", "-c", "head -c 100000 /dev/zero; echo bad >&2; exit 3"))
                assert (len(done.stdout), done.stderr, done.exit_code) == (100_000, "bad\n", 3)
        for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
            monkeypatch.delenv(name)
        context("tls", f"host=tcp://{address}," + ",".join(f"{name}={path}" for name, path in files.items()))
        monkeypatch.setenv("DOCKER_CONTEXT", "tls")
        with closing(engines.connect()) as engine:
            assert engine.image(cpu_image.id).id == cpu_image.id


@pytest.mark.parametrize(("flags", "setup"), [("--net --uts", DEVELOPMENT), ("--net", NAMESPACE)])
def test_from_another_network(cpu_image: Image, flags: str, setup: str) -> None:
    unshare = ["unshare", *flags.split(), "sh", "-c"]
    if subprocess.run([*unshare, f"{setup} true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs root, unshare and ip to make a network namespace")
    command = [*unshare, f'{setup} "$@"', "sh", sys.executable, "-m", "tests.support.elsewhere", cpu_image.id]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "by a tunnel\n", "")


def test_here_the_published_port_is_asked(engine: Engine, cpu_image: Image) -> None:
    assert not elsewhere.ask(engine, cpu_image.id)


def test_an_image_without_bash_is_refused_at_once(
    cpu_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere.stand_in_for_ssh(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("DOCKER_HOST", "ssh://host")
    nothing_found = {"PATH": "/nowhere"}
    spec = ContainerSpec(image=cpu_image.id, entrypoint=("/bin/sleep", "1000"), publish=8080, environment=nothing_found)
    with closing(engines.connect()) as engine, engine.container(spec) as container:
        container.start()
        with pytest.raises(EngineError, match=r"the image has no bash .*: run the same command where the engine runs"):
            container.port(8080)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"DOCKER_HOST": "tcp://127.0.0.1"},
        {"DOCKER_HOST": "host:1"},
        {"DOCKER_HOST": "tcp://:1"},
        {"DOCKER_HOST": "tcp://me:secret@Host:1"},
        {"DOCKER_HOST": "ssh://me@Host"},
        {"DOCKER_HOST": "unix://"},
        {"DOCKER_CONTEXT": "default"},
        {"DOCKER_CONTEXT": "one"},
        {"DOCKER_CONTEXT": "one", "DOCKER_HOST": ""},
        {"DOCKER_CONTEXT": "one", "DOCKER_HOST": "tcp://127.0.0.1:1"},
        {"DOCKER_CONTEXT": "typo", "DOCKER_HOST": "tcp://127.0.0.1:1"},
        {"DOCKER_CONTEXT": "typo"},
    ],
)
@pytest.mark.parametrize("current", ["", "two", "gone"])
def test_docker_itself_chooses_the_same_engine(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], current: str
) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    context("one", "host=tcp://one:1")
    context("two", "host=ssh://two")
    configuration = Path(os.environ["DOCKER_CONFIG"], "config.json")
    if current:
        configuration.write_text(json.dumps({"currentContext": current}))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}")
    if told.returncode != 0:
        with pytest.raises(EngineError, match="does not exist"):
            endpoint.resolve()
    else:
        assert endpoint.resolve().address.lower() == told.stdout.strip().lower()
