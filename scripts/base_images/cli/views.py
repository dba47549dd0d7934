"""Output for people: errors of one line, tables, JSON, and the progress of long work."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from base_images import variants
from base_images.adapters import buildkit
from base_images.cli import github
from base_images.errors import BaseImagesError
from base_images.progress import Progress
from base_images.recipes import consumer
from base_images.untrusted import printable

if TYPE_CHECKING:  # some of these import docker, which most output does not need
    from base_images.build.many import Work
    from base_images.contract.judge import ContractReport
    from base_images.doctor.doctor import Report as DoctorReport
    from base_images.doctor.doctor import VariantReport
    from base_images.recipes.consumer_checkout import Report as ConsumerReport
    from base_images.recipes.mirror import Report as MirrorReport
    from base_images.recipes.upstream_report import Telling
    from base_images.release.actions import Action
    from base_images.release.latest import Verified
    from base_images.release.tag import Plan as ReleasePlan
    from base_images.smoke.report import SmokeReport

PLAIN_WIDTH = 160
"""Width without a terminal: logs are read in wide windows."""

STEP_NAME_WIDTH = 100
LIVE_NAME_WIDTH = 36
LIVE_NOTE_WIDTH = 20
"""Together with the spinner, the bar and the clock these fill 80 columns."""

PLAIN_PERCENT = 10
"""Without a terminal, a line is printed each time the percentage grew by this much."""


class Mode(Enum):
    """How the progress of long work is shown."""

    LIVE = "live"
    PLAIN = "plain"
    QUIET = "quiet"


_COLOURS = {
    **dict.fromkeys(("pass", "intended", "ready", "built"), "green"),
    **dict.fromkeys(("fail", "failed", "not ported", "not intended", "not ready"), "bold red"),
    **dict.fromkeys(("skip", "exception", "ended"), "yellow"),
}
"""Colours of the words for a check's result."""


def mode(*, quiet: bool) -> Mode:
    """Returns how to show progress: live on a terminal, plain lines elsewhere and in CI."""
    if quiet:
        return Mode.QUIET
    return Mode.LIVE if sys.stdout.isatty() and not os.environ.get("CI") else Mode.PLAIN


