"""Reads the files in an image's layers from the tar stream of `docker save`, in one pass.

Both layouts are supported: the one of Docker 20.10 (`<id>/layer.tar`) and the OCI layout (`blobs/sha256/…`) of newer
engines and containerd, where layers may be compressed. Nothing is unpacked to disk, and only the small files that the
caller asks for stay in memory; ELF files are parsed from a spooled temporary file.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import tarfile
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import IO, Any

from elftools.elf.elffile import ELFFile

from base_images.errors import EngineError

_PIECE = 1 << 20
_SPOOL_BYTES = 64 << 20
_KEPT_FILE_BYTES = 1 << 20
_DOCUMENT_BYTES = 16 << 20
_MAX_LINKS = 40  # the limit of Linux

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"  # both: the image specification's layer format
_CAPABILITY = "SCHILY.xattr.security.capability"


class Kind(Enum):
    """The kind of an entry; a hard link is a file."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Elf:
    """The fields of an ELF file that the dynamic loader reads.

    Attributes:
        machine: the architecture, such as `EM_X86_64`.
        program: whether it is a program: it has an interpreter or the type of static programs.
        dynamic: whether it has a dynamic section.
        needed: its NEEDED entries.
        runpath: its RUNPATH, if any.
        rpath: its RPATH, if any; no file should have one, since it applies to the libraries of other files too.
    """

    machine: str
    program: bool
    dynamic: bool
    needed: tuple[str, ...]
    runpath: str | None
    rpath: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A path in a layer or in the merged file system.

    Attributes:
        path: the absolute path.
        mode: permission bits with the set-id and sticky bits.
        size: bytes of content.
        target: the target of a symbolic link.
        digest: SHA-256 of a file's content.
        inode: the path in the same layer whose content a hard link shares; otherwise the file's own path.
        is_elf: whether a file's content starts with ELF's magic number.
        elf: the parsed ELF file, if requested; None for a damaged one.
        capability: whether it has file capabilities.
        content: the content, if requested.
        layer: the index of the layer; 0 is the lowest.
    """

    path: str
    kind: Kind
    mode: int
    uid: int
    gid: int
    layer: int = 0
    size: int = 0
    target: str = ""
    digest: str = ""
    inode: str = ""
    is_elf: bool = False
    elf: Elf | None = None
    capability: bool = False
    content: bytes | None = None

    @property
    def stored(self) -> int:
        """Bytes that the layer stores for the entry: none for a hard link to another entry."""
        return self.size if self.kind is Kind.FILE and self.inode == self.path else 0


Layer = tuple[Entry, ...]
"""The entries of a layer in the order of its archive, with whiteouts."""


def read(
    stream: Iterator[bytes], *, diff_ids: Sequence[str], keep: Collection[str] = (), elf_below: str = "/app/"
) -> tuple[Layer, ...]:
    """Returns the layers of an image, lowest first.

    Args:
        stream: the output of `docker save` in chunks.
        diff_ids: the engine's digests of the layers; they select the image if the archive has several.
        keep: absolute paths whose content is kept, up to 1 MiB each.
        elf_below: the directory whose ELF files are parsed.

    Raises:
        EngineError: the stream is not an image's archive, or Python cannot decompress a layer.
    """
    layers: dict[str, Layer] = {}
    documents: dict[str, Any] = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Pieces(stream), _PIECE), mode="r|", bufsize=_PIECE) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                name = posixpath.normpath(member.name)
                if member.issym():
                    # Docker 20.10 stores a repeated layer once, with symbolic links to it.
                    documents[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif file is not None and file.peek(1)[:1] in (b"{", b"["):  # type: ignore[attr-defined]
                    documents[name] = _document(file)
                elif file is not None and (name.startswith("blobs/") or name.endswith("/layer.tar")):
                    layers[name] = tuple(_layer(file, name, keep, elf_below))
    except tarfile.TarError as error:
        raise EngineError(f"The engine did not send an image's archive: {error}.") from error
    names = _layer_names(documents, diff_ids)
    try:
        return tuple(
            tuple(replace(entry, layer=number) for entry in layers[str(documents.get(name, name))])
            for number, name in enumerate(names)
        )
    except KeyError as error:
        raise EngineError(f"The engine's archive of the image lacks the layer {error}.") from error


def merge(layers: Sequence[Layer]) -> dict[str, Entry]:
    """Returns the file system that a container sees as path to entry, with whiteouts applied."""
    files: dict[str, Entry] = {}
    for layer in layers:
        gone: set[str] = set()  # removed with everything below
        emptied: set[str] = set()  # only what is below is removed
        added: list[Entry] = []
        for entry in layer:
            directory, name = posixpath.split(entry.path)
            if name == _OPAQUE:
                emptied.add(directory)
            elif name.startswith(_WHITEOUT):
                gone.add(posixpath.join(directory, name.removeprefix(_WHITEOUT)))
            else:
                added.append(entry)
                if entry.kind is not Kind.DIRECTORY and entry.path in files:
                    gone.add(entry.path)
        emptied |= gone
        if emptied:
            files = {
                path: entry for path, entry in files.items() if path not in gone and emptied.isdisjoint(parents(path))
            }
        files.update((entry.path, entry) for entry in added)
    return files


def resolve(files: Mapping[str, Entry], path: str) -> Entry | None:
    """Returns the entry of a path, following symbolic links; None when there is none."""
    links = 0
    done = "/"
    todo = [part for part in path.split("/") if part]
    while todo:
        part = todo.pop(0)
        if part in (".", ".."):
            done = posixpath.normpath(posixpath.join(done, part))
            continue
        done = posixpath.join(done, part)
        entry = files.get(done)
        if entry is not None and entry.kind is Kind.SYMLINK:
            links += 1
            if links > _MAX_LINKS:
                return None
            todo = [part for part in entry.target.split("/") if part] + todo
            done = "/" if entry.target.startswith("/") else posixpath.dirname(done)
    return files.get(done)


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a raw stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._rest = self._rest or next(self._pieces, b"")
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def parents(path: str) -> Iterator[str]:
    """Yields the directories above an absolute path, the nearest first and `/` last."""
    while path != "/":
        path = posixpath.dirname(path)
        yield path


def _document(file: IO[bytes]) -> Any:
    """Returns a JSON document of the archive; None when it is not JSON."""
    try:
        return json.loads(file.read(_DOCUMENT_BYTES))
    except ValueError:
        return None


def _layer_names(documents: Mapping[str, Any], diff_ids: Sequence[str]) -> list[str]:
    """Returns the archive's names of the layers of the image with these diff ids, lowest first."""
    for image in documents.get("manifest.json") or ():
        config = documents.get(posixpath.normpath(image["Config"]))
        if config and config["rootfs"]["diff_ids"] == list(diff_ids):
            return [posixpath.normpath(name) for name in image["Layers"] or ()]
    raise EngineError("The engine's archive does not hold the image that was asked for: run the check again.")


