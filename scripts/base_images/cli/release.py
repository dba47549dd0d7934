"""Tasks that release a commit: version, tag, publication, reports, promotion, notes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit

from base_images import settings, variants
from base_images.cli import github
from base_images.cli.front_door import agree, change_registry, command, conclude
from base_images.cli.options import caller_path, open_registry, variants_of
from base_images.cli.recipes import mirror_problem
from base_images.errors import RegistryError, UsageError
from base_images.settings import ROOT
from base_images.versions import Target

if TYPE_CHECKING:
    from base_images.release.actions import Action
    from base_images.release.status import Published


@command(
    aliases=["check-base-images-version"],
    help={
        "json": "print JSON",
        "released": "fail unless this commit is released: its tag is at the remote, on a commit of the release branch",
    },
)
def check_version(_: Context, json: bool = False, released: bool = False) -> None:
    """Shows this commit's version and what is published.

    Also the newest released version, the llama.cpp pin, and what the registry has of each variant.
    It is also called check-base-images-version.
    """
    from datetime import UTC, datetime

    from base_images.adapters import registry, repository
    from base_images.cli import views
    from base_images.release import status as published
    from base_images.release.tag import released_commit

    chosen = settings.load(ROOT)
    opened = repository.open_clone(ROOT)
    if released:
        released_commit(repository.Remote(clone=opened), chosen.release_branch, repository.head(opened).version)
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
            "llama_cpp": {
                "tag": chosen.pin.tag,
                "release": chosen.pin.release or None,
                "commit": chosen.pin.commit,
            },
            "registry": {"name": chosen.registry, "error": unreachable, "variants": [row.as_dict() for row in found]},
        }
        views.print_json(facts)
        _require_readable(found)
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
            "llama.cpp": f"{chosen.pin.names} ({chosen.pin.commit[:9]})",
        }
    )
    if unreachable:
        views.say(f"note: what is published cannot be seen: {unreachable}")
    else:
        columns = ["variant", "tag", "version", "llama.cpp", "age", "digest", "note"]
        views.print_table(chosen.registry, columns, published.rows(found, datetime.now(UTC)))
    _require_readable(found)


def _require_readable(found: Iterable[Published]) -> None:
    """Raises Exit if the registry has something of a variant that cannot be read."""
    if failed := [published.variant for published in found if published.problem]:
        raise Exit(f"error: what the registry has of {', '.join(failed)} cannot be read: see above.", 1)


@command(help={"json": "print JSON"})
def show_git_info(_: Context, json: bool = False) -> None:
    """Shows commit, version and tags of this checkout."""
    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views

    head = repository.head(repository.open_clone(ROOT))
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


@command(help={"yes": "do not ask", "dry_run": "stop after the plan; BASE_IMAGES_DRY_RUN=true does the same"})
def release_base_images(_: Context, yes: bool = False, dry_run: bool = False) -> None:
    """Releases this commit: pushes its tag, CI publishes.

    Checks first whether the commit may be released, and shows what that makes.

    Example: invoke release-base-images --dry-run
    """
    from datetime import UTC, datetime

    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.release import tag as release

    chosen = settings.load(ROOT)
    remote = repository.Remote(clone=repository.open_clone(ROOT))
    state = release.examine(remote, chosen.release_branch, now=datetime.now(UTC), mirror_problem=mirror_problem)
    if state.released:
        views.say(f"already released: {state.version.git_tag} is at {remote.name}, on {state.commit}")
        return
    rows = [(check.name, check.status.value, check.seen) for check in state.checks]
    views.print_table(f"may {state.version} be released?", ["precondition", "is", "seen"], rows)
    if not state.ok:
        raise Exit("error: nothing was released: fix what failed above and run the same command again.", 1)
    planned = release.plan(remote, state, chosen)
    views.print_release(planned)
    if dry_run or settings.dry_run():
        views.say("dry run: nothing was changed")
        return
    if not yes:
        agree("Release it?")
    release.publish(remote, planned)
    views.say(f"released: {planned.tag} is at {remote.name}, on {planned.commit}")


@command()
def free_runner_disk(_: Context) -> None:
    """Removes toolchains from a GitHub-hosted runner.

    They fill its disk. On any other machine it does nothing.
    """
    from base_images.cli import views
    from base_images.release import runner_disk

    if not runner_disk.is_hosted(os.environ):
        views.say("This is not a GitHub-hosted runner (RUNNER_ENVIRONMENT is not github-hosted): nothing removed.")
        return
    freed = runner_disk.free(Path("/"))
    for path in freed.removed:
        views.say(f"removed {path}")
    views.say(f"{variants.gigabytes(freed.free)} are free")


@command(
    iterable=["variant"],
    help={
        "variant": "which image; may be given several times; default: all; one that fails does not stop the others",
        "operations": "also the test of its operations, beside it",
        "dry_run": "change nothing; BASE_IMAGES_DRY_RUN=true does the same",
    },
)
def publish(_: Context, variant: list[str], operations: bool = False, dry_run: bool = False) -> None:
    """Pushes the local build of this released commit.

    Makes one image of all platforms once they are there.
    """
    from base_images.adapters import engine, repository
    from base_images.release import publish
    from base_images.release.tag import released_commit

    opened = repository.open_clone(ROOT)
    head, dry_run = repository.head(opened), dry_run or settings.dry_run()
    if not dry_run:  # a rehearsal needs no release
        released_commit(repository.Remote(clone=opened), settings.load(ROOT).release_branch, head.version)
    where = open_registry()

    def publish_one(each: variants.Variant) -> Iterator[Action]:
        for stage in Target if operations else (Target.RUNTIME,):
            yield from publish.publish(
                where,
                each,
                version=head.version,
                commit=head.commit,
                connect=engine.connect,
                stage=stage,
                dry_run=dry_run,
            )

    change_registry("publish", variants_of(variant), publish_one)


@command(
    positional=["directory"],
    help={
        "directory": "where `check-image` and `smoke` wrote their evidence (--record), at any depth",
        "dry_run": "change nothing; BASE_IMAGES_DRY_RUN=true does the same",
    },
)
def attach_reports(_: Context, directory: str, dry_run: bool = False) -> None:
    """Attaches reports to the images in the registry.

    Each to the image that it is of: `promote` asks for them.
    """
    from base_images.release import evidence

    found = list(evidence.read_files(caller_path(directory) or ROOT))
    where = open_registry()
    dry_run = dry_run or settings.dry_run()
    chosen = [variants.find(name) for name in dict.fromkeys(report.variant for report in found)]
    change_registry(
        "attach-reports",
        chosen,
        lambda each: (
            evidence.attach_file(where, report, dry_run=dry_run) for report in found if report.variant == each.name
        ),
    )


@command(
    iterable=["variant"],
    help={
        "version": "which version; default: this commit's",
        "variant": "which image; may be given several times; default: all; a refusal does not stop the others",
        "dry_run": "only say whether it would be done; BASE_IMAGES_DRY_RUN=true does the same",
    },
)
def promote(_: Context, variant: list[str], version: str = "", dry_run: bool = False) -> None:
    """Points latest-<variant> at a tested version.

    Refuses a version that was not checked and smoke-tested, and says why.

    Example: invoke promote --variant cuda --dry-run
    """
    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.release import promote, signatures
    from base_images.release.tag import released_commit

    opened, chosen = repository.open_clone(ROOT), settings.load(ROOT)
    wanted = versions.parse(version) if version else repository.head(opened).version
    commit = released_commit(repository.Remote(clone=opened), chosen.release_branch, wanted)
    where = open_registry()
    dry_run = dry_run or settings.dry_run()
    signer = signatures.Signer(url=chosen.url, git_tag=wanted.git_tag, commit=commit)
    signed = signatures.exist(where.name)
    if not signed:
        views.complain(f"note: {where.name} has no signatures of the workflow: who made the images is not verified.")

    def unsigned(digest: str) -> list[str]:
        return signatures.problems(f"{where.name}@{digest}", signer) if signed else []

    change_registry(
        "promote",
        variants_of(variant),
        lambda each: promote.promote(where, each, wanted, commit, dry_run=dry_run, unsigned=unsigned),
    )


@command(
    help={
        "variant": "which image",
        "to": "what to go back to: a version that was latest before, or the digest of an image without one",
        "dry_run": "only say whether it would be done; BASE_IMAGES_DRY_RUN=true does the same",
    },
)
def rollback(_: Context, variant: str, to: str, dry_run: bool = False) -> None:
    """Points latest-<variant> back at a former version."""
    from base_images import versions
    from base_images.release import promote

    known, wanted, where = variants.find(variant), versions.parse_any(to), open_registry()
    dry_run = dry_run or settings.dry_run()
    change_registry("rollback", [known], lambda each: promote.roll_back(where, each, wanted, dry_run=dry_run))


@command(help={"variant": "which image", "version": "which version; default: this commit's"})
def image_digest(_: Context, variant: str, version: str = "") -> None:
    """Prints the digest of a published version.

    To pin a FROM with it, or to sign it.
    """
    from base_images import versions
    from base_images.adapters import repository
    from base_images.cli import views

    known = variants.find(variant)
    wanted = versions.parse(version) if version else repository.head(repository.open_clone(ROOT)).version
    where, tag = open_registry(), versions.image_tag(known.name, wanted)
    digest = where.digest(tag)
    if digest is None:
        raise RegistryError(f"{where.name} has no {tag}: publish it first.")
    views.say(digest)
    github.summarise_table(f"{where.name}:{tag}", ["digest"], [[digest]])


@command(
    help={
        "version": "which release; default: this commit's",
        "output": "write release.json, notes.md and the attached reports into this directory: the release's files",
        "dry_run": "write no file, only print",
        "json": "print release.json",
    }
)
def release_notes(_: Context, version: str = "", output: str = "", dry_run: bool = False, json: bool = False) -> None:
    """Prints a release's notes, or writes its files.

    The release and the state of each variant, as Markdown or JSON, read from git and the registry at any time.
    """
    from datetime import UTC, datetime

    from base_images import versions
    from base_images.adapters import files, repository
    from base_images.cli import views
    from base_images.release import notes as release_notes
    from base_images.release import record as release_record

    opened = repository.open_clone(ROOT)
    wanted = versions.parse(version) if version else repository.head(opened).version
    release = release_record.released(opened, wanted)
    chosen = settings.load(ROOT)
    seen = release_record.look(open_registry(), variants.VARIANTS, wanted, release.previous)
    told = release_record.record(release, seen, chosen, now=datetime.now(UTC))
    notes = release_notes.as_markdown(told, chosen)
    github.summarise(notes)
    directory = None if dry_run else caller_path(output)
    if directory:
        written = release_record.write(told, seen, directory)
        files.write(directory / release_notes.FILE, notes)
        views.say(f"{directory}: {len(written) + 1} files, for {told.git_tag}")
    if json:
        views.print_json(told.as_dict())
    elif not directory:
        views.say(notes.rstrip())


@command(
    help={
        "variant": "which image",
        "on": "the smoke test's device: host, software or nothing; default: what a machine without an accelerator has",
        "record": "directory for the result, as JSON",
        "json": "print JSON",
    }
)
def verify_latest(_: Context, variant: str, on: str = "", record: str = "", json: bool = False) -> None:
    """Verifies what latest-<variant> is.

    Pulls it without an account, checks its signature, attestation, SBOM and reports, and tests it again: contract,
    BodhiApp's arguments, smoke test. Exit code 1 on a failure; what was never promoted is none.

    Example: invoke verify-latest --variant cpu
    """
    from base_images.adapters import engine, files, registry, repository
    from base_images.cli import views
    from base_images.release import latest, matrix, signatures
    from base_images.release.tag import released_commit
    from base_images.smoke import device as devices
    from base_images.versions import Version

    known, chosen = variants.find(variant), settings.load(ROOT)
    where = devices.where(on or matrix.device_without_one(known))
    connected, opened = engine.connect(), repository.open_clone(ROOT)

    def signer(version: Version) -> signatures.Signer:
        commit = released_commit(repository.Remote(clone=opened), chosen.release_branch, version)
        return signatures.Signer(url=chosen.url, git_tag=version.git_tag, commit=commit)

    with views.Display(views.mode(quiet=json), f"verify latest-{known.name}") as display:
        subject = latest.Subject(
            where=registry.open_repository(chosen.registry, anonymous=True),
            engine=connected,
            variant=known,
            signer=signer,
            device=devices.to_test(known, where, engine=connected.devices()),
            listener=display.progress,
        )
        found = latest.verify(subject)
    if found is None:
        told = f"nothing of {known.name} was ever promoted in {chosen.registry}: nothing to verify"
        views.print_json({"ok": True, "checks": [], "note": told}) if json else views.say(told)
        return
    views.print_json(found.as_dict()) if json else views.print_verified(found)
    writes = []
    if directory := caller_path(record):
        path = directory / f"latest-{known.name}-{found.platform.rpartition('/')[2]}.json"
        writes.append(partial(files.write_json, path, found.as_dict()))
    conclude(writes, ok=found.ok)


@command(
    positional=["directory"],
    help={
        "directory": "where the results are: latest-….json of `verify-latest`, scan-….sarif of Grype",
        "dry_run": "ask nothing of GitHub, only print the issue's text; BASE_IMAGES_DRY_RUN=true does the same",
    },
)
def report_latest(_: Context, directory: str, dry_run: bool = False) -> None:
    """Opens, updates or closes the issue on what is latest.

    LATEST has the jobs whose results are reported, see `plan --format latest`. The program gh asks GitHub.
    """
    from base_images.cli import views
    from base_images.release import issue
    from base_images.release.actions import run_url

    jobs = issue.parse_jobs(os.environ.get(issue.JOBS_VARIABLE, ""))
    run = run_url(os.environ)
    text = issue.text(list(issue.problems(jobs, caller_path(directory) or ROOT)), run=run)
    github.summarise(text or "Everything that is latest passes.")
    views.say(text.rstrip() or "Everything that is latest passes.")
    if dry_run or settings.dry_run():
        return
    for request in issue.update(text, run=run):
        views.say(f"{request.method} {request.path}")


@command(help={"output": "directory for index.html and status.json", "json": "print status.json"})
def status_page(_: Context, output: str = "", json: bool = False) -> None:
    """Makes a page of what is latest, and why.

    From the registry and this clone: versions, reports, who moved what and when.

    Example: invoke status-page --output build/status
    """
    from datetime import UTC, datetime

    from base_images.adapters import repository
    from base_images.cli import views
    from base_images.release import status_page

    directory = caller_path(output)
    if directory is None and not json:
        raise UsageError("Name a directory with --output, or print the facts with --json.")
    opened = repository.open_clone(ROOT)
    page = status_page.look(open_registry(), variants.VARIANTS, opened, settings.load(ROOT), now=datetime.now(UTC))
    if json:
        views.print_json(page.as_dict())
    for path in status_page.write(page, directory) if directory else ():
        views.complain(str(path)) if json else views.say(str(path))
