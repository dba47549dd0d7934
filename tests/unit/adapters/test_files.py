"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from base_images.adapters import files
from base_images.errors import UsageError
from tests.support import disks


def test_a_file_and_its_directory_are_made(tmp_path: Path) -> None:
    path = tmp_path / "made" / "too" / "file"
    files.write(path, "text of \udcff\n")  # a name of a file may have such a byte
    assert path.read_text(encoding="utf-8") == "text of ?\n"
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    files.write_json(path, {"a": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1]}
    assert list(path.parent.iterdir()) == [path]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        files.write(pipe, "text\n")
        assert reader.communicate(timeout=60)[0] == "text\n"
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_path_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"/file/record cannot be written \(Not a directory\): choose another file"):
        files.write(tmp_path / "file" / "record", "x")


def test_on_a_full_disk_a_file_stays_as_it_was(tmp_path: Path) -> None:
    with disks.full(tmp_path / "full") as full:
        (full / "before").touch()
        for name in ("before", "new"):
            with pytest.raises(UsageError, match=f"{full}/{name} cannot be written .No space left on device."):
                files.write(full / name, bytes(100_000))
        assert sorted(path.name for path in full.iterdir()) == ["before", "filler"]
