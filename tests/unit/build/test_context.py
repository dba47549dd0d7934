from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from base_images import settings
from base_images.build import context
from base_images.errors import UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "dockerfiles").mkdir(parents=True)
    (made / "dockerfiles" / "cpu.Dockerfile").write_text("FROM scratch\n")
    (made / ".dockerignore").write_text((settings.ROOT / ".dockerignore").read_text())
    return made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "elsewhere"
    (made / "tools" / "server").mkdir(parents=True)
    (made / "tools" / "server" / "main.cpp").write_text("int main() {}\n")
    (made / "run.sh").write_text("#!/bin/sh\n")
    (made / "run.sh").chmod(0o700)
    (made / "link").symlink_to("run.sh")
    for ignored in (".git/config", "models/big.gguf", "build/bin/x", "tools/ui/node_modules/a.js"):
        (made / ignored).parent.mkdir(parents=True, exist_ok=True)
        (made / ignored).write_text("no")
    return made


def written(root: Path, source: Path) -> bytes:
    stream = io.BytesIO()
    context.write(stream, root=root, source=source)
    return stream.getvalue()


def test_the_context_is_recipes_and_source_only(root: Path, source: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(root, source))) as archive:
        names = archive.getnames()
        assert names == sorted(names)
        files = {member.name: member for member in archive if not member.isdir()}
    assert set(files) == {
        "dockerfiles/cpu.Dockerfile",
        "llama.cpp/link",
        "llama.cpp/run.sh",
        "llama.cpp/tools/server/main.cpp",
    }
    assert files["llama.cpp/run.sh"].mode == 0o755
    assert files["dockerfiles/cpu.Dockerfile"].mode == 0o644
    assert files["llama.cpp/link"].linkname == "run.sh"
    assert {member.uid for member in files.values()} == {0}


SECRETS = (
    *(".git/config", ".env", ".env.local", ".netrc", ".git-credentials"),
    *(".ssh/config", ".aws/credentials", "id_rsa"),
)


@pytest.mark.parametrize("directory", ["", "tools/", "a/b/c/"])
def test_secrets_are_not_in_the_context(root: Path, source: Path, directory: str) -> None:
    for name in (*SECRETS, ".env.example"):
        (source / directory / name).parent.mkdir(parents=True, exist_ok=True)
        (source / directory / name).write_text("secret")
    with tarfile.open(fileobj=io.BytesIO(written(root, source))) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith(SECRETS)]
    assert f"llama.cpp/{directory}.env.example" in names


def test_of_a_checkout_only_its_files_are_in_the_context(root: Path, source: Path) -> None:
    files = frozenset({"link", "tools/server/main.cpp", "models/big.gguf"})
    stream = io.BytesIO()
    context.write(stream, root=root, source=source, files=files)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        names = set(archive.getnames())
    below = {
        "llama.cpp",
        "llama.cpp/link",
        "llama.cpp/tools",
        "llama.cpp/tools/server",
        "llama.cpp/tools/server/main.cpp",
    }
    assert names == {"dockerfiles", "dockerfiles/cpu.Dockerfile", *below}


def test_a_builder_that_reads_the_directory_must_not_get_other_files(root: Path, source: Path) -> None:
    files = frozenset({"link", "tools/server/main.cpp"})
    with pytest.raises(UsageError, match=r"git ignores llama\.cpp/run\.sh, and bake would send it"):
        context.require_only(files, root=root, source=source)
    context.require_only(files | {"run.sh"}, root=root, source=source)
    context.require_only(None, root=root, source=source)


def test_the_same_content_gives_the_same_bytes(root: Path, source: Path) -> None:
    before = written(root, source)
    for path in source.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1, 1.5))
    (source / "tools" / "server" / "main.cpp").chmod(0o664)
    assert written(root, source) == before
    (source / "run.sh").write_text("#!/bin/bash\n")
    assert written(root, source) != before


def test_buildkit_recognises_the_archive(root: Path, source: Path) -> None:
    deep = source / "/".join(["a-rather-long-directory-name"] * 5)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    head = written(root, source)[:1024]
    assert head[257:265] == b"ustar  \0"  # GNU's magic; PAX would be b"ustar\x0000"
    assert b"PaxHeader" not in written(root, source)


def test_the_ignore_file_lets_recipes_and_source_through() -> None:
    lines = (settings.ROOT / context.IGNORE_FILE).read_text().splitlines()
    assert "*" in lines
    assert f"!{context.SOURCE_DIRECTORY}" in lines
    assert f"!{context.RECIPE_DIRECTORY}" in lines
