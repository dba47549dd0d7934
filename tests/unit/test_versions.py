from __future__ import annotations

from datetime import UTC, datetime

import pytest

from base_images import versions
from base_images.errors import RepositoryError, UsageError

COMMIT = "abc1234567890abcdef1234567890abcdef12345"


def test_a_version_is_the_commits_utc_minute_and_seven_digits() -> None:
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


def test_a_dirty_version_says_so_and_sorts_after_its_clean_one() -> None:
    clean = versions.of_commit(COMMIT, 1755699600, dirty=False)
    dirty = versions.of_commit(COMMIT, 1755699600, dirty=True)
    assert str(dirty) == "2508201420-abc1234-dirty"
    assert clean < dirty


@pytest.mark.parametrize("text", ["2508201420-abc1234", "2508201420-abc1234-dirty", "9912312359-0000000"])
def test_parsing_gives_back_what_was_written(text: str) -> None:
    assert str(versions.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "2508201420", "202512281717-abc1234", "2513201420-abc1234", "2508201420-ABC1234", "v2508201420-abc1234"],
)
def test_anything_else_is_no_version(text: str) -> None:
    with pytest.raises(UsageError, match="is not a version"):
        versions.parse(text)


def test_2099_is_the_newest_and_not_1999() -> None:
    late = versions.of_commit(COMMIT, int(datetime(2099, 12, 31, 23, 59, tzinfo=UTC).timestamp()), dirty=False)
    assert str(late) == "9912312359-abc1234"
    assert versions.parse(str(late)) == late
    assert max(versions.parse("2508201420-abc1234"), late) is late


@pytest.mark.parametrize("year", [1970, 1999, 2100])
def test_a_year_that_two_digits_cannot_say_is_an_error_and_not_a_newest_version(year: int) -> None:
    seconds = int(datetime(year, 1, 1, tzinfo=UTC).timestamp())
    with pytest.raises(RepositoryError, match=rf"abc1234 is dated {year}-01-01"):
        versions.of_commit(COMMIT, seconds, dirty=False)


def test_git_tags() -> None:
    version = versions.parse("2508201420-abc1234")
    assert version.git_tag == "base-images/v2508201420-abc1234"
    assert versions.parse_git_tag(version.git_tag) == version
    assert versions.parse_git_tag("base-images/v2508201420") is None
    assert versions.parse_git_tag("v1.0") is None


def test_image_tags() -> None:
    assert versions.image_tag("cpu", versions.parse("2508201420-abc1234")) == "cpu-2508201420-abc1234"
    assert versions.latest_tag("cuda") == "latest-cuda"
    assert versions.local_reference("cpu") == "llama-cpp-cpu:local"
