"""Reports whether this machine and its engine can build each variant and smoke-test it on its device.

A missing requirement is not an error, but a sentence that says how to install it and how to check the installation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_images import labels, versions
from base_images.adapters import client, endpoint, engine
from base_images.adapters.devices import EngineDevices
from base_images.adapters.engine import Engine, Image
from base_images.build.inputs import Origin
from base_images.doctor import machine as host
from base_images.doctor.machine import Answer, Installed, Machine, Node
from base_images.errors import DeviceError, EngineError, ImageNotFoundError
from base_images.labels import Label
from base_images.recipes import dockerfile
from base_images.smoke import device
from base_images.smoke import host as hosts
from base_images.smoke.host import Host
from base_images.variants import DeviceAccess, Platform, Variant, gigabytes

NO_ENGINE = EngineError.exit_code
"""The exit code when no engine answers, the same as that of commands that need one."""

PROGRAMS = ("git", "docker", "apt-get", "mmdebstrap")
"""Programs that are used if installed; the last two make base images from packages."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """The container engine.

    Attributes:
        where: the DOCKER_HOST or context that selects it; empty for this machine's default.
        is_local: whether it uses this machine's devices and disk.
        free_disk: free bytes on the disk of its images; None when unknown.
        buildkit: whether it has BuildKit, which the recipes need.
        runtimes: its container runtimes.
        cdi: devices that it can give by device descriptions (CDI).
        machine: the name of its machine, if it is not this one's; else empty.
    """

    name: str
    version: str
    api_version: str
    architecture: str
    where: str
    is_local: bool
    storage_driver: str
    free_disk: int | None
    buildkit: bool
    runtimes: tuple[str, ...]
    cdi: tuple[str, ...] = ()
    machine: str = ""


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """The readiness for one variant.

    Attributes:
        driver: the installed driver of the device.
        driver_needed: the oldest driver that the image's toolkit runs on; empty when unknown.
        runtime: the container runtime that passes the device; empty for the engine's default.
        given_by: how a container gets the device; empty when it cannot be used, or there is none.
        image: the reference of the examined image; empty without one.
        image_version: the version of the image.
        toolkit: the toolkit versions of the image.
        origin: the origin of base images in a build; empty when a build is impossible.
        no_build: reasons why a build is impossible.
        no_device: reasons why the device cannot be used.
        no_smoke: further reasons why a smoke test on the device is impossible.
        notes: remarks that prevent nothing.
    """

    variant: str
    nodes: tuple[Node, ...]
    driver: Installed | None
    driver_needed: str
    runtime: str
    given_by: str
    image: str
    image_version: str
    toolkit: Mapping[str, str]
    origin: str
    no_build: tuple[str, ...]
    no_device: tuple[str, ...]
    no_smoke: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def builds(self) -> bool:
        """Whether this machine can build the variant."""
        return not self.no_build

    @property
    def smokes(self) -> bool:
        """Whether this machine can smoke-test the variant on its device, or on the CPU if it needs none."""
        return not self.no_device and not self.no_smoke


@dataclass(frozen=True, kw_only=True)
class Report:
    """The readiness of this machine.

    Attributes:
        engine: the engine; None when none answers.
        missing: missing requirements of all variants.
        programs: the paths of programs; None for a missing one.
        buildx: the version of buildx; empty without it.
        registries: the registries that this project publishes to and that base images come from.
        exit_code: 0, 1 or `NO_ENGINE`.
    """

    machine: Machine
    engine: EngineFacts | None
    missing: tuple[str, ...]
    programs: Mapping[str, str | None]
    buildx: str
    registries: tuple[Answer, ...]
    variants: tuple[VariantReport, ...]
    exit_code: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as values that `json.dumps` accepts."""
        variants = [
            {**dataclasses.asdict(variant), "ready": {"build": variant.builds, "smoke": variant.smokes}}
            for variant in self.variants
        ]
        return {**dataclasses.asdict(self), "variants": variants}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Observations that all variants share.

    Attributes:
        root: the directory of the machine's /dev, /proc and /sys.
        engine: the engine; None when none answers.
        no_engine: why no engine answers.
        programs: the path of each program; None for a missing one.
        registries: the answers of registries.
    """

    root: Path
    engine: EngineFacts | None
    no_engine: str
    programs: Mapping[str, str | None]
    registries: tuple[Answer, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Missing requirements of every build."""
        return tuple(self._missing())

    def _missing(self) -> Iterator[str]:
        if self.no_engine:
            yield self.no_engine
        if self.engine and not self.engine.buildkit:
            yield "This engine builds without BuildKit, which the recipes need: use Docker 20.10 or newer."
        if not self.programs["git"]:
            yield "git is missing, which versions are read with: install it until `git --version` answers."


