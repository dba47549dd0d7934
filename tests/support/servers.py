"""HTTP servers on loopback, of which each test defines what they answer."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Answers a request, and logs nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Files(Handler, SimpleHTTPRequestHandler):
    """Serves the files of a directory."""


@contextlib.contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    """Runs a server in a thread and shuts it down at the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def serving(handler: Callable[..., Any]) -> Iterator[str]:
    """Yields the address of a server whose requests this handler answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, running(server):
        yield f"127.0.0.1:{server.server_port}"


def pump(reader: socket.socket, writer: socket.socket) -> None:
    """Passes on what comes, until either side ends."""
    with contextlib.suppress(OSError):
        while data := reader.recv(1 << 16):
            writer.sendall(data)
        writer.shutdown(socket.SHUT_WR)
