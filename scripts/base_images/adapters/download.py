"""Verified downloads that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import ipaddress
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from base_images.errors import SourceError
from base_images.progress import Listener, Progress

ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = (15, 60)
"""To connect, and between two reads (requests' `timeout`)."""

_CHUNK = 1 << 20
_USUAL_CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL, openEuler
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


def host_certificates() -> Path | None:
    """Returns this machine's bundle of certificate authorities; None when it has none.

    Looks at SSL_CERT_FILE and OpenSSL's default first, then at the usual paths of distributions.
    """
    for candidate in (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, *_USUAL_CERTIFICATES):
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


class Session(requests.Session):
    """A session that asks this machine's loopback addresses directly: a proxy cannot reach them.

    For all others the proxies of the environment are used, and NO_PROXY is honoured.
    """

    def merge_environment_settings(self, url: Any, proxies: Any, *settings: Any, **named: Any) -> Any:
        """Returns the settings of a request."""
        merged = super().merge_environment_settings(url, proxies, *settings, **named)
        return {**merged, "proxies": {}} if is_loopback(urlsplit(url).hostname) else merged

    def rebuild_proxies(self, prepared_request: requests.PreparedRequest, proxies: Any) -> Any:
        """Returns the proxies for a redirected request."""
        if is_loopback(urlsplit(prepared_request.url or "").hostname):
            return {}
        return super().rebuild_proxies(prepared_request, proxies)  # type: ignore[no-untyped-call]


def is_loopback(host: str | None) -> bool:
    """Returns whether a host name or address (without brackets) is a loopback address, out of reach for others."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def session() -> Session:
    """Returns an HTTP session that trusts this machine's certificate authorities, unless REQUESTS_CA_BUNDLE is set."""
    result = Session()
    if certificates := host_certificates():
        result.verify = str(certificates)
    return result


def cache_directory() -> Path:
    """Returns this project's cache directory (XDG base directories) and creates it if it is missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "llama-cpp-base-images"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def is_valid(path: Path, sha256: str) -> bool:
    """Returns whether `path` is a file with this SHA-256 (hexadecimal)."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Locks `directory` against other processes, waiting for the lock; the lock ends with the process."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def download(url: str, target: Path, *, sha256: str, listener: Listener) -> Path:
    """Downloads `url` to `target`, unless that has the right content already, and returns `target`.

    The incomplete file has `.part` appended. It is kept after Ctrl-C or a lost connection, and the next call requests
    the remaining bytes. `target` itself is created atomically, complete and verified.

    Raises:
        SourceError: the server has no such file, the connection was lost too often, or `sha256` does not match (then
            the incomplete file is removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    what = f"download {target.name}"
    host = urlsplit(url).hostname
    with locked(target.parent):
        if is_valid(target, sha256):
            return target
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch_rest(url, part, what, listener)
                break
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                status = error.response.status_code if isinstance(error, requests.HTTPError) else None
                final = status is not None and status < requests.codes.server_error
                if final or attempt == ATTEMPTS:
                    reason = f"HTTP status {status}" if status else type(error).__name__
                    raise SourceError(
                        f"{target.name} could not be downloaded from {host} ({reason}): try again later; "
                        "what has come so far is kept."
                    ) from error
                listener(Progress(what=what, note=f"connection lost, attempt {attempt + 1} of {ATTEMPTS}"))
                time.sleep(PAUSE_SECONDS * attempt)
        if not is_valid(part, sha256):
            part.unlink()
            raise SourceError(
                f"{target.name} from {host} is not the file that is wanted: its SHA-256 is not {sha256}; "
                "it was removed. Try again, and if that does not help, correct the hash in pyproject.toml."
            )
        part.replace(target)
    listener(Progress(what=what, done=target.stat().st_size, total=target.stat().st_size, finished=True))
    return target


def _fetch_rest(url: str, part: Path, what: str, listener: Listener) -> None:
    """Downloads the remaining bytes of `part`, or all of it where the server does not support ranges."""
    done = part.stat().st_size if part.exists() else 0
    # With another encoding, ranges would count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with session() as http, http.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # Nothing remains: the part is complete, or of another file, as its hash will show.
            return
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            done = 0
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        with part.open("ab" if done else "wb") as stream:
            # Raw bytes: some servers send a .tar.gz with `Content-Encoding: gzip`.
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                stream.write(chunk)
                done += len(chunk)
                listener(Progress(what=what, done=done, total=total))