def examine(
    chosen: Sequence[Variant], *, checkout: Path, registry: str, by_name: bool, image: str = "", root: Path = hosts.ROOT
) -> Report:
    """Examines the machine, its engine and its network, within 2 s when none of them answers.

    Args:
        chosen: the variants to report.
        checkout: the directory with the recipes.
        registry: the repository that this project publishes to.
        by_name: whether the user named the variants: the exit code then depends on their devices, else on building cpu.
        image: an image to examine instead of the local one, for a single variant.
        root: the directory of the machine's /dev, /proc and /sys.

    Raises:
        ImageNotFoundError: the engine has no such `image`.
        SourceError: a recipe cannot be read.
    """
    references = {variant.name: _references(variant, checkout) for variant in chosen}
    named = (registry, *(reference for bases in references.values() for reference in bases.values()))
    answers = host.asking(tuple(dict.fromkeys(map(host.registry, named))))  # continues in the background
    buildx = host.buildx()
    helpers = tuple(
        name for variant in chosen if variant.device and variant.device.gpus for name in variant.device.gpus.helpers
    )
    facts, no_engine = None, ""
    images: dict[str, Image | None] = {}
    pulled: dict[str, bool] = {}
    try:
        with contextlib.closing(_connect()) as connected:
            facts = engine_facts(connected)
            images = {variant.name: _image(connected, variant, image) for variant in chosen}
            pulled = {name: all(map(connected.has_image, bases.values())) for name, bases in references.items()}
    except EngineError as error:
        facts, no_engine = None, f"{error} `docker version` shows it."
    seen = Seen(
        root=root,
        engine=facts,
        no_engine=no_engine,
        programs=host.programs((*PROGRAMS, *helpers)),
        registries=answers(),
    )
    reports = tuple(
        judge(
            variant,
            references[variant.name],
            seen,
            image=images.get(variant.name),
            pulled=pulled.get(variant.name, False),
        )
        for variant in chosen
    )
    return Report(
        machine=host.machine(root),
        engine=facts,
        missing=seen.missing,
        programs=seen.programs,
        buildx=buildx,
        registries=seen.registries,
        variants=reports,
        exit_code=_exit_code(seen, reports, by_name=by_name),
    )


def _exit_code(seen: Seen, reports: Sequence[VariantReport], *, by_name: bool) -> int:
    if seen.engine is None:
        return NO_ENGINE
    missing = [
        *seen.missing,
        *(reason for report in reports if report.variant == "cpu" for reason in report.no_build),
        *(reason for report in reports if by_name for reason in report.no_device),
    ]
    return 1 if missing else 0


def _references(variant: Variant, checkout: Path) -> dict[str, str]:
    """Returns the recipe's base images by role; empty without a recipe."""
    path = checkout / variant.dockerfile
    return dockerfile.base_references(path) if path.exists() else {}


def _connect() -> Engine:
    """Connects to the engine; fails soon if it is unreachable, and gives a busy engine more time for later requests."""
    reached: list[bool] = []
    failed: list[EngineError] = []

    def try_to() -> None:
        try:
            engine.connect(timeout=round(host.ANSWER_SECONDS)).close()
            reached.append(True)
        except EngineError as error:
            failed.append(error)

    # In a thread, since the time-out does not cover the name server.
    thread = threading.Thread(target=try_to, daemon=True)
    thread.start()
    thread.join(host.ANSWER_SECONDS)
    if failed:
        raise failed[0]
    if not reached:
        raise EngineError(
            f"No container engine answers at {endpoint.chosen() or 'its socket'} in time: look at its host."
        )
    return engine.connect(timeout=client.REACH_SECONDS)


