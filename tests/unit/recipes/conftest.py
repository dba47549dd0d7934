"""Fixtures: clones of an upstream."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import clones

UPSTREAM = (Path(__file__).parent / "upstream/cuda.Dockerfile").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """An upstream with the tags b1 and b2: b2 flips a flag, drops s390x and adds zendnn."""
    path = tmp_path / "clone"
    directory = path / ".devops"
    directory.mkdir(parents=True)
    (directory / "cuda.Dockerfile").write_text(UPSTREAM)
    (directory / "s390x.Dockerfile").write_text(UPSTREAM)
    (directory / "tools.sh").write_text("true\n")
    clones.commit_all(path).create_tag("b1")
    (directory / "cuda.Dockerfile").write_text(UPSTREAM.replace("GGML_NATIVE=OFF", "GGML_NATIVE=ON"))
    (directory / "s390x.Dockerfile").rename(directory / "zendnn.Dockerfile")
    clones.commit_all(path).create_tag("b2", message="annotated")
    return path
