"""The cpu image's llama-server on this machine, without a container: a program for `invoke smoke --binary`.

The image may have a newer C library than this machine. So everything that the server loads lies beside it, where its
RUNPATH finds it, and the loader that it names, by the only absolute path in it, is replaced by the image's own.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base_images.adapters.engine import Image

LOADER = b"/lib64/ld-linux-x86-64.so.2"

_COLLECT = """
cd /app/bin/*/cpu
libraries=$(ldd ./llama-server ./libggml-cpu-*.so | sed -nE 's/.*=> (\\/(usr\\/)?lib[^ ]*) .*/\\1/p' | sort -u)
cp -r . /tmp/payload
cp -L $libraries /tmp/payload
cp -L /lib64/ld-linux-x86-64.so.2 /tmp/payload/ld
tar -c -C /tmp/payload .
"""


@contextmanager
def copied_out(image: Image) -> Iterator[Path]:
    """Yields the server's path on this machine; it is gone afterwards. Hard links are copied as what they are."""
    # The path of the loader has to fit where the old one was.
    with tempfile.TemporaryDirectory(prefix="s-", dir="/tmp") as name:
        directory = Path(name)
        archive = subprocess.run(
            ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image.id, "-eu", "-c", _COLLECT],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        subprocess.run(["tar", "-x", "-C", directory], input=archive, check=True)
        directory.chmod(0o755)
        program = directory / "llama-server"
        program.write_bytes(with_loader(program.read_bytes(), directory / "ld"))
        yield program


def with_loader(program: bytes, loader: Path) -> bytes:
    """Returns the ELF file with another loader, which is named by a path that may not be longer than the old one."""
    assert program.count(LOADER) == 1
    path = str(loader).encode()
    assert len(path) <= len(LOADER)
    return program.replace(LOADER, path.ljust(len(LOADER), b"\0"))
