"""The registry client against real registries: contents, trust and error messages."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from base_images import settings
from base_images.adapters import registry
from base_images.adapters.manifest import OCI_INDEX, OCI_MANIFEST
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import RegistryError
from base_images.labels import Label
from base_images.release import publish
from base_images.variants import Platform
from tests.support import commands, programs, releases
from tests.support.hostile import Request, hostile, reply
from tests.support.registries import (
    PASSWORD,
    USER,
    Authority,
    Registry,
    connections,
    front,
    log_in,
)

MISSING = f"sha256:{'0' * 64}"


@dataclass(frozen=True, kw_only=True)
class Registries:
    """A registry of each kind."""

    plain: Registry
    password: Registry
    tls: Registry
    both: Registry


@pytest.fixture(scope="module")
def registries(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registries]:
    with ExitStack() as running:

        def registry(*, password: bool = False, tls: Authority | None = None) -> Registry:
            return running.enter_context(Registry(tmp_path_factory.mktemp("registry"), password=password, tls=tls))

        yield Registries(
            plain=registry(),
            password=registry(password=True),
            tls=registry(tls=authority),
            both=registry(password=True, tls=authority),
        )


@pytest.fixture
def repository(registries: Registries, request: pytest.FixtureRequest) -> Repository:
    return open_repository(f"{registries.plain.address}/{request.node.name.replace('[', '-').strip(']')}")


@pytest.fixture(autouse=True)
def _no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own docker configuration is not read."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def push(repository: Repository, tag: str, platform: Platform = Platform.AMD64, **labels: str) -> str:
    return releases.push(repository, tag, platform, labels)


def trust(monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))


def test_an_empty_repository(repository: Repository) -> None:
    assert repository.tags() == []
    assert repository.digest("latest-cpu") is None
    assert repository.manifest("latest-cpu") is None
    assert repository.manifest(MISSING) is None
    assert repository.platform_manifests("latest-cpu") == {}
    with pytest.raises(RegistryError, match="has lost the blob sha256:0000"):
        repository.blob(MISSING)


def test_an_image_is_found_by_tag_and_by_digest(repository: Repository) -> None:
    digest = push(repository, "one", a="b")

    assert repository.tags() == ["one"]
    assert repository.digest("one") == repository.digest(digest) == digest
    found = repository.manifest("one")
    assert found
    assert found == repository.manifest(digest)
    assert (found.digest, found.media_type, found.is_index) == (digest, OCI_MANIFEST, False)
    assert repository.labels(found) == {"a": "b"}
    assert repository.platform_manifests("one") == {"linux/amd64": found}
    assert push(repository, "one", a="b") == digest
    other = push(repository, "one", a="c")
    assert repository.digest("one") == other != digest
    assert repository.digest(digest) == digest, "what a tag leaves stays"


def test_tags_are_read_from_all_pages() -> None:
    """Debian's registry returns all tags at once; others do not."""

    def page(asked: Request) -> Iterable[bytes]:
        if asked.path.endswith("?last=b"):
            return reply(200, b'{"tags": ["c"]}')
        return reply(200, b'{"tags": ["a", "b"]}', Link='</v2/x/tags/list?last=b>; rel="next"')

    with hostile(page) as server:
        assert open_repository(f"{server.address}/x").tags() == ["a", "b", "c"]


def test_an_index_is_reproducible_and_has_the_annotations_common_to_all_images(repository: Repository) -> None:
    images = {}
    for platform in (Platform.AMD64, Platform.ARM64):
        labels = {Label.TITLE: "llama.cpp cpu", Label.BASE_DIGEST: platform.architecture, "bodhi.variant": "cpu"}
        digest = push(repository, f"x-{platform.architecture}", platform, **labels)
        manifest = repository.manifest(digest)
        assert manifest
        images[platform] = manifest
    content = publish.index(repository, images)
    assert publish.index(repository, images) == content
    digest = repository.put_manifest("x", content)
    index = repository.manifest("x")
    assert index
    assert (index.digest, index.media_type, index.content) == (digest, OCI_INDEX, content)
    assert index.document["annotations"] == {Label.TITLE: "llama.cpp cpu"}
    assert repository.platform_manifests("x") == {platform.docker: manifest for platform, manifest in images.items()}


