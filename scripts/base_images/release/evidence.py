"""Evidence: reports on an image, attached to its digest in the registry. A promotion requires them.

A report is an OCI artifact whose `subject` is the image of one platform (image-spec v1.1, "Associated with an image"),
so `oras discover` and similar tools list it where the registry has the referrers API. GHCR and many others lack it, so
each report also has its own tag, `sha256-<digest>.<kind>`, as cosign names its signatures. The specification's fallback
is one tag that all reports share, which two jobs that attach at the same time would overwrite.

A report counts for the image that it names alone: by digest, platform, variant, version and layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from base_images import variants, versions
from base_images.adapters import files
from base_images.adapters.engine import Image
from base_images.adapters.manifest import (
    OCI_MANIFEST,
    Manifest,
    OddDocumentError,
    diff_ids_of,
    labels_of,
    parse_object,
)
from base_images.adapters.registry import Repository
from base_images.contract.judge import ContractReport
from base_images.contract.sizes import Before
from base_images.contract.sizes import parse as parse_sizes
from base_images.errors import RegistryError, UsageError
from base_images.labels import Label
from base_images.release.actions import Action, Outcome
from base_images.release.reproduce import Reproduction
from base_images.smoke.report import Device, SmokeReport

FILE_SUFFIX = ".evidence.json"
"""Suffix of the files that `attach-reports` reads."""

ARTIFACT_TYPE = "application/vnd.bodhi.base-images.{kind}.v1+json"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


class Kind(StrEnum):
    """What a report checks; a later report of the same kind replaces the earlier one."""

    CONTRACT = "contract"
    SMOKE = "smoke"
    SMOKE_ON_SOFTWARE_DEVICE = "smoke-on-software-device"
    SMOKE_ON_DEVICE = "smoke-on-device"
    REPRODUCIBLE = "reproducible"


KIND_OF_DEVICE = {
    Device.NONE: Kind.SMOKE,
    Device.SOFTWARE: Kind.SMOKE_ON_SOFTWARE_DEVICE,
    Device.HOST: Kind.SMOKE_ON_DEVICE,
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One report of one image.

    Attributes:
        subject: the image's reference in the registry, such as `ghcr.io/bodhisearch/llama.cpp@sha256:…`; in a file it
            may be an index of several platforms, in the registry it is the image of one.
        platform: the image's, such as `linux/amd64`.
        version: from the image's label.
        diff_ids: digests of the image's uncompressed layers, lowest first, which every engine and registry agrees on.
        made: RFC 3339, UTC, by the clock of the machine that made it: for people, never compared.
        ok: whether the image passed; `passed` says whether the report agrees.
        report: the report itself.
    """

    kind: Kind
    subject: str
    platform: str
    variant: str
    version: str
    diff_ids: tuple[str, ...]
    made: str
    ok: bool
    report: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether the report and what is said of it agree that the image passed."""
        return self.ok and self.report.get("ok") is True and not self.failed

    @property
    def failed(self) -> str:
        """The first failure in the report; empty where the report has none, or has another format."""
        try:
            if self.kind is Kind.CONTRACT:
                row = next(row for row in self.report["rows"] if row["status"] == "fail")
                return f"row {row['number']}, {row['findings'][0]}"
            if self.kind is Kind.REPRODUCIBLE:
                return str(next(iter(self.report["differences"])))
            checks = [(server["name"], check) for server in self.report["servers"] for check in server["checks"]]
            server, check = next((server, check) for server, check in checks if check["status"] == "fail")
            return f"{server}, {check['name']}: {check['seen']}"
        except (LookupError, TypeError, StopIteration):
            return ""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """Evidence in the registry, and the digest of its artifact."""

    evidence: Evidence
    digest: str


def of_report(
    image: Image, repository: str, kind: Kind, report: ContractReport | SmokeReport | Reproduction
) -> Evidence | None:
    """Returns a report as evidence; None for an image that the registry does not have, or of no variant."""
    subject = next((name for name in image.repo_digests if name.partition("@")[0] == repository), None)
    is_known = image.labels.get(Label.VARIANT, "") in {variant.name for variant in variants.VARIANTS}
    if subject is None or not is_known or variants.Platform.of_architecture(image.architecture) is None:
        return None
    return Evidence(
        kind=kind,
        subject=subject,
        platform=f"linux/{image.architecture}",
        variant=image.labels.get(Label.VARIANT, ""),
        version=image.labels.get(Label.VERSION, ""),
        diff_ids=image.diff_ids,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        ok=report.ok,
        report=report.as_dict(),
    )


def write(evidence: Evidence, directory: Path) -> Path:
    """Writes `<kind>-<variant>-<architecture>.evidence.json` and returns its path.

    Raises:
        UsageError: the directory cannot be written, or the image's own words would name a file elsewhere.
    """
    architecture = evidence.platform.rpartition("/")[2]
    name = f"{evidence.kind}-{evidence.variant}-{architecture}{FILE_SUFFIX}"
    if not re.fullmatch(r"[a-z0-9_.-]+", name):
        raise UsageError(f"{name!r} cannot be a file's name: the image's variant or architecture is malformed.")
    path = directory / name
    files.write_json(path, asdict(evidence))
    return path


def read_files(directory: Path) -> Iterator[Evidence]:
    """Yields the evidence from the files below a directory, sorted by path.

    Raises:
        UsageError: there are no such files, or one is not evidence.
    """
    paths = sorted(directory.rglob(f"*{FILE_SUFFIX}"))
    if not paths:
        raise UsageError(
            f"Nothing below {directory} ends in {FILE_SUFFIX}: `check-image` and `smoke` write such files to --record, "
            "of an image that the registry has."
        )
    for path in paths:
        try:
            yield _parse(path.read_bytes())
        except (OSError, OddDocumentError) as error:
            raise UsageError(f"{path} is not evidence that this version can read: create it again.") from error


def attach(repository: Repository, evidence: Evidence) -> Attached:
    """Attaches evidence to its image and returns it with the artifact's digest; idempotent.

    Raises:
        RegistryError: the registry has no such image, the report is of another one, or the registry refused.
    """
    name, _, digest = evidence.subject.partition("@")
    if name != repository.name:
        raise RegistryError(f"The report is of an image in {name}, and {repository.name} is what is published to.")
    subject = repository.platform_manifests(digest).get(evidence.platform)
    if subject is None:
        raise RegistryError(f"{evidence.subject} has no image for {evidence.platform}: publish it first.")
    evidence = replace(evidence, subject=f"{name}@{subject.digest}")
    if differs := _differs(subject.digest, repository.configuration(subject), evidence):
        raise RegistryError(
            f"The {evidence.kind} report is not of {evidence.subject}: {differs}. Make it of that image."
        )
    artifact_type = ARTIFACT_TYPE.format(kind=evidence.kind)
    content = json.dumps(asdict(evidence), indent=2).encode()
    manifest = store_document(repository, subject, artifact_type, content)
    return Attached(evidence=evidence, digest=repository.put_manifest(_tag(subject.digest, evidence.kind), manifest))


def attach_file(repository: Repository, evidence: Evidence, *, dry_run: bool) -> Action:
    """Attaches evidence that was read from a file, and returns the action."""
    what = f"attach {evidence.kind} {'pass' if evidence.passed else 'fail'}"
    target = f"{evidence.subject} ({evidence.platform})"
    if dry_run:
        return Action(variant=evidence.variant, what=what, target=target, outcome=Outcome.WOULD)
    digest = attach(repository, evidence).digest
    return Action(variant=evidence.variant, what=what, target=target, outcome=Outcome.DONE, digest=digest)


def store_document(repository: Repository, subject: Manifest, artifact_type: str, content: bytes) -> bytes:
    """Stores a JSON document and returns the manifest that makes it an artifact of a subject; the caller tags it."""
    layer = {"mediaType": artifact_type, "digest": repository.put_blob(content), "size": len(content)}
    config = {"mediaType": _EMPTY_TYPE, "digest": repository.put_blob(_EMPTY), "size": len(_EMPTY)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": config,
        "layers": [layer],
        "subject": {"mediaType": subject.media_type, "digest": subject.digest, "size": len(subject.content)},
    }
    return json.dumps(manifest).encode()


def attached(repository: Repository, image: Manifest) -> dict[Kind, Attached]:
    """Returns the evidence attached to the image of one platform.

    Raises:
        RegistryError: a report is not of this image, or cannot be read.
    """
    found = {}
    configuration = repository.configuration(image)
    for kind in Kind:
        manifest = repository.manifest(_tag(image.digest, kind))
        if manifest is None:
            continue
        tag = f"{repository.name}:{_tag(image.digest, kind)}"
        layers = manifest.document.get("layers")
        if not layers:
            raise RegistryError(f"{tag} has no report: attach it again.")
        try:
            evidence = _parse(repository.blob(layers[0]["digest"]))
        except OddDocumentError as error:
            raise RegistryError(f"{tag} is not a report that this version can read: attach it again.") from error
        if manifest.subject != image.digest or evidence.kind is not kind:
            raise RegistryError(f"{tag} is of another image, or of another kind: attach the right report.")
        if differs := _differs(image.digest, configuration, evidence):
            raise RegistryError(f"{tag} is of another image: {differs}. Attach the right report.")
        found[kind] = Attached(evidence=evidence, digest=manifest.digest)
    return found


def released_sizes(repository: Repository, variant: str, platform: str) -> Before:
    """Returns the sizes that the contract report of `latest-<variant>` has, read from the registry without a pull.

    Raises:
        RegistryError: the registry does not answer, or the report is not of this image.
    """
    tag = versions.latest_tag(variant)
    image = repository.platform_manifests(tag).get(platform)
    if image is None:
        return Before(name=f"not compared: {repository.name} has no {tag} for {platform}")
    found = attached(repository, image).get(Kind.CONTRACT)
    sizes = parse_sizes(found.evidence.report.get("sizes")) if found else None
    if found is None or sizes is None:
        return Before(name=f"not compared: {tag} has no contract report with sizes; name an image with --since")
    return Before(name=f"{tag} ({found.evidence.version})", sizes=sizes)


def _differs(digest: str, configuration: Mapping[str, Any], evidence: Evidence) -> str:
    """Returns what a report says of its image that is not true of this one, in words; empty where all of it is."""
    labels = labels_of(configuration)
    pairs = {
        "digest": (evidence.subject.rpartition("@")[2], digest),
        "platform": (evidence.platform, f"{configuration.get('os')}/{configuration.get('architecture')}"),
        "variant": (evidence.variant, labels.get(Label.VARIANT, "")),
        "version": (evidence.version, labels.get(Label.VERSION, "")),
    }
    found = [
        f"its {name} is {actual!r} and the report's {said!r}"
        for name, (said, actual) in pairs.items()
        if said != actual
    ]
    if evidence.diff_ids != diff_ids_of(configuration):
        found.append("its layers are others than the report's")
    return ", ".join(found)


def _parse(content: bytes) -> Evidence:
    """Raises `OddDocumentError` unless the content is a report in this version's format."""
    found = parse_object(content)
    try:
        evidence = Evidence(**{**found, "kind": Kind(found["kind"]), "diff_ids": tuple(found["diff_ids"])})
    except (ValueError, TypeError, KeyError) as error:
        raise OddDocumentError("it has other fields") from error
    texts = (evidence.subject, evidence.platform, evidence.variant, evidence.version, evidence.made, *evidence.diff_ids)
    if not all(isinstance(text, str) for text in texts):
        raise OddDocumentError("a field is not text")
    if not isinstance(evidence.ok, bool) or not isinstance(evidence.report, dict):
        raise OddDocumentError("it has no verdict, or no report")
    return evidence


def _tag(digest: str, kind: Kind) -> str:
    return f"{digest.replace(':', '-')}.{kind}"
