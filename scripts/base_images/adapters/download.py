"""Verified downloads that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import requests
import urllib3

from base_images.adapters import http_session
from base_images.errors import SourceError
from base_images.progress import Listener, Progress

ATTEMPTS = 4
PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = (15, 60)
"""To connect, and between two reads (requests' `timeout`)."""

FILE_BYTES = 1 << 30
"""The largest file: llama-cpp-python's sdist has 70 MB, the wheel of cuBLAS 13 for arm64 550 MB."""

FILE_SECONDS = 3600.0
"""For all attempts of one call: 70 MB in an hour are 160 kbit/s, and the next call gets the rest."""

_CHUNK = 1 << 20


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


def download(
    url: str,
    target: Path,
    *,
    sha256: str,
    listener: Listener,
    remedy: str = "correct the hash in pyproject.toml",
) -> Path:
    """Downloads `url` to `target`, unless that has the right content already, and returns `target`.

    The incomplete file has `.part` appended. It is kept after Ctrl-C or a lost connection, and the next call requests
    the remaining bytes. `target` itself is created atomically, complete and verified. `remedy` is for another content.

    Raises:
        SourceError: the server has no such file, the connection was lost too often, or `sha256` does not match (then
            the incomplete file is removed).
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    what = f"download {target.name}"
    host = urlsplit(url).hostname
    with locked(target.parent), http_session.limited(size=FILE_BYTES, seconds=FILE_SECONDS):
        if is_valid(target, sha256):
            return target
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch_rest(url, part, what, listener)
                break
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                status = error.response.status_code if isinstance(error, requests.HTTPError) else None
                limit = str(error) if isinstance(error, http_session.LimitError) else ""
                final = limit or (status is not None and status < requests.codes.server_error)
                if final or attempt == ATTEMPTS:
                    reason = limit or (f"HTTP status {status}" if status else type(error).__name__)
                    raise SourceError(
                        f"{target.name} could not be downloaded from {host} ({reason}): try again later; "
                        "what has arrived so far is kept."
                    ) from error
                listener(Progress(what=what, note=f"connection lost, attempt {attempt + 1} of {ATTEMPTS}"))
                time.sleep(PAUSE_SECONDS * attempt)
        if not is_valid(part, sha256):
            part.unlink()
            raise SourceError(
                f"{target.name} from {host} is not the expected file: its SHA-256 is not {sha256}; "
                f"it was removed. Try again, and if that does not help, {remedy}."
            )
        part.replace(target)
    listener(Progress(what=what, done=target.stat().st_size, total=target.stat().st_size, finished=True))
    return target


def _fetch_rest(url: str, part: Path, what: str, listener: Listener) -> None:
    """Downloads the remaining bytes of `part`, or all of it where the server does not support ranges."""
    done = part.stat().st_size if part.exists() else 0
    if done >= FILE_BYTES:  # from a server that sent without end
        part.unlink()
        done = 0
    # With another encoding, ranges would count compressed bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with (
        http_session.Session() as http,
        http.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response,
    ):
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            # Nothing remains: the part is complete, or of another file, as its hash will show.
            return
        response.raise_for_status()
        if not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
            done = 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        with part.open("ab" if done else "wb") as stream:
            # Raw bytes: some servers send a .tar.gz with `Content-Encoding: gzip`.
            for chunk in http_session.chunks(response, _CHUNK):
                stream.write(chunk)
                done += len(chunk)
                listener(Progress(what=what, done=done, total=total))
