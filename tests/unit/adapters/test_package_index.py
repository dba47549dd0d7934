"""The package indexes of pip's settings."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pypi_simple

from base_images.adapters.package_index import package_indexes, sdists
from tests.support.sdists import index, write


def test_the_indexes_are_those_of_pip() -> None:
    assert package_indexes({"cert": "/x"}) == [pypi_simple.PYPI_SIMPLE_ENDPOINT]
    extra = {"extra-index-url": "https://c.example https://d.example"}
    assert package_indexes(extra) == [pypi_simple.PYPI_SIMPLE_ENDPOINT, "https://c.example", "https://d.example"]
    assert package_indexes({"index-url": "https://a.example"}) == ["https://a.example"]


def test_the_first_index_that_has_a_version_wins(tmp_path: Path) -> None:
    for place, names in {"one": ["x-1.tar.gz"], "two": ["x-1.tar.gz", "x-2.tar.gz"]}.items():
        for name in names:
            write(tmp_path / place / name, place, {"PKG-INFO": place})
    with (
        index(tmp_path / "one", {"x-1.tar.gz": "2026-10-10T12:00:00Z"}) as one,
        index(tmp_path / "two", dict.fromkeys(("x-1.tar.gz", "x-2.tar.gz"), "2026-10-11T12:00:00Z")) as two,
    ):
        found = sdists("x", [f"{one.url}/simple/", f"{two.url}/simple/", "http://127.0.0.1:1/simple/", "file:///x"])
        assert {version: sdist.url for version, sdist in found.sdists.items()} == {
            "1": f"{one.url}/x-1.tar.gz",
            "2": f"{two.url}/x-2.tar.gz",
        }
        assert found.sdists["1"].uploaded == datetime(2026, 10, 10, 12, tzinfo=UTC)
        assert (found.hosts, found.problems) == (["127.0.0.1"] * 2, ["127.0.0.1: ConnectionError"])
        assert sdists("y", [f"{one.url}/simple/"]).problems == ["127.0.0.1: NoSuchProjectError"]
