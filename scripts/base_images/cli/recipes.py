"""Tasks that follow upstream and the consumer."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit

from base_images import settings
from base_images.cli import github
from base_images.cli.front_door import command
from base_images.cli.options import caller_path, parse_origin, resolve_source
from base_images.errors import UsageError
from base_images.settings import ROOT


@command(
    iterable=["variant"],
    help={
        "variant": "which recipes; default: all",
        "source": "a tree of llama.cpp, with --ref, --from and --to a clone of it; default: the pin",
        "ref": "compare with this ref of the clone",
        "from": "the older of two refs of the clone, to see what upstream changed",
        "to": "the newer one",
        "all": "print all that is for information, and the keys of all differences, for dockerfiles/differences.toml",
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
    all_: bool = False,
    json: bool = False,
) -> None:
    """Compares our recipes with upstream's.

    Exit code 1 on a difference that is not intended, or a file of a variant of ours that cannot be read; with --from
    and --to, which show what upstream changed, only on the latter.

    Example: invoke check-upstream --variant cuda
    """
    from base_images.cli import views
    from base_images.recipes import beyond, consumer, mirror, upstream_report

    if bool(from_) != bool(to) or (ref and to):
        raise UsageError("--from and --to name two refs of upstream and go together, without --ref.")
    tree = caller_path(source) or _pinned_tree()
    theirs, ours = mirror.upstream_texts(tree, to or ref), mirror.our_texts(ROOT)
    changed = None
    subject = ref or (str(tree) if source else settings.load(ROOT).pin.names)
    chosen = variant
    if to:
        texts = beyond.read(tree, from_, to)
        theirs = mirror.following(theirs, beyond.moves(*texts))
        changed = mirror.compare_refs(
            mirror.upstream_texts(tree, from_),
            theirs,
            variant,
            others=beyond.compare(*texts),
            sources=(mirror.argument_source(tree, from_), mirror.argument_source(tree, to)),
            used=consumer.load(ROOT).options,
        )
        subject = f"{from_} → {to}"
        chosen = [name for name in variant if name in ours]
        ours = {} if variant and not chosen else ours
    result = mirror.check(theirs, ours, mirror.load_records(ROOT / mirror.DIFFERENCES) if ours else (), chosen)
    telling = upstream_report.tell(subject, result, changed)
    if json:
        views.print_json({**(changed or result).as_dict(), **telling.as_dict()})
    else:
        views.print_telling(telling, result if all_ else None, where="--all or --json")
    if result.unreadable or not (to or result.ok):
        raise Exit(code=1)


@command(
    help={
        "to": "the tag to move to, such as b11400 or v0.6.0; newest is the one that pyproject.toml follows",
        "source": "a clone that has it; default: fetched",
        "report": "write what upstream changed, and what our recipes lack of it, to this file as Markdown",
    }
)
def bump_upstream(_: Context, to: str, source: str = "", report: str = "") -> None:
    """Moves the pin to another tag of llama.cpp.

    Shows what upstream changed in its Dockerfiles and in llama-server's arguments. Looks on the package index for an
    sdist that vendors the commit, and compares its files with the commit's.
    """
    from base_images.adapters import files, ownership, repository
    from base_images.cli import views
    from base_images.recipes import beyond, bump, consumer, markdown, mirror, sdists, upstream_report

    pin = settings.load(ROOT).pin
    if repository.head(repository.open_clone(ROOT)).changes:
        raise UsageError("The tree has changes: commit or stash them first, a bump is a commit of its own.")
    clone, written = caller_path(source), caller_path(report)
    repository_name = str(clone or pin.repository)
    known = bump.tags(repository_name)
    names = bump.named(
        known, bump.newest(known, pin.follow, repository_name) if to == "newest" else to, repository_name
    )
    if to == "newest" and not bump.is_ahead(names, pin):
        said = f"The pin is {pin.names} and the newest {pin.follow} of llama.cpp is {names}: nothing to move."
        if written:
            files.write(written, f"{said}\n")
        views.say(said)
        return
    # The verdict is the first line of a log.
    shown = views.Mode.LIVE if views.mode(quiet=False) is views.Mode.LIVE else views.Mode.QUIET
    with ownership.temporary_directory() as directory, views.Display(shown) as display:
        if not clone:
            clone = directory
            bump.fetch(pin.repository, [pin.commit, names.commit], clone)
        # By commit: a tag can move between two questions.
        texts = beyond.read(clone, pin.commit, names.commit)
        newer = mirror.following(mirror.upstream_texts(clone, names.commit), beyond.moves(*texts))
        changed = mirror.compare_refs(
            mirror.upstream_texts(clone, pin.commit),
            newer,
            others=beyond.compare(*texts),
            sources=(
                mirror.argument_source(clone, pin.commit, pin.tag),
                mirror.argument_source(clone, names.commit, names.tag),
            ),
            used=consumer.load(ROOT).options,
        )
        opened = repository.source_clone(clone, names.commit)
        sdist = sdists.find(
            tag=names.tag,
            commit=names.commit,
            made=repository.commit_time(opened, names.commit),
            blobs=repository.blobs(opened, names.commit),
            listener=display.progress,
        )
    lacking = mirror.check(newer, mirror.our_texts(ROOT), mirror.load_records(ROOT / mirror.DIFFERENCES))
    actions = [f"The pin is {names}, commit {names.commit[:9]}. {sdist.told}"]
    if known.get(pin.tag, pin.commit) != pin.commit:
        actions.append(
            f"The tag {pin.tag} is at {known[pin.tag][:9]} now and was pinned at {pin.commit[:9]}: ask llama.cpp why."
        )
    checked = (
        f"The workflow `ci` builds the cpu image of {names.tag} on amd64 and arm64, judges it by the contract and "
        "smoke-tests it. It builds no accelerator's image: a release does, and `nox -s image-<variant>` on a machine "
        "that can pull the toolkit's base images."
    )
    telling = upstream_report.tell(f"{pin.names} → {names}", lacking, changed)
    told = upstream_report.as_markdown(telling, map(markdown.text, [*actions, checked]))
    github.summarise(told)
    if written:
        files.write(written, told)
    moved = bump.bump(bump.pinned_texts(ROOT), pin, names, sdist=sdist.requirement, sdist_sha256=sdist.sha256)
    for path, text in moved.items():
        files.write(ROOT / path, text)
    views.print_telling(telling, where="--report")
    for sentence in actions:
        views.say(sentence)


@command(
    help={
        "source": "a checkout of BodhiApp; default: its newest commit, fetched, unless --image is given",
        "image": "ask this image, pulled if the engine does not have it, which of BodhiApp's arguments it refuses",
        "report": "add what was seen to this file, as Markdown",
        "json": "print JSON",
    }
)
def check_consumer(_: Context, source: str = "", image: str = "", report: str = "", json: bool = False) -> None:
    """Compares our data of BodhiApp with BodhiApp.

    With --image also which of BodhiApp's arguments an image refuses. Exit code 1 on a finding.
    """
    from base_images.cli import consumer_command, views
    from base_images.recipes import consumer_checkout

    with views.Display(views.mode(quiet=json)) as display:
        seen = consumer_command.check(ROOT, source=caller_path(source), image=image, listener=display.progress)
    views.print_json(seen.as_dict()) if json else views.print_consumer(seen)
    github.summarise(consumer_checkout.markdown(seen))
    if written := caller_path(report):
        consumer_command.add_to(written, seen)
    if not seen.ok:
        raise Exit(code=1)


def mirror_problem() -> str:
    """Returns why the recipes do not mirror the pin and what to do; empty if they do."""
    from base_images.cli import views
    from base_images.recipes import mirror

    pin = settings.load(ROOT).pin
    with views.Display(views.mode(quiet=False)) as display:
        found = resolve_source("", parse_origin("auto"), display)
    if found.dirty or found.commit != pin.commit:
        return f"{found.path} is not llama.cpp {pin.tag} as it is pinned: move it away, or unset LLAMA_CPP_DIR"
    records = mirror.load_records(ROOT / mirror.DIFFERENCES)
    result = mirror.check(mirror.upstream_texts(found.path), mirror.our_texts(ROOT), records)
    return "" if result.ok else "a difference is not intended: `invoke check-upstream` shows it"


def _pinned_tree() -> Path:
    from base_images.cli import views

    with views.Display(views.Mode.QUIET) as display:
        tree: Path = resolve_source("", parse_origin("auto"), display).path
    return tree
