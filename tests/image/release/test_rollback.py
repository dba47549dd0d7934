"""Rollback to what was latest before the first promotion."""

from __future__ import annotations

import json
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from base_images import variants
from base_images.adapters.manifest import OCI_INDEX, OCI_MANIFEST, Manifest, digest_of
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import RegistryError
from base_images.labels import Label
from base_images.release import evidence, promote
from base_images.release import status as published
from base_images.release.actions import Action, Outcome
from base_images.variants import Platform
from base_images.versions import Foreign
from tests.support.registries import Registry, front
from tests.support.releases import (
    CPU,
    CUDA,
    PREDECESSORS,
    SECONDS,
    Release,
    Site,
    checked,
    content,
    earn,
    first_word,
    gone_back,
    notes,
    promoted,
    push,
    push_foreign,
    release,
    rolled_back,
    state,
)


def test_a_rollback_to_the_predecessors_latest(site: Site) -> None:
    repository = site.repository
    one, two = site.commit(1), site.commit(2)
    site.clone.git.tag(f"base-images/v{PREDECESSORS}", one.commit)
    there = push_foreign(repository, "cpu", **{Label.VERSION: PREDECESSORS})
    repository.put_manifest(f"cpu-{PREDECESSORS}", content(repository, there))

    facts = json.loads(site.done("check-version", "--json"))
    assert facts["newest_release"] == str(two.version)
    cpu = checked(facts)
    assert (cpu["latest"]["version"], cpu["newest"], cpu["before"]) == (PREDECESSORS, None, "")
    first, second = earn(repository, one, two, variant=CPU)
    promotion = ("promote", "--variant", "cpu", "--version", str(one.version))
    before = state(repository)
    assert first_word(site.done(*promotion, "--dry-run")) == Outcome.WOULD
    assert state(repository) == before
    assert first_word(site.done(*promotion)) == Outcome.DONE
    assert repository.digest("latest-cpu") == first
    record = f"move-cpu-0000-{PREDECESSORS}"
    assert set(state(repository)) - set(before) == {record, f"move-cpu-0001-{one.version}"}
    manifest = repository.manifest(record)
    assert manifest
    told = json.loads(repository.blob(manifest.document["layers"][0]["digest"]))
    assert {**told, "at": "", "by": ""} == {
        "variant": "cpu",
        "version": PREDECESSORS,
        "rollback": False,
        "digest": there,
        "before": "",
        "by": "",
        "at": "",
    }
    assert told["by"]
    assert datetime.fromisoformat(told["at"]).tzinfo
    assert f"latest before: {PREDECESSORS}" in site.done("check-version")

    back = ("rollback", "--variant", "cpu", "--to", PREDECESSORS)
    before = state(repository)
    what = f"to {there} (latest before the first promotion; not for linux/arm64)"
    assert what in site.done(*back, "--dry-run")
    assert state(repository) == before
    done = site.done(*back)
    assert f"{PREDECESSORS} (latest before the first promotion; not for linux/arm64), before: {first}" in done
    assert repository.digest("latest-cpu") == there
    assert first_word(site.done(*back)) == Outcome.ALREADY
    cpu = checked(json.loads(site.done("check-version", "--json")))
    assert (cpu["latest"]["version"], cpu["before"]) == (PREDECESSORS, str(one.version))
    assert (cpu["newest"]["version"], cpu["newest"]["digest"]) == (str(two.version), second)
    assert cpu["newest"]["llama_cpp"] == "b11312"
    assert cpu["notes"] == [f"rolled back to {PREDECESSORS}"]
    assert "it was latest before and was rolled back" in site.refused(*promotion)
    never = site.refused("rollback", "--variant", "cpu", "--to", str(two.version))
    assert f"a rollback can only return to {PREDECESSORS}, {one.version}." in never
    assert "write a version" in site.refused("rollback", "--variant", "cpu", "--to", there[:19], code=2)

    site.done("promote", "--variant", "cpu")
    assert repository.digest("latest-cpu") == second
    assert notes(repository) == []
    assert gone_back(repository, Foreign(name=there), CPU).digest == there
    assert promote.moves(repository.tags(), "cpu")[-1].version == Foreign(name=PREDECESSORS)


