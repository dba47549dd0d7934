"""A registry, and a clone that publishes to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import git
import pytest

from base_images.adapters import registry
from base_images.adapters.engine import Engine
from base_images.adapters.registry import Repository, open_repository
from tests.support import clones
from tests.support.registries import Registry
from tests.support.releases import Site


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started
    if made := engine.images(reference=f"{started.address}/*"):
        subprocess.run(["docker", "rmi", "--force", *{one.id for one in made}], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def repository(served: Registry, request: pytest.FixtureRequest) -> Repository:
    name = "".join(letter for letter in request.node.name.lower() if letter.isalnum() or letter == "_").strip("_")
    return open_repository(f"{served.address}/{name}")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[git.Repo]:
    directory = tmp_path_factory.mktemp("clone")
    root = clones.fresh_copy(directory / "clone", "dockerfiles", ".gitignore")
    with git.Repo.init(directory / "remote.git", bare=True), clones.commit_all(root) as made:
        made.git.remote("add", "origin", str(directory / "remote.git"))
        yield made


@pytest.fixture
def site(clone: git.Repo, repository: Repository, engine: Engine) -> Iterator[Site]:
    """A clean clone without releases; each test adds commits to its history."""
    yield Site(clone=clone, repository=repository, engine=engine)
    clone.git.clean("-fdx", "--quiet", "--exclude=__pycache__")
    for tag in clone.tags:
        clone.delete_tag(tag)
