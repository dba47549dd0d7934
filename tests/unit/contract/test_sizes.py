"""What an image stores above its base, and what grew since another image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

import pytest

from base_images import settings
from base_images.contract import sizes
from base_images.contract.layers import Entry, Kind
from base_images.contract.sizes import LayerSize, Sizes
from base_images.variants import VARIANTS, Variant

APT = "RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 curl ca-certificates"
HISTORY = (
    "/bin/sh -c #(nop) ADD file:1 in /",
    "ARG RUNTIME_EXTRA_PACKAGES=",
    f"RUN |1 RUNTIME_EXTRA_PACKAGES= /bin/sh -c {APT.removeprefix('RUN ')}     ${{X}} # buildkit",
    "COPY /payload/ / # buildkit",
    "WORKDIR /app",
    "LABEL a=b",
    'ENTRYPOINT ["/entry"]',
)


def file(path: str, size: int, inode: str = "") -> Entry:
    return Entry(path=path, kind=Kind.FILE, mode=0o644, uid=0, gid=0, size=size, inode=inode or path)


def of(*layers: tuple[str, Mapping[str, int]]) -> Sizes:
    return Sizes(
        layers=tuple(LayerSize(command=command, size=sum(files.values()), files=files) for command, files in layers)
    )


def test_layers_have_their_instructions_their_bytes_and_their_large_files() -> None:
    payload = (file("/app/a.so", 300_000), file("/app/cpu/a.so", 300_000, "/app/a.so"), file("/app/small", 99_999))
    found = sizes.of_layers([(file("/usr/lib/b.so", 5),), payload, ()], HISTORY)
    assert [(layer.command, layer.size, layer.files) for layer in found.layers] == [
        (APT[:60], 5, {}),
        ("COPY /payload/ /", 399_999, {"/app/a.so": 300_000}),
        ("WORKDIR /app", 0, {}),
    ]
    assert found.added == 400_004


@pytest.mark.parametrize(
    ("created_by", "instruction"),
    [
        ("COPY /payload/ / # buildkit", "COPY /payload/ /"),
        (
            "RUN /usr/bin/env BASE_IMAGES_UNCACHED=m1 /bin/sh -c apt-get update     && x # buildkit",
            "RUN apt-get update && x",
        ),
        ("RUN |1 A=b /bin/sh -c echo /bin/sh -c # buildkit", "RUN echo /bin/sh -c"),
    ],
)
def test_a_layer_is_named_by_its_instruction(created_by: str, instruction: str) -> None:
    assert sizes.commands([created_by, "ENV A=b"], 2) == ["", instruction]


def test_the_base_is_what_is_below_our_recipe_in_the_history() -> None:
    assert sizes.of_ours(HISTORY) == 3
    assert sizes.of_ours(("RUN /bin/sh -c install-toolkit # buildkit", "COPY a b # buildkit", *HISTORY)) == 3
    assert sizes.of_ours(HISTORY[:1]) is None


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_every_recipe_begins_with_the_argument_that_its_base_is_told_by(variant: Variant) -> None:
    text = (settings.ROOT / variant.dockerfile).read_text(encoding="utf-8")
    _, _, base = text.partition(" AS base\n")
    first = next(line for line in base.splitlines() if line and not line.startswith("#"))
    assert first.startswith(sizes._FIRST_OF_OURS)


@pytest.mark.parametrize("history", [(), ("COPY /payload/ / # buildkit",)])
def test_a_layer_whose_instruction_is_not_in_the_history_has_no_name(history: tuple[str, ...]) -> None:
    found = sizes.of_layers([(), ()], history)
    assert [layer.command for layer in found.layers] == ["", "COPY /payload/ /" if history else ""]


def test_what_grew_is_named_by_layer_and_by_file_the_most_first() -> None:
    before = of(
        ("RUN apt", {"/usr/lib/x.so": 1_000_000}),
        ("COPY /payload/ /", {"/app/libllama.so.0.4.0": 4_300_000, "/app/libggml.so": 700_000, "/app/same": 900_000}),
    )
    now = of(
        ("RUN apt", {"/usr/lib/x.so": 900_000}),
        (
            "COPY /payload/ /",
            {
                "/app/libllama.so.0.5.0": 4_700_000,
                "/app/libggml.so": 900_000,
                "/app/same": 900_000,
                "/app/new.so": 2_000_000,
                "/app/another.so": 150_000,
                "/app/third.so": 140_000,
            },
        ),
    )
    [sentence] = sizes.growth(before, now)
    assert sentence == (
        "Layer 2 of 2 above the base, COPY /payload/ /, has 2.9 MB more: /app/new.so is new (2.0 MB), "
        "/app/libllama.so.0.5.0 0.4 MB more (4.7 MB), /app/libggml.so 0.2 MB more (0.9 MB), 2 more files."
    )
    assert not list(sizes.growth(now, now))


def test_a_changed_instruction_is_compared_with_the_layer_at_its_place() -> None:
    before, now = of(("RUN old", {"/a": 1_000_000})), of(("RUN new", {"/a": 1_500_000}))
    assert list(sizes.growth(before, now)) == [
        "Layer 1 of 1 above the base, RUN new, has 0.5 MB more: /a 0.5 MB more (1.5 MB)."
    ]
    more = of(("RUN new", {"/a": 1_500_000}), ("", {"/b": 100_000}))
    assert [found.split(":")[0] for found in sizes.growth(before, more)] == [
        "Layer 1 of 2 above the base, RUN new, has 1.5 MB more",
        "Layer 2 of 2 above the base, of an unknown command, has 0.1 MB more",
    ]


def test_growth_of_small_files_is_said_and_less_than_that_is_not() -> None:
    def small(size: int) -> Sizes:
        return Sizes(layers=(LayerSize(command="RUN x", size=size, files={}),))

    assert list(sizes.growth(small(0), small(100_000))) == [
        "Layer 1 of 1 above the base, RUN x, has 0.1 MB more: in small files."
    ]
    assert not list(sizes.growth(small(0), small(99_999)))


def test_a_report_keeps_the_sizes() -> None:
    known = of(("COPY /payload/ /", {"/app/a.so": 300_000}))
    assert sizes.parse(json.loads(json.dumps(dataclasses.asdict(known)))) == known


@pytest.mark.parametrize(
    "value",
    [
        *(None, 7, "x", [], {}, {"layers": 7}, {"layers": [7]}),
        {"layers": [{"command": "x", "size": "y", "files": {}}]},
        {"layers": [{"command": "x", "size": 1, "files": []}]},
        {"layers": [{"command": "x", "size": 1, "files": {"a": None}}]},
    ],
)
def test_a_report_without_sizes_or_with_other_things_there_has_none(value: object) -> None:
    assert sizes.parse(value) is None
