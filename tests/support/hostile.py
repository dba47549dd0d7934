"""A server that answers as a test says, with or without TLS, and records all that clients send to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.support.registries import PASSWORD, USER, Authority, encrypt
from tests.support.servers import running

TOKEN = "s3cret-t0ken"  # noqa: S105 - of servers that exist during a test
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), TOKEN)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request; the header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


Answer = Callable[[Request], Iterable[bytes]]
"""Returns the bytes to send, verbatim; after the last the connection is closed, unless they say `keep-alive`."""


class Hostile(http.server.ThreadingHTTPServer):
    """Listens at a free port of loopback. `heard` is all that was received in plain text, or after decryption."""

    daemon_threads = True

    def __init__(self, answer: Answer, *, tls: Authority | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.heard = ""
        self.requests: list[Request] = []
        self.connections = 0
        self.tls = tls
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.address}"
        if tls:
            encrypt(self, tls)

    def verify_request(self, request: object, client_address: object) -> bool:
        """Records what a client sends in plain text to a server with TLS, or the other way round, and hangs up."""
        assert isinstance(request, socket.socket), client_address
        self.connections += 1
        begin = socket.socket.recv(request, 1 << 16, socket.MSG_PEEK)
        if bool(self.tls) != (begin[:1] == b"\x16"):
            self.heard += begin.decode("latin-1")
            return False
        return True

    def handle_error(self, *_: object) -> None:
        """Ignores clients that hang up."""

    def received_secrets(self) -> list[str]:
        """Returns the secrets that reached this server."""
        return [secret for secret in SECRETS if secret in self.heard]


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hostile

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(1 << 16)
        self.close_connection = True
        if not self.raw_requestline or not self.parse_request():
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        self.server.heard += f"{self.requestline}\n{headers}\n{body.decode('latin-1')}\n"
        request = Request(method=self.command, path=self.path, headers=headers)
        self.server.requests.append(request)
        with contextlib.suppress(OSError):
            for piece in self.server.answer(request):
                self.wfile.write(piece)
                self.close_connection &= b"keep-alive" not in piece

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


def reply(status: int, body: bytes = b"", **headers: str) -> list[bytes]:
    """Returns the bytes of an answer; `Www_Authenticate=…` sets the header Www-Authenticate."""
    known = {"Content-Length": str(len(body)), "Connection": "close"}
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [
        f"HTTP/1.1 {status} {http.client.responses[status]}",
        *(f"{name}: {value}" for name, value in known.items()),
    ]
    return ["\r\n".join([*lines, "", ""]).encode("latin-1"), body]


@contextlib.contextmanager
def hostile(answer: Answer, *, tls: Authority | None = None) -> Iterator[Hostile]:
    """Yields a running server."""
    with Hostile(answer, tls=tls) as server, running(server):
        yield server
