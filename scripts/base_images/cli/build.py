"""Tasks that build on the local engine or by bake, show what would be built, and clean up."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from invoke.context import Context
from invoke.exceptions import Exit

from base_images import settings, variants
from base_images.cli import github
from base_images.cli.contract import check
from base_images.cli.front_door import RECORD_DIRECTORY, command, for_each_variant, record_actions
from base_images.cli.options import (
    BUILD_HELP,
    SOURCE_HELP,
    BuildOptions,
    Wanted,
    caller_path,
    open_registry,
    parse_origin,
    parse_platform,
    resolve_source,
    variants_of,
    wanted_platforms,
)
from base_images.cli.smoke import judge
from base_images.errors import UsageError
from base_images.settings import ROOT

if TYPE_CHECKING:
    from base_images.adapters.engine import Engine
    from base_images.build.inputs import Source
    from base_images.build.local import Prepared
    from base_images.build.plan import BuildPlan
    from base_images.cli.views import Display


@command(help={**SOURCE_HELP, "quiet": "print only the result"})
def fetch_source(_: Context, source: str = "", origin: str = "auto", quiet: bool = False) -> None:
    """Fetches llama.cpp's pinned source into llama.cpp/.

    With --source it looks at that tree instead.
    """
    from base_images.cli import views

    with views.Display(views.mode(quiet=quiet)) as display:
        found = resolve_source(source, parse_origin(origin), display)
    dirty = ", with changes" if found.dirty else ""
    views.say(f"llama.cpp {found.tag} ({found.commit[:9]}{dirty}) is in {found.path}")


@command(
    iterable=["variant", "arch"],
    help={
        **BUILD_HELP,
        "variant": "which image; may be given several times; default: all; one that fails does not stop the others",
        "platform": "amd64 or arm64; default: the engine's; another one is emulated, on bases of --origin packages",
        "operations": "also the test of its operations, beside it, for `invoke smoke --operations`",
        "smoke": "check the built image against the contract, then start it and ask it for the known answer",
        "quiet": "print only the result",
    },
)
def build_local(
    _: Context,
    variant: list[str],
    arch: list[str],
    platform: str = "",
    source: str = "",
    origin: str = "auto",
    toolkit: str = "",
    slim: bool = False,
    operations: bool = False,
    smoke: bool = False,
    quiet: bool = False,
) -> None:
    """Builds images on the local engine.

    Tags have this commit's version; exit code 1 names the images that failed.

    Example: invoke build-local --variant cpu --smoke
    """
    from base_images.adapters import engine, repository
    from base_images.build import architectures, local
    from base_images.build.plan import of_operations, require_platform
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    options = BuildOptions(source=source, origin=parse_origin(origin), architectures=arch, slim=slim, toolkit=toolkit)
    asked = parse_platform(platform) if platform else None
    for named in map(variants.find, variant):
        architectures.architecture_argument(named, arch)
        architectures.toolkit_argument(named, toolkit)
        if asked:
            require_platform(named, asked)
    repository.open_clone(ROOT)  # without a version, nothing is to be fetched or built
    connected = engine.connect()
    wanted = asked or connected.platform()
    how = views.mode(quiet=quiet)
    with views.Display(how) as display:
        resolved = resolve_source(options.source, options.origin, display)

    def build_one(variant: variants.Variant) -> None:
        with views.Display(how, f"build {variant.name}") as display:
            prepared = _prepare(connected, variant, resolved, options, display, wanted)
            for notice in prepared.notices:
                display.notice(notice)
            built = local.build(connected, prepared, root=ROOT, on_event=display.event)
        done = [built]
        if operations:
            beside = dataclasses.replace(prepared, plan=of_operations(prepared.plan))
            with views.Display(how, f"build the operations of {variant.name}") as display:
                done.append(local.build(connected, beside, root=ROOT, on_event=display.event))
        for one in done:
            views.say(f"built {one.plan.tags[0]} in {one.seconds:.1f} s, also {', '.join(one.plan.tags[1:])}")
            if one.compiled:
                views.say(str(one.compiled))
                github.summarise_table(f"{one.plan.tags[0]}: {one.compiled}", [], [])
        if smoke:
            check(connected, built.image_id, variant, json=False)
            outputs = smoke_command.Outputs(record=ROOT / RECORD_DIRECTORY)
            image = connected.image(built.image_id)
            judge(smoke_command.smoke_image(connected, image, variant, device=None), outputs, json=False)

    for_each_variant([known for known in variants_of(variant) if variant or wanted in known.platforms], build_one)


@command(
    iterable=["variant", "platform", "arch"],
    help={
        **BUILD_HELP,
        "variant": "which image; default: all of them",
        "platform": "amd64 or arm64; default: all that a variant is published for",
        "push": "bake: the file of `invoke bake --push`, which publishes what it builds",
        "format": "table, json, command (of docker, by hand), bake (the file of `invoke bake`) or matrix (CI's jobs)",
    },
)
def plan(
    _: Context,
    variant: list[str],
    platform: list[str],
    arch: list[str],
    source: str = "",
    origin: str = "auto",
    toolkit: str = "",
    slim: bool = False,
    push: bool = False,
    format: str = "table",  # noqa: A002
) -> None:
    """Shows what would be built, and with what.

    Fetches nothing, unless it is for `command` or the bases come from packages.
    """
    from base_images.adapters import repository
    from base_images.build import bakefile, plan
    from base_images.cli import views

    if format not in ("table", "json", "command", "bake", "matrix"):
        raise UsageError(f"There is no format {format!r}: choose table, json, command, bake or matrix.")
    wanted = wanted_platforms(variant, platform)
    if format == "matrix":
        views.print_json(_matrix(wanted), one_line=True)
        return
    options = BuildOptions(source=source, origin=parse_origin(origin), architectures=arch, slim=slim, toolkit=toolkit)
    repository.open_clone(ROOT)  # without a version, no registry is to be asked
    if format == "command":
        plans = _prepared_plans(wanted, options)
    else:
        plans = _plans(wanted, options, packages=format != "bake")
    if format == "bake":
        views.print_json(bakefile.bake_file(plans, settings.load(ROOT).registry, push=push))
    elif format == "json":
        views.print_json([dataclasses.asdict(made) for made in plans])
    for made in plans:
        if format == "command":
            views.say(plan.as_command(made))
        elif format == "table":
            rows = [("recipe", made.dockerfile), ("platform", made.platform), *(("tag", tag) for tag in made.tags)]
            rows += [(f"arg {name}", value) for name, value in made.arguments.items()]
            rows += [(f"label {name}", value) for name, value in made.labels.items()]
            views.print_table(f"{made.variant} {made.version} for {made.platform}", ["what", "value"], rows)


@command(
    iterable=["variant", "platform"],
    help={
        "variant": "which image; may be given several times; default: all; one that fails does not stop the others",
        "platform": "amd64 or arm64; default: the engine's, or with --push all that a variant is published for",
        "builder": "buildx's name of the builder; default: the current one",
        "operations": "also the test of the image's operations, beside it",
        "push": "publish what is built, by digest, with provenance and SBOM, and cache the steps in the registry",
        "dry_run": "build everything and keep nothing; BASE_IMAGES_DRY_RUN=true does the same",
        "quiet": "print only the result",
    },
)
def bake(
    _: Context,
    variant: list[str],
    platform: list[str],
    builder: str = "",
    operations: bool = False,
    push: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Builds images by `docker buildx bake`.

    On any of buildx's builders: remote ones, Kubernetes, several platforms.
    """
    from base_images.adapters import engine, repository
    from base_images.build import bakefile
    from base_images.build.inputs import Origin
    from base_images.cli import views
    from base_images.release import actions, bake

    chosen = settings.load(ROOT)
    version = repository.head(repository.open_clone(ROOT)).version
    if push and version.dirty:
        raise UsageError("The tree has changes, and only a commit is published: commit them, or leave --push out.")
    bakefile.require_builder(builder, push=push)
    if not push and not platform:
        platform = [engine.connect().platform().architecture]
    wanted = wanted_platforms(variant, platform)
    if not push and len({chosen_platform for _, platforms in wanted for chosen_platform in platforms}) > 1:
        raise UsageError("A tag of the local engine is for one platform: choose one with --platform, or --push.")
    published = open_registry() if push else None

    def bake_one(variant: variants.Variant) -> None:
        done: list[actions.Action] = []
        kept = True
        try:
            with views.Display(views.mode(quiet=quiet), f"bake {variant.name}") as display:
                done += bake.bake(
                    variant,
                    next(platforms for other, platforms in wanted if other is variant),
                    settings=chosen,
                    root=ROOT,
                    version=version,
                    repository=published,
                    source=lambda: resolve_source("", Origin.AUTO, display),
                    builder=builder,
                    dry_run=dry_run or settings.dry_run(),
                    on_event=display.event,
                    operations=operations,
                )
        finally:
            for action in done:
                views.print_action(action)
            if done:
                kept = record_actions("bake", done)
        if not kept:
            raise Exit(code=UsageError.exit_code)

    for_each_variant([known for known, _ in wanted], bake_one)


