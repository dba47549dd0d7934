"""The registry client with token authentication, as at GHCR and Docker Hub: scopes, renewal and error messages.

The token server implements https://distribution.github.io/distribution/spec/auth/token/ and .../spec/auth/jwt/.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from base_images.adapters import engine as engines
from base_images.adapters import registry
from base_images.adapters.manifest import OCI_MANIFEST
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import EngineError, RegistryError
from tests.support.registries import PASSWORD, USER, Authority, Front, Registry, encrypt, log_in
from tests.support.servers import Handler, running

READER = "reader"
_LIFETIME_SECONDS = 300
_SERVICE = "a registry"
_ISSUER = "a token server"
_LEEWAY_SECONDS = 60
"""docker-registry 2.8 accepts a token this long after it expired (distribution's registry/auth/token/token.go)."""


class Asked(NamedTuple):
    """A request for a token; `user` is empty for an anonymous one."""

    user: str
    scope: str


class TokenServer(http.server.ThreadingHTTPServer):
    """Grants the writer whatever it asks for; grants the reader and anonymous clients `pull`.

    Attributes:
        asked: the granted requests, oldest first.
        tokens: their tokens.
    """

    daemon_threads = True

    def __init__(self, directory: Path, tls: Authority) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        encrypt(self, tls)
        self.asked: list[Asked] = []
        self.tokens: list[str] = []
        directory.mkdir()
        self._key, self._certificate = directory / "sign.key", directory / "sign.crt"
        new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
        files = ["-keyout", str(self._key), "-out", str(self._certificate)]
        subprocess.run([*new, *files], check=True, capture_output=True)

    def registry_auth(self) -> str:
        """Returns the line of a registry's configuration that makes it accept this server's tokens."""
        realm = f"https://127.0.0.1:{self.server_address[1]}/token"
        options = f"realm: '{realm}', service: {_SERVICE}, issuer: {_ISSUER}, rootcertbundle: {self._certificate}"
        return f"auth: {{token: {{{options}}}}}"

    def grant(self, user: str, scope: str) -> str:
        """Returns a token for the allowed part of the scope, and records the request."""
        token = self.token(user, scope)
        self.asked.append(Asked(user, scope))
        self.tokens.append(token)
        return token

    def token(self, user: str, scope: str, *, lifetime: int = _LIFETIME_SECONDS) -> str:
        """Returns a token without recording it, valid for `lifetime` seconds; expired if that is negative."""
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        may = {"pull", "push"} if user == USER else {"pull"}
        access = [{"type": kind, "name": name, "actions": sorted(may & set(actions.split(",")))}] if scope else []
        now = int(time.time())
        return self._sign(
            {
                "iss": _ISSUER,
                "sub": user,
                "aud": _SERVICE,
                "iat": now,
                "nbf": now,
                "exp": now + lifetime - _LEEWAY_SECONDS,
                "jti": secrets.token_hex(8),
                "access": access,
            }
        )

    def _sign(self, claims: dict[str, object]) -> str:
        certificate = "".join(self._certificate.read_text(encoding="ascii").splitlines()[1:-1])
        header = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(sign, input=signed.encode(), check=True, capture_output=True).stdout
        return f"{signed}.{_base64(signature)}"


class _Handler(Handler):
    server: TokenServer

    def do_GET(self) -> None:
        kind, _, secret = self.headers.get("Authorization", "").partition(" ")
        user, _, password = base64.b64decode(secret).decode().partition(":")
        if kind and (kind != "Basic" or user not in {USER, READER} or password != PASSWORD):
            self._answer(HTTPStatus.UNAUTHORIZED, {"errors": [{"code": "UNAUTHORIZED", "message": "who is that"}]})
            return
        scope = parse_qs(urlsplit(self.path).query).get("scope", [""])[0]
        self._answer(HTTPStatus.OK, {"token": self.server.grant(user, scope), "expires_in": _LIFETIME_SECONDS})

    def _answer(self, status: HTTPStatus, document: dict[str, object]) -> None:
        self.answer(status, json.dumps(document).encode())


class Forbidding(Front):
    """Answers as GHCR does to a token without the right to write: 403, not 401 with a challenge for a new token."""

    def __init__(self, registry: str, tls: Authority, before: Callable[[str, str], int | None]) -> None:
        super().__init__(registry, before, tls=tls)
        self.forbidden = 0

    def status(self, answer: http.client.HTTPResponse) -> int:
        """Returns the HTTP status to answer with."""
        if 'error="insufficient_scope"' not in answer.headers.get("Www-Authenticate", ""):
            return answer.status
        self.forbidden += 1
        return HTTPStatus.FORBIDDEN


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def serving(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TokenServer, Registry]]:
    directory = tmp_path_factory.mktemp("registry")
    with (
        TokenServer(directory / "tokens", authority) as tokens,
        running(tokens),
        Registry(directory / "registry", more=tokens.registry_auth(), tls=authority) as registry,
    ):
        yield tokens, registry


