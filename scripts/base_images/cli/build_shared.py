"""Tasks that keep what builders share: the base images of a release, and the compiler's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoke.context import Context

from base_images import settings, variants
from base_images.cli import github
from base_images.cli.build import plans_of
from base_images.cli.front_door import command
from base_images.cli.options import BuildOptions, caller_path, open_registry, parse_platform, variants_of
from base_images.settings import ROOT

if TYPE_CHECKING:
    from base_images.build.plan import BuildPlan


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
    [plan] = plans_of([(known, [one])], options, packages=False)
    return plan, known, one
