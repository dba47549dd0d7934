"""Evidence of images that say odd things of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from base_images.contract.judge import ContractReport
from base_images.errors import UsageError
from base_images.labels import Label
from base_images.release import evidence
from base_images.release.evidence import Evidence, Kind
from base_images.release.reproduce import Reproduction
from tests.support.images import image

NAME = "registry.example/llama.cpp"
REPORT = ContractReport(reference="x", image_id="sha256:1", variant="cpu", rows=())


def of(variant: str, architecture: str = "amd64") -> Evidence | None:
    digests = (f"{NAME}@sha256:{'1' * 64}",)
    labelled = image(repo_digests=digests, labels={Label.VARIANT.value: variant}, architecture=architecture)
    return evidence.of_report(labelled, NAME, Kind.CONTRACT, REPORT)


@pytest.mark.parametrize("variant", ["x/../../../tmp/y", "", "..", "nvidia", "cpu\n"])
def test_an_image_of_no_variant_makes_no_evidence(variant: str) -> None:
    assert of(variant) is None
    assert of("cpu", "../amd64") is None


def test_evidence_is_written_below_its_directory(tmp_path: Path) -> None:
    made = of("cpu")
    assert made
    path = evidence.write(made, tmp_path)
    assert path == tmp_path / "contract-cpu-amd64.evidence.json"
    assert json.loads(path.read_text(encoding="utf-8"))["variant"] == "cpu"


@pytest.mark.parametrize("differences", [(), ("/app/x has another content.", "Layer 1 of 1 is another.")])
def test_a_second_build_is_evidence(differences: tuple[str, ...]) -> None:
    told = Reproduction(image="sha256:1", rebuilt="sha256:2", version="", differences=differences)
    digests = (f"{NAME}@sha256:{'1' * 64}",)
    made = evidence.of_report(
        image(repo_digests=digests, labels={Label.VARIANT.value: "cpu"}), NAME, Kind.REPRODUCIBLE, told
    )
    assert made
    assert (made.passed, made.failed) == (not differences, differences[0] if differences else "")
    assert made.report == {
        "ok": not differences,
        "image": "sha256:1",
        "rebuilt": "sha256:2",
        "version": "",
        "differences": differences,
    }


@pytest.mark.parametrize("variant", ["x/../../y", "x\\y", "x\n", "X\0"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, variant: str) -> None:
    made = Evidence(
        kind=Kind.SMOKE,
        subject="",
        platform="linux/amd64",
        variant=variant,
        version="",
        diff_ids=(),
        made="",
        ok=True,
        report={},
    )
    with pytest.raises(UsageError, match="cannot be a file's name"):
        evidence.write(made, tmp_path / "below")
    assert not list(tmp_path.iterdir())
