"""The subjects of `invoke smoke` and `invoke test-local-images`, and the files that these write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from base_images import labels, variants, versions
from base_images.adapters import files, repository
from base_images.adapters.engine import Engine, Image
from base_images.errors import ImageNotFoundError, LaunchError, RepositoryError, UsageError
from base_images.labels import Label
from base_images.progress import Listener, Progress, pull_progress, silent
from base_images.smoke import calibration, containers, model, operations_run, process, tolerances
from base_images.smoke import html as smoke_html
from base_images.smoke import report as smoke_report
from base_images.smoke import url as running
from base_images.smoke.containers import Kept
from base_images.smoke.device import Granted
from base_images.smoke.model import KnownAnswer, TensorType
from base_images.smoke.operations_run import Wanted
from base_images.smoke.report import SmokeReport, Status
from base_images.smoke.tolerances import Noise
from base_images.variants import VARIANTS, Variant

REGISTRY_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The files of the report; None: not written.

    Attributes:
        record: directory for JSON, JUnit XML and the servers' logs.
        junit: file for JUnit XML.
        html: file for the HTML page.
    """

    record: Path | None
    junit: Path | None = None
    html: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A report, and the labels of its image; empty without an image."""

    report: SmokeReport
    labels: Mapping[str, str] = field(default_factory=dict)


def image_under_test(
    engine: Engine,
    variant: Variant,
    reference: str,
    *,
    checkout: Path,
    listener: Listener = silent,
    notice: Callable[[str], None],
) -> Image:
    """Returns the image of a reference, pulled if the engine does not have it; without a reference the local build.

    Args:
        engine: the image's engine.
        variant: the expected variant.
        reference: tag, digest or id; empty for the local build.
        checkout: the repository, whose HEAD a local build should be of.
        listener: called with the progress of a pull.
        notice: called with a sentence if a local build is of another commit.

    Raises:
        ImageNotFoundError: neither the engine nor a registry has the image.
        EngineError: the pull failed.
        UsageError: the image is of another variant.
    """
    if not reference:
        image = local_build(engine, variant)
        if difference := _other_commit(image, checkout):
            notice(f"{versions.local_reference(variant.name)} {difference}")
        return image
    image = pulled(engine, reference, listener=listener)
    labelled = image.labels.get(Label.VARIANT, variant.name)
    if labelled != variant.name:
        raise UsageError(f"The image {reference} is of {labelled}, not of {variant.name}: name that with --variant.")
    return image


def pulled(engine: Engine, reference: str, *, listener: Listener = silent) -> Image:
    """Returns the image of a tag, a digest or an id, pulled if the engine does not have it.

    Raises:
        ImageNotFoundError: neither the engine nor a registry has the image.
        EngineError: the pull failed.
    """
    if "/" not in reference or engine.has_image(reference):  # a reference without a registry is local
        return engine.image(reference)
    # First with a time-out, which a pull has not: a registry behind a firewall that drops packets would block it.
    engine.ask_registry(reference, timeout=REGISTRY_SECONDS)
    image = engine.pull(reference, pull_progress(reference, listener))
    listener(Progress(what=f"pull {reference}", finished=True))
    return image


def local_build(engine: Engine, variant: Variant) -> Image:
    """Returns the newest local build of a variant.

    Raises:
        ImageNotFoundError: there is none.
    """
    try:
        return engine.image(versions.local_reference(variant.name))
    except ImageNotFoundError as error:
        raise ImageNotFoundError(
            f"There is no local build of {variant.name}: make one with `invoke build-local --variant {variant.name}`, "
            "or name an image with --image."
        ) from error


def local_variants(engine: Engine) -> list[Variant]:
    """Returns the variants with a local build on the engine.

    Raises:
        ImageNotFoundError: there is none.
    """
    found = [variant for variant in VARIANTS if engine.has_image(versions.local_reference(variant.name))]
    if not found:
        raise ImageNotFoundError(
            "There is no local build of any variant on this engine: make one, such as with "
            "`invoke build-local --variant cpu`."
        )
    return found


def variant_of(image: Image) -> Variant:
    """Returns the variant in an image's labels.

    Raises:
        UsageError: the label is missing.
    """
    name = image.labels.get(Label.VARIANT)
    if name is None:
        raise UsageError("The image does not say which variant it is of: name that with --variant.")
    return variants.find(name)


def smoke_image(
    engine: Engine,
    image: Image,
    variant: Variant,
    *,
    device: Granted | None,
    listener: Listener = silent,
    kept: Kept | None = None,
    model_file: Path | None = None,
    operations: Wanted | None = None,
) -> Tested:
    """Runs the smoke test on an image, see `containers.smoke`, and that of its `operations` if they are wanted.

    Raises:
        ImageNotFoundError: there is no image of its operations.
    """
    with contextlib.ExitStack() as stack:
        planned = None
        if operations:  # what can be wrong with them is said before what takes longer
            beside = operations_run.image_of(engine, image, variant, partial(pulled, engine, listener=listener))
            program = stack.enter_context(operations_run.in_containers(engine, beside, variant, device))
            planned = operations_run.plan(program, variant, operations)
        report = containers.smoke(
            engine,
            image.id,
            variant,
            device=device,
            listener=listener,
            kept=kept,
            model_file=model_file,
            shares_files=engine.is_near,
        )
        if planned:
            report = operations_run.added(report, planned, listener)
    return Tested(report=report, labels=image.labels)


def smoke_program(
    program: Path,
    variant: Variant,
    *,
    device: Granted | None,
    listener: Listener = silent,
    model_file: Path | None = None,
    operations: Wanted | None = None,
) -> Tested:
    """Runs the smoke test on a llama-server of this host, see `process.smoke`, and on the program beside it."""
    with contextlib.ExitStack() as stack:
        planned = None
        if operations:
            beside = stack.enter_context(operations_run.of_host(program, device))
            planned = operations_run.plan(beside, variant, operations)
        report = process.smoke(program, variant, device=device, listener=listener, model_file=model_file)
        if planned:
            report = operations_run.added(report, planned, listener)
    return Tested(report=report)


def calibrate_image(
    engine: Engine,
    image: Image,
    variant: Variant,
    *,
    device: Granted | None,
    driver: str = "",
    toolkit: str = "",
    listener: Listener = silent,
) -> str:
    """Returns the rows of an image's device for `noise.json`, see `calibration.calibrate`.

    Raises:
        LaunchError: a server does not start, does not use the device, or gives no answer that can be measured.
    """
    rows: list[Noise] = []
    toolkit = toolkit or ", ".join(labels.toolkit(image.labels).values())
    check = partial(calibration.calibrate, rows=rows, driver=driver, toolkit=toolkit)
    return _rows(rows, containers.smoke(engine, image.id, variant, check=check, device=device, listener=listener))


def calibrate_program(
    program: Path,
    variant: Variant,
    *,
    device: Granted | None,
    driver: str = "",
    toolkit: str = "",
    listener: Listener = silent,
) -> str:
    """Returns the same of a llama-server of this host."""
    rows: list[Noise] = []
    check = partial(calibration.calibrate, rows=rows, driver=driver, toolkit=toolkit)
    return _rows(rows, process.smoke(program, variant, check=check, device=device, listener=listener))


def _rows(rows: Sequence[Noise], report: SmokeReport) -> str:
    for server in report.servers:
        for check in server.checks:
            if check.status is not Status.PASS:
                raise LaunchError(f"Nothing was measured: {server.name}: {check.seen}", detail=check.detail)
    return tolerances.as_json(rows)


def smoke_url(url: str, variant: Variant, *, model_name: str = "", key: str = "") -> Tested:
    """Checks a running server; see `url.smoke_url`."""
    return Tested(report=running.smoke_url(url, variant, model_name=model_name, key=key))


def write_model(type_name: str, path: Path) -> KnownAnswer:
    """Writes the known-answer model of a tensor type to a file, and returns it and its right answer.

    Raises:
        UsageError: there is no such type, or the file cannot be written.
    """
    try:
        answer = model.known_answer(TensorType(type_name.upper()))
    except ValueError as error:
        raise UsageError(f"There is no type {type_name!r}: choose one of {', '.join(TensorType)}.") from error
    files.write(path, answer.gguf)
    return answer


def writes(tested: Tested, outputs: Outputs) -> list[Callable[[], object]]:
    """Returns a function for each of the outputs that writes it; it raises UsageError where that is not possible."""
    report = tested.report
    found: list[Callable[[], object]] = []
    if outputs.record:
        found.append(partial(smoke_report.write, report, outputs.record))
    if outputs.junit:
        found.append(partial(files.write, outputs.junit, smoke_report.as_junit(report)))
    if outputs.html:
        found.append(partial(files.write, outputs.html, smoke_html.as_html(report, labels=tested.labels)))
    return found


def _other_commit(image: Image, checkout: Path) -> str:
    """Returns the end of a notice that an image is not of the commit that is checked out; empty if it is."""
    try:
        head = repository.head(repository.open_clone(checkout))
    except RepositoryError:
        return ""  # not a clone
    revision = image.labels.get(Label.REVISION, "")
    if revision == head.commit:
        return ""
    return f"was built from {revision[:7] or 'an unknown commit'}, and {head.commit[:7]} is checked out."
