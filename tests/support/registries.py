"""A container registry on loopback, Debian's docker-registry: plain, with a password, with TLS, on a small disk.

Also proxies for it that delay requests or change the answers.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import itertools
import json
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from base_images.smoke.process import free_port
from tests.support.programs import need
from tests.support.servers import Handler, pump, running

USER = "releaser"
PASSWORD = "open sesame"  # noqa: S105 - of registries that exist during a test
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n"
"""The password's bcrypt hash, the only kind that the registry accepts."""

_SECONDS = 300
"""Timeout of what takes a moment unless it hangs."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """Files of a test's certificate authority, and of a certificate that it signed for 127.0.0.1."""

    authority: Path
    certificate: Path
    key: Path


class Registry:
    """A container registry at a free port of loopback, whose data survive a restart.

    `more` is added to its configuration.
    """

    def __init__(
        self,
        directory: Path,
        *,
        password: bool = False,
        more: str = "",
        tls: Authority | None = None,
        data: Path | None = None,
    ) -> None:
        need("docker-registry")
        directory.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{free_port()}"
        self.configuration = directory / "config.yml"
        lines = [
            "version: 0.1",
            f"storage: {{filesystem: {{rootdirectory: {data or directory / 'data'}}}}}",
            f"http: {{addr: '{self.address}'"
            + (f", tls: {{certificate: {tls.certificate}, key: {tls.key}}}}}" if tls else "}"),
        ]
        if password:
            (directory / "htpasswd").write_text(_HTPASSWD, encoding="utf-8")
            lines.append(f"auth: {{htpasswd: {{realm: test, path: {directory / 'htpasswd'}}}}}")
        self.configuration.write_text("\n".join([*lines, more]) + "\n", encoding="utf-8")
        self.start()

    def start(self) -> None:
        """Starts or restarts the registry and waits until it listens."""
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(self.configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        host, port = self.address.split(":")
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except OSError:
                assert self._process.poll() is None, "the registry ended at once"
                assert time.monotonic() < deadline, "the registry does not listen"
                time.sleep(0.05)
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops the registry after its open requests; does nothing when it does not run."""
        self._process.terminate()
        self._process.wait(_SECONDS)

    def kill(self) -> None:
        """Kills the registry in the middle of its requests."""
        self._process.kill()
        self._process.wait(_SECONDS)


def connections(server: socket.socket) -> int:
    """Returns the number of connections that a server has not accepted, and closes them."""
    server.setblocking(False)
    for number in itertools.count():
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return number
    raise AssertionError


def make_authority(directory: Path) -> Authority:
    """Creates an untrusted certificate authority, and its certificate for 127.0.0.1."""
    need("openssl")
    authority = Authority(authority=directory / "ca.crt", certificate=directory / "tls.crt", key=directory / "tls.key")
    directory.mkdir(parents=True, exist_ok=True)
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    signing = ["-subj", "/CN=an authority", "-out", str(authority.authority), "-keyout", str(directory / "ca.key")]
    signed = ["-CA", str(authority.authority), "-CAkey", str(directory / "ca.key"), "-subj", "/CN=a registry"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    for arguments in (signing, [*signed, *names, "-out", str(authority.certificate), "-keyout", str(authority.key)]):
        subprocess.run([*new, *arguments], check=True, capture_output=True)
    return authority


class Front(http.server.ThreadingHTTPServer):
    """A proxy for a registry that first calls `before` with each request's method and path.

    `before` may block; an HTTP status that it returns is answered in place of the registry's. With `tls`, the proxy
    and the registry use TLS.
    """

    daemon_threads = False  # closing it waits for open requests

    def __init__(
        self, registry: str, before: Callable[[str, str], int | None], *, tls: Authority | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.registry = registry
        self.before = before
        self.tls = tls
        self.address = f"127.0.0.1:{self.server_address[1]}"
        if tls:
            encrypt(self, tls)

    def connect(self) -> http.client.HTTPConnection:
        """Returns a connection to the registry."""
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls.authority)
            return http.client.HTTPSConnection(self.registry, timeout=_SECONDS, context=context)
        return http.client.HTTPConnection(self.registry, timeout=_SECONDS)

    def status(self, answer: http.client.HTTPResponse) -> int:
        """Returns the HTTP status to answer with."""
        return answer.status

    def verify_request(self, request: object, client_address: object) -> bool:
        """Returns whether to accept a connection: without `tls`, one that starts with a TLS handshake is refused."""
        assert isinstance(request, socket.socket), client_address
        return bool(self.tls) or request.recv(1, socket.MSG_PEEK) != b"\x16"


def encrypt(server: http.server.ThreadingHTTPServer, tls: Authority) -> None:
    """Makes a server use TLS, with each connection's handshake in its own thread."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)


def log_in(directory: Path, address: str, password: str = PASSWORD, *, user: str = USER) -> None:
    """Writes docker's config.json as `docker login` does without a credential helper."""
    secret = base64.b64encode(f"{user}:{password}".encode()).decode()
    (directory / "config.json").write_text(json.dumps({"auths": {address: {"auth": secret}}}), encoding="utf-8")


class _Handler(Handler):
    server: Front

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if status := self.server.before(self.command, self.path):
            self.answer(status)
            return
        with contextlib.closing(self.server.connect()) as connection:
            # The registry derives its Location headers from the request's Host.
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        self.send_response(self.server.status(answer))
        for name, value in answer.getheaders():
            if name not in {"Transfer-Encoding", "Content-Length"}:
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = _pass_on


@contextlib.contextmanager
def front(registry: str, before: Callable[[str, str], int | None]) -> Iterator[str]:
    """Yields the address of a proxy for a registry."""
    with Front(registry, before) as server, running(server):
        yield server.address


class Stalling(socketserver.ThreadingTCPServer):
    """A TCP proxy for a registry that stalls after `after` bytes of requests, until `go_on` is set."""

    daemon_threads = True

    def __init__(self, registry: str, after: int) -> None:
        super().__init__(("127.0.0.1", 0), _Stalled)
        self.registry = registry
        self.left = after
        self.go_on = threading.Event()
        self.address = f"127.0.0.1:{self.server_address[1]}"


class _Stalled(socketserver.BaseRequestHandler):
    server: Stalling

    def handle(self) -> None:
        host, port = self.server.registry.split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))) as registry:
            back = threading.Thread(target=pump, args=(registry, self.request))
            back.start()
            while data := self.request.recv(1 << 16):
                self.server.left -= len(data)
                if self.server.left < 0:
                    self.server.go_on.wait()
                registry.sendall(data)
            registry.shutdown(socket.SHUT_WR)
            back.join()
