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
from base_images.errors import BaseImagesError, RegistryError, UsageError  # noqa: E402

# docker, git, rich and the network are imported inside the tasks: `invoke --list` and completion must answer at once.

RECORD_DIRECTORY = "build/smoke"
RELEASE_DIRECTORY = "build/release"

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
                from base_images.cli import views

                raise Exit(views.failure(error), error.exit_code) from error
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
    """This commit's version, the newest released one, the llama.cpp pin, and what the registry has of each variant."""
    from datetime import UTC, datetime

    from base_images.adapters import registry, repository
    from base_images.cli import views
    from base_images.release import status as published

    chosen = settings.load(ROOT)
    opened = repository.open_repository(ROOT)
    head, releases = repository.head(opened), repository.releases(opened)
    found: list[published.Published] = []
    unreachable = ""
    try:
        found = published.look(
            registry.open_repository(chosen.registry, patient=False), variants.VARIANTS, releases.newest
        )
    except RegistryError as error:
        unreachable = str(error)
    if json:
        facts = {
            "version": str(head.version),
            "commit": head.commit,
            "branch": head.branch,
            "released": releases.head is not None,
            "newest_release": str(releases.newest) if releases.newest else None,
            "commits_since_release": releases.commits_since,
            "shallow": releases.shallow,
            "llama_cpp": {"tag": chosen.pin.tag, "commit": chosen.pin.commit},
            "registry": {"name": chosen.registry, "error": unreachable, "variants": [one.as_dict() for one in found]},
        }
        views.print_json(facts)
        return
    newest = str(releases.newest) if releases.newest else "none"
    if releases.shallow:
        newest += " (this clone is shallow: `git fetch --unshallow --tags` to be sure)"
    since = "unknown" if releases.commits_since is None else str(releases.commits_since)
    views.print_pairs(
        {
            "this commit": str(head.version),
            "released": "yes" if releases.head else "no",
            "newest release": newest,
            "commits since": since if releases.newest else "-",
            "llama.cpp": f"{chosen.pin.tag} ({chosen.pin.commit[:9]})",
        }
    )
    if unreachable:
        views.say(f"note: what is published cannot be seen: {unreachable}")
    else:
        columns = ["variant", "tag", "version", "llama.cpp", "age", "digest", "note"]
        views.print_table(chosen.registry, columns, published.rows(found, datetime.now(UTC)))