@command(
    help={
        "json": "write nothing, and print the digests that builds of this commit take, as JSON: those of now where the "
        "lock has none",
        "report": "add what changed to this file, as Markdown",
    },
)
def lock_bases(_: Context, json: bool = False, report: str = "") -> None:
    """Locks the base images by digest.

    Writes what the recipes' tags point at now to dockerfiles/bases.lock. A digest that cannot be looked up stays.
    """
    from base_images.adapters import files
    from base_images.build import bases, lock
    from base_images.cli import views
    from base_images.errors import BaseImagesError, SourceError

    path = ROOT / lock.FILE
    before = lock.digests(ROOT)
    wanted = lock.references(ROOT / variant.dockerfile for variant in variants_of([]))
    after = {name: before[name] for name in wanted if name in before}
    failed = []
    for name in wanted:
        if json and name in before:
            continue
        try:
            after[name] = bases.ask(name)
        except BaseImagesError as error:
            failed.append(name)
            views.complain(f"note: {error}")
    if json:
        empty = f"{lock.FILE} is empty, so the tags are taken as they are now: run `invoke lock-bases`."
        if stale := lock.problem(before, wanted) if before else empty:
            views.complain(f"note: {stale}")
        views.print_json(after, one_line=True)
        return
    files.write(path, lock.text(path.read_text(encoding="utf-8"), after))
    rows = [(name, before.get(name, "none"), after.get(name, "none")) for name in sorted(before.keys() | after.keys())]
    views.print_table(lock.FILE, ["base image", "was", "is"], rows)
    if (written := caller_path(report)) and before != after:
        files.add(written, lock.markdown(before, after))
    if failed:
        raise SourceError(f"{', '.join(failed)} could not be looked up, see above; the rest is in {lock.FILE}.")


