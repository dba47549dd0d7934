"""HTTP to servers that nobody vouches for: every answer has a limit on its size and on its time.

A time-out of requests is for one read: a server that sends a byte a second never exceeds it. It has no limit on size
either, before or after decompression. Here both are checked where bytes leave the socket, so they hold for headers,
interim answers (100), chunk sizes and trailers too.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

ANSWER_BYTES = 16 << 20
"""The largest answer, decompressed. A manifest has at most 4 MiB (distribution, `maxManifestBodySize`), the list of
100,000 tags about 4 MB, an evidence report a few: most of it is the servers' logs. Python's objects for JSON can take
twenty times as much memory."""

ANSWER_SECONDS = 300.0
"""From a question to the last byte of its answer: redirects, the login and all pages of a list included."""

HEADER_BYTES = 32 << 10
"""Of one answer; nginx and Go's clients accept 8 KiB to 1 MiB. Longer ones take python-dxf's parser minutes."""

_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}
_USUAL_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL, openEuler
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


class LimitError(requests.RequestException):
    """An answer exceeded a limit; the text says which, such as `it sent more than 16 MiB`."""


class ElsewhereError(requests.RequestException):
    """A server refers to another server where it must not; the text is that server's URL without user and password."""


class Origin(NamedTuple):
    """What a server is to its clients (RFC 6454)."""

    scheme: str
    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, out of reach for others."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{'' if self.port == _PORTS[self.scheme] else f':{self.port}'}"


def origin(url: str) -> Origin:
    """Returns the origin of a URL.

    Raises:
        requests.exceptions.InvalidURL: it is not a URL of HTTP, or its port is not between 1 and 65535.
    """
    try:
        address = urlsplit(url)
        port = address.port if address.port is not None else _PORTS[address.scheme]
    except (ValueError, KeyError):
        port = 0
    if not port or address.scheme not in _PORTS or not address.hostname:
        raise requests.exceptions.InvalidURL("not a URL of HTTP")
    return Origin(address.scheme, address.hostname, port)


class _Budget:
    """What the answers to one question may still take."""

    def __init__(self, size: int, seconds: float) -> None:
        self.size = size
        self.left = size
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def spend(self, size: int) -> None:
        """Raises `LimitError` if the answers are larger than allowed, or too late."""
        self.left -= size
        self.check()

    def check(self) -> None:
        if self.left < 0:
            size = f"{self.size >> 20} MiB" if self.size >= 1 << 20 else f"{self.size} bytes"
            raise LimitError(f"it sent more than {size}")
        if time.monotonic() >= self.deadline:
            raise LimitError(f"its answer took more than {self.seconds:g} s")

    def wait(self, seconds: float | None) -> float:
        """Returns a time-out for one step: `seconds`, or less where less is left; never 0, which is no time-out."""
        left = max(0.001, self.deadline - time.monotonic())
        return left if seconds is None else min(seconds, left)


_BUDGET: ContextVar[_Budget | None] = ContextVar("_BUDGET", default=None)


@contextlib.contextmanager
def limited(*, size: int = ANSWER_BYTES, seconds: float = ANSWER_SECONDS) -> Iterator[None]:
    """Limits the bytes and the seconds of all answers to requests in the block, together.

    A request outside such a block has the default limits to itself.
    """
    token = _BUDGET.set(_Budget(size, seconds))
    try:
        yield
    finally:
        _BUDGET.reset(token)


class _Source(io.RawIOBase):
    """Reads a socket within a budget."""

    def __init__(self, sock: socket.socket, budget: _Budget) -> None:
        self._raw = sock.makefile("rb", buffering=0)
        self._sock = sock
        self._patience = sock.gettimeout()
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._budget.check()
        self._sock.settimeout(self._budget.wait(self._patience))
        size = self._raw.readinto(buffer)
        self._budget.spend(size or 0)
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()

    # For http.client, which reads what this returns.
    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self, _CHUNK)


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        budget = _BUDGET.get()
        super().__init__(cast("socket.socket", _Source(sock, budget)) if budget else sock, *arguments, **options)


def _within_budget(pool: type[urllib3.HTTPConnectionPool]) -> type[urllib3.HTTPConnectionPool]:
    """Returns a kind of pool whose connections read their answers as `_Response` does."""
    connection = type("_Connection", (pool.ConnectionCls,), {"response_class": _Response})
    return type("_Pool", (pool,), {"ConnectionCls": connection})


_POOLS = {"http": _within_budget(urllib3.HTTPConnectionPool), "https": _within_budget(urllib3.HTTPSConnectionPool)}


