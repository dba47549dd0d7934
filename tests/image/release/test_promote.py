"""What `promote` and `rollback` refuse, and what `check-version` reports of a tag that was moved by hand."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from base_images import versions
from base_images.adapters.manifest import Manifest
from base_images.adapters.registry import Repository
from base_images.errors import RegistryError
from base_images.release import evidence, promote
from base_images.release.actions import Outcome
from base_images.release.evidence import Kind
from tests.support.releases import (
    CPU,
    CUDA,
    PROVEN,
    Site,
    docker,
    earn,
    promoted,
    prove,
    push_all,
    release,
    report,
    rolled_back,
    state,
)


def test_a_version_without_its_reports_is_not_promoted(repository: Repository) -> None:
    one = release(1)
    push_all(repository, CUDA, one)
    reasons = []
    for kind in (None, *PROVEN):
        if kind:
            prove(repository, CUDA, one, kind)
        action = promoted(repository, one)
        reasons.append(action.reason.splitlines())
        assert action.ok is (kind is PROVEN[-1])
    assert [len(reason) for reason in reasons] == [2, 1, 1]
    assert "no contract report" in reasons[0][0]
    assert "no smoke report" in reasons[1][0]
    two = release(2)
    push_all(repository, CUDA, two)
    prove(repository, CUDA, two, *PROVEN)
    prove(repository, CUDA, two, Kind.SMOKE, ok=False)
    before = state(repository)
    assert "smoke says that it failed" in promoted(repository, two).reason
    assert state(repository) == before
    prove(repository, CUDA, two, Kind.SMOKE)
    assert promoted(repository, two).outcome is Outcome.DONE


def test_a_report_of_another_image_is_refused(repository: Repository) -> None:
    one, two = release(1), release(2)
    earn(repository, one)
    push_all(repository, CUDA, two)
    [old] = repository.platform_manifests(versions.image_tag("cuda", one.version)).values()
    [new] = repository.platform_manifests(versions.image_tag("cuda", two.version)).values()
    for kind in PROVEN:
        manifest = repository.manifest(f"{old.digest.replace(':', '-')}.{kind}")
        assert manifest
        repository.put_manifest(f"{new.digest.replace(':', '-')}.{kind}", manifest.content)
    with pytest.raises(RegistryError, match="is of another image, or of another kind"):
        promoted(repository, two)


def attach(repository: Repository, image: Manifest, kind: Kind, document: dict[str, Any]) -> None:
    """Attaches a report with another client."""
    artifact, content = evidence.ARTIFACT_TYPE.format(kind=kind), json.dumps(document).encode()
    stored = evidence.store_document(repository, image, artifact, content)
    repository.point(evidence._tag(image.digest, kind), stored)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"platform": "linux/arm64"}, "its layers are others than the report's"),
        (
            {"version": "2508201400-abc1234"},
            "its version is '2508201401-0000001' and the report's '2508201400-abc1234'",
        ),
        ({"variant": "cuda"}, "its variant is 'cpu' and the report's 'cuda'"),
        ({"diff_ids": ("sha256:1",)}, "its layers are others than the report's"),
    ],
)
def test_a_report_counts_for_the_image_that_it_names_alone(
    repository: Repository, change: dict[str, Any], told: str
) -> None:
    one = release(1)
    digest = push_all(repository, CPU, one, layers=True)
    [(platform, image), _] = repository.platform_manifests(digest).items()
    made = report(
        f"{repository.name}@{digest}",
        platform,
        Kind.SMOKE,
        variant="cpu",
        version=one.version,
        diff_ids=tuple(repository.configuration(image)["rootfs"]["diff_ids"]),
    )
    assert evidence.attach(repository, made).evidence.subject == f"{repository.name}@{image.digest}"
    with pytest.raises(RegistryError, match=re.escape(told)):
        evidence.attach(repository, dataclasses.replace(made, **change))
    attach(repository, image, Kind.SMOKE, {**dataclasses.asdict(made), "subject": image.digest, **change})
    with pytest.raises(RegistryError, match="is of another image: "):
        promoted(repository, one, CPU)


@pytest.mark.parametrize(
    ("ok", "inner", "told"),
    [
        ("no", {"ok": True}, "is not a report that this version can read"),
        (1, {"ok": True}, "is not a report that this version can read"),
        (True, {"ok": False}, "says that it failed"),
        (True, {}, "says that it failed"),
        (True, {"ok": True, "rows": [{"status": "fail", "number": 7, "findings": ["x"]}]}, "it failed: row 7, x"),
    ],
)
def test_only_a_report_that_says_so_throughout_is_a_pass(
    repository: Repository, ok: Any, inner: dict[str, Any], told: str
) -> None:
    one = release(1)
    earn(repository, one)
    [image] = repository.platform_manifests(versions.image_tag("cuda", one.version)).values()
    name = f"{repository.name}@{image.digest}"
    made = report(name, "linux/amd64", Kind.CONTRACT, variant="cuda", version=one.version)
    attach(repository, image, Kind.CONTRACT, {**dataclasses.asdict(made), "ok": ok, "report": inner})
    try:
        said = promoted(repository, one).reason
    except RegistryError as error:
        said = str(error)
    assert told in said
    assert repository.digest("latest-cuda") is None


def test_an_image_whose_signatures_are_wrong_is_refused(repository: Repository) -> None:
    one = release(1)
    [digest] = earn(repository, one)
    asked: list[str] = []

    def unsigned(image: str) -> list[str]:
        asked.append(image)
        return ["cosign does not verify it."]

    [action] = promote.promote(repository, CUDA, one.version, one.commit, unsigned=unsigned)
    assert (action.outcome, action.reason, asked) == (Outcome.REFUSED, "cosign does not verify it.", [digest])
    assert repository.digest("latest-cuda") is None


def test_a_tag_that_nobody_reviewed_is_neither_published_nor_promoted(site: Site, tmp_path: Path) -> None:
    """It is annotated, on a commit of a side branch, here alone and then at the remote."""
    site.clone.git.switch("--quiet", "--create", f"side-{tmp_path.name}")
    try:
        one = site.commit(1, tagged=False)
        site.build(one)
        site.clone.git.tag("--annotate", "--message=x", one.version.git_tag)
        for command in (("publish", "--variant", "cpu"), ("promote", "--dry-run"), ("check-version", "--released")):
            assert f"{one.version} is not released: origin has no tag" in site.refused(*command, code=7)
        site.clone.git.push("origin", "main", one.version.git_tag)
        for command in (("publish", "--variant", "cpu"), ("promote", "--dry-run"), ("check-version", "--released")):
            assert "that is not a commit of origin/main" in site.refused(*command, code=7)
        assert state(site.repository) == {}
        docker("rmi", site.local(one))
    finally:
        site.clone.git.switch("--quiet", "main")


def test_a_rollback_is_possible_only_to_a_former_latest(repository: Repository) -> None:
    one, two, three = release(1), release(2), release(3)
    first, second, third = earn(repository, one, two, three)
    assert "was never latest: a rollback can only return to none." in rolled_back(repository, one).reason
    for released in (one, three):
        assert promoted(repository, released).outcome is Outcome.DONE
    assert f"return to {one.version}, {three.version}." in rolled_back(repository, two).reason
    assert promoted(repository, two).outcome is Outcome.REFUSED
    assert repository.digest("latest-cuda") == third
    assert rolled_back(repository, one).digest == repository.digest("latest-cuda") == first
    assert "was rolled back" in promoted(repository, three).reason
    # The fix that follows a rollback.
    assert promoted(repository, two).digest == repository.digest("latest-cuda") == second
    assert rolled_back(repository, three).digest == repository.digest("latest-cuda") == third
    # Other variants are unaffected.
    assert {tag for tag in repository.tags() if tag.startswith("latest-")} == {"latest-cuda"}


def test_a_changed_latest_image_is_reported(repository: Repository) -> None:
    one = release(1)
    [digest] = earn(repository, one)
    promoted(repository, one)
    found = repository.manifest(digest)
    assert found
    tag = versions.image_tag("cuda", one.version)
    other = repository.put_manifest(tag, json.dumps({**found.document, "annotations": {"x": "y"}}).encode())
    refused = promoted(repository, one)
    assert refused.outcome is Outcome.REFUSED
    assert f"made latest as {digest} and is {other} now" in refused.reason
    assert repository.digest("latest-cuda") == digest