_CACHE_HELP = {
    "variant": "of which image",
    "platform": "amd64 or arm64: that of the builder",
    "builder": "buildx's name of the builder; default: the current one",
}


@command(help=_CACHE_HELP)
def load_compiler_cache(_: Context, variant: str, platform: str, builder: str = "") -> None:
    """Fills a builder's compiler cache from the registry.

    With what `save-compiler-cache` saved of this image, else of another one for the platform.
    """
    from base_images.build import bakefile, compiler_cache
    from base_images.cli import views

    plan, known, one = _planned(variant, platform)
    bakefile.require_builder(builder, push=False)
    saved = compiler_cache.saved(open_registry(), known, one)
    if saved:
        compiler_cache.load(plan, saved, root=ROOT, builder=builder)
    told = f"compiler cache of {variant} for {one.docker}: {saved or 'none was saved, so everything is compiled'}"
    views.say(told)
    github.summarise_table(told, [], [])


@command(help={**_CACHE_HELP, "dry_run": "push nothing; BASE_IMAGES_DRY_RUN=true does the same"})
def save_compiler_cache(_: Context, variant: str, platform: str, builder: str = "", dry_run: bool = False) -> None:
    """Pushes a builder's compiler cache to the registry.

    At most 2 GB of it, what was used last; the next builder starts with `load-compiler-cache`.
    """
    from base_images.build import bakefile, compiler_cache
    from base_images.cli import views

    plan, known, one = _planned(variant, platform)
    reference = f"{settings.load(ROOT).registry}:{compiler_cache.tag(known, one)}"
    if dry_run or settings.dry_run():
        views.say(f"dry run: would save {reference}")
        return
    bakefile.require_builder(builder, push=True)
    compiler_cache.save(plan, reference, root=ROOT, builder=builder)
    views.say(f"saved {reference}")


def _planned(variant: str, platform: str) -> tuple[BuildPlan, variants.Variant, variants.Platform]:
    """Returns the plan of an image on the bases that registries have now, its variant and its platform."""
    from base_images.build.inputs import Origin

    known, one = variants.find(variant), parse_platform(platform)
    options = BuildOptions(source="", origin=Origin.REGISTRIES, architectures=[], slim=False, toolkit="")
    [plan] = _plans([(known, [one])], options, packages=False)
    return plan, known, one


