"""Where credentials go: to the registry's own host and port, and to the token server that it names, over TLS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from base_images.adapters import registry
from base_images.adapters.registry import Repository, open_repository
from base_images.errors import RegistryError
from tests.support.hostile import TOKEN, Hostile, Request, hostile, reply
from tests.support.registries import Authority, log_in, make_authority

DIGEST = f"sha256:{'0' * 64}"
BASIC = {"Www_Authenticate": 'Basic realm="x"'}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


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