UNBELIEVED = {
    "none": {},
    "nothing": {Label.VERSION: ""},
    "another grammar": {Label.VERSION: "v1.2"},
    "a digest": {Label.VERSION: "sha256:" + "0f" * 32},
    "a version that nobody published": {Label.VERSION: "9912312359-abc1234"},
    "a version of changes": {Label.VERSION: "2508201420-abc1234-dirty"},
    "the version of another image": {Label.VERSION: str(release(1).version)},
    "the predecessor's of another image": {Label.VERSION: PREDECESSORS},
}


@pytest.mark.parametrize("name", UNBELIEVED)
def test_a_rollback_by_digest_to_an_image_without_a_version(repository: Repository, name: str) -> None:
    one = release(1)
    there = push_foreign(repository, "cuda", **UNBELIEVED[name])
    push(repository, f"cuda-{PREDECESSORS}", Platform.AMD64, {"another": "image"})
    [first] = earn(repository, one)
    before = state(repository)
    assert promoted(repository, one).digest == repository.digest("latest-cuda") == first
    hexadecimal = there.removeprefix("sha256:")
    added = {f"cuda-sha256-{hexadecimal}", f"move-cuda-0000-sha256-{hexadecimal}", f"move-cuda-0001-{one.version}"}
    assert set(state(repository)) - set(before) == added
    assert repository.digest(f"cuda-sha256-{hexadecimal}") == there
    [seen] = published.look(repository, [CUDA], None)
    assert seen.before == there
    row, *_ = published.rows([seen], datetime.now(UTC))
    assert row[-1] == f"latest before: {there[:19]}"
    assert gone_back(repository, Foreign(name=there)).digest == repository.digest("latest-cuda") == there
    assert notes(repository, CUDA) == [f"rolled back to {there}"]
    assert f"return to {one.version}, {there}." in gone_back(repository, Foreign(name=PREDECESSORS)).reason


def test_a_rollback_to_an_artifact_that_is_not_an_image(repository: Repository) -> None:
    """Such as one that was pushed under the wrong tag."""
    subject = content(repository, push(repository, "x", Platform.AMD64, {}))
    manifest = Manifest(digest=digest_of(subject), media_type=OCI_MANIFEST, content=subject)
    artifact = evidence.store_document(repository, manifest, "application/x", b"{}")
    there = repository.put_manifest("latest-cuda", artifact)
    [first] = earn(repository, release(1))
    assert promoted(repository, release(1)).digest == first
    assert gone_back(repository, Foreign(name=there)).digest == repository.digest("latest-cuda") == there
    assert published.look(repository, [CUDA], None)


def test_a_rollback_to_a_version_that_was_made_latest_by_hand(repository: Repository) -> None:
    one, two = release(1), release(2)
    first, second = earn(repository, one, two)
    repository.put_manifest("latest-cuda", content(repository, first))
    assert promoted(repository, two).digest == second
    assert {tag for tag in repository.tags() if tag.startswith("move-")} == {
        f"move-cuda-0000-{one.version}",
        f"move-cuda-0001-{two.version}",
    }
    assert rolled_back(repository, one).digest == repository.digest("latest-cuda") == first
    by_hand = open_repository(f"{repository.name}-by-hand")
    first, second = earn(by_hand, one, two)
    by_hand.put_manifest("latest-cuda", content(by_hand, second))
    assert f"{two.version} is latest and newer" in promoted(by_hand, one).reason
    assert promoted(by_hand, two).outcome is Outcome.DONE
    assert [move.number for move in promote.moves(by_hand.tags(), "cuda")] == [1], "it is what was there"


