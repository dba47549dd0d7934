from __future__ import annotations

import re

import pytest

from base_images import settings, variants
from base_images.build import uncached

RECIPE = """\
ARG NODE_VERSION=24
FROM docker.io/node:$NODE_VERSION AS web
RUN npm ci
FROM ubuntu AS build
RUN --mount=type=cache,id=a-cache,target=/c make
from build
"""


def test_every_command_of_a_mark_is_its_own_and_nothing_else_changes() -> None:
    marked = uncached.marked(RECIPE, "m1")
    shell = 'SHELL ["/usr/bin/env", "BASE_IMAGES_UNCACHED=m1", "/bin/sh", "-c"]\n'
    assert marked.count(shell) == 3
    assert uncached.variable("m1") in shell
    assert "--mount=type=cache,id=a-cache-m1,target=/c" in marked
    assert marked.replace(shell, "").replace("a-cache-m1", "a-cache") == RECIPE


@pytest.mark.parametrize("variant", variants.VARIANTS, ids=lambda variant: variant.name)
def test_every_stage_and_cache_of_our_recipes_is_marked(variant: variants.Variant) -> None:
    marked = uncached.marked((settings.ROOT / variant.dockerfile).read_text(encoding="utf-8"), "m1")
    lines = marked.splitlines()
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert stages
    assert all(lines[number + 1].startswith("SHELL ") for number in stages)
    assert set(re.findall(r"type=cache,id=([\w-]+)", marked)) == {"llama-cpp-ccache-m1"}
