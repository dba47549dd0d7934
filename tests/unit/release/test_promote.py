"""Which move of `latest` is in effect, and why a version may not become latest: literal data, no registry."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import pytest

from base_images import variants, versions
from base_images.release import promote
from base_images.release.evidence import Attached, Kind
from base_images.release.promote import Candidate, Move
from base_images.smoke.report import Device
from base_images.variants import Variant
from base_images.versions import Foreign, Version
from tests.support import releases
from tests.support.releases import CPU, CUDA, VULKAN, Release

COMMIT = "abc1234" + "0" * 33
VERSION = versions.parse("2508201420-abc1234")
OLD, MIDDLE, NEW = (versions.parse(f"25082014{minute}-abc1234") for minute in (10, 20, 30))
REGISTRY = "ghcr.io/bodhisearch/llama.cpp"
THERE, NAMELESS = Foreign(name="202512281717-e118046"), Foreign(name="sha256:" + "0f" * 32)


def move(number: int, version: Version | Foreign) -> Move:
    return Move(variant="cpu", number=number, version=version, rollback=False)


def back(number: int, version: Version | Foreign) -> Move:
    return Move(variant="cpu", number=number, version=version, rollback=True)


def tags(*moves: Move) -> list[str]:
    return [one.tag for one in moves]


def test_a_move_round_trips_through_its_tag() -> None:
    assert move(7, MIDDLE).tag == "move-cpu-0007-2508201420-abc1234"
    assert back(12345, MIDDLE).tag == "move-cpu-12345-2508201420-abc1234-rollback"
    found = promote.moves(tags(move(7, MIDDLE), back(12345, MIDDLE)), "cpu")
    assert found == [move(7, MIDDLE), back(12345, MIDDLE)]


@pytest.mark.parametrize("version", [THERE, NAMELESS])
def test_the_image_from_before_the_first_move_has_a_valid_tag(version: Foreign) -> None:
    """A tag has at most 128 of these characters (distribution-spec, "Pulling manifests")."""
    for variant in variants.VARIANTS:
        for number, rollback in ((0, False), (99999, True)):
            first = Move(variant=variant.name, number=number, version=version, rollback=rollback)
            assert re.fullmatch(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", first.tag)
            assert promote.moves([first.tag], variant.name) == [first]
    assert move(0, THERE).tag == "move-cpu-0000-202512281717-e118046"


def test_other_tags_are_not_moves() -> None:
    others = [
        "latest-cpu",
        "cpu-2508201420-abc1234",
        "move-cuda-0001-2508201420-abc1234",
        "move-cpu-0001-2508201420-abc1234-dirty",
        "move-cpu-0001-2508201420-abc1234-rollback-2",
        "move-cpu-x-2508201420-abc1234",
        "move-cpu-0000-20251228171-e118046",
        "move-cpu-0000-202512281717-e118046-dirty",
        f"move-cpu-0000-sha256-{'0f' * 31}",
        "cpu-202512281717-e118046",
        "sha256-0000.contract",
    ]
    assert promote.moves(others, "cpu") == []


COUNTS = {
    "one after the other": ([move(1, OLD), move(2, MIDDLE)], move(2, MIDDLE)),
    "the ninth and the tenth thousand": ([move(9999, OLD), move(10000, MIDDLE)], move(10000, MIDDLE)),
    "two that did not know of each other": ([move(1, OLD), move(2, NEW), move(2, MIDDLE)], move(2, NEW)),
    # The writer of the third had seen OLD's second and not NEW's.
    "one that knew of one of two": ([move(1, OLD), move(2, OLD), move(2, NEW), move(3, MIDDLE)], move(2, NEW)),
    "a rollback": ([move(1, OLD), move(2, NEW), back(3, OLD)], back(3, OLD)),
    "a rollback and a promotion at once": ([move(1, OLD), back(2, OLD), move(2, NEW)], back(2, OLD)),
    "a promotion after a rollback": ([move(1, OLD), move(2, NEW), back(3, OLD), move(4, MIDDLE)], move(4, MIDDLE)),
    "two after a rollback": ([move(1, NEW), back(2, OLD), move(3, MIDDLE), move(4, OLD)], move(3, MIDDLE)),
    "two rollbacks at once": ([move(1, OLD), move(2, NEW), back(3, OLD), back(3, MIDDLE)], back(3, MIDDLE)),
    "what was there before": ([move(0, THERE), move(0, NAMELESS), move(1, OLD)], move(1, OLD)),
    "what was there before and newer": ([move(0, NEW), move(1, OLD)], move(1, OLD)),
    "a rollback to what was there before": ([move(0, THERE), move(1, OLD), back(2, THERE)], back(2, THERE)),
    "a promotion after it": ([move(0, NAMELESS), move(1, OLD), back(2, NAMELESS), move(3, MIDDLE)], move(3, MIDDLE)),
    "a rollback to it and to a version at once": (
        [move(0, THERE), move(1, OLD), move(2, NEW), back(3, THERE), back(3, OLD)],
        back(3, OLD),
    ),
    "a rollback, forward": ([move(1, OLD), move(2, NEW), back(3, OLD), back(4, NEW)], back(4, NEW)),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_order_of_the_same_records_has_the_same_winner(name: str) -> None:
    records, winner = COUNTS[name]
    for order in itertools.permutations(records):
        assert promote.moves(tags(*order), "cpu")[-1] == winner


def test_promotions_alone_never_go_backwards_however_they_interleave() -> None:
    """Each reads the records, then writes its own with the next number, in every order of those six steps."""
    steps = itertools.permutations([OLD, OLD, MIDDLE, MIDDLE, NEW, NEW])
    for order in set(steps):
        records: list[Move] = []
        read: dict[versions.Version, list[Move]] = {}
        latest: Version | Foreign = Foreign(name="202512281717-e118046")
        for version in order:
            if version not in read:
                read[version] = list(records)
                continue
            known = promote.moves(tags(*read[version]), "cpu")
            if known and known[-1].version > version:
                continue  # refused
            records.append(move(max((one.number for one in known), default=0) + 1, version))
            counts = promote.moves(tags(*records), "cpu")[-1].version
            assert counts >= latest
            latest = counts
        assert latest == NEW


def test_a_version_that_was_rolled_back_is_not_promoted_again() -> None:
    found = promote.moves(tags(move(1, OLD), move(2, NEW), back(3, OLD)), "cpu")
    assert promote._was_left(found, NEW)
    assert not promote._was_left(found, OLD)
    assert not promote._was_left(found, MIDDLE)
    at_once = promote.moves(tags(move(1, OLD), move(2, NEW), back(2, OLD)), "cpu")
    assert promote._was_left(at_once, NEW)
    again = promote.moves(tags(*found, back(4, NEW)), "cpu")
    assert not promote._was_left(again, NEW)
    assert promote._was_left(again, OLD)
    over = promote.moves(tags(*found, move(4, versions.parse("2509010000-abc1234"))), "cpu")
    assert not promote._was_left(over, OLD), "it was replaced by a newer one, not left by a rollback"


def candidate(variant: Variant, platform: str, reports: dict[Kind, bool], **changed: str) -> Candidate:
    image = releases.labels(variant, Release(version=VERSION, commit=COMMIT), **changed)
    attached = {
        kind: Attached(
            evidence=releases.report(
                f"{REGISTRY}@sha256:1", platform, kind, variant=variant.name, version=VERSION, ok=ok
            ),
            digest="sha256:2",
        )
        for kind, ok in reports.items()
    }
    return Candidate(platform=platform, digest="sha256:1", labels=image, reports=attached)


PROVEN = {Kind.CONTRACT: True, Kind.SMOKE: True}


def refusals(variant: Variant, *candidates: Candidate, commit: str = COMMIT, repository: str = REGISTRY) -> list[str]:
    found = {one.platform: one for one in candidates}
    return promote.refusals(variant, VERSION, commit, found, repository=repository)


def test_a_version_with_reports_for_every_platform_is_not_refused() -> None:
    assert refusals(CPU, *(candidate(CPU, platform.docker, PROVEN) for platform in CPU.platforms)) == []
    assert refusals(CUDA, candidate(CUDA, "linux/amd64", PROVEN)) == [], "its waiver is in the table"
    rebuilt = {**PROVEN, Kind.REPRODUCIBLE: False}
    assert refusals(CUDA, candidate(CUDA, "linux/amd64", rebuilt)) == [], "another build is another matter"


def test_an_unpublished_version_is_refused() -> None:
    assert refusals(CUDA) == [f"{REGISTRY} has no cuda-2508201420-abc1234: publish it first."]


def test_a_missing_platform_is_refused() -> None:
    assert refusals(CPU, candidate(CPU, "linux/amd64", PROVEN)) == ["linux/arm64 is missing: publish it first."]


REFUSED = {
    "another commit": (PROVEN, {"REVISION": "f" * 40}, "its label org.opencontainers.image.revision is 'ffff"),
    "another version": (PROVEN, {"VERSION": "2508201420-abc1234-dirty"}, "and not '2508201420-abc1234'"),
    "another variant": (PROVEN, {"VARIANT": "cpu"}, "its label bodhi.variant is 'cpu' and not 'cuda'"),
    "bases of packages": (PROVEN, {"BUILD_ORIGIN": "packages"}, "its bases are from 'packages'"),
    "no contract": ({Kind.SMOKE: True}, {}, "no contract report is attached: run `invoke check-image`"),
    "no smoke": ({Kind.CONTRACT: True}, {}, "no smoke report is attached: run `invoke smoke`"),
    "contract failed": ({**PROVEN, Kind.CONTRACT: False}, {}, "its report contract says that it failed"),
    "smoke failed": ({**PROVEN, Kind.SMOKE: False}, {}, "its report smoke says that it failed"),
    "the device's smoke failed": (
        {**PROVEN, Kind.SMOKE_ON_DEVICE: False},
        {},
        "its report smoke-on-device says that it failed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_names_its_platform(name: str) -> None:
    reports, changed, reason = REFUSED[name]
    [told] = refusals(CUDA, candidate(CUDA, "linux/amd64", reports, **changed))
    assert told.startswith("linux/amd64: ")
    assert reason in told


REFUSING = "cpu/llama-server refuses --no-mmap, which BodhiApp passes: error: invalid argument: --no-mmap"


@pytest.mark.parametrize(
    ("kind", "report", "said"),
    [
        (
            Kind.CONTRACT,
            {"rows": [{"number": 1, "status": "pass"}, {"number": 18, "status": "fail", "findings": [REFUSING]}]},
            f"its report contract says that it failed: row 18, {REFUSING}",
        ),
        (
            Kind.SMOKE,
            {"servers": [{"name": "as BodhiApp, Q8_0", "checks": [{"name": "starts", "status": "fail", "seen": "x"}]}]},
            "its report smoke says that it failed: as BodhiApp, Q8_0, starts: x",
        ),
        (Kind.CONTRACT, {"rows": [{"status": "pass"}]}, "its report contract says that it failed."),
        (Kind.SMOKE, {"servers": "none"}, "its report smoke says that it failed."),
    ],
)
def test_a_refusal_names_the_first_failure(kind: Kind, report: dict[str, Any], said: str) -> None:
    proven = candidate(CUDA, "linux/amd64", {**PROVEN, kind: False})
    failed = dataclasses.replace(proven.reports[kind].evidence, report=report)
    reports = {**proven.reports, kind: dataclasses.replace(proven.reports[kind], evidence=failed)}
    [told] = refusals(CUDA, dataclasses.replace(proven, reports=reports))
    assert told == f"linux/amd64: {said}"


def test_all_refusals_are_returned_at_once() -> None:
    told = refusals(CPU, candidate(CPU, "linux/arm64", {}, REVISION="f" * 40, BUILD_ORIGIN="packages"))
    assert len(told) == 5
    assert told[0] == "linux/amd64 is missing: publish it first."


def test_bases_from_packages_are_accepted_on_loopback_alone() -> None:
    rehearsed = candidate(CUDA, "linux/amd64", PROVEN, BUILD_ORIGIN="packages")
    assert refusals(CUDA, rehearsed, repository="127.0.0.1:5000/llama.cpp") == []
    assert len(refusals(CUDA, rehearsed, repository="127.0.0.1.example.org:5000/llama.cpp")) == 1


def test_the_device_policy_of_the_variants() -> None:
    without = dataclasses.replace(CUDA, device_waiver="")
    [reason] = refusals(without, candidate(without, "linux/amd64", PROVEN))
    assert reason == "linux/amd64: it was smoke-tested without a device, which cuda may not be promoted on."
    for kind in (Kind.SMOKE_ON_DEVICE, Kind.SMOKE_ON_SOFTWARE_DEVICE):
        seen = {Kind.CONTRACT: True, kind: True}
        assert refusals(without, candidate(without, "linux/amd64", seen)) == []
    told = refusals(VULKAN, *(candidate(VULKAN, platform.docker, PROVEN) for platform in VULKAN.platforms))
    assert len(told) == len(VULKAN.platforms)


def test_the_smoke_level_is_the_best_device() -> None:
    def level(*kinds: Kind) -> Device | None:
        return promote.smoke_level(candidate(CUDA, "linux/amd64", dict.fromkeys(kinds, True)).reports)

    assert level(Kind.CONTRACT) is None
    assert level(Kind.SMOKE) is Device.NONE
    assert level(Kind.SMOKE, Kind.SMOKE_ON_SOFTWARE_DEVICE) is Device.SOFTWARE
    assert level(*Kind) is Device.HOST
