from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import requests

from base_images.adapters import download as downloads
from base_images.adapters import http_session
from base_images.adapters.download import download
from base_images.errors import SourceError
from base_images.progress import Progress, silent
from tests.support.hostile import Hostile, Request, hostile, reply
from tests.support.programs import wait_for
from tests.support.servers import running

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
SECONDS = 300
"""A time-out that only a hang exceeds."""


class FileServer(Hostile):
    """Serves CONTENT, with the faults that a test sets."""

    def __init__(self) -> None:
        super().__init__(self.serve)
        self.cuts = self.status = 0
        self.honours_range = True
        self.go_on = threading.Event()
        self.go_on.set()

    @property
    def ranges(self) -> list[str | None]:
        return [request.headers.get("range") for request in self.requests]

    def serve(self, asked: Request) -> Iterable[bytes]:
        wanted = asked.headers.get("range", "") if self.honours_range else ""
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        if self.status or start >= len(CONTENT):
            yield from reply(self.status or 416)
            return
        place = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
        head, body = reply(206 if start else 200, CONTENT[start:], **place)
        if self.cuts:
            self.cuts -= 1
            body = body[: len(body) // 2]
        yield head + body[:1000]
        self.go_on.wait(SECONDS)
        yield body[1000:]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server, running(server):
        yield server


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file.tar.gz"


@pytest.fixture
def part(target: Path) -> Path:
    target.parent.mkdir()
    return target.with_name("file.tar.gz.part")


def test_a_download_is_complete_and_reports_progress(server: FileServer, target: Path) -> None:
    reported: list[Progress] = []
    assert download(server.url, target, sha256=SHA256, listener=reported.append) == target

    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert {(progress.what, progress.total) for progress in reported} == {("download file.tar.gz", len(CONTENT))}
    assert reported[-1].finished
    assert reported[-1].done == len(CONTENT)


def test_a_valid_file_is_not_requested(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    download(server.url, target, sha256=SHA256, listener=silent)

    assert server.ranges == []


def test_a_damaged_file_is_replaced(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT[:-1])
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT


def test_a_lost_connection_is_resumed(server: FileServer, target: Path) -> None:
    server.cuts = 2
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]


def test_a_server_that_stays_down_is_one_sentence_and_the_next_run_resumes(server: FileServer, target: Path) -> None:
    server.cuts = downloads.ATTEMPTS
    with pytest.raises(SourceError, match=r"could not be downloaded from 127\.0\.0\.1") as caught:
        download(server.url, target, sha256=SHA256, listener=silent)
    assert "\n" not in str(caught.value)
    assert not target.exists()
    server.requests.clear()
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) - len(CONTENT) // 16}-"]


def test_without_range_support_the_download_restarts(server: FileServer, target: Path, part: Path) -> None:
    server.honours_range = False
    part.write_bytes(b"something else of the same length"[:20])
    download(server.url, target, sha256=SHA256, listener=silent)

    assert server.ranges == ["bytes=20-"]
    assert target.read_bytes() == CONTENT


def test_a_complete_part_is_used(server: FileServer, target: Path, part: Path) -> None:
    part.write_bytes(CONTENT)
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT


def test_a_wrong_hash_removes_the_part(server: FileServer, target: Path, part: Path) -> None:
    with pytest.raises(SourceError, match=f"SHA-256 is not {'0' * 64}"):
        download(server.url, target, sha256="0" * 64, listener=silent)

    assert not target.exists()
    assert not part.exists()


def test_a_part_of_another_file_is_detected(server: FileServer, target: Path, part: Path) -> None:
    part.write_bytes(b"x" * HALF)
    with pytest.raises(SourceError, match="not the expected file"):
        download(server.url, target, sha256=SHA256, listener=silent)
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT


def test_ctrl_c_keeps_the_part(server: FileServer, target: Path) -> None:
    def interrupt(_progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, target, sha256=SHA256, listener=interrupt)
    assert not target.exists()
    download(server.url, target, sha256=SHA256, listener=silent)

    assert target.read_bytes() == CONTENT
    assert server.ranges[1] not in {None, "bytes=0-"}


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, downloads.ATTEMPTS)])
def test_only_server_errors_are_retried(server: FileServer, target: Path, status: int, requests: int) -> None:
    server.status = status
    with pytest.raises(SourceError, match=f"HTTP status {status}"):
        download(server.url, target, sha256=SHA256, listener=silent)

    assert len(server.ranges) == requests


def test_an_unreachable_server_is_an_error(target: Path) -> None:
    with pytest.raises(SourceError, match="ConnectionError"):
        download("http://127.0.0.1:1/file", target, sha256=SHA256, listener=silent)


def test_concurrent_processes_download_once(server: FileServer, target: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from base_images.adapters.download import download;"
        "from base_images.progress import silent;"
        "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3], listener=silent)"
    )
    scripts = Path(downloads.__file__).parents[2]
    server.go_on.clear()
    processes = [
        subprocess.Popen([sys.executable, "-c", code, server.url, str(target), SHA256], cwd=scripts) for _ in range(3)
    ]
    # Until two wait for the lock, or have sent a request as well.
    wait_for(lambda: len(waiting() & {process.pid for process in processes}) >= 2 or len(server.ranges) >= 2)
    server.go_on.set()

    assert [process.wait(SECONDS) for process in processes] == [0, 0, 0]
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None]


def waiting() -> set[int]:
    """Returns the processes that wait for a lock (proc_locks(5))."""
    lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    return {int(line.split()[5]) for line in lines if line.split()[1] == "->"}


def test_ssl_cert_file_sets_the_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "site.pem"
    bundle.write_text("", encoding="utf-8")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))

    assert http_session.host_certificates() == bundle
    assert http_session.Session().verify == str(bundle)


def test_a_missing_ssl_cert_file_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/does/not/exist.pem")

    assert http_session.host_certificates() != Path("/does/not/exist.pem")


def test_the_cache_is_in_xdg_cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert downloads.cache_directory() == tmp_path / "llama-cpp-base-images"


def redirecting(asked: Request) -> Iterable[bytes]:
    """Redirects once to the name of this machine that it is asked for, and then answers."""
    if asked.path == "/there":
        return reply(200, b"directly")
    return reply(302, Location=f"http://{asked.path[1:]}:{asked.headers['host'].rpartition(':')[2]}/there")


def test_loopback_is_asked_directly_and_others_by_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile(lambda _: reply(200, b"by the proxy")) as proxy, hostile(redirecting) as here:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "direct.invalid")

        def get(url: str) -> str:
            with http_session.Session() as session:
                return session.get(url, timeout=60).text

        for host in ("127.0.0.1", "localhost"):
            assert get(f"http://{host}:{here.server_port}/there") == "directly"
        assert get("http://example.invalid/there") == "by the proxy"
        assert get(f"{here.url}/localhost") == "directly"
        assert get(f"{here.url}/example.invalid") == "by the proxy"
        with pytest.raises(requests.ConnectionError):
            get(f"http://direct.invalid:{here.server_port}/there")
