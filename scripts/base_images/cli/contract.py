"""The task that checks an image against the contract."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from invoke.context import Context

from base_images import settings, variants
from base_images.cli.front_door import command, conclude
from base_images.cli.options import caller_path
from base_images.settings import ROOT


@command(
    positional=["image"],
    help={
        "image": "reference or id, pulled if the engine does not have it",
        "variant": "the variant of an image without the label",
        "record": "directory for the report; of an image in the registry also for `attach-reports`",
        "json": "print JSON",
    },
)
def check_image(_: Context, image: str, variant: str = "", record: str = "", json: bool = False) -> None:
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
    check(connected, image, known, json=json, record=caller_path(record))


def check(
    connected: Any, reference: str, variant: variants.Variant | None, *, json: bool, record: Path | None = None
) -> None:
    """Checks an image against the contract; prints and records the report.

    Raises:
        Exit: with code 1, on a finding.
    """
    from base_images.adapters import files
    from base_images.cli import views
    from base_images.contract import judge
    from base_images.release import evidence

    result = judge.check(connected, reference, variant)
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
