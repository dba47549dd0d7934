"""Reads the members of a layer as Go's archive/tar does, with which the engines extract it.

Python's tarfile reads some archives otherwise: it applies global headers, adds up extended headers, and ends without an
error at a header that it cannot read. Files could hide behind each of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_BLOCK = 512
_PIECE = 1 << 20
_METADATA_BYTES = 1 << 20  # the limit of Go 1.21 and later for one header's records

FILE, LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, PIPE = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_OLD_FILE = b"\0"
_RECORDS, _GLOBAL_RECORDS, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_TYPES = frozenset({FILE, LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, PIPE})

_CAPABILITY = "SCHILY.xattr.security.capability"


class TarError(ValueError):
    """An archive that no engine extracts, or that uses a form that layers do not use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        name: as written, with bytes that are not UTF-8 as surrogates.
        type: one of `FILE`, `LINK`, `SYMLINK`, `CHARACTER`, `DEVICE`, `DIRECTORY` and `PIPE`.
        size: bytes of content; 0 for everything but a file.
        link: the target of a link, as written.
        capability: whether it has file capabilities.
    """

    name: str
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    link: str
    capability: bool


def is_header(block: bytes) -> bool:
    """Returns whether the first 512 bytes of a file are a tar header."""
    try:
        return len(block) >= _BLOCK and any(block[:_BLOCK]) and _is_intact(block[:_BLOCK])
    except TarError:
        return False


def members(stream: IO[bytes]) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Yields each member with the pieces of its content, which may be left unread.

    Raises:
        TarError: the archive is damaged, or has a type or a form that layers do not have.
    """
    records: dict[str, bytes] = {}
    long: dict[bytes, bytes] = {}
    while (block := _next_block(stream)) is not None:
        kind, size = block[156:157], _number(block[124:136])
        if kind == _RECORDS:
            records = _parsed(_metadata(stream, size))
        elif kind in {_LONG_NAME, _LONG_LINK}:
            long[kind] = _text(_metadata(stream, size))
        elif kind == _GLOBAL_RECORDS:
            _parsed(_metadata(stream, size))
            records, long = {}, {}
        else:
            member = _member(block, records, long)
            content = _pieces(stream, member.size)
            yield member, content
            for _ in content:
                continue
            stream.read(-member.size % _BLOCK)
            records, long = {}, {}


def _next_block(stream: IO[bytes]) -> bytes | None:
    """Returns the next header; None at the end of the archive: two blocks of zeros, or the end of the stream."""
    block = stream.read(_BLOCK)
    if not any(block) and len(block) in {0, _BLOCK}:
        if any(stream.read(_BLOCK)):
            raise TarError("a header is empty")
        return None
    if len(block) < _BLOCK:
        raise TarError("it ends within a header")
    if not _is_intact(block):
        raise TarError("a header's checksum is wrong")
    return block


def _is_intact(block: bytes) -> bool:
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    signed = unsigned - 256 * sum(byte >> 7 for byte in block[:148] + block[156:])
    return _number(block[148:156]) in {unsigned, signed}


def _member(block: bytes, records: dict[str, bytes], long: dict[bytes, bytes]) -> Member:
    name, kind = _text(block[:100]), block[156:157]
    if prefix := _prefix(block):
        name = prefix + b"/" + name
    name = long.get(_LONG_NAME) or records.get("path") or name
    link = long.get(_LONG_LINK) or records.get("linkpath") or _text(block[157:257])
    if kind == _OLD_FILE:
        kind = DIRECTORY if name.endswith(b"/") else FILE
    if kind not in _TYPES:
        raise TarError(f"a member has the type {kind.decode('latin-1')!r}")
    if any(key.startswith("GNU.sparse.") for key in records):
        raise TarError("a file is stored as sparse")
    numbers = {
        key: _decimal(records[key]) if records.get(key) else _number(field)
        for key, field in (("uid", block[108:116]), ("gid", block[116:124]), ("size", block[124:136]))
    }
    return Member(
        name=name.decode("utf-8", "surrogateescape"),
        type=kind,
        mode=_number(block[100:108]),
        uid=numbers["uid"],
        gid=numbers["gid"],
        size=numbers["size"] if kind == FILE else 0,
        link=link.decode("utf-8", "surrogateescape"),
        capability=bool(records.get(_CAPABILITY)),
    )


def _prefix(block: bytes) -> bytes:
    """Returns the directory that POSIX's format stores apart from the name."""
    if block[257:263] == b"ustar\0" and block[508:512] != b"tar\0":
        return _text(block[345:500])
    if block[257:262] == b"ustar" and any(block[345:500]):
        # Other fields of GNU's and star's formats lie there; Go takes them for a prefix when it cannot read them.
        raise TarError("a header has access times in a form of GNU tar or star")
    return b""


def _metadata(stream: IO[bytes], size: int) -> bytes:
    if size > _METADATA_BYTES:
        raise TarError("a header is larger than 1 MiB")
    data = b"".join(_pieces(stream, size))
    stream.read(-size % _BLOCK)
    return data


def _pieces(stream: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            raise TarError("it ends within a file")
        size -= len(piece)
        yield piece


def _parsed(data: bytes) -> dict[str, bytes]:
    """Returns the records of an extended header: `LENGTH KEY=VALUE` lines, where LENGTH is that of the whole line."""
    records: dict[str, bytes] = {}
    start = 0
    while start < len(data):
        match = re.compile(rb"([0-9]{1,7}) ([^=\0]+)=").match(data, start)
        end = start + int(match[1]) if match else 0
        if not match or end <= match.end() or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError("an extended header is malformed")
        key, value = match[2].decode("utf-8", "surrogateescape"), data[match.end() : end - 1]
        if key in {"path", "linkpath"} and b"\0" in value:
            raise TarError("a name has a null byte")
        records[key] = value
        start = end
    return records


def _text(field: bytes) -> bytes:
    return field.split(b"\0", maxsplit=1)[0]


def _number(field: bytes) -> int:
    """Reads an octal number, or a binary one, which the first bit marks."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise TarError("a number is negative")
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:], "big")
    digits = _text(field.strip(b" \0"))
    if not re.fullmatch(rb"[0-7]*", digits):
        raise TarError("a number is malformed")
    return int(digits or b"0", 8)


def _decimal(value: bytes) -> int:
    if not re.fullmatch(rb"[0-9]{1,19}", value):
        raise TarError("a number is malformed")
    return int(value)
