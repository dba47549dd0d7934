"""Gives a container access to the accelerator: for the smoke test, on a command line, in the compose file.

All three use `DeviceAccess` in the table of variants. Groups are numbers of the host, because the image may not have
their names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import yaml

from base_images import versions
from base_images.adapters import endpoint
from base_images.adapters.container import ContainerSpec
from base_images.adapters.devices import EngineDevices
from base_images.errors import DeviceError, UsageError
from base_images.smoke import host as hosts
from base_images.smoke.host import Host
from base_images.variants import VARIANTS, DeviceAccess, Gpus, Variant

PORT = 8080
SERVER_ARGUMENTS = ("--host", "0.0.0.0", "--port", str(PORT), "--model")  # noqa: S104 - published on 127.0.0.1 alone

COMPOSE_FILE = "compose.yaml"
"""In the checkout; written by `compose`."""


DRIVER_LIBRARIES = "/usr/local/nvidia/lib64"
"""Where a container finds the libraries of the host's driver: a directory that NVIDIA's own images search too."""

DRIVER_MANIFEST = "/etc/vulkan/icd.d/nvidia_icd.json"
"""Where Vulkan's loader finds the driver in a container, beside those of the image."""


@dataclass(frozen=True, kw_only=True)
class Granted:
    """A device of this host, as a container gets it.

    Attributes:
        name: llama-server's name of the device, without its index.
        software: whether it is implemented in software, on the CPU.
        how: how it is given, for the report.
        groups: numbers of the host's groups that the process joins.
        gpus: capabilities of the driver that the engine is asked for together with all GPUs.
        cdi: devices of the engine's device descriptions.
        placed: path in the container to a file of the host, mounted read-only there.
    """

    name: str
    software: bool = False
    how: str = ""
    nodes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    placed: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


def of_host(variant: Variant, engine: EngineDevices | None = None) -> Granted:
    """Returns the variant's device on this host.

    Args:
        variant: of the device.
        engine: how the engine gives devices; None: it is not asked, and is assumed to have every way.

    Raises:
        DeviceError: the variant has no device, or the host lacks something that the device needs.
        EngineError: `engine` is None, and the chosen engine's address cannot be read.
    """
    access = _access(variant)
    return choose(variant, hosts.look(access, engine or assumed(access)))


def assumed(access: DeviceAccess) -> EngineDevices:
    """Returns an engine at the chosen address that knows every runtime that the device may need.

    Raises:
        EngineError: the address cannot be read.
    """
    chosen = endpoint.resolve()
    runtimes = (access.runtime, access.gpus.runtime if access.gpus else "")
    where = "" if chosen.scheme == "unix" else chosen.where
    return EngineDevices(runtimes=frozenset(filter(None, runtimes)), where=where)


def choose(variant: Variant, host: Host) -> Granted:
    """Returns the variant's device in the way that the host can give it.

    A device with nodes is given by these. A vendor's GPUs are given by the vendor's container toolkit, else by the
    engine's device descriptions (CDI), else by their nodes and the driver's libraries. Where a host has both, such as
    Intel's and NVIDIA's for Vulkan, a container gets both, as a process would.

    Raises:
        DeviceError: the variant has no device, or the host lacks something that the device needs.
    """
    access = _access(variant)
    ways = [_by_nodes(variant, access, host), _by_vendor(variant, access, host)]
    given = [way for way in ways if isinstance(way, Granted)]
    if not given:
        reasons = [way for way in ways if isinstance(way, str)]
        has_driver = access.gpus and any(path in host.groups for path in access.gpus.control)
        raise DeviceError(reasons[-1] if has_driver else reasons[0])
    return functools.reduce(_both, given)


def _both(one: Granted, other: Granted) -> Granted:
    return dataclasses.replace(
        other,
        how=f"{one.how}; {other.how}",
        nodes=(*one.nodes, *other.nodes),
        groups=tuple(dict.fromkeys((*one.groups, *other.groups))),
        mounts=(*one.mounts, *other.mounts),
        environment={**one.environment, **other.environment},
    )


