from __future__ import annotations

from pathlib import Path

import pytest

from base_images import settings, variants
from base_images.errors import UsageError
from base_images.variants import Platform
from tests.support import documents


def test_every_variant_has_a_cpu_directory() -> None:
    # BodhiApp falls back to it in every image (contract row 1, docs/contract.md).
    for variant in variants.VARIANTS:
        assert variant.directories[0] == variant.name
        assert variant.directories[-1] == "cpu"


def test_platforms() -> None:
    assert {variant.name for variant in variants.VARIANTS if Platform.ARM64 in variant.platforms} == {
        "cpu",
        "vulkan",
        "cann",
    }
    assert Platform.ARM64.architecture == "arm64"
    assert Platform.AMD64.triple == "x86_64-unknown-linux-gnu"


def test_every_recipe_has_a_variant() -> None:
    recipes = {path.name for path in Path(settings.ROOT, "dockerfiles").glob("*.Dockerfile")}
    assert recipes <= {Path(variant.dockerfile).name for variant in variants.VARIANTS}


@pytest.mark.parametrize(("typed", "near"), [("cpus", "cpu"), ("CUDA", "cuda"), ("intl", "intel")])
def test_the_nearest_variant_is_suggested(typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean {near}"):
        variants.find(typed)


def test_the_readme_has_the_table_of_the_variants() -> None:
    assert documents.images_table() in documents.TEXTS["README.md"]
