"""What a container that these commands start can take from its host, and what it gets to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from base_images.adapters import container as containers
from base_images.adapters import engine as engines
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import EngineError


def test_a_container_has_limits(engine: Engine, cpu_image: Image) -> None:
    spec = ContainerSpec(image=cpu_image.id, entrypoint=("sleep", "600"), memory=64 << 20)
    with engine.container(spec) as container:
        host = container._attributes()["HostConfig"]
    assert (host["PidsLimit"], host["Memory"]) == (containers.PROCESSES, 64 << 20)
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "1", "max-size": str(16 << 20)}}


def test_a_flood_of_output_is_bounded(engine: Engine, cpu_image: Image) -> None:
    flood = ("sh", "-c", "yes 0123456789012345678901234567890123456789 | head -c 40000000; echo the end")
    with engine.container(ContainerSpec(image=cpu_image.id, entrypoint=flood)) as container:
        container.start()
        assert container.wait(300) == 0
        log = container.logs()
    assert len(log) <= 16 << 20
    assert log.endswith("the end\n")
    with engine.container(ContainerSpec(image=cpu_image.id, entrypoint=("sleep", "600"))) as container:
        container.start()
        with pytest.raises(EngineError, match="printed more than 16 MiB"):
            container.execute(flood)
        assert container.execute(("echo", "small")).stdout == "small\n"


def test_the_proxy_of_docker_s_configuration_and_its_password_stay_outside(
    cpu_image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = "http://user:sekret@proxy.example:3128"
    kinds = ("httpProxy", "httpsProxy", "ftpProxy", "noProxy")
    (tmp_path / "config.json").write_text(json.dumps({"proxies": {"default": dict.fromkeys(kinds, proxy)}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    engine = engines.connect()
    try:
        spec = ContainerSpec(image=cpu_image.id, entrypoint=("sleep", "600"), environment={"A": "b"})
        with engine.container(spec) as container:
            container.start()
            seen = container.execute(("env",)).stdout + json.dumps(dict(container._attributes()))
    finally:
        engine.close()
    assert "A=b" in seen
    assert "sekret" not in seen
