"""Reads the files in an image's layers from the tar stream of `docker save`, in one pass.

Both layouts are supported: the one of Docker 20.10 (`<id>/layer.tar`) and the OCI layout (`blobs/sha256/…`) of newer
engines and containerd, where layers may be compressed. Nothing is unpacked to disk, and only the small files that the
caller asks for stay in memory; ELF files are parsed from a spooled temporary file.

Paths are those of a container: Docker 20.10 and 28.5 (measured) take every name relative to the root, which `..` does
not leave, and follow symbolic links in the directory of a name only where the same layer has them; over a link of a
lower layer they make a directory.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import posixpath
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import IO, Any

from elftools.elf.elffile import ELFFile

from base_images.contract import tar
from base_images.errors import EngineError

_UNREADABLE: tuple[type[Exception], ...] = (tar.TarError, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)
if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError, ZstdFile

    _UNREADABLE += (ZstdError,)

_PIECE = 1 << 20
_SPOOL_BYTES = 64 << 20
_KEPT_FILE_BYTES = 1 << 20
_DOCUMENT_BYTES = 16 << 20
_MAX_LINKS = 40  # the limit of Linux
_MAX_PATH_BYTES = 4095  # the limit of Linux
_MAX_ELF_COST = 1 << 22  # libLLVM 15 takes 125,000
_SEEK_COST = 64

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"  # both: the image specification's layer format
_MAX_NOTE_BYTES = 4096
_ELF = b"\x7fELF"
_ELF_BELOW = "/app/"  # the directory whose ELF files are parsed
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


class Kind(Enum):
    """The kind of an entry; a hard link is a file."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Elf:
    """The fields of an ELF file that the dynamic loader reads, and its package note.

    Attributes:
        machine: the architecture, such as `EM_X86_64`.
        program: whether it is a program: it has an interpreter or the type of static programs.
        dynamic: whether it has a dynamic section.
        needed: its NEEDED entries.
        runpath: its RUNPATH, if any.
        rpath: its RPATH, if any; no file should have one, since it applies to the libraries of other files too.
        package: the JSON of its note of the package that it belongs to; empty without one.
    """

    machine: str
    program: bool
    dynamic: bool
    needed: tuple[str, ...]
    runpath: str | None
    rpath: str | None
    package: str = ""


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


