"""What `promote` and `rollback` refuse, and what `check-version` reports of a tag that was moved by hand."""

from __future__ import annotations

import json

import pytest

from base_images import versions
from base_images.adapters.registry import Repository
from base_images.errors import RegistryError
from base_images.release import promote
from base_images.release.actions import Outcome
from base_images.release.evidence import Kind
from base_images.variants import Platform
from tests.support.releases import (
    CPU,
    CUDA,
    PROVEN,
    VULKAN,
    Site,
    earn,
    labels,
    notes,
    promoted,
    prove,
    push,
    push_all,
    release,
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


def test_promotion_requires_a_device_unless_the_variant_has_a_waiver(repository: Repository) -> None:
    one = release(1)
    push_all(repository, VULKAN, one)
    prove(repository, VULKAN, one, *PROVEN)
    assert "smoke-tested without a device" in promoted(repository, one, VULKAN).reason
    assert repository.digest("latest-vulkan") is None
    prove(repository, VULKAN, one, Kind.SMOKE_ON_SOFTWARE_DEVICE)
    assert promoted(repository, one, VULKAN).outcome is Outcome.DONE


def test_fewer_platforms_than_the_table_has_are_not_promoted(repository: Repository) -> None:
    one = release(1)
    push(repository, versions.image_tag("cpu", one.version), Platform.AMD64, labels(CPU, one))
    assert "linux/arm64 is missing" in promoted(repository, one, CPU).reason
    assert repository.digest("latest-cpu") is None


def test_an_image_of_another_commit_is_not_promoted(repository: Repository) -> None:
    one, two = release(1), release(2)
    earn(repository, one)
    push_all(repository, CUDA, two, REVISION=one.commit)
    prove(repository, CUDA, two, *PROVEN)
    refused = promoted(repository, two)
    assert refused.outcome is Outcome.REFUSED
    assert f"revision is '{one.commit}' and not '{two.commit}'" in refused.reason
    [unreleased] = promote.promote(repository, CUDA, one.version, None)
    assert "no tag base-images/v" in unreleased.reason
    assert repository.digest("latest-cuda") is None


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


def test_a_tag_moved_by_hand_is_reported_and_moved_back(repository: Repository) -> None:
    one, two = release(1), release(2)
    first, second = earn(repository, one, two)
    promoted(repository, one)
    found = repository.manifest(second)
    assert found
    repository.point("latest-cuda", found.content)
    [note] = notes(repository, CUDA)
    assert note.startswith(f"latest-cuda is not {one.version}, which was made latest")
    assert promoted(repository, one).outcome is Outcome.DONE
    assert repository.digest("latest-cuda") == first


def test_an_older_commit_is_refused_and_a_future_date_reported(site: Site) -> None:
    """A commit dated before the latest one, and an image created in the future."""
    repository = site.repository
    now, before = release(20), release(10)
    [digest, _] = earn(repository, now, before)
    promoted(repository, now)
    assert "is latest and newer" in promoted(repository, before).reason
    assert repository.digest("latest-cuda") == digest
    future = release(30)
    push_all(repository, CUDA, future, CREATED="2199-01-01T00:00:00Z")
    assert "in the future: one of the" in site.done("check-version")
