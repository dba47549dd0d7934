"""Builds one image on the local engine: source and bases, plan, BuildKit, tags."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

from base_images.adapters import buildkit, repository
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine
from base_images.build import architectures as toolkit
from base_images.build import bases as origin
from base_images.build import compiler_cache, context, lock, uncached
from base_images.build.compiler_cache import Hits
from base_images.build.inputs import Bases, Origin, Source
from base_images.build.plan import BuildPlan, build_plan, require_platform
from base_images.errors import EngineError, SourceError, UsageError
from base_images.progress import Listener
from base_images.recipes import dockerfile
from base_images.recipes.instructions import read_text
from base_images.settings import Settings
from base_images.variants import Platform, Variant


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The inputs of `build`; `notices` are messages for the user, such as about a fallback to packages."""

    plan: BuildPlan
    source: Source
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Built:
    """A finished build; `seconds` excludes source and bases.

    `compiled` is what came out of the compiler's cache; None where nothing was compiled.
    """

    image_id: str
    plan: BuildPlan
    seconds: float
    compiled: Hits | None = None


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
    version: str = "",
    platform: Platform | None = None,
) -> Prepared:
    """Fetches the base images and returns the plan for them and the source.

    `architectures` are those of `--arch`; empty means the recipe's defaults. `slim` copies the toolkit's runtime
    libraries onto a small base instead of using the toolkit's own runtime image. `version` is that of `--toolkit`.
    `platform` is the engine's by default; an image for another one, which the engine emulates, is tagged with its
    architecture.

    Raises:
        UsageError: the variant has no recipe, does not support the platform or an architecture, or the origin has no
            bases for the platform.
        EngineError: the engine has no BuildKit.
        SourceError: a base image is not available.
        RepositoryError: this checkout has no version.
    """
    path = _recipe(variant, root)
    narrowed = toolkit.architecture_argument(variant, architectures)
    asked = toolkit.toolkit_argument(variant, version)
    chosen = {**narrowed, **asked, **(dockerfile.slim_argument(path) if slim else {})}
    engine.require_buildkit()
    here = engine.platform()
    platform = platform or here
    require_platform(variant, platform)  # before anything large is fetched
    if platform is not here and wanted is not Origin.PACKAGES:
        raise UsageError(
            f"This engine builds for {here.docker}; for {platform.docker} it takes --origin packages, or "
            f"`invoke bake --platform {platform.architecture}`."
        )
    locked = lock.digests(root)
    # An architecture can be part of a base image's tag.
    bases = origin.resolve_bases(
        engine,
        variant,
        lock.pinned(dockerfile.base_references(path, chosen), locked),
        origin=wanted,
        slim=slim,
        toolkit=dockerfile.global_arguments(path, chosen).get(variant.version_argument, ""),
        asked=version,
        platform=platform,
        listener=listener,
    )
    if narrowed:
        _require_architectures(engine, variant, narrowed, bases.build.reference)
    plan = _plan(variant, platform, settings=settings, root=root, source=source, bases=bases, chosen=chosen)
    if platform is not here:
        # The tags without it are of the image that this engine runs natively.
        plan = replace(plan, tags=tuple(f"{tag}-{platform.architecture}" for tag in plan.tags))
    stale = lock.problem(locked, lock.references(sorted((root / "dockerfiles").glob("*.Dockerfile"))))
    notices = (*bases.notices, stale) if stale and bases.origin is Origin.REGISTRIES else bases.notices
    return Prepared(plan=plan, source=source, notices=notices)


