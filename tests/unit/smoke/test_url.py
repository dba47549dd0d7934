"""A running server's API key: where it is read, and where it does not get to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from base_images import variants
from base_images.errors import UsageError
from base_images.smoke import html, report, url
from base_images.smoke.checks_http import Target

CPU = variants.find("cpu")
KEY = "open-sesame-4711"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"{KEY}\n", KEY),
        (f"\n# ours, of November\n{KEY}\nsecond", KEY),
        (f"  {KEY} \r\n", KEY),
    ],
)
def test_a_key_s_file_is_read_as_llama_server_reads_it(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "key"
    path.write_text(text, newline="")
    assert url.api_key(path, {url.KEY_VARIABLE: "another"}) == key


def test_without_a_file_the_variable_has_the_key() -> None:
    assert url.api_key(None, {url.KEY_VARIABLE: KEY}) == KEY
    assert url.api_key(None, {}) == url.api_key(None, {url.KEY_VARIABLE: ""}) == ""


@pytest.mark.parametrize("content", [b"", b"# none\n", "schlüssel-4711".encode(), b"a\x00b-4711", b"\xff-4711"])
def test_a_key_that_cannot_be_sent_is_an_error_that_does_not_show_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)) as caught:
        url.api_key(path, {})
    assert "4711" not in str(caught.value)


def test_a_missing_file_of_a_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        url.api_key(tmp_path / "none", {})


@contextlib.contextmanager
def serving(answer: Any) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields the URL of a server, whose answers `answer(path, headers)` returns, and the headers that it got."""
    got: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, headers, body = answer(self.path, self.headers)
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()


def like_llama_server(path: str, _headers: object) -> tuple[int, dict[str, str], bytes]:
    page = b"""<script>import("http://localhost:1/elsewhere.js")</script>"""
    bodies = {
        "/": page,
        "/health": b'{"status": "ok"}',
        "/v1/models": json.dumps({"object": "list", "data": [{"id": "mine", "object": "model"}]}).encode(),
    }
    kind = "text/html" if path == "/" else "application/json"
    return 200, {"Content-Type": kind}, bodies.get(path, b"{}")


def test_the_key_is_sent_with_every_request_and_shown_nowhere(tmp_path: Path) -> None:
    def repeats(path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
        if path in ("/health", "/v1/models", "/tokenize"):
            return like_llama_server(path, headers)
        return 500, {}, f"refused {headers['Authorization']}".encode()

    with serving(repeats) as (address, got):
        seen = url.smoke_url(address, CPU, key=KEY)
    report.write(seen, tmp_path)
    assert {headers.get("authorization") for headers in got} == {f"Bearer {KEY}"}
    assert "refused Bearer ***" in json.dumps(seen.as_dict())
    shown = [path.read_text() for path in tmp_path.iterdir()]
    shown += [html.as_html(seen, labels={}), report.as_junit(seen), json.dumps(seen.as_dict()), repr(seen)]
    shown += [repr(Target(url=address, alias="", answer=None, key=KEY))]
    assert not [text for text in shown if KEY in text]


def test_neither_a_redirect_nor_a_script_leads_to_another_host() -> None:
    with serving(like_llama_server) as (elsewhere, others):

        def redirects(path: str, headers: Any) -> tuple[int, dict[str, str], bytes]:
            if path in ("/", "/health", "/v1/models", "/tokenize"):
                code, headers, body = like_llama_server(path, headers)
                return code, headers, body.replace(b"http://localhost:1", elsewhere.encode())
            return 307, {"Location": f"{elsewhere}{path}"}, b""

        with serving(redirects) as (address, own):
            seen = url.smoke_url(address, CPU, key=KEY)
    assert {headers.get("authorization") for headers in own} == {f"Bearer {KEY}"}
    assert others == []
    assert not seen.ok
    assert any("imports a script of another server" in row.seen for row in seen.rows)


@pytest.mark.parametrize(("key", "says"), [("", "asks for an API key"), (KEY, "refuses the API key")])
def test_a_server_that_wants_another_key_is_one_failed_check(key: str, says: str) -> None:
    with serving(lambda *_: (401, {}, b"{}")) as (address, _):
        seen = url.smoke_url(address, CPU, key=key)
    [row] = seen.rows
    assert f"The server {says}: name the file that has it" in row.seen or "has its own" in row.seen
    assert says in row.seen
    assert not seen.ok
