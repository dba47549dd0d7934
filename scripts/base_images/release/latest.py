"""Verifies what `latest-<variant>` names as somebody without an account gets it, with the checks of a release.

Nothing here sends credentials to the registry: what docker is logged in to is not looked at.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from base_images import variants, versions
from base_images.adapters import programs
from base_images.adapters.engine import Engine
from base_images.adapters.manifest import Manifest, OddDocumentError, parse_object
from base_images.adapters.registry import ForbiddenError, Repository
from base_images.contract import facts, judge
from base_images.errors import BaseImagesError, LaunchError, RegistryError
from base_images.progress import Listener, Progress, pull_progress, silent
from base_images.recipes import consumer, consumer_checkout
from base_images.release import promote, signatures
from base_images.release.promote import Move
from base_images.release.signatures import Signer
from base_images.smoke import command as smoke_command
from base_images.smoke.device import Granted
from base_images.smoke.report import CheckResult, Status
from base_images.variants import Variant
from base_images.versions import Version

SBOM_BYTES = 64 << 20
"""Of one SBOM, which lists every file of a large base too."""

_SPDX = "https://spdx.dev/Document"
_PREDICATE_TYPE = "in-toto.io/predicate-type"
"""The annotation of an attestation's layer (moby/buildkit, docs/attestations/attestation-storage.md)."""

PACKAGE = "llama.cpp"
"""What every SBOM has to name: row 21 of the contract puts its note into the server."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is verified, and how.

    Attributes:
        where: the registry's repository, opened without credentials.
        signer: returns who must have signed a version; raises RepositoryError where that is not released.
        device: for the smoke test; None for the CPU alone.
        listener: called with the progress of pull and smoke test, and with the name of each check when it begins.
    """

    where: Repository
    engine: Engine
    variant: Variant
    signer: Callable[[Version], Signer]
    device: Granted | None
    listener: Listener = silent


@dataclass(kw_only=True)
class Verified:
    """What was found of one variant on one platform.

    Attributes:
        image: the reference by tag.
        digest: what the tag named; empty where that could not be read.
        version: the version that the records say is latest; empty likewise.
        reports: of contract, consumer and smoke test, as their own commands print them as JSON.
    """

    image: str
    variant: str
    platform: str
    digest: str = ""
    version: str = ""
    checks: list[CheckResult] = field(default_factory=list)
    reports: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.status is not Status.FAIL for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return {"ok": self.ok, **asdict(self)}


class _NothingToCheckError(BaseImagesError):
    """There is nothing of the kind: not a failure."""


def verify(subject: Subject) -> Verified | None:
    """Verifies what is latest, for the engine's platform; None where nothing of the variant was ever promoted.

    What could not be checked has failed. Checks that need the result of a failed one are left out.

    Raises:
        EngineError: the engine does not answer.
    """
    where, name = subject.where, versions.latest_tag(subject.variant.name)
    platform = subject.engine.platform().docker
    found = Verified(image=f"{where.name}:{name}", variant=subject.variant.name, platform=platform)

    def passes(check: str, run: Callable[[], str]) -> bool:
        subject.listener(Progress(what=check))
        found.checks.append(_result(check, run))
        return found.checks[-1].status is not Status.FAIL

    def look() -> str:
        tags.extend(where.tags())
        return f"{len(tags)} tags, read without an account"

    tags: list[str] = []
    if not passes("public", look):
        return found
    if not promote.was_promoted(tags, subject.variant.name):
        return None
    move = promote.moves(tags, subject.variant.name)[-1]
    found.version = str(move.version)

    def resolve() -> str:
        found.digest = where.digest(name) or ""
        return _as_recorded(where, move, found.digest)

    passes("latest", resolve)
    if not found.digest:
        return found
    named = f"{where.name}@{found.digest}"
    passes("evidence", partial(_evidence, subject, move, found.digest))
    passes("signature", partial(_signature, subject, move, named))
    passes("sbom", partial(sbom, where, found.digest, platform))
    if passes("pull", partial(_pull, subject, named)):
        for check, run in (("contract", _contract), ("consumer", _consumer), ("smoke", _smoke)):
            passes(check, partial(run, subject, named, found.reports))
    return found


def _result(name: str, run: Callable[[], str]) -> CheckResult:
    started = time.monotonic()
    detail = ""
    try:
        status, seen = Status.PASS, run()
    except _NothingToCheckError as error:
        status, seen = Status.SKIP, str(error)
    except ForbiddenError as error:
        status, seen = Status.FAIL, f"nobody can read it without an account, make the package public: {error}"
    except BaseImagesError as error:
        status, seen, detail = Status.FAIL, str(error), error.detail
    return CheckResult(name=name, status=status, seen=seen, seconds=time.monotonic() - started, detail=detail)


def _require_none(problems: Iterable[str]) -> None:
    if sentences := list(problems):
        raise RegistryError("\n".join(sentences))


def _as_recorded(where: Repository, move: Move, digest: str) -> str:
    tag = f"{where.name}:{versions.latest_tag(move.variant)}"
    how = "rollback --to" if move.rollback else "promote --version"
    again = f"run `invoke {how} {move.version} --variant {move.variant}`"
    if not digest:
        raise RegistryError(f"{tag} is gone, and {move.version} was made latest: {again}.")
    if digest != (recorded := promote.recorded_digest(where, move)):
        raise RegistryError(f"{tag} is {digest}, and {move.version} was made latest as {recorded or 'what'}: {again}.")
    return f"{move.version}, {digest}"


