"""Which sdist vendors a commit of llama.cpp, asked of a package index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from git import Git

from base_images.adapters import repository
from base_images.progress import silent
from base_images.recipes import sdists
from tests.support import clones
from tests.support.hostile import Hostile
from tests.support.sdists import changelog_of, index, write

FILES = {"CMakeLists.txt": "project(llama.cpp)\n", "src/llama.cpp": "int main() {}\n", "models/m.gguf": "GGUF"}
LINKS = {"again.txt": "CMakeLists.txt"}
MADE = datetime(2026, 10, 10, 12, tzinfo=UTC)
EARLIER, LATER = (f"{MADE + timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}" for hours in (-1, 1))
BY_NUMBER, BY_COMMIT = ("xllamacpp-2026.10.7.tar.gz", "llama_cpp_python-0.3.36.tar.gz")

Serve = Callable[[Mapping[str, str]], Hostile]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    path = tmp_path / "clone"
    for name, text in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    for name, target in LINKS.items():
        (path / name).symlink_to(target)
    clones.commit_all(path).close()
    return path


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts an index that lists these files with their times, and makes it pip's."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with contextlib.ExitStack() as stack:

        def start(uploaded: Mapping[str, str]) -> Hostile:
            server = stack.enter_context(index(tmp_path / "index", uploaded))
            monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
            return server

        yield start


def find(clone: Path) -> sdists.Found:
    opened = repository.source_clone(clone, "HEAD")
    blobs = repository.blobs(opened, "HEAD")
    return sdists.find(tag="b7", commit=commit_of(clone), made=MADE, blobs=blobs, listener=silent)


def commit_of(clone: Path) -> str:
    return str(Git(clone).rev_parse("HEAD"))


def numbered(tmp_path: Path, files: Mapping[str, str] = FILES, links: Mapping[str, str] = LINKS) -> str:
    tree = {f"thirdparty/llama.cpp/{name}": text for name, text in files.items()}
    below = {f"thirdparty/llama.cpp/{name}": target for name, target in links.items()}
    return write(tmp_path / "index" / BY_NUMBER, "xllamacpp-2026.10.7", {"setup.py": "", **tree}, below)


def by_changelog(tmp_path: Path, version: str, commits: Mapping[str, str]) -> str:
    tree = {f"vendor/llama.cpp/{name}": text for name, text in {**FILES, ".git": "gitdir: x"}.items()}
    name = f"llama_cpp_python-{version}"
    return write(tmp_path / "index" / f"{name}.tar.gz", name, {"CHANGELOG.md": changelog_of(commits), **tree})


def downloads(server: Hostile) -> list[str]:
    return [request.path for request in server.requests if not request.path.startswith("/simple/")]


def test_the_sdist_whose_version_ends_in_the_build_is_found(clone: Path, serve: Serve, tmp_path: Path) -> None:
    sha256 = numbered(tmp_path)
    for other in ("xllamacpp-2026.9.6.tar.gz", "xllamacpp-2026.10.77.tar.gz", "xllamacpp-0.2.7.tar.gz"):
        write(tmp_path / "index" / other, "x", {})
    server = serve(dict.fromkeys([path.name for path in (tmp_path / "index").iterdir()], LATER))
    found = find(clone)
    assert (found.requirement, found.sha256) == ("xllamacpp==2026.10.7", sha256)
    assert found.told == "xllamacpp==2026.10.7 vendors it: each of its 4 files is the commit's."
    assert downloads(server) == [f"/{BY_NUMBER}"]


def test_the_sdist_whose_changelog_names_the_commit_is_found(clone: Path, serve: Serve, tmp_path: Path) -> None:
    commit = commit_of(clone)
    commits = {"0.3.37": "1" * 9, "0.3.36": commit[:9], "0.3.35": "2" * 9, "0.3.4": ""}
    by_changelog(tmp_path, "0.3.37", commits)
    sha256 = by_changelog(tmp_path, "0.3.36", {"0.3.36": commit[:9]})
    by_changelog(tmp_path, "0.3.4", {})
    names = [path.name for path in (tmp_path / "index").iterdir()]
    server = serve(dict.fromkeys(names, LATER))
    found = find(clone)
    assert (found.requirement, found.sha256) == ("llama-cpp-python==0.3.36", sha256)
    assert found.told == (
        "llama-cpp-python==0.3.36 vendors it: each of its 3 files is the commit's; it lacks 1 that the commit has, "
        "`again.txt`."
    )
    assert downloads(server) == ["/llama_cpp_python-0.3.37.tar.gz", f"/{BY_COMMIT}"]


def test_nothing_is_downloaded_that_is_older_than_the_commit(clone: Path, serve: Serve, tmp_path: Path) -> None:
    numbered(tmp_path)
    by_changelog(tmp_path, "0.3.36", {})
    server = serve({BY_NUMBER: EARLIER, BY_COMMIT: EARLIER})
    assert find(clone) == sdists.Found(
        told="No sdist is known to vendor it, so only git has the source (xllamacpp: the newest of 1 sdists is older "
        "than the commit; llama-cpp-python: the newest of 1 sdists is older than the commit)."
    )
    assert downloads(server) == []


@pytest.mark.parametrize(
    ("files", "links", "said"),
    [
        ({**FILES, "src/llama.cpp": "int main() { evil(); }\n"}, LINKS, "has 1 files that are not the commit's, `src/"),
        ({**FILES, "src/more.cpp": ""}, LINKS, "has 1 files that are not the commit's, `src/more.cpp`"),
        (FILES, {"again.txt": "/etc/passwd"}, "has 1 files that are not the commit's, `again.txt`"),
        ({}, {}, "has 0 files"),
    ],
)
def test_a_tree_that_is_not_the_commit_is_refused(
    clone: Path, serve: Serve, tmp_path: Path, files: Mapping[str, str], links: Mapping[str, str], said: str
) -> None:
    numbered(tmp_path, files, links)
    serve({BY_NUMBER: LATER})
    found = find(clone)
    assert (found.requirement, found.sha256) == ("", "")
    assert f"(xllamacpp: {BY_NUMBER} {said}" in found.told
    assert "llama-cpp-python: 127.0.0.1: NoSuchProjectError)" in found.told


def test_an_archive_that_cannot_be_read_is_told(clone: Path, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / BY_NUMBER).write_bytes(b"\x1f\x8b\x08\x00 broken")
    by_changelog(tmp_path, "0.3.36", {"0.3.36": "3" * 9})
    serve({BY_NUMBER: LATER, BY_COMMIT: LATER})
    told = find(clone).told
    assert "the changelog of 0.3.36 does not name" in told
    assert "(xllamacpp: " in told


@pytest.mark.usefixtures("serve")
def test_without_an_index_that_is_told(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    assert "(xllamacpp: 127.0.0.1: ConnectionError; llama-cpp-python: 127.0.0.1: Conn" in find(clone).told
    monkeypatch.setenv("PIP_INDEX_URL", "file:///nowhere")
    assert "(xllamacpp: no index to ask; " in find(clone).told
