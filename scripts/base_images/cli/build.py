"""Tasks that build on the local engine or by bake, show what would be built, and clean up."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable
from functools import partial
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
    parse_jobs,
    parse_origin,
    parse_platform,
    resolve_source,
    variants_of,
    wanted_platforms,
)
from base_images.cli.smoke import judge
from base_images.errors import BaseImagesError, UsageError
from base_images.settings import ROOT

if TYPE_CHECKING:
    from base_images.adapters.engine import Engine
    from base_images.build.inputs import Source
    from base_images.build.local import Prepared
    from base_images.build.many import Work
    from base_images.build.plan import BuildPlan
    from base_images.cli.views import Mode
    from base_images.progress import Listener


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
        "jobs": "how many variants are built at once; default: as many as the engine's cores and memory bear",
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
    jobs: str = "",
    quiet: bool = False,
) -> None:
    """Builds images on the local engine.

    Tags have this commit's version; exit code 1 names the images that failed. build/logs/ has the log of each.

    Example: invoke build-local --variant cpu --smoke
    """
    from base_images.adapters import engine, repository
    from base_images.build import architectures, many
    from base_images.build.plan import require_platform
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    options = BuildOptions(source=source, origin=parse_origin(origin), architectures=arch, slim=slim, toolkit=toolkit)
    asked = parse_platform(platform) if platform else None
    at_once = parse_jobs(jobs)
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
    chosen = {known.name: known for known in variants_of(variant) if variant or wanted in known.platforms}
    works = {name: many.work(known, ROOT) for name, known in chosen.items()}
    builds = _Builds(
        connected=connected, source=resolved, options=options, platform=wanted, operations=operations, how=how
    )

    def finish(variant: variants.Variant) -> None:
        one = works[variant.name]
        if one.error:
            raise many.failure(one)
        for built in one.built:
            views.say(f"built {built.plan.tags[0]} in {built.seconds:.1f} s, also {', '.join(built.plan.tags[1:])}")
            if built.compiled:
                views.say(str(built.compiled))
                github.summarise_table(f"{built.plan.tags[0]}: {built.compiled}", [], [])
        if not smoke:
            return
        try:
            check(connected, one.built[0].image_id, variant, json=False)
            outputs = smoke_command.Outputs(record=ROOT / RECORD_DIRECTORY)
            image = connected.image(one.built[0].image_id)
            judge(smoke_command.smoke_image(connected, image, variant, device=None), outputs, json=False)
        except (BaseImagesError, Exit):
            one.state = many.State.FAILED
            raise

    try:
        builds.build(list(works.values()), at_once)
        for_each_variant(list(chosen.values()), finish)
    finally:
        if len(works) > 1:
            views.print_builds(list(works.values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Builds:
    """What the builds of several variants have in common."""

    connected: Engine
    source: Source
    options: BuildOptions
    platform: variants.Platform
    operations: bool
    how: Mode

    def build(self, works: list[Work], jobs: int) -> None:
        """Builds all; on GitHub one after the other, since the lines of groups do not mix."""
        from base_images.build import many
        from base_images.cli import board

        if len(works) == 1 or github.present():
            for one in works:
                many.attempt(one, many.State.BUILDING, partial(self._alone, one), many.State.BUILT)
            return
        works = sorted(works, key=lambda one: len(one.variant.directories))  # what cpu/ compiles is in all of them
        jobs = jobs or many.at_once(*self.connected.capacity())
        with board.Board(self.how, works):
            many.run(works, jobs=jobs, prepare=self._prepare, cancel=self.connected.cancel_build)

    def _alone(self, one: Work) -> None:
        from base_images.build import many
        from base_images.cli import views

        with many.recorded(one) as record:
            with views.Display(self.how, f"build {one.variant.name}") as display:
                image, *beside = self._fetch(one, display.progress, display.notice)
                many.build(self.connected, one, image, root=ROOT, receivers=(record, display.event))
            for tests in beside:
                with views.Display(self.how, f"build the operations of {one.variant.name}") as display:
                    many.build(self.connected, one, tests, root=ROOT, receivers=(record, display.event))

    def _prepare(self, one: Work) -> None:
        from base_images.cli import views

        each = self._fetch(one, one.track.progress, lambda text: views.note(f"{one.variant.name}: {text}"))
        one.build = partial(self._beside, one, each)

    def _fetch(self, one: Work, listener: Listener, notice: Callable[[str], None]) -> list[Prepared]:
        """Returns what is to be built of a variant, on bases that are there."""
        from base_images.build.plan import of_operations

        prepared = _prepare(self.connected, one.variant, self.source, self.options, listener, self.platform)
        for text in prepared.notices:
            notice(text)
        beside = [dataclasses.replace(prepared, plan=of_operations(prepared.plan))] if self.operations else []
        return [prepared, *beside]

    def _beside(self, one: Work, each: list[Prepared]) -> None:
        from base_images.adapters import engine
        from base_images.build import many

        # A connection is for one thread.
        with contextlib.closing(engine.connect()) as connected, many.recorded(one) as record:
            for prepared in each:
                many.build(connected, one, prepared, root=ROOT, receivers=(record,))


@command(
    iterable=["variant", "platform", "arch"],
    help={
        **BUILD_HELP,
        "variant": "which image; default: all of them",
        "platform": "amd64 or arm64; default: all that a variant is published for",
        "push": "bake: the file of `invoke bake --push`, which publishes what it builds",
        "format": "table, json, command (of docker, by hand), bake (the file of `invoke bake`), matrix (CI's jobs) or "
        "latest (CI's nightly jobs, for what was promoted)",
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

    if format not in ("table", "json", "command", "bake", "matrix", "latest"):
        raise UsageError(f"There is no format {format!r}: choose table, json, command, bake, matrix or latest.")
    wanted = wanted_platforms(variant, platform)
    if format == "matrix":
        views.print_json(_matrix(wanted), one_line=True)
        return
    if format == "latest":
        views.print_json(_nightly(wanted), one_line=True)
        return
    options = BuildOptions(source=source, origin=parse_origin(origin), architectures=arch, slim=slim, toolkit=toolkit)
    repository.open_clone(ROOT)  # without a version, no registry is to be asked
    if format == "command":
        plans = _prepared_plans(wanted, options)
    else:
        plans = plans_of(wanted, options, packages=format != "bake")
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


@command(help={"dry_run": "only say what would go", "bases": "also the base images made from package mirrors"})
def clean_local_images(_: Context, dry_run: bool = False, bases: bool = False) -> None:
    """Removes the images that this project built.

    All versions of them, and nothing else.
    """
    from base_images.adapters import engine
    from base_images.bench.builds import REPOSITORY as BENCH_REPOSITORY
    from base_images.build import clean
    from base_images.build.bases import PACKAGES_REPOSITORY
    from base_images.cli import views
    from base_images.labels import Label

    connected = engine.connect()
    planned = clean.removals(connected.images(label=Label.VARIANT), settings.load(ROOT).registry)
    planned += clean.in_repository(connected.images(reference=BENCH_REPOSITORY), BENCH_REPOSITORY)
    if bases:
        planned += clean.in_repository(connected.images(reference=PACKAGES_REPOSITORY), PACKAGES_REPOSITORY)
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


def _nightly(wanted: Wanted) -> list[dict[str, str]]:
    from base_images.release import matrix, promote

    where = open_registry()
    tags = where.tags()
    return matrix.nightly([one for one in wanted if promote.was_promoted(tags, one[0].name)], registry=where.name)


def plans_of(wanted: Wanted, options: BuildOptions, *, packages: bool) -> list[BuildPlan]:
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
        return [_prepare(connected, variant, source, options, display.progress).plan for variant in chosen]


def _prepare(
    connected: Engine,
    variant: variants.Variant,
    source: Source,
    options: BuildOptions,
    listener: Listener,
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
        listener=listener,
        architectures=options.architectures,
        slim=options.slim,
        version=options.toolkit,
        platform=platform,
    )
