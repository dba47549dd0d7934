from __future__ import annotations

import pypi_simple

from base_images.build.package_index import package_indexes


def test_the_indexes_are_those_of_pip() -> None:
    assert package_indexes({"cert": "/x"}) == [pypi_simple.PYPI_SIMPLE_ENDPOINT]
    extra = {"extra-index-url": "https://c.example https://d.example"}
    assert package_indexes(extra) == [pypi_simple.PYPI_SIMPLE_ENDPOINT, "https://c.example", "https://d.example"]
    assert package_indexes({"index-url": "https://a.example"}) == ["https://a.example"]
