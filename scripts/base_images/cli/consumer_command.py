"""What `invoke check-consumer` checks: a checkout of BodhiApp, an image, or both."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from base_images.adapters import engine, files
from base_images.contract import facts as image_facts
from base_images.progress import Listener, silent
from base_images.recipes import consumer, consumer_checkout
from base_images.recipes.consumer_checkout import Report
from base_images.smoke import command as smoke_command


def check(root: Path, *, source: Path | None, image: str, listener: Listener = silent) -> Report:
    """Compares BodhiApp with our data, and an image with BodhiApp's arguments.

    `source` is a checkout of BodhiApp, whose arguments an image is asked with. None takes the data's; without an image
    the newest commit is fetched and compared.

    Raises:
        SourceError: `source` is not a checkout of BodhiApp, or its repository cannot be fetched.
        UsageError: the image has no variant label, or BodhiApp has no Dockerfile on such images.
        ImageNotFoundError: neither the engine nor a registry has the image.
        EngineError: no engine answers.
    """
    known = consumer.load(root)
    checkout = None
    with contextlib.ExitStack() as stack:
        if source is None and not image:
            source = stack.enter_context(consumer_checkout.newest(known.repository))
        if source:
            checkout = consumer_checkout.read(source, known)
    if not image:
        return consumer_checkout.report(known, checkout)
    connected = engine.connect()
    found = smoke_command.pulled(connected, image, listener=listener)
    variant = smoke_command.variant_of(found)
    passed = dataclasses.replace(known, dockerfiles=checkout.dockerfiles) if checkout else known
    answers = image_facts.ask_arguments(connected, found, variant, passed)
    return consumer_checkout.report(known, checkout, image=image, variant=variant, answers=answers)


def add_to(path: Path, seen: Report) -> None:
    """Appends a report to a file, as Markdown.

    Raises:
        UsageError: the file cannot be written.
    """
    files.add(path, consumer_checkout.markdown(seen))
