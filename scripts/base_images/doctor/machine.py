"""The machine's hardware, devices, drivers and programs, and the registries that answer it.

`root` is the directory of /dev, /proc and /sys, so that tests can lay out a machine as files.
"""

from __future__ import annotations

import os
import platform
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from base_images.adapters import http_session
from base_images.adapters import programs as command
from base_images.smoke import host as hosts
from base_images.variants import DeviceAccess, Driver

ANSWER_SECONDS = 1.2
"""The time limit for all registries together: `invoke doctor` ends within 2 s also without a network."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine; memory is in bytes."""

    architecture: str
    kernel: str
    cores: int
    memory: int
    memory_available: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """A device node.

    Attributes:
        path: its path.
        group: the GID of its group.
        module: the kernel module of a render node; empty for other nodes.
    """

    path: str
    group: int
    module: str = ""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """An installed driver: its kernel module and version, each empty when unknown."""

    module: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a registry answers, and the observation."""

    host: str
    reached: bool
    seen: str


def machine(root: Path = hosts.ROOT) -> Machine:
    """Returns the machine; unknown sizes are 0 and unknown names are empty."""
    kibibytes = dict(re.findall(r"(?m)^(\w+):\s+(\d+) kB$", _text(root / "proc/meminfo")))
    return Machine(
        architecture=platform.machine(),
        kernel=_text(root / "proc/sys/kernel/osrelease").strip(),
        cores=os.cpu_count() or 1,
        memory=int(kibibytes.get("MemTotal", 0)) * 1024,
        memory_available=int(kibibytes.get("MemAvailable", 0)) * 1024,
    )


def programs(names: Sequence[str]) -> dict[str, str | None]:
    """Returns the path of each program; None for a missing one."""
    return {name: command.find_program(name) for name in names}


def buildx() -> str:
    """Returns the version of Docker's buildx, such as `v0.13.1`; empty without it."""
    outcome = command.run(("docker", "buildx", "version"), timeout=ANSWER_SECONDS)
    return buildx_version(outcome.stdout) if outcome.exit_code == 0 else ""


def buildx_version(said: str) -> str:
    """`github.com/docker/buildx v0.13.1 788433953af10f2a698f5c07611dddce2e08c7a0` → `v0.13.1`."""
    words = said.split()
    return words[1] if len(words) > 1 else said.strip()


def nodes(access: DeviceAccess, root: Path = hosts.ROOT) -> tuple[Node, ...]:
    """Returns the existing nodes of a variant's device; for a directory, its render nodes."""
    control = access.gpus.control if access.gpus else ()
    found = dict.fromkeys(hosts.render_nodes((*access.nodes, *access.group_nodes, *control), root))
    return tuple(
        Node(path=path, group=hosts.below(root, path).stat().st_gid, module=hosts.module(path, root))
        for path in found
        if hosts.below(root, path).exists()
    )


def installed(driver: Driver, found: Sequence[Node], root: Path = hosts.ROOT) -> Installed | None:
    """Returns the installed driver of a device, or None.

    Args:
        driver: the driver to look for.
        found: the existing nodes of the device.
        root: the directory of /dev, /proc and /sys.
    """
    made = tuple(dict.fromkeys(node.module for node in found if node.module))
    loaded = tuple(name for name in driver.modules if (root / "sys/module" / name).is_dir())
    # A loaded module may drive nothing, so that one with a node comes first.
    module = next((name for name in (*made, *loaded) if name in (driver.modules or made)), "")
    files = [root / "sys/module" / module / "version"] if module else []
    said = (_text(path) for path in (*files, *(hosts.below(root, path) for path in driver.version_files)))
    version = next((version for version in map(version_in, said) if version), "")
    return Installed(module=module, version=version) if module or version else None


def version_in(text: str) -> str:
    """Returns the version in a driver's version file; empty when there is none.

    Examples are NVIDIA's `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build …`, a plain
    `6.12.12`, and Ascend's lines, of which package_version is more specific than Version.
    """
    package = re.search(r"(?m)^package_version=(\S+)", text)
    match = package or re.search(r"(?<![\w.])(\d+(?:\.\w+)+)", text)
    return match[1] if match else ""


def numbers(version: str) -> tuple[int, ...]:
    """Returns a sort key of a version: `550.54.14` → (550, 54, 14), `25.0.rc1.1` → (25, 0, 1, 1)."""
    return tuple(map(int, re.findall(r"\d+", version)))


def of_toolkit(table: Mapping[str, str], toolkit: str) -> str:
    """Returns a table's value for the longest prefix, in whole numbers, of a toolkit's version; empty without one.

    For a toolkit whose version is a base image, such as CANN, the version is at the beginning of the tag.
    """
    version = re.match(r"\d+(?:\.\d+)*", toolkit.rpartition(":")[2])
    parts = version[0].split(".") if version else []
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((table[beginning] for beginning in beginnings if beginning in table), "")


def asking(hosts: Sequence[str]) -> Callable[[], tuple[Answer, ...]]:
    """Asks all registries in the background; returns a function that waits for the answers and returns them.

    `docker.io` is asked at the address that Docker uses. A registry that does not answer within `ANSWER_SECONDS` is
    out of reach, also when the name server causes the delay.
    """
    answers: dict[str, Answer] = {}
    deadline = time.monotonic() + ANSWER_SECONDS

    def ask(host: str) -> None:
        answers[host] = _ask(host)

    # Daemon threads do not delay the end of the process, as a thread pool would.
    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()

    def collect() -> tuple[Answer, ...]:
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))
        late = f"no answer within {ANSWER_SECONDS} s"
        return tuple(answers.get(host) or Answer(host=host, reached=False, seen=late) for host in hosts)

    return collect


def _ask(host: str) -> Answer:
    """Asks a registry, which answers 200 or 401 at /v2/ (OCI distribution specification, "Determining Support")."""
    scheme = "http" if host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK else "https"  # as Docker does
    address = "registry-1.docker.io" if host == "docker.io" else host
    try:
        with http_session.limited(seconds=ANSWER_SECONDS), http_session.Session() as session:
            answer = session.get(f"{scheme}://{address}/v2/", timeout=ANSWER_SECONDS, allow_redirects=False)
    except requests.ConnectTimeout:
        return Answer(host=host, reached=False, seen="no connection")
    except (requests.RequestException, UnicodeError) as error:
        return Answer(host=host, reached=False, seen=_cause(error))
    reached = answer.status_code in {requests.codes.ok, requests.codes.unauthorized}
    return Answer(host=host, reached=reached, seen="answers" if reached else f"is not a registry: {answer.status_code}")


def _cause(error: BaseException) -> str:
    """Returns the cause of an error of requests: `[Errno 111] Connection refused` → `connection refused`."""
    words = re.findall(r"\[Errno -?\d+\] ([^'\")\]]+)", str(error))
    return words[-1].strip().lower() if words else type(error).__name__


def registry(reference: str) -> str:
    """Returns the registry of an image or repository reference: `node:24` → `docker.io`."""
    head, slash, _ = reference.partition("/")
    return head if slash and ("." in head or ":" in head or head == "localhost") else "docker.io"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
