"""The status page as HTML, of literal data; tests/image/release/test_latest.py makes it from a registry."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from base_images import variants
from base_images.release import record, status_page
from base_images.release.evidence import Kind
from base_images.release.promote import Recorded
from base_images.release.record import Seen
from base_images.release.status import Published, Tagged
from base_images.release.status_page import StatusPage, VariantStatus
from base_images.smoke.report import Check, Device
from tests.support.smoke_reports import HOSTILE
from tests.unit.release.test_record import INDEX, NOW, RELEASED, SETTINGS, found
from tests.unit.smoke.test_html import Page

ODD: tuple[object, ...] = (None, 1, [1], [{}], [{"checks": None}], [{"checks": [{}]}])
RUN = "https://github.com/X/z.z/actions/runs/123"
MOVE = Recorded(
    number=1, version="2508201420-abc1234", rollback=False, digest=INDEX, before="", by=RUN, at="2025-08-20T15:00:00.1"
)
LATEST = Tagged(
    tag="latest-cuda", digest=INDEX, version="2508201420-abc1234", llama_cpp="b11312", created="2025-08-20T14:20:00Z"
)
SEEN = Seen(
    variant=variants.find("cuda"),
    digest=INDEX,
    latest=INDEX,
    images=(found(kinds=(Kind.CONTRACT, Kind.SMOKE_ON_DEVICE)),),
)
[RELEASE] = record.record(RELEASED, [SEEN], SETTINGS, now=NOW).variants


def page(*moves: Recorded, latest: Tagged | None = LATEST, problem: str = "", note: str = "") -> StatusPage:
    one = VariantStatus(
        title="CUDA",
        published=Published(variant="cuda", latest=latest, newest=latest, before="", notes=(note,), problem=problem),
        git_tag=RELEASED.version.git_tag if latest else "",
        release=RELEASE if latest else None,
        devices={"linux/amd64": "NVIDIA H200"} if latest else {},
        signer="^https://github.com/X/z.z/variant.yml@x$",
        moves=moves,
        problem=problem,
    )
    return StatusPage(registry="ghcr.io/x/z", url=SETTINGS.url, made="2025-08-21T09:00:05Z", variants=(one,))


def test_the_page_says_what_is_latest_since_when_by_whom_and_what_proves_it() -> None:
    html = status_page.as_html(page(MOVE))
    found = Page(html)
    shown = " ".join(" ".join(text for _, text in found.texts).split())
    for told in ("2508201420-abc1234", "b11312", "2025-08-20 15:00", "run 123", INDEX, "NVIDIA H200", "promotion"):
        assert told in shown
    assert f"linux/amd64: passed , {Device.HOST}" in shown
    links = set(found.attributes("href"))
    assert {RUN, f"{SETTINGS.url}/releases/tag/{RELEASED.version.git_tag}", "status.json"} <= links
    assert f"{SETTINGS.url}/releases/download/{RELEASED.version.git_tag}/contract-cuda-amd64.evidence.json" in links
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "svg", "base", "form"}, "no other file is needed"
    assert all(attributes.get("scope") for tag, attributes in found.elements if tag == "th")


@pytest.mark.parametrize(
    "by", ["javascript:alert(1)", f"{RUN}/../../x", f"{RUN}\n", f"https://evil.example/?{RUN}", HOSTILE, ""]
)
def test_only_a_run_of_this_project_is_a_link(by: str) -> None:
    found = Page(status_page.as_html(page(replace(MOVE, by=by))))
    ours = (SETTINGS.url, "status.json", "#cuda")
    assert [link for link in found.attributes("href") if not link.startswith(ours) or link == by] == []


def test_what_the_registry_says_is_shown_as_text() -> None:
    hostile = replace(MOVE, version=HOSTILE, by=HOSTILE, at=HOSTILE, digest=HOSTILE)
    odd = replace(LATEST, digest=HOSTILE, version=HOSTILE, llama_cpp=HOSTILE, created=HOSTILE)
    html = status_page.as_html(page(hostile, latest=odd, problem=HOSTILE, note=HOSTILE))
    tags = {tag for tag, _ in Page(html).elements}
    assert not tags & {"script", "img"}
    assert "<script" not in html
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in html


def test_a_variant_without_anything_and_a_latest_that_is_gone_have_their_row() -> None:
    for one in (page(latest=None, problem="it cannot be read"), page(MOVE, latest=None)):
        html = status_page.as_html(one)
        assert "CUDA" in html
        assert (one.variants[0].problem in html) or not one.variants[0].problem


def test_json_has_the_same(tmp_path: Path) -> None:
    one = page(MOVE)
    assert [path.name for path in status_page.write(one, tmp_path)] == ["index.html", "status.json"]
    told = json.loads((tmp_path / "status.json").read_text())
    assert told == json.loads(json.dumps(one.as_dict()))
    assert told["variants"][0]["moves"][0]["by"] == RUN


@pytest.mark.parametrize(
    ("report", "named"),
    [
        (
            {
                "servers": [
                    {"checks": [{"name": Check.LIST_DEVICES, "seen": "CUDA0: NVIDIA H200 (143155 MiB, 1 MiB free)"}]}
                ]
            },
            ["NVIDIA H200"],
        ),
        ({"servers": [{"checks": [{"name": Check.LIST_DEVICES, "seen": "no device"}]}]}, []),
        *(({"servers": odd}, []) for odd in ODD),
        ({}, []),
    ],
)
def test_a_device_is_what_the_report_names(report: dict[str, object], named: list[str]) -> None:
    assert list(status_page.named_devices(report)) == named
