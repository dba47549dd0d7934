from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from git import Git

from base_images.build import source as sources
from base_images.build.inputs import Origin, Source, SourceKind
from base_images.build.source import STAMP, resolve, tree_digest
from base_images.errors import SourceError
from base_images.progress import Progress, silent
from base_images.recipes import sdists
from base_images.settings import Pin
from tests.support import clones, programs
from tests.support.hostile import hostile, reply
from tests.support.registries import connections
from tests.support.sdists import changelog_of, write
from tests.support.servers import Files, serving

FILES = {
    "CMakeLists.txt": 'cmake_minimum_required(VERSION 3.14)\nproject("llama.cpp" C CXX)\n',
    ".devops/cpu.Dockerfile": "FROM scratch\n",
    "ggml/CMakeLists.txt": "",
    "tools/server/CMakeLists.txt": "",
    "tools/server/server.cpp": "int main() {}\n",
    "tools/ui/package.json": "{}\n",
    "build.sh": "#!/bin/sh\n",
    ".gitattributes": "* text=auto\n",
}


def write_tree(tree: Path) -> Path:
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    (tree / "build.sh").chmod(0o755)
    return tree


def git(repository: Path, *arguments: str) -> str:
    return str(Git(repository).execute(["git", *arguments]))


def commit(repository: Path, text: str) -> str:
    (repository / "tools/server/server.cpp").write_text(text, encoding="utf-8")
    return clones.commit_all(repository).head.commit.hexsha


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A small repository like llama.cpp's: two commits, the second tagged b2."""
    repository = write_tree(tmp_path / "upstream")
    commit(repository, "first")
    commit(repository, "second")
    git(repository, "tag", "b2")
    return repository