def read(stream: Iterator[bytes], *, diff_ids: Sequence[str], keep: Collection[str] = ()) -> tuple[Layer, ...]:
    """Returns the layers of an image, lowest first.

    `stream` is the output of `docker save` in chunks. The engine's `diff_ids` of the layers select the image if the
    archive has several. `keep` are absolute paths whose content is kept, up to 1 MiB each.

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
                elif file is not None and _is_document(file):
                    documents[name] = _document(file)
                elif file is not None and (name.startswith("blobs/") or name.endswith("/layer.tar")):
                    layers[name] = _layer(file, name, keep)
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


def compressed_sizes(stream: Iterator[bytes], wanted: Collection[str]) -> dict[str, int]:
    """Returns the bytes that a registry stores for each of the `wanted` layers of an image's archive, by its diff id.

    A layer that the archive has uncompressed is compressed as `docker push` does, by gzip at its default level.

    Raises:
        EngineError: the stream is not an image's archive, or Python cannot decompress a layer.
    """
    sizes: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=io.BufferedReader(_Pieces(stream), _PIECE), mode="r|", bufsize=_PIECE) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or _is_document(file):
                    continue
                content = _decompressed(file, member.name)
                digest = hashlib.sha256()
                with tempfile.TemporaryFile() as spool:
                    while piece := content.read(_PIECE):
                        digest.update(piece)
                        spool.write(piece)
                    if (diff_id := f"sha256:{digest.hexdigest()}") in wanted:
                        sizes[diff_id] = _packed(spool) if content is file else member.size
    except _UNREADABLE as error:
        raise EngineError(f"The engine did not send an image's archive: {error}.") from error
    return sizes


def _packed(file: IO[bytes]) -> int:
    file.seek(0)
    packer, size = zlib.compressobj(wbits=31), 0
    while piece := file.read(_PIECE):
        size += len(packer.compress(piece))
    return size + len(packer.flush())


@dataclass(slots=True)
class _Node:
    """A path of the merged file system; without an entry it is a directory that only its contents imply."""

    entry: Entry | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def merge(layers: Sequence[Layer]) -> dict[str, Entry]:
    """Returns the file system that a container sees as path to entry, with whiteouts applied."""
    root = _Node()
    for layer in layers:
        added: list[Entry] = []
        for entry in layer:
            path, name = posixpath.split(entry.path)
            if not name.startswith(_WHITEOUT):
                added.append(entry)
            elif name != _OPAQUE:
                _directory(root, path).children.pop(name.removeprefix(_WHITEOUT), None)
            elif path != "/":
                # In the root it hides nothing: overlayfs does not look there (Docker 20.10 and 28.5).
                _directory(root, path).children.clear()
        for entry in added:
            _put(root, entry)
    files: dict[str, Entry] = {}
    todo = [root]
    while todo:
        node = todo.pop()
        if node.entry:
            files[node.entry.path] = node.entry
        todo += reversed(node.children.values())
    return files


def _directory(root: _Node, path: str) -> _Node:
    """Returns the directory at a path; it replaces whatever else is there."""
    node = root
    for name in _names(path):
        node = node.children.setdefault(name, _Node())
        if node.entry and node.entry.kind is not Kind.DIRECTORY:
            node.entry = None
    return node


def _put(root: _Node, entry: Entry) -> None:
    """Adds an entry; a directory keeps what is below it."""
    directory, name = posixpath.split(entry.path)
    if entry.kind is Kind.DIRECTORY:
        _directory(root, entry.path).entry = entry
    elif name:  # the root is a directory
        _directory(root, directory).children[name] = _Node(entry)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name]


def resolve(files: Mapping[str, Entry], path: str) -> Entry | None:
    """Returns the entry of a path, following symbolic links; None when there is none."""
    real = _real_path(files, path)
    return files.get(real) if real else None


def _real_path(files: Mapping[str, Entry], path: str) -> str | None:
    """Returns the path that a path leads to; None after more symbolic links than Linux follows."""
    links = 0
    done = "/"
    todo = _names(path)
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
            todo = _names(entry.target) + todo
            done = "/" if entry.target.startswith("/") else posixpath.dirname(done)
    return done


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


def _is_document(file: IO[bytes]) -> bool:
    """Returns whether a file of the archive is JSON and not a layer, whose first file may be called `{`."""
    begin = file.peek(512)[:512]  # type: ignore[attr-defined]
    return begin[:1] in (b"{", b"[") and not tar.is_header(begin)


def _document(file: IO[bytes]) -> Any:
    """Returns a JSON document of the archive; None when it is not JSON."""
    try:
        return json.loads(file.read(_DOCUMENT_BYTES))
    except (ValueError, RecursionError):
        return None


def _layer_names(documents: Mapping[str, Any], diff_ids: Sequence[str]) -> list[str]:
    """Returns the archive's names of the layers of the image with these diff ids, lowest first."""
    for image in documents.get("manifest.json") or ():
        match documents.get(posixpath.normpath(image["Config"])):
            case {"rootfs": {"diff_ids": [*found]}} if found == list(diff_ids):
                return [posixpath.normpath(name) for name in image["Layers"] or ()]
    raise EngineError("The engine's archive does not hold the image that was asked for: run the check again.")


def _layer(file: IO[bytes], name: str, keep: Collection[str]) -> Layer:
    reader = _LayerReader(keep)
    try:
        for member, content in tar.members(_decompressed(file, name)):
            reader.add(member, content)
    except _UNREADABLE as error:
        raise EngineError(f"The layer {name} cannot be read ({error}): build the image again.") from error
    return reader.layer()


def _decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    begin = file.peek(4)[:4]  # type: ignore[attr-defined]
    if begin.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if begin != _ZSTD:
        return file
    if sys.version_info >= (3, 14):
        return ZstdFile(file)
    raise EngineError(f"The layer {name} cannot be read: it is compressed with zstd, and that takes Python 3.14.")


