"""A server that answers without end, or with another shape: each check fails with a sentence."""

from __future__ import annotations

import gzip
import itertools
import threading
from collections.abc import Iterable
from functools import partial

import pytest

from base_images import variants
from base_images.errors import UsageError
from base_images.smoke import checks_client, checks_http, model
from base_images.smoke import url as urls
from base_images.smoke.checks_http import Target, perform
from base_images.smoke.model import TensorType
from base_images.smoke.report import Status
from tests.support.hostile import Request, hostile, reply

CPU = variants.find("cpu")
BOMB = gzip.compress(bytes(1 << 28))
CHECKS = {**checks_http.CHECKS, **checks_client.CHECKS}
DEEP = b"[" * 100_000 + b"]" * 100_000


def target(url: str, patience: float = 60) -> Target:
    return Target(url=url, alias="m", answer=model.known_answer(TensorType.Q8_0), patience=patience)


def test_a_bomb_in_any_answer_is_one_sentence() -> None:
    bomb = reply(200, BOMB, Content_Encoding="gzip", Content_Type="application/json")
    with hostile(lambda _: bomb) as server:
        for name, check in CHECKS.items():
            result = perform(name, partial(check, target(server.url)))
            assert result.status is Status.FAIL
            assert "it sent more than 32 MiB" in result.seen, name


@pytest.mark.parametrize(
    "body",
    [
        *(DEEP, b"null", b'"x"', b"9" * 5000, b'{"data": [7]}', b'{"choices": [7]}'),
        b'{"data": [{"embedding": [1' + b"0" * 400 + b"]}]}",
        b'{"content": "x", "completion_probabilities": [{"token": "x", "logprob": 1' + b"0" * 400 + b"}]}",
    ],
    ids=itertools.count(),
)
def test_an_answer_of_another_shape_is_one_sentence(body: bytes) -> None:
    answer = reply(200, body, Content_Type="application/json")
    with hostile(lambda _: answer) as server:
        for name, check in CHECKS.items():
            result = perform(name, partial(check, target(server.url)))
            assert result.status is Status.FAIL, name
            assert len(result.seen) <= checks_http.SEEN_CHARACTERS + 2


def test_an_answer_has_a_deadline() -> None:
    over = threading.Event()

    def slowly(_: Request) -> Iterable[bytes]:
        yield b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        while not over.wait(0.02):
            yield b" "

    with hostile(slowly) as server:
        for check in (checks_http.check_completion, checks_client.check_completion):
            result = perform("slow", partial(check, target(server.url, patience=0.2)))
            assert result.status is Status.FAIL
            assert "its answer took more than 0.8 s" in result.seen
        over.set()


def test_the_url_of_a_server_is_shown_without_its_password() -> None:
    with hostile(lambda _: reply(503, b'{"error": "loading"}')) as server:
        shown = server.url
        report = urls.smoke_url(server.url.replace("//", "//user:sekret@"), CPU)
    assert not report.ok
    assert shown in str(report)
    assert "sekret" not in str(report)


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://u:sekret@127.0.0.1:0", "ftp://h", "http://", "x"])
def test_an_impossible_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not a URL of a server") as caught:
        urls.smoke_url(url, CPU)
    assert "sekret" not in repr(caught.value)
