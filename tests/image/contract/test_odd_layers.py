"""Layers with odd names in the real engine: what it extracts is what is judged."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator

import docker
import pytest

from base_images.adapters.engine import Engine
from base_images.contract import judge
from tests.support import odd_layers
from tests.support.archives import directory, image, member, symlink, tar

Load = Callable[..., str]

_OF_THE_ENGINE = re.compile(r"(?:\.dockerenv|dev|etc|proc|sys)(?:/.*)?")


@pytest.fixture
def load(engine: Engine) -> Iterator[Load]:
    """Loads an image of these layers, returns its id, and removes it afterwards."""
    client = docker.from_env()
    loaded: list[str] = []

    def load(*layers: bytes) -> str:
        [made] = client.images.load(image(*layers))
        loaded.append(str(made.id))
        return loaded[-1]

    yield load
    for image_id in loaded:
        engine.remove_image(image_id)
    client.close()


@pytest.mark.parametrize("name", odd_layers.LAYERS)
def test_the_engine_extracts_what_the_table_says(load: Load, name: str) -> None:
    client = docker.from_env()
    container = client.containers.create(load(odd_layers.BASE, odd_layers.LAYERS[name][0]))
    try:
        exported = b"".join(container.export())  # type: ignore[arg-type]
    finally:
        container.remove()
        client.close()
    found: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        for entry in archive:
            if entry.isdir() or _OF_THE_ENGINE.fullmatch(entry.name):
                continue
            mode = f"-> {entry.linkname}" if entry.issym() else f"{entry.mode & 0o7777:o}"
            found[f"/{entry.name}"] = found[f"/{entry.linkname}"] if entry.islnk() else mode
    assert found == odd_layers.files(name)


def test_files_with_odd_names_do_not_escape_the_contract(engine: Engine, load: Load) -> None:
    elf = b"\x7fELF"
    image_id = load(
        odd_layers.BASE,
        tar(
            member("{", b"1"),
            member("//usr/bin/gcc", elf),
            member("/opt/libx.so", elf, mode=0o666),
            directory("sbin"),
            symlink("s", "sbin"),
            member("s/su", elf, mode=0o4755),
        ),
    )
    findings = [finding for row in judge.check(engine, image_id).rows for finding in row.findings]
    assert "A build tool in the image: /usr/bin/gcc." in findings
    assert "Files that everyone may write: /opt/libx.so." in findings
    assert "Setuid or setgid, and not so in the base image: /sbin/su." in findings