def engine_facts(connected: Engine) -> EngineFacts:
    """Returns the engine's description.

    Raises:
        EngineError: the engine stopped answering.
    """
    info, devices = connected.info(), connected.devices()
    return EngineFacts(
        name=info.name,
        version=info.version,
        api_version=info.api_version,
        architecture=info.architecture,
        where=endpoint.chosen(),
        is_local=connected.is_local,
        storage_driver=connected.storage_driver(),
        free_disk=connected.free_disk(),
        buildkit=_has_buildkit(connected),
        runtimes=tuple(sorted(devices.runtimes)),
        cdi=tuple(sorted(devices.cdi)),
        machine=devices.machine,
    )


def _has_buildkit(connected: Engine) -> bool:
    try:
        connected.require_buildkit()
    except EngineError:
        return False
    return True


def _image(connected: Engine, variant: Variant, reference: str) -> Image | None:
    if reference:
        return connected.image(reference)
    try:
        return connected.image(versions.local_reference(variant.name))
    except ImageNotFoundError:
        return None


def judge(
    variant: Variant, references: Mapping[str, str], seen: Seen, *, image: Image | None, pulled: bool
) -> VariantReport:
    """Returns the readiness for one variant.

    Args:
        variant: the variant.
        references: the base images in its recipe by role.
        seen: the observations of the machine.
        image: the variant's image, if any.
        pulled: whether the engine has all of the base images.
    """
    access = variant.device
    toolkit = labels.toolkit(image.labels if image else {})
    nodes = host.nodes(access, seen.root) if access else ()
    drivers = (access.driver, *([access.gpus.driver] if access.gpus else [])) if access else ()
    driver = next(filter(None, (host.installed(one, nodes, seen.root) for one in drivers)), None)
    needed = host.of_toolkit(access.driver.oldest, toolkit.get(access.driver.toolkit, "")) if access else ""
    origin, no_build = _build(variant, references, seen, pulled=pulled)
    no_device, notes, given_by = _device(variant, driver, toolkit, seen)
    return VariantReport(
        variant=variant.name,
        nodes=nodes,
        driver=driver,
        driver_needed=needed,
        runtime=access.runtime if access else "",
        given_by=given_by,
        image=(image.tags or (image.id,))[0] if image else "",
        image_version=image.labels.get(Label.VERSION, "") if image else "",
        toolkit=toolkit,
        origin=origin,
        no_build=no_build,
        no_device=no_device,
        no_smoke=tuple(_smoke(variant, seen, image)),
        notes=notes,
    )


def _smoke(variant: Variant, seen: Seen, image: Image | None) -> Iterator[str]:
    if seen.engine is None:
        yield seen.no_engine
    elif image is None:
        yield (
            f"There is no image {versions.local_reference(variant.name)}: `invoke build-local --variant "
            f"{variant.name}` makes it, --image names another."
        )


def _build(variant: Variant, references: Mapping[str, str], seen: Seen, *, pulled: bool) -> tuple[str, tuple[str, ...]]:
    """Returns the origin of base images, and the reasons why a build is impossible."""
    facts = seen.engine
    if facts is None:
        return "", seen.missing
    problems = []
    if Platform.of_architecture(facts.architecture) not in variant.platforms:
        platforms = " and ".join(platform.architecture for platform in variant.platforms)
        problems.append(f"{variant.title} is built for {platforms}, and this engine runs on {facts.architecture}.")
    if not references:
        problems.append(f"There is no recipe {variant.dockerfile}.")
    out_of_reach = [
        f"{answer.host} ({answer.seen})"
        for answer in seen.registries
        if not answer.reached and answer.host in map(host.registry, references.values())
    ]
    debian = variant.packages
    origin, size = Origin.REGISTRIES, variant.toolkit_size
    if out_of_reach and not pulled:
        no_packages = _no_packages(variant, seen)
        if no_packages:
            silent = ", ".join(out_of_reach)
            problems.append(f"Its base images are not available: no registry answers at {silent}, and {no_packages}")
        origin, size = Origin.PACKAGES, debian.size if debian else 0
    if facts.free_disk is not None and facts.free_disk < size and not pulled:
        problems.append(
            f"Its base images take about {gigabytes(size)} and the engine's disk has {gigabytes(facts.free_disk)} "
            "free: make room, `docker system df` says what takes it."
        )
    if seen.missing or problems:
        return "", (*seen.missing, *problems)
    return origin.value, ()


