"""Tar archives of layers and images, written by hand where tarfile would not write them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence

Member = tuple[tarfile.TarInfo, bytes]

END = bytes(1024)
"""The two blocks that end an archive."""


def member(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    pax: Mapping[str, str] | None = None,
) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.size = kind, link, mode, uid, len(content)
    info.pax_headers = dict(pax or {})
    return info, content


def directory(name: str, mode: int = 0o755) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str, *, mode: int = 0o644) -> Member:
    return member(name, kind=tarfile.LNKTYPE, link=target, mode=mode)


def tar(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name: bytes, content: bytes = b"", *, kind: bytes = b"0", **fields: bytes) -> bytes:
    """Returns a header with its padded content; `fields` replace `mode`, `size`, `prefix`, `magic` or `checksum`."""
    block = bytearray(512)
    size = b"%011o\0" % len(content)
    places = {"mode": 100, "size": 124, "magic": 257, "prefix": 345}
    for field, start in ((name, 0), (b"0000644\0", 100), (size, 124), (kind, 156), (b"ustar\x0000", 257)):
        block[start : start + len(field)] = field
    checksum = fields.pop("checksum", b"")
    for field_name, value in fields.items():
        block[places[field_name] : places[field_name] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = checksum % sum(block) if checksum else b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def records(*pairs: tuple[str, bytes], kind: bytes = b"x") -> bytes:
    """Returns an extended header; `kind` `g` is a global one."""
    lines = b""
    for key, value in pairs:
        line = b" " + key.encode() + b"=" + value + b"\n"
        size = next(size for size in range(len(line), len(line) + 9) if len(str(size)) + len(line) == size)
        lines += b"%d" % size + line
    return header(b"records", lines, kind=kind)


def manifest(config: str, layers: Sequence[str], diff_ids: Sequence[str]) -> tuple[Member, Member]:
    return (
        member(config, json.dumps({"rootfs": {"diff_ids": list(diff_ids)}}).encode()),
        member("manifest.json", json.dumps([{"Config": config, "Layers": list(layers)}]).encode()),
    )


def image(*layers: bytes) -> bytes:
    """Returns an archive that `docker load` takes; the image has these layers and the command `/none`."""
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    root = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/none"]}, "rootfs": root}
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "RepoTags": None, "Layers": names}]
    return tar(
        member("config.json", json.dumps(config).encode()),
        *(member(name, layer) for name, layer in zip(names, layers, strict=True)),
        member("manifest.json", json.dumps(listed).encode()),
    )
