"""Models of the user's: all of their files, and who may read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from base_images.errors import UsageError
from base_images.image import ARBITRARY_USER
from base_images.smoke import model_file

UID = int(ARBITRARY_USER.partition(":")[0])


def files(directory: Path, *names: str) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_bytes(b"GGUF")
    return [directory / name for name in names]


def shards(count: int) -> list[str]:
    return [f"big-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]


@pytest.mark.parametrize("name", ["model.gguf", "model-1-of-2.gguf", "-00001-of-00002.gguf", "no suffix"])
def test_one_file_is_a_model(tmp_path: Path, name: str) -> None:
    [path] = files(tmp_path, name)
    assert model_file.shards(path) == (path,)


def test_the_first_of_several_stands_for_all(tmp_path: Path) -> None:
    paths = files(tmp_path, *shards(12))
    assert model_file.shards(paths[0]) == tuple(paths)


def test_symlinks_of_a_cache_keep_their_names(tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for blob, name in zip(files(tmp_path / "blobs", "1f", "2e"), shards(2), strict=True):
        (snapshot / name).symlink_to(Path("../../blobs", blob.name))
    assert model_file.shards(snapshot / shards(2)[0]) == tuple(snapshot / name for name in shards(2))
    (tmp_path / "blobs" / "2e").unlink()
    with pytest.raises(UsageError, match=r"is incomplete: .*/snapshots/abc has no big-00002-of-00002\.gguf: "):
        model_file.shards(snapshot / shards(2)[0])


@pytest.mark.parametrize(
    ("there", "named", "message"),
    [
        ((), "model.gguf", "model.gguf cannot be used: name a GGUF file of this host"),
        ((), "", "cannot be used: name a GGUF file"),
        (
            shards(3),
            shards(3)[1],
            "is not the first file of its model: name big-00001-of-00003.gguf.",
        ),
        (shards(2)[:1], shards(2)[0], "has no big-00002-of-00002.gguf: put it there"),
        (
            shards(9)[:1],
            shards(9)[0],
            "has no big-00002-of-00009.gguf, big-00003-of-00009.gguf, big-00004-of-00009.gguf, …:",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(tmp_path: Path, there: list[str], named: str, message: str) -> None:
    files(tmp_path, *there)
    with pytest.raises(UsageError) as caught:
        model_file.shards(tmp_path / named)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "owner", "group", "readable"),
    [
        (0o644, 0, 0, True),
        (0o600, 0, 0, False),
        (0o640, 0, 0, False),
        (0o600, UID, 0, True),
        (0o044, UID, 0, False),
        (0o640, 0, UID, True),
        (0o604, 0, UID, False),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which only root may")
def test_the_container_s_user_must_be_allowed_to_read_it(
    tmp_path: Path, mode: int, owner: int, group: int, readable: bool
) -> None:
    first, second = files(tmp_path, "1.gguf", "2.gguf")
    os.chown(second, owner, group)
    second.chmod(mode)
    if readable:
        model_file.require_readable([first, second], ARBITRARY_USER)
        return
    with pytest.raises(UsageError, match=rf"runs as uid {UID}, which may not read {second}: run `chmod o\+r`"):
        model_file.require_readable([first, second], ARBITRARY_USER)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_process_of_ours_must_be_allowed_to_read_it(tmp_path: Path) -> None:
    [path] = files(tmp_path, "1.gguf")
    model_file.require_readable([path], "")
    path.chmod(0)
    with pytest.raises(UsageError, match="may not be read by you"):
        model_file.require_readable([path], "")
