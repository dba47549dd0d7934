"""The smoke test of an image: starts llama-server in containers, in the ways people start it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from base_images.adapters.container import Container, ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import LaunchError
from base_images.image import ARBITRARY_USER
from base_images.recipes import consumer
from base_images.smoke import device as devices
from base_images.smoke import model_file as model_files
from base_images.smoke.device import Granted
from base_images.smoke.model import KnownAnswer
from base_images.smoke.report import SmokeReport
from base_images.smoke.runner import Options, ServerPlan, Subject, check_servers, model_name
from base_images.smoke.server import ENVIRONMENT, bodhi_alias, device_arguments
from base_images.variants import STATIC_BACKENDS, Platform, Variant

CACHE = "/var/tmp"  # noqa: S108 - in the container; a volume mounted there is writable for every user
"""Mount point of the volume in which the servers on a device share compiled kernels."""

MODELS = "/models"
"""Mount point of the volume with the model: the root of the container is read-only."""

BODHI_PORT = 51837
"""Not a default port: BodhiApp takes any free one, and the health check has to follow it."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to start llama-server.

    Attributes:
        container: the container, without the volume of the model.
        port: the port inside the container, which `container` publishes.
        alias: the model's name in the server's answers.
        model_path: the model's path in the container, below `MODELS`.
    """

    container: ContainerSpec
    port: int
    alias: str
    model_path: str

    @property
    def arguments(self) -> str:
        """The command line, for reports; `IMAGE` stands for the image's own entrypoint."""
        return " ".join((*(self.container.entrypoint or ("IMAGE",)), *self.container.command))


def quick_start(image: str, model_name: str) -> Way:
    """Returns the quick start `docker run IMAGE --host 0.0.0.0 --port 8080 …`, run by an arbitrary user id."""
    path = f"{MODELS}/{model_name}.gguf"
    return Way(
        container=ContainerSpec(
            image=image,
            command=(*devices.SERVER_ARGUMENTS, path),
            user=ARBITRARY_USER,
            environment=ENVIRONMENT,
            publish=devices.PORT,
            resource="smoke",
        ),
        port=devices.PORT,
        alias=path,  # the server's default without --alias
        model_path=path,
    )


def as_bodhi(image: str, model_name: str, directory: str) -> Way:
    """Returns BodhiApp's start: the binary in `directory` with BodhiApp's arguments, run by the image's user.

    BodhiApp sends its requests inside the container. The smoke test sends them from outside, so a variable sets the
    address to listen on and the arguments stay BodhiApp's own.
    """
    path = f"{MODELS}/{model_name}.gguf"
    alias = bodhi_alias(model_name)
    return Way(
        container=ContainerSpec(
            image=image,
            entrypoint=(f"{directory}/llama-server",),
            command=consumer.load().command(alias=alias, model=path, port=BODHI_PORT),
            environment={
                **ENVIRONMENT,
                "LLAMA_ARG_HOST": "0.0.0.0",  # noqa: S104 - published on 127.0.0.1 alone
                "LD_LIBRARY_PATH": "",  # the loader treats it as unset; overrides the value of a base image
            },
            publish=BODHI_PORT,
            resource="smoke",
        ),
        port=BODHI_PORT,
        alias=alias,
        model_path=path,
    )


def on_device(way: Way, device: Granted, cache: str) -> Way:
    """Adds the device, the volume `cache` for compiled kernels, and `device_arguments`."""
    spec = devices.grant(way.container, device)
    command = (*spec.command, *device_arguments(spec.command))
    return dataclasses.replace(way, container=dataclasses.replace(spec, command=command, volumes={cache: CACHE}))


def from_directory(way: Way, directory: str) -> Way:
    """Replaces the image's own server with that of another directory, such as `cpu/`."""
    return dataclasses.replace(
        way, container=dataclasses.replace(way.container, entrypoint=(f"{directory}/llama-server",))
    )