def test_an_index_of_a_missing_image_is_refused(repository: Repository) -> None:
    digest = push(repository, "one")
    manifest = repository.manifest(digest)
    assert manifest
    content = publish.index(repository, {Platform.AMD64: manifest}).replace(digest.encode(), MISSING.encode())
    with pytest.raises(RegistryError, match=r"refused to point x at .*MANIFEST_BLOB_UNKNOWN|lacks something that x"):
        repository.put_manifest("x", content)
    assert repository.tags() == ["one"]
    with pytest.raises(RegistryError, match="names no media type"):
        repository.put_manifest("x", b"{}")


def test_content_that_does_not_match_its_digest_is_refused(registries: Registries, repository: Repository) -> None:
    """A registry whose storage has another manifest under the digest."""
    right, wrong = push(repository, "right", c="only here"), push(repository, "wrong", a="b")
    data = Path(registries.plain.configuration).parent / "data/docker/registry/v2/blobs/sha256"
    stored = data / right[7:9] / right[7:] / "data"
    stored.write_bytes((data / wrong[7:9] / wrong[7:] / "data").read_bytes())
    with pytest.raises(RegistryError, match=f"answered {wrong} when asked for {right}: do not trust it"):
        repository.manifest(right)


def test_credentials_of_docker_login_are_used(
    registries: Registries, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority)
    log_in(tmp_path, registries.both.address)
    repository = open_repository(f"{registries.both.address}/login")
    digest = push(repository, "one")
    assert repository.tags() == ["one"]
    assert repository.digest("one") == digest


HELPER = """\
read server
cat /proc/[0-9]*/cmdline > {seen} 2>/dev/null
test "$1 $server" = "get {address}" || {{ echo "credentials not found in native keychain"; exit 1; }}
echo '{{"ServerURL": "{address}", "Username": "{user}", "Secret": "{password}"}}'
"""


