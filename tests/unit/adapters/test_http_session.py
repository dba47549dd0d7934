"""Answers without end: large, slow, compressed, or of headers alone."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from base_images.adapters import download as downloads
from base_images.adapters import registry
from base_images.adapters.http_session import LimitError, Session, limited
from base_images.adapters.registry import open_repository
from base_images.errors import RegistryError, SourceError
from base_images.progress import silent
from tests.support.hostile import Request, hostile, reply

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
MUCH = 1 << 28
"""Where an endless answer ends after all, so that a client without limits cannot fill this machine."""


def endless(begin: bytes, piece: bytes) -> Iterable[bytes]:
    yield begin
    yield from itertools.repeat(piece, MUCH // len(piece))


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
BOMB = gzip.compress(bytes(MUCH))

FLOODS: dict[str, Callable[[], Iterable[bytes]]] = {
    "body": lambda: endless(HEAD + b"\r\n", bytes(1 << 16)),
    "body with a length": lambda: endless(HEAD + b"Content-Length: 99999999999\r\n\r\n", bytes(1 << 16)),
    "chunks": lambda: endless(HEAD + CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
    "trailers": lambda: endless(HEAD + CHUNKED + b"0\r\n", b"x: y\r\n" * 10000),
    "interim answers": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "gzip": lambda: reply(200, BOMB, Content_Encoding="gzip"),
    "gzip twice": lambda: reply(200, gzip.compress(BOMB), Content_Encoding="gzip, gzip"),
    "gzip in a redirect": lambda: reply(302, BOMB, Content_Encoding="gzip", Location="/"),
    "headers": lambda: [
        HEAD + b"".join(b"x: %d\r\n" % number + b"x: " + b"y" * 9000 for number in range(9)),
        b"\r\n\r\n",
    ],
}


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """Fails if the block takes more than 10 MiB, which the server's pieces are part of."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("flood", FLOODS)
def test_an_answer_has_a_largest_size(flood: str) -> None:
    with hostile(lambda _: FLOODS[flood]()) as server, Session() as session, little_memory(), limited(size=2 << 20):  # noqa: SIM117
        with pytest.raises(LimitError, match=r"it sent more than 2 MiB|headers have more than 32 KiB"):
            session.get(server.url, timeout=60)


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Ends the slow answers of a test at its end."""
    event = threading.Event()
    yield event
    event.set()


def slowly(begin: bytes, piece: bytes, over: threading.Event) -> Iterable[bytes]:
    yield begin
    while not over.wait(0.02):
        yield piece


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HEAD + b"\r\n", b"x"),
        (b"", b"H"),
        (HEAD + b"x: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD + CHUNKED, b"1"),
    ],
    ids=["body", "status", "header", "interim answers", "chunk size"],
)
def test_an_answer_has_a_deadline(begin: bytes, piece: bytes, over: threading.Event) -> None:
    with hostile(lambda _: slowly(begin, piece, over)) as server, Session() as session, limited(seconds=0.3):  # noqa: SIM117
        with pytest.raises(LimitError, match=r"took more than 0\.3 s"):
            session.get(server.url, timeout=60)


def test_all_requests_of_a_block_share_its_limits() -> None:
    with hostile(lambda _: reply(302, Location="/")) as server, Session() as session:
        session.max_redirects = 1 << 30
        with limited(size=10_000), pytest.raises(LimitError, match="more than 10000 bytes"):
            session.get(server.url, timeout=60)
    with hostile(lambda _: reply(200, bytes(6000))) as server, Session() as session:
        with limited(size=10_000):
            assert len(session.get(server.url, timeout=60).content) == 6000
            with pytest.raises(LimitError):
                session.get(server.url, timeout=60)
        assert session.get(server.url, timeout=60).ok


def test_the_limits_of_an_answer_are_not_those_of_the_next_on_the_same_connection() -> None:
    ok = [b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"]
    with hostile(lambda _: ok) as server, Session() as session:
        for size in (1 << 20, 1 << 20, 10, 1 << 20):
            with contextlib.suppress(LimitError), limited(size=size, seconds=60):
                assert session.get(server.url, timeout=60).text == "ok"
                assert size > 10
        assert server.connections == 2
        assert len(server.requests) == 4


def test_compressed_answers_are_read() -> None:
    with hostile(lambda _: reply(200, gzip.compress(b"text"), Content_Encoding="gzip")) as server, Session() as session:
        assert session.get(server.url, timeout=60).text == "text"


def test_cookies_are_not_sent() -> None:
    """Cookies know neither scheme nor port (RFC 6265, section 8.5)."""
    with hostile(lambda _: reply(200, Set_Cookie="a=b")) as server, Session() as session:
        for _ in range(2):
            session.get(server.url, timeout=60)
        assert all("cookie" not in request.headers for request in server.requests)


# --- the registry ---


def a_page(asked: Request) -> Iterable[bytes]:
    return reply(200, b'{"tags": ["one"]}', Link=f'<{asked.path.partition("?")[0]}?last=one>; rel="next"')


@pytest.mark.parametrize("flood", sorted(FLOODS.keys() - {"interim answers"}))
def test_a_registrys_answers_have_a_largest_size(flood: str) -> None:
    with hostile(lambda _: FLOODS[flood]()) as server:
        repository = open_repository(f"{server.address}/x", patient=False)
        for question in (lambda: repository.manifest("one"), lambda: repository.blob(f"sha256:{'0' * 64}")):
            with pytest.raises(RegistryError, match=rf"{server.address} was not heard out to read .*: it"):
                question()


def test_a_registry_cannot_list_tags_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "IMPATIENT_SECONDS", 0.5)
    with (
        hostile(a_page) as server,
        pytest.raises(RegistryError, match=r"was not heard out to list the tags of .* 0\.5"),
    ):
        open_repository(f"{server.address}/x", patient=False).tags()


def test_a_registry_cannot_answer_a_byte_a_second(monkeypatch: pytest.MonkeyPatch, over: threading.Event) -> None:
    monkeypatch.setattr(registry, "IMPATIENT_SECONDS", 0.5)
    with hostile(lambda _: slowly(HEAD + b"\r\n", b" ", over)) as server:
        repository = open_repository(f"{server.address}/x", patient=False)
        for question in (repository.tags, lambda: repository.digest("one")):
            with pytest.raises(RegistryError, match=r"was not heard out to|makes no sense"):
                question()


# --- downloads ---


def test_a_download_has_a_largest_size_and_a_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: threading.Event
) -> None:
    target = tmp_path / "file"
    monkeypatch.setattr(downloads, "FILE_BYTES", 1 << 20)
    with hostile(lambda _: FLOODS["body"]()) as server:
        for _ in range(2):
            with pytest.raises(SourceError, match=r"\(it sent more than 1 MiB\)"):
                downloads.download(server.url, target, sha256="0" * 64, listener=silent)
            assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3 << 20
    monkeypatch.setattr(downloads, "FILE_SECONDS", 0.3)
    with (
        hostile(lambda _: slowly(HEAD + b"\r\n", b"x", over)) as server,
        pytest.raises(SourceError, match=r"\(its answer took more than 0\.3 s\): .* is kept"),
    ):
        downloads.download(server.url, target, sha256="0" * 64, listener=silent)
