"""Which engine is meant. `tests/image/adapters/test_elsewhere.py` compares the answers with docker's own client."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from base_images.adapters import endpoint
from base_images.adapters.endpoint import Endpoint
from base_images.errors import EngineError

SECRET = "hunter2"  # noqa: S105 - of no engine


def store(directory: Path, name: str, content: object) -> Path:
    """Stores a context as docker's client does, and returns its meta.json."""
    path = directory / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest() / "meta.json"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def at(host: str, **more: Any) -> dict[str, Any]:
    return {"Name": "x", "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False, **more}}}


def resolve(directory: Path, **environment: str) -> Endpoint:
    return endpoint.resolve({"DOCKER_CONFIG": str(directory), **environment})


def refusal(directory: Path, **environment: str) -> str:
    with pytest.raises(EngineError) as caught:
        resolve(directory, **environment)
    assert SECRET not in str(caught.value)
    assert SECRET not in endpoint.chosen({"DOCKER_CONFIG": str(directory), **environment})
    return str(caught.value)


def test_a_choice_goes_before_the_next(tmp_path: Path) -> None:
    store(tmp_path, "one", at("tcp://one:1"))
    store(tmp_path, "two", at("tcp://two:2"))
    assert resolve(tmp_path) == Endpoint(address=endpoint.LOCAL, tls=None, where="")
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "one"}))
    assert resolve(tmp_path) == Endpoint(address="tcp://one:1", tls=None, where="docker's context one")
    assert resolve(tmp_path, DOCKER_CONTEXT="two").address == "tcp://two:2"
    assert resolve(tmp_path, DOCKER_CONTEXT="default").address == endpoint.LOCAL
    assert resolve(tmp_path, DOCKER_CONTEXT="no-such", DOCKER_HOST="tcp://three:3").address == "tcp://three:3"
    assert resolve(tmp_path, DOCKER_HOST="").address == "tcp://one:1"
    # Docker looks for its configuration at home.
    shutil.copytree(tmp_path, tmp_path / "home" / ".docker")
    assert endpoint.resolve({"HOME": str(tmp_path / "home")}).address == "tcp://one:1"


@pytest.mark.parametrize("chosen_by", ["DOCKER_CONTEXT", "config.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "names the context 'typo', which does not exist: "),
        ("{", "not valid JSON"),
        ("[]", "not valid JSON, or not docker's"),
        ({"Endpoints": {}}, "has no engine"),
        ({"Endpoints": {"docker": {"Host": 7}}}, "not valid JSON, or not docker's"),
        (at("npipe:////./pipe/docker"), "names an engine by npipe://"),
        (at(f"ssh://me:{SECRET}@host"), "docker's context typo has a password"),
    ],
)
def test_a_context_that_cannot_be_used_is_an_error(tmp_path: Path, chosen_by: str, content: object, said: str) -> None:
    if content is not None:
        store(tmp_path, "typo", content)
    environment = {"DOCKER_CONTEXT": "typo"} if chosen_by == "DOCKER_CONTEXT" else {}
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "good" if environment else "typo"}))
    message = refusal(tmp_path, **environment)
    assert said in message
    if content is None:
        assert message.startswith(chosen_by if environment else str(tmp_path / chosen_by))
    assert endpoint.chosen({"DOCKER_CONFIG": str(tmp_path), **environment}) == "docker's context typo"


@pytest.mark.parametrize("content", ["{", "[]", '{"currentContext": 7}', '"text"'])
def test_a_configuration_that_cannot_be_read_chooses_no_engine(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert str(tmp_path / "config.json") in refusal(tmp_path)
    assert endpoint.chosen({"DOCKER_CONFIG": str(tmp_path)}) == "docker's configuration"
    assert resolve(tmp_path, DOCKER_HOST="tcp://host:1").address == "tcp://host:1"


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("unix:///run/docker.sock", "unix:///run/docker.sock"),
        ("unix://", endpoint.LOCAL),
        ("  ", endpoint.LOCAL),
        ("tcp://Host:2375", "tcp://host:2375"),
        ("tcp://host", "tcp://host:2375"),
        ("tcp://:1", "tcp://localhost:1"),
        ("tcp://[::1]:1", "tcp://[::1]:1"),
        ("host:1", "tcp://host:1"),
        (f"tcp://me:{SECRET}@host:1/path/", "tcp://host:1/path"),
        ("ssh://me@Host:22/run/docker.sock", "ssh://me@Host:22/run/docker.sock"),
    ],
)
def test_addresses_are_completed_as_in_docker(tmp_path: Path, host: str, address: str) -> None:
    found = resolve(tmp_path, DOCKER_HOST=host)
    assert found.address == address
    assert SECRET not in repr(found)
    assert "me@" not in found.where


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("http://host:1", "names an engine by http://"),
        (f"foo://me:{SECRET}@host", "names an engine by foo://"),
        (f"ssh://me:{SECRET}@host", "has a password"),
        ("ssh://", "names no host"),
        (f"tcp://me:{SECRET}@host:99999", "has no valid address"),
        ("tcp://[::1", "has no valid address"),
    ],
)
def test_an_address_that_means_nothing_is_refused(tmp_path: Path, host: str, said: str) -> None:
    message = refusal(tmp_path, DOCKER_HOST=host)
    assert message.startswith("DOCKER_HOST ")
    assert said in message


def test_tls_is_that_of_the_environment_or_of_the_context(tmp_path: Path) -> None:
    certificates = tmp_path / "certificates"
    certificates.mkdir()
    host = {"DOCKER_HOST": "tcp://host", "DOCKER_CERT_PATH": str(certificates)}
    assert resolve(tmp_path, **host).tls is None  # as in docker's client
    assert "there is no" in refusal(tmp_path, **host, DOCKER_TLS_VERIFY="1")
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (certificates / name).touch()
    found = resolve(tmp_path, **host, DOCKER_TLS_VERIFY="1")
    assert found.address == "tcp://host:2376"
    identity = (certificates / "cert.pem", certificates / "key.pem")
    assert found.tls == endpoint.Tls(authority=certificates / "ca.pem", identity=identity, verify=True)
    unverified = resolve(tmp_path, **host, DOCKER_TLS="1").tls
    assert unverified is not None
    assert not unverified.verify

    store(tmp_path, "plain", at("tcp://host:1"))
    store(tmp_path, "unverified", at("tcp://host:1", SkipTLSVerify=True))
    meta = store(tmp_path, "tls", at("tcp://host:1"))
    assert resolve(tmp_path, DOCKER_CONTEXT="plain", DOCKER_TLS_VERIFY="1").tls is None
    assert resolve(tmp_path, DOCKER_CONTEXT="unverified").tls == endpoint.Tls(
        authority=None, identity=None, verify=False
    )
    material = tmp_path / "contexts" / "tls" / meta.parent.name / "docker"
    shutil.copytree(certificates, material)
    assert resolve(tmp_path, DOCKER_CONTEXT="tls").tls == endpoint.Tls(
        authority=material / "ca.pem", identity=(material / "cert.pem", material / "key.pem"), verify=True
    )