def _by_nodes(variant: Variant, access: DeviceAccess, host: Host) -> Granted | str | None:
    """Returns the device by its nodes, mounts and runtime, or why that is impossible; None if it has none of them."""
    needed = tuple(dict.fromkeys((*access.nodes, *access.group_nodes, *access.mounts)))
    if not needed and not access.runtime:
        return None
    if missing := [path for path in needed if path not in host.groups]:
        return _missing(variant, access, missing, host)
    usable = (set(access.driver.modules) or set(host.modules)) - set(access.driver.unusable)
    if host.modules and not usable & set(host.modules):
        wanted = f"one of {' or '.join(access.driver.modules)}" if access.driver.modules else "another"
        return (
            f"The render nodes here are of {', '.join(host.modules)}, and {variant.name} needs {wanted}: `ls -l "
            "/sys/class/drm/renderD*/device/driver` shows their drivers."
        )
    if access.runtime and access.runtime not in host.engine.runtimes:
        return (
            f"The engine does not know the container runtime {access.runtime}, which {variant.name} needs: install it "
            "until `docker info` lists it."
        )
    ways = (
        f"the nodes {' and '.join(access.nodes)}" if access.nodes else "",
        f"the container runtime {access.runtime}" if access.runtime else "",
        "files of the host's driver, mounted read-only" if access.mounts else "",
    )
    return Granted(
        name=access.name,
        how=", ".join(filter(None, ways)),
        nodes=access.nodes,
        groups=tuple(dict.fromkeys(host.groups[path] for path in access.group_nodes)),
        runtime=access.runtime,
        mounts=access.mounts,
        environment=access.environment,
    )


def _by_vendor(variant: Variant, access: DeviceAccess, host: Host) -> Granted | str | None:
    """Returns a vendor's GPUs by toolkit, CDI, or nodes and libraries, or why that is impossible; None for no GPUs."""
    gpus = access.gpus
    if gpus is None:
        return None
    if not host.engine.where and not any(path in host.groups for path in gpus.control):
        return _missing(variant, access, [" or ".join(gpus.control)], host)
    granted = Granted(name=access.name)
    capabilities = ",".join(gpus.capabilities)
    has_runtime = gpus.runtime in host.engine.runtimes
    if host.toolkit:
        # `--gpus` alone gives the driver's libraries without the file by which Vulkan's loader finds them, which
        # NVIDIA's runtime gives (NVIDIA/nvidia-container-toolkit issues 16 and 191).
        return dataclasses.replace(
            granted,
            how=f"--gpus all{f' and --runtime {gpus.runtime}' if has_runtime else ''} ({capabilities})",
            gpus=gpus.capabilities,
            runtime=gpus.runtime if has_runtime else "",
            placed={} if has_runtime else _manifest(gpus, host),
        )
    if has_runtime:
        return dataclasses.replace(
            granted,
            how=f"the container runtime {gpus.runtime} ({capabilities})",
            runtime=gpus.runtime,
            environment=dict(zip(gpus.chosen_by, ("all", capabilities), strict=True)),
        )
    if gpus.cdi in host.engine.cdi:
        return dataclasses.replace(granted, how=f"the device description (CDI) {gpus.cdi}", cdi=(gpus.cdi,))
    return _by_libraries(variant, access, gpus, host)