def with_arguments(way: Way, arguments: tuple[str, ...], model_file: Path | None) -> Way:
    """Adds arguments, and replaces the model with that of a file of the engine's host if one is given.

    Raises:
        UsageError: the file is one of several, and another is missing.
    """
    spec = way.container
    command = spec.command
    if model_file:
        command = tuple(str(model_file) if word == way.model_path else word for word in command)
        spec = dataclasses.replace(spec, mounts=(*spec.mounts, *map(str, model_files.shards(model_file))), memory=None)
    return dataclasses.replace(way, container=dataclasses.replace(spec, command=(*command, *arguments)))


@dataclass(kw_only=True)
class Kept:
    """Names of containers and volumes that are not removed; added as they are made, so that a failure loses none."""

    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    @property
    def removal(self) -> str:
        """The command that removes them; empty if there are none."""
        kinds = (("docker rm --force", self.containers), ("docker volume rm", self.volumes))
        return " && ".join(" ".join((command, *names)) for command, names in kinds if names)


@contextlib.contextmanager
def prepared(engine: Engine, way: Way, gguf: bytes, *, kept: Kept | None = None) -> Iterator[Container]:
    """Yields a container with the model in place, not started, and removes it and the model's volume afterwards.

    With `kept` they stay, and their names are added to it.
    """
    with _volume(engine, kept) as volume:
        spec = dataclasses.replace(way.container, volumes={**way.container.volumes, volume: MODELS})
        with engine.container(spec, files={way.model_path: gguf}, keep=kept is not None) as container:
            if kept is not None:
                kept.containers.append(container.name)
            yield container


@contextlib.contextmanager
def _volume(engine: Engine, kept: Kept | None) -> Iterator[str]:
    with engine.volume("smoke", keep=kept is not None) as volume:
        if kept is not None:
            kept.volumes.append(volume)
        yield volume


def smoke(
    engine: Engine,
    image_id: str,
    variant: Variant,
    *,
    kept: Kept | None = None,
    check: Callable[..., SmokeReport] = check_servers,
    **options: Unpack[Options],
) -> SmokeReport:
    """Starts llama-server in containers of an image, checks it, and returns the report.

    Args:
        engine: the image's engine, here or elsewhere.
        image_id: an id or a reference, resolved once.
        variant: the image's variant.
        kept: collects the names of the containers and volumes, which are kept; None: they are removed.
        check: what is done with the servers; `calibration.calibrate` measures them.
        **options: see `runner.check_servers`.

    Raises:
        ImageNotFoundError: the engine has no such image.
        LaunchError: the image is for an unknown architecture.
        EngineError: the engine cannot create a container.
    """
    device = options.get("device")
    image = engine.image(image_id)
    binaries = f"/app/bin/{triple(image)}"
    emulated = image.architecture != engine.info().architecture
    with contextlib.ExitStack() as stack:
        cache = stack.enter_context(_volume(engine, kept)) if device else ""

        @contextlib.contextmanager
        def prepare(server: ServerPlan, answer: KnownAnswer) -> Iterator[Subject]:
            directory = f"{binaries}/{server.directory}"
            name = model_name(server)
            way = as_bodhi(image.id, name, directory) if server.is_bodhi else quick_start(image.id, name)
            if not server.is_bodhi and server.directory != variant.name:
                way = from_directory(way, directory)
            way = with_arguments(way, server.arguments, server.model_file)
            if device and server.on_device:
                way = on_device(way, device, cache)
            with prepared(engine, way, answer.gguf, kept=kept) as container:
                yield Subject(
                    server=container,
                    port=way.port,
                    alias=way.alias,
                    arguments=way.arguments,
                    program=f"{directory}/llama-server",
                    linked_in=server.directory in STATIC_BACKENDS,
                    healthcheck=image.healthcheck,
                    emulated=emulated,
                )

        return check(image.id, variant, prepare, **options)


def triple(image: Image) -> str:
    """Returns the directory of the binaries, below /app/bin.

    Raises:
        LaunchError: the image is for an unknown architecture.
    """
    platform = Platform.of_architecture(image.architecture)
    if platform is None:
        known = " and ".join(platform.architecture for platform in Platform)
        raise LaunchError(f"The image is for {image.architecture}: choose one for {known}.")
    return platform.triple
