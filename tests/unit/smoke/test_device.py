"""Access to a device: from files in place of device nodes, and as text."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from base_images import settings, variants
from base_images.adapters.container import ContainerSpec
from base_images.adapters.devices import EngineDevices
from base_images.errors import DeviceError
from base_images.smoke import device
from base_images.smoke.device import Where
from base_images.smoke.host import Host
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


@pytest.fixture(autouse=True)
def local_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")  # the address is read, and no engine is asked


def test_a_host_with_the_device(host: Path) -> None:
    granted = device.of_host(with_device(host))
    assert granted == device.Granted(
        name="ROCm",
        how=f"the nodes {host}/kfd and {host}/dri, files of the host's driver, mounted read-only",
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
        device.of_host(with_device(host))
    assert f"This host has no {path}, which the ROCm device of rocm needs" in str(caught.value)


def test_all_missing_paths_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        device.of_host(with_device(tmp_path))
    for name in ("kfd", "dri", "dri/renderD128", "driver"):
        assert str(caught.value).count(f"no {tmp_path}/{name},") == 1


def test_an_unknown_runtime_is_an_error(host: Path) -> None:
    variant = with_device(host, runtime="mthreads")
    assert device.of_host(variant, EngineDevices(runtimes=frozenset({"runc", "mthreads"}))).runtime == "mthreads"
    with pytest.raises(DeviceError, match="does not know the container runtime mthreads, which rocm needs"):
        device.of_host(variant, EngineDevices(runtimes=frozenset({"runc"})))


def test_a_variant_without_a_device_is_an_error() -> None:
    for ask in (device.of_host, device.in_software):
        with pytest.raises(DeviceError, match="The variant cpu uses no device: leave --device out"):
            ask(variants.find("cpu"))


# --- A vendor's GPUs: described hosts, and what a container gets. ---

CUDA, VULKAN = variants.find("cuda"), variants.find("vulkan")

NVIDIA_NODES = {
    "/dev/nvidiactl": 0,
    "/dev/nvidia0": 0,
    "/dev/nvidia1": 0,
    "/dev/nvidia-uvm": 0,
    "/dev/nvidia-uvm-tools": 0,
    "/dev/nvidia-modeset": 0,
}
LIBRARIES = {
    "libcuda.so.1": "/lib/x86_64-linux-gnu/libcuda.so.1",
    "libnvidia-ml.so.1": "/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
    "libGLX_nvidia.so.0": "/lib/x86_64-linux-gnu/libGLX_nvidia.so.0",
}
MANIFEST = "/usr/share/vulkan/icd.d/nvidia_icd.json"
MESA = {"/dev/dri": 0, "/dev/dri/renderD128": RENDER_GROUP}
RUNTIME = EngineDevices(runtimes=frozenset({"runc", "nvidia"}))
CDI = EngineDevices(runtimes=frozenset({"runc"}), cdi=frozenset({"nvidia.com/gpu=0", "nvidia.com/gpu=all"}))


def nvidia(**changes: Any) -> Host:
    """Returns a host with NVIDIA's driver for every purpose, and an engine that knows no way to give its GPUs."""
    return dataclasses.replace(Host(groups=NVIDIA_NODES, libraries=LIBRARIES, manifest=MANIFEST), **changes)


def test_the_toolkit_comes_first() -> None:
    granted = device.choose(CUDA, nvidia(toolkit=True, engine=CDI))
    assert granted == device.Granted(
        name="CUDA",
        how="--gpus all (compute,utility)",
        gpus=("compute", "utility"),
    )
    assert device.choose(CUDA, nvidia(toolkit=True, engine=RUNTIME)) == dataclasses.replace(
        granted, how="--gpus all and --runtime nvidia (compute,utility)", runtime="nvidia"
    )


def test_vulkan_asks_the_toolkit_for_graphics_and_the_loaders_file() -> None:
    granted = device.choose(VULKAN, nvidia(toolkit=True))
    assert granted.gpus == ("graphics", "compute", "utility")
    assert (granted.runtime, granted.placed) == ("", {"/etc/vulkan/icd.d/nvidia_icd.json": MANIFEST})
    granted = device.choose(VULKAN, nvidia(toolkit=True, engine=RUNTIME))
    assert (granted.runtime, granted.placed) == ("nvidia", {})  # which places that file itself


