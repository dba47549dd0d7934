"""Runs the test of every operation: in containers of an image's operations, or beside a llama-server of this host.

What is done of all operations is kept in a file until the rest is, so that a run that was interrupted, or ran out of
time, goes on. Named operations are always tested.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from base_images import versions
from base_images.adapters import files, ownership
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.errors import BaseImagesError, ImageNotFoundError, UsageError
from base_images.image import ARBITRARY_USER
from base_images.labels import Label
from base_images.progress import Listener, Progress
from base_images.smoke import containers, operations
from base_images.smoke import device as devices
from base_images.smoke.device import Granted
from base_images.smoke.operations import Ended, Known
from base_images.smoke.process import Process
from base_images.smoke.report import CheckResult, ServerReport, SmokeReport, Status
from base_images.smoke.server import ENVIRONMENT, Server
from base_images.variants import Variant
from base_images.versions import Target, Version

SILENCE_SECONDS = 600.0
"""Without a line for so long, a run is killed: lavapipe takes minutes for the largest case."""

OUTPUT_BYTES = 128 << 20
"""Of a run's output: 60,000 lines, 18 MB as an engine keeps them, for FLASH_ATTN_EXT on twelve CPU backends."""

LOOK_SECONDS = 10.0
"""Between two looks at what a run has printed."""

Prepare = Callable[[Sequence[str]], AbstractContextManager[Server]]
"""Yields the program with these arguments, not started, and removes it afterwards."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to test.

    Attributes:
        names: of the operations; empty for all.
        minutes: after which no operation is begun.
        record: directory of the file with what is done.
    """

    names: tuple[str, ...]
    minutes: float
    record: Path


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The program, ready to run; `identity` changes with anything that changes its results."""

    prepare: Prepare
    identity: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What is tested: the devices, and each operation with its number of cases."""

    subject: Subject
    variant: Variant
    wanted: Wanted
    listing: operations.Listing
    scope: operations.Scope
    cases: Mapping[str, int]


def plan(subject: Subject, variant: Variant, wanted: Wanted) -> Planned:
    """Asks the program what there is to test.

    Raises:
        UsageError: the program is another one, or tests no operation of a name.
        DeviceError: it finds no device.
    """
    listing = operations.parse_listing(_run(subject.prepare, operations.LIST).output)
    return Planned(
        subject=subject,
        variant=variant,
        wanted=wanted,
        listing=listing,
        scope=operations.scope(listing, variant.device.name if variant.device else ""),
        cases=operations.chosen(listing, wanted.names),
    )


def added(report: SmokeReport, planned: Planned, listener: Listener) -> SmokeReport:
    """Returns a smoke report with the operations, tested now, as its last server."""
    tested = check(planned, listener)
    servers = (*report.servers, tested)
    return dataclasses.replace(report, servers=servers, seconds=report.seconds + tested.seconds)


def check(planned: Planned, listener: Listener) -> ServerReport:
    """Tests the operations and returns a check for each of them."""
    started = time.monotonic()
    subject, wanted, scope, cases = planned.subject, planned.wanted, planned.scope, planned.cases
    baseline = operations.parse_baseline(operations.BASELINE.read_text(encoding="utf-8"))
    what = f"operations of {planned.variant.name}"
    path = wanted.record / f"operations-{planned.variant.name}.json"
    identity = f"{subject.identity} {'; '.join(f'{one.shown} {one.description}' for one in scope.devices.values())}"
    done = {} if wanted.names else _done_before(path, identity)
    left = [operation for operation in cases if operation not in done] if scope.devices else []
    log: list[str] = []
    while left and time.monotonic() - started < wanted.minutes * 60:
        operation = left.pop(0)
        listener(Progress(what=what, done=len(cases) - len(left) - 1, total=len(cases), note=operation))
        begun = time.monotonic()
        arguments = operations.arguments(scope, operation)
        ended = _run(subject.prepare, arguments)
        outcome = operations.read(ended, scope, operation, cases[operation])
        verdict = operations.judge(outcome, baseline, seconds=time.monotonic() - begun)
        done[operation] = verdict
        if verdict.status is Status.FAIL:  # all of it would be 25 MB
            log.append(f"$ {operations.PROGRAM} {' '.join(arguments)}\n{ended.output}")
        if not wanted.names:
            files.write_json(path, {"of": identity, "done": [dataclasses.asdict(one) for one in done.values()]})
    if not wanted.names and not left:
        path.unlink(missing_ok=True)
    checks = [done[operation] for operation in cases if operation in done]
    if not scope.devices:
        checks.append(_skipped("this machine runs one CPU backend alone, and there is nothing to compare it with"))
    if left:
        checks.append(
            _skipped(
                f"{len(left)} of {len(cases)} operations, {left[0]} the first, were not tested within "
                f"{wanted.minutes:g} minutes: the same command goes on with them"
            )
        )
    checks += _stale(baseline, planned.listing.cases, scope)
    wrong = sum(one.status is Status.FAIL for one in checks)
    note = f"{wrong} failed" if wrong else f"{len(left)} left" if left else "passed"
    listener(Progress(what=what, note=note, finished=True))
    return ServerReport(
        name=scope.title,
        arguments=subject.command,
        checks=tuple(checks),
        log="\n".join(log),
        seconds=time.monotonic() - started,
    )


