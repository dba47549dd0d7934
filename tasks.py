"""The front door for people: `invoke --list`. Each task parses, calls one function and prints."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "scripts"))

from base_images import settings, variants  # noqa: E402
from base_images.errors import BaseImagesError, UsageError  # noqa: E402

# docker, git, rich and the network are imported inside the tasks: `invoke --list` and completion must answer at once.

RECORD_DIRECTORY = "build/smoke"

_MACHINE_REFUSES = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""A full disk, or a place that may not be written: a person's to mend, wherever it happens."""

INTERRUPTED = 130
"""The exit code of a process that Ctrl-C ended, as shells have it."""


def command(*arguments: Any, **options: Any) -> Callable[[Callable[..., None]], Any]:
    """Returns a decorator like invoke's `task` under which our errors end in one sentence and their exit code."""

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def run(*values: Any, **named: Any) -> None:
            # CI cancels with SIGTERM: it shall clean up as Ctrl-C does.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            try:
                function(*values, **named)
            except BaseImagesError as error:
                from base_images import report

                raise Exit(report.failure(error), error.exit_code) from error
            except KeyboardInterrupt as error:
                raise Exit(
                    "Interrupted: nothing is left running; the same command starts again.", INTERRUPTED
                ) from error
            except BrokenPipeError as error:
                sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the reader, such as `head`, is gone
                raise Exit(code=0) from error
            except OSError as error:
                if error.errno not in _MACHINE_REFUSES:
                    raise
                where = f"{error.filename}: " if error.filename else ""
                raise Exit(f"error: {where}{error.strerror}: mend that and run the same command again.", 1) from error

        return task(*arguments, **options)(run)

    return decorate


_SOURCE_HELP = {
    "source": "llama.cpp's source tree; default: LLAMA_CPP_DIR, else the pin, fetched into llama.cpp/",
    "origin": "where base images and source come from: auto, registries or packages",
}
_BUILD_HELP = {
    **_SOURCE_HELP,
    "arch": "compile the backend for this device architecture alone, such as 90 or gfx1100; may be given several times",
    "slim": "rocm and intel: put what the server needs of the toolkit on a small base, instead of upstream's base",
}


@command(aliases=["check-base-images-version"], help={"json": "print JSON"})
def check_version(_: Context, json: bool = False) -> None:
    """This commit's version, the newest released one, the commits between, and the llama.cpp pin."""
    from base_images import report, repository

    pin = settings.load(ROOT).pin
    opened = repository.open_repository(ROOT)
    head, releases = repository.head(opened), repository.releases(opened)
    facts = {
        "version": str(head.version),
        "commit": head.commit,
        "branch": head.branch,
        "released": releases.head is not None,
        "newest_release": str(releases.newest) if releases.newest else None,
        "commits_since_release": releases.commits_since,
        "shallow": releases.shallow,
        "llama_cpp": {"tag": pin.tag, "commit": pin.commit},
    }
    if json:
        report.print_json(facts)
        return
    newest = str(releases.newest) if releases.newest else "none"
    if releases.shallow:
        newest += " (this clone is shallow: `git fetch --unshallow --tags` to be sure)"
    since = "unknown" if releases.commits_since is None else str(releases.commits_since)
    report.print_pairs(
        {
            "this commit": str(head.version),
            "released": "yes" if releases.head else "no",
            "newest release": newest,
            "commits since": since if releases.newest else "-",
            "llama.cpp": f"{pin.tag} ({pin.commit[:9]})",
        }
    )


@command(help={"json": "print JSON"})
def show_git_info(_: Context, json: bool = False) -> None:
    """What git says of this checkout, and the version and tags that follow from it."""
    from base_images import report, repository, versions

    head = repository.head(repository.open_repository(ROOT))
    registry = settings.load(ROOT).registry
    image_tags = [f"{registry}:{versions.image_tag(variant.name, head.version)}" for variant in variants.VARIANTS]
    facts = {
        "commit": head.commit,
        "time": head.time.isoformat(),
        "branch": head.branch,
        "clean": not head.changes,
        "version": str(head.version),
        "git_tag": head.version.git_tag,
        "image_tags": image_tags,
    }
    if json:
        report.print_json({**facts, "changes": head.changes})
        return
    changes = ", ".join(head.changes[:5]) + (" …" if len(head.changes) > 5 else "")  # noqa: PLR2004 - as many as fit
    report.print_pairs(
        {
            "commit": head.commit,
            "time": f"{head.time:%Y-%m-%d %H:%M:%S} UTC",
            "branch": head.branch,
            "tree": f"dirty: {changes}" if head.changes else "clean",
            "version": str(head.version),
            "git tag": head.version.git_tag,
            "image tags": "\n".join(image_tags),
        }
    )