class _LayerReader:
    """The entries of one layer, in the order of its archive."""

    def __init__(self, keep: Collection[str]) -> None:
        self._keep = keep
        self._entries: list[Entry] = []
        self._latest: dict[str, Entry] = {}
        self._directories: dict[str, str] = {}
        self._links: dict[str, Entry] = {}

    def layer(self) -> Layer:
        """Returns the entries; the names of a file have the attributes that its last hard link was written with."""
        return tuple(self._with_attributes(entry) for entry in self._entries)

    def add(self, member: tar.Member, content: Iterator[bytes]) -> None:
        """Adds a member of the archive.

        Raises:
            TarError: no engine extracts the member.
        """
        entry = self._entry(member, content)
        before = self._latest.get(entry.path)
        if before and (before.kind is Kind.DIRECTORY) is not (entry.kind is Kind.DIRECTORY):
            # Docker 20.10 takes no name twice.
            raise tar.TarError(f"{entry.path} is a directory and something else")
        if entry.kind is Kind.SYMLINK:
            self._directories.clear()
        self._entries.append(entry)
        self._latest[entry.path] = entry

    def _entry(self, member: tar.Member, content: Iterator[bytes]) -> Entry:
        path = self._path(member.name)
        bare = Entry(path=path, kind=Kind.OTHER, mode=member.mode & 0o7777, uid=member.uid, gid=member.gid)
        match member.type:
            case tar.DIRECTORY:
                return replace(bare, kind=Kind.DIRECTORY)
            case tar.SYMLINK:
                return replace(bare, kind=Kind.SYMLINK, target=_within_limit(member.link))
            case tar.LINK:
                linked = self._latest.get(self._path(member.link))
                if linked is None or linked.kind is not Kind.FILE:
                    return replace(linked, path=path) if linked else replace(bare, target=member.link)
                owner = replace(linked, mode=bare.mode, uid=bare.uid, gid=bare.gid, capability=member.capability)
                self._links[linked.inode] = owner
                return replace(owner, path=path)
            case tar.FILE:
                self._links.pop(path, None)
                return self._file(replace(bare, kind=Kind.FILE, capability=member.capability), member.size, content)
            case _:
                return bare

    def _path(self, name: str) -> str:
        """Returns the canonical path of a name in the archive."""
        directory, base = posixpath.split(posixpath.normpath(f"/./{_within_limit(name)}"))
        if directory not in self._directories:
            real = _real_path(self._latest, directory)
            if real is None:
                raise tar.TarError(f"{directory} leads through more than {_MAX_LINKS} symbolic links")
            self._directories[directory] = real
        return posixpath.join(self._directories[directory], base)

    def _file(self, bare: Entry, size: int, content: Iterator[bytes]) -> Entry:
        digest = hashlib.sha256()
        kept = bare.path in self._keep and size <= _KEPT_FILE_BYTES
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            begin = b""
            wanted = False
            for piece in content:
                if not begin:
                    begin = piece[:4]
                    wanted = begin == _ELF and bare.path.startswith(_ELF_BELOW)
                digest.update(piece)
                if wanted or kept:
                    spool.write(piece)
            spool.seek(0)
            return replace(
                bare,
                size=size,
                digest=digest.hexdigest(),
                inode=bare.path,
                is_elf=begin == _ELF,
                elf=_elf(spool) if wanted else None,
                content=spool.read() if kept and not wanted else None,
            )

    def _with_attributes(self, entry: Entry) -> Entry:
        owner = self._links.get(entry.inode) if entry.kind is Kind.FILE else None
        if owner is None:
            return entry
        return replace(entry, mode=owner.mode, uid=owner.uid, gid=owner.gid, capability=owner.capability)


def _within_limit(name: str) -> str:
    if len(name) > _MAX_PATH_BYTES:
        raise tar.TarError(f"a name has {len(name)} characters, more than Linux takes")
    return name


class _Metered:
    """A file with a limited number of reads and seeks, so that parsing a malformed ELF file ends."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _MAX_ELF_COST

    def __getattr__(self, name: str) -> Any:
        self._left -= _SEEK_COST if name == "seek" else 1
        if self._left < 0:
            raise ValueError("the file is read too often")
        return getattr(self._file, name)


def _elf(file: IO[bytes]) -> Elf | None:
    """Parses the program headers, since a stripped file may have no section headers."""
    needed: list[str] = []
    paths: dict[str, str] = {}
    program = dynamic = False
    try:
        elf: Any = ELFFile(_Metered(file))  # type: ignore[arg-type]
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
            package=_package_note(elf),
        )
    except Exception:  # noqa: BLE001 - pyelftools raises various errors for damaged files
        return None


def _package_note(elf: Any) -> str:
    """Reads the section, since a note that is added to a linked file is in no segment."""
    try:
        section = elf.get_section_by_name(".note.package")
        if section is None or section["sh_size"] > _MAX_NOTE_BYTES:
            return ""
        return next((note["n_descdata"].decode().rstrip("\0 ") for note in section.iter_notes()), "")
    except Exception:  # noqa: BLE001 - as in `_elf`; the loader reads no section headers
        return ""
