"""What a job on GitHub shows: groups in the log, and the summary; text from outside stays text in both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from base_images import variants
from base_images.adapters import buildkit
from base_images.cli import front_door, views
from base_images.contract.judge import ContractReport, RowResult
from base_images.contract.verdict import Status
from base_images.errors import RegistryError
from base_images.release.actions import Action, Outcome
from base_images.smoke import report as smoke_report
from base_images.variants import Variant
from tests.support import smoke_reports
from tests.unit.test_noxfile import nox

HOSTILE = f"a | b\r\n::error::c {smoke_reports.HOSTILE}"


def build() -> None:
    with views.Display(views.Mode.PLAIN, "build 100 %\n::error::x") as display:
        display.event(buildkit.StepStarted(step="1", name="RUN cmake"))
        for percent in range(21):
            display.event(buildkit.StepLog(step="1", line=f"[{percent:3d}%] Building CXX object x.cpp.o"))


def check() -> None:
    row = RowResult(number=1, title="Server", status=Status.FAIL, seen=HOSTILE, findings=(HOSTILE, HOSTILE))
    views.print_contract(ContractReport(reference=HOSTILE, image_id="sha256:1", variant="cpu", rows=(row,)))


def smoke() -> None:
    failed = smoke_reports.check("answer", smoke_report.Status.FAIL, HOSTILE, detail="::set-env name=x::y")
    views.print_smoke(smoke_reports.report(smoke_reports.server("server", smoke_reports.check("starts"), failed)))


def promote() -> None:
    def change(variant: Variant) -> Iterator[Action]:
        if variant.name == "cuda":
            raise RegistryError(HOSTILE)
        yield Action(variant=variant.name, what="promote", target="x:latest-cpu", outcome=Outcome.DONE)

    with pytest.raises(Exit, match="not done for cuda: see above"):
        front_door.change_registry("promote", [variants.find("cuda"), variants.find("cpu")], change)


@pytest.fixture
def summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(front_door, "ROOT", tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    return tmp_path / "summary.md"


@pytest.mark.usefixtures("summary")
@pytest.mark.parametrize(("print_it", "title"), [(build, "build 100 %25%0A::error::x"), (smoke, "server, answer")])
def test_a_group_folds_its_lines_and_no_line_of_it_is_a_workflow_command(
    print_it: Callable[[], None], title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_it()
    printed = capsys.readouterr().out
    found = re.search(
        r"^::group::(.*)\n::stop-commands::(\w{64})\n(?s:(.+))^::\2::\n::endgroup::\n", printed, re.MULTILINE
    )
    assert found
    assert found[1] == title
    outside = printed.replace(found[0], "")
    assert not re.search(r"^\s*::", outside, re.MULTILINE)


@pytest.mark.parametrize(
    ("print_it", "title", "rows"),
    [
        (check, "contract of a", ["1"]),
        (smoke, "smoke cuda on device", ["server"]),
        (promote, "promote", ["failed", "done"]),
    ],
)
def test_the_summary_has_the_outcome_as_a_table_of_escaped_text(
    print_it: Callable[[], None], title: str, rows: list[str], summary: Path
) -> None:
    print_it()
    lines = summary.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"**{title}")
    table = [line for line in lines if line.startswith("|")]
    assert [line.split(" | ")[0].strip("| ") for line in table[1:]] == ["---", *rows]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert len(lines) == len(table) + 3  # the title, and an empty line before and after the table
    assert not re.search(r"(?<!\\)<", "".join(lines).replace("<!-- -->", ""))


def test_tests_of_a_session_are_a_group_and_their_end_is_in_the_summary(summary: Path) -> None:
    done = nox("--session", "unit", "--", "--version")
    assert "::group::pytest tests/unit --version\n" in done.stdout
    assert summary.read_text(encoding="utf-8") == "- unit: tests passed\n\n"
    assert nox("--session", "unit", "--", "--no-such-option").returncode != 0
    assert summary.read_text(encoding="utf-8").endswith("- unit: tests failed\n\n")


@pytest.mark.parametrize("print_it", [build, check, smoke, promote])
def test_elsewhere_nothing_is_added(
    print_it: Callable[[], None], summary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    print_it()
    on_github = capsys.readouterr().out
    summary.unlink(missing_ok=True)
    monkeypatch.delenv("GITHUB_ACTIONS")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY")
    print_it()
    printed = capsys.readouterr().out
    added = re.compile(r"^::(group::.*|stop-commands::\w+|\w{64}::|endgroup::)\n", re.MULTILINE)
    clock = re.compile(r"^ *[\d.]+ s", re.MULTILINE)
    assert clock.sub("", added.sub("", on_github)).replace(r"\::", "::") == clock.sub("", printed)
    assert not added.search(printed)
    assert not summary.exists()