def console() -> Console:
    """Returns a console on standard output; without a terminal it is wide enough for sentences in tables."""
    return Console(file=github.log(sys.stdout), highlight=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def styled(text: str, style: str = "") -> Text:
    """Returns text, perhaps from outside, as it is to be shown: nothing in it is markup, an emoji or a control."""
    return Text(printable(text), style)


def failure(error: BaseImagesError) -> str:
    """Returns an error's text for people: its detail, such as a log's tail, then its sentence."""
    detail = f"{error.detail.rstrip()}\n" if error.detail else ""
    return github.without_commands(printable(f"{detail}error: {error}"))


def say(text: str) -> None:
    """Prints one line."""
    console().print(styled(text), soft_wrap=True)


def note(text: str) -> None:
    """Prints one line that says what a user may not expect."""
    console().print(Text.assemble(styled("note:", "bold yellow"), " ", styled(text)), soft_wrap=True)


def complain(text: str) -> None:
    """Prints to standard error, for a failure that does not end the command."""
    sys.stderr.write(github.without_commands(f"{printable(text)}\n"))


def print_json(value: Any, *, one_line: bool = False) -> None:
    """Prints a value as JSON."""
    sys.stdout.write(json.dumps(value, indent=None if one_line else 2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table; on a terminal, cells with a check's result are coloured."""
    table = Table(title=styled(title) if title else None, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(styled(column), overflow="fold")
    for row in rows:
        table.add_row(*(styled(cell, _COLOURS.get(cell, "")) for cell in row))
    console().print(table)


class Display:
    """Shows downloads, pulls and build steps while they run; use it in a `with` block."""

    def __init__(self, how: Mode, group: str = "") -> None:
        """`group`: the title that GitHub's log shows of the lines while they are folded; empty to fold none."""
        self._how = how
        self._group = github.group(group) if group and how is Mode.PLAIN else contextlib.nullcontext()
        self._console = console()
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=how is not Mode.LIVE,
        )
        self._tasks: dict[str, Any] = {}
        self._percent: dict[str, int] = {}
        self._compiled: dict[str, buildkit.Compiled] = {}
        self._names: dict[str, str] = {}
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._group.__enter__()
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()
        self._group.__exit__(kind, error, traceback)

    def notice(self, text: str) -> None:
        """Shows a line in every mode."""
        note(text)

    def progress(self, moment: Progress) -> None:
        """Shows the progress of a download, a pull or the making of a base image."""
        percent = 100 * moment.done // moment.total if moment.done is not None and moment.total else None
        self._step(moment.what, moment.what, percent, moment.note)
        if moment.finished:
            self._end(moment.what, moment.what, moment.note or "done")

    def event(self, event: buildkit.Event) -> None:
        """Shows a step of a build; BuildKit's internal steps are left out."""
        match event:
            case buildkit.StepStarted(step=step, name=name) if not buildkit.is_internal(name):
                self._names[step] = name
                self._step(step, name, None, "")
            case buildkit.StepLog(step=step, line=line) if step in self._names:
                said = buildkit.compile_percentage(line)
                if said is not None:
                    compiled = buildkit.next_percentage(self._compiled.get(step, buildkit.Compiled()), said)
                    self._compiled[step] = compiled
                    self._step(step, self._names[step], compiled.percent, line.partition("]")[2].strip())
            case buildkit.StepFinished(step=step, name=name, cached=cached) if not buildkit.is_internal(name):
                how = "failed" if event.error else "cached" if cached else f"{event.seconds:.1f} s"
                self._end(step, name, how)
            case _:
                pass

    def _step(self, key: str, name: str, percent: int | None, note: str) -> None:
        if self._how is Mode.LIVE:
            if key not in self._tasks:
                self._tasks[key] = self._bars.add_task(short(name, LIVE_NAME_WIDTH), total=None, note="")
            total = None if percent is None else 100
            said = note if percent is None else f"{percent:3d} % {note}"
            self._bars.update(self._tasks[key], note=short(said, LIVE_NOTE_WIDTH), completed=percent, total=total)
        elif self._how is Mode.PLAIN:
            previous = self._percent.setdefault(key, 0)
            # It falls when a step compiles a second project.
            if percent is not None and (percent >= previous + PLAIN_PERCENT or percent < previous):
                self._percent[key] = percent
                self._line(f"{percent:3d} %", name)

    def _end(self, key: str, name: str, how: str) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            self._bars.remove_task(task)
        if self._how is not Mode.QUIET:
            self._line(how, name)

    def _line(self, how: str, name: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(styled(f"{elapsed:7.1f} s  {how:>9}  {short(name, STEP_NAME_WIDTH)}"), soft_wrap=True)


def short(text: str, width: int) -> str:
    """Returns a text on one line of at most `width` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def print_pairs(pairs: Mapping[str, str]) -> None:
    """Prints names and values in two columns."""
    table = Table.grid(padding=(0, 2))
    for name, value in pairs.items():
        table.add_row(styled(name), styled(value))
    console().print(table)


def print_release(planned: ReleasePlan) -> None:
    """Prints what a release does, and the commits since the last one."""
    pairs = {
        "version": str(planned.version),
        "git tag": f"{planned.tag} on {planned.commit}",
        "llama.cpp": f"{planned.pin.names} ({planned.pin.commit[:9]})",
        "images": "\n".join(planned.images),
    }
    if planned.commits is None:
        news = "not known: the commit of the last release is not in this clone"
    else:
        more = planned.commits.count - len(planned.commits.subjects)
        news = "\n".join((*planned.commits.subjects, *([f"… and {more} more"] if more else [])))
    print_pairs({**pairs, f"new since {planned.last}" if planned.last else "new, all": news})


def print_action(action: Action) -> None:
    """Prints one change of a registry, or why it was not made."""
    about = " ".join(filter(None, (action.target, action.digest)))
    say(f"{action.outcome.value:>8}  {action.what} {action.variant}: {about}".rstrip(": "))
    for line in action.reason.splitlines():
        say(f"{'':>8}  {line}")


def print_builds(works: Sequence[Work]) -> None:
    """Prints one line per variant that was to be built."""
    rows = [
        (
            one.variant.name,
            one.state.value,
            f"{one.elapsed:.1f} s" if one.elapsed else "-",
            variants.megabytes(one.size) if one.size else "-",
            one.built[0].plan.tags[-1] if one.built else "-",
        )
        for one in works
    ]
    columns = ["variant", "result", "time", "size", "image"]
    print_table("", columns, rows)
    github.summarise_table("builds", columns, rows)


def print_contract(result: ContractReport) -> None:
    """Prints one line per row of the contract, with its findings."""
    rows = [(str(row.number), row.title, row.status.value, "\n".join((row.seen, *row.findings))) for row in result.rows]
    title, columns = f"contract of {result.reference} ({result.image_id})", ["row", "must hold", "is", "seen"]
    print_table(title, columns, rows)
    github.summarise_table(title, columns, rows)


def print_verified(result: Verified) -> None:
    """Prints one line per check of what is latest."""
    rows = [(check.name, check.status.value, check.seen, f"{check.seconds:.1f} s") for check in result.checks]
    title = f"{result.image} for {result.platform}: {'pass' if result.ok else 'fail'}"
    print_table(title, ["check", "is", "seen", "took"], rows)
    github.summarise_table(title, ["check", "is", "seen", "took"], rows)


def print_smoke(result: SmokeReport) -> None:
    """Prints one line per check, then the details of those that failed; a job's summary has the failed ones alone."""
    from base_images.smoke.report import Device, Status

    rows = [(row.server, row.check, row.status.value, row.seen, f"{row.seconds:.2f} s") for row in result.rows]
    verdict = "pass" if result.ok else "fail"
    title = f"{result.name} ({result.image}): {verdict} in {result.seconds:.1f} s"
    columns = ["server", "check", "is", "seen", "took"]
    print_table(title, columns, rows)
    failed = [shown for row, shown in zip(result.rows, rows, strict=True) if row.status is Status.FAIL]
    github.summarise_table(title, columns, failed)
    for server in result.servers:
        for check in server.checks:
            if check.detail and check.status is Status.FAIL:
                with github.group(f"{server.name}, {check.name}"):
                    say(f"{server.name}, {check.name}:\n{check.detail}")
    if any(speed.device for speed in result.speeds):
        rows = [
            (speed.name, speed.unit, _number(speed.device), _number(speed.cpu), _number(speed.ratio))
            for speed in result.speeds
        ]
        print_table("speed, measured and not judged", ["measured", "in", "device", "cpu/", "device ÷ cpu/"], rows)
    access = variants.find(result.variant).device
    if access and result.given_by:
        say(f"how the servers got the {access.name} device: {result.given_by}")
    if access and result.device is Device.NONE:
        say(f"note: no device was given, so nothing here shows that the {access.name} backend computes right.")
    elif access and result.device is Device.UNKNOWN:
        say(f"note: the server was running already, so nothing here shows that the {access.name} device is used.")


def print_doctor(result: DoctorReport) -> None:
    """Prints the machine and its engine, one line per variant, and then what each variant lacks."""
    print_pairs(_machine(result))
    rows = [_variant(variant) for variant in result.variants]
    print_table("", ["variant", "device (its group)", "driver", "image", "build", "smoke test"], rows)
    for sentence in result.missing:
        say(f"missing: {sentence}")
    for variant in result.variants:
        missing = dict.fromkeys((*variant.no_build, *variant.no_device, *variant.no_smoke))
        for sentence in missing:
            if sentence not in result.missing:
                say(f"{variant.variant}: {sentence}")
        for sentence in variant.notes:
            say(f"{variant.variant}: note: {sentence}")


def _machine(result: DoctorReport) -> dict[str, str]:
    machine, engine = result.machine, result.engine
    size = variants.gigabytes
    pairs = {
        "machine": f"{machine.architecture}, Linux {machine.kernel}, {machine.cores} cores, {size(machine.memory)} of "
        f"memory, {size(machine.memory_available)} of it free",
        "engine": "none answers",
    }
    if engine:
        where = f" at {engine.where}" if engine.where else ""
        free = f"{size(engine.free_disk)} free" if engine.free_disk is not None else "cannot be seen from here"
        pairs |= {
            "engine": f"{engine.name} {engine.version}{where}, API {engine.api_version}, {engine.architecture}",
            "images": f"kept by {engine.storage_driver}; disk: {free}",
            "runtimes": ", ".join(engine.runtimes),
            "devices by CDI": ", ".join(engine.cdi) or "none",
            "BuildKit": "yes" if engine.buildkit else "no",
        }
    reached = (f"{answer.host} {'answers' if answer.reached else f'({answer.seen})'}" for answer in result.registries)
    return {
        **pairs,
        "buildx": result.buildx or "no; only `invoke bake` and commands typed by hand need it",
        "programs": ", ".join(f"{name} {'yes' if path else 'no'}" for name, path in result.programs.items()),
        "registries": ", ".join(reached),
    }


def _variant(variant: VariantReport) -> tuple[str, ...]:
    nodes = (f"{node.path} ({', '.join(filter(None, (node.module, str(node.group))))})" for node in variant.nodes)
    devices = [*nodes, *([f"by {variant.given_by}"] if variant.given_by else [])]
    driver = " ".join(filter(None, (variant.driver.module, variant.driver.version))) if variant.driver else "-"
    toolkit = "".join(f"\n{name} {value}" for name, value in variant.toolkit.items())
    return (
        variant.variant,
        "\n".join(devices) or "-",
        f"{driver}\nat least {variant.driver_needed}" if variant.driver_needed else driver,
        f"{variant.image_version or variant.image}{toolkit}" if variant.image else "-",
        f"ready: {variant.origin}" if variant.builds else "not ready",
        "ready" if variant.smokes else "not ready",
    )


def _number(value: float | None) -> str:
    """Returns three significant digits, or all digits before the decimal point."""
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004


MAX_INFORMATION = 10
"""Lines for information that are shown unless all are asked for."""


def print_telling(telling: Telling, everything: MirrorReport | None = None, *, where: str) -> None:
    """Prints the verdict, what to act on, the rest, and what to do next.

    With `everything` all of the rest and those differences are printed, else the beginning of the rest; `where` names
    the options that show all of it.
    """
    from base_images.recipes.upstream_report import Kind

    say(telling.verdict)
    for item in telling.findings:
        say(f"{item.kind.value}: {item.place}: {item.text}")
    rest = telling.of(Kind.INFORMATION)
    shown = rest if everything else rest[:MAX_INFORMATION]
    for item in shown:
        line = f"{item.kind.value}: {item.place}: {item.text}"
        say(line if everything else short(line, PLAIN_WIDTH))
    if more := len(rest) - len(shown):
        say(f"for information: {more} more: {where}")
    if everything:
        print_differences(everything)
    say(telling.conclusion)


def print_differences(result: MirrorReport) -> None:
    """Prints the differences of each variant by their keys, with the reasons of those that are intended."""
    for comparison in result.comparisons:
        keys: dict[tuple[str, str], list[str]] = {}
        for finding in sorted(comparison.findings, key=lambda finding: finding.reason):
            keys.setdefault((finding.status.value, finding.reason), []).append(finding.difference.key)
        rows = [(status, "\n".join(same), reason) for (status, reason), same in keys.items()]
        print_table(f"{comparison.variant}: {comparison.same} facts the same", ["is", "difference", "because"], rows)


def print_consumer(result: ConsumerReport) -> None:
    """Prints how BodhiApp differs from our data, and which of its arguments an image refuses."""
    if checkout := result.checkout:
        rows = [(", ".join(row.where), row.what, row.before or "none", row.after or "none") for row in result.changes]
        commit = f" {checkout.commit[:9]}" if checkout.commit else ""
        title = f"{consumer.NAME}{commit} against {consumer.FILE}, read at {result.data_commit[:9]}"
        if rows:
            print_table(title, ["where", "what", "our data", "now"], rows)
        elif not result.unreadable:
            say(f"{title}: the same")
        for sentence in result.unreadable:
            say(f"cannot be read: {sentence}")
    if result.image:
        passed = [(row.directory, " ".join(row.arguments)) for row in result.answers]
        print_table(f"what {consumer.NAME} passes to the servers of {result.image}", ["server", "arguments"], passed)
        for what, sentences in (("wrong", result.findings), ("known", result.known)):
            for sentence in sentences:
                say(f"{what}: {sentence}")
        if not result.findings and not result.known:
            say("it takes all of them")
