"""`invoke doctor` with a real engine, without one, and without a network."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import settings, variants
from base_images.adapters.engine import Engine, Image
from base_images.doctor import doctor
from base_images.doctor import machine as host
from base_images.errors import ImageNotFoundError
from tests.support import commands, machines

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}
CUDA_IMAGE = "bodhi-doctor-test:cuda"

has_nvidia = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


PATIENCE = 20
"""A long time limit in seconds, so that a busy machine's engine does not count as unreachable."""

PATIENT = f"""
from base_images.doctor import machine
from invoke.main import program
machine.ANSWER_SECONDS = {PATIENCE}
program.run()
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = commands.run(
        [sys.executable, "-c", PATIENT, "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(settings.ROOT / "scripts"), **environment},
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def test_the_engine_and_every_variant(engine: Engine, cpu_image: Image) -> None:
    done = run("--json")
    facts = json.loads(done.stdout)
    info = engine.info()
    assert (facts["engine"]["version"], facts["engine"]["api_version"]) == (info.version, info.api_version)
    assert facts["engine"]["buildkit"]
    assert facts["engine"]["storage_driver"]
    assert [report["variant"] for report in facts["variants"]] == [variant.name for variant in variants.VARIANTS]
    cpu = facts["variants"][0]
    assert cpu["ready"]["smoke"]
    assert cpu["image_version"] == cpu_image.labels["org.opencontainers.image.version"]
    assert done.returncode == (0 if cpu["ready"]["build"] and not facts["missing"] else 1), facts

    text = run().stdout
    for word in (
        info.version,
        facts["engine"]["storage_driver"],
        "registries",
        *(variant.name for variant in variants.VARIANTS),
    ):
        assert word in text


@pytest.mark.skipif(has_nvidia, reason="this machine may have a device of NVIDIA's")
def test_a_missing_device() -> None:
    done = run("--variant", "cuda")
    assert done.returncode == 1
    assert "This host has no /dev/nvidiactl or /dev/dxg" in done.stdout
    assert "`nvidia-smi`" in done.stdout
    assert "rocm" not in done.stdout


def test_a_variant_without_a_device() -> None:
    assert run("--variant", "cpu").returncode == run().returncode


def test_without_an_engine_the_report_has_the_machine_and_a_remedy() -> None:
    done = run(**NO_ENGINE)
    assert done.returncode == doctor.NO_ENGINE
    assert f"Linux {os.uname().release}" in done.stdout
    assert "No container engine answers at unix:///nowhere/docker.sock (there is no such socket)" in done.stdout
    assert "`docker version`" in done.stdout
    assert done.stderr == ""
    facts = json.loads(run("--json", **NO_ENGINE).stdout)
    assert facts["engine"] is None
    assert not any(report["ready"]["build"] or report["ready"]["smoke"] for report in facts["variants"])


def test_bad_input() -> None:
    for arguments, exit_code, said in (
        (("--variant", "cuba"), 2, "did you mean cuda?"),
        (("--image", "x"), 2, "name that with --variant"),
        (("--variant", "cpu", "--image", "no-such-image:at-all"), 4, "There is no image 'no-such-image:at-all'"),
    ):
        done = run(*arguments)
        assert done.returncode == exit_code
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture
def cuda_image(engine: Engine, tmp_path: Path) -> Iterator[str]:
    """An image with the labels of CUDA 12.4."""
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    changes = ["LABEL bodhi.toolkit.cuda=12.4.1 bodhi.variant=cuda org.opencontainers.image.version=2508201420-abc1234"]
    engine.import_filesystem(tmp_path / "empty.tar", CUDA_IMAGE, changes)
    yield CUDA_IMAGE
    engine.remove_image(CUDA_IMAGE)


@pytest.mark.parametrize(("driver", "exit_code"), [("550.54.14", 0), ("470.256.02", 1)])
def test_a_driver_for_a_real_image(
    engine: Engine,
    cuda_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    exit_code: int,
) -> None:
    if not engine.is_local:
        pytest.skip("the engine's devices cannot be seen from here")
    machines.nvidia(tmp_path, driver)
    machines.put(tmp_path, "/bin/nvidia-container-runtime-hook", "#!/bin/sh\n")
    (tmp_path / "bin/nvidia-container-runtime-hook").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(host, "ANSWER_SECONDS", PATIENCE)
    cuda = variants.find("cuda")
    report = doctor.examine(
        [cuda], checkout=settings.ROOT, registry="127.0.0.1:1/x", by_name=True, image=cuda_image, root=tmp_path
    )
    (cuda_report,) = report.variants
    assert (cuda_report.image_version, cuda_report.toolkit) == ("2508201420-abc1234", {"cuda": "12.4.1"})
    assert cuda_report.smokes == (exit_code == 0)
    assert report.exit_code == exit_code
    if exit_code:
        assert (
            "The driver is 470.256.02, and the image's CUDA 12.4.1 needs at least 525.60.13" in cuda_report.no_device[0]
        )


def test_a_missing_image_is_an_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ANSWER_SECONDS", PATIENCE)
    assert not engine.has_image("no-such-image:at-all")
    with pytest.raises(ImageNotFoundError):
        doctor.examine(
            [variants.find("cpu")], checkout=settings.ROOT, registry="x", by_name=True, image="no-such-image:at-all"
        )


SWALLOWING_NETWORK = """\
ip link add v0 type veth peer name v1
ip addr add 10.9.9.1/24 dev v0
ip link set v0 up
ip link set v1 up
ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:09 dev v0
ip route add default via 10.9.9.2
printf 'nameserver 203.0.113.1\\noptions timeout:30 attempts:5\\n' >"$0/resolv.conf"
mount --bind "$0/resolv.conf" /etc/resolv.conf
"""
"""A network that drops every packet: a name lookup takes 150 seconds, and a connection attempt 130."""


def test_it_does_not_wait_for_a_network_that_drops_packets(tmp_path: Path) -> None:
    def within(script: str) -> subprocess.CompletedProcess[str]:
        return commands.run(
            ["unshare", "--net", "--mount", "sh", "-eu", "-c", SWALLOWING_NETWORK + script, str(tmp_path)]
        )

    if not (os.geteuid() == 0 and shutil.which("unshare") and shutil.which("ip") and within("true").returncode == 0):
        pytest.skip("needs a network namespace: run as root, with iproute2")
    command = shlex.join([*commands.INVOKE, "doctor"])
    for environment in ("", "DOCKER_HOST=tcp://203.0.113.7:2375 ", "DOCKER_HOST=tcp://engine.example.org:2375 "):
        started = time.monotonic()
        done = within(f"{environment}{command}")
        seconds = time.monotonic() - started
        assert "no answer within" in done.stdout, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        print(f"{environment or 'the local engine'}: {seconds:.1f} s")  # noqa: T201 - 1.2 s and what Python takes
        assert seconds < 120, "it waited for the network"
