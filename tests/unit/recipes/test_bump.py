"""Comparing two refs of upstream, and moving the pin."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import git
import pytest

from base_images import settings
from base_images.errors import SourceError, UsageError
from base_images.recipes import bump, consumer, mirror, upstream_report
from base_images.settings import Follow, Pin
from tests.support import clones, sdists
from tests.support.commands import invoke
from tests.unit.recipes.test_server_arguments import ARG_CPP, COMMON_H


def test_comparing_two_refs_of_a_clone(clone: Path) -> None:
    report = mirror.compare_refs(mirror.upstream_texts(clone, "b1"), mirror.upstream_texts(clone, "b2"))
    assert report.as_dict() == {
        "variants": {"cuda": ["! build: cmake build -DGGML_NATIVE: OFF -> ON"]},
        "appeared": ["zendnn"],
        "disappeared": ["s390x"],
        "beyond": [],
    }


def test_comparing_one_variant_at_two_refs(clone: Path) -> None:
    old, new = mirror.upstream_texts(clone, "b1"), mirror.upstream_texts(clone, "b2")
    assert mirror.compare_refs(old, new, ["zendnn"]).appeared == ("zendnn",)
    with pytest.raises(UsageError, match=r"Neither ref has \.devops/cpu\.Dockerfile"):
        mirror.compare_refs(old, new, ["cpu"])


def test_reading_a_work_tree_and_a_ref(clone: Path) -> None:
    assert mirror.upstream_texts(clone) == mirror.upstream_texts(clone, "b2")
    assert set(mirror.upstream_texts(clone, "HEAD~1")) == {"cuda", "s390x"}


def test_a_missing_tree_or_ref_is_an_error(clone: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no ref 'b3'"):
        mirror.upstream_texts(clone, "b3")
    with pytest.raises(SourceError, match="is not a git clone"):
        mirror.upstream_texts(tmp_path, "b1")
    with pytest.raises(SourceError, match=r"has no \.devops"):
        mirror.upstream_texts(tmp_path)
    (clone / "file").write_text("x")
    with git.Repo(clone) as repository:
        repository.git.rm("-r", "--quiet", ".devops")
        repository.git.commit("--quiet", "--message=three")
    with pytest.raises(SourceError, match=r"HEAD of .* has no \.devops"):
        mirror.upstream_texts(clone, "HEAD")


@pytest.fixture
def clone_with_source(clone: Path) -> Path:
    """The clone with tags b3 and b4 that have the source of llama-server's arguments; b4 changes the port."""
    (clone / "common").mkdir()
    with git.Repo(clone) as repository:
        for tag, port in (("b3", "8080"), ("b4", "9931")):
            (clone / "common" / "arg.cpp").write_text(ARG_CPP)
            (clone / "common" / "common.h").write_text(COMMON_H.replace("8080", port))
            repository.git.add("--all")
            repository.git.commit("--quiet", f"--message={tag}")
            repository.create_tag(tag)
    return clone


def test_comparing_arguments_of_two_refs(clone_with_source: Path) -> None:
    sources = tuple(mirror.argument_source(clone_with_source, ref) for ref in ("b3", "b4"))
    texts = mirror.upstream_texts(clone_with_source, "b4")
    changed = mirror.compare_refs(texts, texts, sources=(sources[0], sources[1]), used={"-p": ()})
    line = "--port: default 8080 -> 9931"
    assert changed.arguments
    assert [(str(change), change.used) for change in changed.arguments.changes] == [(line, True)]
    expected = {"change": "changed", "names": ["--port"], "detail": "default 8080 -> 9931", "used": True}
    assert changed.as_dict()["arguments"] == {"changes": [expected], "breaks": [], "not_compared": ""}


