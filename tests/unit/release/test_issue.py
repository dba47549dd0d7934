"""The issue on what is latest: from files of results to requests, and to a stand-in for GitHub."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from base_images.errors import BaseImagesError, UsageError
from base_images.release import issue, matrix
from base_images.variants import find
from tests.support import commands, programs, smoke_reports
from tests.support.issues import Issues

JOBS = matrix.nightly([(find(name), find(name).platforms) for name in ("cuda", "cpu")], registry="ghcr.io/x/y")
RUN = "https://github.com/x/y/actions/runs/7"


def result(*failed: str, ok: bool | None = None) -> str:
    checks = [{"name": "latest", "status": "pass", "seen": "fine"}, {"name": "sbom", "status": "skip", "seen": "none"}]
    checks += [{"name": "smoke", "status": "fail", "seen": seen} for seen in failed]
    return json.dumps({"ok": not failed if ok is None else ok, "checks": checks})


def sarif(*levels: str) -> str:
    results = [{"ruleId": f"CVE-2026-{number}-libc6", "level": level} for number, level in enumerate(levels)]
    return json.dumps({"version": "2.1.0", "runs": [{"results": results}]})


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The results of a night in which everything passed."""
    directory = tmp_path / "results"
    directory.mkdir()
    for job in JOBS:
        name = f"{job['variant']}-{job['architecture']}"
        (directory / f"latest-{name}.json").write_text(result())
        (directory / f"scan-{name}.sarif").write_text(sarif("note", "warning"))
    return directory


def found(results: Path) -> list[tuple[str, str, str, str]]:
    return [(one.variant, one.platform, one.check, one.seen) for one in issue.problems(JOBS, results)]


def test_a_night_in_which_everything_passed_has_no_problems(results: Path) -> None:
    assert found(results) == []
    assert issue.text([], run=RUN) == ""


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("latest-cuda-amd64.json", result("one", "two"), [("smoke", "one"), ("smoke", "two")]),
        ("latest-cuda-amd64.json", result(ok=False), [("verify", "it has not passed.")]),
        (
            "scan-cuda-amd64.sarif",
            sarif("error", "note"),
            [("scan", "1 high or critical with a fix: CVE-2026-0-libc6")],
        ),
        *(
            (f"{kind}-cuda-amd64.{suffix}", odd, [(check, "no result: the job did not get that far.")])
            for kind, suffix, check in (("latest", "json", "verify"), ("scan", "sarif", "scan"))
            for odd in (None, "", "[]", "{}", '{"ok": true, "checks": 1, "runs": 1}', '{"checks": [1], "runs": [1]}')
        ),
    ],
)
def test_what_failed_or_has_no_result_is_a_problem(
    results: Path, name: str, content: str | None, told: list[tuple[str, str]]
) -> None:
    (results / name).unlink() if content is None else (results / name).write_text(content)
    assert found(results) == [("cuda", "linux/amd64", check, seen) for check, seen in told]


def test_a_night_that_could_not_be_planned_is_a_problem(results: Path) -> None:
    assert issue.parse_jobs("") is None
    assert [one.check for one in issue.problems(None, results)] == ["plan"]
    assert issue.parse_jobs(json.dumps(JOBS)) == JOBS
    for odd in ("{", "1", "[1]", '{"a": 1}', '[{"variant": "cpu"}]'):
        with pytest.raises(UsageError, match="LATEST has no jobs"):
            issue.parse_jobs(odd)


def test_the_text_shows_what_others_wrote_as_text() -> None:
    seen = f"@somebody closes #12 | `x` {smoke_reports.HOSTILE}"
    problems = [
        issue.Problem(variant="cuda", platform="linux/amd64", check="smoke", seen=seen) for _ in range(issue.ROWS + 2)
    ]
    text = issue.text(problems, run=RUN)
    rows = [line for line in text.splitlines() if line.startswith("| cuda")]
    assert len(rows) == issue.ROWS
    assert "2 more are in the run." in text
    assert "@somebody" not in text
    assert "#12" not in text.replace(r"\#12", "")
    assert "<script" not in text.replace(r"\<script", "")
    assert "`invoke verify-latest --variant cuda`" in text
    assert f"([the run]({RUN}))" in text
    assert len(text) < 65_536, "GitHub takes no more"


def report(results: Path, issues: Issues, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {"LATEST": json.dumps(JOBS), "PATH": f"{issues.program.parent}:/usr/bin:/bin"}
    done = commands.invoke("report-latest", str(results), *arguments, environment={**known, **environment})
    assert "Traceback" not in done.stderr
    return done


def test_one_issue_is_opened_updated_and_closed(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issues = Issues(tmp_path / "github")
    monkeypatch.setenv("PATH", f"{issues.program.parent}:/usr/bin:/bin")
    issues.add(title="Somebody's own, with the label")
    issues.add(title=issue.TITLE, pull_request={})

    def report_all(*failed: str) -> list[dict[str, Any]]:
        (results / "latest-cuda-amd64.json").write_text(result(*failed))
        list(issue.update(issue.text(list(issue.problems(JOBS, results)), run=RUN), run=RUN))
        return issues.all[2:]

    assert report_all() == []
    [opened] = report_all("first")
    assert (opened["title"], opened["labels"], opened["state"]) == (issue.TITLE, ["nightly"], "open")
    assert "first" in opened["body"]
    [updated] = report_all("second")
    assert ("first" in updated["body"], "second" in updated["body"]) == (False, True)
    assert updated["comments"] == []
    issues.add(title=issue.TITLE)  # two runs at once
    kept, other = report_all("second")
    assert (kept["state"], other["state"], other["comments"]) == ("open", "closed", ["The same as #3."])
    closed, _ = report_all()
    assert (closed["state"], closed["comments"]) == ("closed", [f"Everything that is latest passes. {RUN}"])
    assert [one["state"] for one in report_all("again")] == ["closed", "closed", "open"]
    assert [one["state"] for one in issues.all[:2]] == ["open", "open"]
    assert issues.all[0]["comments"] == []


def test_a_dry_run_asks_nothing_of_github(results: Path, tmp_path: Path) -> None:
    issues = Issues(tmp_path / "github")
    (results / "latest-cuda-amd64.json").write_text(result("broken"))
    done = report(results, issues, "--dry-run")
    assert (done.returncode, issues.all) == (0, [])
    assert report(results, issues).returncode == 0
    assert len(issues.all) == 1
    assert "| cuda | linux/amd64 | smoke | broken |" in done.stdout


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'gh: Not Found (HTTP 404)' >&2; exit 1", "gh: Not Found (HTTP 404)"),
        *((f"echo '{odd}'", "its answer has another form") for odd in ("<html>", "{}")),
    ],
)
def test_a_refusal_of_github_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    programs.script(tmp_path / "gh", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BaseImagesError) as error:
        list(issue.update("broken", run=""))
    assert f"GitHub did not GET issues?state=open&labels=nightly&per_page=100 ({told})" in str(error.value)
