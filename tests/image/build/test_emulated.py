"""Bases for another platform than the engine's; their programs are this machine's, so that nothing is emulated."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from base_images import progress, settings, variants
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine
from base_images.build import emulated, local, source
from base_images.build.inputs import Origin
from base_images.errors import UsageError
from base_images.variants import Platform
from tests.support import images
from tests.support.builders import write_root

CPU = variants.find("cpu")


@pytest.fixture
def elsewhere(engine: Engine) -> Platform:
    return next(platform for platform in Platform if platform is not engine.platform())


@pytest.fixture
def reference(engine: Engine) -> Iterator[str]:
    made = f"llama-cpp-test-emulated:{os.getpid()}"
    yield made
    engine.remove_image(made)


def test_a_base_for_another_platform_says_so_and_a_build_starts_from_it(
    engine: Engine, elsewhere: Platform, reference: str, tmp_path: Path
) -> None:
    root, native = write_root(tmp_path / "root.tar", "sh", "ln"), tmp_path / "native.tar"
    with tarfile.open(root, "a") as archive:
        for name in ("usr", "usr/lib", "usr/local", "usr/local/bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
    native.write_bytes(images.archive({"usr/bin/ccache": b"#!/bin/sh\necho native\n"}))
    changes = ['CMD ["sh"]', "ENV ONE=1"]
    emulated.import_filesystem(engine, root, reference, changes, platform=elsewhere, native=native)
    made = engine.image(reference)
    assert (made.architecture, made.command, made.environment["ONE"]) == (elsewhere.architecture, ("sh",), "1")
    child = images.build(
        engine,
        {"Dockerfile": f"FROM {reference}\nARG TARGETARCH\nRUN ccache > /said && echo $TARGETARCH >> /said\n".encode()},
        platform=elsewhere,
    )
    try:
        assert engine.image(child).architecture == elsewhere.architecture
        said = engine.probe(ContainerSpec(image=child, entrypoint=("sh", "-c", "read one < /said; echo $one")))
        assert said.stdout == "native\n", said
    finally:
        engine.remove_image(child)


@pytest.mark.parametrize("origin", [Origin.AUTO, Origin.REGISTRIES])
def test_registries_have_no_bases_for_another_platform(engine: Engine, elsewhere: Platform, origin: Origin) -> None:
    with pytest.raises(UsageError, match=rf"--origin packages, or `invoke bake --platform {elsewhere.architecture}`"):
        local.prepare(
            engine,
            CPU,
            settings=settings.load(),
            root=settings.ROOT,
            source=source.expected(settings.load().pin, path=None, root=settings.ROOT),
            wanted=origin,
            listener=progress.silent,
            platform=elsewhere,
        )
