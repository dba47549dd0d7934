"""Source packages like those that vendor llama.cpp, and a package index that has them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.support.hostile import Hostile, Request, hostile, reply


def changelog_of(commits: Mapping[str, str]) -> str:
    """Returns a changelog like llama-cpp-python's, of these commits by version; a version may name none."""
    sections = (
        f"## [{version}]\n" + f"\n- feat: update llama.cpp to ggml-org/llama.cpp@{commit}\n" * bool(commit)
        for version, commit in commits.items()
    )
    return "# Changelog\n\n" + "\n".join(sections)


def write(path: Path, top: str, members: Mapping[str, str], links: Mapping[str, str] | None = None) -> str:
    """Writes an sdist of these files, and symbolic links, below the directory `top`; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, text in members.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mode = len(text), 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def index(directory: Path, uploaded: Mapping[str, str]) -> Iterator[Hostile]:
    """Serves the sdists `<package>-<version>.tar.gz` in a directory, with the times of `uploaded` by file name.

    Files that are not in `uploaded` are not listed.
    """

    def answer(request: Request) -> list[bytes]:
        parts = request.path.strip("/").split("/")
        if parts[0] != "simple":
            return reply(200, (directory / parts[0]).read_bytes())
        project = parts[1]
        names = [name for name in uploaded if name.rpartition("-")[0].replace("_", "-") == project]
        if not names:
            return reply(404)
        files: list[dict[str, Any]] = [
            {
                "filename": name,
                "url": f"/{name}",
                "hashes": {"sha256": hashlib.sha256((directory / name).read_bytes()).hexdigest()},
                "upload-time": uploaded[name],
                "size": (directory / name).stat().st_size,
            }
            for name in names
        ]
        body = {"meta": {"api-version": "1.1"}, "name": project, "files": files, "versions": []}
        return reply(200, json.dumps(body).encode(), Content_Type="application/vnd.pypi.simple.v1+json")

    with hostile(answer) as server:
        yield server
