"""Building one image on the local engine: source and bases, then the plan, then BuildKit, then the tags."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from base_images.adapters import buildkit, repository
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine
from base_images.build import architectures as toolkit
from base_images.build import bases as origin
from base_images.build import context
from base_images.build.inputs import Bases, Origin, Source
from base_images.build.plan import BuildPlan, build_plan, require_platform
from base_images.errors import EngineError, SourceError, UsageError
from base_images.progress import Listener
from base_images.recipes import dockerfile
from base_images.settings import Settings
from base_images.variants import Platform, Variant


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a build needs; `notices` are what a person must know, such as a fall-back to package mirrors."""

    plan: BuildPlan
    source: Path
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build; `seconds` is the build alone, without source and bases."""

    image_id: str
    plan: BuildPlan
    seconds: float


def prepare(
    engine: Engine,
    variant: Variant,
    *,
    settings: Settings,
    root: Path,
    source: Source,
    wanted: Origin,
    listener: Listener,
    architectures: Sequence[str] = (),
    slim: bool = False,
) -> Prepared:
    """Gets the base images, and returns the plan made of them and of llama.cpp's source.

    `architectures` is what to compile the backend for, as `--arch` has it; none means the recipe's own. `slim` puts
    what the server needs of the toolkit on a small base, in place of the toolkit's own image.

    Raises:
        UsageError: the variant has no recipe, or not for this engine's platform, or not for an architecture.
        EngineError: the engine has no BuildKit.
        SourceError: a base image cannot be had.
        RepositoryError: this checkout has no version.
    """
    path = _recipe(variant, root)
    narrowed = toolkit.architecture_argument(variant, architectures)
    chosen = {**narrowed, **(dockerfile.slim_argument(path) if slim else {})}
    engine.require_buildkit()
    platform = engine.platform()
    require_platform(variant, platform)  # before anything large is fetched
    # An architecture can be part of a base image's name.
    bases = origin.resolve_bases(
        engine, variant, dockerfile.base_references(path, chosen), origin=wanted, slim=slim, listener=listener
    )
    if narrowed:
        _require_architectures(engine, variant, narrowed, bases.build.reference)
    plan = _plan(variant, platform, settings=settings, root=root, source=source, bases=bases, chosen=chosen)
    return Prepared(plan=plan, source=source.path, notices=bases.notices)


def foresee(
    variant: Variant,
    platforms: Sequence[Platform],
    *,
    settings: Settings,
    root: Path,
    source: Source,
    architectures: Sequence[str] = (),
    slim: bool = False,
) -> tuple[BuildPlan, ...]:
    """Returns the plan for each platform, on the bases that their registries have now; no engine, nothing fetched.

    The plans lack the label of glibc, and whether the toolkit knows the architectures is not asked: both are known
    in the base images alone.

    Raises:
        UsageError: the variant has no recipe, or not for a platform, or not for an architecture.
        ImageNotFoundError: a registry answered that it has no such base image.
        SourceError: a registry cannot be asked.
        RepositoryError: this checkout has no version.
    """
    path = _recipe(variant, root)
    chosen = {
        **toolkit.architecture_argument(variant, architectures),
        **(dockerfile.slim_argument(path) if slim else {}),
    }
    for platform in platforms:
        require_platform(variant, platform)  # before any registry is asked
    bases = origin.ask_bases(dockerfile.base_references(path, chosen))
    return tuple(
        _plan(variant, platform, settings=settings, root=root, source=source, bases=bases, chosen=chosen)
        for platform in platforms
    )


def _recipe(variant: Variant, root: Path) -> Path:
    path = root / variant.dockerfile
    if not path.exists():
        raise UsageError(f"There is no recipe for {variant.name} yet: {variant.dockerfile} does not exist.")
    return path


def _plan(
    variant: Variant,
    platform: Platform,
    *,
    settings: Settings,
    root: Path,
    source: Source,
    bases: Bases,
    chosen: Mapping[str, str],
) -> BuildPlan:
    return build_plan(
        variant,
        platform=platform,
        settings=settings,
        head=repository.head(repository.open_repository(root)),
        source=source,
        bases=bases,
        recipe_arguments=dockerfile.global_arguments(root / variant.dockerfile, {**bases.arguments, **chosen}),
        chosen=chosen,
    )


def _require_architectures(engine: Engine, variant: Variant, narrowed: Mapping[str, str], build_base: str) -> None:
    """Asks the toolkit in the build base, where it can be asked."""
    architectures = variant.architectures
    if architectures is None or not architectures.listing:
        return
    asked = ContainerSpec(image=build_base, entrypoint=architectures.listing, tmpfs={"/tmp": "mode=1777"})  # noqa: S108
    answer = engine.probe(asked)
    known = toolkit.listed(architectures, answer.output)
    if not known:
        raise SourceError(
            f"The toolkit in {build_base} does not say which device architectures it knows: "
            f"`{' '.join(architectures.listing)}` printed {answer.output.strip()!r}."
        )
    toolkit.require_known(variant.name, architectures, narrowed[architectures.argument].split(";"), known)


def build(engine: Engine, prepared: Prepared, *, root: Path, on_event: Callable[[buildkit.Event], None]) -> Built:
    """Builds the plan and points its tags at the result.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
        EngineError: the engine stopped answering.
    """
    started = time.monotonic()
    plan = prepared.plan
    image_id = ""
    with tempfile.TemporaryFile() as tar:
        context.write(tar, root=root, source=prepared.source)
        tar.seek(0)
        stream = engine.build(
            tar,
            dockerfile=plan.dockerfile,
            target=plan.target,
            arguments=plan.arguments,
            labels=plan.labels,
            platform=plan.platform,
        )
        try:
            for event in buildkit.events(stream):
                if isinstance(event, buildkit.ImageBuilt):
                    image_id = event.image_id
                on_event(event)
        finally:
            stream.close()  # cancels a build that is not done, such as at Ctrl-C
    if not image_id:
        raise EngineError("The engine ended the build without an image and without a reason: look at its log.")
    for tag in plan.tags:
        engine.tag(image_id, tag)
    return Built(image_id=image_id, plan=plan, seconds=time.monotonic() - started)
