"""How an engine gives devices, from its answer to GET /info."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from base_images.adapters import devices
from base_images.adapters.devices import EngineDevices

HERE = socket.gethostname()
SPEC = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": "0"}, {"name": "all"}]}
AS_YAML = """\
---
cdiVersion: 0.5.0
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- name: all
kind: nvidia.com/gpu
"""
BOTH = frozenset({"nvidia.com/gpu=0", "nvidia.com/gpu=all"})


def told(api_version: str, *, where: str = "", **info: Any) -> EngineDevices:
    return devices.of_info({"Name": HERE, "Runtimes": {"runc": {}}, **info}, api_version=api_version, where=where)


def test_an_engine_that_lists_its_devices() -> None:
    discovered = [{"Source": "cdi", "ID": name} for name in sorted(BOTH)]
    answer: dict[str, Any] = {
        "CDISpecDirs": ["/etc/cdi"],
        "DiscoveredDevices": [*discovered, {"Source": "other", "ID": "x"}],
    }
    assert told("1.50", **answer) == EngineDevices(runtimes=frozenset({"runc"}), cdi=BOTH)
    assert told("1.51", where="ssh://gpu", **answer).cdi == BOTH


def test_an_engine_that_does_not_list_its_devices(tmp_path: Path) -> None:
    for suffix, text in ((".json", json.dumps(SPEC)), (".yaml", AS_YAML)):
        directory = tmp_path / suffix
        directory.mkdir()
        (directory / f"nvidia{suffix}").write_text(text)
        for name, broken in (("a.json", "{"), ("b.yaml", "- 1"), ("c.json", "[]"), ("d.json", '{"devices": [{}]}')):
            (directory / name).write_text(broken)
        (directory / "nvidia.json.bak").write_text('{"kind": "x/y", "devices": [{"name": "z"}]}')
        answer: dict[str, Any] = {"CDISpecDirs": ["/no/such/directory", str(directory)]}
        assert told("1.44", **answer).cdi == BOTH, suffix
        assert told("1.44", where="ssh://gpu", **answer).cdi == frozenset()  # those of another machine
        assert told("1.50", **answer).cdi == frozenset()  # this one has not discovered them


def test_engines_without_device_descriptions() -> None:
    assert told("1.41") == EngineDevices(runtimes=frozenset({"runc"}))
    assert told("1.44", CDISpecDirs=[]).cdi == frozenset()
    assert told("1.51", CDISpecDirs=None, DiscoveredDevices=None).cdi == frozenset()


def test_the_machine_of_the_engine() -> None:
    assert told("1.51").machine == ""
    assert told("1.51", Name="desk").machine == "desk"