@command(help={**_SOURCE_HELP, "quiet": "say nothing but the result"})
def fetch_source(_: Context, source: str = "", origin: str = "auto", quiet: bool = False) -> None:
    """Puts llama.cpp's pinned source into llama.cpp/, or looks at the tree of --source."""
    from base_images import report

    with report.Display(report.mode(quiet=quiet)) as display:
        found = _source(source, _origin(origin), display)
    dirty = ", with changes" if found.dirty else ""
    report.say(f"llama.cpp {found.tag} ({found.commit[:9]}{dirty}) is in {found.path}")


@command(
    iterable=["variant"],
    help={
        "variant": "which recipes; default: every one that there is",
        "source": "a tree of llama.cpp, with --ref, --from and --to a clone of it; default: the pin",
        "ref": "compare with this ref of the clone",
        "from": "the older of two refs of the clone, to see what upstream changed",
        "to": "the newer one",
        "json": "print JSON",
    },
)
def check_upstream(
    _: Context,
    variant: list[str],
    source: str = "",
    ref: str = "",
    from_: str = "",
    to: str = "",
    json: bool = False,
) -> None:
    """Compares our recipes with upstream's: exit code 1 on a difference that is not intended."""
    from base_images import mirror, report

    if bool(from_) != bool(to) or (ref and to):
        raise UsageError("--from and --to name two refs of upstream and go together, without --ref.")
    tree = _path(source) or _pinned_tree()
    if to:
        changed = mirror.compare_refs(mirror.upstream_texts(tree, from_), mirror.upstream_texts(tree, to), variant)
        report.print_json(changed.as_dict()) if json else report.print_refs(changed, from_, to)
        return
    records = mirror.load_records(ROOT / mirror.DIFFERENCES)
    result = mirror.check(mirror.upstream_texts(tree, ref), mirror.our_texts(ROOT), records, variant)
    if json:
        report.print_json(result.as_dict())
    else:
        report.print_mirror(result)
    if not result.ok:
        raise Exit(code=1)


@command(help={"to": "the tag to move to, such as b11400", "source": "a clone that has it; default: fetched"})
def bump_upstream(_: Context, to: str, source: str = "") -> None:
    """Moves the pin to another tag of llama.cpp and shows what upstream changed in its Dockerfiles since."""
    import tempfile

    from base_images import mirror, report, repository

    pin = settings.load(ROOT).pin
    if repository.head(repository.open_repository(ROOT)).changes:
        raise UsageError("The tree has changes: commit or stash them first, a bump is a commit of its own.")
    clone = _path(source)
    commit = mirror.tag_commit(str(clone or pin.repository), to)
    with tempfile.TemporaryDirectory() as directory:
        if not clone:
            clone = Path(directory)
            mirror.fetch_refs(pin.repository, [pin.commit, to], clone)
        changed = mirror.compare_refs(mirror.upstream_texts(clone, pin.commit), mirror.upstream_texts(clone, to))
    for path, text in mirror.bump(mirror.pinned_texts(ROOT), pin, tag=to, commit=commit).items():
        (ROOT / path).write_text(text, encoding="utf-8")
    report.print_refs(changed, pin.tag, to)
    report.say(
        f"The pin is {to} ({commit[:9]}). {pin.sdist} still vendors {pin.tag}: name the sdist that vendors {to}, "
        "with its hash, in pyproject.toml, or only git has the source."
    )


@command(
    iterable=["variant", "arch"],
    help={
        **_BUILD_HELP,
        "variant": "which image; may be given several times; default: all of them, each whether or not another fails",
        "smoke": "check the built image against the contract, then start it and ask it for the known answer",
        "quiet": "say nothing but the result",
    },
)
def build_local(
    _: Context,
    variant: list[str],
    arch: list[str],
    source: str = "",
    origin: str = "auto",
    slim: bool = False,
    smoke: bool = False,
    quiet: bool = False,
) -> None:
    """Builds images on the local engine with this commit's version; exit code 1 names those that failed."""
    from base_images import build, engine, report, smoke_command, toolkit

    where = _origin(origin)
    for one in map(variants.find, variant):
        toolkit.architecture_argument(one, arch)
    connected = engine.connect()
    platform = build.engine_platform(connected)
    how = report.mode(quiet=quiet)
    with report.Display(how) as display:
        found = _source(source, where, display)

    def build_one(one: variants.Variant) -> None:
        with report.Display(how) as display:
            prepared = _prepare(connected, one, found, where, display, arch, slim=slim)
            for notice in prepared.notices:
                display.notice(notice)
            built = build.build(connected, prepared, root=ROOT, on_event=display.event)
        report.say(f"built {built.plan.tags[0]} in {built.seconds:.1f} s, also {', '.join(built.plan.tags[1:])}")
        if smoke:
            _check(connected, built.image_id, one, json=False)
            outputs = smoke_command.Outputs(record=ROOT / RECORD_DIRECTORY)
            image = connected.image(built.image_id)
            _judge(smoke_command.smoke_image(connected, image, one, device=None, outputs=outputs), json=False)

    _each([one for one in _variants(variant) if variant or platform in one.platforms], build_one)


