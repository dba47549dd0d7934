from __future__ import annotations

from pathlib import Path

import pytest

from base_images import settings
from base_images.build import lock
from base_images.errors import UsageError

ONE, TWO = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
NODE, UBUNTU = "docker.io/node:24", "docker.io/ubuntu:24.04"
LOCK = "`invoke lock-bases`"
RECIPE = """\
ARG VERSION=24.04
ARG BUILD_BASE_IMAGE=docker.io/ubuntu:${VERSION}
ARG SLIM_BASE_IMAGE=docker.io/node:24
ARG RUNTIME_BASE_IMAGE=docker.io/own@sha256:0
FROM ${BUILD_BASE_IMAGE}
"""


def write(root: Path, content: str) -> Path:
    path = root / lock.FILE
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_the_file_is_what_is_written_and_keeps_its_comment(tmp_path: Path) -> None:
    path = write(tmp_path, "# what it is\n[digests]\n")
    assert lock.digests(tmp_path) == {}
    path.write_text(lock.text(path.read_text(), {UBUNTU: TWO, NODE: ONE}))
    assert lock.digests(tmp_path) == {NODE: ONE, UBUNTU: TWO}
    assert path.read_text() == f'# what it is\n[digests]\n"{NODE}" = "{ONE}"\n"{UBUNTU}" = "{TWO}"\n'
    assert lock.digests(tmp_path / "elsewhere") == {}


def test_a_releases_digests_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, f'[digests]\n"{NODE}" = "{ONE}"\n')
    monkeypatch.setenv(lock.BASES_VARIABLE, f'{{"{NODE}": "{TWO}", "{UBUNTU}": "{ONE}"}}')
    assert lock.digests(tmp_path) == {NODE: TWO, UBUNTU: ONE}
    for text in ("{", "[]", '{"docker.io/node:24": "sha256:1"}', f'{{"a b": "{ONE}"}}', '{"a": 1}'):
        monkeypatch.setenv(lock.BASES_VARIABLE, text)
        with pytest.raises(UsageError, match=r"BASE_IMAGES_BASES is not .* `invoke lock-bases --json`"):
            lock.digests(tmp_path)


@pytest.mark.parametrize("content", ["", "digests = 1", '[digests]\nx = "latest"', "[digests]\nx = 1"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    write(tmp_path, content)
    with pytest.raises(UsageError, match="is not a lock of base images: restore it"):
        lock.digests(tmp_path)


def test_references_get_the_digests_that_are_locked() -> None:
    assert lock.pinned({"web": NODE, "build": UBUNTU}, {NODE: ONE}) == {"web": f"{NODE}@{ONE}", "build": UBUNTU}


def test_the_bases_of_recipes_are_all_that_they_name(tmp_path: Path) -> None:
    (tmp_path / "x.Dockerfile").write_text(RECIPE)
    assert lock.references(tmp_path.glob("*")) == [NODE, UBUNTU]


@pytest.mark.parametrize(
    ("locked", "said"),
    [
        ({}, ""),
        ({NODE: ONE, UBUNTU: TWO}, ""),
        ({NODE: ONE}, f"{lock.FILE} lacks {UBUNTU}: run {LOCK} and commit it."),
        (
            {NODE: ONE, "docker.io/old:1": TWO},
            f"{lock.FILE} lacks {UBUNTU} and has docker.io/old:1, which no recipe names: run {LOCK} and commit it.",
        ),
    ],
)
def test_a_stale_lock_is_one_sentence(locked: dict[str, str], said: str) -> None:
    assert lock.problem(locked, [NODE, UBUNTU]) == said


def test_the_lock_of_this_commit_has_every_base_or_is_empty() -> None:
    wanted = lock.references((settings.ROOT / "dockerfiles").glob("*.Dockerfile"))
    assert len(wanted) > 5
    assert lock.problem(lock.digests(settings.ROOT), wanted) == ""


def test_what_changed_is_listed() -> None:
    told = lock.markdown({NODE: ONE, UBUNTU: ONE}, {NODE: TWO, UBUNTU: ONE})
    assert told == f"## Base images\n\n- `{NODE}`: {ONE} → {TWO}\n"