def test_removed_arguments_of_the_consumer_are_reported_first(clone_with_source: Path) -> None:
    path = clone_with_source / "common" / "arg.cpp"
    path.write_text(path.read_text().replace('"--port"', '"--the-port"'))
    with git.Repo(clone_with_source) as repository:
        repository.git.commit("--quiet", "--all", "--message=b5")
        repository.create_tag("b5")
    texts = mirror.upstream_texts(clone_with_source, "b5")
    sources = (mirror.argument_source(clone_with_source, "b4"), mirror.argument_source(clone_with_source, "b5"))
    changed = mirror.compare_refs(texts, texts, sources=sources, used=consumer.load().options)
    assert changed.as_dict()["arguments"]["breaks"] == ["--port"]
    telling = upstream_report.tell("b4 → b5", mirror.check({}, {}, ()), changed)
    assert telling.findings[0].text.endswith("; BodhiApp passes `--port`: its servers do not start")
    unused = mirror.compare_refs(texts, texts, sources=sources)
    assert unused.as_dict()["arguments"]["breaks"] == []
    assert upstream_report.tell("b4 → b5", mirror.check({}, {}, ()), unused).findings == ()


def test_a_ref_without_the_source_keeps_its_given_name(clone_with_source: Path) -> None:
    commit = bump.tags(str(clone_with_source))["b1"]
    source = mirror.argument_source(clone_with_source, commit, "b1")
    assert (source.name, source.texts) == ("b1", {})
    with pytest.raises(SourceError, match="has no ref 'b5'"):
        mirror.argument_source(clone_with_source, "b5")
    with pytest.raises(SourceError, match="is not a git clone"):
        mirror.argument_source(clone_with_source / ".devops", "b1")


