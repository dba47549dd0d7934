"""The sessions of noxfile.py, as far as they need no engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import cast

import nox as nox_package
import noxfile
import pytest

from base_images import settings
from base_images.variants import VARIANTS
from tests.support import commands


def nox(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run(
        [sys.executable, "-m", "nox", *arguments], env={**os.environ, "PATH": "/usr/bin:/bin", **environment}
    )


def test_every_recipe_has_a_session_with_a_sentence() -> None:
    listed = nox("--list").stdout
    for variant in VARIANTS:
        if (settings.ROOT / variant.dockerfile).exists():
            assert f" image-{variant.name} -> Builds the {variant.name} image" in listed


def test_every_variant_has_a_smoke_session_with_a_sentence_and_none_is_a_default() -> None:
    listed = nox("--list").stdout
    for variant in VARIANTS:
        assert f"- smoke-{variant.name} -> Whether the {variant.name} image computes right on " in listed
    assert "* smoke -> " in listed
    assert "- smoke-lavapipe -> " in listed
    assert "- soak -> 200 clients" in listed


@pytest.mark.parametrize(("session", "start"), [("smoke", "Exit: "), ("smoke-cpu", "error: "), ("soak", "error: ")])
def test_a_smoke_session_without_an_engine_is_one_sentence(session: str, start: str) -> None:
    done = nox("--session", session, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert f"{start}No container engine answers at unix:///nowhere/docker.sock (there is no such socket)" in said
    assert "Traceback" not in said


def test_arguments_after_two_dashes_reach_the_smoke_test() -> None:
    done = nox("--session", "smoke-cpu", "--", "--url", "nowhere")
    assert "error: 'nowhere' is not a URL of a server" in done.stdout + done.stderr


NOT_FOUND = "Dependency not found on PyPI and could not be audited: idna (3.20)"
CLEAN = {"name": "nox", "version": "2026.10.20", "vulns": []}
SKIPPED = {"name": "idna", "skip_reason": NOT_FOUND}
FIXED = {
    "name": "idna",
    "version": "3.20",
    "vulns": [{"id": "PYSEC-2020-1", "fix_versions": ["3.21", "4.0"], "aliases": ["CVE-2020-1", "GHSA-1"]}],
}
UNFIXED = {"name": "six", "version": "1", "vulns": [{"id": "PYSEC-2020-2", "fix_versions": [], "aliases": []}]}


@pytest.mark.parametrize(
    ("packages", "ok", "said"),
    [
        ([CLEAN, CLEAN], True, ["none of 2 packages has a known vulnerability"]),
        (
            [SKIPPED, SKIPPED],
            None,
            [f"pip-audit is skipped: PyPI's list of vulnerabilities cannot be had here ({NOT_FOUND})"],
        ),
        ([], None, ["pip-audit is skipped: "]),
        ([CLEAN, SKIPPED], None, [f"pip-audit skipped idna: {NOT_FOUND}"]),
        (
            [CLEAN, FIXED, UNFIXED, SKIPPED],
            False,
            [
                "idna 3.20 has PYSEC-2020-1, CVE-2020-1, GHSA-1: fixed in 3.21, 4.0.",
                "six 1 has PYSEC-2020-2: there is no fix.",
                "--upgrade-package",
            ],
        ),
    ],
)
def test_what_an_audit_finds(packages: list[object], ok: bool | None, said: list[str]) -> None:
    judged, sentences = noxfile.judge_audit(json.dumps({"dependencies": packages, "fixes": []}), "")
    assert judged is ok
    assert len(sentences) == len(said)
    assert all(part in sentence for part, sentence in zip(said, sentences, strict=True)), sentences


@pytest.mark.parametrize(
    ("complaint", "ok", "said"),
    [
        (
            "Traceback\nrequests.exceptions.ConnectionError: HTTPSConnectionPool(…)\n",
            None,
            "cannot be had here (requests.",
        ),
        ("ERROR:pip_audit._cli:Tip: your network may be blocking this service.", None, "your network may be blocking"),
        ("pip_audit._service.interface.ServiceError", None, "ServiceError"),
        ("pip-audit: error: unrecognized arguments: --desc", False, "pip-audit failed: pip-audit: error: unrecognized"),
        ("ERROR:pip_audit._cli:requirement nox does not contain a hash", False, "does not contain a hash"),
        ("", False, "pip-audit failed: it said nothing"),
    ],
)
@pytest.mark.parametrize("report", ["", "[]", "null"])
def test_an_audit_without_a_report_is_skipped_only_where_nobody_answered(
    report: str, complaint: str, ok: bool | None, said: str
) -> None:
    judged, [sentence] = noxfile.judge_audit(report, complaint)
    assert judged is ok
    assert said in sentence


class Log:
    """A session that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str, *values: str) -> None:
        self.said.append(f"log: {text % values if values else text}")

    def warn(self, text: str) -> None:
        self.said.append(f"warn: {text}")

    def error(self, text: str) -> None:
        raise AssertionError(text)


def test_an_audit_without_a_network_is_skipped_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("https_proxy", raising=False)
    session = Log()
    noxfile.audit(cast("nox_package.Session", session))
    [command, skipped] = session.said
    assert command.startswith("log: pip-audit --requirement requirements.lock ")
    assert skipped.startswith("warn: pip-audit is skipped: ")
    assert "ProxyError" in skipped