def test_a_rollback_to_an_image_of_several_platforms(repository: Repository) -> None:
    """Its name comes from its images' labels, and it keeps all of them."""
    there = {}
    for number, tag in enumerate((f"cpu-{PREDECESSORS}", "latest-cpu")):
        entries = []
        for platform in CPU.platforms:
            image = push(repository, "x", platform, {Label.VERSION: PREDECESSORS, "number": str(number)})
            described = {"os": "linux", "architecture": platform.architecture}
            size = len(content(repository, image))
            entries.append({"mediaType": OCI_MANIFEST, "digest": image, "size": size, "platform": described})
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
        there[tag] = repository.put_manifest(tag, json.dumps(index).encode())
    one = release(1)
    earn(repository, one, variant=CPU)
    promoted(repository, one, CPU)
    # Two images have the same version label: the one with the tag has the name.
    done = gone_back(repository, Foreign(name=there["latest-cpu"]), CPU)
    assert done.reason.startswith(f"{there['latest-cpu']} (latest before the first promotion), before:")
    assert repository.digest("latest-cpu") == there["latest-cpu"]
    assert "was never latest" in gone_back(repository, Foreign(name=there[f"cpu-{PREDECESSORS}"]), CPU).reason


def test_a_rollback_survives_garbage_collection(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as served:
        repository = open_repository(f"{served.address}/x")
        one = release(1)
        named, nameless = (
            push_foreign(repository, variant, **label)
            for variant, label in (("cuda", {Label.VERSION: PREDECESSORS}), ("rocm", {}))
        )
        rocm = variants.find("rocm")
        earn(repository, one)
        earn(repository, one, variant=rocm)
        assert promoted(repository, one).ok
        assert promoted(repository, one, rocm).ok
        served.stop()
        collect = ["docker-registry", "garbage-collect", "--delete-untagged", str(served.configuration)]
        subprocess.run(collect, check=True, capture_output=True, timeout=SECONDS)
        served.start()
        assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == named
        back = gone_back(repository, Foreign(name=nameless), rocm)
        assert back.digest == repository.digest("latest-rocm") == nameless
        assert repository.platform_manifests("latest-rocm")


LATER = "202601010000-e118046"
CUT = {
    f"cuda-{PREDECESSORS}": [LATER],
    "move-cuda-0000-": [LATER],
    "move-cuda-0001-": [PREDECESSORS, LATER],
    "latest-cuda": [PREDECESSORS],
}
"""What a first promotion writes, in order, and what is kept if the predecessor publishes concurrently."""


@pytest.mark.parametrize("meanwhile", [False, True])
@pytest.mark.parametrize("cut", CUT)
def test_a_first_promotion_interrupted_at_any_step_is_finished_by_the_next(
    repository: Repository, served: Registry, cut: str, *, meanwhile: bool
) -> None:
    """The same command again finishes."""
    one = release(1)
    there = {PREDECESSORS: push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})}
    [first] = earn(repository, one)
    cut_off(repository, served, cut, one)
    assert repository.digest("latest-cuda") == there[PREDECESSORS]
    if meanwhile:
        there[LATER] = push_foreign(repository, "cuda", **{Label.VERSION: LATER})
    [note] = notes(repository, CUDA)
    was_made = f"latest-cuda is not {one.version}, which was made latest"
    assert note.startswith(was_made if cut == "latest-cuda" else f"lags: {one.version} is published and not promoted")
    assert promoted(repository, one).outcome is Outcome.DONE
    assert repository.digest("latest-cuda") == first
    *kept, last = promote.moves(repository.tags(), "cuda")
    assert (last.number, last.version) == (1, one.version)
    assert [(move.number, str(move.version)) for move in kept] == [
        (0, name) for name in (CUT[cut] if meanwhile else [PREDECESSORS])
    ]
    for move in kept:
        back = gone_back(repository, move.version)
        assert back.digest == repository.digest("latest-cuda") == there[str(move.version)]


def cut_off(repository: Repository, served: Registry, cut: str, released: Release) -> None:
    """Promotes through a registry that refuses tags with this prefix."""

    def refuse(method: str, path: str) -> int | None:
        return 503 if method == "PUT" and path.rpartition("/")[2].startswith(cut) else None

    with front(served.address, refuse) as address, pytest.raises(RegistryError, match=r"HTTP status 503"):
        promoted(open_repository(repository.name.replace(served.address, address)), released)


