from __future__ import annotations

import math
import re
import time
from html.parser import HTMLParser

import pytest

from base_images.smoke import html as smoke_html
from base_images.smoke.html import KEPT_CHARACTERS, as_html
from base_images.smoke.report import Device, SmokeReport, Speed, Status
from base_images.untrusted import printable
from tests.support import smoke_reports
from tests.support.smoke_reports import HOSTILE, check, report, server

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Parses a page into elements with attributes and text; a misplaced tag is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def text(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]

    def attributes(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def page(of: SmokeReport) -> Page:
    return Page(as_html(of, labels=smoke_reports.LABELS))


def shown(html: str) -> str:
    """Returns the page's text without tags and style, with single spaces."""
    found = Page(html)
    return " ".join(" ".join(text for element, text in found.texts if element != "style").split())


@pytest.mark.parametrize("one", [smoke_reports.passed(), smoke_reports.failed(), smoke_reports.hostile(), report()])
def test_a_page_is_self_contained(one: SmokeReport) -> None:
    html = as_html(one, labels=smoke_reports.LABELS)
    found = Page(html)
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "img", "link", "iframe", "object", "svg", "base", "form"}
    assert not found.attributes("src")
    style = "".join(found.text("style"))
    assert not re.search(r"@import|@font-face|url\(", style)
    ids = found.attributes("id")
    assert len(ids) == len(set(ids))
    assert set(found.attributes("href")) <= {f"#{name}" for name in ids}
    assert set(found.attributes("aria-labelledby")) <= set(ids)
    assert all(attributes.get("scope") for tag, attributes in found.elements if tag == "th")
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)


def test_the_verdict_comes_first_and_in_words() -> None:
    for one, word in (
        (smoke_reports.passed(), "Passed"),
        (smoke_reports.failed(), "Failed"),
        (report(), "Nothing proven"),
    ):
        found = page(one)
        assert found.text("title") == [f"{word}: smoke cuda on device"]
        assert found.text("h1") == [word]
    skipped = report(server("only", check("embeddings", Status.SKIP)))
    assert smoke_html.verdict(skipped) == "Nothing proven"


def test_the_page_has_results_facts_and_labels() -> None:
    text = shown(as_html(smoke_reports.failed(), labels=smoke_reports.LABELS))
    assert "11 of 13 checks passed, 1 failed, 1 skipped; 3 servers in 1 min 12 s." in text
    assert "The servers were given the CUDA device of the host." in text
    assert (
        f"Image {smoke_reports.DIGEST} Version 2611230319-0b7ec17 llama.cpp b11312 Started 2026-11-23 04:20:42 UTC"
        in text
    )
    assert "What failed offloaded of quick start, F32 Only 2 of 3 layers are on the device. tail of the log" in text
    assert "embeddings skip the server has none 0.250 s" in text
    assert "prompt tokens per second device ÷ cpu = 58.3 device 18,234 cpu 313" in text
    assert "device memory MiB device 5,321 cpu not measured" in text
    assert "Server log, 540 lines 0.00.000000 I srv llama_server: a line of 0" in text
    assert f"org.opencontainers.image.base.digest {smoke_reports.DIGEST}" in text


def test_empty_sections_are_left_out() -> None:
    html = as_html(smoke_reports.passed(), labels={})
    text = shown(html)
    assert "What failed" not in text
    assert "Speed" not in text
    assert "Version" not in text
    assert text.endswith("Labels of the image None are known.")


def test_hostile_text_is_escaped_everywhere() -> None:
    html = as_html(smoke_reports.hostile(), labels=smoke_reports.HOSTILE_LABELS)
    found = Page(html)
    assert "script" not in {tag for tag, _ in found.elements}
    # Image; a headline; the failure's check, server, seen, detail; a speed's name, unit; the server twice, its command
    # line and log; the check again with what was seen; a label's name and two values.
    hostile = printable(HOSTILE)
    assert sum(hostile.strip() in text for _, text in found.texts) == 17
    assert "49" not in html
    assert f"Log of {hostile}" in found.attributes("aria-label")


def test_the_smallest_change_of_a_text_cannot_open_an_element() -> None:
    for character in "<>&\"'`=/":
        found = page(
            report(server(character, check(character, Status.FAIL, character, detail=character), log=character))
        )
        assert found.text("pre") == [f"\n{character}"] * 2


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("bell\x07 nul\x00 del\x7f", "bell\ufffd nul\ufffd del\ufffd"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("none \ufffe \U0001ffff", "none \ufffd \ufffd"),
        ("tab\t\N{GREEK SMALL LETTER ALPHA} \N{GRINNING FACE}", "tab\t\N{GREEK SMALL LETTER ALPHA} \N{GRINNING FACE}"),
    ],
)
def test_characters_that_html_does_not_allow_are_replaced(raw: str, printed: str) -> None:
    html = as_html(report(server("one", check("x"), log=raw)), labels={})
    assert Page(html).text("pre") == [f"\n{printed}"]
    html.encode()


