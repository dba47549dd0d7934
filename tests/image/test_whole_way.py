"""A release by the commands of docs/releasing.md, to `latest` and back, with a real image, registry and git remote."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import git
import pytest

from base_images import settings, versions
from base_images.adapters.engine import Engine
from tests.image.test_readme import RELEASING, script
from tests.support import clones, documents
from tests.support.registries import Registry

BLOCKS = re.findall(r"^```sh\n(.*?)^```$", RELEASING, re.MULTILINE | re.DOTALL)
EXAMPLE = "2508201420-abc1234"
"""The version that the document shows."""

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

MAKE_TABLE = re.findall(r"^\| `make ([a-z-]+)` \| `invoke ([a-z-]+)` \|$", documents.TEXT, re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A clone with one variant, its remote, and a registry."""

    clone: git.Repo
    environment: Mapping[str, str]
    variant: str
    registry: str

    def says(self, text: str) -> str:
        """Runs a block of the document in the clone, for this variant, version and registry; returns its output."""
        text = text.replace(EXAMPLE, self.version()).replace(settings.load().registry, self.registry)
        text = re.sub(r"\bcpu\b", self.variant, text)
        if self.variant == "vulkan":
            text = text.replace("--variant vulkan --image", "--variant vulkan --on software --image")
        there = str(self.clone.working_dir)
        known = {**self.environment, "PATH": PATH, "BASE_IMAGES_CALLER_DIRECTORY": there}
        done = script(text, Path(there), **known)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def version(self) -> str:
        """Returns this commit's version."""
        return str(json.loads(clones.invoke(self.clone, self.environment, "show-git-info", "--json").stdout)["version"])

    def published(self) -> dict[str, Any]:
        """Returns what the registry has of the variant."""
        status = json.loads(clones.invoke(self.clone, self.environment, "check-version", "--json").stdout)
        [found] = status["registry"]["variants"]
        return dict(found)

    def latest(self) -> str:
        """Returns the version of `latest`; empty for none."""
        found = self.published()["latest"]
        return str(found["version"]) if found else ""

    def refused(self, *arguments: str) -> str:
        """Returns the output of a command that must refuse."""
        done = clones.invoke(self.clone, self.environment, *arguments)
        assert done.returncode == 1, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module", params=["cpu", pytest.param("vulkan", marks=pytest.mark.lavapipe)])
def project(
    request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Project]:
    name = request.param
    directory = tmp_path_factory.mktemp("release")
    local = versions.local_reference(name)
    before = engine.image(local).id  # its layers are the cache of the next build
    registry = Registry(directory / "registry")
    repository = f"{registry.address}/bodhisearch/llama.cpp"
    environment = {**clones.environment(), settings.REGISTRY_VARIABLE: repository}
    try:
        with clones.clone(directory) as clone:
            clones.narrow(clone, (name,))
            # An hour old, so that the next commit has a newer version.
            date = {"GIT_COMMITTER_DATE": f"{int(time.time()) - 3600} +0000"}
            clone.git.execute(["git", "commit", "--amend", "--no-edit"], env={**environment, **date})
            clone.git.push("--force", "origin", "main")
            yield Project(clone=clone, environment=environment, variant=name, registry=repository)
    finally:
        registry.stop()
        engine.tag(before, local)
        for image in engine.images(reference=repository):
            for reference in (*image.tags, *image.repo_digests):
                if reference.startswith(repository):
                    engine.remove_image(reference)


def release_blocks() -> tuple[str, str, str, str, str]:
    """Returns the blocks that tag, publish, promote, roll back and make the status page."""
    release, publish, promote, rollback, status = BLOCKS
    return (
        release.replace("invoke release-base-images\n", "invoke release-base-images --yes\n"),
        publish,
        promote,
        rollback,
        status,
    )


@pytest.mark.usefixtures("cpu_image")
def test_a_release_and_its_rollback(project: Project) -> None:
    release, publish, promote, rollback, status = release_blocks()

    project.says(release)
    first = project.version()
    assert f"refs/tags/base-images/v{first}" in str(project.clone.git.ls_remote("origin"))
    assert "already released" in project.says(release)
    assert "is not published" not in project.says(publish)
    assert project.latest() == "", "publishing moves nothing"
    project.says(promote)
    assert project.latest() == first
    record = json.loads(Path(project.clone.working_dir, "build/github-release/release.json").read_text())
    assert [(one["name"], one["status"]) for one in record["variants"]] == [(project.variant, "latest")]

    project.clone.git.commit("--allow-empty", "--message", "Another one")
    project.clone.git.push("origin", "main")
    assert "not released" in clones.invoke(project.clone, project.environment, "publish").stderr
    project.says(release)
    second = project.version()
    assert "no contract report" in project.refused("promote") or "publish it first" in project.refused("promote")
    project.says(publish)
    assert project.latest() == first
    project.says(promote)
    assert project.latest() == second
    assert project.published()["before"] == first

    project.says(rollback.replace(EXAMPLE, first))
    assert project.latest() == first
    assert project.published()["notes"] == [f"rolled back to {first}"]
    project.says(status)
    [page] = json.loads(Path(project.clone.working_dir, "build/status/status.json").read_text())["variants"]
    assert [move["version"] for move in page["moves"]] == [first, second, first]
    assert all(image["smoke_tested_on"] for image in page["release"]["platforms"])
    assert "was rolled back" in project.refused("promote", "--version", second)
    assert project.latest() == first
    project.says(f"invoke rollback --variant cpu --to {second}")
    assert project.latest() == second


def test_every_make_target_has_a_command_of_its_name() -> None:
    assert len(MAKE_TABLE) == documents.TEXT.count("| `make ")
    assert [old.replace("check-base-images-version", "check-version") for old, _ in MAKE_TABLE] == [
        new for _, new in MAKE_TABLE
    ]


@pytest.mark.parametrize("command", [new for _, new in MAKE_TABLE])
@pytest.mark.usefixtures("cpu_image")
def test_the_command_for_a_make_target_runs(project: Project, command: str) -> None:
    # Removes nothing from this machine and asks no question.
    safe = {"clean-local-images": "--dry-run", "release-base-images": "--yes"}.get(command, "")
    project.says(shlex.join(filter(None, ("invoke", command, safe))))