def _by_libraries(variant: Variant, access: DeviceAccess, gpus: Gpus, host: Host) -> Granted | str:
    """Returns a vendor's GPUs by their nodes and the host's libraries, or why no container gets them."""
    nodes = [path for path in host.groups if any(fnmatch(path, name) for name in (*gpus.nodes, *gpus.optional))]
    missing = [name for name in gpus.nodes if not any(fnmatch(path, name) for path in nodes)]
    missing += [] if gpus.library in host.libraries else [gpus.library]
    missing += [] if host.manifest else gpus.manifests[:1]
    if host.engine.where:
        return _missing(variant, access, missing, host)
    if missing:
        toolkit, describe = gpus.helpers
        return (
            f"The engine cannot pass the {access.name} device: install the vendor's container toolkit until {toolkit} "
            f"is there, and restart the engine; or describe the GPUs to Engine 25 or newer by `{describe} cdi generate "
            "--output=/etc/cdi/nvidia.yaml`. Without either, a container gets the driver's own files, and "
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
    libraries = {f"{DRIVER_LIBRARIES}/{name}": path for name, path in sorted(host.libraries.items())}
    return Granted(
        name=access.name,
        how=f"the nodes {' and '.join(nodes)}, {len(libraries)} libraries of the host's driver, mounted read-only",
        nodes=tuple(nodes),
        groups=tuple(dict.fromkeys(filter(None, (host.groups[path] for path in nodes)))),
        placed={**_manifest(gpus, host), **libraries},
        environment={"LD_LIBRARY_PATH": DRIVER_LIBRARIES},
    )


def _manifest(gpus: Gpus, host: Host) -> dict[str, str]:
    return {DRIVER_MANIFEST: host.manifest} if gpus.manifests and host.manifest else {}


def _missing(variant: Variant, access: DeviceAccess, missing: Sequence[str], host: Host) -> str:
    if host.engine.where:
        return (
            f"The engine is at {host.engine.where}, and its devices cannot be seen from here: run the same command on "
            "that machine."
        )
    sentence = (
        f"This host has no {', no '.join(missing)}, which the {access.name} device of {variant.name} needs: "
        f"install its driver until `{access.check}` shows it on the host."
    )
    if host.engine.machine:
        sentence += f" The engine's machine is {host.engine.machine}, whose devices cannot be seen from here."
    return sentence


def in_software(variant: Variant) -> Granted:
    """Returns the variant's device in software, which works on any host.

    Raises:
        DeviceError: there is none in software.
    """
    access = _access(variant)
    if not access.software:
        having = ", ".join(other.name for other in VARIANTS if other.device and other.device.software)
        raise DeviceError(f"No software emulates the {access.name} device of {variant.name}: only {having} has one.")
    return Granted(name=access.name, software=True, how="emulation by the CPU", environment=access.software)


class Where(StrEnum):
    """The device of a smoke test."""

    HOST = "host"
    SOFTWARE = "software"
    NOTHING = "nothing"


def where(name: str) -> Where:
    """Parses the value of `--device`.

    Raises:
        UsageError: the value is unknown.
    """
    try:
        return Where(name)
    except ValueError as error:
        raise UsageError(f"A smoke test is not on {name!r}: choose one of {', '.join(Where)}.") from error


def to_test(
    variant: Variant, on: Where, *, engine: EngineDevices | None = None, by_itself: bool = False
) -> Granted | None:
    """Returns the device for a smoke test of the variant; None for the CPU alone.

    Args:
        variant: of the device.
        on: the host's device, one in software, or none: then only the fall-back to the CPU is tested.
        engine: how the engine gives devices; None: there is no engine, or it has not been asked yet.
        by_itself: whether a process of this host finds the device by itself: then the checks say whether it does.

    Raises:
        DeviceError: this host lacks something, or the device does not exist in software.
        EngineError: see `of_host`.
    """
    if on is Where.SOFTWARE:
        return in_software(variant)
    if on is Where.NOTHING or variant.device is None:
        return None
    if by_itself:
        return Granted(name=variant.device.name, how="the program finds it by itself")
    return of_host(variant, engine)


def grant(spec: ContainerSpec, device: Granted) -> ContainerSpec:
    """Adds the device to a container, and a /tmp for the drivers' caches."""
    return dataclasses.replace(
        spec,
        devices=device.nodes,
        groups=device.groups,
        gpus=device.gpus,
        cdi=device.cdi,
        runtime=device.runtime,
        mounts=device.mounts,
        placed=device.placed,
        environment={**spec.environment, **device.environment},
        tmpfs={**spec.tmpfs, "/tmp": "mode=1777"},  # noqa: S108 - in the container
    )


def _access(variant: Variant) -> DeviceAccess:
    if variant.device is None:
        raise DeviceError(f"The variant {variant.name} uses no device: leave --device out.")
    return variant.device


# --- Command lines and the compose file. ---


def run_line(variant: Variant, image: str) -> str:
    """Returns the `docker run` command that serves models/model.gguf, with the variant's device."""
    return " ".join(
        (
            "docker run -d --rm --name llama",
            *_run_options(variant.device),
            f'-p 127.0.0.1:{PORT}:{PORT} -v "$PWD/models:/models:ro"',
            image,
            *SERVER_ARGUMENTS,
            "/models/model.gguf",
        )
    )


def run_lines(registry: str) -> str:
    """Returns the documented commands, one for each variant with a device."""
    lines = [
        f"# {variant.title}\n{run_line(variant, f'{registry}:{versions.latest_tag(variant.name)}')}\n"
        for variant in VARIANTS
        if variant.device
    ]
    return "".join(lines)


def _run_options(access: DeviceAccess | None) -> Iterator[str]:
    if access is None:
        return
    if access.gpus and not access.nodes:
        yield "--gpus all"
    if access.runtime:
        yield f"--runtime {access.runtime}"
    for name, value in access.environment.items():
        yield f"--env {name}={value}"
    for node in access.nodes:
        yield f"--device {node}"
    for node in access.group_nodes:
        yield f'--group-add "$(stat -c %g {node})"'
    for path in access.mounts:
        yield f"--mount type=bind,source={path},target={path},readonly"


def compose(registry: str) -> str:
    """Returns the compose file: one hardened service per variant, selected by the profile of its name.

    Compose interpolates the variables of every service, also of those not selected (docker/compose issue 11977), so a
    group's number cannot be required with `:?`; if it is missing, the engine's error for that service says what to do.
    """
    nodes = dict.fromkeys(node for variant in VARIANTS if variant.device for node in variant.device.group_nodes)
    exports = "".join(f'#   export {_variable(node)}="$(stat -c %g {node})"\n' for node in nodes)
    services = {variant.name: _service(variant, registry) for variant in VARIANTS}
    everything = {"services": services, "volumes": {"cache": {}}}
    return f"""\
# Made by `invoke compose`. Each variant is a profile: `docker compose --profile cpu up`.
# MODELS is the directory of the models, MODEL a file in it, PORT the port on this machine.
# The volume `cache` keeps what `-hf` downloads:
#   docker compose run --service-ports cpu {" ".join(SERVER_ARGUMENTS[:-1])} -hf REPOSITORY
# cuda needs NVIDIA's driver and container toolkit on the host, vulkan a device of AMD or Intel, for which the image
# has Mesa's drivers. docs/child-images.md has the ways without the toolkit, and Vulkan on NVIDIA.
# A device that belongs to a group of the host is used by that group's number:
{exports}
{yaml.safe_dump(everything, sort_keys=False, default_flow_style=None, width=math.inf)}"""


def _service(variant: Variant, registry: str) -> dict[str, Any]:
    access = variant.device
    volumes = {"${MODELS:-./models}": "/models"}
    service: dict[str, Any] = {
        "profiles": [variant.name],
        "image": f"{registry}:{versions.latest_tag(variant.name)}",
        "command": [*SERVER_ARGUMENTS, "/models/${MODEL:-model.gguf}"],
        "ports": [f"127.0.0.1:${{PORT:-{PORT}}}:{PORT}"],
        "read_only": True,
        "tmpfs": ["/tmp"],  # noqa: S108 - of the container
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if access:
        volumes |= {path: path for path in access.mounts}
        if access.gpus and not access.nodes:
            devices = [{"count": "all", "capabilities": ["gpu"]}]
            service["deploy"] = {"resources": {"reservations": {"devices": devices}}}
        if access.runtime:
            service["runtime"] = access.runtime
        if access.environment:
            service["environment"] = dict(access.environment)
        if access.nodes:
            service["devices"] = list(access.nodes)
        if access.group_nodes:
            names = map(_variable, access.group_nodes)
            service["group_add"] = [f"${{{name}:-{name} is not set, see {COMPOSE_FILE}}}" for name in names]
    service["volumes"] = [
        {"type": "bind", "source": source, "target": target, "read_only": True} for source, target in volumes.items()
    ]
    service["volumes"].append({"type": "volume", "source": "cache", "target": "/home/llama/.cache"})
    return service


def _variable(node: str) -> str:
    """Returns, for example, `RENDERD128_GROUP` for `/dev/dri/renderD128`."""
    return f"{PurePosixPath(node).name.upper()}_GROUP"
