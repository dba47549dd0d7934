"""What this machine has: read from its files, of its programs, and which registries answer it.

`root` is the directory that /dev, /proc and /sys are in, so that a test can lay out a machine.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from base_images.adapters import download
from base_images.adapters import programs as command
from base_images.variants import DeviceAccess, Driver, Variant

ROOT = Path("/")

ANSWER_SECONDS = 1.2
"""How long all registries together may take: `invoke doctor` is done within 2 s also where no network is."""

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """This machine; memory in bytes."""

    architecture: str
    kernel: str
    cores: int
    memory: int
    memory_available: int


@dataclass(frozen=True, kw_only=True)
class Node:
    """A device node.

    Attributes:
        path: where it is.
        group: the number of the group it belongs to.
        module: the kernel's name of its driver, for a render node; else empty.
    """

    path: str
    group: int
    module: str = ""


@dataclass(frozen=True, kw_only=True)
class Installed:
    """A driver of this machine: its kernel module, where there is one, and its version, where it says one."""

    module: str
    version: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a registry answers this machine, and what was seen of it."""

    host: str
    reached: bool
    seen: str


# The machine.


def machine(root: Path = ROOT) -> Machine:
    """Returns this machine; sizes are 0 and names empty where the kernel does not say."""
    memory = _kibibytes(_text(root / "proc/meminfo"))
    return Machine(
        architecture=platform.machine(),
        kernel=_text(root / "proc/sys/kernel/osrelease").strip(),
        cores=os.cpu_count() or 1,
        memory=memory.get("MemTotal", 0) * 1024,
        memory_available=memory.get("MemAvailable", 0) * 1024,
    )


def _kibibytes(meminfo: str) -> dict[str, int]:
    """`MemTotal:  24684092 kB` → {"MemTotal": 24684092}."""
    return {name: int(size) for name, size in re.findall(r"(?m)^(\w+):\s+(\d+) kB$", meminfo)}


def programs(names: Sequence[str]) -> dict[str, str | None]:
    """Returns the path of each program, None for one that is not installed."""
    return {name: command.find_program(name) for name in names}


def buildx() -> str:
    """Returns the version of docker's buildx, such as `v0.13.1`; empty without it."""
    outcome = command.run(("docker", "buildx", "version"), timeout=ANSWER_SECONDS)
    return buildx_version(outcome.stdout) if outcome.exit_code == 0 else ""


def buildx_version(said: str) -> str:
    """`github.com/docker/buildx v0.13.1 788433953af10f2a698f5c07611dddce2e08c7a0` → `v0.13.1`."""
    words = said.split()
    return words[1] if len(words) > 1 else said.strip()


# Devices.


def rooted(variant: Variant, root: Path) -> Variant:
    """Returns the variant with the paths of its device below `root`."""
    if variant.device is None or root == ROOT:
        return variant

    def below(paths: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(_below(root, path)) for path in paths)

    access = dataclasses.replace(
        variant.device,
        nodes=below(variant.device.nodes),
        group_nodes=below(variant.device.group_nodes),
        driver_nodes=below(variant.device.driver_nodes),
        mounts=below(variant.device.mounts),
    )
    return dataclasses.replace(variant, device=access)


def nodes(access: DeviceAccess, root: Path = ROOT) -> tuple[Node, ...]:
    """Returns the nodes of this machine that a variant's device can have; of directories, their render nodes."""
    found = dict.fromkeys(
        path
        for named in (*access.nodes, *access.group_nodes, *access.driver_nodes)
        for path in (_render_nodes(named, root) if _below(root, named).is_dir() else (named,))
    )
    return tuple(
        Node(path=path, group=_below(root, path).stat().st_gid, module=_module(path, root))
        for path in found
        if _below(root, path).exists()
    )


def _render_nodes(directory: str, root: Path) -> Iterator[str]:
    names = sorted(path.name for path in _below(root, directory).glob("renderD*"))
    return (f"{directory}/{name}" for name in names)


def _module(path: str, root: Path) -> str:
    """Returns which kernel driver made a render node: where /sys/class/drm/<node>/device/driver points to."""
    try:
        link = os.readlink(root / "sys/class/drm" / Path(path).name / "device/driver")  # noqa: PTH115 - not followed
    except OSError:
        return ""
    return Path(link).name


