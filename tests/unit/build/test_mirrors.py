from __future__ import annotations

import http.server
from collections.abc import Iterator

import pytest

from base_images.build import bases, mirrors
from base_images.build.mirrors import Snapshot
from base_images.errors import SourceError, UsageError
from base_images.progress import silent
from base_images.roots import Root
from tests.support.servers import Handler, running

TIME = "20261101T000000Z"


class Archive(Handler):
    """Has one suite, at one time that is not a snapshot's own."""

    def do_HEAD(self) -> None:
        if self.path == f"/archive/debian/{TIME}/dists/trixie/InRelease":
            self.send_response(302)
            self.send_header("Location", self.path.replace(TIME, "20261031T203000Z"))
            self.end_headers()
        else:
            self.answer(200 if "/20261031T203000Z/dists/trixie/" in self.path else 404)


@pytest.fixture
def archive() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Archive) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/archive"


@pytest.mark.parametrize(
    ("value", "snapshot"),
    [
        ("", None),
        (TIME, Snapshot("http://snapshot.debian.org/archive", TIME)),
        (f"http://mirror.example:8080/x/{TIME}", Snapshot("http://mirror.example:8080/x", TIME)),
    ],
)
def test_a_snapshot_is_a_time_and_an_archive(
    value: str, snapshot: Snapshot | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(mirrors.SNAPSHOT_VARIABLE, value)
    assert mirrors.snapshot() == snapshot


@pytest.mark.parametrize("value", ["2026-11-01", "yesterday", f"ftp://x/{TIME}", f"http://x y/{TIME}", f"{TIME}\n"])
def test_another_value_is_one_sentence(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirrors.SNAPSHOT_VARIABLE, value)
    with pytest.raises(UsageError, match="write a time such as 20261101T000000Z"):
        mirrors.snapshot()


def test_bases_are_made_from_the_snapshot_and_its_old_lists_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(mirrors.SNAPSHOT_VARIABLE, f"http://mirror.example/{TIME}")
    sources = mirrors.apt_sources(mirrors.index_targets(silent), Root())
    assert [line.split("] ")[1] for line in sources] == [
        f"http://mirror.example/debian/{TIME}/ trixie main",
        f"http://mirror.example/debian/{TIME}/ trixie-updates main",
        f"http://mirror.example/debian-security/{TIME}/ trixie-security main",
    ]
    assert bases._apt_options(Root()) == ['--aptopt=Acquire::Check-Valid-Until "false"']
    monkeypatch.delenv(mirrors.SNAPSHOT_VARIABLE)
    assert bases._apt_options(Root()) == []


def test_an_archive_without_the_snapshot_is_one_sentence(archive: str) -> None:
    mirrors.require(Snapshot(archive, TIME), ["trixie", "trixie"])
    with pytest.raises(SourceError, match=rf"{archive} has no Debian unstable of {TIME} \(HTTP status 404\): choose"):
        mirrors.require(Snapshot(archive, TIME), ["trixie", "unstable"])
    with pytest.raises(SourceError, match=r"http://127\.0\.0\.1:1 does not answer \(ConnectionError\): name another"):
        mirrors.require(Snapshot("http://127.0.0.1:1", TIME), ["trixie"])
