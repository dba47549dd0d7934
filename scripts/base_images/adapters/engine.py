"""The container engine: images, volumes, builds, and containers that clean up after themselves.

Everything created here carries the label `bodhi.resource` and is removed at the end of its `with` block, also after
Ctrl-C. The label `bodhi.owner` names the creating process, so that the next process that creates something removes what
a killed one left behind.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import docker.utils.build
import requests

from base_images.adapters import buildkit, client, devices, ownership
from base_images.adapters.client import REACH_SECONDS
from base_images.adapters.container import Container, ContainerSpec, ProbeResult, create_arguments, resource_labels
from base_images.adapters.devices import EngineDevices
from base_images.adapters.docker_errors import NotFoundError, engine_errors, uninterrupted
from base_images.adapters.endpoint import Endpoint
from base_images.errors import EngineError, ImageNotFoundError
from base_images.labels import OWNER, RESOURCE
from base_images.variants import Platform


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """The engine's version and capabilities."""

    name: str
    version: str
    api_version: str
    architecture: str
    has_bridge: bool


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of the engine. Refer to it by `id` after the first look-up: tags can move.

    Attributes:
        diff_ids: digests of the uncompressed layers, lowest first.
        healthcheck: the command of HEALTHCHECK, including the shell for the shell form; empty without one.
        history: the commands that created the layers, oldest first.
        size: bytes, as reported by the engine.
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