def test_a_rollback_after_an_interrupted_first_promotion(repository: Repository, served: Registry) -> None:
    """The kept record is no move yet: the rollback is the first."""
    one, two = release(1), release(2)
    there = push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})
    _, second = earn(repository, one, two)
    cut_off(repository, served, "move-cuda-0001-", one)
    push_foreign(repository, "cuda", **{Label.VERSION: LATER})
    assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == there
    assert promote.moves(repository.tags(), "cuda")[-1].tag == f"move-cuda-0001-{PREDECESSORS}-rollback"
    assert promoted(repository, two).digest == repository.digest("latest-cuda") == second


@pytest.mark.parametrize(
    "at", ["manifests/latest-cuda", "tags/list", "manifests/move-cuda-0000", "manifests/move-cuda-0001"]
)
def test_a_concurrent_first_promotion_is_not_recorded_as_the_predecessor(
    repository: Repository, served: Registry, at: str
) -> None:
    """The image that the other promotion made latest is not recorded as the predecessor's."""
    there = push_foreign(repository, "cuda", **{Label.VERSION: PREDECESSORS})
    one, two = release(1), release(2)
    _, second = earn(repository, one, two)
    between: list[str] = []

    def before(method: str, path: str) -> int | None:
        if at in path and not between:
            between.append(method)
            assert promoted(repository, one).outcome is Outcome.DONE
        return None

    with front(served.address, before) as address:
        done = promoted(open_repository(repository.name.replace(served.address, address)), two)
    assert between
    assert done.digest == repository.digest("latest-cuda") == second
    recorded = [str(move.version) for move in promote.moves(repository.tags(), "cuda")]
    assert recorded == [PREDECESSORS, str(one.version), str(two.version)]
    assert gone_back(repository, Foreign(name=PREDECESSORS)).digest == repository.digest("latest-cuda") == there


def promoted_in_the_end(name: str, released: Release) -> Action:
    """Promotes as its user does: where the registry answers 500, the same command again.

    distribution 2.8 answers 500 to one of two clients that finish an upload of the same blob at the same moment.
    """
    try:
        return promoted(open_repository(name), released)
    except RegistryError as error:
        if "HTTP status 500" not in str(error):
            raise
        return promoted_in_the_end(name, released)


def test_concurrent_promotions_end_with_the_newest_and_keep_the_predecessor(
    repository: Repository, served: Registry
) -> None:
    """Four at a time through a randomly slow registry: the first ones of a repository, and three after them."""
    dice = random.Random(7)  # noqa: S311 - not for cryptography

    def slow(method: str, path: str) -> int | None:
        if "latest-" in path or "move-" in path or "tags" in path or PREDECESSORS in path:
            time.sleep(dice.choice((0, 0.01, 0.03)))
        assert method
        return None

    with front(served.address, slow) as address:
        for number in range(4):
            where = open_repository(f"{repository.name}{number}")
            there = push_foreign(where, "cuda", **{Label.VERSION: PREDECESSORS})
            name = where.name.replace(served.address, address)
            for several in ([release(one) for one in (1, 2, 3)], [release(one) for one in (4, 5, 6)]):
                digests = earn(where, *several)
                at_once = [*several, several[-1]]
                with ThreadPoolExecutor() as pool:
                    orders = dice.sample(at_once, len(at_once))
                    done = list(pool.map(lambda one, at=name: promoted_in_the_end(at, one), orders, timeout=SECONDS))
                assert where.digest("latest-cuda") == digests[-1]
                assert {one.outcome for one in done if one.digest == digests[-1]} <= {Outcome.DONE, Outcome.ALREADY}
            kept = [move for move in promote.moves(where.tags(), "cuda") if move.number == 0]
            assert [move.version for move in kept] == [Foreign(name=PREDECESSORS)]
            assert gone_back(where, Foreign(name=PREDECESSORS)).digest == where.digest("latest-cuda") == there
