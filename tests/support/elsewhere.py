"""Engines that are elsewhere: the real one behind ssh, behind TLS, or seen from a development container.

Run as a program, it is the smoke test's first server on an image, asked from where the program runs.
"""

from __future__ import annotations

import os
import select
import shlex
import socket
import socketserver
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from base_images.adapters import engine as engines
from base_images.adapters.engine import Engine
from base_images.smoke import containers, model
from base_images.smoke import server as servers
from base_images.smoke.checks_http import Target, check_at_once, check_chat_streamed, check_web_page
from base_images.smoke.model import TensorType
from tests.support import programs
from tests.support.registries import Authority
from tests.support.servers import running


def engine_socket() -> Path | None:
    """Returns the socket of the tests' engine; None if it has none here."""
    scheme, _, path = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").partition("://")
    return Path(path) if scheme == "unix" else None


def stand_in_for_ssh(directory: Path) -> Path:
    """Writes a program `ssh` that runs the command here, where `docker` talks to the tests' engine; returns its log."""
    log = directory / "ssh.log"
    programs.script(
        directory / "bin" / "ssh",
        f'echo "$*" >>{shlex.quote(str(log))}\n'
        'while [ "$1" != -- ]; do shift; done\n'
        "shift 2\n"
        f"export DOCKER_HOST=unix://{engine_socket()}\n"
        'exec "$@"',
    )
    return log


class _Relay(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


def _copy(client: ssl.SSLSocket, engine: socket.socket) -> None:
    """Copies both ways in one thread, because TLS allows no more, until either side ends."""
    while True:
        ready = [client] if client.pending() else select.select([client, engine], [], [])[0]
        for reader, writer in ((client, engine), (engine, client)):
            if reader in ready:
                if not (content := reader.recv(1 << 16)):
                    return
                writer.sendall(content)


@contextmanager
def behind_tls(tls: Authority) -> Iterator[str]:
    """Yields the HOST:PORT at which the tests' engine takes clients that have a certificate of the authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authority)
    context.load_cert_chain(tls.certificate, tls.key)
    context.verify_mode = ssl.CERT_REQUIRED
    upstream = str(engine_socket())

    class Caller(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with context.wrap_socket(self.request, server_side=True) as client, socket.socket(socket.AF_UNIX) as engine:
                engine.connect(upstream)
                _copy(client, engine)

    with _Relay(("127.0.0.1", 0), Caller) as server, running(server):
        yield f"127.0.0.1:{server.server_address[1]}"


def ask(engine: Engine, image: str) -> bool:
    """Starts a server on a known-answer model, checks its answers, and returns whether a tunnel was needed.

    Raises:
        BaseImagesError, CheckFailedError: it does not start, or answers wrong.
    """
    answer = model.known_answer(TensorType.F32)
    way = containers.quick_start(image, "model")
    with containers.prepared(engine, way, answer.gguf) as container:
        servers.start(container, way.port)
        target = Target(url=servers.url(container, way.port), alias=way.alias, answer=answer)
        for check in (check_chat_streamed, check_at_once, check_web_page):
            check(target)
        return bool(container._tunnels)


if __name__ == "__main__":
    sys.stdout.write("by a tunnel\n" if ask(engines.connect(), sys.argv[1]) else "by the published port\n")


def without_configuration(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes docker's configuration an empty one: no context, no credentials, no TLS."""
    monkeypatch.setenv("DOCKER_CONFIG", str(directory / "docker"))
    for name in ("DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
