"""The tasks that check an image: against the contract, and against another build of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from invoke.context import Context

from base_images import settings, variants
from base_images.cli import github
from base_images.cli.front_door import command, conclude
from base_images.cli.options import caller_path
from base_images.errors import RegistryError
from base_images.settings import ROOT

LATEST = "latest"
"""The word of --since for the registry's latest-<variant>."""


@command(
    positional=["image"],
    help={
        "image": "reference or id, pulled if the engine does not have it",
        "variant": "the variant of an image without the label",
        "since": "the image to compare its size with, by layer and file: a reference, or `latest` for the registry's "
        "latest-<variant>, which is asked, not pulled; default: latest, if the image has grown",
        "record": "directory for the report; of an image in the registry also for `attach-reports`",
        "json": "print JSON",
    },
)
def check_image(
    _: Context, image: str, variant: str = "", since: str = "", record: str = "", json: bool = False
) -> None:
    """Checks an image against the contract.

    The image may be ours or not. Prints one line per row; exit code 1 on a finding.
    """
    from base_images.adapters import engine
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    known = variants.find(variant) if variant else None
    connected = engine.connect()
    with views.Display(views.mode(quiet=json), f"pull {image}") as display:
        smoke_command.pulled(connected, image, listener=display.progress)
        if since not in ("", LATEST):
            smoke_command.pulled(connected, since, listener=display.progress)
    check(connected, image, known, json=json, record=caller_path(record), since=since)


def check(
    connected: Any,
    reference: str,
    variant: variants.Variant | None,
    *,
    json: bool,
    record: Path | None = None,
    since: str = "",
) -> None:
    """Checks an image against the contract; prints and records the report.

    Raises:
        Exit: with code 1, on a finding.
    """
    from base_images.adapters import files
    from base_images.cli import views
    from base_images.contract import judge
    from base_images.release import evidence

    result = judge.check(connected, reference, variant, before=partial(_before, connected, since))
    writes: list[Callable[[], object]] = []
    if record:
        writes = [partial(files.write_json, record / f"contract-{result.variant}.json", result.as_dict())]
        found, registry = connected.image(result.image_id), settings.load(ROOT).registry
        if seen := evidence.of_report(found, registry, evidence.Kind.CONTRACT, result):
            writes.append(partial(evidence.write, seen, record))
    if json:
        views.print_json(result.as_dict())
    else:
        views.print_contract(result)
    conclude(writes, ok=result.ok)


def _before(connected: Any, since: str, found: Any) -> Any:
    """Returns what an image's size is compared with: `since`, or the released image if it has grown; else None."""
    from base_images.adapters import registry
    from base_images.contract import facts, rows_contents, sizes
    from base_images.release import evidence

    if since not in ("", LATEST):
        return sizes.Before(name=since, sizes=facts.sizes_of(connected, connected.image(since)))
    if found.variant is None or not (since or rows_contents.has_grown(found)):
        return None
    try:
        where = registry.open_repository(settings.load(ROOT).registry, patient=False)
        return evidence.released_sizes(where, found.variant.name, f"linux/{found.image.architecture}")
    except RegistryError as error:
        return sizes.Before(name=f"not compared with the last release: {error}")


@command(
    positional=["image"],
    help={
        "image": "reference or id, pulled if the engine does not have it; built from the commit that is checked out",
        "record": "directory for the result",
        "quiet": "print only the result",
    },
)
def verify_reproducible(_: Context, image: str, record: str = "", quiet: bool = False) -> None:
    """Builds an image again and compares the two.

    Every command runs again. Exit code 1 on a difference in what this project puts into the image.
    """
    from base_images.adapters import engine, files, repository
    from base_images.build import local
    from base_images.build.inputs import Origin
    from base_images.cli import views
    from base_images.cli.options import resolve_source
    from base_images.release import evidence, reproduce
    from base_images.smoke import command as smoke_command

    connected = engine.connect()
    how = views.mode(quiet=quiet)
    with views.Display(how, f"build {image} again") as display:
        first = smoke_command.pulled(connected, image, listener=display.progress)
        plan = reproduce.plan_of(first, repository.head(repository.open_clone(ROOT)))
        source = resolve_source("", Origin.AUTO, display)
        reproduce.fetch_bases(connected, plan)
        prepared = local.Prepared(plan=plan, source=source, notices=())
        built = reproduce.build_again(connected, prepared, root=ROOT, on_event=display.event)
        found = tuple(reproduce.differences(connected, first, connected.image(built.image_id)))
    result = reproduce.Reproduction(image=first.id, rebuilt=built.image_id, version=plan.version, differences=found)
    writes: list[Callable[[], object]] = []
    if directory := caller_path(record):
        writes.append(partial(files.write_json, directory / f"reproducible-{plan.variant}.json", result.as_dict()))
        if seen := evidence.of_report(first, settings.load(ROOT).registry, evidence.Kind.REPRODUCIBLE, result):
            writes.append(partial(evidence.write, seen, directory))
    same = f"{image} and {built.image_id}, built again in {built.seconds:.0f} s: the same files and layers."
    for sentence in found or (same,):
        views.say(sentence)
    github.summarise_table(f"{image}, built again", ["what"], [[sentence] for sentence in found or (same,)])
    conclude(writes, ok=result.ok)
