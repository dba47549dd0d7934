"""Tasks that start llama-server and ask it for the known answer, and what they need."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit

from base_images import settings, variants
from base_images.cli.doctor import examine
from base_images.cli.front_door import RECORD_DIRECTORY, command, conclude, for_each_variant
from base_images.cli.options import caller_path
from base_images.errors import UsageError
from base_images.settings import ROOT


@command(
    iterable=["variant"],
    help={
        "image": "image reference or id; default: the local build",
        "variant": "which variants; default: all that have a local build",
        "device": "on this host's accelerator; fails where it is not used or computes something else",
        "software_device": "on an accelerator that the CPU emulates; vulkan has one",
        "record": f"directory for JSON, JUnit XML and server logs; default: {RECORD_DIRECTORY}",
        "json": "print JSON",
    },
)
def test_local_images(
    _: Context,
    variant: list[str],
    image: str = "",
    device: bool = False,
    software_device: bool = False,
    record: str = "",
    json: bool = False,
) -> None:
    """Tests built images: does the server answer right?

    Starts llama-server as BodhiApp and as a person would, and asks for the known answer.
    """
    if device and software_device:
        raise UsageError("--device and --software-device exclude each other: choose the one that the host has.")
    from base_images.adapters import engine
    from base_images.smoke import device as devices

    connected = engine.connect()

    def grant(tested: variants.Variant) -> devices.Granted | None:
        if device:
            return devices.of_host(tested, connected.devices())
        return devices.in_software(tested) if software_device else None

    named = [variants.find(name) for name in variant]
    for tested in named:
        grant(tested)  # reports what the host lacks before the slow imports
    from base_images.smoke import command as smoke_command

    if image and not named:
        named = [smoke_command.variant_of(connected.image(image))]

    def test_one(tested: variants.Variant) -> None:
        granted = grant(tested)
        found = connected.image(image) if image else smoke_command.local_build(connected, tested)
        outputs = smoke_command.Outputs(record=caller_path(record) or ROOT / RECORD_DIRECTORY)
        judge(smoke_command.smoke_image(connected, found, tested, device=granted), outputs, json=json)

    for_each_variant(named or smoke_command.local_variants(connected), test_one)


@command(
    optional=["operations"],
    help={
        "variant": "which accelerator",
        "image": "tag, digest or id, pulled if the engine does not have it; default: the local build of this commit",
        "url": "check a llama-server that already runs, such as http://127.0.0.1:8080",
        "binary": "start this llama-server of the host instead: needs no engine",
        "software_device": "the same as --on software",
        "on": "host: its accelerator; software: one that the CPU emulates, vulkan has one; nothing: only the CPU",
        "keep": "leave the containers, and say how to remove them",
        "model": "measure the speed on this GGUF file (the first, if there are several), not on random weights",
        "model_name": "--url: which of the server's models",
        "api_key_file": "--url: a file with the server's API key; BASE_IMAGES_API_KEY may have the key itself",
        "operations": "also llama.cpp's own test of every operation, or of those named: --operations MUL_MAT,ROPE",
        "operations_minutes": "begin no operation after so many minutes; the same command goes on; default: 60",
        "record": f"directory for JSON, JUnit XML and server logs; default: {RECORD_DIRECTORY}",
        "junit": "write JUnit XML to this file too",
        "html": "write one HTML page for people to this file",
        "json": "print JSON",
    },
)
def smoke(
    _: Context,
    variant: str,
    image: str = "",
    url: str = "",
    binary: str = "",
    software_device: bool = False,
    on: str = "",
    keep: bool = False,
    model: str = "",
    model_name: str = "",
    api_key_file: str = "",
    operations: str = "",
    operations_minutes: float = 60.0,
    record: str = "",
    junit: str = "",
    html: str = "",
    json: bool = False,
) -> None:
    """Tests llama-server on this host's accelerator.

    The server of an image, one of the host (--binary), or one that already runs (--url).

    Example: invoke smoke --variant cuda
    """
    tested_variant = variants.find(variant)
    if sum(map(bool, (image, url, binary))) > 1:
        raise UsageError("--image, --url and --binary exclude each other: choose what is to be tested.")
    if on and software_device:
        raise UsageError("--software-device is short for --on software: leave one of them out.")
    if url and (on or software_device):
        raise UsageError("--on, or --software-device, is for a server that is started here: leave it out with --url.")
    if keep and (url or binary):
        raise UsageError("--keep leaves containers, and there are none with --url or --binary: leave it out.")
    if model and url:
        raise UsageError("--model is for a server that is started here: leave it out with --url, or try --model-name.")
    if (model_name or api_key_file) and not url:
        raise UsageError("--model-name and --api-key-file are for a server that runs already: name it with --url.")
    from base_images.image import ARBITRARY_USER
    from base_images.smoke import device as devices
    from base_images.smoke import model_file as model_files

    if model_file := caller_path(model):
        model_files.require_readable(model_files.shards(model_file), "" if binary else ARBITRARY_USER)

    started_here = not url and (on != devices.Where.NOTHING or tested_variant.device is None)
    wanted = _operations(operations, operations_minutes, caller_path(record), started_here=started_here)

    # Reports what the host lacks before looking for an image, and before the slow imports.
    where = devices.where(on or ("software" if software_device else "host"))
    granted = None if url else devices.to_test(tested_variant, where, by_itself=bool(binary))
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    outputs = smoke_command.Outputs(
        record=caller_path(record) or ROOT / RECORD_DIRECTORY, junit=caller_path(junit), html=caller_path(html)
    )
    if url:
        from base_images.smoke.url import api_key

        key = api_key(caller_path(api_key_file), os.environ)
        tested = smoke_command.smoke_url(url, tested_variant, model_name=model_name, key=key)
        judge(tested, outputs, json=json)
        return
    evidence: list[Callable[[], object]] = []
    with views.Display(views.mode(quiet=json), f"smoke test of {variant}") as display:
        if path := caller_path(binary):
            tested = smoke_command.smoke_program(
                path,
                tested_variant,
                device=granted,
                listener=display.progress,
                model_file=model_file,
                operations=wanted,
            )
        else:
            tested, evidence = _smoke_image(
                tested_variant,
                image,
                outputs,
                display,
                where=where,
                keep=keep,
                json=json,
                model_file=model_file,
                operations=wanted,
            )
    judge(tested, outputs, *evidence, json=json)


@command(
    help={
        "image": "tag, digest or id, pulled if the engine does not have it; default: the local build",
        "variant": "of the image, whose server runs on the CPU; default: cpu",
        "clients": "how many ask at the same time; default: 200",
        "minutes": "for how long; default: 10",
        "kill_every": "kill the container whenever its server has been healthy for so many seconds; default: never",
        "record": f"directory for JSON, JUnit XML, the picture and the server's log; default: {RECORD_DIRECTORY}",
        "html": "write one HTML page for people to this file",
        "json": "print JSON",
    },
)
def soak(
    _: Context,
    image: str = "",
    variant: str = "cpu",
    clients: int = 200,
    minutes: float = 10.0,
    kill_every: float = 0.0,
    record: str = "",
    html: str = "",
    json: bool = False,
) -> None:
    """Lets many clients ask an image for minutes.

    Every answer is compared with the right one, and the container's memory is watched.

    Example: invoke soak --clients 200 --minutes 10 --kill-every 20
    """
    from base_images.smoke.soak_report import Plan

    tested = variants.find(variant)
    plan = Plan(clients=clients, seconds=60 * minutes, kill_every=kill_every)
    plan.require_possible()
    from base_images.adapters import engine
    from base_images.cli import views
    from base_images.smoke import command as smoke_command
    from base_images.smoke import soak as soaks

    outputs = smoke_command.Outputs(record=caller_path(record) or ROOT / RECORD_DIRECTORY, html=caller_path(html))
    connected = engine.connect()
    with views.Display(views.mode(quiet=json), "soak") as display:
        found = smoke_command.image_under_test(
            connected,
            tested,
            image,
            checkout=ROOT,
            listener=display.progress,
            notice=views.complain if json else display.notice,
        )
        report = soaks.soak(connected, found, plan, listener=display.progress)
    judge(smoke_command.Tested(report=report, labels=found.labels), outputs, json=json)


@command(
    help={
        "variant": "which accelerator",
        "image": "tag, digest or id, pulled if the engine does not have it; default: the local build",
        "binary": "start this llama-server of the host instead: needs no engine",
        "on": "host: its accelerator; software: one that the CPU emulates; nothing: only the CPU",
        "driver": "version of the device's driver, for the rows; NVIDIA's is read from the host",
        "toolkit": "version of the toolkit that --binary was built with, for the rows",
        "output": "write the rows to this file instead of printing them",
    },
)
def calibrate(
    _: Context,
    variant: str,
    image: str = "",
    binary: str = "",
    on: str = "host",
    driver: str = "",
    toolkit: str = "",
    output: str = "",
) -> None:
    """Measures how far a right device is off.

    Prints rows for noise.json, of which the smoke test's limits are made.

    Example: invoke calibrate --variant cuda --output build/rows.json
    """
    tested = variants.find(variant)
    if image and binary:
        raise UsageError("--image and --binary exclude each other: choose what is to be measured.")
    from base_images.smoke import device as devices

    where = devices.where(on)
    granted = devices.to_test(tested, where, by_itself=bool(binary))
    from base_images.adapters import files
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    with views.Display(views.mode(quiet=not output), f"calibration of {variant}") as display:
        if path := caller_path(binary):
            measured = smoke_command.calibrate_program(
                path, tested, device=granted, driver=driver, toolkit=toolkit, listener=display.progress
            )
        else:
            from base_images.adapters import engine

            connected = engine.connect()
            granted = devices.to_test(tested, where, engine=connected.devices())
            found = smoke_command.image_under_test(
                connected, tested, image, checkout=ROOT, listener=display.progress, notice=views.complain
            )
            measured = smoke_command.calibrate_image(
                connected, found, tested, device=granted, driver=driver, toolkit=toolkit, listener=display.progress
            )
    if destination := caller_path(output):
        files.write(destination, measured)
        views.say(f"{destination}: add its rows to scripts/base_images/smoke/noise.json")
    else:
        views.say(measured.rstrip())


@command(
    help={
        "type": "how its weights are stored: F32, F16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, IQ4_XS, MXFP4 or BF16",
        "output": "the file to write, such as model.gguf",
    },
)
def known_answer_model(_: Context, output: str, type: str = "Q8_0") -> None:  # noqa: A002
    """Writes the model whose right answer is known.

    The smoke test uses it; the file is for a server that you start yourself.
    """
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    path = caller_path(output)
    answer = smoke_command.write_model(type, path) if path else None
    if answer is None:
        raise UsageError("--output names no file.")
    views.say(f"{path}: {variants.megabytes(len(answer.gguf))}; to {answer.prompt!r} the answer is {answer.text!r}")
    views.say("check the server that loads it with `invoke smoke --variant NAME --url http://127.0.0.1:8080`")


@command()
def compose(_: Context) -> None:
    """Prints compose.yaml, made from the variants."""
    from base_images.cli import views
    from base_images.smoke import device

    views.say(device.compose(settings.load(ROOT).registry).rstrip())


@command()
def search_model_seeds(_: Context) -> None:
    """Searches the seeds of known-answer models again.

    It takes minutes. Exit code 1 when one, or the answer to a long prompt, is not what model.py has.
    """
    from base_images.cli import views
    from base_images.smoke import model

    found = [model.search_seed(tensor_type) for tensor_type in model.TensorType]
    found += [model.search_long_seed(tensor_type) for tensor_type in model.LONG_PROMPTS]
    rows = [(seed.name, str(seed.found), str(seed.committed), f"{seed.margin:.3f} nats") for seed in found]
    views.print_table("seeds of the known-answer models", ["model", "found", "in model.py", "margin"], rows)
    if any(seed.found != seed.committed for seed in found):
        raise Exit(code=1)


def _smoke_image(
    variant: variants.Variant,
    image: str,
    outputs: Any,
    display: Any,
    *,
    where: Any,
    keep: bool,
    json: bool,
    model_file: Path | None,
    operations: Any,
) -> tuple[Any, list[Callable[[], object]]]:
    """Returns what was tested, and what writes it as evidence."""
    from base_images.adapters import engine
    from base_images.cli import views
    from base_images.release import evidence
    from base_images.smoke import command as smoke_command
    from base_images.smoke import containers
    from base_images.smoke import device as devices

    connected = engine.connect()
    granted = devices.to_test(variant, where, engine=connected.devices())
    found = smoke_command.image_under_test(
        connected,
        variant,
        image,
        checkout=ROOT,
        listener=display.progress,
        notice=views.complain if json else display.notice,
    )
    if not json:
        views.print_doctor(examine([variant], by_name=True, image=found.id))
    kept = containers.Kept() if keep else None
    try:
        tested = smoke_command.smoke_image(
            connected,
            found,
            variant,
            device=granted,
            listener=display.progress,
            kept=kept,
            model_file=model_file,
            operations=operations,
        )
        kind = evidence.KIND_OF_DEVICE[tested.report.device]
        seen = evidence.of_report(found, settings.load(ROOT).registry, kind, tested.report)
        return tested, [partial(evidence.write, seen, outputs.record)] if seen else []
    finally:
        if kept and kept.removal:
            views.complain(f"kept: {', '.join(kept.containers)}; `{kept.removal}` removes them")


def _operations(value: str | bool, minutes: float, record: Path | None, *, started_here: bool) -> Any:
    """Returns the operations to test, None for none; without names invoke passes True."""
    if not value:
        return None
    if not started_here:
        raise UsageError("--operations is for a backend that is started here: leave it out with --url or --on nothing.")
    from base_images.smoke.operations_run import Wanted

    names = () if value is True else tuple(filter(None, str(value).split(",")))
    return Wanted(names=names, minutes=minutes, record=record or ROOT / RECORD_DIRECTORY)


def judge(tested: Any, outputs: Any, *more: Callable[[], object], json: bool) -> None:
    """Prints the report of a smoke test, and writes it; `more` write other files of it.

    Raises:
        Exit: with code 1, if a check failed; or a file cannot be written.
    """
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    if json:
        views.print_json(tested.report.as_dict())
    else:
        views.print_smoke(tested.report)
    conclude([*smoke_command.writes(tested, outputs), *more], ok=tested.report.ok)
