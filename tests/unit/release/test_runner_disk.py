from __future__ import annotations

from pathlib import Path

import pytest

from base_images.release import runner_disk
from tests.support.commands import invoke


def test_only_the_toolchains_are_removed(tmp_path: Path) -> None:
    gone = [tmp_path / name for name in ("usr/share/dotnet", "usr/local/julia1.11.5", "opt/hostedtoolcache/CodeQL")]
    kept = [tmp_path / name for name in ("usr/share/doc", "usr/local/bin", "opt/hostedtoolcache/Python")]
    for path in (*gone, *kept):
        path.mkdir(parents=True)
        (path / "file").write_text("x")

    freed = runner_disk.free(tmp_path)

    assert set(freed.removed) == set(gone)
    assert freed.free > 0
    assert not [path for path in gone if path.exists()]
    assert all((path / "file").exists() for path in kept)
    assert runner_disk.free(tmp_path).removed == ()


@pytest.mark.parametrize(
    ("environment", "hosted"),
    [({}, False), ({"RUNNER_ENVIRONMENT": "self-hosted"}, False), ({"RUNNER_ENVIRONMENT": "github-hosted"}, True)],
)
def test_only_github_hosted_runners_are_cleaned(environment: dict[str, str], hosted: bool) -> None:
    assert runner_disk.is_hosted(environment) is hosted


@pytest.mark.parametrize("where", ["", "self-hosted"])
def test_on_any_other_machine_the_command_does_nothing(where: str) -> None:
    done = invoke("free-runner-disk", environment={"RUNNER_ENVIRONMENT": where})
    assert done.returncode == 0
    assert "nothing removed" in done.stdout


def test_no_pattern_matches_a_system_directory() -> None:
    for pattern in runner_disk.TOOLCHAINS:
        assert not pattern.startswith("/")
        assert ".." not in pattern
        assert len(Path(pattern).parts) > 1, pattern
