"""Gives a container access to the accelerator: for the smoke test, on a command line, in the compose file.

All three use `DeviceAccess` in the table of variants. Groups are numbers of the host, because the image may not have
their names.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from base_images import versions
from base_images.adapters.container import ContainerSpec
from base_images.errors import DeviceError, UsageError
from base_images.variants import VARIANTS, DeviceAccess, Variant

PORT = 8080
SERVER_ARGUMENTS = ("--host", "0.0.0.0", "--port", str(PORT), "--model")  # noqa: S104 - published on 127.0.0.1 alone

COMPOSE_FILE = "compose.yaml"
"""In the checkout; written by `compose`."""


@dataclass(frozen=True, kw_only=True)
class Granted:
    """A device of this host, as a container gets it.

    Attributes:
        name: llama-server's name of the device, without its index.
        software: whether it is implemented in software, on the CPU.
        groups: numbers of the host's groups that the process joins.
    """

    name: str
    software: bool = False
    nodes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    gpus: bool = False
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def of_host(variant: Variant, runtimes: Collection[str]) -> Granted:
    """Returns the variant's device on this host.

    Args:
        variant: of the device.
        runtimes: the engine's container runtimes.

    Raises:
        DeviceError: the variant has no device, or the host lacks something that the device needs.
    """
    access = _access(variant)
    needed = dict.fromkeys((*access.nodes, *access.group_nodes, *access.mounts))
    missing = [path for path in needed if not Path(path).exists()]
    if access.driver_nodes and not any(Path(path).exists() for path in access.driver_nodes):
        missing.append(" or ".join(access.driver_nodes))
    if missing:
        raise DeviceError(
            f"This host has no {', no '.join(missing)}, which the {access.name} device of {variant.name} needs: "
            f"install its driver until `{access.check}` shows it on the host."
        )
    if access.runtime and access.runtime not in runtimes:
        raise DeviceError(
            f"The engine does not know the container runtime {access.runtime}, which {variant.name} needs: install it "
            "until `docker info` lists it."
        )
    return Granted(
        name=access.name,
        nodes=access.nodes,
        groups=tuple(dict.fromkeys(os.stat(path).st_gid for path in access.group_nodes)),  # noqa: PTH116 - shorter
        gpus=access.gpus,
        runtime=access.runtime,
        mounts=access.mounts,
        environment=access.environment,
    )


def in_software(variant: Variant) -> Granted:
    """Returns the variant's device in software, which works on any host.

    Raises:
        DeviceError: there is none in software.
    """
    access = _access(variant)
    if not access.software:
        having = ", ".join(other.name for other in VARIANTS if other.device and other.device.software)
        raise DeviceError(f"No software emulates the {access.name} device of {variant.name}: only {having} has one.")
    return Granted(name=access.name, software=True, environment=access.software)


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


def to_test(variant: Variant, on: Where, *, runtimes: Collection[str] | None = None) -> Granted | None:
    """Returns the device for a smoke test of the variant; None for the CPU alone.

    Args:
        variant: of the device.
        on: the host's device, one in software, or none: then only the fall-back to the CPU is tested.
        runtimes: the engine's container runtimes; None: there is no engine, or they are not known yet.

    Raises:
        DeviceError: this host lacks something, or the device does not exist in software.
    """
    if on is Where.SOFTWARE:
        return in_software(variant)
    if on is Where.NOTHING or variant.device is None:
        return None
    return of_host(variant, (variant.device.runtime,) if runtimes is None else runtimes)


def grant(spec: ContainerSpec, device: Granted) -> ContainerSpec:
    """Adds the device to a container, and a /tmp for the drivers' caches."""
    return dataclasses.replace(
        spec,
        devices=device.nodes,
        groups=device.groups,
        gpus=device.gpus,
        runtime=device.runtime,
        mounts=device.mounts,
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
    if access.gpus:
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
        if access.gpus:
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