@command(
    iterable=["variant", "arch"],
    help={**_BUILD_HELP, "variant": "which image; default: all of them", "format": "table, json or command"},
)
def plan(
    _: Context,
    variant: list[str],
    arch: list[str],
    source: str = "",
    origin: str = "auto",
    slim: bool = False,
    format: str = "table",  # noqa: A002
) -> None:
    """What would be built; `--format command` is a docker command that builds the same by hand."""
    import dataclasses

    from base_images import engine, plan, report

    if format not in ("table", "json", "command"):
        raise UsageError(f"There is no format {format!r}: choose table, json or command.")
    where = _origin(origin)
    connected = engine.connect()
    with report.Display(report.Mode.QUIET) as display:
        found = _source(source, where, display)
        plans = [_prepare(connected, one, found, where, display, arch, slim=slim).plan for one in _variants(variant)]
    if format == "json":
        report.print_json([dataclasses.asdict(one) for one in plans])
    for one in plans:
        if format == "command":
            report.say(plan.as_command(one))
        elif format == "table":
            rows = [("recipe", one.dockerfile), ("platform", one.platform), *(("tag", tag) for tag in one.tags)]
            rows += [(f"arg {name}", value) for name, value in one.arguments.items()]
            rows += [(f"label {name}", value) for name, value in one.labels.items()]
            report.print_table(f"{one.variant} {one.version}", ["what", "value"], rows)


@command(
    positional=["image"],
    help={"image": "reference or id", "variant": "of an image that does not say it", "json": "print JSON"},
)
def check_image(_: Context, image: str, variant: str = "", json: bool = False) -> None:
    """Checks an image, ours or not, against the contract: one line per row, exit code 1 on a finding."""
    from base_images import engine

    known = variants.find(variant) if variant else None
    _check(engine.connect(), image, known, json=json)