def _layer(file: IO[bytes] | None, name: str, keep: Collection[str], elf_below: str) -> Iterator[Entry]:
    entries: dict[str, Entry] = {}
    try:
        with tarfile.open(fileobj=file, mode="r|*", bufsize=_PIECE) as layer:
            for member in layer:
                entry = _entry(layer, member, entries, keep, elf_below)
                entries[entry.path] = entry
                yield entry
    except tarfile.TarError as error:
        raise EngineError(
            f"The layer {name} cannot be read ({error}): with zstd compression that takes Python 3.14."
        ) from error


def _entry(
    layer: tarfile.TarFile,
    member: tarfile.TarInfo,
    entries: Mapping[str, Entry],
    keep: Collection[str],
    elf_below: str,
) -> Entry:
    path = posixpath.normpath("/" + member.name)
    bare = Entry(path=path, kind=Kind.OTHER, mode=member.mode & 0o7777, uid=member.uid, gid=member.gid)
    if member.isdir():
        return replace(bare, kind=Kind.DIRECTORY)
    if member.issym():
        return replace(bare, kind=Kind.SYMLINK, target=member.linkname)
    if member.islnk():
        linked = entries.get(posixpath.normpath("/" + member.linkname))
        return replace(linked, path=path) if linked else replace(bare, target=member.linkname)
    file = layer.extractfile(member) if member.isreg() else None
    if file is None:
        return bare
    digest = hashlib.sha256()
    begin = file.read(4)
    wanted = begin == b"\x7fELF" and path.startswith(elf_below)
    kept = path in keep and member.size <= _KEPT_FILE_BYTES
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        piece = begin
        while piece:
            digest.update(piece)
            if wanted or kept:
                spool.write(piece)
            piece = file.read(_PIECE)
        spool.seek(0)
        return replace(
            bare,
            kind=Kind.FILE,
            size=member.size,
            digest=digest.hexdigest(),
            inode=path,
            is_elf=begin == b"\x7fELF",
            elf=_elf(spool) if wanted else None,
            capability=_CAPABILITY in member.pax_headers,
            content=spool.read() if kept and not wanted else None,
        )


def _elf(file: IO[bytes]) -> Elf | None:
    """Parses the program headers, since a stripped file may have no section headers."""
    needed: list[str] = []
    paths: dict[str, str] = {}
    program = dynamic = False
    try:
        elf: Any = ELFFile(file)
        for segment in elf.iter_segments():
            kind = segment["p_type"]
            program = program or kind == "PT_INTERP"
            if kind == "PT_DYNAMIC":
                dynamic = True
                for tag in segment.iter_tags():
                    if tag.entry.d_tag == "DT_NEEDED":
                        needed.append(tag.needed)
                    elif tag.entry.d_tag in ("DT_RUNPATH", "DT_RPATH"):
                        paths[tag.entry.d_tag] = tag.runpath if tag.entry.d_tag == "DT_RUNPATH" else tag.rpath
        return Elf(
            machine=elf["e_machine"],
            program=program or elf["e_type"] == "ET_EXEC",
            dynamic=dynamic,
            needed=tuple(needed),
            runpath=paths.get("DT_RUNPATH"),
            rpath=paths.get("DT_RPATH"),
        )
    except Exception:  # noqa: BLE001 - pyelftools raises various errors for damaged files
        return None
