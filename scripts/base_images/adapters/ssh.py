"""An engine behind ssh, reached as docker's client reaches it: by `ssh HOST docker system dial-stdio`.

docker-py imports paramiko for this, which reads only a part of ssh's configuration; the program `ssh` reads all of it.
The command is that of docker's client 28 (cli/connhelper); like it, ssh has no terminal to ask questions on.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import requests.adapters
import urllib3
import urllib3.connection

from base_images.errors import EngineError

CONNECT_SECONDS = 30
"""Docker's time limit for ssh to connect; one in ssh's own configuration would come after it."""

_END_SECONDS = 5


def command(address: str) -> tuple[str, ...]:
    """Returns the command whose standard input and output are a connection to the engine at `ssh://…`."""
    url = urlsplit(address)
    # urlsplit's host name is in lower case, and names in ssh's configuration are not.
    host = url.netloc.rpartition("@")[2]
    host = host.partition("]")[0][1:] if host.startswith("[") else host.partition(":")[0]
    return (
        *("ssh", "-o", f"ConnectTimeout={CONNECT_SECONDS}", "-T"),
        *(("-l", unquote(url.username)) if url.username else ()),
        *(("-p", str(url.port)) if url.port else ()),
        *("--", host, "docker"),
        *((f"--host=unix://{url.path}",) if url.path.strip("/") else ()),
        *("system", "dial-stdio"),
    )


class Adapter(requests.adapters.HTTPAdapter):
    """Sends every request of a session through `command`."""

    def __init__(self, command: Sequence[str]) -> None:
        super().__init__()
        self._pool = _Pool("docker", command=tuple(command))

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> urllib3.HTTPConnectionPool:
        """Returns the only pool there is."""
        return self._pool

    def request_url(self, request: requests.PreparedRequest, _: Any) -> str:
        """Returns the path of the request: there is no proxy."""
        return request.path_url

    def close(self) -> None:
        """Closes the connections, which ends their processes."""
        super().close()
        self._pool.close()


class _Socket(socket.socket):
    """One end of a pair of sockets, of which a process has the other; the process ends when the last reader closes."""

    def __init__(self, command: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - a background ssh would keep a pipe open
        with theirs:
            end = theirs.fileno()
            try:
                self._process = subprocess.Popen(
                    command, stdin=end, stdout=end, stderr=self._stderr, start_new_session=True
                )
            except OSError as error:
                self._stderr.close()
                super()._real_close()  # type: ignore[misc] # as in `_real_close` below
                raise EngineError(f"{command[0]} cannot be run ({error.strerror})") from error

    def last_words(self) -> str:
        """Waits for the process to end, and returns how it ended and the last line of its standard error."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        size = os.fstat(self._stderr.fileno()).st_size
        lines = os.pread(self._stderr.fileno(), 4096, max(0, size - 4096)).decode(errors="replace").splitlines()
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
        return f"ssh ended with exit status {self._process.poll()}: {said.rstrip('.')}"

    def _real_close(self, *arguments: Any) -> None:
        # Called once nobody reads any more: `close` itself comes earlier, when http.client has read the headers.
        super()._real_close(*arguments)  # type: ignore[misc] # ssl.SSLSocket overrides it as well
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


class _Connection(urllib3.connection.HTTPConnection):
    def __init__(self, *arguments: Any, command: Sequence[str], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._command = command

    def connect(self) -> None:
        self.sock = _Socket(self._command)

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override] # as in urllib3
        connection = self.sock
        if not isinstance(connection, _Socket):  # closed in the meantime
            return super().getresponse()
        with connection.makefile("rb"):  # http.client closes the connection before it raises
            try:
                return super().getresponse()
            except (ConnectionError, http.client.HTTPException) as error:
                raise EngineError(connection.last_words()) from error


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection
