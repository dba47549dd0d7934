"""The cpu image's llama-server as a program of this machine, for `invoke smoke --binary`.

The image may have a newer C library than this machine. So all libraries are copied beside the server, where its
RUNPATH finds them, and its ELF interpreter, the only absolute path in it, is replaced by the image's loader.
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
    """Yields the server's path on this machine and removes it afterwards. Hard links stay hard links."""
    # A short directory: the loader's path has to fit in place of the old one.
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
    """Returns the ELF file with another loader, whose path may not be longer than the old one."""
    assert program.count(LOADER) == 1
    path = str(loader).encode()
    assert len(path) <= len(LOADER)
    return program.replace(LOADER, path.ljust(len(LOADER), b"\0"))