@command(help={"dry_run": "only say what would go", "bases": "also the base images made from package mirrors"})
def clean_local_images(_: Context, dry_run: bool = False, bases: bool = False) -> None:
    """Removes the images that this project built.

    All versions of them, and nothing else.
    """
    from base_images.adapters import engine
    from base_images.build import clean
    from base_images.build.bases import PACKAGES_REPOSITORY
    from base_images.cli import views
    from base_images.labels import Label

    connected = engine.connect()
    planned = clean.removals(connected.images(label=Label.VARIANT), settings.load(ROOT).registry)
    if bases:
        planned += clean.bases(connected.images(reference=PACKAGES_REPOSITORY))
    for removal in planned:
        kept = f" (the image stays: it is also {', '.join(removal.kept)})" if removal.kept else ""
        views.say(f"{'would remove' if dry_run else 'remove'} {' '.join(removal.references)}{kept}")
    if dry_run or not planned:
        views.say(f"{len(planned)} images of this project, nothing removed")
        return
    cleaned = clean.apply(connected, planned)
    for reference, why in cleaned.failed:
        views.say(f"kept {reference}: {why}")
    views.say(f"removed {len(cleaned.removed)} references, freed {variants.megabytes(cleaned.freed)}")
    if cleaned.failed:
        raise Exit(code=1)


def _matrix(wanted: Wanted) -> dict[str, Any]:
    from base_images.adapters import repository
    from base_images.release import matrix

    version = repository.head(repository.open_clone(ROOT)).version
    runners = os.environ.get(matrix.RUNNERS_VARIABLE, "")
    jobs = matrix.matrix(wanted, version, registry=settings.load(ROOT).registry, runners=runners)
    columns = ["platform", "runner", "device"]
    rows = [[name, *map(job.get, columns)] for name, checks in jobs["checks"].items() for job in checks]
    github.summarise_table(f"{jobs['tag']} to {jobs['repository']}", ["variant", *columns], rows)
    return jobs


def _plans(wanted: Wanted, options: BuildOptions, *, packages: bool) -> list[BuildPlan]:
    """Returns plans on the bases that registries have now, or, where `packages` allows it, on the engine's."""
    from base_images.build import local
    from base_images.build import source as sources
    from base_images.build.inputs import Origin
    from base_images.cli import views
    from base_images.errors import SourceError

    if options.origin is Origin.PACKAGES:
        if not packages:
            raise UsageError("Bake builds only on bases from registries, wherever its builder is: leave --origin out.")
        return _prepared_plans(wanted, options)
    chosen = settings.load(ROOT)
    source = sources.expected(chosen.pin, path=caller_path(options.source), root=ROOT)
    try:
        return [
            made
            for variant, platforms in wanted
            for made in local.preview(
                variant,
                platforms,
                settings=chosen,
                root=ROOT,
                source=source,
                architectures=options.architectures,
                slim=options.slim,
                version=options.toolkit,
            )
        ]
    except SourceError as error:
        if options.origin is Origin.REGISTRIES or not packages:
            raise
        views.complain(f"note: {error} What follows is what this machine's engine would build.")
        return _prepared_plans(wanted, options)


def _prepared_plans(wanted: Wanted, options: BuildOptions) -> list[BuildPlan]:
    """Prepares the bases on the engine, and returns plans for its platform."""
    from base_images.adapters import engine
    from base_images.cli import views

    connected = engine.connect()
    here = connected.platform()
    chosen = [variant for variant, platforms in wanted if here in platforms]
    if not chosen:
        raise UsageError(f"This engine builds for {here.docker}: choose that, or another engine with DOCKER_HOST.")
    with views.Display(views.Mode.QUIET) as display:
        source = resolve_source(options.source, options.origin, display)
        return [_prepare(connected, variant, source, options, display).plan for variant in chosen]


def _prepare(
    connected: Engine,
    variant: variants.Variant,
    source: Source,
    options: BuildOptions,
    display: Display,
    platform: variants.Platform | None = None,
) -> Prepared:
    from base_images.build import local

    return local.prepare(
        connected,
        variant,
        settings=settings.load(ROOT),
        root=ROOT,
        source=source,
        wanted=options.origin,
        listener=display.progress,
        architectures=options.architectures,
        slim=options.slim,
        version=options.toolkit,
        platform=platform,
    )
