"""A config.json of docker's that is not docker's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from base_images.adapters import docker_config, engine
from base_images.adapters.registry import open_repository
from base_images.errors import EngineError, RegistryError

HOST = "127.0.0.1:1"
SECRET = "c2VrcmV0"  # noqa: S105 - "sekret" in base64, without a user


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    return tmp_path / "config.json"


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "7", "null", '"x"', "[" * 100_000, '{"auths": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        *(f'{{"{name}": 7}}' for name in ("auths", "credHelpers", "credsStore", "HttpHeaders", "proxies")),
        *(f'{{"{name}": {{"{HOST}": 7}}}}' for name in ("auths", "credHelpers", "HttpHeaders", "proxies")),
        *(f'{{"auths": {{"{HOST}": {{"auth": {auth}}}}}}}' for auth in ("7", "null", "[]", '"%%%"', '"//8="')),
        f'{{"auths": {{"{HOST}": {{"auth": "{SECRET}"}}}}}}',
        '{"currentContext": {}, "auths": 7}',
    ],
    ids=itertools.count(),
)
def test_a_malformed_configuration_is_one_sentence(config: Path, content: str) -> None:
    config.write_text(content)
    with pytest.raises(RegistryError, match=rf"docker's credentials for {HOST} cannot be read: {config} ") as registry:
        open_repository(f"{HOST}/x")
    with pytest.raises(EngineError, match=rf"^{config} ") as engines:
        engine.connect()
    for caught in (registry, engines):
        assert "\n" not in str(caught.value)
        assert SECRET not in repr(caught.value)
        assert "sekret" not in repr(caught.value)


@pytest.mark.parametrize(
    "content", ["", "{", "\ufeff", '{"auths": {"x": {}}, "credsStore": ""}', '{"auths": null}', "{}"]
)
def test_what_docker_ignores_or_accepts_is_no_error(config: Path, content: str) -> None:
    config.write_text(content)
    docker_config.require_usable()
    open_repository(f"{HOST}/x")