def _skipped(seen: str) -> CheckResult:
    return CheckResult(name="operations", status=Status.SKIP, seen=seen, seconds=0)


def _stale(baseline: Sequence[Known], cases: Mapping[str, int], scope: operations.Scope) -> list[CheckResult]:
    """Returns a failed check for each operation of the baseline that llama.cpp does not test any more."""
    gone = {
        entry.operation: f"{entry.operation} is known to fail, and is not tested: remove it from the baseline."
        for entry in baseline
        if entry.operation not in cases and any(operations.is_of(entry, one) for one in scope.devices.values())
    }
    return [CheckResult(name=name, status=Status.FAIL, seen=seen, seconds=0) for name, seen in gone.items()]


def _run(prepare: Prepare, arguments: Sequence[str]) -> Ended:
    """Runs the program to its end, or until it has printed nothing for `SILENCE_SECONDS`."""
    with prepare(arguments) as program:
        program.start()
        size, since = 0, time.monotonic()
        while (code := program.wait(LOOK_SECONDS)) is None:
            if (printed := len(program.logs())) != size:
                size, since = printed, time.monotonic()
            elif time.monotonic() - since > SILENCE_SECONDS:
                program.signal("SIGKILL")
                return Ended(output=program.logs(), exit_code=None)
        return Ended(output=program.logs(), exit_code=code)


def _done_before(path: Path, identity: str) -> dict[str, CheckResult]:
    """Returns the checks of an unfinished run of the same; none if the file is of another, or cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == identity:
            results = [CheckResult(**{**one, "status": Status(one["status"])}) for one in kept["done"]]
            return {one.name: one for one in results}
    return {}


# --- In containers, and beside a program of this host. ---


@contextlib.contextmanager
def in_containers(engine: Engine, image: Image, variant: Variant, device: Granted | None) -> Iterator[Subject]:
    """Yields the program of an image of operations; each run is a hardened container of its own."""
    program = f"/app/bin/{containers.triple(image)}/{variant.name}/{operations.PROGRAM}"
    with engine.volume("smoke") as cache:

        def prepare(arguments: Sequence[str]) -> AbstractContextManager[Server]:
            spec = ContainerSpec(
                image=image.id,
                entrypoint=(program,),
                command=tuple(arguments),
                user=ARBITRARY_USER,
                environment=ENVIRONMENT,
                volumes={cache: containers.CACHE},
                log_bytes=OUTPUT_BYTES,
                resource="smoke",
            )
            return engine.container(devices.grant(spec, device) if device else spec)

        yield Subject(prepare=prepare, identity=image.id, command=f"IMAGE {program}")


@contextlib.contextmanager
def of_host(server: Path, device: Granted | None) -> Iterator[Subject]:
    """Yields the program beside a llama-server of this host.

    Raises:
        UsageError: there is none.
    """
    program = server.resolve().with_name(operations.PROGRAM)
    if not program.is_file() or not os.access(program, os.X_OK):
        raise UsageError(
            f"There is no {program}: copy it there from the same version's image of operations (`docker cp`), or "
            "compile it by dockerfiles/operations/compile."
        )
    with ownership.temporary_directory() as directory:

        @contextlib.contextmanager
        def prepare(arguments: Sequence[str]) -> Iterator[Server]:
            everything = {**os.environ, **ENVIRONMENT, **(device.environment if device else {})}
            process = Process((str(program), *arguments), environment=everything, log=directory / "log")
            try:
                yield process
            finally:
                process.kill()

        seen = program.stat()
        yield Subject(prepare=prepare, identity=f"{program} {seen.st_mtime_ns} {seen.st_size}", command=str(program))


def image_of(engine: Engine, image: Image, variant: Variant, pull: Callable[[str], Image]) -> Image:
    """Returns the image of an image's operations, from the engine, or pulled by the tag of the image's version.

    Raises:
        ImageNotFoundError: there is none, or none whose lower layers are the image's.
    """
    target = Target.OPERATIONS
    version = versions.parse_label(image.labels.get(Label.VERSION, ""))
    repositories = dict.fromkeys(name.partition("@")[0] for name in image.repo_digests if "/" in name)
    published = [f"{name}:{versions.image_tag(variant.name, version, target)}" for name in repositories if version]
    beside = [*map(target.tag, image.tags), *published]
    there = [reference for reference in beside if engine.has_image(reference)]
    for reference in there:
        if _is_on(found := engine.image(reference), image):
            return found
    for reference in published if isinstance(version, Version) else ():
        with contextlib.suppress(BaseImagesError):
            if _is_on(found := pull(reference), image):
                return found
    why = f"{', '.join(there)} is of another build" if there else f"no {' or '.join(beside) or 'tag'}"
    raise ImageNotFoundError(
        f"There is no test of this image's operations ({why}): build it with `invoke "
        f"build-local --variant {variant.name} --operations`, or name an image with --image that has one beside it."
    )


def _is_on(operations_image: Image, image: Image) -> bool:
    return operations_image.diff_ids[: len(image.diff_ids)] == image.diff_ids