class Engine:
    """A connection to the engine at an endpoint."""

    def __init__(self, connection: docker.DockerClient, endpoint: Endpoint) -> None:
        self._client = connection
        self._endpoint = endpoint
        self._tidied = False  # before the first container or volume goes what killed processes left behind

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _another(self, timeout: int) -> docker.DockerClient:
        """Returns another connection to this engine, whatever the environment says by now."""
        return client.make(self._endpoint, timeout, self._client.api.api_version)

    def info(self) -> EngineInfo:
        """Returns the engine's version and capabilities."""
        with engine_errors("ask the engine for its version"):
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
        """Returns the platform that the engine builds for without emulation.

        Raises:
            EngineError: this project publishes no image for that platform.
        """
        architecture = self.info().architecture
        platform = Platform.of_architecture(architecture)
        if platform is None:
            raise EngineError(f"This engine runs on {architecture}, and images are built for amd64 and arm64 only.")
        return platform

    def capacity(self) -> tuple[int, int]:
        """Returns the processor cores of the engine's machine, and its memory in bytes."""
        with engine_errors("ask the engine for its processors and memory"):
            info = self._client.info()
        return int(info["NCPU"]), int(info["MemTotal"])

    @property
    def is_local(self) -> bool:
        """Whether the connection is a Unix socket of this machine."""
        return self._endpoint.scheme == "unix"

    @functools.cached_property
    def is_near(self) -> bool:
        """Whether the engine publishes ports here and sees our files: its socket is here, and its machine has our name.

        In a development container and for a forwarded socket it has another.
        """
        with engine_errors("ask the engine for its machine's name"):
            return self.is_local and self._client.info()["Name"] == socket.gethostname()

    def storage_driver(self) -> str:
        """Returns the storage driver, such as `overlay2`."""
        with engine_errors("ask the engine for its storage driver"):
            return str(self._client.info()["Driver"])

    def devices(self) -> EngineDevices:
        """Returns how the engine can give devices to containers."""
        with engine_errors("ask the engine how it gives devices"):
            info = self._client.info()
        where = "" if self.is_local else self._endpoint.where
        return devices.of_info(info, api_version=self._client.api.api_version, where=where)

    def image(self, reference: str) -> Image:
        """Returns the image that a tag, a digest or an id currently refers to.

        Raises:
            ImageNotFoundError: the engine has no such image, or the reference is not valid.
        """
        try:
            with engine_errors(f"look at the image {reference}"):
                image = self._client.images.get(reference)
                history = image.history()
        except NotFoundError as error:
            raise ImageNotFoundError(
                f"There is no image {reference!r} on this engine: build it with "
                f"`invoke build-local`, or `docker pull {reference}`, or check the spelling."
            ) from error
        return _image(image, history)

    def images(self, *, label: str = "", reference: str = "") -> list[Image]:
        """Returns the images, tagged or not, with a label (`name` or `name=value`) or a reference.

        A reference may be a repository without a tag. With both arguments an image has to match both.
        """
        filters = {"label": label} if label else {}
        filters |= {"reference": reference} if reference else {}
        with engine_errors("list the images"):
            return [_image(image, image.history()) for image in self._client.images.list(filters=filters)]

    def has_image(self, reference: str) -> bool:
        """Returns whether the engine has the image."""
        try:
            self.image(reference)
        except ImageNotFoundError:
            return False
        return True

    def save(self, image_id: str) -> Iterator[bytes]:
        """Yields the tar stream of `docker save` in chunks, never holding all of it in memory."""
        with engine_errors(f"save the image {image_id}"):
            yield from self._client.images.get(image_id).save(chunk_size=1 << 20)

    def pull(
        self, reference: str, progress: Callable[[Mapping[str, Any]], None] | None = None, *, anonymous: bool = False
    ) -> Image:
        """Pulls an image and returns it; `progress` receives the engine's messages, `anonymous` sends no credentials.

        Raises:
            ImageNotFoundError: the registry has no such image.
            EngineError: the registry cannot be reached, or the pull was interrupted.
        """
        repository, tag = reference.split("@", 1) if "@" in reference else _split_tag(reference)
        try:
            with engine_errors(f"pull {reference}"):
                login: Any = {} if anonymous else None  # None: docker's own
                failed = ""  # said last; reading to the end gives the connection back
                for message in self._client.api.pull(repository, tag, stream=True, decode=True, auth_config=login):
                    failed = failed or message.get("error", "")
                    if progress and not failed:
                        progress(message)
                if failed:
                    raise EngineError(f"The engine could not pull {reference}: {failed.strip()}.")
        except NotFoundError as error:
            raise ImageNotFoundError(f"No registry has the image {reference!r}: {error}.") from error
        return self.image(reference)

    def push(self, reference: str) -> None:
        """Pushes an image by its tag; the registry shows the tag only once all of the image is there.

        Raises:
            EngineError: the registry refused or cannot be reached, or the push was interrupted.
        """
        repository, tag = _split_tag(reference)
        with engine_errors(f"push {reference}"):
            for message in self._client.api.push(repository, tag=tag, stream=True, decode=True):
                if "error" in message:
                    raise EngineError(
                        f"The engine could not push {reference}: {message['error'].strip().rstrip('.')}. Fix that and "
                        "run the same command again: what has been pushed is not pushed twice."
                    )

    def ask_registry(self, reference: str, *, timeout: int) -> str:
        """Returns the digest of `reference`, which the engine requests with its own proxy settings.

        Raises:
            ImageNotFoundError: the registry has no such image.
            EngineError: the registry refused, or did not answer within `timeout` seconds.
        """
        try:
            with contextlib.closing(self._another(timeout)) as brief, engine_errors(f"find {reference}"):
                try:
                    answer: Any = brief.api.inspect_distribution(reference)  # type: ignore[no-untyped-call]
                except requests.Timeout as error:  # the engine waits for the registry
                    raise EngineError(
                        f"The registry of {reference} gave the engine no answer within {timeout} s: look at the "
                        "network, and at the engine's proxy settings."
                    ) from error
                return str(answer["Descriptor"]["digest"])
        except NotFoundError as error:
            raise ImageNotFoundError(
                f"No registry has the image {reference!r}: check its name and tag ({error})."
            ) from error

    def import_filesystem(self, tar: Path, reference: str, changes: Sequence[str]) -> Image:
        """Creates an image with one layer from the tar of a root file system, like `docker import`, and returns it."""
        repository, tag = _split_tag(reference)
        with engine_errors(f"import {tar.name} as {reference}"):
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
        build_id: str = "",
    ) -> Generator[Mapping[str, Any], None, None]:
        """Builds with BuildKit and yields the engine's messages for `buildkit.events`; closing it cancels the build.

        `build_id` is a name for `cancel_build`.

        docker-py does not support BuildKit, but its session adds `params` to every request, and `version=2` selects
        BuildKit (Engine API, POST /build).
        """
        api = self._another(client.REQUEST_SECONDS).api
        api.params = {"version": "2", "buildid": (build_id := build_id or uuid.uuid4().hex)}
        done = False
        try:
            with engine_errors("build"):
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
                # Otherwise the engine continues the build.
                with contextlib.suppress(EngineError):
                    self.cancel_build(build_id)
            api.close()

    def require_buildkit(self) -> None:
        """Cancels a build that does not exist, a request that only an engine with BuildKit accepts.

        Raises:
            EngineError: the engine has no BuildKit, such as Podman's implementation of the Docker API.
        """
        try:
            self.cancel_build(uuid.uuid4().hex)
        except NotFoundError as error:
            raise EngineError(
                "This engine builds without BuildKit, which the recipes need: use Docker 20.10 or newer."
            ) from error

    def cancel_build(self, build_id: str) -> None:
        """Ends a build, which may be another thread's.

        Raises:
            EngineError: the engine has no builds to cancel, or does not answer.
        """
        api = self._client.api
        with engine_errors("cancel a build"):
            answer = api.post(
                f"{api.base_url}/v{api.api_version}/build/cancel", params={"id": build_id}, timeout=REACH_SECONDS
            )
            if answer.status_code == requests.codes.not_found:
                raise NotFoundError("The engine has no builds to cancel.")

    def tag(self, image_id: str, reference: str) -> None:
        """Tags the image with `reference`."""
        repository, tag = _split_tag(reference)
        with engine_errors(f"tag {reference}"):
            self._client.api.tag(image_id, repository, tag=tag, force=True)

    def remove_image(self, reference: str) -> None:
        """Removes a tag, or the image itself when given its id; a missing image is not an error."""
        with contextlib.suppress(NotFoundError), engine_errors(f"remove the image {reference}"):
            self._client.images.remove(reference, noprune=False)

    def free_disk(self) -> int | None:
        """Returns the free bytes of the disk with the engine's images; None when that is not on this machine."""
        with engine_errors("ask for the engine's root directory"):
            root = str(self._client.info()["DockerRootDir"])
        if not self.is_local:
            return None
        try:
            return shutil.disk_usage(root).free
        except OSError:  # an engine in a container, or in a virtual machine of this one
            return None

    def disk_usage(self) -> int:
        """Returns the size of all image layers in bytes, shared layers counted once."""
        with engine_errors("ask for the disk usage"):
            return int(self._client.df()["LayersSize"])

    def forget_build_steps(self, word: str) -> int:
        """Removes steps, see `buildkit.steps_with`, from the build cache unless images need them; returns the bytes."""
        with engine_errors("remove steps from the build cache"):
            found = buildkit.steps_with(word, self._client.df()["BuildCache"] or ())
            of_one: Any = {"id": f"^({'|'.join(sorted(found))})$"}
            return int(self._client.api.prune_builds(filters=of_one, all=True)["SpaceReclaimed"]) if found else 0

    @contextlib.contextmanager
    def volume(self, resource: str, *, keep: bool = False) -> Iterator[str]:
        """Yields the name of a new volume, which is removed afterwards unless `keep` is set."""
        if not self._tidied:
            self.remove_abandoned()
        name = f"{RESOURCE}-{uuid.uuid4().hex}"
        try:
            with uninterrupted(), engine_errors("make a volume"):
                self._client.volumes.create(name=name, labels=resource_labels(resource, keep=keep))
            yield name
        finally:
            if not keep:
                with uninterrupted():
                    self._remove_volume(name)

    @contextlib.contextmanager
    def container(
        self, spec: ContainerSpec, files: Mapping[str, bytes] | None = None, *, keep: bool = False
    ) -> Iterator[Container]:
        """Yields a new container, not yet started, and removes it afterwards, running or not.

        `files` are absolute path to content, written before the start and readable by all. With a read-only root the
        path must be in one of the spec's volumes. With `keep` the container stays.

        Raises:
            ImageNotFoundError: the engine does not have the image.
            EngineError: the engine refused.
        """
        if not self._tidied:
            self.remove_abandoned()
        name = f"{RESOURCE}-{uuid.uuid4().hex}"
        near = spec.publish is None or self.is_near
        container = None
        try:
            try:
                with uninterrupted(), engine_errors("make a container"):
                    created = self._client.containers.create(name=name, **create_arguments(spec, keep=keep))
            except NotFoundError as error:
                raise ImageNotFoundError(f"There is no image {spec.image!r} on this engine.") from error
            container = Container(created, near=near)
            for path, content in (files or {}).items():
                container.put_file(path, content)
            yield container
        finally:
            if container:
                container.close()
            if not keep:
                with uninterrupted():
                    self._remove_container(name)

    def remove_abandoned(self) -> int:
        """Removes the containers and volumes of processes that ended without removing them; returns how many.

        Those of another host or of another process namespace stay: whether their processes run cannot be known here.
        """
        self._tidied = True
        filters = {"label": [RESOURCE, OWNER]}
        removed = 0
        with engine_errors("list what was left behind"):
            containers = self._client.api.containers(all=True, filters=filters)
            volumes = self._client.api.volumes(filters=filters)["Volumes"] or []
        kinds = ((containers, "Id", self._remove_container), (volumes, "Name", self._remove_volume))
        for resources, key, remove in kinds:
            for resource in resources:
                if ownership.is_gone(resource["Labels"][OWNER]):
                    # A process that starts at the same time may be removing it; the next one removes what stays.
                    with uninterrupted(), contextlib.suppress(EngineError):
                        remove(resource[key])
                        removed += 1
        return removed

    def _remove_container(self, name: str) -> None:
        with contextlib.suppress(NotFoundError), engine_errors("remove a container"):
            self._client.api.remove_container(name, force=True, v=True)

    def _remove_volume(self, name: str) -> None:
        with contextlib.suppress(NotFoundError), engine_errors("remove a volume"):
            self._client.api.remove_volume(name, force=True)

    def probe(self, spec: ContainerSpec, *, timeout: float = 60) -> ProbeResult:
        """Runs a container until it exits, or kills it after `timeout` seconds, and returns the result.

        A command that is not in the image gives exit code 127, as in a shell.
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
            stdout, stderr = container.logs(stderr=False), container.logs(stdout=False)
        return ProbeResult(
            exit_code=137 if code is None else code,
            stdout=stdout,
            stderr=stderr,
            seconds=time.monotonic() - started,
            timed_out=code is None,
        )


def connect(timeout: int = client.REQUEST_SECONDS) -> Engine:
    """Returns a connection to the engine that docker's own client would use; for `timeout` see `client.connect`.

    Raises:
        EngineError: no engine answers, or the chosen context cannot be used.
    """
    return Engine(*client.connect(timeout))


def not_ignored(directory: Path, patterns: Sequence[str]) -> set[str]:
    """Returns the paths below `directory` that the patterns of a .dockerignore do not exclude."""
    return {path for path in docker.utils.build.exclude_paths(str(directory), list(patterns)) if path}


def _split_tag(reference: str) -> tuple[str, str]:
    """`host:5000/name:tag` → (`host:5000/name`, `tag`); without a tag it is `latest`, as in docker."""
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
        # The containerd store returns null for an image whose configuration has no history.
        history=tuple(entry.get("CreatedBy", "") for entry in reversed(history or ())),
    )


def _healthcheck(raw: Mapping[str, Any] | None) -> tuple[str, ...]:
    match (raw or {}).get("Test") or ():
        case ["CMD", *words]:
            return tuple(words)
        case ["CMD-SHELL", script]:
            return ("/bin/sh", "-c", script)
    return ()
