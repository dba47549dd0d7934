"""Comparing two refs of upstream, and moving the pin."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import git
import pytest

from base_images import settings
from base_images.errors import SourceError, UsageError
from base_images.recipes import bump, consumer, mirror, upstream_report
from tests.support import clones
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
    changed = mirror.compare_refs(texts, texts, sources=(sources[0], sources[1]), used=["-p"])
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
    commit = bump.tag_commit(str(clone_with_source), "b1")
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
    assert shown[-2] == "for information: llama-server: `--port` (BodhiApp uses it): default 8080 -> 9931"
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


def test_bump_changes_only_the_pin(tmp_path: Path) -> None:
    before = bump.pinned_texts(settings.ROOT)
    assert "dockerfiles/cpu.Dockerfile" in before
    after = bump.bump(before, settings.load().pin, tag="b99999", commit=NEW_COMMIT)
    assert after.keys() == before.keys()
    for path, text in before.items():
        changed = [new for old, new in zip(text.splitlines(), after[path].splitlines(), strict=True) if old != new]
        assert len(changed) == 2, path
        assert after[path].endswith("\n")
    (tmp_path / "pyproject.toml").write_text(after["pyproject.toml"])
    moved = settings.load(tmp_path).pin
    assert (moved.tag, moved.commit, moved.sdist) == ("b99999", NEW_COMMIT, settings.load().pin.sdist)
    assert f"\nARG LLAMA_CPP_TAG=b99999\nARG LLAMA_CPP_COMMIT={NEW_COMMIT}\n" in after["dockerfiles/cpu.Dockerfile"]


@pytest.mark.parametrize(("tag", "commit"), [("v1", NEW_COMMIT), ("b1", "abc1234"), ("b1\n", NEW_COMMIT)])
def test_a_malformed_tag_or_commit_is_an_error(tag: str, commit: str) -> None:
    with pytest.raises(UsageError, match="is not a tag of llama"):
        bump.bump(bump.pinned_texts(settings.ROOT), settings.load().pin, tag=tag, commit=commit)


@pytest.mark.parametrize(("line", "count"), [("", 0), ("ARG LLAMA_CPP_TAG=b11312\nARG LLAMA_CPP_TAG=b11312\n", 2)])
def test_a_recipe_without_the_pin_is_an_error(line: str, count: int) -> None:
    pin = settings.load().pin
    text = line.replace("b11312", pin.tag)
    with pytest.raises(UsageError, match=rf"cpu\.Dockerfile has the line .* {count} times"):
        bump.bump({"dockerfiles/cpu.Dockerfile": text}, pin, tag="b2", commit=NEW_COMMIT)


def test_the_commit_of_a_tag(clone: Path, tmp_path: Path) -> None:
    with git.Repo(clone) as repository:
        commits = [repository.commit(tag).hexsha for tag in ("b1", "b2")]
    assert [bump.tag_commit(str(clone), tag) for tag in ("b1", "b2")] == commits
    with pytest.raises(SourceError, match="has no tag 'b3'"):
        bump.tag_commit(str(clone), "b3")
    with pytest.raises(SourceError, match="cannot be asked for b1"):
        bump.tag_commit(str(tmp_path / "nowhere"), "b1")


def test_the_newest_tag_has_the_highest_number(clone: Path, tmp_path: Path) -> None:
    assert bump.newest_tag(str(clone)) == "b2"
    with git.Repo(clone) as repository:
        for tag in ("b10", "b9", "b11-rc", "bb12", "master-13", "x/b14"):
            repository.create_tag(tag)
    assert bump.newest_tag(str(clone)) == "b10"
    with git.Repo.init(tmp_path / "empty"), pytest.raises(SourceError, match="has no tag of llama"):
        bump.newest_tag(str(tmp_path / "empty"))
    with pytest.raises(SourceError, match="cannot be asked for its tags"):
        bump.newest_tag(str(tmp_path / "nowhere"))


@pytest.fixture
def checkout(clone: Path, tmp_path: Path) -> Path:
    """A checkout with its pin at b1 of the clone."""
    root = clones.fresh_copy(tmp_path / "checkout", "dockerfiles")
    pin = settings.load().pin
    moved = bump.bump(bump.pinned_texts(root), pin, tag="b1", commit=bump.tag_commit(str(clone), "b1"))
    for path, text in moved.items():
        (root / path).write_text(text)
    (root / ".gitignore").write_text("build/\n__pycache__/\n")
    clones.commit_all(root)
    return root


def bump_to_newest(checkout: Path, clone: Path) -> subprocess.CompletedProcess[str]:
    environment = {"BASE_IMAGES_CALLER_DIRECTORY": str(checkout)}
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
    assert "\n\nThe pin is b2 (" in written
    assert "llama-server's arguments cannot be compared: b1 has no common/arg.cpp\n" in written
    assert written.endswith("\n</details>\n")
    assert re.fullmatch(verdict, done.stdout.splitlines()[0])
    assert done.stdout.splitlines()[-1].startswith("The pin is b2 (")

    with git.Repo(checkout) as repository:
        repository.git.commit("--quiet", "--all", "--message=two")
        done = bump_to_newest(checkout, clone)
        assert done.returncode == 0, done.stderr
        assert "the newest tag of llama.cpp is b2: nothing to move" in done.stdout
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


def test_refs_are_fetched_without_a_clone(clone: Path, tmp_path: Path) -> None:
    directory = tmp_path / "fetched"
    directory.mkdir()
    commit = bump.tag_commit(str(clone), "b1")
    bump.fetch_refs(str(clone), [commit, "b2"], directory)
    assert mirror.upstream_texts(directory, commit) == mirror.upstream_texts(clone, "b1")
    assert mirror.upstream_texts(directory, "b2") == mirror.upstream_texts(clone, "b2")
    with pytest.raises(SourceError, match="b3 cannot be fetched"):
        bump.fetch_refs(str(clone), ["b3"], directory)


def test_why_a_repository_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "echo ssh: no such host >&2; exit 255; :")
    with pytest.raises(SourceError, match=r"its tags \(ssh: no such host\): give --source a clone"):
        bump.newest_tag("ssh://git.example.org/llama.cpp")
