"""Access to a device: from files in place of device nodes, and as text."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from base_images import settings, variants
from base_images.adapters.container import ContainerSpec
from base_images.errors import DeviceError
from base_images.smoke import device
from base_images.variants import DeviceAccess, Variant

KFD_GROUP, RENDER_GROUP = 4242, 4243


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Creates files in place of the nodes of a host with an AMD GPU, each with its own group if run by root."""
    (tmp_path / "dri").mkdir()
    (tmp_path / "driver").mkdir()
    for name, group in (("kfd", KFD_GROUP), ("dri/renderD128", RENDER_GROUP)):
        (tmp_path / name).touch()
        if os.geteuid() == 0:
            os.chown(tmp_path / name, 0, group)
    return tmp_path


def with_device(host: Path, **changes: Any) -> Variant:
    access = DeviceAccess(
        name="ROCm",
        check="rocminfo",
        nodes=(f"{host}/kfd", f"{host}/dri"),
        group_nodes=(f"{host}/kfd", f"{host}/dri/renderD128", f"{host}/kfd"),
        mounts=(f"{host}/driver",),
        environment={"SEEN": "all"},
    )
    return dataclasses.replace(variants.find("rocm"), device=dataclasses.replace(access, **changes))


def test_a_host_with_the_device(host: Path) -> None:
    granted = device.of_host(with_device(host), runtimes=())
    assert granted == device.Granted(
        name="ROCm",
        nodes=(f"{host}/kfd", f"{host}/dri"),
        groups=(KFD_GROUP, RENDER_GROUP) if os.geteuid() == 0 else ((host / "kfd").stat().st_gid,),
        mounts=(f"{host}/driver",),
        environment={"SEEN": "all"},
    )


@pytest.mark.parametrize("missing", ["kfd", "dri/renderD128", "driver"])
def test_a_missing_device_names_the_command_that_shows_it(host: Path, missing: str) -> None:
    path = host / missing
    path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(DeviceError, match=r"until `rocminfo` shows it") as caught:
        device.of_host(with_device(host), runtimes=())
    assert f"This host has no {path}, which the ROCm device of rocm needs" in str(caught.value)


def test_all_missing_paths_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        device.of_host(with_device(tmp_path), runtimes=())
    for name in ("kfd", "dri", "dri/renderD128", "driver"):
        assert str(caught.value).count(f"no {tmp_path}/{name},") == 1


def test_one_of_the_driver_nodes_is_required(host: Path) -> None:
    gpus = with_device(host, gpus=True, nodes=(), group_nodes=(), driver_nodes=(f"{host}/nothing", f"{host}/kfd"))
    assert device.of_host(gpus, runtimes=()).gpus
    (host / "kfd").unlink()
    with pytest.raises(DeviceError, match=f"no {host}/nothing or {host}/kfd, which"):
        device.of_host(gpus, runtimes=())


def test_an_unknown_runtime_is_an_error(host: Path) -> None:
    variant = with_device(host, runtime="mthreads")
    assert device.of_host(variant, runtimes={"runc", "mthreads"}).runtime == "mthreads"
    with pytest.raises(DeviceError, match="does not know the container runtime mthreads, which rocm needs"):
        device.of_host(variant, runtimes={"runc"})


def test_a_variant_without_a_device_is_an_error() -> None:
    for ask in (lambda cpu: device.of_host(cpu, runtimes=()), device.in_software):
        with pytest.raises(DeviceError, match="The variant cpu uses no device: leave --device out"):
            ask(variants.find("cpu"))


def test_a_device_in_software_needs_nothing_of_the_host() -> None:
    vulkan = variants.find("vulkan")
    assert vulkan.device
    granted = device.in_software(vulkan)
    assert granted == device.Granted(name="Vulkan", software=True, environment=vulkan.device.software)
    with pytest.raises(DeviceError, match="emulates the CUDA device of cuda: only vulkan has one"):
        device.in_software(variants.find("cuda"))


def test_granting_a_device_keeps_the_container_s_settings() -> None:
    spec = ContainerSpec(image="i", environment={"A": "1"}, tmpfs={"/run": ""}, publish=1)
    granted = device.Granted(name="X", nodes=("/dev/x",), groups=(7,), gpus=True, runtime="r", environment={"B": "2"})
    assert device.grant(spec, granted) == ContainerSpec(
        image="i",
        environment={"A": "1", "B": "2"},
        tmpfs={"/run": "", "/tmp": "mode=1777"},
        publish=1,
        devices=("/dev/x",),
        groups=(7,),
        gpus=True,
        runtime="r",
    )


def test_every_device_has_a_command_that_shows_it() -> None:
    for variant in variants.VARIANTS:
        assert (variant.device is None) == (variant.name == "cpu")
        assert variant.device is None or (variant.device.name and variant.device.check)


def test_a_command_line() -> None:
    assert device.run_line(variants.find("rocm"), "IMAGE") == (
        "docker run -d --rm --name llama --device /dev/kfd --device /dev/dri "
        '--group-add "$(stat -c %g /dev/kfd)" --group-add "$(stat -c %g /dev/dri/renderD128)" '
        '-p 127.0.0.1:8080:8080 -v "$PWD/models:/models:ro" '
        "IMAGE --host 0.0.0.0 --port 8080 --model /models/model.gguf"
    )


def test_the_readme_has_the_command_of_every_variant() -> None:
    readme = (settings.ROOT / "README.md").read_text(encoding="utf-8")
    registry = settings.load().registry
    assert f"```sh\n{device.run_line(variants.find('cpu'), f'{registry}:latest-cpu')}\n" in readme
    # Not an `sh` block: a test runs every block of that kind, and these need devices.
    assert f"```shell\n{device.run_lines(registry)}```\n" in readme


def test_the_compose_file_is_up_to_date() -> None:
    committed = (settings.ROOT / device.COMPOSE_FILE).read_text(encoding="utf-8")
    assert committed == device.compose(settings.load().registry), "run `invoke compose > compose.yaml`"