# Drivers.


def installed(driver: Driver, found: Sequence[Node], root: Path = ROOT) -> Installed | None:
    """Returns the driver that this machine has, or None.

    Args:
        driver: what is looked for.
        found: the machine's nodes of the device.
        root: where the machine is.
    """
    made = tuple(dict.fromkeys(node.module for node in found if node.module))
    loaded = tuple(name for name in driver.modules if (root / "sys/module" / name).is_dir())
    # A module may be loaded that drives nothing; one that made a node comes first.
    module = next((name for name in (*made, *loaded) if name in (driver.modules or made)), "")
    files = [root / "sys/module" / module / "version"] if module else []
    said = (_text(path) for path in (*files, *(_below(root, path) for path in driver.version_files)))
    version = next((version for version in map(version_in, said) if version), "")
    return Installed(module=module, version=version) if module or version else None


def version_in(text: str) -> str:
    """Returns the version in a driver's own words, empty where there is none.

    Such are NVIDIA's `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build …`, a plain
    `6.12.12`, and Ascend's lines, where package_version says more than Version when both are there.
    """
    package = re.search(r"(?m)^package_version=(\S+)", text)
    match = package or re.search(r"(?<![\w.])(\d+(?:\.\w+)+)", text)
    return match[1] if match else ""


def numbers(version: str) -> tuple[int, ...]:
    """`550.54.14` → (550, 54, 14), `25.0.rc1.1` → (25, 0, 1, 1); tuples that order as the versions do."""
    return tuple(map(int, re.findall(r"\d+", version)))


def of_toolkit(table: Mapping[str, str], toolkit: str) -> str:
    """Returns what a table has for a toolkit's version: the longest beginning counts, whole numbers each.

    A toolkit that is known by its base image, as CANN, has its version at the beginning of the tag.
    """
    version = re.match(r"\d+(?:\.\d+)*", toolkit.rpartition(":")[2])
    parts = version[0].split(".") if version else []
    beginnings = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((table[beginning] for beginning in beginnings if beginning in table), "")


# Registries.


def asking(hosts: Sequence[str]) -> Callable[[], tuple[Answer, ...]]:
    """Asks all registries at once, in the background; returns a function that waits for them and returns the answers.

    `docker.io` is asked where docker asks for it. One that did not answer within `ANSWER_SECONDS` counts as out of
    reach, also when a name server keeps the question waiting.
    """
    answers: dict[str, Answer] = {}
    deadline = time.monotonic() + ANSWER_SECONDS

    def ask(host: str) -> None:
        answers[host] = _ask(host)

    # They do not hold up the end of the process, as a pool of threads would.
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
    """A registry answers 200 or 401 at /v2/ (OCI distribution specification, "Determining Support")."""
    scheme = "http" if host.rpartition(":")[0] in _LOOPBACK or host in _LOOPBACK else "https"  # as docker has it
    address = "registry-1.docker.io" if host == "docker.io" else host
    try:
        with download.session() as session:
            answer = session.get(f"{scheme}://{address}/v2/", timeout=ANSWER_SECONDS, allow_redirects=False)
    except requests.ConnectTimeout:
        return Answer(host=host, reached=False, seen="no connection")
    except (requests.RequestException, UnicodeError) as error:
        return Answer(host=host, reached=False, seen=_cause(error))
    reached = answer.status_code in {requests.codes.ok, requests.codes.unauthorized}
    return Answer(host=host, reached=reached, seen="answers" if reached else f"is no registry: {answer.status_code}")


def _cause(error: BaseException) -> str:
    """Returns the last words of what requests wraps: `[Errno 111] Connection refused` → `connection refused`."""
    words = re.findall(r"\[Errno -?\d+\] ([^'\")\]]+)", str(error))
    return words[-1].strip().lower() if words else type(error).__name__


def registry(reference: str) -> str:
    """Returns the registry's host of an image's or a repository's reference: `node:24` → `docker.io`."""
    head, slash, _ = reference.partition("/")
    return head if slash and ("." in head or ":" in head or head == "localhost") else "docker.io"


def _below(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