@command(help={"json": "print JSON"})
def show_git_info(_: Context, json: bool = False) -> None:
    """What git says of this checkout, and the version and tags that follow from it."""
    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views

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
        views.print_json({**facts, "changes": head.changes})
        return
    changes = ", ".join(head.changes[:5]) + (" …" if len(head.changes) > 5 else "")  # noqa: PLR2004 - as many as fit
    views.print_pairs(
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


@command(help={"yes": "do not ask", "dry_run": "stop after the plan; BASE_IMAGES_DRY_RUN=true says the same"})
def release_base_images(_: Context, yes: bool = False, dry_run: bool = False) -> None:
    """Checks whether this commit may be released, shows what that makes, and pushes its tag: CI does the rest."""
    from datetime import UTC, datetime

    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.release import tag as release

    chosen = settings.load(ROOT)
    remote = repository.Remote(clone=repository.open_repository(ROOT))
    state = release.examine(remote, chosen.release_branch, now=datetime.now(UTC), mirror_problem=_mirror_problem)
    if state.released:
        views.say(f"already released: {state.version.git_tag} is at {remote.name}, on {state.commit}")
        return
    rows = [(check.name, check.status.value, check.seen) for check in state.checks]
    views.print_table(f"may {state.version} be released?", ["precondition", "is", "seen"], rows)
    if not state.ok:
        raise Exit("error: nothing was released: mend what failed above and run the same command again.", 1)
    planned = release.plan(remote, state, chosen)
    views.print_release(planned)
    if dry_run or settings.dry_run():
        views.say("dry run: nothing was changed")
        return
    if not yes:
        _agree("Release it?")
    release.publish(remote, planned)
    views.say(f"released: {planned.tag} is at {remote.name}, on {planned.commit}")


@command(help={**_SOURCE_HELP, "quiet": "say nothing but the result"})
def fetch_source(_: Context, source: str = "", origin: str = "auto", quiet: bool = False) -> None:
    """Puts llama.cpp's pinned source into llama.cpp/, or looks at the tree of --source."""
    from base_images.cli import views

    with views.Display(views.mode(quiet=quiet)) as display:
        found = _source(source, _origin(origin), display)
    dirty = ", with changes" if found.dirty else ""
    views.say(f"llama.cpp {found.tag} ({found.commit[:9]}{dirty}) is in {found.path}")


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
    from base_images.cli import views
    from base_images.recipes import consumer, mirror

    if bool(from_) != bool(to) or (ref and to):
        raise UsageError("--from and --to name two refs of upstream and go together, without --ref.")
    tree = _path(source) or _pinned_tree()
    if to:
        changed = mirror.compare_refs(
            mirror.upstream_texts(tree, from_),
            mirror.upstream_texts(tree, to),
            variant,
            sources=(mirror.argument_source(tree, from_), mirror.argument_source(tree, to)),
            used=consumer.load(ROOT).options,
        )
        views.print_json(changed.as_dict()) if json else views.print_refs(changed, from_, to)
        return
    records = mirror.load_records(ROOT / mirror.DIFFERENCES)
    result = mirror.check(mirror.upstream_texts(tree, ref), mirror.our_texts(ROOT), records, variant)
    if json:
        views.print_json(result.as_dict())
    else:
        views.print_mirror(result)
    if not result.ok:
        raise Exit(code=1)


@command(
    help={
        "to": "the tag to move to, such as b11400, or newest",
        "source": "a clone that has it; default: fetched",
        "report": "write what upstream changed, and what our recipes lack of it, to this file as Markdown",
    }
)
def bump_upstream(_: Context, to: str, source: str = "", report: str = "") -> None:
    """Moves the pin to another tag of llama.cpp and shows what upstream changed in its Dockerfiles and arguments."""
    import tempfile

    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.recipes import consumer, mirror
    from base_images.smoke import report as smoke_report

    pin = settings.load(ROOT).pin
    if repository.head(repository.open_repository(ROOT)).changes:
        raise UsageError("The tree has changes: commit or stash them first, a bump is a commit of its own.")
    clone, written = _path(source), _path(report)
    if to == "newest":
        to = mirror.newest_tag(str(clone or pin.repository))
        if int(to[1:]) <= int(pin.tag[1:]):
            said = f"The pin is {pin.tag} and the newest tag of llama.cpp is {to}: nothing to move."
            if written:
                smoke_report.write_file(written, f"{said}\n")
            views.say(said)
            return
    commit = mirror.tag_commit(str(clone or pin.repository), to)
    with tempfile.TemporaryDirectory() as directory:
        if not clone:
            clone = Path(directory)
            mirror.fetch_refs(pin.repository, [pin.commit, to], clone)
        newer = mirror.upstream_texts(clone, to)
        changed = mirror.compare_refs(
            mirror.upstream_texts(clone, pin.commit),
            newer,
            sources=(mirror.argument_source(clone, pin.commit, pin.tag), mirror.argument_source(clone, to)),
            used=consumer.load(ROOT).options,
        )
    lacking = mirror.check(newer, mirror.our_texts(ROOT), mirror.load_records(ROOT / mirror.DIFFERENCES))
    said = (
        f"The pin is {to} ({commit[:9]}). {pin.sdist} still vendors {pin.tag}: name the sdist that vendors {to}, "
        "with its hash, in pyproject.toml, or only git has the source."
    )
    if written:
        smoke_report.write_file(written, f"{said}\n\n{mirror.markdown(changed, lacking, before=pin.tag, after=to)}")
    for path, text in mirror.bump(mirror.pinned_texts(ROOT), pin, tag=to, commit=commit).items():
        (ROOT / path).write_text(text, encoding="utf-8")
    views.print_refs(changed, pin.tag, to)
    views.say(said)


@command(
    help={
        "source": "a checkout of BodhiApp; default: its newest commit, fetched, unless --image is given",
        "image": "ask this image, pulled if the engine does not have it, which of BodhiApp's arguments it refuses",
        "report": "add what was seen to this file, as Markdown",
        "json": "print JSON",
    }
)
def check_consumer(_: Context, source: str = "", image: str = "", report: str = "", json: bool = False) -> None:
    """What BodhiApp does by now that our data of it does not say, and what an image refuses: exit code 1 on either."""
    from base_images.cli import consumer_command, views

    with views.Display(views.mode(quiet=json)) as display:
        seen = consumer_command.check(ROOT, source=_path(source), image=image, listener=display.progress)
    views.print_json(seen.as_dict()) if json else views.print_consumer(seen)
    if written := _path(report):
        consumer_command.add_to(written, seen)
    if not seen.ok:
        raise Exit(code=1)


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
    from base_images.adapters import engine
    from base_images.build import architectures, local
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    where = _origin(origin)
    for one in map(variants.find, variant):
        architectures.architecture_argument(one, arch)
    connected = engine.connect()
    platform = connected.platform()
    how = views.mode(quiet=quiet)
    with views.Display(how) as display:
        found = _source(source, where, display)

    def build_one(one: variants.Variant) -> None:
        with views.Display(how) as display:
            prepared = _prepare(connected, one, found, where, display, arch, slim=slim)
            for notice in prepared.notices:
                display.notice(notice)
            built = local.build(connected, prepared, root=ROOT, on_event=display.event)
        views.say(f"built {built.plan.tags[0]} in {built.seconds:.1f} s, also {', '.join(built.plan.tags[1:])}")
        if smoke:
            _check(connected, built.image_id, one, json=False)
            outputs = smoke_command.Outputs(record=ROOT / RECORD_DIRECTORY)
            image = connected.image(built.image_id)
            _judge(smoke_command.smoke_image(connected, image, one, device=None, outputs=outputs), json=False)

    _each([one for one in _variants(variant) if variant or platform in one.platforms], build_one)


@command(
    iterable=["variant", "platform", "arch"],
    help={
        **_BUILD_HELP,
        "variant": "which image; default: all of them",
        "platform": "amd64 or arm64; default: all that a variant is published for",
        "push": "bake: the file of `invoke bake --push`, which publishes what it builds",
        "format": "table, json, command (of docker, by hand), bake (the file of `invoke bake`) or matrix (CI's jobs)",
    },
)
def plan(
    _: Context,
    variant: list[str],
    platform: list[str],
    arch: list[str],
    source: str = "",
    origin: str = "auto",
    slim: bool = False,
    push: bool = False,
    format: str = "table",  # noqa: A002
) -> None:
    """What would be built. Fetches nothing, unless it is for `command` or the bases come from packages."""
    import dataclasses

    from base_images.build import bakefile, plan
    from base_images.cli import views

    if format not in ("table", "json", "command", "bake", "matrix"):
        raise UsageError(f"There is no format {format!r}: choose table, json, command, bake or matrix.")
    wanted = _wanted(variant, platform)
    if format == "matrix":
        views.print_json(_matrix(wanted), one_line=True)
        return
    if format == "command":
        plans = _prepared_plans(wanted, arch, source, origin, slim=slim)
    else:
        plans = _plans(wanted, arch, source, origin, slim=slim, packages=format != "bake")
    if format == "bake":
        views.print_json(bakefile.bake_file(plans, settings.load(ROOT).registry, push=push))
    elif format == "json":
        views.print_json([dataclasses.asdict(one) for one in plans])
    for one in plans:
        if format == "command":
            views.say(plan.as_command(one))
        elif format == "table":
            rows = [("recipe", one.dockerfile), ("platform", one.platform), *(("tag", tag) for tag in one.tags)]
            rows += [(f"arg {name}", value) for name, value in one.arguments.items()]
            rows += [(f"label {name}", value) for name, value in one.labels.items()]
            views.print_table(f"{one.variant} {one.version} for {one.platform}", ["what", "value"], rows)


@command(
    iterable=["variant", "platform"],
    help={
        "variant": "which image; may be given several times; default: all of them, each whether or not another fails",
        "platform": "amd64 or arm64; default: the engine's, or with --push all that a variant is published for",
        "builder": "buildx's name of the builder; default: the current one",
        "push": "publish what is built, by digest, with provenance and SBOM, and cache the steps in the registry",
        "dry_run": "build all and keep nothing of it; BASE_IMAGES_DRY_RUN=true says the same",
        "quiet": "say nothing but the result",
    },
)
def bake(
    _: Context,
    variant: list[str],
    platform: list[str],
    builder: str = "",
    push: bool = False,
    dry_run: bool = False,
    quiet: bool = False,
) -> None:
    """Builds by `docker buildx bake`, on any of buildx's builders: remote ones, Kubernetes, several platforms."""
    from base_images.adapters import engine, repository
    from base_images.build import bakefile
    from base_images.build.inputs import Origin
    from base_images.cli import views
    from base_images.release import actions, bake

    chosen = settings.load(ROOT)
    version = repository.head(repository.open_repository(ROOT)).version
    if push and version.dirty:
        raise UsageError("The tree has changes, and only a commit is published: commit them, or leave --push out.")
    bakefile.require_builder(builder, push=push)
    if not push and not platform:
        platform = [engine.connect().platform().architecture]
    wanted = _wanted(variant, platform)
    if not push and len({each for _, platforms in wanted for each in platforms}) > 1:
        raise UsageError("A tag of the local engine is for one platform: choose one with --platform, or --push.")
    published = _registry() if push else None

    def bake_one(one: variants.Variant) -> None:
        done: list[actions.Action] = []
        try:
            with views.Display(views.mode(quiet=quiet)) as display:
                done += bake.bake(
                    one,
                    next(platforms for other, platforms in wanted if other is one),
                    settings=chosen,
                    root=ROOT,
                    version=version,
                    repository=published,
                    source=lambda: _source("", Origin.AUTO, display),
                    builder=builder,
                    dry_run=dry_run or settings.dry_run(),
                    on_event=display.event,
                )
        finally:
            for action in done:
                views.print_action(action)
            if done:
                actions.write("bake", done, ROOT / RELEASE_DIRECTORY)

    _each([one for one, _ in wanted], bake_one)


@command()
def free_runner_disk(_: Context) -> None:
    """Removes the toolchains that fill the disk of GitHub's own runners; on any other machine it does nothing."""
    from base_images.cli import views
    from base_images.release import runner_disk

    if not runner_disk.is_hosted(os.environ):
        views.say("This is none of GitHub's own runners (RUNNER_ENVIRONMENT is not github-hosted): nothing removed.")
        return
    freed = runner_disk.free(Path("/"))
    for path in freed.removed:
        views.say(f"removed {path}")
    views.say(f"{variants.gigabytes(freed.free)} are free")


@command(
    positional=["image"],
    help={
        "image": "reference or id, pulled if the engine does not have it",
        "variant": "of an image that does not say it",
        "record": "directory for the report; of an image in the registry also for `attach-reports`",
        "json": "print JSON",
    },
)
def check_image(_: Context, image: str, variant: str = "", record: str = "", json: bool = False) -> None:
    """Checks an image, ours or not, against the contract: one line per row, exit code 1 on a finding."""
    from base_images.adapters import engine
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    known = variants.find(variant) if variant else None
    connected = engine.connect()
    with views.Display(views.mode(quiet=json)) as display:
        smoke_command.pulled(connected, image, listener=display.progress)
    _check(connected, image, known, json=json, record=_path(record))


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
    from base_images.adapters import engine
    from base_images.smoke import device as devices

    connected = engine.connect()

    def grant(one: variants.Variant) -> devices.Granted | None:
        if device:
            return devices.of_host(one, connected.runtimes())
        return devices.in_software(one) if software_device else None

    named = [variants.find(name) for name in variant]
    for one in named:
        grant(one)  # what the host lacks is said before the slow imports
    from base_images.smoke import command as smoke_command

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
        "software_device": "the same as --on software",
        "on": "host: its accelerator; software: one that the CPU imitates, vulkan has one; nothing: the CPU alone",
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
    on: str = "",
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
    if on and software_device:
        raise UsageError("--software-device is short for --on software: leave one of them out.")
    if url and (on or software_device):
        raise UsageError("--on, or --software-device, is for a server that is started here: leave it out with --url.")
    if keep and (url or binary):
        raise UsageError("--keep leaves containers, and there are none with --url or --binary: leave it out.")
    model_file = _path(model)
    if model_file and (url or not model_file.is_file()):
        raise UsageError(
            f"--model {model} cannot be used: name a GGUF file of this host, and leave it out with --url, whose server "
            "has loaded one."
        )
    from base_images.smoke import device as devices

    # What the host lacks is said before anything is looked for, and before the slow imports.
    where = devices.where(on or ("software" if software_device else "host"))
    granted = None if url else devices.to_test(one, where)
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    outputs = smoke_command.Outputs(
        record=_path(record) or ROOT / RECORD_DIRECTORY, junit=_path(junit), html=_path(html)
    )
    if url:
        _judge(smoke_command.smoke_url(url, one, outputs=outputs), json=json)
        return
    with views.Display(views.mode(quiet=json)) as display:
        if path := _path(binary):
            tested = smoke_command.smoke_program(
                path, one, device=granted, outputs=outputs, listener=display.progress, model_file=model_file
            )
        else:
            tested = _smoke_image(
                one, image, outputs, display, where=where, keep=keep, json=json, model_file=model_file
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
    from base_images.cli import views
    from base_images.smoke import command as smoke_command

    path = _path(output)
    answer = smoke_command.write_model(type, path) if path else None
    if answer is None:
        raise UsageError("--output names no file.")
    views.say(f"{path}: {variants.megabytes(len(answer.gguf))}; to {answer.prompt!r} the answer is {answer.text!r}")
    views.say("check the server that loads it with `invoke smoke --variant NAME --url http://127.0.0.1:8080`")


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
    from base_images.cli import views

    if image and len(variant) != 1:
        raise UsageError("--image is of one variant: name that with --variant.")
    result = _examine(_variants(variant), by_name=bool(variant), image=image)
    views.print_json(result.as_dict()) if json else views.print_doctor(result)
    if result.exit_code:
        raise Exit(code=result.exit_code)


@command()
def compose(_: Context) -> None:
    """Prints compose.yaml, which is made from the table of variants."""
    from base_images.cli import views
    from base_images.smoke import device

    views.say(device.compose(settings.load(ROOT).registry).rstrip())


@command(
    iterable=["variant"],
    help={
        "variant": "which image; may be given several times; default: all of them, each whether or not another fails",
        "dry_run": "change nothing; BASE_IMAGES_DRY_RUN=true says the same",
    },
)
def publish(_: Context, variant: list[str], dry_run: bool = False) -> None:
    """Pushes the local build of this released commit, and makes one image of all platforms once they are there."""
    from base_images.adapters import engine, repository
    from base_images.release import publish

    opened = repository.open_repository(ROOT)
    head, releases = repository.head(opened), repository.releases(opened)
    dry_run = dry_run or settings.dry_run()
    if not dry_run and releases.head != head.version:
        raise UsageError(
            f"{head.version} is not released, so it cannot be published: run `invoke release-base-images` in a clean "
            "tree, or `git fetch --tags` if somebody else did, or look with --dry-run."
        )
    where = _registry()
    _act(
        "publish",
        _variants(variant),
        lambda one: publish.publish(
            where, one, version=head.version, commit=head.commit, connect=engine.connect, dry_run=dry_run
        ),
    )


@command(
    positional=["directory"],
    help={
        "directory": "where `check-image` and `smoke` wrote their evidence (--record), at any depth",
        "dry_run": "change nothing; BASE_IMAGES_DRY_RUN=true says the same",
    },
)
def attach_reports(_: Context, directory: str, dry_run: bool = False) -> None:
    """Attaches reports to the images that they are of, in the registry: what `promote` asks for."""
    from base_images.release import evidence

    found = list(evidence.read_files(_path(directory) or ROOT))
    where = _registry()
    dry_run = dry_run or settings.dry_run()
    chosen = [variants.find(name) for name in dict.fromkeys(report.variant for report in found)]
    _act(
        "attach-reports",
        chosen,
        lambda one: (
            evidence.attach_file(where, report, dry_run=dry_run) for report in found if report.variant == one.name
        ),
    )


@command(
    iterable=["variant"],
    help={
        "version": "which version; default: this commit's",
        "variant": "which image; may be given several times; default: all, each whether or not another is refused",
        "dry_run": "only say whether it would be done; BASE_IMAGES_DRY_RUN=true says the same",
    },
)
def promote(_: Context, variant: list[str], version: str = "", dry_run: bool = False) -> None:
    """Points latest-<variant> at a version that was checked and smoke-tested; refuses any other, and says why."""
    from base_images import versions
    from base_images.adapters import repository
    from base_images.release import promote

    opened = repository.open_repository(ROOT)
    wanted = versions.parse(version) if version else repository.head(opened).version
    commit = repository.released_commit(opened, wanted)
    where = _registry()
    dry_run = dry_run or settings.dry_run()
    _act("promote", _variants(variant), lambda one: promote.promote(where, one, wanted, commit, dry_run=dry_run))


@command(
    help={
        "variant": "which image",
        "to": "what to go back to: a version that was latest before, or the digest of an image that says none",
        "dry_run": "only say whether it would be done; BASE_IMAGES_DRY_RUN=true says the same",
    },
)
def rollback(_: Context, variant: str, to: str, dry_run: bool = False) -> None:
    """Points latest-<variant> back at a version that was latest before."""
    from base_images import versions
    from base_images.release import promote

    one, wanted, where = variants.find(variant), versions.parse_any(to), _registry()
    dry_run = dry_run or settings.dry_run()
    _act("rollback", [one], lambda one: promote.roll_back(where, one, wanted, dry_run=dry_run))


@command(help={"variant": "which image", "version": "which version; default: this commit's"})
def image_digest(_: Context, variant: str, version: str = "") -> None:
    """Prints the digest of a published version, to pin a FROM with or to sign."""
    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views

    one = variants.find(variant)
    wanted = versions.parse(version) if version else repository.head(repository.open_repository(ROOT)).version
    where, tag = _registry(), versions.image_tag(one.name, wanted)
    digest = where.digest(tag)
    if digest is None:
        raise RegistryError(f"{where.name} has no {tag}: publish it first.")
    views.say(digest)


@command(
    help={
        "version": "which release; default: this commit's",
        "output": "write release.json, notes.md and the attached reports into this directory: the release's files",
        "dry_run": "write no file, only print",
        "json": "print release.json",
    }
)
def release_notes(_: Context, version: str = "", output: str = "", dry_run: bool = False, json: bool = False) -> None:
    """What a release is and what became of each variant, for people or as JSON: from git and the registry, any time."""
    from datetime import UTC, datetime

    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.release import notes as release_notes
    from base_images.release import record as release_record
    from base_images.smoke import report as smoke_report

    opened = repository.open_repository(ROOT)
    wanted = versions.parse(version) if version else repository.head(opened).version
    release = release_record.released(opened, wanted)
    chosen = settings.load(ROOT)
    seen = release_record.look(_registry(), variants.VARIANTS, wanted)
    told = release_record.record(release, seen, chosen, now=datetime.now(UTC))
    notes = release_notes.as_markdown(told, chosen)
    directory = None if dry_run else _path(output)
    if directory:
        written = release_record.write(told, seen, directory)
        smoke_report.write_file(directory / release_notes.FILE, notes)
        views.say(f"{directory}: {len(written) + 1} files, for {told.git_tag}")
    if json:
        views.print_json(told.as_dict())
    elif not directory:
        views.say(notes.rstrip())


@command(help={"dry_run": "only say what would go", "bases": "also the base images made from package mirrors"})
def clean_local_images(_: Context, dry_run: bool = False, bases: bool = False) -> None:
    """Removes the images that this project built, all versions, and nothing else."""
    from base_images.adapters import engine
    from base_images.build import clean
    from base_images.build.bases import PACKAGES_REPOSITORY
    from base_images.cli import views
    from base_images.labels import Label

    connected = engine.connect()
    planned = clean.removals(connected.images(label=Label.VARIANT), settings.load(ROOT).registry)
    if bases:
        planned += clean.bases(connected.images(reference=PACKAGES_REPOSITORY))
    for removal in planned:
        kept = f" (the image stays: it is also {', '.join(removal.kept)})" if removal.kept else ""
        views.say(f"{'would remove' if dry_run else 'remove'} {' '.join(removal.references)}{kept}")
    if dry_run or not planned:
        views.say(f"{len(planned)} images of this project, nothing removed")
        return
    cleaned = clean.apply(connected, planned)
    for reference, why in cleaned.failed:
        views.say(f"kept {reference}: {why}")
    views.say(f"removed {len(cleaned.removed)} references, freed {variants.megabytes(cleaned.freed)}")
    if cleaned.failed:
        raise Exit(code=1)


@command()
def search_model_seeds(_: Context) -> None:
    """Searches the seeds of the known-answer models again; exit code 1 when one is not what model.py has."""
    from base_images.cli import views
    from base_images.smoke import model

    found = list(model.search_seeds())
    rows = [(one.tensor_type, str(one.seed), str(one.committed), f"{one.margin:.3f} nats") for one in found]
    views.print_table("seeds of the known-answer models", ["type", "found", "in model.py", "margin"], rows)
    if any(one.seed != one.committed for one in found):
        raise Exit(code=1)


def _registry() -> Any:
    from base_images.adapters import registry

    return registry.open_repository(settings.load(ROOT).registry)


def _act(name: str, chosen: list[variants.Variant], action: Callable[[variants.Variant], Any]) -> None:
    """Acts on the registry for every variant, prints what was done and keeps it in a file; ends with 1 on a refusal."""
    from base_images.cli import views
    from base_images.release import actions

    done = []
    try:
        for one in actions.of_each(chosen, name, action):
            done.append(one)
            views.print_action(one)
    finally:
        actions.write(name, done, ROOT / RELEASE_DIRECTORY)
    if not all(one.ok for one in done):
        failed = ", ".join(dict.fromkeys(one.variant for one in done if not one.ok))
        raise Exit(f"error: {name}: not done for {failed}: see above.", 1)


def _agree(question: str) -> None:
    """Returns when a person says yes, and ends the command when they do not or there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on, so nothing was done: run it with --yes, or with --dry-run.")
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in {"y", "yes"}:
        raise Exit("Nothing was done.", 1)


def _mirror_problem() -> str:
    """Returns why the recipes do not mirror the pin and what to do; empty where they do."""
    from base_images.cli import views
    from base_images.recipes import mirror

    pin = settings.load(ROOT).pin
    with views.Display(views.mode(quiet=False)) as display:
        found = _source("", _origin("auto"), display)
    if found.dirty or found.commit != pin.commit:
        return f"{found.path} is not llama.cpp {pin.tag} as it is pinned: move it away, or unset LLAMA_CPP_DIR"
    records = mirror.load_records(ROOT / mirror.DIFFERENCES)
    result = mirror.check(mirror.upstream_texts(found.path), mirror.our_texts(ROOT), records)
    return "" if result.ok else "a difference is not intended: `invoke check-upstream` shows it"


def _pinned_tree() -> Path:
    from base_images.cli import views

    with views.Display(views.Mode.QUIET) as display:
        tree: Path = _source("", _origin("auto"), display).path
    return tree


def _source(source: str, origin: Any, display: Any) -> Any:
    from base_images.build import source as sources

    found = sources.resolve(
        settings.load(ROOT).pin, path=_path(source), origin=origin, root=ROOT, listener=display.progress
    )
    for notice in found.notices:
        display.notice(notice)
    return found


def _each(chosen: list[variants.Variant], action: Callable[[variants.Variant], None]) -> None:
    """Acts on every variant, whether or not another one fails, and names those that did."""
    from base_images.cli import views

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
                views.complain(f"{one.name}: {views.failure(error)}")
    if failed:
        done = ", ".join(one.name for one in chosen if one.name not in failed) or "none"
        raise Exit(f"error: failed: {', '.join(failed)} (see above); done: {done}.", 1)


def _variants(names: list[str]) -> list[variants.Variant]:
    if names:
        return [variants.find(name) for name in names]
    return [variant for variant in variants.VARIANTS if (ROOT / variant.dockerfile).exists()]


_Wanted = list[tuple[variants.Variant, list[variants.Platform]]]


def _wanted(variant: list[str], platform: list[str]) -> _Wanted:
    """Returns the variants with their platforms; of variants that nobody named, those that are for one of them."""
    from base_images.build import plan

    chosen = [_platform(name) for name in platform]
    for one in map(variants.find, variant):
        for each in chosen:
            plan.require_platform(one, each)
    wanted = [(one, [each for each in one.platforms if each in chosen or not chosen]) for one in _variants(variant)]
    return [(one, platforms) for one, platforms in wanted if platforms]


def _platform(name: str) -> variants.Platform:
    for platform in variants.Platform:
        if name in (platform.docker, platform.architecture):
            return platform
    raise UsageError(f"There is no platform {name!r}: choose amd64 or arm64.")


def _matrix(wanted: _Wanted) -> dict[str, Any]:
    from base_images.adapters import repository
    from base_images.release import matrix

    version = repository.head(repository.open_repository(ROOT)).version
    runners = os.environ.get(matrix.RUNNERS_VARIABLE, "")
    return matrix.matrix(wanted, version, registry=settings.load(ROOT).registry, runners=runners)


def _plans(
    wanted: _Wanted,
    arch: list[str],
    source: str,
    origin: str,
    *,
    slim: bool,
    packages: bool,
) -> list[Any]:
    """Returns plans on the bases that registries have now; else, where `packages` may stand in, on the engine's."""
    from base_images.build import local
    from base_images.build import source as sources
    from base_images.build.inputs import Origin
    from base_images.cli import views
    from base_images.errors import SourceError

    where = _origin(origin)
    if where is Origin.PACKAGES:
        if not packages:
            raise UsageError("Bake builds on bases of registries alone, wherever its builder is: leave --origin out.")
        return _prepared_plans(wanted, arch, source, origin, slim=slim)
    chosen = settings.load(ROOT)
    found = sources.expected(chosen.pin, path=_path(source), root=ROOT)
    try:
        return [
            made
            for one, platforms in wanted
            for made in local.foresee(
                one, platforms, settings=chosen, root=ROOT, source=found, architectures=arch, slim=slim
            )
        ]
    except SourceError as error:
        if where is Origin.REGISTRIES or not packages:
            raise
        views.complain(f"note: {error} What follows is what this machine's engine would build.")
        return _prepared_plans(wanted, arch, source, origin, slim=slim)


def _prepared_plans(wanted: _Wanted, arch: list[str], source: str, origin: str, *, slim: bool) -> list[Any]:
    """Returns plans on bases that the engine has afterwards, for its own platform."""
    from base_images.adapters import engine
    from base_images.cli import views

    where = _origin(origin)
    connected = engine.connect()
    here = connected.platform()
    chosen = [one for one, platforms in wanted if here in platforms]
    if not chosen:
        raise UsageError(f"This engine builds for {here.docker}: choose that, or another engine with DOCKER_HOST.")
    with views.Display(views.Mode.QUIET) as display:
        found = _source(source, where, display)
        return [_prepare(connected, one, found, where, display, arch, slim=slim).plan for one in chosen]


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
    from base_images.build import local

    return local.prepare(
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
    from base_images.build.inputs import Origin

    try:
        return Origin(name)
    except ValueError as error:
        raise UsageError(f"There is no origin {name!r}: choose one of {', '.join(Origin)}.") from error


def _check(
    connected: Any, reference: str, variant: variants.Variant | None, *, json: bool, record: Path | None = None
) -> None:
    from base_images.cli import views
    from base_images.contract import judge
    from base_images.release import evidence
    from base_images.smoke import report as smoke_report

    result = judge.check(connected, reference, variant)
    if record:
        smoke_report.write_json(result.as_dict(), record / f"contract-{result.variant}.json")
        if seen := evidence.of_contract(connected.image(result.image_id), settings.load(ROOT).registry, result):
            evidence.write(seen, record)
    if json:
        views.print_json(result.as_dict())
    else:
        views.print_contract(result)
    if not result.ok:
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
) -> Any:
    from base_images.adapters import engine
    from base_images.cli import views
    from base_images.release import evidence
    from base_images.smoke import command as smoke_command
    from base_images.smoke import device as devices
    from base_images.smoke import launch

    connected = engine.connect()
    granted = devices.to_test(variant, where, runtimes=connected.runtimes())
    found = smoke_command.image_under_test(
        connected,
        variant,
        image,
        checkout=ROOT,
        listener=display.progress,
        notice=views.complain if json else display.notice,
    )
    if not json:
        views.print_doctor(_examine([variant], by_name=True, image=found.id))
    kept = launch.Kept() if keep else None
    try:
        tested = smoke_command.smoke_image(
            connected,
            found,
            variant,
            device=granted,
            outputs=outputs,
            listener=display.progress,
            kept=kept,
            model_file=model_file,
        )
        if seen := evidence.of_smoke(found, settings.load(ROOT).registry, tested.report):
            evidence.write(seen, outputs.record)
        return tested
    finally:
        if kept and kept.removal:
            views.complain(f"kept: {', '.join(kept.containers)}; `{kept.removal}` removes them")


def _examine(chosen: list[variants.Variant], *, by_name: bool, image: str) -> Any:
    from base_images.doctor import doctor

    registry = settings.load(ROOT).registry
    return doctor.examine(chosen, checkout=ROOT, registry=registry, by_name=by_name, image=image)


def _judge(tested: Any, *, json: bool) -> None:
    """Prints what a smoke test saw, and ends with 1 where something is wrong."""
    from base_images.cli import views

    if json:
        views.print_json(tested.report.as_dict())
    else:
        views.print_smoke(tested.report)
    if not tested.report.ok:
        raise Exit(code=1)