@pytest.fixture(autouse=True)
def tokens(
    serving: tuple[TokenServer, Registry], authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TokenServer:
    """The token server before any request, without a login."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.01)
    found = serving[0]
    found.asked.clear()
    return found


@pytest.fixture
def name(serving: tuple[TokenServer, Registry], request: pytest.FixtureRequest) -> str:
    return f"{serving[1].address}/{request.function.__name__}"


def push(repository: Repository, tag: str) -> str:
    """Pushes an image without layers, different for each tag, and returns its digest."""
    return repository.put_manifest(tag, manifest(repository.put_blob(tag.encode()), tag))


def manifest(configuration: str, tag: str) -> bytes:
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": len(tag), "digest": configuration}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}).encode()


def scope(name: str, actions: str) -> str:
    return f"repository:{name.partition('/')[2]}:{actions}"


def test_write_access_is_requested_once_and_only_for_a_write(name: str, tokens: TokenServer, tmp_path: Path) -> None:
    log_in(tmp_path, name.partition("/")[0])
    repository = open_repository(name)
    assert repository.tags() == []
    assert tokens.asked == [Asked(USER, scope(name, "pull"))]

    one, two = push(repository, "one"), push(repository, "two")

    assert tokens.asked == [Asked(USER, scope(name, "pull")), Asked(USER, scope(name, "pull,push"))]
    assert (repository.digest("one"), repository.digest("two")) == (one, two)
    assert len(tokens.asked) == 2


@contextmanager
def forbidding(
    registry: Registry, authority: Authority, before: Callable[[str, str], int | None] = lambda *_: None
) -> Iterator[Forbidding]:
    with Forbidding(registry.address, authority, before) as server, running(server):
        yield server


def test_a_write_works_where_a_read_token_is_forbidden(
    name: str, tokens: TokenServer, serving: tuple[TokenServer, Registry], authority: Authority, tmp_path: Path
) -> None:
    with forbidding(serving[1], authority) as front:
        log_in(tmp_path, front.address)
        repository = open_repository(name.replace(serving[1].address, front.address))
        assert repository.tags() == []
        digest = push(repository, "one")
        assert repository.digest("one") == digest
        assert not front.forbidden
    assert [request.scope for request in tokens.asked] == [scope(name, "pull"), scope(name, "pull,push")]


def test_an_expired_token_is_renewed_with_the_same_scope(
    name: str, tokens: TokenServer, serving: tuple[TokenServer, Registry], authority: Authority, tmp_path: Path
) -> None:
    """Between two writes, between two reads, and within an upload."""

    def expire(repository: Repository, actions: str) -> None:
        repository._client.token = tokens.token(USER, scope(repository.name, actions), lifetime=-1)

    def expire_in_an_upload(method: str, path: str) -> None:
        if method == "POST" and path.endswith(f"{uploads.name.partition('/')[2]}/blobs/uploads/"):
            expire(uploads, "pull,push")

    with forbidding(serving[1], authority, expire_in_an_upload) as front:
        log_in(tmp_path, front.address)
        names = [f"{front.address}/{name.partition('/')[2]}-{number}" for number in range(4)]
        reads, writes, points, uploads = map(open_repository, names)
        assert reads.tags() == []
        push(writes, "one")
        configuration = points.put_blob(b"two")
        expire(reads, "pull")
        expire(writes, "pull,push")
        expire(points, "pull,push")
        tokens.asked.clear()

        assert uploads.blob(uploads.put_blob(b"one")) == b"one"
        assert reads.tags() == []
        assert push(writes, "two") == writes.digest("two")
        assert points.point("two", manifest(configuration, "two")) == points.digest("two")

        asked = [(names[3], "pull,push"), (names[3], "pull,push"), (names[0], "pull")]
        asked += [(names[1], "pull,push"), (names[2], "pull,push")]
        assert tokens.asked == [Asked(USER, scope(*expected)) for expected in asked]
        assert not front.forbidden


@pytest.mark.parametrize("forbids", [False, True])
def test_a_read_only_user_is_told_to_log_in_as_another_to_write(
    name: str,
    serving: tuple[TokenServer, Registry],
    authority: Authority,
    tokens: TokenServer,
    tmp_path: Path,
    forbids: bool,
) -> None:
    host = serving[1].address
    log_in(tmp_path, host)
    digest = push(open_repository(name), "one")
    with forbidding(serving[1], authority) as front:
        if forbids:
            host, name = front.address, name.replace(host, front.address)
        log_in(tmp_path, host, user=READER)
        reader = open_repository(name)
        found = reader.manifest("one")
        assert found
        assert found.digest == digest
        for write in (partial(reader.put_blob, b"new"), partial(reader.point, "two", found.content)):
            with pytest.raises(RegistryError, match=rf"`docker login {host}` as a user who may\.$") as told:
                write()
            says_no_secret(told.value, reader, tokens)
        assert reader.tags() == ["one"]
        assert bool(front.forbidden) == forbids


def test_an_anonymous_user_is_told_to_log_in_to_write(name: str, tokens: TokenServer, tmp_path: Path) -> None:
    host = name.partition("/")[0]
    log_in(tmp_path, host)
    digest = push(open_repository(name), "one")
    (tmp_path / "config.json").unlink()
    nobody = open_repository(name)
    tokens.asked.clear()
    assert nobody.digest("one") == digest
    assert tokens.asked == [Asked("", scope(name, "pull"))]
    with pytest.raises(RegistryError, match=rf"did not let us push a blob of {name}: log in with `docker login {host}"):
        nobody.put_blob(b"new")
    assert nobody.tags() == ["one"]


def test_a_wrong_password_is_reported_without_secrets(name: str, tokens: TokenServer, tmp_path: Path) -> None:
    host = name.partition("/")[0]
    log_in(tmp_path, host, "wrong secret")
    repository = open_repository(name)
    for question in (repository.tags, lambda: repository.put_blob(b"new")):
        with pytest.raises(
            RegistryError, match=rf"did not let us .* of {name}: log in with `docker login {host}"
        ) as told:
            question()
        says_no_secret(told.value, repository, tokens)
    assert not tokens.asked


def test_a_registry_that_is_busy_during_the_login_is_retried(
    name: str, serving: tuple[TokenServer, Registry], authority: Authority, tmp_path: Path
) -> None:
    busy = [503, 429]
    with forbidding(serving[1], authority, lambda _, path: busy.pop() if path == "/v2/" and busy else None) as front:
        log_in(tmp_path, front.address)
        assert push(open_repository(name.replace(serving[1].address, front.address)), "one")
    assert not busy


def test_bad_tokens_are_not_quoted(
    name: str, tokens: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tmp_path, name.partition("/")[0])
    for given in ("s3cret\n", "s3cret\u20ac", "", 7):
        monkeypatch.setattr(tokens, "grant", lambda *_, given=given: given)
        with pytest.raises(RegistryError) as told:
            open_repository(name).tags()
        assert "s3cret" not in repr(told.value)


def test_the_engine_uses_the_same_login(name: str, tokens: TokenServer, tmp_path: Path) -> None:
    log_in(tmp_path, name.partition("/")[0])
    with closing(engines.connect()) as engine:
        tokens.asked.clear()
        (tmp_path / "root.tar").write_bytes(bytes(10240))
        image = engine.import_filesystem(tmp_path / "root.tar", f"{name}:one", [])
        try:
            engine.push(f"{name}:one")
        except EngineError as error:
            if "x509" not in str(error):
                raise
            # The containerd store checks the token server's certificate even for a registry on loopback.
            pytest.skip("the engine does not trust the token server's certificate")
        finally:
            engine.remove_image(image.id)
    assert {request.user for request in tokens.asked} == {USER}
    assert open_repository(name).platform_manifests("one")


def says_no_secret(error: RegistryError, repository: Repository, tokens: TokenServer) -> None:
    text = f"{error} {error!r} {repository!r} {vars(repository)}"
    for secret in (PASSWORD, "wrong secret", *tokens.tokens):
        assert secret not in text
    assert str(error).count("\n") == 0