@pytest.fixture
def pin(upstream: Path) -> Pin:
    return Pin(
        repository=upstream.as_uri(),
        tag="b2",
        commit=git(upstream, "rev-parse", "HEAD"),
        sdist="llama-cpp-python==0.0.2",
        sdist_sha256="",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "checkout"
    path.mkdir()
    return path


def managed(pin: Pin, root: Path, origin: Origin = Origin.REGISTRIES) -> Source:
    return resolve(pin, path=None, origin=origin, root=root, listener=silent)


def given(pin: Pin, path: Path) -> Source:
    return resolve(pin, path=path, origin=Origin.AUTO, root=path, listener=silent)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


# The managed tree, from git.


def test_the_pin_is_fetched(pin: Pin, root: Path) -> None:
    found = managed(pin, root)

    assert found.path == root / "llama.cpp"
    assert (found.tag, found.build_number, found.commit) == ("b2", 2, pin.commit)
    assert (found.kind, found.dirty, found.notices) == (SourceKind.GIT, False, ())
    assert (found.path / "tools/server/server.cpp").read_text() == "second"
    assert os.access(found.path / "build.sh", os.X_OK)
    assert not (found.path / ".git").exists()
    assert found.digest == tree_digest(found.path)
    assert names(root) == ["llama.cpp"]


def test_the_files_of_the_pin_are_the_same_for_every_user(
    pin: Pin, root: Path, upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = managed(pin, root).digest
    shutil.rmtree(root / "llama.cpp")
    programs.script(tmp_path / "hooks" / "post-checkout", "echo >made-by-a-hook")
    (tmp_path / "attributes").write_text("* text=auto eol=crlf\n")
    for name, value in {
        "core.attributesFile": tmp_path / "attributes",
        "core.autocrlf": "true",
        "core.eol": "crlf",
        "core.hooksPath": tmp_path / "hooks",
    }.items():
        subprocess.run(["git", "config", "--file", tmp_path / "config", name, str(value)], check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "config"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert managed(pin, root).digest == expected
    assert given(pin, upstream).commit == pin.commit


def test_a_fetched_pin_is_not_fetched_again(pin: Pin, root: Path, upstream: Path) -> None:
    first = managed(pin, root)
    shutil.rmtree(upstream)

    assert managed(pin, root) == first


def test_the_expected_source_is_known_without_fetching(pin: Pin, root: Path, upstream: Path) -> None:
    before = sources.expected(pin, path=None, root=root)
    assert names(root) == []
    fetched = managed(pin, root)
    assert (before.path, before.tag, before.commit, before.dirty) == (fetched.path, pin.tag, pin.commit, False)
    assert sources.expected(pin, path=None, root=root) == fetched
    assert sources.expected(with_first_commit(pin, upstream), path=None, root=root).commit != pin.commit
    (fetched.path / "new.cpp").touch()
    assert sources.expected(pin, path=None, root=root).dirty
    assert sources.expected(pin, path=upstream, root=root).path == upstream


def test_an_edited_tree_is_used_and_reported_as_dirty(pin: Pin, root: Path) -> None:
    clean = managed(pin, root)
    (clean.path / "tools/server/server.cpp").write_text("mine", encoding="utf-8")
    found = managed(pin, root)

    assert found.dirty
    assert found.digest != clean.digest
    assert "with changes of yours" in found.notices[0]
    assert (found.path / "tools/server/server.cpp").read_text() == "mine"


def with_first_commit(pin: Pin, upstream: Path) -> Pin:
    return replace(pin, tag="b1", commit=git(upstream, "rev-parse", "HEAD~1"))


def test_an_older_pin_is_replaced(pin: Pin, root: Path, upstream: Path) -> None:
    assert managed(with_first_commit(pin, upstream), root).tag == "b1"
    found = managed(pin, root)

    assert (found.tag, found.commit, found.dirty) == ("b2", pin.commit, False)
    assert names(root) == ["llama.cpp"]


def test_an_older_pin_with_changes_is_never_destroyed(pin: Pin, root: Path, upstream: Path) -> None:
    file = managed(with_first_commit(pin, upstream), root).path / "mine.txt"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(SourceError, match="move it away"):
        managed(pin, root)

    assert file.read_text() == "mine"


def test_a_foreign_directory_is_never_destroyed(pin: Pin, root: Path) -> None:
    (root / "llama.cpp").mkdir()
    (root / "llama.cpp/notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SourceError, match=r"is not llama.cpp's source tree.*move it away"):
        managed(pin, root)

    assert (root / "llama.cpp/notes.txt").read_text() == "mine"


def test_a_clone_of_another_commit_is_never_destroyed(pin: Pin, root: Path, upstream: Path) -> None:
    git(root, "clone", "--quiet", str(upstream), "llama.cpp")
    git(root / "llama.cpp", "checkout", "--quiet", "HEAD~1")
    with pytest.raises(SourceError, match="move it away"):
        managed(pin, root)
    git(root / "llama.cpp", "checkout", "--quiet", "b2")

    assert managed(pin, root).kind is SourceKind.PATH


def test_an_empty_directory_is_filled(pin: Pin, root: Path) -> None:
    (root / "llama.cpp").mkdir()

    assert managed(pin, root).commit == pin.commit


@pytest.mark.parametrize(
    ("wrong", "origin", "said"),
    [
        ({"tag": "b9", "commit": "f" * 40}, Origin.AUTO, f"has no commit {'f' * 40}: correct the pin"),
        ({"repository": "http://127.0.0.1:1/x"}, Origin.REGISTRIES, r"cannot be reached \(.*onnect"),
    ],
    ids=["a missing commit", "an unreachable host"],
)
def test_a_fetch_that_fails_is_reported(pin: Pin, root: Path, wrong: dict[str, Any], origin: Origin, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        managed(replace(pin, **wrong), root, origin)

    assert names(root) == []


def test_a_password_in_the_pins_repository_is_used_and_not_shown(pin: Pin, root: Path) -> None:
    wanted = replace(pin, repository="http://user:sekret@{host}/x")
    shown: list[Progress] = []
    with hostile(lambda _: reply(401, Www_Authenticate='Basic realm="x"')) as server:
        secret = replace(wanted, repository=wanted.repository.format(host=server.address))
        with pytest.raises(SourceError, match=rf"git repository http://{server.address}/x cannot be reached") as caught:
            resolve(secret, path=None, origin=Origin.REGISTRIES, root=root, listener=shown.append)
        assert "Basic dXNlcjpzZWtyZXQ=" in server.heard
    assert shown[0].note == f"asking http://{server.address}/x"
    assert "sekret" not in f"{caught.value} {shown}"


def test_a_silent_git_host_is_reported(pin: Pin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "REACH_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silence:
        deaf = replace(pin, repository=f"http://127.0.0.1:{silence.getsockname()[1]}/x")
        with pytest.raises(SourceError, match="no answer within 1 s"):
            managed(deaf, root)
        assert connections(silence) <= 1, "it asked again"

    assert names(root) == []


def interrupted(pin: Pin, root: Path, origin: Origin, when: Callable[[Progress], bool]) -> None:
    """Asserts that Ctrl-C at that moment leaves no tree, and that the next run makes it."""

    def interrupt(progress: Progress) -> None:
        if when(progress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resolve(pin, path=None, origin=origin, root=root, listener=interrupt)
    assert names(root) == []

    assert managed(pin, root, origin).commit == pin.commit


def test_ctrl_c_while_fetching_leaves_no_tree(pin: Pin, root: Path) -> None:
    interrupted(pin, root, Origin.REGISTRIES, lambda progress: "asking" not in progress.note)


def test_leftovers_of_a_killed_run_are_removed(pin: Pin, root: Path) -> None:
    write_tree(root / "llama.cpp.partial")
    write_tree(root / "llama.cpp.old")

    assert not managed(pin, root).dirty
    assert names(root) == ["llama.cpp"]


def test_a_damaged_stamp_is_reported(pin: Pin, root: Path) -> None:
    (managed(pin, root).path / STAMP).write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match="is damaged"):
        managed(pin, root)


# The managed tree, from the sdist.


def write_sdist(path: Path, commit: str, *, extra: str = "") -> str:
    """Writes a small sdist like llama-cpp-python's and returns its SHA-256."""
    changelog = changelog_of({"0.0.2": commit, "0.0.1": ""})
    members = {f"vendor/llama.cpp/{name}": text for name, text in FILES.items()}
    members |= {"PKG-INFO": "Name: llama_cpp_python\nVersion: 0.0.2\n", "CHANGELOG.md": changelog}
    members |= {"vendor/llama.cpp/.git": "gitdir: ../../.git/modules/vendor/llama.cpp\n", "setup.py": ""}
    members |= {extra: "evil"} if extra else {}
    return write(path, "llama_cpp_python-0.0.2", members)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index on loopback, configured for pip; yields the path of its sdist."""
    page = tmp_path / "index/simple/llama-cpp-python/index.html"
    page.parent.mkdir(parents=True)
    name = "llama_cpp_python-0.0.2.tar.gz"
    page.write_text(f'<!DOCTYPE html><html><body><a href="/{name}">{name}</a></body></html>', encoding="utf-8")
    with serving(partial(Files, directory=tmp_path / "index")) as address:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{address}/simple/")
        yield tmp_path / "index" / name


def with_sdist(pin: Pin, sha256: str, *, repository: str = "http://127.0.0.1:1/x") -> Pin:
    return replace(pin, repository=repository, sdist_sha256=sha256)


def test_the_pin_is_unpacked_from_the_sdist(pin: Pin, root: Path, index: Path) -> None:
    found = managed(with_sdist(pin, write_sdist(index, pin.commit[:9])), root, Origin.PACKAGES)

    assert (found.kind, found.commit, found.dirty) == (SourceKind.SDIST, pin.commit, False)
    assert names(found.path) == sorted({STAMP, *(name.split("/")[0] for name in FILES)})
    assert os.access(found.path / "build.sh", os.X_OK)
    assert json.loads((found.path / STAMP).read_text())["kind"] == "sdist"
    assert names(root) == ["llama.cpp"]


def test_auto_reports_the_fallback_to_the_sdist(pin: Pin, root: Path, index: Path) -> None:
    found = managed(with_sdist(pin, write_sdist(index, pin.commit[:9])), root, Origin.AUTO)

    assert found.kind is SourceKind.SDIST
    assert "cannot be reached" in found.notices[0]
    assert "sdist llama-cpp-python==0.0.2" in found.notices[0]


def test_the_cached_sdist_needs_no_index(pin: Pin, root: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = with_sdist(pin, write_sdist(index, pin.commit[:9]))
    shutil.rmtree(managed(wanted, root, Origin.PACKAGES).path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple/")

    assert managed(wanted, root, Origin.PACKAGES).commit == pin.commit


def test_an_sdist_of_another_commit_is_refused(pin: Pin, root: Path, index: Path) -> None:
    with pytest.raises(SourceError, match="fffffffff, but the pin is"):
        managed(with_sdist(pin, write_sdist(index, "f" * 9)), root, Origin.PACKAGES)

    assert names(root) == []


def test_an_sdist_that_writes_outside_is_refused(pin: Pin, root: Path, index: Path) -> None:
    sha256 = write_sdist(index, pin.commit[:9], extra="vendor/llama.cpp/../../../evil")
    with pytest.raises(SourceError, match="cannot be unpacked safely"):
        managed(with_sdist(pin, sha256), root, Origin.PACKAGES)

    assert names(root) == []
    assert not (root / "evil").exists()


def test_an_index_that_lacks_the_sdist(pin: Pin, root: Path, index: Path) -> None:
    write_sdist(index, pin.commit[:9])
    other = replace(pin, sdist="llama-cpp-python==9.9.9")
    with pytest.raises(SourceError, match=r"is on no package index .*127\.0\.0\.1: no sdist llama-cpp-python 9\.9\.9"):
        managed(other, root, Origin.PACKAGES)


@pytest.mark.parametrize("body", [b"[" * 100_000, b"7", b'{"files": 7}', b'{"files": [{"url": 7}]}', b"\xff", b"[]"])
def test_an_index_of_another_shape_is_named(pin: Pin, root: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    with hostile(lambda _: reply(200, body, Content_Type="application/vnd.pypi.simple.v1+json")) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
        with pytest.raises(SourceError, match=r"is on no package index .*127\.0\.0\.1: "):
            managed(with_sdist(pin, ""), root, Origin.PACKAGES)


def test_without_git_and_an_index_both_are_named(pin: Pin, root: Path) -> None:
    with pytest.raises(SourceError, match=r"git repository .* cannot be reached.* on no package index"):
        managed(with_sdist(pin, ""), root, Origin.AUTO)


def test_ctrl_c_while_unpacking_leaves_no_tree(pin: Pin, root: Path, index: Path) -> None:
    wanted = with_sdist(pin, write_sdist(index, pin.commit[:9]))
    interrupted(wanted, root, Origin.PACKAGES, lambda progress: progress.what.startswith("unpack"))


def test_a_pin_without_an_sdist_says_so(pin: Pin, root: Path) -> None:
    without = replace(pin, repository="http://127.0.0.1:1/x", sdist="")
    with pytest.raises(SourceError, match=r"cannot be reached .*\. No sdist vendors llama\.cpp b2: reach http"):
        managed(without, root, Origin.AUTO)
    with pytest.raises(SourceError, match=r"^evil==1 in pyproject\.toml is none of xllamacpp and llama-cpp-python"):
        managed(replace(pin, sdist="evil==1"), root, Origin.PACKAGES)


def test_the_pin_is_unpacked_from_an_sdist_with_its_number(pin: Pin, root: Path, tmp_path: Path) -> None:
    archive = sdists.archive_path("xllamacpp", "2026.10.2")
    sha256 = write(
        archive, "xllamacpp-2026.10.2", {f"thirdparty/llama.cpp/{name}": text for name, text in FILES.items()}
    )
    numbered = replace(with_sdist(pin, sha256), sdist="xllamacpp==2026.10.2", release="v0.1.0")
    found = managed(numbered, root, Origin.PACKAGES)
    assert (found.kind, found.tag, found.release) == (SourceKind.SDIST, "b2", "v0.1.0")
    assert json.loads((found.path / STAMP).read_text())["release"] == "v0.1.0"
    shutil.rmtree(found.path)
    with pytest.raises(SourceError, match=r"xllamacpp==2026\.10\.2 vendors llama\.cpp b2, but the pin is .* \(b3\)"):
        managed(replace(numbered, tag="b3"), root, Origin.PACKAGES)

    with tarfile.open(archive) as opened:
        opened.extractall(tmp_path, filter="data")
    tree = tmp_path / "xllamacpp-2026.10.2" / "thirdparty" / "llama.cpp"
    (tree.parents[1] / "PKG-INFO").write_text("Name: xllamacpp\nVersion: 2026.10.2\n")
    assert given(numbered, tree).tag == "b2"


# Trees of the user's.


def test_a_git_checkout_of_the_pin(pin: Pin, upstream: Path) -> None:
    found = given(pin, upstream)

    assert (found.path, found.kind, found.tag, found.dirty) == (upstream, SourceKind.PATH, "b2", False)


def test_the_same_files_have_the_same_digest_from_any_origin(pin: Pin, upstream: Path, root: Path) -> None:
    assert given(pin, upstream).digest == managed(pin, root).digest


def test_the_build_number_is_the_commit_count_unless_the_commit_has_a_tag(pin: Pin, upstream: Path) -> None:
    head = commit(upstream, "third")

    assert (given(pin, upstream).tag, given(pin, upstream).commit) == ("b3", head)
    git(upstream, "tag", "b11400")
    git(upstream, "tag", "nightly")

    assert (given(pin, upstream).build_number, given(pin, upstream).release) == (11400, "")
    git(upstream, "tag", "v0.6.0-rc1")
    git(upstream, "tag", "--annotate", "--message", "Release", "v0.6.0")
    assert given(pin, upstream).release == "v0.6.0"


def test_a_shallow_clone_needs_a_tag(pin: Pin, upstream: Path, tmp_path: Path) -> None:
    commit(upstream, "third")
    git(tmp_path, "clone", "--quiet", "--depth=1", "--no-tags", upstream.as_uri(), "shallow")
    with pytest.raises(SourceError, match="fetch --unshallow"):
        given(pin, tmp_path / "shallow")
    git(tmp_path / "shallow", "tag", "b3")

    assert given(pin, tmp_path / "shallow").tag == "b3"


@pytest.fixture
def unpacked(pin: Pin, tmp_path: Path) -> Path:
    write_sdist(tmp_path / "x.tar.gz", pin.commit[:9])
    with tarfile.open(tmp_path / "x.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "llama_cpp_python-0.0.2/vendor/llama.cpp/.git").unlink()
    return tmp_path / "llama_cpp_python-0.0.2"


def test_an_unpacked_sdist_of_the_pin(pin: Pin, unpacked: Path) -> None:
    found = given(pin, unpacked / "vendor/llama.cpp")

    assert (found.tag, found.commit, found.kind) == ("b2", pin.commit, SourceKind.PATH)
    assert found.dirty


def test_an_unpacked_sdist_of_another_commit_is_refused(pin: Pin, unpacked: Path) -> None:
    other = replace(pin, tag="b3", commit="f" * 40)
    with pytest.raises(SourceError, match=f"vendors llama.cpp {pin.commit[:9]}, not the pin fffffffff"):
        given(other, unpacked / "vendor/llama.cpp")


def test_the_top_of_an_sdist_is_the_wrong_directory(pin: Pin, unpacked: Path) -> None:
    with pytest.raises(SourceError, match=r"is not llama.cpp.*Did you mean .*/vendor/llama.cpp\?"):
        given(pin, unpacked)


def test_a_managed_tree_of_another_checkout(pin: Pin, root: Path) -> None:
    tree = managed(pin, root).path
    assert (given(pin, tree).kind, given(pin, tree).dirty) == (SourceKind.PATH, False)
    (tree / "build.sh").chmod(0o644)

    assert given(pin, tree).dirty


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda tree: shutil.rmtree(tree / "tools/server"), r"is not llama\.cpp.*tools/server/CMakeLists.txt"),
        (lambda tree: (tree / "CMakeLists.txt").write_text("project(x)\n"), r"is not llama\.cpp.*does not say project"),
        (lambda tree: shutil.rmtree(tree / ".git"), "its commit is unknown"),
    ],
)
def test_another_project_or_commit_is_refused(
    pin: Pin, upstream: Path, damage: Callable[[Path], object], complaint: str
) -> None:
    damage(upstream)
    with pytest.raises(SourceError, match=complaint):
        given(pin, upstream)


def test_the_argument_overrides_the_environment(
    pin: Pin, upstream: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(upstream))
    assert managed(pin, root).path == upstream
    with pytest.raises(SourceError, match="is not a directory"):
        given(pin, tmp_path / "nowhere")


def test_the_digest_covers_names_content_and_the_executable_bit(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    digests = {tree_digest(tree)}
    (tree / STAMP).write_text("{}", encoding="utf-8")
    (tree / ".git").mkdir()
    (tree / ".git/HEAD").write_text("x", encoding="utf-8")
    assert {tree_digest(tree)} == digests
    changes: tuple[Callable[[], object], ...] = (
        lambda: (tree / "build.sh").chmod(0o644),
        lambda: (tree / "build.sh").rename(tree / "build2.sh"),
        lambda: (tree / "build2.sh").write_text("#!/bin/sh\n\n", encoding="utf-8"),
        lambda: (tree / "link").symlink_to("build2.sh"),
    )
    for number, change in enumerate(changes, 2):
        change()
        digests.add(tree_digest(tree))
        assert len(digests) == number


# A checkout that somebody else made.


def test_a_checkout_runs_no_program_of_its_configuration(pin: Pin, upstream: Path, tmp_path: Path) -> None:
    program = programs.script(tmp_path / "program", f"touch {tmp_path}/ran-$1\ncat")
    for setting in ("fsmonitor", "sshCommand", "pager", "editor"):
        git(upstream, "config", f"core.{setting}", f"{program} {setting}")
    for setting in ("clean", "smudge"):
        git(upstream, "config", f"filter.x=y.{setting}", f"{program} {setting}")
    git(upstream, "config", "diff.external", f"{program} diff")
    git(upstream, "config", "core.hooksPath", str(tmp_path / "hooks"))
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks" / "post-index-change").symlink_to(program)
    (upstream / ".git/info/attributes").write_text("* filter=x=y\n", encoding="utf-8")
    os.utime(upstream / "tools/server/server.cpp", (1, 1))

    assert not given(pin, upstream).dirty
    assert not list(tmp_path.glob("ran-*"))


def test_a_work_tree_elsewhere_is_not_the_one_that_is_looked_at(pin: Pin, upstream: Path, tmp_path: Path) -> None:
    shutil.copytree(upstream, tmp_path / "clean")
    git(upstream, "config", "core.worktree", str(tmp_path / "clean"))
    assert not given(pin, upstream).dirty
    (upstream / "tools/server/server.cpp").write_text("changed", encoding="utf-8")
    assert given(pin, upstream).dirty


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_is_told_to_overlook_is_one(pin: Pin, upstream: Path, flag: str) -> None:
    git(upstream, "update-index", flag, "tools/server/server.cpp")
    (upstream / "tools/server/server.cpp").write_text("changed", encoding="utf-8")
    assert given(pin, upstream).dirty


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "tools/server/server.cpp").write_text("changed"),
        lambda tree: (tree / "tools/server/new.cpp").write_text("new"),
        lambda tree: (tree / "build.sh").chmod(0o644),
        lambda tree: (tree / "build.sh").unlink(),
        lambda tree: git(tree, "rm", "--quiet", "--cached", "build.sh"),
    ],
    ids=["edited", "new", "mode", "gone", "staged"],
)
def test_any_difference_from_the_commit_is_a_change(pin: Pin, upstream: Path, change: Callable[[Path], object]) -> None:
    before = given(pin, upstream)
    change(upstream)
    (upstream / ".git/info/exclude").write_text("/build.sh\n", encoding="utf-8")
    after = given(pin, upstream)
    assert (before.dirty, after.dirty) == (False, True)
    assert after.digest != before.digest


def test_what_git_ignores_is_not_built(pin: Pin, upstream: Path) -> None:
    before = given(pin, upstream)
    (upstream / ".git/info/exclude").write_text("*.key\n", encoding="utf-8")
    (upstream / "tools/my.key").write_text("secret", encoding="utf-8")
    after = given(pin, upstream)
    assert after == before
    assert after.files == frozenset(FILES)


def test_a_named_pipe_in_a_tree_is_not_read(pin: Pin, root: Path) -> None:
    tree = managed(pin, root).path
    os.mkfifo(tree / "pipe")
    assert not given(pin, tree).dirty