def preview(
    variant: Variant,
    platforms: Sequence[Platform],
    *,
    settings: Settings,
    root: Path,
    source: Source,
    architectures: Sequence[str] = (),
    slim: bool = False,
    version: str = "",
) -> tuple[BuildPlan, ...]:
    """Returns the plan for each platform, on the bases that the registries currently have, without an engine.

    The plans lack the glibc label, and the toolkit's support of the architectures is not checked: both take a program
    in the base images.

    Raises:
        UsageError: the variant has no recipe, or does not support a platform or an architecture.
        ImageNotFoundError: a registry does not have a base image.
        SourceError: a registry does not answer.
        RepositoryError: this checkout has no version.
    """
    path = _recipe(variant, root)
    chosen = {
        **toolkit.architecture_argument(variant, architectures),
        **toolkit.toolkit_argument(variant, version),
        **(dockerfile.slim_argument(path) if slim else {}),
    }
    for platform in platforms:
        require_platform(variant, platform)  # before any request to a registry
    bases = origin.ask_bases(lock.pinned(dockerfile.base_references(path, chosen), lock.digests(root)))
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
        head=repository.head(repository.open_clone(root)),
        source=source,
        bases=bases,
        recipe_arguments=dockerfile.global_arguments(root / variant.dockerfile, {**bases.arguments, **chosen}),
        chosen=chosen,
    )


def _require_architectures(engine: Engine, variant: Variant, narrowed: Mapping[str, str], build_base: str) -> None:
    """Checks the architectures against the toolkit in the build base, if that can list them."""
    architectures = variant.architectures
    if architectures is None or not architectures.listing:
        return
    spec = ContainerSpec(image=build_base, entrypoint=architectures.listing, tmpfs={"/tmp": "mode=1777"})  # noqa: S108
    output = engine.probe(spec).output
    known = toolkit.listed(architectures, output)
    if not known:
        raise SourceError(
            f"The toolkit in {build_base} does not say which device architectures it knows: "
            f"`{' '.join(architectures.listing)}` printed {output.strip()!r}."
        )
    toolkit.require_known(variant.name, architectures, narrowed[architectures.argument].split(";"), known)


def build(
    engine: Engine,
    prepared: Prepared,
    *,
    root: Path,
    on_event: Callable[[buildkit.Event], None],
    build_id: str = "",
    mark: str = "",
) -> Built:
    """Builds the plan and tags the image.

    `build_id` is a name by which another thread can end the build. With a new `mark` nothing is cached, see `uncached`.

    Raises:
        BuildError: a step failed; the detail is the tail of its log.
        EngineError: the engine stopped answering.
    """
    plan = prepared.plan
    recipe = root / plan.dockerfile
    replaced = {plan.dockerfile: uncached.marked(read_text(recipe), mark).encode()} if mark else {}
    image_id, seconds, compiled = build_context(
        engine,
        partial(context.write, root=root, source=prepared.source.path, files=prepared.source.files, replaced=replaced),
        dockerfile=plan.dockerfile,
        target=plan.target,
        arguments=plan.arguments,
        labels=plan.labels,
        platform=plan.platform,
        tags=plan.tags,
        on_event=on_event,
        build_id=build_id,
    )
    return Built(image_id=image_id, plan=plan, seconds=seconds, compiled=compiled)


def build_context(
    engine: Engine,
    write: Callable[[IO[bytes]], None],
    *,
    dockerfile: str,
    target: str,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    platform: str,
    tags: Sequence[str],
    on_event: Callable[[buildkit.Event], None],
    build_id: str = "",
) -> tuple[str, float, compiler_cache.Hits | None]:
    """Builds from the context that `write` writes, and tags the image; see `build`.

    Returns:
        The image's id, the seconds, and what came out of the compiler's cache.
    """
    started = time.monotonic()
    image_id = ""
    counter = compiler_cache.Counter()
    with tempfile.TemporaryFile() as tar:
        write(tar)
        tar.seek(0)
        stream = engine.build(
            tar,
            dockerfile=dockerfile,
            target=target,
            arguments=arguments,
            labels=labels,
            platform=platform,
            build_id=build_id,
        )
        try:
            for event in buildkit.events(stream):
                if isinstance(event, buildkit.ImageBuilt):
                    image_id = event.image_id
                counter.read(event)
                on_event(event)
        finally:
            stream.close()  # cancels an unfinished build, such as after Ctrl-C
    if not image_id:
        raise EngineError("The engine ended the build without an image and without a reason: look at its log.")
    for tag in tags:
        engine.tag(image_id, tag)
    return image_id, time.monotonic() - started, counter.total
