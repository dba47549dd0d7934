"""Recorded differences, and variants of only one side."""

from __future__ import annotations

from pathlib import Path

import pytest

from base_images import settings
from base_images.errors import UsageError
from base_images.recipes import dockerfile, mirror
from base_images.recipes import facts as recipe_facts
from base_images.recipes.mirror import Record
from tests.unit.recipes.conftest import UPSTREAM
from tests.unit.recipes.test_facts import lost_words
from tests.unit.recipes.test_mirror import RECORDS, check, our_recipe


def test_variants_of_only_one_side() -> None:
    one_program = "FROM scratch AS build\n"
    report = mirror.check(
        {"cuda": UPSTREAM, "s390x": UPSTREAM, "llama-cli-cann": one_program},
        {"cuda": our_recipe(), "rocm": our_recipe()},
        (*RECORDS, Record(variant="rocm", key="- base: apt ffmpeg, formerly", reason="large")),
    )
    assert not report.stale
    assert report.upstream_only == ("s390x",)
    assert report.gone == ("rocm",)
    assert report.without_recipe == ("cpu", "vulkan", "musa", "intel", "cann")
    assert not report.ok


def test_a_record_that_matches_nothing_is_an_error() -> None:
    stale = (
        Record(variant="all", key="- base: apt nano", reason="x"),
        Record(variant="cuda", key="- base: apt vim", reason="x"),
        Record(variant="rocm", key="- base: apt ffmpeg", reason="x"),
    )
    report = check(records=(*RECORDS, *stale))
    assert (report.stale, report.ok) == (stale, False)


def test_records_of_other_variants_are_ignored() -> None:
    upstream, ours = {"cuda": UPSTREAM, "musa": UPSTREAM}, {"cuda": our_recipe(), "musa": our_recipe()}
    records = (*RECORDS, Record(variant="musa", key="- base: apt vim", reason="x"))
    report = mirror.check(upstream, ours, records, chosen=["cuda"])
    assert [comparison.variant for comparison in report.comparisons] == ["cuda"]
    assert report.ok
    assert not mirror.check(upstream, ours, records).ok


def test_a_variant_without_a_recipe_cannot_be_chosen() -> None:
    with pytest.raises(UsageError, match=r"no recipe dockerfiles/rocm\.Dockerfile yet"):
        mirror.check({"cuda": UPSTREAM}, {"cuda": our_recipe()}, RECORDS, chosen=["rocm"])


def test_records_are_read_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(
        '[[all]]\nreason = "large"\nkeys = ["- base: apt ffmpeg", "- b"]\n[[cuda]]\nreason = "r"\nkeys = ["+ c"]\n'
    )
    assert mirror.load_records(path) == (
        Record(variant="all", key="- base: apt ffmpeg", reason="large"),
        Record(variant="all", key="- b", reason="large"),
        Record(variant="cuda", key="+ c", reason="r"),
    )


def test_records_of_all_may_name_their_variants(tmp_path: Path) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(
        '[[all]]\nreason = "r"\nkeys = ["- a"]\n[all.some]\n"cpu cuda" = ["- b"]\nmusa = ["- b"]\n'
        '[[rocm]]\nreason = "r"\nkeys = ["- b"]\n'
    )
    assert mirror.load_records(path) == (
        Record(variant="all", key="- a", reason="r"),
        Record(variant="all", key="- b", reason="r", only=("cpu", "cuda")),
        Record(variant="all", key="- b", reason="r", only=("musa",)),
        Record(variant="rocm", key="- b", reason="r"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[all]]\nreason = "r"\n[all.some]\ncuba = ["k"]', "did you mean cuda"),
        ('[[all]]\nreason = "r"\n[all.some]\ncuda = []', "list of keys"),
        ('[[all]]\nreason = "r"\nkeys = ["k"]\nsome = ["k"]', "nothing else"),
        ('[[cuda]]\nreason = "r"\nkeys = ["k"]\n[cuda.some]\ncuda = ["k"]', "nothing else"),
        ('[[all]]\nreason = "r"\nkeys = ["k"]\n[all.some]\ncuda = ["k"]', "twice for all"),
        ("[[all", "not valid TOML"),
        ('[[cuba]]\nreason = "r"\nkeys = ["k"]', "did you mean cuda"),
        ('[[all]]\nkeys = ["k"]', "needs a reason"),
        ('[[all]]\nreason = " "\nkeys = ["k"]', "needs a reason"),
        ('[[all]]\nreason = "r"\nkeys = []', "list of keys"),
        ('[[all]]\nreason = "r"\nkeys = "k"', "list of keys"),
        ('[[all]]\nreason = "r"\nkeys = ["k"]\nnote = "n"', "nothing else"),
        ('[all]\nreason = "r"\nkeys = ["k"]', "needs a reason"),
        ('[[cuda]]\nreason = "r"\nkeys = ["k"]\n[[all]]\nreason = "r"\nkeys = ["k"]', "twice for all"),
    ],
)
def test_invalid_records_are_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "differences.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        mirror.load_records(path)


def test_missing_records_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        mirror.load_records(tmp_path / "differences.toml")


def test_our_records_and_recipes_can_be_read() -> None:
    records = mirror.load_records(settings.ROOT / mirror.DIFFERENCES)
    texts = mirror.our_texts(settings.ROOT)
    assert records
    for name, text in texts.items():
        facts = recipe_facts.read(text, name)
        assert lost_words(text, facts) <= {*dockerfile.BASE_ARGUMENTS.values(), "source=dockerfiles/version-json"}
        assert {"web", "build", "base", "runtime"} <= {fact.stage for fact in facts}
