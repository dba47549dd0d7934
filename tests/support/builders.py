"""The engine's own BuildKit as a remote builder of buildx, and an SBOM generator.

buildx cannot push by digest through the engine's default builder, and other builders need an image from a registry.
But the engine exposes its BuildKit at /grpc.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import socketserver
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from base_images.adapters.engine import Engine
from tests.support.servers import pump, running

# BuildKit's protocol for generators: scan BUILDKIT_SCAN_SOURCE, write in-toto statements to BUILDKIT_SCAN_DESTINATION.
GENERATOR = """\
cat > $BUILDKIT_SCAN_DESTINATION/sbom.spdx.json <<END
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document",
 "predicate": {"name": "$(cat ${BUILDKIT_SCAN_SOURCE}FILE)", "packages": [{"name": "llama.cpp"}]}}
END
"""


def can_be_remote(engine: Engine) -> bool:
    """Returns whether buildx is installed and the engine is local and stores its images with containerd."""
    buildx = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0
    return buildx and engine.is_local and engine.storage_driver() == "overlayfs"


@contextmanager
def of_engine(directory: Path) -> Iterator[str]:
    """Yields the name of a buildx builder that is the engine's BuildKit; it is registered below BUILDX_CONFIG."""
    path = directory / "s"
    create = ["docker", "buildx", "create", "--name", "kit", "--driver", "remote", f"unix://{path}"]
    with socketserver.ThreadingUnixStreamServer(str(path), _Caller) as server:
        server.daemon_threads = True
        with running(server):
            subprocess.run(create, check=True, capture_output=True)
            yield "kit"


def push_generator(engine: Engine, reference: str, directory: Path, *, file: str) -> None:
    """Pushes an SBOM generator whose SBOMs hold the text of a file of the image, which may have no quotation marks."""
    tar = write_root(directory / "generator.tar", "sh", "cat")
    push_root(engine, tar, reference, f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', GENERATOR.replace('FILE', file)])}")


def push_root(engine: Engine, tar: Path, reference: str, change: str) -> None:
    """Pushes an image of a root file system with one change, such as its command, and removes it from the engine."""
    engine.import_filesystem(tar, reference, [change])
    engine.push(reference)
    engine.remove_image(reference)


def write_root(tar: Path, *programs: str) -> Path:
    """Writes a root file system of these programs of this machine and the libraries that they load."""
    with tarfile.open(tar, "w") as archive:
        paths = {f"/bin/{program}": shutil.which(program) or "" for program in programs}
        for path in dict(paths).values():
            listing = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
            paths |= {found: found for found in re.findall(r"(/\S+)", listing)}
        for inside, path in paths.items():
            archive.add(os.path.realpath(path), arcname=inside)
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(directory)
    return tar


class _Caller(socketserver.BaseRequestHandler):
    """Connects a BuildKit client with the engine until both have closed."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
            upstream.sendall(b"POST /grpc HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += upstream.recv(1)
            back = threading.Thread(target=pump, args=(upstream, self.request), daemon=True)
            back.start()
            pump(self.request, upstream)
            back.join()