@command(
    iterable=["variant"],
    help={
        "image": "image reference or id; default: the local build",
        "variant": "which variants; default: every one that there is a local build of",
        "device": "on this host's accelerator; fails where it is not used or computes something else",
        "software_device": "on an accelerator that the CPU imitates; vulkan has one",
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
    """Starts llama-server in the built images as BodhiApp and as a person would, and asks for the known answer."""
    if device and software_device:
        raise UsageError("--device and --software-device exclude each other: choose the one that the host has.")
    from base_images import device as devices
    from base_images import engine

    connected = engine.connect()

    def grant(one: variants.Variant) -> devices.Granted | None:
        if device:
            return devices.of_host(one, connected.runtimes())
        return devices.in_software(one) if software_device else None

    named = [variants.find(name) for name in variant]
    for one in named:
        grant(one)  # what the host lacks is said before the slow imports
    from base_images import smoke_command

    if image and not named:
        named = [smoke_command.variant_of(connected.image(image))]

    def test_one(one: variants.Variant) -> None:
        granted = grant(one)
        found = connected.image(image) if image else smoke_command.local_build(connected, one)
        outputs = smoke_command.Outputs(record=_path(record) or ROOT / RECORD_DIRECTORY)
        _judge(smoke_command.smoke_image(connected, found, one, device=granted, outputs=outputs), json=json)

    _each(named or smoke_command.local_variants(connected), test_one)


@command(
    help={
        "variant": "which accelerator",
        "image": "tag, digest or id, pulled if the engine does not have it; default: the local build of this commit",
        "url": "check a llama-server that already runs, such as http://127.0.0.1:8080",
        "binary": "start this llama-server of the host instead: needs no engine",
        "software_device": "on an accelerator that the CPU imitates, instead of the host's; vulkan has one",
        "keep": "leave the containers, and say how to remove them",
        "model": "measure the speed on this GGUF file, and not on a known-answer model",
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
    keep: bool = False,
    model: str = "",
    record: str = "",
    junit: str = "",
    html: str = "",
    json: bool = False,
) -> None:
    """Whether llama-server computes right on this host's accelerator: an image's, a host's own, or one that runs."""
    one = variants.find(variant)
    if sum(map(bool, (image, url, binary))) > 1:
        raise UsageError("--image, --url and --binary exclude each other: choose what is to be tested.")
    if url and software_device:
        raise UsageError("--software-device is for a server that is started here: leave it out with --url.")
    if keep and (url or binary):
        raise UsageError("--keep leaves containers, and there are none with --url or --binary: leave it out.")
    model_file = _path(model)
    if model_file and (url or not model_file.is_file()):
        raise UsageError(
            f"--model {model} cannot be used: name a GGUF file of this host, and leave it out with --url, whose server "
            "has loaded one."
        )
    from base_images import device as devices

    # What the host lacks is said before anything is looked for, and before the slow imports.
    granted = None if url else devices.to_test(one, software=software_device)
    from base_images import report, smoke_command

    outputs = smoke_command.Outputs(
        record=_path(record) or ROOT / RECORD_DIRECTORY, junit=_path(junit), html=_path(html)
    )
    if url:
        _judge(smoke_command.smoke_url(url, one, outputs=outputs), json=json)
        return
    with report.Display(report.mode(quiet=json)) as display:
        if path := _path(binary):
            tested = smoke_command.smoke_program(
                path, one, device=granted, outputs=outputs, listener=display.progress, model_file=model_file
            )
        else:
            tested = _smoke_image(
                one, image, outputs, display, software=software_device, keep=keep, json=json, model_file=model_file
            )
    _judge(tested, json=json)


@command(
    help={
        "type": "how its weights are stored: F32, F16, Q8_0, Q4_0 or Q4_K",
        "output": "the file to write, such as model.gguf",
    },
)
def known_answer_model(_: Context, output: str, type: str = "Q8_0") -> None:  # noqa: A002
    """Writes the model of the smoke test, whose right answer is known, for a server that you start yourself."""
    from base_images import report, smoke_command

    path = _path(output)
    answer = smoke_command.write_model(type, path) if path else None
    if answer is None:
        raise UsageError("--output names no file.")
    report.say(f"{path}: {variants.megabytes(len(answer.gguf))}; to {answer.prompt!r} the answer is {answer.text!r}")
    report.say("check the server that loads it with `invoke smoke --variant NAME --url http://127.0.0.1:8080`")


@command(
    iterable=["variant"],
    help={
        "variant": "whose device has to be ready; may be given several times; default: all, and cpu has to build",
        "image": "an image of that one variant; default: the local build",
        "json": "print JSON",
    },
)
def doctor(_: Context, variant: list[str], image: str = "", json: bool = False) -> None:
    """What this machine, its engine and its devices are ready for, and what they lack; 3 without an engine."""
    from base_images import report

    if image and len(variant) != 1:
        raise UsageError("--image is of one variant: name that with --variant.")
    result = _examine(_variants(variant), by_name=bool(variant), image=image)
    report.print_json(result.as_dict()) if json else report.print_doctor(result)
    if result.exit_code:
        raise Exit(code=result.exit_code)


@command()
def compose(_: Context) -> None:
    """Prints compose.yaml, which is made from the table of variants."""
    from base_images import device, report

    report.say(device.compose(settings.load(ROOT).registry).rstrip())


@command(help={"dry_run": "only say what would go", "bases": "also the base images made from package mirrors"})
def clean_local_images(_: Context, dry_run: bool = False, bases: bool = False) -> None:
    """Removes the images that this project built, all versions, and nothing else."""
    from base_images import clean, engine, report
    from base_images.labels import Label
    from base_images.origin import PACKAGES_REPOSITORY

    connected = engine.connect()
    planned = clean.removals(connected.images(label=Label.VARIANT), settings.load(ROOT).registry)
    if bases:
        planned += clean.bases(connected.images(reference=PACKAGES_REPOSITORY))
    for removal in planned:
        kept = f" (the image stays: it is also {', '.join(removal.kept)})" if removal.kept else ""
        report.say(f"{'would remove' if dry_run else 'remove'} {' '.join(removal.references)}{kept}")
    if dry_run or not planned:
        report.say(f"{len(planned)} images of this project, nothing removed")
        return
    cleaned = clean.apply(connected, planned)
    for reference, why in cleaned.failed:
        report.say(f"kept {reference}: {why}")
    report.say(f"removed {len(cleaned.removed)} references, freed {variants.megabytes(cleaned.freed)}")
    if cleaned.failed:
        raise Exit(code=1)


@command()
def search_model_seeds(_: Context) -> None:
    """Searches the seeds of the known-answer models again; exit code 1 when one is not what model.py has."""
    from base_images import model, report

    found = list(model.search_seeds())
    rows = [(one.tensor_type, str(one.seed), str(one.committed), f"{one.margin:.3f} nats") for one in found]
    report.print_table("seeds of the known-answer models", ["type", "found", "in model.py", "margin"], rows)
    if any(one.seed != one.committed for one in found):
        raise Exit(code=1)


def _pinned_tree() -> Path:
    from base_images import report

    with report.Display(report.Mode.QUIET) as display:
        tree: Path = _source("", _origin("auto"), display).path
    return tree


def _source(source: str, origin: Any, display: Any) -> Any:
    from base_images import source as sources

    found = sources.resolve(
        settings.load(ROOT).pin, path=_path(source), origin=origin, root=ROOT, listener=display.progress
    )
    for notice in found.notices:
        display.notice(notice)
    return found


def _each(chosen: list[variants.Variant], action: Callable[[variants.Variant], None]) -> None:
    """Acts on every variant, whether or not another one fails, and names those that did."""
    from base_images import report

    if len(chosen) == 1:
        action(chosen[0])
        return
    failed = []
    for one in chosen:
        try:
            action(one)
        except (BaseImagesError, Exit) as error:
            failed.append(one.name)
            if isinstance(error, BaseImagesError):
                report.complain(f"{one.name}: {report.failure(error)}")
    if failed:
        done = ", ".join(one.name for one in chosen if one.name not in failed) or "none"
        raise Exit(f"error: failed: {', '.join(failed)} (see above); done: {done}.", 1)


def _variants(names: list[str]) -> list[variants.Variant]:
    if names:
        return [variants.find(name) for name in names]
    return [variant for variant in variants.VARIANTS if (ROOT / variant.dockerfile).exists()]


def _prepare(
    connected: Any,
    variant: variants.Variant,
    found: Any,
    origin: Any,
    display: Any,
    arch: list[str],
    *,
    slim: bool,
) -> Any:
    from base_images import build

    return build.prepare(
        connected,
        variant,
        settings=settings.load(ROOT),
        root=ROOT,
        source=found,
        wanted=origin,
        listener=display.progress,
        architectures=arch,
        slim=slim,
    )


def _path(text: str) -> Path | None:
    # bootstrap.sh changes into the checkout; what a person typed is relative to where they were.
    return Path(os.environ.get("BASE_IMAGES_CALLER_DIRECTORY", ""), text).absolute() if text else None


def _origin(name: str) -> Any:
    from base_images.origin import Origin

    try:
        return Origin(name)
    except ValueError as error:
        raise UsageError(f"There is no origin {name!r}: choose one of {', '.join(Origin)}.") from error


def _check(connected: Any, reference: str, variant: variants.Variant | None, *, json: bool) -> None:
    from base_images import contract, report

    result = contract.check(connected, reference, variant)
    if json:
        report.print_json(result.as_dict())
    else:
        report.print_contract(result)
    if not result.ok:
        raise Exit(code=1)


def _smoke_image(
    variant: variants.Variant,
    image: str,
    outputs: Any,
    display: Any,
    *,
    software: bool,
    keep: bool,
    json: bool,
    model_file: Path | None,
) -> Any:
    from base_images import device as devices
    from base_images import engine, launch, report, smoke_command

    connected = engine.connect()
    granted = devices.to_test(variant, software=software, runtimes=connected.runtimes())
    found = smoke_command.image_under_test(
        connected,
        variant,
        image,
        checkout=ROOT,
        listener=display.progress,
        notice=report.complain if json else display.notice,
    )
    if not json:
        report.print_doctor(_examine([variant], by_name=True, image=found.id))
    kept = launch.Kept() if keep else None
    try:
        return smoke_command.smoke_image(
            connected,
            found,
            variant,
            device=granted,
            outputs=outputs,
            listener=display.progress,
            kept=kept,
            model_file=model_file,
        )
    finally:
        if kept and kept.removal:
            report.complain(f"kept: {', '.join(kept.containers)}; `{kept.removal}` removes them")


def _examine(chosen: list[variants.Variant], *, by_name: bool, image: str) -> Any:
    from base_images import doctor

    registry = settings.load(ROOT).registry
    return doctor.examine(chosen, checkout=ROOT, registry=registry, by_name=by_name, image=image)


def _judge(tested: Any, *, json: bool) -> None:
    """Prints what a smoke test saw, and ends with 1 where something is wrong."""
    from base_images import report

    if json:
        report.print_json(tested.report.as_dict())
    else:
        report.print_smoke(tested.report)
    if not tested.report.ok:
        raise Exit(code=1)
