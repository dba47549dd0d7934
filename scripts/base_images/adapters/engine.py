"""The container engine: the only module that imports docker.

Everything that runs from an image runs hardened (CONTRACT row 11): no capabilities, no new privileges, a read-only
root, and no network unless a port is asked for. Everything made here carries the label `bodhi.resource` and is
removed when its `with` block ends, also by Ctrl-C. What a process leaves that was killed hard is told by the label
`bodhi.owner`, and removed by `Engine.remove_abandoned`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import docker
import docker.auth
import docker.errors
import docker.types
import docker.utils.build
import requests
from docker.context.config import get_current_context_name

from base_images.adapters import ownership
from base_images.errors import BaseImagesError, EngineError, ImageNotFoundError, RegistryError
from base_images.labels import OWNER, RESOURCE
from base_images.progress import Listener, Progress
from base_images.variants import Platform

REQUEST_TIMEOUT_SECONDS = 600
"""For one answer of the engine; saving or removing a large image takes a while before the first byte."""

REACH_SECONDS = 30
"""For an answer that takes no work."""

_TRANSPORT_ERRORS = (docker.errors.DockerException, requests.RequestException)


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What the engine says of itself."""

    name: str
    version: str
    api_version: str
    architecture: str
    has_bridge: bool


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the engine. `id` is what everything after the first look-up goes by: tags can move.

    Attributes:
        diff_ids: digests of the uncompressed layers, lowest first.
        healthcheck: the command of its HEALTHCHECK, with the shell where it is of the shell form; empty without one.
        history: the commands that made the image, oldest first.
        size: bytes, as the engine counts them.
    """

    id: str
    tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    labels: Mapping[str, str]
    architecture: str
    created: str
    size: int
    user: str
    working_directory: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    healthcheck: tuple[str, ...]
    diff_ids: tuple[str, ...]
    history: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """A hardened container.

    Attributes:
        image: an image id or reference that the engine has.
        command: arguments; with `entrypoint` None they go to the image's own entrypoint.
        entrypoint: replaces the image's entrypoint when given.
        user: `uid:gid` or a name; None is the image's own user.
        tmpfs: directory to mount options, such as {"/tmp": "exec,mode=1777"}.
        volumes: volume name to directory.
        publish: a TCP port, published on 127.0.0.1 at a port that the engine chooses; None: no network at all.
        devices: device nodes of the engine's host, or directories of them.
        groups: numbers of groups that the first process joins.
        gpus: whether the engine passes all GPUs, as `docker run --gpus all` has it.
        runtime: the container runtime; empty for the engine's default.
        mounts: files or directories of the engine's host, mounted read-only at the same path.
        resource: what the container is for, the value of its `bodhi.resource` label.
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
    gpus: bool = False
    runtime: str = ""
    mounts: tuple[str, ...] = ()
    read_only: bool = True
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
    """A container at one moment; `health` is empty when the image has no health check."""

    status: str
    running: bool
    exit_code: int
    error: str
    out_of_memory: bool
    health: str


class Container:
    """A container that exists, started or not."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self.id: str = container.id
        self.name: str = container.name

    def start(self) -> None:
        """Starts it.

        Raises:
            EngineError: the engine could not start the command, such as a file that is not in the image.
        """
        with _engine_errors("start the container"):
            self._container.start()

    def state(self) -> ContainerState:
        """Returns what the engine says of it now."""
        with _engine_errors("look at the container"):
            self._container.reload()
        state = self._container.attrs["State"]
        return ContainerState(
            status=state["Status"],
            running=state["Running"],
            exit_code=state["ExitCode"],
            error=state.get("Error", ""),
            out_of_memory=state.get("OOMKilled", False),
            health=state.get("Health", {}).get("Status", ""),
        )

    def logs(self) -> str:
        """Returns everything it wrote, standard output and standard error as they came."""
        with _engine_errors("read the container's log"):
            return _text(self._container.logs())

    def port(self, container_port: int) -> int:
        """Returns the port of 127.0.0.1 at which `container_port` is published."""
        with _engine_errors("look at the container"):
            self._container.reload()
        bindings = self._container.attrs["NetworkSettings"]["Ports"].get(f"{container_port}/tcp")
        if not bindings:
            raise EngineError(
                f"The engine published no port for {container_port}: the container does not run, or has no network."
            )
        return int(bindings[0]["HostPort"])

    def maps(self) -> str:
        """Returns what its first process has mapped, as proc(5) has it; empty where that cannot be read."""
        return self.execute(("cat", "/proc/1/maps")).stdout

    def signal(self, name: str) -> None:
        """Sends a signal, such as SIGTERM, to its first process."""
        with _engine_errors("signal the container"):
            self._container.kill(signal=name)

    def wait(self, timeout: float) -> int | None:
        """Returns the exit code, or None when it still runs after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (state := self.state()).running or state.status == "created":
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)
        return state.exit_code

    def execute(self, command: Sequence[str], *, user: str | None = None) -> ProbeResult:
        """Runs a command in the running container and returns how it ended."""
        started = time.monotonic()
        with _engine_errors("run a command in the container"):
            code, (stdout, stderr) = self._container.exec_run(list(command), demux=True, user=user or "")
        return ProbeResult(
            exit_code=code,
            stdout=_text(stdout or b""),
            stderr=_text(stderr or b""),
            seconds=time.monotonic() - started,
        )