def _no_packages(variant: Variant, seen: Seen) -> str:
    """Returns why base images cannot be made from packages; empty when they can."""
    if variant.packages is None:
        return f"no Debian package has the compiler of {variant.title}: check the network, or pull them by hand."
    if not seen.programs["apt-get"]:
        return "without apt-get none are made of packages: check the network, `curl https://HOST/v2/` asks."
    if not seen.programs["mmdebstrap"] and os.geteuid() != 0:
        return "mmdebstrap, which makes them of packages, is missing: `apt-get install mmdebstrap`."
    return ""


def _device(
    variant: Variant, driver: Installed | None, toolkit: Mapping[str, str], seen: Seen
) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Returns the reasons why the device cannot be used, notes on it, and how a container gets it."""
    access = variant.device
    if access is None:
        return (), (), ""
    given_by, problems = "", []
    try:
        given_by = device.choose(variant, _host(access, seen)).how
    except DeviceError as error:
        problems.append(str(error))
    modules = " or ".join(access.driver.modules)
    is_here = seen.engine is None or seen.engine.is_local
    if driver is None and modules and is_here and not (access.nodes or access.gpus):
        problems.append(
            f"The kernel has not loaded {modules}: install the driver until `{access.check}` shows a device."
        )
    if problems:
        emulated = f"The CPU emulates it: `invoke smoke --variant {variant.name} --on software`."
        return tuple(problems), (emulated,) if access.software else (), ""
    version = toolkit.get(access.driver.toolkit, "")
    if not is_here:
        return (), (), given_by
    too_old, notes = against_toolkit(access, f"{variant.title} {version}", version, driver.version if driver else "")
    return too_old, notes, "" if too_old else given_by


def _host(access: DeviceAccess, seen: Seen) -> Host:
    """Returns what was observed for the device; without an engine, one is assumed that can give it."""
    facts = seen.engine
    engine = EngineDevices(
        runtimes=frozenset(facts.runtimes if facts else (access.runtime,)),
        cdi=frozenset(facts.cdi if facts else ()),
        where="" if facts is None or facts.is_local else facts.where,
        machine=facts.machine if facts else "",
    )
    has_toolkit = bool(access.gpus and seen.programs.get(access.gpus.helpers[0]))
    is_given = facts is None or (facts.is_local and has_toolkit)
    return dataclasses.replace(hosts.look(access, engine, seen.root), toolkit=is_given)


def against_toolkit(
    access: DeviceAccess, name: str, toolkit: str, driver: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compares a driver with a toolkit: returns why it is too old, and notes on one that is not.

    Args:
        access: the device, with the driver versions that its toolkits need.
        name: the toolkit's name and version for messages.
        toolkit: the toolkit's version; empty when unknown, for no result.
        driver: the driver's version; empty when unknown.
    """
    oldest, own = host.of_toolkit(access.driver.oldest, toolkit), host.of_toolkit(access.driver.own, toolkit)
    if oldest and not driver:
        return (), (f"{name} needs at least the driver {oldest}, and this one says no version: see `{access.check}`.",)
    if oldest and host.numbers(driver) < host.numbers(oldest):
        problem = (
            f"The driver is {driver}, and the image's {name} needs at least {oldest}: install a newer one until "
            f"`{access.check}` shows it."
        )
        return (problem,), ()
    if own and host.numbers(driver) < host.numbers(own):
        return (), (
            f"The driver {driver} is older than {own}, which {name} came with: {access.driver.older_than_own}.",
        )
    return (), ()
