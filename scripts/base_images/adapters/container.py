"""Hardened containers: what they are created from, and what can be done with one (contract row 11, docs/contract.md).

A container has no capabilities, no new privileges, a read-only root file system, and no network unless it publishes a
port.
"""

from __future__ import annotations

import contextlib
import io
import socket
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import docker.types
import requests

from base_images.adapters import ownership
from base_images.adapters.docker_errors import engine_errors
from base_images.adapters.tunnel import STDOUT, Tunnel, frames
from base_images.errors import EngineError
from base_images.labels import OWNER, RESOURCE

LOG_BYTES = 16 << 20
"""Of a container's log, and of the output of one command in it; llama-server writes 50 kB at verbosity 4."""

PROCESSES = 4096
"""Processes and threads of a container; llama-server has some for each core."""

EXECUTION_SECONDS = 600.0
"""For a command in a container."""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What a container is created from.

    Attributes:
        image: an image id or reference that the engine has.
        command: arguments; passed to the image's own entrypoint when `entrypoint` is None.
        entrypoint: replaces the image's entrypoint unless None.
        user: `uid:gid` or a name; None is the image's own user.
        tmpfs: directory to mount options, such as {"/tmp": "exec,mode=1777"}.
        volumes: volume name to directory.
        publish: a TCP port, published on the engine's 127.0.0.1 at a port that it chooses; None: no network at all.
        devices: device nodes of the engine's host, or directories of them.
        groups: numeric ids of supplementary groups of the first process.
        gpus: the driver's capabilities that are wanted of all GPUs, like `docker run --gpus all,capabilities=…`.
        cdi: devices of the engine's device descriptions (CDI), such as `nvidia.com/gpu=all`.
        runtime: the container runtime; empty for the engine's default.
        mounts: files or directories of the engine's host, mounted read-only at the same path.
        placed: path in the container to a file of the engine's host, mounted read-only there.
        cpus: limits its processes to the time of so many CPUs, like `docker run --cpus`; None: no limit.
        memory: bytes that its processes may use; None does not limit them, such as for a model of the user's.
        log_bytes: of its log as the engine keeps it; what was printed before the last so many is lost.
        resource: the purpose of the container, the value of its `bodhi.resource` label.
    """

    image: str
    command: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    user: str | None = None
    working_directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    volumes: Mapping[str, str] = field(default_factory=dict)
    publish: int | None = None
    devices: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()
    cdi: tuple[str, ...] = ()
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    placed: Mapping[str, str] = field(default_factory=dict)
    cpus: float | None = None
    memory: int | None = 16 << 30
    read_only: bool = True
    log_bytes: int = LOG_BYTES
    resource: str = "probe"


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """How a command inside a container ended; `seconds` is its wall-clock time, start of the container included."""

    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool = False

    @property
    def output(self) -> str:
        """Standard output, then standard error."""
        return self.stdout + self.stderr


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """The state of a container at one moment; `health` is empty when the image has no health check."""

    status: str
    running: bool
    exit_code: int
    error: str
    out_of_memory: bool
    health: str


class Container:
    """A container that exists, started or not.

    Args:
        container: docker-py's.
        near: whether the engine publishes ports on this machine's 127.0.0.1, as far as is known.
    """

    def __init__(self, container: Any, *, near: bool = True) -> None:
        self._container = container
        self._near = near
        self._tunnels: dict[int, Tunnel] = {}
        self.id: str = container.id
        self.name: str = container.name

    def start(self) -> None:
        """Starts the container.

        Raises:
            EngineError: the engine could not start the command, such as a file that is not in the image.
        """
        with engine_errors("start the container"):
            self._container.start()

    def state(self) -> ContainerState:
        """Returns the current state."""
        state = self._attributes()["State"]
        return ContainerState(
            status=state["Status"],
            running=state["Running"],
            exit_code=state["ExitCode"],
            error=state.get("Error", ""),
            out_of_memory=state.get("OOMKilled", False),
            health=state.get("Health", {}).get("Status", ""),
        )

    def memory(self) -> int | None:
        """Returns the bytes that its processes have allocated or share, without cached files; None if it does not run.

        The names are those of memory.stat: `anon` and `shmem` in cgroup v2, `total_rss` and `total_shmem` in v1.
        """
        with engine_errors("ask for the container's memory"):
            seen = self._container.stats(stream=False, one_shot=True)["memory_stats"].get("stats") or {}
        sizes = [seen.get(name, 0) for name in ("anon", "total_rss", "shmem" if "anon" in seen else "total_shmem")]
        return sum(sizes) or None

    def logs(self, *, stdout: bool = True, stderr: bool = True) -> str:
        """Returns everything written to the given streams, in the order in which the engine received it."""
        with engine_errors("read the container's log"):
            return _text(self._container.logs(stdout=stdout, stderr=stderr))

    def port(self, container_port: int) -> int:
        """Returns the port of this machine's 127.0.0.1 that leads to `container_port`.

        That is the published one, or a tunnel's where the engine publishes ports on another machine.

        Raises:
            EngineError: the container does not run or publishes no such port, or cannot be reached from here.
        """
        bindings = self._attributes()["NetworkSettings"]["Ports"].get(f"{container_port}/tcp")
        if not bindings:
            raise EngineError(
                f"The engine published no port for {container_port}: the container does not run, or has no network."
            )
        published = int(bindings[0]["HostPort"])
        if self._near and _listens(published):
            return published
        try:
            if container_port not in self._tunnels:
                with engine_errors("reach the container"):
                    self._tunnels[container_port] = Tunnel(self._container, container_port)
        except EngineError:
            if self._near:  # without docker-proxy, nothing listens until the server does
                return published
            raise
        return self._tunnels[container_port].port

    def close(self) -> None:
        """Closes the tunnels."""
        while self._tunnels:
            self._tunnels.popitem()[1].close()

    def maps(self) -> str:
        """Returns `/proc/<pid>/maps` (proc(5)) of the first process and its children; empty where they cannot be read.

        The first process of our images is the entrypoint, and llama-server is its child.
        """
        children = self.execute(("cat", "/proc/1/task/1/children")).stdout.split()
        return self.execute(("cat", *(f"/proc/{pid}/maps" for pid in ("1", *children)))).stdout

    def signal(self, name: str) -> None:
        """Sends a signal, such as SIGTERM, to the first process."""
        with engine_errors("signal the container"):
            self._container.kill(signal=name)

    def wait(self, timeout: float) -> int | None:
        """Returns the exit code, or None when the container still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (state := self.state()).running or state.status == "created":
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        return state.exit_code

    def execute(self, command: Sequence[str]) -> ProbeResult:
        """Runs a command in the running container and returns how it ended."""
        started = time.monotonic()
        api = self._container.client.api
        with engine_errors("run a command in the container"):
            execution = api.exec_create(self.id, list(command))["Id"]
            # Not by docker-py's exec_start, which loses output that comes together with the headers.
            url = f"{api.base_url}/v{api.api_version}/exec/{execution}/start"
            with api.post(url, json={"Detach": False}, timeout=api.timeout, stream=True) as answer:
                try:
                    answer.raise_for_status()
                except requests.HTTPError as error:
                    raise docker.errors.create_api_error_from_http_exception(error) from error
                output = list(frames(_bounded(answer, started + EXECUTION_SECONDS)))
            code = api.exec_inspect(execution)["ExitCode"]
        return ProbeResult(
            exit_code=code,
            stdout=_text(b"".join(part for stream, part in output if stream == STDOUT)),
            stderr=_text(b"".join(part for stream, part in output if stream != STDOUT)),
            seconds=time.monotonic() - started,
        )

    def put_file(self, path: str, content: bytes) -> None:
        """Writes a file that all users may read; the container need not be started."""
        target = Path(path)
        entry = tarfile.TarInfo(target.name)
        entry.size = len(content)
        entry.mode = 0o644
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
            archive.addfile(entry, io.BytesIO(content))
        with engine_errors(f"put {path} into a container"):
            self._container.put_archive(str(target.parent), buffer.getvalue())

    def _attributes(self) -> Mapping[str, Any]:
        with engine_errors("look at the container"):
            self._container.reload()
        attributes: Mapping[str, Any] = self._container.attrs
        return attributes