def test_a_huge_log_is_cut_with_a_note() -> None:
    line = "0.00.433.266 I slot process_sing: id  1 | task -1 | saving idle slot to prompt cache <&>\n"
    log = line * (5_000_000 // len(line)) + "the last words\n"
    started = time.monotonic()
    html = as_html(report(server("one", check("x", Status.FAIL, detail=log), log=log)), labels={})
    assert time.monotonic() - started < 60, "it takes time for every pair of lines"
    assert len(html) < 3 * KEPT_CHARACTERS
    (detail, kept) = Page(html).text("pre")
    assert detail == kept
    assert kept.startswith(f"\n{line}")
    assert kept.endswith("\nthe last words\n")
    lines = log.count("\n") - kept[1:].count("\n")
    left_out = f"The end of it; {lines:,} lines ({len(line) * lines:,} characters) before are left out of this page."
    assert shown(html).count(left_out) == 2
    assert f"Server log, {log.count(chr(10)):,} lines" in html


@pytest.mark.parametrize(
    ("log", "text", "left_out"),
    [
        ("", "", ""),
        ("x" * KEPT_CHARACTERS, "x" * KEPT_CHARACTERS, ""),
        ("y" + "x" * KEPT_CHARACTERS, "x" * KEPT_CHARACTERS, "0 lines (1 character)"),
        ("x" * KEPT_CHARACTERS + "\n", "x" * (KEPT_CHARACTERS - 1) + "\n", "0 lines (1 character)"),
        ("x" * KEPT_CHARACTERS + "\nend", "end", f"1 line ({KEPT_CHARACTERS + 1:,} characters)"),
    ],
)
def test_an_excerpt_and_the_part_left_out_add_up(log: str, text: str, left_out: str) -> None:
    excerpt = smoke_html.excerpt(log)
    assert (excerpt.text, excerpt.left_out) == (text, left_out)


@pytest.mark.parametrize(
    ("variant", "device", "sentence"),
    [
        ("cpu", Device.NONE, "This variant computes on the CPU."),
        ("vulkan", Device.NONE, "No device was given, so nothing here shows that the Vulkan backend computes right."),
        ("vulkan", Device.SOFTWARE, "The CPU emulated the Vulkan device: its code is proven, no hardware is."),
        ("rocm", Device.HOST, "The servers were given the ROCm device of the host."),
    ],
)
def test_the_page_says_where_the_answers_were_computed(variant: str, device: Device, sentence: str) -> None:
    html = as_html(report(server("one", check("x")), variant=variant, device=device), labels={})
    assert sentence in shown(html)
    loud = '<p class="computed skip">' in html
    assert loud == (variant == "vulkan")


@pytest.mark.parametrize(
    ("device", "cpu", "ratio"),
    [(30.0, 20.0, 1.5), (30.0, None, None), (None, 20.0, None), (30.0, 0.0, None), (math.nan, 20.0, None)],
)
def test_a_ratio_needs_both_values(device: float | None, cpu: float | None, ratio: float | None) -> None:
    assert Speed(name="prompt", unit="t/s", device=device, cpu=cpu).ratio == ratio


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (18234.4, "18,234"),
        (33.54, "33.5"),
        (4.444, "4.44"),
        (0, "0.00"),
        (None, "not measured"),
        (math.nan, "not measured"),
        (math.inf, "not measured"),
    ],
)
def test_amounts(value: float | None, text: str) -> None:
    assert smoke_html.amount(value) == text


@pytest.mark.parametrize(
    ("value", "whole", "length"),
    [
        (5, 10, "50.0%"),
        (10, 10, "100.0%"),
        (0.001, 10, "0.5%"),
        (0, 10, "0.0%"),
        (0, 0, "0.0%"),
        (None, 10, "0.0%"),
        (math.inf, 10, "0.0%"),
        (-1, 10, "0.0%"),
    ],
)
def test_bars(value: float | None, whole: float, length: str) -> None:
    assert smoke_html.percent(value, whole) == length


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (1.64, "1.6 s"), (59.4, "59.4 s"), (59.97, "1 min 0 s"), (192.2, "3 min 12 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert smoke_html.duration(seconds) == text
