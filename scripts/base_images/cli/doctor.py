"""The task that shows what this machine is ready for."""

from __future__ import annotations

from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from base_images import settings, variants
from base_images.cli.front_door import command
from base_images.cli.options import variants_of
from base_images.errors import UsageError
from base_images.settings import ROOT


@command(
    iterable=["variant"],
    help={
        "variant": "which variant's device must be ready; may be given several times; default: all, and cpu must build",
        "image": "an image of that one variant; default: the local build",
        "json": "print JSON",
    },
)
def doctor(_: Context, variant: list[str], image: str = "", json: bool = False) -> None:
    """Shows what this machine is ready for.

    Also its engine and its devices, and what they lack; exit code 3 without an engine.
    """
    from base_images.cli import views

    if image and len(variant) != 1:
        raise UsageError("--image is of one variant: name that with --variant.")
    result = examine(variants_of(variant), by_name=bool(variant), image=image)
    views.print_json(result.as_dict()) if json else views.print_doctor(result)
    if result.exit_code:
        raise Exit(code=result.exit_code)


def examine(chosen: list[variants.Variant], *, by_name: bool, image: str) -> Any:
    """Returns the doctor's report on variants, which the user named if `by_name`; `image` as of the task."""
    from base_images.doctor import doctor

    registry = settings.load(ROOT).registry
    return doctor.examine(chosen, checkout=ROOT, registry=registry, by_name=by_name, image=image)
