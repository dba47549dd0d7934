"""What this machine and its engine can do for each variant: build it, and smoke-test it on its device.

Never an error: what is missing is a sentence that says how to get it and how to see that it is there.
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

from base_images import versions
from base_images.adapters import engine
from base_images.adapters.engine import Engine, Image
from base_images.build.inputs import Origin
from base_images.doctor import machine as host
from base_images.doctor.machine import Answer, Installed, Machine, Node
from base_images.errors import DeviceError, EngineError, ImageNotFoundError
from base_images.labels import TOOLKIT_PREFIX, Label
from base_images.recipes import dockerfile
from base_images.smoke import device
from base_images.variants import DeviceAccess, Platform, Variant, gigabytes

NO_ENGINE = EngineError.exit_code
"""The exit code where no engine answers, as of every command that needs one."""

PROGRAMS = ("git", "docker", "apt-get", "mmdebstrap")
"""What is used where it is there; the last two make base images of packages."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """The engine.

    Attributes:
        where: how it was chosen, by DOCKER_HOST or a context; empty for this machine's usual one.
        is_local: whether its devices and its disk are this machine's.
        free_disk: bytes that are free where its images are; None when that cannot be seen from here.
        buildkit: whether it builds with BuildKit, which the recipes need.
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


@dataclass(frozen=True, kw_only=True)
class VariantReport:
    """What there is for a variant.

    Attributes:
        driver: the device's driver.
        driver_needed: the oldest driver that the image's toolkit runs on, where that is known.
        runtime: the container runtime that passes the device; empty for the engine's default.
        image: the reference of the image that was looked at; empty without one.
        image_version: that image's version.
        toolkit: the versions that it was compiled with.
        origin: where base images would come from; empty when there is no way to build it here.
        no_build: why it cannot be built here.
        no_device: why its device cannot be used here.
        no_smoke: why it cannot be smoke-tested on the device, besides.
        notes: what to know of what is there.
    """

    variant: str
    nodes: tuple[Node, ...]
    driver: Installed | None
    driver_needed: str
    runtime: str
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
        """Whether the variant can be built here."""
        return not self.no_build

    @property
    def smokes(self) -> bool:
        """Whether the variant can be smoke-tested on its device here; without a device, on the CPU."""
        return not self.no_device and not self.no_smoke


