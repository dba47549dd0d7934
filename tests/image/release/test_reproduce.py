"""Two builds of one image, compared on the real engine."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.build import local
from base_images.build.inputs import Source, SourceKind
from base_images.build.local import Prepared
from base_images.build.plan import BuildPlan
from base_images.release import reproduce
from base_images.versions import Target
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


def test_no_cache_of_other_builds_is_used_or_lost(engine: Engine, cpu_image: Image, tmp_path: Path) -> None:
    name = f"test-{uuid.uuid4().hex}"
    mount = f"--mount=type=cache,id={name},target=/cache"
    recipe = tmp_path / "dockerfiles/cpu.Dockerfile"
    recipe.parent.mkdir()
    (tmp_path / ".dockerignore").touch()
    source = tmp_path / "llama.cpp"
    source.mkdir()
    plan = BuildPlan(
        variant="cpu",
        version="",
        platform=f"linux/{cpu_image.architecture}",
        dockerfile="dockerfiles/cpu.Dockerfile",
        target=Target.RUNTIME,
        arguments={},
        labels={},
        tags=(),
    )
    tree = Source(path=source, tag="", commit="", build_number=0, kind=SourceKind.PATH, dirty=False, digest="")
    prepared = Prepared(plan=plan, source=tree, notices=())

    def builds_before(number: int, *, again: bool = False) -> str:
        """Returns how many builds the image's compiler cache had seen."""
        recipe.write_text(
            f"FROM {cpu_image.tags[0]} AS runtime\nUSER root\nRUN {mount} : {name}; "
            f"cat /cache/* > /app/seen; echo {number} >> /cache/seen; touch -d @0 /app/seen /app\n"
        )
        build = reproduce.build_again if again else local.build
        made = build(engine, prepared, root=tmp_path, on_event=lambda _: None)
        try:
            return engine.probe(ContainerSpec(image=made.image_id, entrypoint=("cat", "/app/seen"))).stdout
        finally:
            engine.remove_image(made.image_id)

    try:
        assert builds_before(1) == ""
        assert builds_before(2) == "1\n"
        assert builds_before(2, again=True) == "", "the command ran again, and with another cache"
        assert builds_before(3) == "1\n2\n", "the others' cache is as it was"
    finally:
        engine.forget_build_steps(name)