def resource_labels(resource: str, *, keep: bool) -> dict[str, str]:
    """Returns the labels of a container or volume; one to keep has no owner, so that clean-up leaves it alone."""
    return {RESOURCE: resource} if keep else {RESOURCE: resource, OWNER: ownership.current()}


def create_arguments(spec: ContainerSpec, *, keep: bool) -> dict[str, Any]:
    """Returns docker-py's arguments for creating the container."""
    network: dict[str, Any] = {"network_mode": "none"}
    if spec.publish is not None:
        network = {"ports": {f"{spec.publish}/tcp": ("127.0.0.1", None)}}
    return {
        "image": spec.image,
        "command": list(spec.command),
        "entrypoint": None if spec.entrypoint is None else list(spec.entrypoint),
        "user": spec.user,
        "working_dir": spec.working_directory,
        "environment": dict(spec.environment),
        "labels": resource_labels(spec.resource, keep=keep),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": spec.read_only,
        # What a hostile image can take of the host.
        "pids_limit": PROCESSES,
        "mem_limit": spec.memory,
        "nano_cpus": None if spec.cpus is None else round(spec.cpus * 1e9),
        "log_config": docker.types.LogConfig(
            type="json-file", config={"max-size": str(spec.log_bytes), "max-file": "1"}
        ),
        # A proxy's password would be in every environment and log; nothing in these containers needs a network.
        "use_config_proxy": False,
        "tmpfs": dict(spec.tmpfs),
        "volumes": {name: {"bind": path, "mode": "rw"} for name, path in spec.volumes.items()},
        "devices": [f"{node}:{node}:rwm" for node in spec.devices],
        "device_requests": list(_device_requests(spec)) or None,
        "runtime": spec.runtime or None,
        "group_add": list(spec.groups),
        # Unlike a volume, a mount of a missing path is an error.
        "mounts": [
            docker.types.Mount(target, source, type="bind", read_only=True)
            for target, source in {**{path: path for path in spec.mounts}, **spec.placed}.items()
        ],
        **network,
    }


def _device_requests(spec: ContainerSpec) -> Iterator[docker.types.DeviceRequest]:
    if spec.gpus:
        yield docker.types.DeviceRequest(count=-1, capabilities=[["gpu", *spec.gpus]])
    if spec.cdi:
        yield docker.types.DeviceRequest(driver="cdi", device_ids=list(spec.cdi))


def _bounded(answer: requests.Response, deadline: float) -> bytearray:
    """Returns an answer; raises EngineError if it is larger than a container's log, or late."""
    content = bytearray()
    for chunk in answer.iter_content(1 << 16):
        content += chunk
        if len(content) > LOG_BYTES or time.monotonic() > deadline:
            raise EngineError(
                f"A command in the container printed more than {LOG_BYTES >> 20} MiB, or for more than "
                f"{EXECUTION_SECONDS:.0f} s: find out what its image runs."
            )
    return content


def _listens(port: int) -> bool:
    """Returns whether 127.0.0.1 accepts connections: not in another network namespace than the engine's."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