def _our_version(move: Move) -> Version:
    if isinstance(move.version, Version):
        return move.version
    raise RegistryError(f"{move.version} is of before this project, and a rollback returned to it: promote a release.")


def _evidence(subject: Subject, move: Move, digest: str) -> str:
    version, where = _our_version(move), subject.where
    candidates = promote.candidates(where, digest)
    commit = subject.signer(version).commit
    _require_none(promote.refusals(subject.variant, version, commit, candidates, repository=where.name))
    return "; ".join(f"{platform}: {', '.join(one.reports)}" for platform, one in candidates.items())


def _signature(subject: Subject, move: Move, named: str) -> str:
    if not signatures.exist(named):
        raise _NothingToCheckError(f"{subject.where.name} has no signatures of the workflow.")
    signer = subject.signer(_our_version(move))
    _require_none(signature_problems(named, signer))
    return f"of {signatures.WORKFLOW}, for {signer.git_tag}"


def signature_problems(named: str, signer: Signer) -> list[str]:
    """Returns the same as `signatures.problems`, found without docker's login."""
    with tempfile.TemporaryDirectory() as directory:
        # A file, so that the programs look no further, such as for podman's login.
        Path(directory, "config.json").write_text("{}", encoding="utf-8")
        return signatures.problems(named, signer, {**programs.inherited(), "DOCKER_CONFIG": directory})


def sbom(where: Repository, digest: str, platform: str) -> str:
    """Returns what the SBOM of a platform's image says, in words.

    Raises:
        RegistryError: it has no SBOM, or one that cannot be read, is of another image or does not name llama.cpp.
    """
    index, image = where.manifest(digest), where.platform_manifests(digest).get(platform)
    if index is None or image is None:
        raise RegistryError(f"{where.name}@{digest} has no image for {platform}: run this on a machine that it is for.")
    statements = list(_statements(where, index, image))
    if not statements and not signatures.exist(where.name):
        raise _NothingToCheckError("it has none; only `invoke bake --push` makes one.")
    if not statements:
        raise RegistryError(f"{image.digest} has no SBOM: release again.")
    names = [package.get("name") for statement in statements for package in _packages(statement)]
    if PACKAGE not in names:
        raise RegistryError(f"the SBOM of {image.digest} has {len(names)} packages, and {PACKAGE} is not among them.")
    return f"{len(names)} packages, {PACKAGE} among them"


def _statements(where: Repository, index: Manifest, image: Manifest) -> Iterator[dict[str, Any]]:
    """Yields the SBOMs of an image, each of which has to name that very image."""
    named = index.attestations.get(image.digest)
    attestation = where.manifest(named) if named else None
    for layer in attestation.document.get("layers", ()) if attestation else ():
        annotations = layer.get("annotations")
        if not isinstance(annotations, dict) or annotations.get(_PREDICATE_TYPE) != _SPDX:
            continue
        try:
            statement = parse_object(where.blob(layer["digest"], size=SBOM_BYTES))
            subjects = [f"sha256:{subject['digest']['sha256']}" for subject in statement["subject"]]
        except (OddDocumentError, LookupError, TypeError) as error:
            raise RegistryError(f"the SBOM of {image.digest} cannot be read: release again.") from error
        if image.digest not in subjects:
            raise RegistryError(f"the SBOM of {image.digest} is of another image: find out who pushed it.")
        yield statement


def _packages(statement: dict[str, Any]) -> list[dict[str, Any]]:
    predicate = statement.get("predicate")
    packages = predicate.get("packages") if isinstance(predicate, dict) else None
    return [package for package in packages if isinstance(package, dict)] if isinstance(packages, list) else []


def _pull(subject: Subject, named: str) -> str:
    image = subject.engine.pull(named, pull_progress(named, subject.listener), anonymous=True)
    return f"{variants.megabytes(image.size)} on the engine, pulled without an account"


def _contract(subject: Subject, named: str, reports: dict[str, Any]) -> str:
    report = judge.check(subject.engine, named, subject.variant)
    reports["contract"] = report.as_dict()
    failed = [row for row in report.rows if row.status.value == Status.FAIL]
    _require_none(f"row {row.number}, {finding}" for row in failed for finding in row.findings)
    return f"{len(report.rows)} rows"


def _consumer(subject: Subject, named: str, reports: dict[str, Any]) -> str:
    known, image = consumer.load(), subject.engine.image(named)
    answers = facts.ask_arguments(subject.engine, image, subject.variant, known)
    report = consumer_checkout.report(known, None, image=named, variant=subject.variant, answers=answers)
    reports["consumer"] = report.as_dict()
    _require_none(report.findings)
    return f"takes the arguments of {consumer.NAME} {known.commit[:9]}"


def _smoke(subject: Subject, named: str, reports: dict[str, Any]) -> str:
    image = subject.engine.image(named)
    report = smoke_command.smoke_image(
        subject.engine, image, subject.variant, device=subject.device, listener=subject.listener
    ).report
    reports["smoke"] = report.as_dict()
    _require_none(f"{row.server}, {row.check}: {row.seen}" for row in report.rows if row.status is Status.FAIL)
    if not report.ok:
        raise LaunchError("every check of the smoke test was skipped.")
    return f"{len(report.rows)} checks on {report.device}"
