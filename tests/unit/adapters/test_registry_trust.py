"""Where credentials go: to the registry's own host and port, and to the token server that it names, over TLS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from base_images.adapters import registry
from base_images.adapters.manifest import digest_of
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import RegistryError
from tests.support.hostile import SECRETS, TOKEN, Hostile, Request, hostile, reply
from tests.support.registries import PASSWORD, USER, Authority, log_in

DIGEST = f"sha256:{'0' * 64}"
BASIC = {"Www_Authenticate": 'Basic realm="x"'}


@pytest.fixture(autouse=True)
def _trust(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.authority))
    monkeypatch.setattr(registry, "PAUSE_SECONDS", 0.01)


@pytest.fixture(params=["http", "https"])
def elsewhere(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Hostile]:
    """Another server, with a certificate that is trusted. It wants credentials."""

    def answer(asked: Request) -> Iterable[bytes]:
        if asked.path.startswith("/token"):
            return reply(200, json.dumps({"token": TOKEN}).encode())
        realm = f'Bearer realm="https://{asked.headers["host"]}/token",service="x",scope="y"'
        return reply(401, Www_Authenticate=realm)

    with hostile(answer, tls=authority if request.param == "https" else None) as server:
        yield server


def demanding(answer: Callable[[Request], Iterable[bytes]], challenge: str) -> Callable[[Request], Iterable[bytes]]:
    """A registry that wants credentials, then answers."""

    def answer_all(asked: Request) -> Iterable[bytes]:
        if asked.path.startswith("/token"):
            return reply(200, json.dumps({"token": TOKEN}).encode())
        if "authorization" not in asked.headers:
            where = f"https://{asked.headers['host']}/token"
            realm = f'realm="{where}",service="x",scope="y"' if challenge == "Bearer" else 'realm="x"'
            return reply(401, Www_Authenticate=f"{challenge} {realm}")
        return answer(asked)

    return answer_all


def all_questions(repository: Repository) -> None:
    for question in (
        repository.tags,
        lambda: repository.manifest("one"),
        lambda: repository.digest("one"),
        lambda: repository.blob(DIGEST),
        lambda: repository.put_blob(b"x"),
        lambda: repository.point("one", b'{"mediaType": "x"}'),
    ):
        with suppress(RegistryError):
            question()


def moved(status: int, where: str) -> Callable[[Request], Iterable[bytes]]:
    return lambda asked: reply(status, Location=f"{where}{asked.path}")


def next_page(where: str) -> Callable[[Request], Iterable[bytes]]:
    return lambda asked: reply(
        200, b'{"tags": ["one"]}', Link=f'<{where}/v2/x/tags/list?last=one>; rel="next"', Digest=asked.path
    )


def upload(where: str) -> Callable[[Request], Iterable[bytes]]:
    def answer(asked: Request) -> Iterable[bytes]:
        if asked.method == "POST":
            return reply(202, Location=f"{where}/v2/x/blobs/uploads/1")
        return reply(404 if asked.method == "HEAD" else 201)

    return answer


@pytest.mark.parametrize("challenge", ["Basic", "Bearer"])
@pytest.mark.parametrize(
    "trick",
    [
        next_page,
        upload,
        *(lambda where, status=status: moved(status, where) for status in (301, 302, 303, 307, 308)),
    ],
    ids=["next page", "upload", "301", "302", "303", "307", "308"],
)
def test_no_secret_leaves_for_another_host_or_port(
    trick: Callable[[str], Callable[[Request], Iterable[bytes]]],
    challenge: str,
    elsewhere: Hostile,
    authority: Authority,
    tmp_path: Path,
) -> None:
    where = elsewhere.url
    with hostile(demanding(trick(where), challenge), tls=authority) as server:
        log_in(tmp_path, server.address)
        all_questions(open_repository(f"{server.address}/x", patient=False))
        assert server.received_secrets(), "the registry itself gets them"
    assert elsewhere.received_secrets() == []


def test_a_blob_is_read_where_the_registry_redirects_to(authority: Authority, tmp_path: Path) -> None:
    """GHCR and Docker Hub redirect to another host, which gets no token."""
    with (
        hostile(lambda _: reply(200, b"one"), tls=authority) as storage,
        hostile(demanding(moved(307, storage.url), "Bearer"), tls=authority) as server,
    ):
        log_in(tmp_path, server.address)
        assert open_repository(f"{server.address}/x", patient=False).blob(digest_of(b"one")) == b"one"
        assert [sorted(request.headers.keys() & {"authorization"}) for request in storage.requests] == [[]]


def answer_tags(asked: Request) -> Iterable[bytes]:
    return reply(200, b'{"tags": ["one"]}' if asked.path.endswith("/tags/list") else b"{}")


def with_realm(realm: str) -> Callable[[Request], Iterable[bytes]]:
    """A registry whose token server is at `realm`."""

    def answer(asked: Request) -> Iterable[bytes]:
        if "authorization" in asked.headers:
            return answer_tags(asked)
        return reply(401, Www_Authenticate=f'Bearer realm="{realm}",service="x",scope="y"')

    return answer


def test_the_password_goes_to_the_token_server_and_the_token_to_the_registry(
    elsewhere: Hostile, authority: Authority, tmp_path: Path
) -> None:
    """As at Docker Hub, whose token server is another host."""
    with hostile(with_realm(f"{elsewhere.url}/token"), tls=authority) as server:
        log_in(tmp_path, server.address)
        repository = open_repository(f"{server.address}/x", patient=False)
        if elsewhere.tls:
            assert repository.tags() == ["one"]
            assert TOKEN not in elsewhere.heard
            assert len(elsewhere.received_secrets()) == 1
        else:  # python-dxf makes its URL https, which it does not speak
            with pytest.raises(RegistryError):
                repository.tags()
            assert elsewhere.received_secrets() == []
        assert not {SECRETS[0], SECRETS[1]} & set(server.received_secrets())


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_token_server_cannot_pass_the_password_on(
    status: int, elsewhere: Hostile, authority: Authority, tmp_path: Path
) -> None:
    with (
        hostile(moved(status, elsewhere.url), tls=authority) as tokens,
        hostile(with_realm(f"{tokens.url}/token"), tls=authority) as server,
    ):
        log_in(tmp_path, server.address)
        all_questions(open_repository(f"{server.address}/x", patient=False))
        assert tokens.received_secrets()
    assert elsewhere.received_secrets() == []


@pytest.mark.parametrize(
    "realm", ["https://ghcr.example/token", "https://127.0.0.1@ghcr.example/token", "https://localhost.example/token"]
)
def test_the_token_server_of_a_registry_on_loopback_is_on_loopback(
    realm: str, authority: Authority, tmp_path: Path
) -> None:
    with hostile(with_realm(realm), tls=authority) as server:
        log_in(tmp_path, server.address)
        with pytest.raises(RegistryError, match=r"refers to another server, https://\w+\.example, to list the tags of"):
            open_repository(f"{server.address}/x", patient=False).tags()


@pytest.mark.parametrize(
    "realm", ["", "/token", "file:///etc/passwd", "https://127.0.0.1:99999/", "https://[::1/", "x"]
)
def test_an_impossible_token_server_is_reported(realm: str, authority: Authority, tmp_path: Path) -> None:
    with hostile(with_realm(realm), tls=authority) as server:
        log_in(tmp_path, server.address)
        with pytest.raises(RegistryError) as caught:
            open_repository(f"{server.address}/x", patient=False).tags()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("where", ["http://{host}", "https://user:{password}@{host}:1", "//{host}:99999", "https://[x"])
def test_a_next_page_elsewhere_is_one_sentence(where: str, authority: Authority, tmp_path: Path) -> None:
    """Also the registry's own port in plain text, and URLs with a password or an impossible port."""

    def answer(asked: Request) -> Iterable[bytes]:
        return next_page(where.format(host=asked.headers["host"], password=PASSWORD.replace(" ", "")))(asked)

    with hostile(demanding(answer, "Basic"), tls=authority) as server:
        log_in(tmp_path, server.address)
        with pytest.raises(RegistryError) as caught:
            open_repository(f"{server.address}/x", patient=False).tags()
        assert "tags/list?last" not in server.heard
    assert "\n" not in str(caught.value)
    assert PASSWORD.replace(" ", "") not in str(caught.value)


