"""Contract rows 6, 7 and 16: version.json, the labels and the glibc version."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from packaging.version import InvalidVersion
from packaging.version import Version as PackageVersion

from base_images import versions
from base_images.contract import layers
from base_images.contract.facts import VERSION_JSON, ImageFacts
from base_images.contract.verdict import Status, Verdict, some
from base_images.errors import UsageError
from base_images.labels import TOOLKIT_PREFIX, Label

MINIMUM_GLIBC = "2.36"
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")


def version_json(facts: ImageFacts) -> Verdict:
    """Row 6: version.json has every field, and its fields agree with each other and with the image."""
    content = _version_content(facts)
    if isinstance(content, str):
        return Verdict("no version.json that can be read", [content])
    return Verdict(f"version {content.get('version')}", list(_version_findings(facts, content)))


def labels(facts: ImageFacts) -> Verdict:
    """Row 7: every label is present, well-formed and equal to what version.json says."""
    labels = facts.image.labels
    # Row 16 judges glibc's; not every commit of llama.cpp is a release, nor every base of a snapshot.
    optional = {Label.GLIBC, Label.LLAMA_CPP_RELEASE, Label.DEBIAN_SNAPSHOT}
    wanted = [label.value for label in Label if label not in optional]
    missing = [name for name in wanted if name not in labels]
    findings = [f"Missing labels: {some(missing, limit=len(wanted))}."] if missing else []
    findings += [f"The label {name} is empty." for name, value in labels.items() if not value.strip()]
    created = labels.get(Label.CREATED, "")
    if created.strip() and not _is_rfc_3339(created):
        findings.append(f"The label {Label.CREATED} is {created!r}, which is not a time as RFC 3339 writes it.")
    digest = labels.get(Label.BASE_DIGEST, "")
    if digest.strip() and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        findings.append(f"The label {Label.BASE_DIGEST} is {digest!r}, which is not a digest.")
    if facts.asked and labels.get(Label.VARIANT, facts.asked.name) != facts.asked.name:
        findings.append(
            f"The label {Label.VARIANT} is {labels[Label.VARIANT]!r}, but {facts.asked.name!r} was asked for."
        )
    content = _version_content(facts)
    if not isinstance(content, str):
        findings += [
            f"The label {name} is {labels[name]!r}, but version.json says {value!r}."
            for name, value in _repeated_labels(content)
            if labels.get(name, "").strip() and labels[name] != value
        ]
        findings += [
            f"The label {name}, which version.json calls for, is missing."
            for name, _ in _repeated_labels(content)
            if name.startswith((TOOLKIT_PREFIX, Label.LLAMA_CPP_RELEASE)) and name not in labels
        ]
        if Label.LLAMA_CPP_RELEASE in labels and Label.LLAMA_CPP_RELEASE not in dict(_repeated_labels(content)):
            findings.append(
                f"The label {Label.LLAMA_CPP_RELEASE} is there, but version.json's llama_cpp has no release."
            )
    present = sum(bool(labels.get(name, "").strip()) for name in wanted)
    return Verdict(f"{present} of {len(wanted)} labels", findings)


def glibc(facts: ImageFacts) -> Verdict:
    """Row 16: glibc is at least MINIMUM_GLIBC, and the label names its version."""
    glibc = facts.shell.glibc if facts.shell else ""
    if not glibc:
        return Verdict("no glibc", ["getconf names no glibc version."])
    findings = []
    label = facts.image.labels.get(Label.GLIBC, "")
    if label != glibc:
        findings.append(f"The label {Label.GLIBC} is {label!r}, but the image has glibc {glibc}.")
    try:
        old = PackageVersion(glibc) < PackageVersion(MINIMUM_GLIBC)
    except InvalidVersion:
        return Verdict(glibc, [*findings, f"The glibc version {glibc!r} cannot be compared."])
    if old and not findings and facts.variant and facts.variant.old_glibc:
        excepted = f"{facts.variant.name}'s base has glibc {glibc}, older than {MINIMUM_GLIBC}: a known exception."
        return Verdict(glibc, [excepted], Status.EXCEPTION)
    if old:
        findings.append(f"glibc {glibc} is older than {MINIMUM_GLIBC}, which BodhiApp is built with.")
    return Verdict(f"glibc {glibc}", findings)


def _version_content(facts: ImageFacts) -> dict[str, Any] | str:
    """Returns the object in version.json, or a finding when there is none."""
    entry = layers.resolve(facts.files, VERSION_JSON)
    if entry is None or entry.content is None:
        return f"There is no {VERSION_JSON}."
    try:
        content = json.loads(entry.content)
    except (ValueError, RecursionError) as error:
        return f"{VERSION_JSON} is not valid JSON: {error}."
    return content if isinstance(content, dict) else f"{VERSION_JSON} is not a JSON object."


def _version_findings(facts: ImageFacts, content: Mapping[str, Any]) -> Iterator[str]:
    for key in ("version", "commit", "timestamp", "variant", "branch", "platform", "glibc"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            yield f"version.json has no text at {key!r}."
    version = None
    try:
        version = versions.parse(str(content.get("version", "")))
    except UsageError as error:
        yield f"version.json's version is wrong: {error}"
    commit = str(content.get("commit", ""))
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        yield f"version.json's commit {commit!r} is not a full commit hash."
    elif version and not commit.startswith(version.commit):
        yield f"version.json's commit {commit} is not the one of its version {version}."
    if version and content.get("timestamp") != version.timestamp:
        yield f"version.json's timestamp {content.get('timestamp')!r} is not the one of its version {version}."
    yield from _build_findings(facts, content)


def _build_findings(facts: ImageFacts, content: Mapping[str, Any]) -> Iterator[str]:
    """Checks the variant, the platform, llama.cpp and the toolkit in version.json."""
    variant = content.get("variant")
    if facts.variant and variant != facts.variant.name:
        yield f"version.json's variant is {variant!r}, but the image is {facts.variant.name!r}."
    if facts.variant and content.get("variants") != list(facts.variant.directories):
        yield f"version.json's variants are {content.get('variants')!r} and not {list(facts.variant.directories)!r}."
    if facts.platform and content.get("platform") != facts.platform.docker:
        yield f"version.json's platform is {content.get('platform')!r}, but the image is for {facts.platform.docker}."
    llama_cpp = content.get("llama_cpp")
    for key, form in (("tag", r"b\d+"), ("commit", r"[0-9a-f]{40}")):
        value = llama_cpp.get(key) if isinstance(llama_cpp, dict) else None
        if not isinstance(value, str) or not re.fullmatch(form, value):
            yield f"version.json's llama_cpp has {value!r} as its {key}."
    if isinstance(llama_cpp, dict) and not re.fullmatch(r"v\d+\.\d+\.\d+", str(llama_cpp.get("release", "v0.0.0"))):
        yield f"version.json's llama_cpp has {llama_cpp['release']!r} as its release: without one it has no such key."
    toolkit = content.get("toolkit")
    if not isinstance(toolkit, dict) or not all(isinstance(value, str) and value for value in toolkit.values()):
        yield f"version.json's toolkit is {toolkit!r}, not names with versions."


def _repeated_labels(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each label that repeats a field of version.json, with the value of the field."""
    for label, key in (
        (Label.VERSION, "version"),
        (Label.REVISION, "commit"),
        (Label.BUILD_TIMESTAMP, "timestamp"),
        (Label.BUILD_BRANCH, "branch"),
        (Label.VARIANT, "variant"),
        (Label.PLATFORM, "platform"),
        (Label.GLIBC, "glibc"),
    ):
        if isinstance(content.get(key), str):
            yield label.value, content[key]
    if isinstance(content.get("variants"), list):
        yield Label.VARIANTS.value, ",".join(map(str, content["variants"]))
    if isinstance(content.get("variant"), str) and isinstance(content.get("version"), str):
        yield Label.REF_NAME.value, f"{content['variant']}-{content['version']}"
    llama_cpp = content.get("llama_cpp")
    if isinstance(llama_cpp, dict):
        yield Label.LLAMA_CPP_TAG.value, str(llama_cpp.get("tag"))
        yield Label.LLAMA_CPP_COMMIT.value, str(llama_cpp.get("commit"))
        if "release" in llama_cpp:
            yield Label.LLAMA_CPP_RELEASE.value, str(llama_cpp["release"])
    toolkit = content.get("toolkit")
    if isinstance(toolkit, dict):
        for name, value in toolkit.items():
            yield f"{TOOLKIT_PREFIX}{name}", str(value)


def _is_rfc_3339(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return _RFC_3339.fullmatch(text) is not None