def test_check_upstream_shows_changed_arguments(clone_with_source: Path) -> None:
    def run(before: str, after: str, *more: str) -> str:
        refs = ("--from", before, "--to", after)
        done = invoke("check-upstream", "--source", str(clone_with_source), *refs, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run("b3", "b4").splitlines()
    assert re.fullmatch(r"b3 → b4: \d+ to port, 0 break the consumer, 1 for information", shown[0])
    assert (
        shown[-2]
        == "for information: llama-server: `--port` (no change for BodhiApp, which passes it): default 8080 -> 9931"
    )
    assert shown[-1].startswith("Port what is to port to dockerfiles/, or record its key, ")
    assert "0 for information" in run("b4", "b4").splitlines()[0]
    assert "llama-server's arguments cannot be compared: b2 has no common/arg.cpp" in run("b2", "b3")
    answer = json.loads(run("b3", "b4", "--json"))
    assert [change["names"] for change in answer["arguments"]["changes"]] == [["--port"]]
    assert answer["verdict"]["text"] == shown[0]
    assert len(answer["items"]) == answer["verdict"]["to_port"] + 1
    assert "│intended" in run("b3", "b4", "--all")
    assert run("b3", "b4", "--variant", "zendnn").splitlines()[0].startswith("b3 → b4: 0 to port, ")


def test_a_shipped_variant_that_cannot_be_read_fails(clone: Path) -> None:
    def commit(variant: str, tag: str) -> None:
        path = clone / ".devops" / f"{variant}.Dockerfile"
        path.write_text(path.read_text().replace("FROM base AS server", "FROM base AS server\nRUN echo 'x"))
        with git.Repo(clone) as repository:
            repository.git.commit("--quiet", "--all", f"--message={tag}")
            repository.create_tag(tag)

    def run(before: str, after: str) -> tuple[int, str]:
        done = invoke("check-upstream", "--source", str(clone), "--from", before, "--to", after)
        return done.returncode, done.stdout

    commit("zendnn", "b3")
    code, shown = run("b2", "b3")
    assert code == 0
    assert "for information: zendnn (not shipped): unreadable: .devops/zendnn.Dockerfile line " in shown
    commit("cuda", "b4")
    code, shown = run("b3", "b4")
    assert code == 1
    assert "to port: cuda: unreadable: .devops/cuda.Dockerfile line " in shown


def test_a_linked_dockerfile_is_the_file_that_it_leads_to(clone: Path) -> None:
    directory = clone / ".devops"
    (directory / "server").mkdir()
    (directory / "cuda.Dockerfile").rename(directory / "server" / "Dockerfile")
    (directory / "cuda.Dockerfile").symlink_to("again.Dockerfile")
    (directory / "again.Dockerfile").symlink_to("server/Dockerfile")
    (directory / "away.Dockerfile").symlink_to("../../nowhere")
    (directory / "self.Dockerfile").symlink_to("self.Dockerfile")
    clones.commit_all(clone).create_tag("b3")
    found = mirror.upstream_texts(clone, "b3")
    assert found["cuda"] == found["again"] == mirror.upstream_texts(clone, "b2")["cuda"]
    assert {"away", "self"}.isdisjoint(found)
    assert mirror.upstream_texts(clone)["cuda"] == found["cuda"]


# Moving the pin.

NEW_COMMIT = "f" * 40


NEW = bump.Names(tag="b99999", release="v9.9.9", commit=NEW_COMMIT)


def test_bump_changes_only_the_pin(tmp_path: Path) -> None:
    before = bump.pinned_texts(settings.ROOT)
    assert "dockerfiles/cpu.Dockerfile" in before
    after = bump.bump(before, settings.load().pin, NEW, sdist="xllamacpp==2026.11.99999", sdist_sha256="0" * 64)
    assert after.keys() == before.keys()
    for path, text in before.items():
        changed = [new for old, new in zip(text.splitlines(), after[path].splitlines(), strict=True) if old != new]
        assert len(changed) == (5 if path == "pyproject.toml" else 3), path
        assert after[path].endswith("\n")
    (tmp_path / "pyproject.toml").write_text(after["pyproject.toml"])
    moved = settings.load(tmp_path).pin
    assert (moved.tag, moved.release, moved.commit) == ("b99999", "v9.9.9", NEW_COMMIT)
    assert (moved.sdist, moved.sdist_sha256) == ("xllamacpp==2026.11.99999", "0" * 64)
    lines = f"\nARG LLAMA_CPP_TAG=b99999\nARG LLAMA_CPP_COMMIT={NEW_COMMIT}\nARG LLAMA_CPP_RELEASE=v9.9.9\n"
    assert lines in after["dockerfiles/cpu.Dockerfile"]

    # And back to a commit with neither a release nor an sdist.
    nameless = bump.Names(tag="b100000", release="", commit=NEW_COMMIT)
    again = bump.bump(after, moved, nameless, sdist="", sdist_sha256="")
    (tmp_path / "pyproject.toml").write_text(again["pyproject.toml"])
    assert settings.load(tmp_path).pin.release == settings.load(tmp_path).pin.sdist == ""
    assert "\nARG LLAMA_CPP_RELEASE=\n" in again["dockerfiles/cpu.Dockerfile"]


@pytest.mark.parametrize(("line", "count"), [("", 0), ("ARG LLAMA_CPP_TAG=b11312\nARG LLAMA_CPP_TAG=b11312\n", 2)])
def test_a_recipe_without_the_pin_is_an_error(line: str, count: int) -> None:
    pin = settings.load().pin
    text = line.replace("b11312", pin.tag)
    with pytest.raises(UsageError, match=rf"cpu\.Dockerfile has the line .* {count} times"):
        bump.bump({"dockerfiles/cpu.Dockerfile": text}, pin, NEW, sdist="", sdist_sha256="")


def test_the_tags_are_builds_and_releases_with_their_commits(clone: Path, tmp_path: Path) -> None:
    with git.Repo(clone) as repository:
        one, two = (repository.commit(tag).hexsha for tag in ("b1", "b2"))
        repository.create_tag("v0.1.0", ref="b1", message="Release v0.1.0")
        for tag in ("b11-rc", "bb12", "master-13", "x/b14", "v0.2.0-rc1", "v3", "version"):
            repository.create_tag(tag)
    # b2 and v0.1.0 are annotated: their commits, not their own ids.
    assert bump.tags(str(clone)) == {"b1": one, "b2": two, "v0.1.0": one}
    with pytest.raises(SourceError, match=r"cannot be asked for its tags .*give --source a clone"):
        bump.tags(str(tmp_path / "nowhere"))


KNOWN = {"b9": "1" * 40, "b10": "2" * 40, "b11": "2" * 40, "v0.9.0": "1" * 40, "v0.10.0": "2" * 40, "v0.11.0": "3" * 40}


def test_a_commit_has_a_build_and_perhaps_a_release() -> None:
    def named(to: str, known: dict[str, str] = KNOWN) -> tuple[str, str, str]:
        found = bump.named(known, to, "upstream")
        return found.tag, found.release, str(found)

    assert named("v0.9.0") == named("b9") == ("b9", "v0.9.0", "b9/v0.9.0")
    assert named("b10") == ("b10", "v0.10.0", "b10/v0.10.0")
    assert named("v0.10.0") == ("b11", "v0.10.0", "b11/v0.10.0")
    assert named("b9", {"b9": "1" * 40}) == ("b9", "", "b9")
    with pytest.raises(SourceError, match=r"upstream has no tag 'master': tags of llama.cpp look like b11312 or v0"):
        named("master")
    with pytest.raises(SourceError, match=r"v0\.11\.0 is the commit 333333333, and no tag b<number> of upstream is at"):
        named("v0.11.0")


def test_the_newest_is_of_what_is_followed() -> None:
    assert bump.newest(KNOWN, Follow.BUILD, "upstream") == "b11"
    assert bump.newest(KNOWN, Follow.RELEASE, "upstream") == "v0.11.0"
    with pytest.raises(SourceError, match=r"upstream has no tag of a release of llama\.cpp: they look like v0\.6\.0"):
        bump.newest({"b1": "1" * 40}, Follow.RELEASE, "upstream")
    with pytest.raises(SourceError, match="has no tag of a build"):
        bump.newest({}, Follow.BUILD, "upstream")


@pytest.mark.parametrize(
    ("follow", "tag", "release", "commit", "ahead"),
    [
        (Follow.BUILD, "b9", "", "9", False),
        (Follow.BUILD, "b9", "v0.1.0", "9", False),
        (Follow.RELEASE, "b9", "v0.1.0", "9", True),
        (Follow.BUILD, "b10", "", "a", True),
        (Follow.RELEASE, "b8", "v0.1.0", "8", False),
    ],
)
def test_the_pin_never_moves_back(follow: Follow, tag: str, release: str, commit: str, ahead: bool) -> None:
    pin = Pin(repository="", tag="b9", commit="9", sdist="", sdist_sha256="", follow=follow)
    assert bump.is_ahead(bump.Names(tag=tag, release=release, commit=commit), pin) is ahead


@pytest.fixture
def checkout(clone: Path, tmp_path: Path) -> Path:
    """A checkout with its pin at b1 of the clone."""
    root = clones.fresh_copy(tmp_path / "checkout", "dockerfiles")
    pin = settings.load().pin
    names = bump.named(bump.tags(str(clone)), "b1", "upstream")
    moved = bump.bump(bump.pinned_texts(root), pin, names, sdist=pin.sdist, sdist_sha256=pin.sdist_sha256)
    for path, text in moved.items():
        (root / path).write_text(text)
    (root / ".gitignore").write_text("build/\n__pycache__/\n")
    clones.commit_all(root)
    return root


def bump_to_newest(
    checkout: Path, clone: Path, index: str = "http://127.0.0.1:1", cache: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {
        "BASE_IMAGES_CALLER_DIRECTORY": str(checkout),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{index}/simple/",
        "PIP_EXTRA_INDEX_URL": "",
        **({"XDG_CACHE_HOME": str(cache)} if cache else {}),
    }
    arguments = ("bump-upstream", "--to", "newest", "--source", str(clone), "--report", "build/upstream.md")
    return invoke(*arguments, cwd=checkout, environment=environment)


def test_bump_moves_to_the_newest_tag_once(checkout: Path, clone: Path) -> None:
    done = bump_to_newest(checkout, clone)
    assert done.returncode == 0, done.stderr
    assert settings.load(checkout).pin.tag == "b2"
    written = (checkout / "build" / "upstream.md").read_text()
    verdict = r"b1 → b2: \d+ to port, 0 break the consumer, 2 for information"
    assert re.fullmatch(rf"\*\*{verdict}\*\*", written.splitlines()[0])
    assert "-DGGML_NATIVE`: upstream had `OFF` and now has `ON`, ours has `OFF`\n" in written
    assert "\n\nThe pin is b2, commit " in written
    assert "llama-server's arguments cannot be compared: b1 has no common/arg.cpp\n" in written
    assert written.endswith("\n</details>\n")
    assert re.fullmatch(verdict, done.stdout.splitlines()[0])
    assert done.stdout.splitlines()[-1].startswith("The pin is b2, commit ")

    with git.Repo(checkout) as repository:
        repository.git.commit("--quiet", "--all", "--message=two")
        done = bump_to_newest(checkout, clone)
        assert done.returncode == 0, done.stderr
        assert "the newest build of llama.cpp is b2: nothing to move" in done.stdout
        assert not repository.is_dirty(untracked_files=True)
    assert "nothing to move" in (checkout / "build" / "upstream.md").read_text()


def test_an_older_clone_does_not_move_the_pin_back(checkout: Path, clone: Path) -> None:
    with git.Repo(clone) as repository:
        repository.create_tag("b3")
    assert bump_to_newest(checkout, clone).returncode == 0
    with git.Repo(checkout) as opened, git.Repo(clone) as repository:
        opened.git.commit("--quiet", "--all", "--message=two")
        repository.git.tag("--delete", "b3")
    assert "nothing to move" in bump_to_newest(checkout, clone).stdout
    assert settings.load(checkout).pin.tag == "b3"


def test_a_release_is_followed_and_its_sdist_found(checkout: Path, clone: Path, tmp_path: Path) -> None:
    path = checkout / "pyproject.toml"
    path.write_text(path.read_text().replace('follow = "build"', 'follow = "release"'))
    with git.Repo(checkout) as opened, git.Repo(clone) as repository:
        opened.git.commit("--quiet", "--all", "--message=follow releases")
        repository.create_tag("v0.1.0", message="Release v0.1.0")
        repository.git.commit("--quiet", "--allow-empty", "--message=three")
        repository.create_tag("b3")
    tree = {f"thirdparty/llama.cpp/{file.relative_to(clone)}": file.read_text() for file in clone.glob(".devops/*")}
    name = "xllamacpp-2026.10.2.tar.gz"
    sha256 = sdists.write(tmp_path / "index" / name, "x", tree)
    with sdists.index(tmp_path / "index", {name: "2222-02-22T22:22:22Z"}) as server:
        done = bump_to_newest(checkout, clone, server.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("b1 → b2/v0.1.0: ")
    moved = settings.load(checkout).pin
    assert (moved.tag, moved.release, moved.follow) == ("b2", "v0.1.0", Follow.RELEASE)
    assert (moved.sdist, moved.sdist_sha256) == ("xllamacpp==2026.10.2", sha256)
    assert "\nxllamacpp==2026.10.2 vendors it" in (checkout / "build" / "upstream.md").read_text().replace(". ", ".\n")


def test_a_tag_that_upstream_moved_is_told(checkout: Path, clone: Path) -> None:
    with git.Repo(clone) as repository:
        pinned, moved = (repository.commit(tag).hexsha[:9] for tag in ("b1", "b2"))
        repository.create_tag("b1", ref="b2", force=True)
    done = bump_to_newest(checkout, clone)
    assert f"The tag b1 is at {moved} now and was pinned at {pinned}: ask llama.cpp why." in done.stdout


def test_commits_are_fetched_without_a_clone(clone: Path, tmp_path: Path) -> None:
    directory = tmp_path / "fetched"
    directory.mkdir()
    known = bump.tags(str(clone))
    bump.fetch(str(clone), [known["b1"], known["b2"]], directory)
    for tag in ("b1", "b2"):
        assert mirror.upstream_texts(directory, known[tag]) == mirror.upstream_texts(clone, tag)
    with pytest.raises(SourceError, match="fffffffff cannot be fetched"):
        bump.fetch(str(clone), [NEW_COMMIT], directory)


def test_why_a_repository_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "echo ssh: no such host >&2; exit 255; :")
    with pytest.raises(SourceError, match=r"its tags \(ssh: no such host\): give --source a clone"):
        bump.tags("ssh://git.example.org/llama.cpp")
