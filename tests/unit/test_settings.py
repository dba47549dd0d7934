"""The registry of pyproject.toml and BASE_IMAGES_REGISTRY, and URLs with a password."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from base_images import settings
from base_images.errors import UsageError


@pytest.mark.parametrize(
    "name",
    [
        *("ghcr.io/bodhisearch/llama.cpp", "127.0.0.1:5000/x", "localhost:5000/a/b-c__d.e", "[::1]:5000/x"),
        *("localhost/x", "nvidia/cuda", "ubuntu", "registry.example.org:65535/x", "My-Registry.example/x"),
    ],
)
def test_a_registry_is_a_repository(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REGISTRY_VARIABLE, name)
    assert settings.load().registry == name


@pytest.mark.parametrize(
    "name",
    [
        *("user:sekret@ghcr.io/x", "https://ghcr.io/x", "https://user:sekret@ghcr.io/x", "ghcr.io/x:latest"),
        *("ghcr.io/", "127.0.0.1:99999/x", "127.0.0.1:0/x", "127.0.0.1:/x", "127.0.0.1:5000/x y"),
        *("ghcr.io/x@sha256:1", "ghcr.io/X", "ghcr.io//x", "../x", "x/..", "x\ny", "[::1/x", "a" * 100_000 + "!"),
    ],
    ids=itertools.count(),
)
def test_another_registry_is_refused_without_quoting_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.REGISTRY_VARIABLE, name)
    with pytest.raises(UsageError, match="is not the name of a repository: write it as") as caught:
        settings.load()
    assert "sekret" not in repr(caught.value)


def test_the_projects_url_loses_its_password(tmp_path: Path) -> None:
    """It becomes a label; the pin's repository is used to fetch, and only messages lose it."""
    text = (settings.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    changed = text.replace('url = "https://', 'url = "https://user:sekret@')
    assert changed != text
    (tmp_path / "pyproject.toml").write_text(changed, encoding="utf-8")
    assert settings.load(tmp_path).url == settings.load().url


def test_what_newest_follows_is_a_build_or_a_release(tmp_path: Path) -> None:
    text = (settings.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert settings.load().pin.follow is settings.Follow.BUILD
    (tmp_path / "pyproject.toml").write_text(text.replace('follow = "build"', 'follow = "nightly"'), encoding="utf-8")
    with pytest.raises(UsageError, match="has 'nightly' at the key 'follow': write build or release"):
        settings.load(tmp_path)