class _Adapter(HTTPAdapter):
    """Sends one request and reads its answer, all of it unless `stream`, within the budget."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        budget = _BUDGET.get() or _Budget(ANSWER_BYTES, ANSWER_SECONDS)
        token = _BUDGET.set(budget)
        steps = timeout if isinstance(timeout, tuple) else (timeout, timeout)
        try:
            with _told(budget):
                budget.check()
                connect, read = map(budget.wait, steps)
                response = super().send(request, True, (connect, read), verify, cert, proxies)
                if sum(len(name) + len(value) for name, value in response.headers.items()) > HEADER_BYTES:
                    response.close()
                    raise LimitError(f"its headers have more than {HEADER_BYTES >> 10} KiB")
                # requests itself reads the answers that redirect, whether or not the caller streams.
                if not stream or response.is_redirect:
                    _read(response, budget)
        finally:
            _BUDGET.reset(token)
        return response


@contextlib.contextmanager
def _told(budget: _Budget) -> Iterator[None]:
    """Raises the cause where urllib3 and requests made a lost connection of an exceeded limit."""
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError) as error:
        try:
            budget.check()
        except LimitError as limit:
            raise limit from error
        raise


def _read(response: requests.Response, budget: _Budget) -> None:
    content = bytearray()
    try:
        for piece in response.iter_content(_CHUNK):
            content += piece
            if len(content) > budget.size:  # decompressed; the budget counts what came over the wire
                budget.spend(budget.left + 1)
    except BaseException:
        response.close()
        raise
    response._content = bytes(content)  # noqa: SLF001 - requests reads it itself, without a limit


def chunks(response: requests.Response, size: int) -> Iterator[bytes]:
    """Yields the bytes of an answer as they come, not decompressed; its request was sent with `stream`.

    Raises:
        LimitError: the answer exceeds a limit of the block that this is called in.
    """
    budget = _BUDGET.get() or _Budget(ANSWER_BYTES, ANSWER_SECONDS)
    with _told(budget):
        yield from response.raw.stream(size, decode_content=False)


def host_certificates() -> Path | None:
    """Returns this machine's bundle of certificate authorities; None when it has none.

    Looks at SSL_CERT_FILE and OpenSSL's default first, then at the usual paths of distributions.
    """
    for candidate in (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *_USUAL_CERTIFICATES):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


class Session(requests.Session):
    """A session with limits, without cookies, that trusts this machine's certificate authorities.

    REQUESTS_CA_BUNDLE goes before these. Loopback is asked directly, whatever proxy the environment names: a proxy
    cannot reach it.
    """

    def __init__(self) -> None:
        super().__init__()
        for scheme in _PORTS:
            self.mount(f"{scheme}://", _Adapter())
        if certificates := host_certificates():
            self.verify = str(certificates)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # they know neither scheme nor port

    def merge_environment_settings(self, url: Any, proxies: Any, *settings: Any, **named: Any) -> Any:
        """Returns the settings of a request."""
        merged = super().merge_environment_settings(url, proxies, *settings, **named)
        return {**merged, "proxies": {}} if origin(url).is_loopback else merged

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        """Returns the proxies for a redirected request."""
        if origin(prepared_request.url or "").is_loopback:
            return {}
        return super().rebuild_proxies(prepared_request, proxies)  # type: ignore[no-untyped-call]


class BoundSession(Session):
    """A session whose credentials go to one server alone, over TLS.

    Requests to another server are refused, because their URLs come from answers: a `Link`, a `Location`. Redirects to
    another server are followed, as registries have it for blobs, without credentials, and not from TLS to plain text.
    """

    def __init__(self, server: Origin) -> None:
        super().__init__()
        self.server = server
        self._asked = server
        self._may_log_in = False
        # Credentials are what the caller sets: without this, requests would prefer those of ~/.netrc.
        self.auth = _unchanged

    @contextlib.contextmanager
    def logging_in(self) -> Iterator[None]:
        """Lets requests of the block go to the token server that an answer names, with credentials.

        It must have TLS, and be on loopback if this session's server is.
        """
        self._may_log_in = True
        try:
            yield
        finally:
            self._may_log_in = False

    def request(self, method: Any, url: Any, *arguments: Any, **options: Any) -> requests.Response:
        """Sends what a caller asks for.

        Raises:
            ElsewhereError: it would go to another server, or another server asks for credentials.
        """
        wanted = origin(url)
        is_token_server = wanted.scheme == "https" and (wanted.is_loopback or not self.server.is_loopback)
        if wanted != self.server and not (self._may_log_in and is_token_server):
            raise ElsewhereError(str(wanted))
        self._asked = wanted
        response = super().request(method, url, *arguments, **options)
        if response.status_code == requests.codes.unauthorized and (asking := origin(response.url)) != wanted:
            raise ElsewhereError(str(asking))
        return response

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Sends one request; requests calls this for each redirect too."""
        wanted = origin(request.url or "")
        if wanted.scheme != "https" and self.server.scheme == "https":
            raise ElsewhereError(str(wanted))
        if wanted.scheme != "https" or wanted != self._asked:
            request.headers.pop("Authorization", None)
        return super().send(request, **{**options, "stream": False})  # all answers are small, blobs too

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """Does nothing: `send` decides, and requests would add what ~/.netrc has."""


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