@dataclass(frozen=True, kw_only=True)
class Report:
    """What there is.

    Attributes:
        engine: None when none answers.
        missing: what every variant lacks.
        programs: their paths.
        buildx: its version, empty without it.
        registries: the one that this project publishes to, and those that the recipes' bases come from.
        exit_code: 0, or 1, or `NO_ENGINE`.
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
        """Returns the report for JSON."""
        ready = [{"ready": {"build": one.builds, "smoke": one.smokes}} for one in self.variants]
        facts = dataclasses.asdict(self)
        return {**facts, "variants": [{**one, **more} for one, more in zip(facts["variants"], ready, strict=True)]}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is looked at once for all variants.

    Attributes:
        root: where the machine's /dev, /proc and /sys are.
        engine: None when none answers.
        no_engine: why none does.
        programs: the path of each, None for one that is not installed.
        registries: their answers.
    """

    root: Path
    engine: EngineFacts | None
    no_engine: str
    programs: Mapping[str, str | None]
    registries: tuple[Answer, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What building lacks, whatever the variant."""
        return tuple(self._missing())

    def _missing(self) -> Iterator[str]:
        if self.no_engine:
            yield self.no_engine
        if self.engine and not self.engine.buildkit:
            yield "This engine builds without BuildKit, which the recipes need: use Docker 20.10 or newer."
        if not self.programs["git"]:
            yield "git is missing, which versions are read with: install it until `git --version` answers."


def examine(
    chosen: Sequence[Variant], *, checkout: Path, registry: str, by_name: bool, image: str = "", root: Path = host.ROOT
) -> Report:
    """Looks at the machine, its engine and its network and returns what it saw, within 2 s when nobody answers.

    Args:
        chosen: whose devices, images and bases.
        checkout: where the recipes are.
        registry: the repository that this project publishes to.
        by_name: whether a person chose the variants: then their devices decide, else what building cpu needs.
        image: the image of a single variant to look at, instead of the local ones.
        root: where the machine's /dev, /proc and /sys are.

    Raises:
        ImageNotFoundError: the engine has no such `image`.
        SourceError: a recipe cannot be read.
    """
    references = {one.name: _references(one, checkout) for one in chosen}
    named = (registry, *(reference for bases in references.values() for reference in bases.values()))
    answers = host.asking(tuple(dict.fromkeys(map(host.registry, named))))  # goes on while the rest is looked at
    buildx = host.buildx()
    helpers = tuple(helper for one in chosen if one.device for helper in one.device.helpers)
    facts, no_engine = None, ""
    images: dict[str, Image | None] = {}
    pulled: dict[str, bool] = {}
    try:
        with contextlib.closing(_connect()) as connected:
            facts = engine_facts(connected)
            images = {one.name: _image(connected, one, image) for one in chosen}
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
        judge(one, references[one.name], seen, image=images.get(one.name), pulled=pulled.get(one.name, False))
        for one in chosen
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
        *(text for one in reports if one.variant == "cpu" for text in one.no_build),
        *(text for one in reports if by_name for text in one.no_device),
    ]
    return 1 if missing else 0


def _references(variant: Variant, checkout: Path) -> dict[str, str]:
    """Returns the bases that the recipe names by their role; none without a recipe."""
    path = checkout / variant.dockerfile
    return dockerfile.base_references(path) if path.exists() else {}


# The engine.


def _connect() -> Engine:
    """Returns a connection to the engine; one that is out of reach is told soon, one at work may take its time."""
    reached: list[bool] = []
    failed: list[EngineError] = []

    def try_to() -> None:
        try:
            engine.connect(timeout=round(host.ANSWER_SECONDS)).close()
            reached.append(True)
        except EngineError as error:
            failed.append(error)

    # A name server may keep it waiting, whatever its time-out.
    thread = threading.Thread(target=try_to, daemon=True)
    thread.start()
    thread.join(host.ANSWER_SECONDS)
    if failed:
        raise failed[0]
    if not reached:
        raise EngineError(
            f"No container engine answers at {engine.chosen() or 'its socket'} in time: look at its host."
        )
    return engine.connect(timeout=engine.REACH_SECONDS)


def engine_facts(connected: Engine) -> EngineFacts:
    """Returns what the engine says of itself.

    Raises:
        EngineError: it stopped answering.
    """
    info = connected.info()
    return EngineFacts(
        name=info.name,
        version=info.version,
        api_version=info.api_version,
        architecture=info.architecture,
        where=engine.chosen(),
        is_local=connected.is_local,
        storage_driver=connected.storage_driver(),
        free_disk=connected.free_disk(),
        buildkit=_has_buildkit(connected),
        runtimes=tuple(sorted(connected.runtimes())),
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


# One variant.


def judge(
    variant: Variant, references: Mapping[str, str], seen: Seen, *, image: Image | None, pulled: bool
) -> VariantReport:
    """Returns what there is for a variant.

    Args:
        variant: which.
        references: the bases that its recipe names, by their role.
        seen: the machine.
        image: its image; None when there is none.
        pulled: whether the engine has all of those bases.
    """
    access = variant.device
    toolkit = _toolkit(image)
    nodes = host.nodes(access, seen.root) if access else ()
    driver = host.installed(access.driver, nodes, seen.root) if access else None
    needed = host.of_toolkit(access.driver.oldest, toolkit.get(access.driver.toolkit, "")) if access else ""
    origin, no_build = _build(variant, references, seen, pulled=pulled)
    no_device, notes = _device(variant, nodes, driver, toolkit, seen)
    return VariantReport(
        variant=variant.name,
        nodes=nodes,
        driver=driver,
        driver_needed=needed,
        runtime=access.runtime if access else "",
        image=(image.tags or (image.id,))[0] if image else "",
        image_version=image.labels.get(Label.VERSION, "") if image else "",
        toolkit=toolkit,
        origin=origin,
        no_build=no_build,
        no_device=no_device,
        no_smoke=tuple(_smoke(variant, seen, image)),
        notes=notes,
    )


def _toolkit(image: Image | None) -> dict[str, str]:
    labels = image.labels if image else {}
    return {
        name.removeprefix(TOOLKIT_PREFIX): value for name, value in labels.items() if name.startswith(TOOLKIT_PREFIX)
    }


def _smoke(variant: Variant, seen: Seen, image: Image | None) -> Iterator[str]:
    if seen.engine is None:
        yield seen.no_engine
    elif image is None:
        yield (
            f"There is no image {versions.local_reference(variant.name)}: `invoke build-local --variant "
            f"{variant.name}` makes it, --image names another."
        )


def _build(variant: Variant, references: Mapping[str, str], seen: Seen, *, pulled: bool) -> tuple[str, tuple[str, ...]]:
    """Returns where the bases would come from, and what is missing to build the variant."""
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
            problems.append(
                f"Its base images cannot be had: no registry answers at {', '.join(out_of_reach)}, and {no_packages}"
            )
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
    """Returns why base images cannot be made of packages; empty when they can."""
    if variant.packages is None:
        return f"no Debian package has the compiler of {variant.title}: check the network, or pull them by hand."
    if not seen.programs["apt-get"]:
        return "without apt-get none are made of packages: check the network, `curl https://HOST/v2/` asks."
    if not seen.programs["mmdebstrap"] and os.geteuid() != 0:
        return "mmdebstrap, which makes them of packages, is missing: `apt-get install mmdebstrap`."
    return ""


def _device(
    variant: Variant, nodes: Sequence[Node], driver: Installed | None, toolkit: Mapping[str, str], seen: Seen
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns why the device cannot be used, and what to know of it."""
    if variant.device is None:
        return (), ()
    if seen.engine and not seen.engine.is_local:
        return (f"The engine is at {seen.engine.where}, and its devices cannot be seen from here: ask there.",), ()
    problems = tuple(_no_device(variant, variant.device, nodes, driver, seen))
    if problems:
        imitated = f"The CPU imitates it: `invoke smoke --variant {variant.name} --on software`."
        return problems, (imitated,) if variant.device.software else ()
    version = toolkit.get(variant.device.driver.toolkit, "")
    return against_toolkit(variant.device, f"{variant.title} {version}", version, driver.version if driver else "")


def _no_device(
    variant: Variant, access: DeviceAccess, nodes: Sequence[Node], driver: Installed | None, seen: Seen
) -> Iterator[str]:
    yield from _refused(variant, access, seen)
    modules = " or ".join(access.driver.modules)
    if driver is None and modules and not (access.nodes or access.driver_nodes):
        yield f"The kernel has not loaded {modules}: install the driver until `{access.check}` shows a device."
    made = dict.fromkeys(node.module for node in nodes if node.module)
    usable = (set(access.driver.modules) or set(made)) - set(access.driver.unusable)
    if made and not usable & set(made):
        wanted = f"one of {modules}" if modules else "another"
        yield (
            f"The render nodes here are of {', '.join(made)}, and {variant.name} needs {wanted}: `ls -l "
            "/sys/class/drm/renderD*/device/driver` shows whose they are."
        )
    if seen.engine and access.helpers and not any(seen.programs[helper] for helper in access.helpers):
        yield (
            f"The engine cannot pass the device: install the vendor's container toolkit until {access.helpers[0]} is "
            "there, and restart the engine."
        )


def _refused(variant: Variant, access: DeviceAccess, seen: Seen) -> Iterator[str]:
    """Yields what `device.of_host` says: of the nodes, and where there is an engine, of the runtime."""
    questions = [(host.rooted(variant, seen.root), {access.runtime})]
    if seen.engine:
        runtime_alone = dataclasses.replace(access, nodes=(), group_nodes=(), driver_nodes=(), mounts=())
        questions.append((dataclasses.replace(variant, device=runtime_alone), set(seen.engine.runtimes)))
    for asked, runtimes in questions:
        try:
            device.of_host(asked, runtimes)
        except DeviceError as error:
            yield str(error)


def against_toolkit(
    access: DeviceAccess, name: str, toolkit: str, driver: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns why a driver is too old for a toolkit, and what to know of one that is not.

    Args:
        access: the device, with what its toolkits need.
        name: the toolkit and its version, for people.
        toolkit: its version; empty when it is not known, so that there is nothing to say.
        driver: the driver's version; empty when it does not say it.
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
