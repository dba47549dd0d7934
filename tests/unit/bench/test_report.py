"""Measurements that are kept, the ratios and goals made of them, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from base_images.adapters import buildkit
from base_images.bench import builds, measured, page, report, servers, sizes
from base_images.bench.cases import METRICS, NEXT, Goal, Part, Side
from base_images.bench.measured import Kept, Measurement, Step
from base_images.bench.sizes import LayerSize
from base_images.errors import UsageError

ABOUT = {
    "variant": "cpu",
    "platform": "linux/amd64",
    "llama.cpp": {"tag": "b7"},
    "next llama.cpp": {"tag": "b8"},
    "bases": {"web": "node:24"},
}
MACHINE = {"processor": "a <b>", "cores": 2, "memory": 4e9, "kernel": "6", "engine": "Engine 28", "storage": "overlay2"}
STEPS = (
    Step(name="[build 1/2] RUN make <all>", started=0, seconds=8, cached=False),
    Step(name="[build 2/2] RUN echo", started=8, seconds=0.01, cached=False),
    Step(name="[web 1/1] RUN npm ci", started=0, seconds=3, cached=True),
)
LAYER = LayerSize(
    diff_id="sha256:1",
    made_by="COPY /payload/ /",
    disk=2_000_000,
    compressed=500_000,
    files=3,
    largest=(("/app/a", 9),),
)


def measurement(metric: str, side: Side, number: int, value: float, **more: Any) -> Measurement:
    return Measurement(metric=metric, side=side, round=number, value=value, at=f"2026-01-0{number}", **more)


MEASURED = [
    measurement("cold", Side.OURS, 1, 80, steps=STEPS, busy=0.25, said={"cache hits": 5, "compilations": 7}),
    measurement("cold", Side.UPSTREAM, 1, 100, steps=STEPS),
    measurement("cold", Side.UPSTREAM, 2, 200),
    measurement("cold", Side.OURS, 2, 176),
    measurement("cold", Side.OURS, 3, 60),
    measurement("nothing", Side.OURS, 1, 4),
    measurement("nothing", Side.UPSTREAM, 1, 1),
    measurement("rate-8-cpus-1", Side.OURS, 1, 30),
    measurement("rate-8-cpus-1", Side.UPSTREAM, 1, 20),
    measurement("disk", Side.OURS, 1, 2_000_000, said={"of": [LAYER.as_json()]}),
    measurement("compressed", Side.OURS, 1, 500_000),
]


def made() -> dict[str, Any]:
    """Returns the report as it is read from its file."""
    written: dict[str, Any] = json.loads(json.dumps(report.as_json(ABOUT, MACHINE, MEASURED)))
    return written


def test_a_ratio_is_of_the_same_round_and_has_a_spread() -> None:
    [cold, nothing, disk, compressed, slow] = made()["results"]
    assert cold["ratio"] == {"median": pytest.approx(0.84), "low": 0.8, "high": 0.88, "count": 2}
    assert cold["ours"] == {"median": 80, "low": 60, "high": 176, "count": 3}
    assert (cold["goal"], cold["met"]) == ("≤ 0.85", True)
    assert (nothing["goal"], nothing["met"]) == ("≤ 5 s", True), "the goal is for our own seconds"
    assert (slow["goal"], slow["met"]) == ("≥ 2", False)
    assert (disk["ratio"], disk["met"]) == (None, None), "upstream's is missing"
    assert compressed["goal"] == ""


def test_only_cpu_has_goals() -> None:
    assert all(row.goal == "" and row.met is None for row in report.rows("vulkan", MEASURED))
    assert {metric.name for metric in METRICS if metric.goal} == {
        *("cold", "nothing", "server", "header", "inner-header", "bump"),
        *("disk", "first-token", "rate-1-cpus-1", "rate-8-cpus-1"),
    }


def test_the_table_has_units_extremes_and_verdicts() -> None:
    rows = {row[0]: row[1:] for row in report.table(made()["results"])}
    assert rows["Cold build"] == [
        "80.00 s (60.00 to 176.00)",
        "150 s (100 to 200)",
        "0.840 (0.800 to 0.880), n=2",
        "≤ 0.85",
        "met",
    ]
    assert rows["8 clients, --cpus 1"][-1] == "missed"
    assert rows["Added to the base, on disk"] == ["2.0 MB", "-", "-", "≤ 0.08", ""]


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [(Goal(limit=0.5), 0.5, True), (Goal(limit=0.5), 0.51, False), (Goal(limit=2, at_least=True), 1.9, False)],
)
def test_goals(goal: Goal, value: float, met: bool) -> None:
    assert goal.met(value) is met


# --- kept as they are made ---


def test_measurements_are_kept_and_read_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "new", ABOUT)
    for one in MEASURED:
        kept.add(one)
    again = Kept(tmp_path / "new", ABOUT)
    assert json.dumps(report.as_json(again.about, {}, again.measurements)) == json.dumps(
        report.as_json(ABOUT, {}, MEASURED)
    )
    assert [one.value for one in again.of("cold", Side.OURS, 2)] == [176]


def test_measurements_of_something_else_are_not_mixed(tmp_path: Path) -> None:
    Kept(tmp_path, ABOUT)
    with pytest.raises(UsageError, match="has measurements with another bases and variant: move them away"):
        Kept(tmp_path, {**ABOUT, "variant": "cuda", "bases": {}})


@pytest.mark.parametrize("damage", ["", "{", '{"about": {}}\n{"metric"', '{"about": {}}\n{"side": "nobody"}', "[]"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / measured.FILE).write_text(damage)
    with pytest.raises(UsageError, match="is damaged"):
        Kept(tmp_path, {})


def test_the_machine_is_busy_between_nothing_and_all() -> None:
    share = measured.busy(0.05)
    assert share is None or 0 <= share <= 1


# --- what is measured ---


def test_parts_are_chosen_by_name_and_measured_in_their_order() -> None:
    assert builds.parts_of("") == tuple(Part)
    assert builds.parts_of("header, cold") == (Part.COLD, Part.HEADER)
    with pytest.raises(ValueError, match="warm"):
        builds.parts_of("warm")
    assert {builds.order(1), builds.order(2)} == {(Side.OURS, Side.UPSTREAM), (Side.UPSTREAM, Side.OURS)}
    assert {metric.part for metric in METRICS} == set(Part)
    assert NEXT.tag == "b11312"


def test_the_events_of_a_build_become_steps_in_the_order_of_their_start() -> None:
    seen = builds.Seen()
    finished = buildkit.StepFinished(step="1", name="[a] RUN x", seconds=2, cached=False, error="", started=1010)
    for event in (
        buildkit.StepFinished(step="0", name="[internal] load", seconds=1, cached=False, error="", started=1000),
        buildkit.StepFinished(step="2", name="[b] RUN  y\n z", seconds=1, cached=False, error="", started=1012.5),
        finished,
        buildkit.StepFinished(step="3", name="[c] RUN z", seconds=0, cached=True, error="", started=1011),
    ):
        seen.add(event)
    assert [(step.name, step.started, step.cached) for step in seen.steps()] == [
        ("[a] RUN x", 0, False),
        ("[c] RUN z", 0, True),
        ("[b] RUN y z", 2.5, False),
    ]


def test_an_update_pulls_the_layers_that_are_not_there() -> None:
    other = LayerSize(diff_id="sha256:2", made_by="", disk=7, compressed=3, files=1, largest=())
    assert sizes.values([LAYER], [LAYER, other]) == {
        "disk": 2_000_000,
        "compressed": 500_000,
        "layers": 1,
        "files": 3,
        "update": 3,
    }


def test_the_memory_of_all_processes_is_summed_up() -> None:
    rows = "55d0-7ffd ---p 0 00:00 0 [rollup]\nRss:      9 kB\nPss:      4 kB\nPss_Anon:    3 kB\nPss:      6 kB\n"
    assert servers.memory(rows) == 10 * 1024


# --- the page ---


def test_the_page_has_the_results_and_the_pictures_and_nothing_unescaped() -> None:
    text = page.as_html(made())
    for told in (
        "Cold build",
        "0.840 (0.800 to 0.880), n=2",
        "2 of 3 goals met; missed: 8 clients, --cpus 1",
        "a &lt;b&gt;",
    ):
        assert told in text
    assert "make &lt;all&gt;" in text
    assert "the compiler's cache had 5 of 7" in text
    assert "at most 25 % of the machine" in text
    assert "<all>" not in text
    assert "RUN echo" not in text, "too short to be drawn"
    assert "npm ci" not in text, "cached"
    assert "COPY /payload/ /" in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_timeline_is_on_the_scale_of_the_longer_build() -> None:
    [timeline] = page.timelines(made()["measurements"])
    assert timeline.title == "Cold build"
    ours, theirs = timeline.sides[Side.OURS], timeline.sides[Side.UPSTREAM]
    assert [bar.name for bar in ours] == ["[build 1/2] RUN make <all>"]
    assert ours[0].width == theirs[0].width == pytest.approx((100 - page.NAMES - 6) * 8 / 100)


def test_a_report_without_pictures_is_a_page_too() -> None:
    text = page.as_html(json.loads(json.dumps(report.as_json(ABOUT, MACHINE, MEASURED[5:7]))))
    assert "Nothing changed" in text
    assert "<svg" not in text