def test_netrc_is_not_used(elsewhere: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests library prefers it to the credentials that it is given, and sends it without TLS."""
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login {USER} password {SECRETS[0].replace(' ', '')}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for answer in (answer_tags, moved(307, elsewhere.url)):
        with hostile(answer) as server:
            all_questions(open_repository(f"{server.address}/x", patient=False))
            assert "authorization" not in server.heard.lower()
    assert "authorization" not in elsewhere.heard.lower()


def test_a_proxy_is_not_asked_for_a_registry_on_loopback(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(tmp_path, "127.0.0.1")
    with hostile(lambda _: reply(502)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for tls in (None, authority):
            with hostile(answer_tags, tls=tls) as server:
                assert open_repository(f"{server.address}/x", patient=False).tags() == ["one"]
        assert proxy.heard == ""
        with pytest.raises(RegistryError, match="ProxyError"):
            open_repository("registry.example/x", patient=False).tags()


def test_a_challenge_of_megabytes_is_not_parsed(authority: Authority, tmp_path: Path) -> None:
    """python-dxf's parser takes quadratic time."""
    challenge = "\r\n".join(f"Www-Authenticate: Bearer {'a=b,' * 15_000}" for _ in range(50))
    answer = f"HTTP/1.1 401 Unauthorized\r\n{challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with hostile(lambda _: [answer], tls=authority) as server:
        log_in(tmp_path, server.address)
        with pytest.raises(RegistryError, match="its headers have more than 32 KiB"):
            open_repository(f"{server.address}/x", patient=False).tags()
