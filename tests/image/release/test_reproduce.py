"""Two builds of one image, compared on the real engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from base_images.adapters.engine import Engine, Image
from base_images.release import reproduce
from tests.support import images

BASE = b"FROM scratch\nCOPY server /app/bin/server\nCOPY entry /usr/local/bin/entry\nCOPY other /etc/other\n"
FILES = {"server": b"server", "entry": b"entry", "other": b"other"}


@contextlib.contextmanager
def built(engine: Engine, **changes: bytes) -> Iterator[Image]:
    image_id = images.build(engine, {"Dockerfile": BASE, **FILES, **changes})
    try:
        yield engine.image(image_id)
    finally:
        engine.remove_image(image_id)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"other": b"of another day"}, []),
        ({"server": b"another"}, ["/app/bin/server has another content: 6 and 7 bytes.", "Layer 1 of 1 "]),
        ({"entry": b"another"}, ["/usr/local/bin/entry has another content: 5 and 7 bytes."]),
        (
            {"Dockerfile": BASE + b"COPY other /app/new\n"},
            ["/app/new is only in the second.", "The first has 1 layers with files below /app, the second 2."],
        ),
        (
            {"Dockerfile": BASE.replace(b"COPY server", b"COPY --chown=7:8 server")},
            ["/app/bin has mode 0755", "/app/bin/server has mode 0644 of 0:0 and 0644 of 7:8.", "Layer 1 of 1 "],
        ),
    ],
    ids=["same", "another package", "content", "content elsewhere", "new", "owner"],
)
def test_differences_in_what_is_ours(engine: Engine, changes: dict[str, bytes], found: list[str]) -> None:
    with built(engine) as first, built(engine, **changes) as second:
        sentences = list(reproduce.differences(engine, first, second))
    assert len(sentences) == len(found)
    assert all(sentence.startswith(start) for sentence, start in zip(sentences, found, strict=True))
