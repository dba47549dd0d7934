"""The README's claims about devices are those of the kept reports, no more and no less."""

from __future__ import annotations

import copy
import datetime as dt
import json
import re
from typing import Any

import pytest

from base_images import variants
from base_images.smoke.report import Check
from tests.support import documents, kept_reports
from tests.support.kept_reports import DIRECTORY, INDEX, Kept

REPORTS = kept_reports.kept()
ENTRIES = [*INDEX["report"], *INDEX["calibration"]]


def test_every_file_has_an_entry_and_every_entry_a_file() -> None:
    assert sorted(entry["file"] for entry in ENTRIES) == sorted(path.name for path in DIRECTORY.glob("*.json"))


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry["file"] for entry in ENTRIES])
def test_an_entry_says_of_what_and_when(entry: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", entry["commit"])
    assert isinstance(entry["date"], dt.date)
    assert entry["platform"] in {platform.docker for platform in variants.Platform}
    assert entry["build"]
    assert entry["driver"]
    assert entry.get("subject", "binary") in {"binary", "image"}


@pytest.mark.parametrize("found", REPORTS, ids=[found.entry["file"] for found in REPORTS])
def test_a_report_is_what_the_smoke_test_wrote(found: Kept) -> None:
    statuses = [check["status"] for server in found.report["servers"] for check in server["checks"]]
    assert found.report["ok"] == ("pass" in statuses and "fail" not in statuses)
    assert found.report["started"].startswith(found.entry["date"].isoformat())
    access = variants.find(found.variant).device
    assert access
    assert found.device
    text = (DIRECTORY / found.entry["file"]).read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|tmp|work|mnt|Users)/\S+", text) == [], "a path of the machine that it ran on"


def test_the_calibration_has_numbers_of_device_and_cpu() -> None:
    for entry in INDEX["calibration"]:
        measured = json.loads((DIRECTORY / entry["file"]).read_text(encoding="utf-8"))
        for kind, rows in measured.items():
            assert {"device fa on", "device fa off", "cpu fa on", "cpu fa off", "reference"} == set(rows), kind


def test_the_documents_have_what_the_reports_prove() -> None:
    shown = documents.TEXTS["docs/reports/README.md"]
    made = kept_reports.table()
    assert made in shown, f"docs/reports/README.md should have this table:\n{made}"
    assert all(entry["file"] in shown for entry in ENTRIES)


def test_only_reports_make_claims_about_devices() -> None:
    for variant in variants.VARIANTS:
        assert not re.search(r"\bGPU|device|in software|known answer", variant.proven or ""), variant.name
        if variant.device and not any(found.variant == variant.name and found.is_hardware for found in REPORTS):
            assert documents.proven(variant).endswith("; a device: not yet")
    assert documents.proven(variants.find("cpu")) == variants.find("cpu").proven


# --- the rule ---


def changed(**checks: str) -> Kept:
    """Returns the report of vulkan on the H200, which passed, with other results of checks; none leaves them out."""
    [found] = [found for found in REPORTS if found.entry["file"] == "h200-vulkan.json"]
    report = copy.deepcopy(dict(found.report))
    for server in report["servers"]:
        for check in server["checks"]:
            check["status"] = checks.get(check["name"].replace("-", "_"), check["status"])
    return Kept(entry=found.entry, report=report)


def test_a_device_is_proven_by_passed_checks_of_everything_needed() -> None:
    assert changed().verdict == "all 114 checks, outside a container"
    assert changed(sigterm="fail").verdict == "not yet, 5 of 114 checks failed"
    for name in kept_reports.NEEDED:
        assert changed(**{name.replace("-", "_"): "skip"}).verdict == f"not yet, nothing on {name}"
    assert Check.HEALTHCHECK not in kept_reports.NEEDED  # a program has none


def test_the_newest_report_of_a_device_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = changed(sigterm="fail")
    monkeypatch.setattr(kept_reports, "kept", lambda: [*REPORTS, failed])
    assert "NVIDIA H200](docs/reports/h200-vulkan.json): not yet, 5 of 114" in documents.proven(variants.find("vulkan"))
    monkeypatch.setattr(kept_reports, "kept", lambda: [failed, *REPORTS])
    assert "NVIDIA H200](docs/reports/h200-vulkan.json): all 114" in documents.proven(variants.find("vulkan"))


def test_a_failed_run_is_shown_as_one() -> None:
    [failed] = [found for found in REPORTS if found.entry["file"] == "h200-cuda.json"]
    assert failed.verdict == "not yet, 4 of 114 checks failed"
