"""Signatures are verified by the programs that verify them; here both are stand-ins that record how they are called."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from base_images.release import latest, signatures
from base_images.release.signatures import Signer
from tests.support import programs

IMAGE = f"ghcr.io/bodhisearch/llama.cpp@sha256:{'1' * 64}"
SIGNER = Signer(
    url="https://github.com/BodhiSearch/llama.cpp", git_tag="base-images/v2508201420-abc1234", commit="a" * 40
)

PROGRAM = """\
for argument; do printf '%s\\n' "$argument"; done >"$0.arguments"
echo "it is signed by somebody else" >&2
exit {code}
"""


def install(directory: Path, *, cosign: int | None, gh: int | None) -> None:
    for name, code in (("cosign", cosign), ("gh", gh)):
        if code is not None:
            programs.script(directory / name, PROGRAM.format(code=code))


@pytest.mark.parametrize(
    ("cosign", "gh", "told"),
    [
        (0, 0, []),
        (1, 0, ["cosign does not verify that .github/workflows/variant.yml made"]),
        (0, 1, ["gh does not verify that"]),
        (1, 1, ["cosign does not verify", "gh does not verify"]),
        (None, 0, ["cosign is not installed"]),
        (None, None, ["cosign is not installed", "gh is not installed"]),
    ],
)
def test_both_programs_must_verify_an_image(
    cosign: int | None, gh: int | None, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, cosign=cosign, gh=gh)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    problems = signatures.problems(IMAGE, SIGNER)
    assert len(problems) == len(told)
    for problem, start in zip(problems, told, strict=True):
        assert problem.startswith(start)
        assert "not installed" in problem or "(it is signed by somebody else); it signs only what passed" in problem


def test_the_programs_get_the_image_and_the_only_identity_that_may_have_signed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, cosign=0, gh=0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert signatures.problems(IMAGE, SIGNER) == []
    for name, last in (("cosign", IMAGE), ("gh", f"oci://{IMAGE}")):
        arguments = (tmp_path / f"{name}.arguments").read_text().splitlines()
        assert SIGNER.identity in arguments
        assert arguments[-1] == last


def test_images_outside_the_registry_of_the_workflow_are_not_signed() -> None:
    assert signatures.exist("ghcr.io/bodhisearch/llama.cpp")
    assert not signatures.exist("127.0.0.1:5000/llama.cpp")
    assert not signatures.exist("ghcr.io.example.org/bodhisearch/llama.cpp")


def test_what_is_latest_is_verified_without_dockers_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cosign", "gh"):
        programs.script(tmp_path / name, f'cat "$DOCKER_CONFIG/config.json" >{tmp_path / name}.config')
    (tmp_path / "config.json").write_text('{"auths": {"ghcr.io": {"auth": "c29tZWJvZHk6c2VjcmV0"}}}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert latest.signature_problems(IMAGE, SIGNER) == []
    assert [(tmp_path / f"{name}.config").read_text() for name in ("cosign", "gh")] == ["{}", "{}"]
