"""What all tasks share: a verdict, and the files that it is written to."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from invoke.exceptions import Exit

from base_images.adapters import files
from base_images.cli.front_door import conclude
from tests.support import disks
from tests.support.commands import invoke


@pytest.mark.parametrize(("ok", "code"), [(True, 2), (False, 1)])
def test_a_file_that_cannot_be_written_neither_hides_a_verdict_nor_the_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ok: bool, code: int
) -> None:
    (tmp_path / "file").touch()
    paths = [tmp_path / "file" / "a", tmp_path / "b", tmp_path / "file" / "c"]
    with pytest.raises(Exit) as ended:
        conclude([partial(files.write, path, "x") for path in paths], ok=ok)
    assert ended.value.code == code
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(" cannot be written (")[0] for line in errors] == [
        f"error: {path}" for path in (paths[0], paths[2])
    ]
    assert paths[1].read_text() == "x"


def test_a_verdict_without_files_is_its_exit_code() -> None:
    conclude([], ok=True)
    with pytest.raises(Exit) as ended:
        conclude([], ok=False)
    assert ended.value.code == 1


def test_a_report_on_a_full_disk_is_printed(tmp_path: Path) -> None:
    with disks.full(tmp_path / "full") as full:
        written = ("--record", f"{full}/record", "--html", f"{full}/page.html", "--junit", f"{tmp_path}/suite.xml")
        done = invoke("smoke", "--variant", "cpu", "--url", "http://127.0.0.1:1", "--json", *written)
        assert sorted(path.name for path in full.rglob("*.*")) == []
    assert done.returncode == 1
    assert json.loads(done.stdout)["ok"] is False
    assert [line.partition(" cannot be written (No space left on device)")[0] for line in done.stderr.splitlines()] == [
        f"error: {full}/record/smoke-cpu-on-unknown-device.json",
        f"error: {full}/page.html",
    ]
    assert "<testsuites" in (tmp_path / "suite.xml").read_text()


def test_a_model_on_a_full_disk_is_no_empty_file(tmp_path: Path) -> None:
    with disks.full(tmp_path / "full") as full:
        done = invoke("known-answer-model", "--output", f"{full}/model.gguf")
        assert [path.name for path in full.iterdir()] == ["filler"]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {full}/model.gguf cannot be written (No space left on device)")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("smoke", "--variant", "cpu", "--operations-minutes", "x"), "error: --operations-minutes x is not a number."),
        (("soak", "--minutes", "inf"), "error: --minutes inf is not a number."),
        (("soak", "--clients", "1.5"), "error: --clients 1.5 is not a whole number."),
    ],
)
def test_what_is_no_number_is_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = invoke(*arguments)
    assert (done.returncode, done.stderr.strip(), done.stdout) == (2, sentence, "")