@pytest.mark.parametrize(("variant", "capabilities"), [(CUDA, "compute,utility"), (VULKAN, "graphics,compute,utility")])
def test_the_runtime_is_enough(variant: Variant, capabilities: str) -> None:
    granted = device.choose(variant, nvidia(engine=RUNTIME, libraries={}, manifest=""))
    assert granted == device.Granted(
        name=granted.name,
        how=f"the container runtime nvidia ({capabilities})",
        runtime="nvidia",
        environment={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": capabilities},
    )


@pytest.mark.parametrize("variant", [CUDA, VULKAN])
def test_device_descriptions_come_second(variant: Variant) -> None:
    granted = device.choose(variant, nvidia(engine=CDI))
    assert granted == device.Granted(
        name=granted.name, how="the device description (CDI) nvidia.com/gpu=all", cdi=("nvidia.com/gpu=all",)
    )
    some = dataclasses.replace(CDI, cdi=frozenset({"nvidia.com/gpu=0"}))
    assert not device.choose(variant, nvidia(engine=some)).cdi


def test_nodes_and_libraries_come_last() -> None:
    granted = device.choose(CUDA, nvidia())
    assert granted.nodes == tuple(NVIDIA_NODES)
    assert granted.placed == {f"/usr/local/nvidia/lib64/{name}": path for name, path in LIBRARIES.items()}
    assert granted.environment == {"LD_LIBRARY_PATH": "/usr/local/nvidia/lib64"}
    assert granted.groups == ()
    assert granted.how.endswith("and /dev/nvidia-modeset, 3 libraries of the host's driver, mounted read-only")
    placed = {"/etc/vulkan/icd.d/nvidia_icd.json": MANIFEST, **granted.placed}
    assert device.choose(VULKAN, nvidia()) == dataclasses.replace(granted, name="Vulkan", placed=placed)


def test_the_groups_of_nodes_that_not_everybody_may_open() -> None:
    assert device.choose(CUDA, nvidia(groups={**NVIDIA_NODES, "/dev/nvidia0": 44})).groups == (44,)


@pytest.mark.parametrize(
    ("variant", "missing", "changes"),
    [
        (CUDA, "/dev/nvidia[0-9]* is", {"groups": {"/dev/nvidiactl": 0, "/dev/nvidia-uvm": 0}}),
        (
            CUDA,
            "/dev/nvidia-uvm, libcuda.so.1 are",
            {"groups": {**NVIDIA_NODES, "/dev/nvidia-uvm": None}, "libraries": {}},
        ),
        (VULKAN, "libGLX_nvidia.so.0 is", {"libraries": {"libcuda.so.1": LIBRARIES["libcuda.so.1"]}}),
        (VULKAN, "/usr/share/vulkan/icd.d/nvidia_icd*.json is", {"manifest": ""}),
        (CUDA, "libcuda.so.1 are", {"groups": {"/dev/dxg": 0}, "libraries": {}}),  # WSL
    ],
)
def test_what_is_missing_for_the_last_way_is_named_after_the_better_ways(
    variant: Variant, missing: str, changes: dict[str, Any]
) -> None:
    groups = {path: group for path, group in changes.get("groups", NVIDIA_NODES).items() if group is not None}
    with pytest.raises(DeviceError) as caught:
        device.choose(variant, nvidia(**{**changes, "groups": groups}))
    text = str(caught.value)
    assert "install the vendor's container toolkit until nvidia-container-runtime-hook is there" in text
    assert "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`" in text
    assert text.endswith(f"{missing} missing.")


def test_no_driver_of_the_vendor() -> None:
    with pytest.raises(
        DeviceError, match="no /dev/nvidiactl or /dev/dxg, which the CUDA device of cuda needs: install"
    ):
        device.choose(CUDA, Host(engine=CDI))
    with pytest.raises(DeviceError, match="no /dev/dri, no /dev/dri/renderD128, which the Vulkan device"):
        device.choose(VULKAN, Host(engine=CDI))


def test_mesas_devices_as_before() -> None:
    assert device.choose(VULKAN, Host(groups=MESA, modules=("amdgpu",))) == device.Granted(
        name="Vulkan", how="the nodes /dev/dri", nodes=("/dev/dri",), groups=(RENDER_GROUP,)
    )


def test_nvidias_render_node_alone_is_not_for_mesa() -> None:
    host = nvidia(groups={**NVIDIA_NODES, **MESA}, modules=("nvidia",), engine=CDI)
    assert device.choose(VULKAN, host).nodes == ()
    with pytest.raises(DeviceError, match="are of nvidia, and vulkan needs another"):
        device.choose(VULKAN, Host(groups=MESA, modules=("nvidia",)))


def test_a_host_with_two_vendors_gives_both() -> None:
    granted = device.choose(VULKAN, nvidia(groups={**NVIDIA_NODES, **MESA}, modules=("i915", "nvidia"), engine=CDI))
    assert granted == device.Granted(
        name="Vulkan",
        how="the nodes /dev/dri; the device description (CDI) nvidia.com/gpu=all",
        nodes=("/dev/dri",),
        groups=(RENDER_GROUP,),
        cdi=("nvidia.com/gpu=all",),
    )


def test_of_an_engine_elsewhere_only_what_it_says_counts(host: Path) -> None:
    for engine in (RUNTIME, CDI):
        seen = Host(engine=dataclasses.replace(engine, where="ssh://gpu"))
        assert device.choose(CUDA, seen) == device.choose(CUDA, nvidia(engine=engine))
    away = EngineDevices(runtimes=frozenset({"runc"}), where="ssh://gpu")
    for variant in (CUDA, VULKAN, with_device(host)):  # whatever is here
        with pytest.raises(DeviceError) as caught:
            device.of_host(variant, away)
        assert str(caught.value) == (
            "The engine is at ssh://gpu, and its devices cannot be seen from here: run the same command on that "
            "machine."
        )


def test_an_engine_elsewhere_is_known_before_it_is_asked(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@gpu")
    with pytest.raises(DeviceError, match="The engine is at ssh://gpu, and"):
        device.of_host(with_device(host))
    assert device.of_host(CUDA).runtime == "nvidia"  # perhaps


def test_a_socket_of_another_machine_is_said(host: Path) -> None:
    (host / "kfd").unlink()
    with pytest.raises(DeviceError, match=r"on the host\. The engine's machine is desk, whose devices cannot be seen"):
        device.of_host(with_device(host), EngineDevices(machine="desk"))


def test_a_process_needs_nothing_of_the_host() -> None:
    for variant in variants.VARIANTS:
        granted = device.to_test(variant, Where.HOST, by_itself=True)
        if variant.device is None:
            assert granted is None
        else:
            assert granted == device.Granted(name=variant.device.name, how="the program finds it by itself")
    assert device.to_test(VULKAN, Where.SOFTWARE, by_itself=True) == device.in_software(VULKAN)
    assert device.to_test(VULKAN, Where.NOTHING, by_itself=True) is None


def test_a_device_in_software_needs_nothing_of_the_host() -> None:
    vulkan = variants.find("vulkan")
    assert vulkan.device
    granted = device.in_software(vulkan)
    assert granted == device.Granted(
        name="Vulkan", software=True, how="emulation by the CPU", environment=vulkan.device.software
    )
    with pytest.raises(DeviceError, match="emulates the CUDA device of cuda: only vulkan has one"):
        device.in_software(variants.find("cuda"))


def test_granting_a_device_keeps_the_container_s_settings() -> None:
    spec = ContainerSpec(image="i", environment={"A": "1"}, tmpfs={"/run": ""}, publish=1)
    granted = device.Granted(
        name="X",
        nodes=("/dev/x",),
        groups=(7,),
        gpus=("compute",),
        cdi=("v/c=d",),
        runtime="r",
        mounts=("/m",),
        placed={"/p": "/q"},
        environment={"B": "2"},
    )
    assert device.grant(spec, granted) == ContainerSpec(
        image="i",
        environment={"A": "1", "B": "2"},
        tmpfs={"/run": "", "/tmp": "mode=1777"},
        publish=1,
        devices=("/dev/x",),
        groups=(7,),
        gpus=("compute",),
        cdi=("v/c=d",),
        runtime="r",
        mounts=("/m",),
        placed={"/p": "/q"},
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