def test_a_credential_helper_is_asked_and_no_secret_is_seen(
    registries: Registries, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command line: no secret is in the output, the errors or the arguments of any process."""
    address = registries.both.address
    seen = tmp_path / "seen"
    text = HELPER.format(address=address, user=USER, password=PASSWORD, seen=seen)
    helper = programs.script(tmp_path / "docker-credential-test", text)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {address: "test"}}))
    trust(monkeypatch, authority)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    repository = open_repository(f"{address}/helper")
    digest = push(repository, "cpu-2508201420-abc1234")

    found = image_digest(repository.name)
    assert (found.returncode, found.stdout) == (0, f"{digest}\n")
    helper.write_text(helper.read_text().replace(PASSWORD, PASSWORD.upper()))
    refused = image_digest(repository.name)
    assert refused.returncode == RegistryError.exit_code
    assert f"log in with `docker login {address}`" in refused.stderr
    helper.write_text(f"#!/bin/sh\necho '{PASSWORD}'; exit 1\n")
    broken = image_digest(repository.name)
    assert broken.returncode == RegistryError.exit_code
    assert "cannot be read: look at ~/.docker/config.json and its credential helper" in broken.stderr
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    output = "".join(done.stdout + done.stderr for done in (found, refused, broken)) + seen.read_text(errors="replace")
    assert "image-digest" in output
    for secret in (PASSWORD, PASSWORD.upper(), encoded):
        assert secret not in output
    assert "Traceback" not in output


def image_digest(name: str) -> subprocess.CompletedProcess[str]:
    options = ("--variant", "cpu", "--version", "2508201420-abc1234")
    return commands.invoke("image-digest", *options, environment={settings.REGISTRY_VARIABLE: name})


def test_without_valid_credentials_the_error_says_how_to_log_in(
    registries: Registries, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust(monkeypatch, authority)
    told = rf"did not let us list the tags of {registries.both.address}/x: log in with `docker login"
    with pytest.raises(RegistryError, match=told) as without:
        open_repository(f"{registries.both.address}/x").tags()
    log_in(tmp_path, registries.both.address, password="wrong secret")  # noqa: S106
    with pytest.raises(RegistryError, match=told) as wrong:
        open_repository(f"{registries.both.address}/x").tags()
    for caught in (without, wrong):
        assert "secret" not in repr(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registries.both.address: {"identitytoken": "t0ken"}}}))
    with pytest.raises(RegistryError, match="docker holds no user name and password") as token:
        open_repository(f"{registries.both.address}/x")
    assert "t0ken" not in repr(token.value)
    (tmp_path / "config.json").write_text('{"auths": {"secret": [}')
    with pytest.raises(RegistryError, match=r"did not let us|cannot be read") as unreadable:
        open_repository(f"{registries.both.address}/x").tags()
    assert "[}" not in str(unreadable.value)


def test_credentials_are_not_sent_in_the_clear(registries: Registries, tmp_path: Path) -> None:
    log_in(tmp_path, registries.password.address)
    with pytest.raises(RegistryError, match="wants credentials and speaks no TLS: they are not sent in the clear"):
        open_repository(f"{registries.password.address}/x").tags()


def test_an_unknown_certificate_authority_is_reported(registries: Registries) -> None:
    address = registries.tls.address
    with pytest.raises(RegistryError, match=rf"certificate that this machine does not trust: .*/{address}/ca.crt"):
        open_repository(f"{address}/x").tags()


def test_certificate_authorities_of_the_machine_and_of_docker_are_trusted(
    registries: Registries, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = registries.tls.address
    with monkeypatch.context() as patch:
        trust(patch, authority)
        assert open_repository(f"{address}/x").tags() == []
    monkeypatch.setattr(registry, "CERTIFICATE_DIRECTORY", tmp_path)
    (tmp_path / address).mkdir()
    (tmp_path / address / "ca.crt").write_bytes(authority.authority.read_bytes())
    assert open_repository(f"{address}/x").tags() == []


def test_an_unreachable_registry_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        name = f"127.0.0.1:{server.getsockname()[1]}/x"
    for patient in (True, False):
        with pytest.raises(RegistryError, match=r"does not answer \(ConnectionError\): check the network"):
            open_repository(name, patient=patient).tags()


def test_a_silent_registry_is_given_up_after_all_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "REACH_SECONDS", 0.3)
    monkeypatch.setattr(registry, "TIMEOUT_SECONDS", 0.3)
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        for patient, attempts in ((True, registry.ATTEMPTS), (False, 1)):
            with pytest.raises(RegistryError, match=r"does not answer \(ReadTimeout\)"):
                open_repository(f"127.0.0.1:{server.getsockname()[1]}/x", patient=patient).tags()
            assert connections(server) == 1 + attempts  # the first is to see whether it speaks TLS


def test_a_registry_that_resets_a_tls_handshake_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        thread = threading.Thread(target=drop, args=(server,))
        thread.start()
        assert not registry._speaks_tls(address)
        thread.join()
    assert registry._speaks_tls(address), "nothing listens: the first question says so"


def drop(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
    connection.recv(1)
    connection.close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_registry_is_retried(
    registries: Registries, repository: Repository, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.01)
    digest = push(repository, "one")
    manifest = repository.manifest("one")
    assert manifest
    asked: list[str] = []

    def twice_busy(method: str, path: str) -> int | None:
        asked.append(f"{method} {path}")
        return status if asked.count(asked[-1]) < registry.ATTEMPTS else None

    with front(registries.plain.address, twice_busy) as address:
        before = open_repository(repository.name.replace(registries.plain.address, address))
        assert before.digest("one") == digest
        assert before.put_manifest("two", manifest.content) == digest
        with pytest.raises(RegistryError, match=rf"could not list the tags of .* \(HTTP status {status}\): run the"):
            open_repository(before.name, patient=False).tags()
    assert max(map(asked.count, asked)) == registry.ATTEMPTS


def test_a_refusal_is_not_retried(registries: Registries, repository: Repository) -> None:
    asked: list[str] = []

    def refuse(method: str, path: str) -> int | None:
        asked.append(f"{method} {path}")
        return 403 if method == "HEAD" else 405

    with front(registries.plain.address, refuse) as address:
        refusing = open_repository(repository.name.replace(registries.plain.address, address))
        with pytest.raises(RegistryError, match=r"forbids to look at one of .*`docker login .*` as a user who may"):
            refusing.digest("one")
        with pytest.raises(
            RegistryError, match=r"refused to list the tags of .*\(HTTP status 405\): it gives no reason"
        ):
            refusing.tags()
    assert len(asked) == 2


@pytest.mark.parametrize("body", [b"<html>Sign in to the hotel's network</html>", b"[]", b"7", b"\xff\xfe"])
def test_an_answer_that_is_not_a_registrys_is_reported(body: bytes) -> None:
    with hostile(lambda _: reply(200, body, Content_Type="text/html")) as server:
        repository = open_repository(f"{server.address}/x")
        for question in (repository.tags, lambda: repository.manifest("one")):
            with pytest.raises(RegistryError, match="gave an answer that makes no sense to "):
                question()
