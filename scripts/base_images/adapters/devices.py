"""How an engine can give devices to containers, as it says itself."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DISCOVERS = (1, 50)
"""The first version of the Engine API whose GET /info lists the devices that CDI describes (moby, API changelog)."""


@dataclass(frozen=True, kw_only=True)
class EngineDevices:
    """How an engine can give devices to containers.

    Attributes:
        runtimes: names of its container runtimes.
        cdi: names of the devices that device descriptions (CDI) name, such as `nvidia.com/gpu=all`.
        where: the engine's address, if it is not a socket of this machine; else empty.
        machine: the name of the engine's machine, if it is not this one's; else empty.
    """

    runtimes: frozenset[str] = frozenset()
    cdi: frozenset[str] = frozenset()
    where: str = ""
    machine: str = ""


def of_info(info: Mapping[str, Any], *, api_version: str, where: str) -> EngineDevices:
    """Returns what the answer to GET /info says.

    Engine 25 to 28.1 inject devices by CDI where it is enabled, and do not list them: their descriptions are read.

    Args:
        info: the answer.
        api_version: the version of the Engine API, such as `1.51`.
        where: the engine's address, if it is not a socket of this machine; else empty.
    """
    if tuple(map(int, api_version.split("."))) >= DISCOVERS:
        discovered = info.get("DiscoveredDevices") or ()
        names = {str(device["ID"]) for device in discovered if device.get("Source") == "cdi"}
    else:
        names = set() if where else set(_described(map(Path, info.get("CDISpecDirs") or ())))
    name = info.get("Name", "")
    return EngineDevices(
        runtimes=frozenset(info.get("Runtimes") or ()),
        cdi=frozenset(names),
        where=where,
        machine="" if name == socket.gethostname() else name,
    )


def _described(directories: Iterable[Path]) -> Iterator[str]:
    """Yields the names of the devices that the description files in the directories name (CNCF, CDI's SPEC.md)."""
    for path in sorted(file for directory in directories for file in directory.glob("*")):
        if path.suffix not in {".json", ".yaml"}:
            continue
        try:
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
            yield from [f"{spec['kind']}={device['name']}" for device in spec.get("devices", ())]
        except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue  # the engine ignores a file that it cannot read, too