class Engine:
    """A connection to the engine that DOCKER_HOST or docker's current context names."""

    def __init__(self, client: docker.DockerClient) -> None:
        self._client = client

    def close(self) -> None:
        """Closes the connection; a command's end does it too."""
        self._client.close()

    def info(self) -> EngineInfo:
        """Returns what the engine says of itself."""
        with _engine_errors("ask the engine for its version"):
            version = self._client.version()
            bridge = self._client.networks.list(names=["^bridge$"])
        names = [component["Name"] for component in version.get("Components", [])]
        return EngineInfo(
            name=names[0] if names else "Engine",
            version=version["Version"],
            api_version=version["ApiVersion"],
            architecture=version["Arch"],
            has_bridge=bool(bridge),
        )

    def platform(self) -> Platform:
        """Returns the platform that it builds for without emulation.

        Raises:
            EngineError: no image is published for it.
        """
        architecture = self.info().architecture
        platform = Platform.of_architecture(architecture)
        if platform is None:
            raise EngineError(f"This engine runs on {architecture}, and images are built for amd64 and arm64 only.")
        return platform

    @property
    def is_local(self) -> bool:
        """Whether it is reached by a socket of this machine."""
        return bool(self._client.api.base_url == "http+docker://localhost")

    def storage_driver(self) -> str:
        """Returns what the engine keeps its images with, such as `overlay2`."""
        with _engine_errors("ask the engine for its storage driver"):
            return str(self._client.info()["Driver"])

    def runtimes(self) -> frozenset[str]:
        """Returns the names of the container runtimes that the engine knows."""
        with _engine_errors("ask the engine for its runtimes"):
            return frozenset(self._client.info()["Runtimes"])

    def image(self, reference: str) -> Image:
        """Returns the image that a tag, a digest or an id names now.

        Raises:
            ImageNotFoundError: the engine has no such image, or the reference is not one.
        """
        try:
            with _engine_errors(f"look at the image {reference}"):
                image = self._client.images.get(reference)
                history = image.history()
        except _NotFoundError as error:
            raise ImageNotFoundError(
                f"There is no image {reference!r} on this engine: build it with "
                f"`invoke build-local`, or `docker pull {reference}`, or check the spelling."
            ) from error
        return _image(image, history)

    def images(self, *, label: str = "", reference: str = "") -> list[Image]:
        """Returns every image, tagged or not, that carries a label (`name` or `name=value`) or has a reference.

        A reference may be a repository without a tag; both arguments together mean both conditions.
        """
        filters = {"label": label} if label else {}
        filters |= {"reference": reference} if reference else {}
        with _engine_errors("list the images"):
            return [_image(image, image.history()) for image in self._client.images.list(filters=filters)]

    def has_image(self, reference: str) -> bool:
        """Returns whether the engine has the image."""
        try:
            self.image(reference)
        except ImageNotFoundError:
            return False
        return True

    def save(self, image_id: str) -> Iterator[bytes]:
        """Yields the image as the tar stream of `docker save`, in pieces; it is never held in memory whole."""
        with _engine_errors(f"save the image {image_id}"):
            yield from self._client.images.get(image_id).save(chunk_size=1 << 20)

    def pull(self, reference: str, progress: Callable[[Mapping[str, Any]], None] | None = None) -> Image:
        """Pulls an image and returns it; `progress` gets the engine's messages as they come.

        Raises:
            ImageNotFoundError: the registry has no such image.
            EngineError: the registry cannot be reached, or the pull broke off.
        """
        repository, _, tag = reference.partition("@")
        if not tag:
            repository, tag = _split_tag(reference)
        try:
            with _engine_errors(f"pull {reference}"):
                for message in self._client.api.pull(repository, tag=tag, stream=True, decode=True):
                    if "error" in message:
                        raise EngineError(f"The engine could not pull {reference}: {message['error'].strip()}.")
                    if progress:
                        progress(message)
        except _NotFoundError as error:
            raise ImageNotFoundError(f"No registry has the image {reference!r}: {error}.") from error
        return self.image(reference)

    def push(self, reference: str, progress: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        """Pushes what a tag names; the tag appears in the registry at the end, when all of it is there.

        Raises:
            EngineError: the registry refused or cannot be reached, or the push broke off.
        """
        repository, tag = _split_tag(reference)
        with _engine_errors(f"push {reference}"):
            for message in self._client.api.push(repository, tag=tag, stream=True, decode=True):
                if "error" in message:
                    raise EngineError(
                        f"The engine could not push {reference}: {message['error'].strip().rstrip('.')}. Mend that and "
                        "run the same command again: what is there already is not pushed twice."
                    )
                if progress:
                    progress(message)

    def ask_registry(self, reference: str, *, timeout: int) -> str:
        """Returns the digest that a registry gives for `reference`, asked by the engine: its proxies, its logins.

        Raises:
            ImageNotFoundError: the registry answered that it has no such image.
            EngineError: the registry refused, or did not answer within `timeout` seconds.
        """
        try:
            with contextlib.closing(_client(timeout)) as client, _engine_errors(f"find {reference}"):
                answer: Any = client.api.inspect_distribution(reference)  # type: ignore[no-untyped-call]
                return str(answer["Descriptor"]["digest"])
        except _NotFoundError as error:
            raise ImageNotFoundError(
                f"No registry has the image {reference!r}: check its name and tag ({error})."
            ) from error

    def import_filesystem(self, tar: Path, reference: str, changes: Sequence[str]) -> Image:
        """Makes an image of one layer out of a root file system's tar, as `docker import` does, and returns it."""
        repository, tag = _split_tag(reference)
        with _engine_errors(f"import {tar.name} as {reference}"):
            answer = self._client.api.import_image_from_file(
                str(tar), repository=repository, tag=tag, changes=list(changes)
            )
        if "errorDetail" in answer:
            raise EngineError(f"The engine could not import {tar.name}: {answer}.")
        return self.image(reference)

    def build(
        self,
        context: IO[bytes],
        *,
        dockerfile: str,
        target: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        platform: str,
    ) -> Generator[Mapping[str, Any], None, None]:
        """Builds with BuildKit and yields the engine's messages for `buildkit.events`; closing it cancels the build.

        docker-py has no BuildKit support of its own, but its session adds `params` to every request, and
        `version=2` is what selects BuildKit (Engine API, POST /build).
        """
        build_id = uuid.uuid4().hex
        api = _client().api
        api.params = {"version": "2", "buildid": build_id}
        done = False
        try:
            with _engine_errors("build"):
                yield from api.build(
                    fileobj=context,
                    custom_context=True,
                    dockerfile=dockerfile,
                    target=target,
                    buildargs=dict(arguments),
                    labels=dict(labels),
                    platform=platform,
                    network_mode=None if self.info().has_bridge else "host",
                    decode=True,
                )
            done = True
        finally:
            if not done:
                # Without this an engine goes on building for nobody.
                with contextlib.suppress(EngineError):
                    self._cancel_build(build_id)
            api.close()

    def require_buildkit(self) -> None:
        """Asks for the cancellation of a build that does not exist, which only an engine with BuildKit can do.

        Raises:
            EngineError: it cannot, such as Podman's imitation of the Docker API.
        """
        try:
            self._cancel_build(uuid.uuid4().hex)
        except _NotFoundError as error:
            raise EngineError(
                "This engine builds without BuildKit, which the recipes need: use Docker 20.10 or newer."
            ) from error

    def _cancel_build(self, build_id: str) -> None:
        api = self._client.api
        with _engine_errors("cancel a build"):
            answer = api.post(
                f"{api.base_url}/v{api.api_version}/build/cancel", params={"id": build_id}, timeout=REACH_SECONDS
            )
            if answer.status_code == requests.codes.not_found:
                raise _NotFoundError("The engine has no builds to cancel.")

    def tag(self, image_id: str, reference: str) -> None:
        """Points `reference` at the image."""
        repository, tag = _split_tag(reference)
        with _engine_errors(f"tag {reference}"):
            self._client.api.tag(image_id, repository, tag=tag, force=True)

    def remove_image(self, reference: str) -> None:
        """Removes a tag, or the image itself when given its id; an image that is gone already is no error."""
        with contextlib.suppress(_NotFoundError), _engine_errors(f"remove the image {reference}"):
            self._client.images.remove(reference, noprune=False)

    def free_disk(self) -> int | None:
        """Returns the bytes that are free where the engine keeps its images; None when that is not on this machine."""
        with _engine_errors("ask for the engine's root directory"):
            root = str(self._client.info()["DockerRootDir"])
        if not self.is_local:
            return None
        try:
            return shutil.disk_usage(root).free
        except OSError:  # an engine in a container, or in a virtual machine of this one
            return None

    def disk_usage(self) -> int:
        """Returns the bytes that the engine's image layers take, shared layers counted once."""
        with _engine_errors("ask for the disk usage"):
            return int(self._client.df()["LayersSize"])

    @contextlib.contextmanager
    def volume(self, resource: str, *, keep: bool = False) -> Iterator[str]:
        """Yields the name of a new volume; it is removed afterwards unless it is to be kept."""
        name = f"{RESOURCE}-{uuid.uuid4().hex}"
        try:
            with _uninterrupted(), _engine_errors("make a volume"):
                self._client.volumes.create(name=name, labels=_labels(resource, keep=keep))
            yield name
        finally:
            if not keep:
                with _uninterrupted():
                    self._remove_volume(name)

    @contextlib.contextmanager
    def container(
        self, spec: ContainerSpec, files: Mapping[str, bytes] | None = None, *, keep: bool = False
    ) -> Iterator[Container]:
        """Yields a container that is made but not started, and removes it afterwards, running or not.

        Args:
            spec: what to run.
            files: absolute path to content, put there before the start, readable by all. With a read-only root the
                path must lie in one of the spec's volumes.
            keep: whether it stays.

        Raises:
            ImageNotFoundError: the image is not there.
            EngineError: the engine refused.
        """
        name = f"{RESOURCE}-{uuid.uuid4().hex}"
        try:
            try:
                with _uninterrupted(), _engine_errors("make a container"):
                    container = self._client.containers.create(name=name, **_create_arguments(spec, keep=keep))
            except _NotFoundError as error:
                raise ImageNotFoundError(f"There is no image {spec.image!r} on this engine.") from error
            for path, content in (files or {}).items():
                _put(container, path, content)
            yield Container(container)
        finally:
            if not keep:
                with _uninterrupted():
                    self._remove_container(name)

    def remove_abandoned(self) -> int:
        """Removes containers and volumes whose owner is gone without having removed them; returns how many.

        What processes of another host, or of another process namespace, have made is left alone: whether they are gone
        cannot be seen from here.
        """
        mine = {"label": [RESOURCE, OWNER]}
        removed = 0
        with _engine_errors("list what was left behind"):
            containers = self._client.api.containers(all=True, filters=mine)
            volumes = self._client.api.volumes(filters=mine)["Volumes"] or []
        for things, name, remove in (
            (containers, "Id", self._remove_container),
            (volumes, "Name", self._remove_volume),
        ):
            for thing in things:
                if ownership.is_gone(thing["Labels"][OWNER]):
                    # Another one that starts now may be about to remove the same; what stays, the next one removes.
                    with _uninterrupted(), contextlib.suppress(EngineError):
                        remove(thing[name])
                        removed += 1
        return removed

    def _remove_container(self, name: str) -> None:
        with contextlib.suppress(_NotFoundError), _engine_errors("remove a container"):
            self._client.api.remove_container(name, force=True, v=True)

    def _remove_volume(self, name: str) -> None:
        with contextlib.suppress(_NotFoundError), _engine_errors("remove a volume"):
            self._client.api.remove_volume(name, force=True)

    def probe(self, spec: ContainerSpec, *, timeout: float = 60) -> ProbeResult:
        """Runs a container to its end and returns how it ended; a container that takes longer is killed.

        A command that is not in the image is exit code 127, as a shell would say it.
        """
        started = time.monotonic()
        with self.container(spec) as container:
            try:
                container.start()
            except EngineError as error:
                return ProbeResult(exit_code=127, stdout="", stderr=str(error), seconds=time.monotonic() - started)
            code = container.wait(timeout)
            if code is None:
                container.signal("SIGKILL")
            handle = container._container  # noqa: SLF001 - separate streams are wanted here alone
            with _engine_errors("read the container's log"):
                stdout = _text(handle.logs(stdout=True, stderr=False))
                stderr = _text(handle.logs(stdout=False, stderr=True))
        return ProbeResult(
            exit_code=137 if code is None else code,
            stdout=stdout,
            stderr=stderr,
            seconds=time.monotonic() - started,
            timed_out=code is None,
        )


def chosen() -> str:
    """Returns the engine that a person chose, by DOCKER_HOST or docker's context; empty for the local one."""
    if where := os.environ.get("DOCKER_HOST"):
        return where
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    return "" if name == "default" else f"docker's context {name}"


def connect(timeout: int = REQUEST_TIMEOUT_SECONDS) -> Engine:
    """Returns a connection to the engine of DOCKER_HOST, else of docker's current context, else the local one.

    Args:
        timeout: seconds within which every answer has to begin.

    Raises:
        EngineError: none answers.
    """
    try:
        client = _client(timeout)
        client.ping()
    except _TRANSPORT_ERRORS as error:
        where = chosen()
        raise EngineError(
            f"No container engine answers at {where}: start it, or choose another with DOCKER_HOST or `docker context`."
            if where
            else "No container engine answers: start Docker, or set DOCKER_HOST, or let `sh scripts/bootstrap.sh …` "
            "install one."
        ) from error
    return Engine(client)


def registry_credentials(host: str) -> tuple[str, str] | None:
    """Returns the user name and password that docker's own configuration has for a registry; None without.

    Raises:
        RegistryError: its configuration or its credential helper does not work, or it has a token of another kind.
    """
    try:
        found = docker.auth.load_config().resolve_authconfig("" if host == docker.auth.INDEX_NAME else host)
    except (docker.errors.DockerException, OSError, ValueError) as error:
        # Neither the helper's output nor the file is quoted: it may hold the secret.
        raise RegistryError(
            f"docker's credentials for {host} cannot be read: look at ~/.docker/config.json and its credential helper "
            f"({type(error).__name__})."
        ) from None
    if not found:
        return None
    try:
        username, password = (found.get(key) or found[key.capitalize()] for key in ("username", "password"))
    except KeyError:
        raise RegistryError(
            f"docker holds no user name and password for {host}: log in with `docker login {host}` and an access token."
        ) from None
    return str(username), str(password)


def not_ignored(directory: Path, patterns: Sequence[str]) -> set[str]:
    """Returns the paths below `directory` that the patterns of a .dockerignore let through."""
    return {path for path in docker.utils.build.exclude_paths(str(directory), list(patterns)) if path}


def _client(timeout: int = REQUEST_TIMEOUT_SECONDS) -> docker.DockerClient:
    use_ssh = os.environ.get("DOCKER_HOST", "").startswith("ssh://")
    return docker.from_env(timeout=timeout, use_ssh_client=use_ssh)


class _NotFoundError(EngineError):
    """The engine answered that a thing does not exist."""


@contextlib.contextmanager
def _engine_errors(action: str) -> Iterator[None]:
    """Turns docker-py's and HTTP's errors into ours, with what was being done."""
    try:
        yield
    except BaseImagesError:
        raise
    except (docker.errors.NotFound, docker.errors.ImageNotFound) as error:
        raise _NotFoundError(f"The engine could not {action}: {error.explanation or error}") from error
    except docker.errors.APIError as error:
        if (
            error.response is not None
            and error.response.status_code == requests.codes.bad_request
            and ("invalid reference format" in str(error.explanation))
        ):
            raise _NotFoundError(f"The engine could not {action}: the reference is not valid.") from error
        raise EngineError(f"The engine could not {action}: {error.explanation or error}") from error
    except _TRANSPORT_ERRORS as error:
        raise EngineError(f"The engine stopped answering while asked to {action}: {error}") from error


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts off Ctrl-C until the block has ended; a second one is not put off.

    The engine goes on with a request whose client is gone: a container that it makes for nobody would stay, and one
    that it is still removing keeps its volume.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted, and only it may set a handler
        return
    put_off: list[int] = []

    def put_it_off(number: int, _frame: object) -> None:
        if put_off:
            raise KeyboardInterrupt
        put_off.append(number)

    usual = signal.signal(signal.SIGINT, put_it_off)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if put_off:
        signal.raise_signal(signal.SIGINT)


def _labels(resource: str, *, keep: bool) -> dict[str, str]:
    """What is to be kept has no owner: nobody removes it when this process is gone."""
    return {RESOURCE: resource} if keep else {RESOURCE: resource, OWNER: ownership.current()}


def _create_arguments(spec: ContainerSpec, *, keep: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "image": spec.image,
        "command": list(spec.command),
        "environment": dict(spec.environment),
        "labels": _labels(spec.resource, keep=keep),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": spec.read_only,
        "tmpfs": dict(spec.tmpfs),
        "volumes": {name: {"bind": path, "mode": "rw"} for name, path in spec.volumes.items()},
        "devices": [f"{node}:{node}:rwm" for node in spec.devices],
        "group_add": list(spec.groups),
        # Unlike a volume, a mount of something that does not exist is an error.
        "mounts": [docker.types.Mount(path, path, type="bind", read_only=True) for path in spec.mounts],
    }
    if spec.gpus:
        arguments["device_requests"] = [docker.types.DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if spec.runtime:
        arguments["runtime"] = spec.runtime
    if spec.entrypoint is not None:
        arguments["entrypoint"] = list(spec.entrypoint)
    if spec.user is not None:
        arguments["user"] = spec.user
    if spec.working_directory is not None:
        arguments["working_dir"] = spec.working_directory
    if spec.publish is None:
        arguments["network_mode"] = "none"
    else:
        arguments["ports"] = {f"{spec.publish}/tcp": ("127.0.0.1", None)}
    return arguments


def _put(container: Any, path: str, content: bytes) -> None:
    target = Path(path)
    entry = tarfile.TarInfo(target.name)
    entry.size = len(content)
    entry.mode = 0o644
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(entry, io.BytesIO(content))
    with _engine_errors(f"put {path} into a container"):
        container.put_archive(str(target.parent), buffer.getvalue())


def _split_tag(reference: str) -> tuple[str, str]:
    """`host:5000/name:tag` → (`host:5000/name`, `tag`); no tag is `latest`, as docker has it."""
    head, colon, tail = reference.rpartition(":")
    if colon and "/" not in tail:
        return head, tail
    return reference, "latest"


def _image(image: Any, history: Sequence[Mapping[str, Any]] | None) -> Image:
    attributes = image.attrs
    config = attributes.get("Config") or {}
    return Image(
        id=attributes["Id"],
        tags=tuple(attributes.get("RepoTags") or ()),
        repo_digests=tuple(attributes.get("RepoDigests") or ()),
        labels=dict(config.get("Labels") or {}),
        architecture=attributes["Architecture"],
        created=attributes.get("Created") or "",
        size=attributes["Size"],
        user=config.get("User") or "",
        working_directory=config.get("WorkingDir") or "/",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=dict(entry.partition("=")[::2] for entry in config.get("Env") or ()),
        healthcheck=_healthcheck(config.get("Healthcheck")),
        diff_ids=tuple(attributes["RootFS"].get("Layers") or ()),
        # The containerd store says null of an image whose configuration has no history.
        history=tuple(entry.get("CreatedBy", "") for entry in reversed(history or ())),
    )


def _healthcheck(raw: Mapping[str, Any] | None) -> tuple[str, ...]:
    match (raw or {}).get("Test") or ():
        case ["CMD", *words]:
            return tuple(words)
        case ["CMD-SHELL", script]:
            return ("/bin/sh", "-c", script)
    return ()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def pull_progress(reference: str, listener: Listener) -> Callable[[Mapping[str, Any]], None]:
    """Adds the layers' messages up to one figure."""
    layers: dict[str, tuple[int, int]] = {}

    def on_message(message: Mapping[str, Any]) -> None:
        detail = message.get("progressDetail") or {}
        if message.get("status") == "Downloading" and detail.get("total"):
            layers[message["id"]] = (detail.get("current", 0), detail["total"])
        done, total = sum(done for done, _ in layers.values()), sum(total for _, total in layers.values())
        listener(Progress(what=f"pull {reference}", done=done, total=total or None, note=message.get("status", "")))

    return on_message
