"""What the documents say about builds is what the kept results have."""

from __future__ import annotations

import re

from base_images.bench import page, report
from base_images.bench.measured import parse
from tests.support import documents, kept_benchmarks
from tests.unit.bench.test_report import made

KEPT = kept_benchmarks.kept()


def test_the_readme_has_the_kept_results() -> None:
    shown = documents.TEXTS["docs/benchmarks/README.md"]
    text = kept_benchmarks.text(KEPT)
    assert f"should be -->\n\n{text}\n## Keep a result" in shown, f"docs/benchmarks/README.md should have this:\n{text}"


def test_a_kept_result_is_what_the_command_wrote() -> None:
    names = sorted(path.name for path in kept_benchmarks.DIRECTORY.iterdir() if path.name != "README.md")
    assert names == sorted(f"{name}.{kind}" for name in KEPT for kind in ("html", "json"))
    for name, found in KEPT.items():
        assert re.fullmatch(rf"{found['started'][:10]}-{found['about']['variant']}-[\w-]+", name), name
        again = report.as_json(found["about"], found["machine"], [parse(one) for one in found["measurements"]])
        assert again["results"] == found["results"], name
        assert (kept_benchmarks.DIRECTORY / f"{name}.html").read_text(encoding="utf-8") == page.as_html(found), name


def test_a_result_is_told_with_its_machine_load_and_verdicts() -> None:
    found = made()
    found["busy"] = 0.031
    text = kept_benchmarks.text({"2026-01-01-cpu-2-cores": found})
    assert "2026-01-01, 2 cores of a <b>, Engine 28. Other work took at most 3% of the machine" in text
    assert "| 8 clients, --cpus 1 | 30.00 tokens/s | 20.00 tokens/s | 1.500 | ≥ 2 | missed |" in text
    assert kept_benchmarks.text({}) == "None yet.\n"
