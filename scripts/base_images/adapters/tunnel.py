"""A port of this machine that leads into a container, through the engine's own connection.

An engine elsewhere (behind ssh or a firewall, Docker in Docker, the host's socket in a development container) publishes
ports on its own machine, which this one may not reach. What reaches the engine reaches every container, by `docker
exec`: bash opens the connection inside, and the engine carries it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Iterator
from typing import Any

from base_images.errors import EngineError

# The container's own address, as for a published port: a server that listens on loopback alone is not to be reached.
# Either side may end the connection, which ends both copies.
_RELAY = (
    'exec 3<>"/dev/tcp/$HOSTNAME/$0" 4<&0 || exit; cat <&4 >&3 & cat <&3 & wait -n; kill $(jobs -p) 2>/dev/null; exit 0'
)

STDOUT = 1
_HEADER = struct.Struct(">BxxxL")
_CHUNK = 1 << 16


class Tunnel(socketserver.ThreadingTCPServer):
    """Listens on 127.0.0.1, and connects each caller to a port inside a container."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, container: Any, port: int) -> None:
        """Opens the tunnel into docker-py's `container`, which runs.

        Raises:
            EngineError: the image has no bash.
        """
        if container.exec_run(["bash", "-c", ":"]).exit_code != 0:
            raise EngineError(
                "The engine is on another machine or in a container, where its published ports cannot be reached from "
                "here, and the image has no bash to be reached through: run the same command where the engine runs."
            )
        super().__init__(("127.0.0.1", 0), _Caller)
        self.container = container
        self.inside = port
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port of 127.0.0.1."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stops listening; connections end with the container."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Caller(socketserver.BaseRequestHandler):
    server: Tunnel

    def handle(self) -> None:
        # Whatever fails here, the caller sees a closed connection, as from a server that does not run.
        with contextlib.suppress(Exception), self._connection() as engine:
            _copy(self.request, engine)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[socket.socket]:
        api = self.server.container.client.api
        command = ["bash", "-c", _RELAY, str(self.server.inside)]
        execution = api.exec_create(self.server.container.id, command, stdin=True)
        reader = api.exec_start(execution["Id"], socket=True)
        engine: socket.socket = getattr(reader, "_sock", reader)  # a plain socket is wrapped in a reader
        engine.settimeout(None)
        try:
            yield engine
        finally:
            with contextlib.suppress(OSError):
                engine.shutdown(socket.SHUT_RDWR)  # ends the command's input, whoever else holds the connection
            reader._response.close()  # noqa: SLF001 - closing the reader alone leaves the connection open


def _copy(caller: socket.socket, engine: socket.socket) -> None:
    """Copies both ways, in one thread because TLS allows no more, until either side ends."""
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(caller, selectors.EVENT_READ)
        selector.register(engine, selectors.EVENT_READ)
        while True:
            pending = isinstance(engine, ssl.SSLSocket) and engine.pending()
            ready = [key.fileobj for key, _ in selector.select(0 if pending else None)]
            if caller in ready:
                if not (content := caller.recv(_CHUNK)):
                    return
                engine.sendall(content)
            if engine in ready or pending:
                if not (content := engine.recv(_CHUNK)):
                    return
                received += content
                caller.sendall(b"".join(content for stream, content in frames(received) if stream == STDOUT))


def frames(received: bytearray) -> Iterator[tuple[int, bytes]]:
    """Takes the whole frames off the beginning, and yields the stream and the content of each.

    The format is that of Engine API, POST /containers/{id}/attach, "Stream format".
    """
    while len(received) >= _HEADER.size:
        stream, size = _HEADER.unpack_from(received)
        end = _HEADER.size + size
        if len(received) < end:
            return
        yield stream, bytes(received[_HEADER.size : end])
        del received[:end]
