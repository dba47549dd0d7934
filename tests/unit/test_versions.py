from __future__ import annotations

from datetime import UTC, datetime

import pytest

from base_images import versions
from base_images.errors import RepositoryError, UsageError
from base_images.versions import Foreign, Target, Version

COMMIT = "abc1234567890abcdef1234567890abcdef12345"
PREDECESSORS = "202512281717-e118046"
DIGEST = "sha256:" + "0f" * 32


def test_a_version_has_the_commits_utc_minute_and_seven_digits() -> None:
    seconds = int(datetime(2025, 8, 20, 14, 20, 59, tzinfo=UTC).timestamp())
    assert str(versions.of_commit(COMMIT, seconds, dirty=False)) == "2508201420-abc1234"


def test_the_machines_time_zone_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    import time  # noqa: PLC0415

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert versions.of_commit(COMMIT, 1755699600, dirty=False).timestamp == "2508201420"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_dirty_version_sorts_after_the_clean_one() -> None:
    clean = versions.of_commit(COMMIT, 1755699600, dirty=False)
    dirty = versions.of_commit(COMMIT, 1755699600, dirty=True)
    assert str(dirty) == "2508201420-abc1234-dirty"
    assert clean < dirty


@pytest.mark.parametrize("text", ["2508201420-abc1234", "2508201420-abc1234-dirty", "9912312359-0000000"])
def test_parsing_is_the_inverse_of_formatting(text: str) -> None:
    assert str(versions.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "2508201420", "202512281717-abc1234", "2513201420-abc1234", "2508201420-ABC1234", "v2508201420-abc1234"],
)
def test_other_text_is_not_a_version(text: str) -> None:
    with pytest.raises(UsageError, match="is not a version"):
        versions.parse(text)


def test_2099_is_the_newest_and_not_1999() -> None:
    late = versions.of_commit(COMMIT, int(datetime(2099, 12, 31, 23, 59, tzinfo=UTC).timestamp()), dirty=False)
    assert str(late) == "9912312359-abc1234"
    assert versions.parse(str(late)) == late
    assert max(versions.parse("2508201420-abc1234"), late) is late


@pytest.mark.parametrize("year", [1970, 1999, 2100])
def test_a_year_outside_this_century_is_an_error(year: int) -> None:
    seconds = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    with pytest.raises(RepositoryError, match=rf"abc1234 is dated {year}-01-01"):
        versions.of_commit(COMMIT, seconds, dirty=False)


@pytest.mark.parametrize("seconds", [2**40, 2**63, -(2**70), 10**400])
def test_a_time_that_no_calendar_has_is_an_error(seconds: int) -> None:
    with pytest.raises(RepositoryError, match=r"abc1234 is dated -?[0-9]+ seconds after 1970"):
        versions.of_commit(COMMIT, seconds, dirty=False)


@pytest.mark.parametrize("name", [PREDECESSORS, "999912312359-fffffff", DIGEST])
def test_a_foreign_version_is_older_than_every_version(name: str) -> None:
    foreign, oldest = Foreign(name=name), versions.parse("0001010000-0000000")
    assert foreign < oldest
    assert foreign <= oldest
    assert oldest > foreign
    assert not oldest < foreign
    assert not foreign > oldest
    assert max(foreign, oldest, Foreign(name="0")) is oldest
    some: list[Version | Foreign] = [oldest, foreign, Foreign(name="0")]
    assert sorted(some) == [Foreign(name="0"), foreign, oldest]


@pytest.mark.parametrize("text", ["2508201420-abc1234", PREDECESSORS, DIGEST])
def test_versions_and_digests_can_have_been_latest(text: str) -> None:
    assert str(versions.parse_any(text)) == text
    assert isinstance(versions.parse_any(text), Foreign) is (text != "2508201420-abc1234")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "latest",
        "2508201420-abc1234-dirty",
        f"{PREDECESSORS}-dirty",
        "20251228171-abc1234",
        DIGEST[:19],
        DIGEST + "0",
        DIGEST.replace(":", "-"),
        DIGEST.upper(),
        "2513201420-abc1234",
        "\u0662" * 12 + "-abc1234",
    ],
)
def test_other_text_cannot_have_been_latest(text: str) -> None:
    with pytest.raises(UsageError, match=r"cannot have been latest: write a version, such as"):
        versions.parse_any(text)
    assert versions.parse_label(text) is None


def test_a_digest_in_a_label_is_not_a_version() -> None:
    assert versions.parse_label(DIGEST) is None
    assert versions.parse_label(PREDECESSORS) == Foreign(name=PREDECESSORS)


def test_git_tags() -> None:
    version = versions.parse("2508201420-abc1234")
    assert version.git_tag == "base-images/v2508201420-abc1234"
    assert versions.parse_git_tag(version.git_tag) == version
    assert versions.parse_git_tag("base-images/v2508201420") is None
    assert versions.parse_git_tag("v1.0") is None
    assert versions.parse_git_tag(f"base-images/v{PREDECESSORS}") is None


def test_an_image_of_operations_is_beside_its_image_and_is_no_version() -> None:
    version, operations = versions.parse("2508201420-abc1234"), Target.OPERATIONS
    assert versions.image_tag("cpu", version, operations) == "cpu-2508201420-abc1234-operations"
    assert versions.platform_tag("cpu", version, "arm64", operations) == "cpu-2508201420-abc1234-operations-arm64"
    assert versions.local_reference("cpu", operations) == "llama-cpp-cpu:local-operations"
    assert versions.parse_image_tag("cpu-2508201420-abc1234-operations") is None


def test_image_tags() -> None:
    assert versions.image_tag("cpu", versions.parse("2508201420-abc1234")) == "cpu-2508201420-abc1234"
    assert versions.image_tag("cpu", Foreign(name=PREDECESSORS)) == f"cpu-{PREDECESSORS}"
    assert versions.image_tag("cpu", Foreign(name=DIGEST)) == f"cpu-sha256-{'0f' * 32}"
    assert versions.parse_image_tag("cpu-2508201420-abc1234") == ("cpu", versions.parse("2508201420-abc1234"))
    for foreign in (PREDECESSORS, DIGEST):
        assert versions.parse_image_tag(versions.image_tag("cpu", Foreign(name=foreign))) is None
    assert versions.latest_tag("cuda") == "latest-cuda"
    assert versions.local_reference("cpu") == "llama-cpp-cpu:local"
