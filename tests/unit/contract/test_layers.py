from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import posixpath
import struct
from collections.abc import Iterator, Sequence

import pytest

from base_images.contract import layers as archive
from base_images.contract.layers import Entry, Kind
from base_images.errors import EngineError
from tests.support import mutations, odd_layers
from tests.support.archives import END, directory, hard_link, header, manifest, member, records, symlink, tar


def docker_archive(*layers: bytes) -> bytes:
    """Writes the archive of Docker 20.10: layers in any order, the manifest last."""
    ids = [f"sha256:{number}" for number in range(len(layers))]
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    stored = [member(name, layer) for name, layer in zip(names, layers, strict=True)]
    return tar(*reversed(stored), *manifest("config.json", names, ids))


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def read(*layers: bytes, keep: Sequence[str] = ()) -> tuple[archive.Layer, ...]:
    ids = [f"sha256:{number}" for number in range(len(layers))]
    return archive.read(pieces(docker_archive(*layers)), diff_ids=ids, keep=keep)


def merged(*layers: bytes) -> dict[str, Entry]:
    return archive.merge(read(*layers))


def elf(*, needed: Sequence[str] = (), runpath: str | None = None, rpath: str | None = None) -> bytes:
    """Returns a shared library with program headers only: one LOAD segment and one DYNAMIC segment."""
    strings = b"\0"
    tags = []
    for tag, value in [*((1, name) for name in needed), (29, runpath), (15, rpath)]:
        if value is not None:
            tags.append((tag, len(strings)))
            strings += value.encode() + b"\0"
    headers = 64 + 2 * 56
    tags += [(5, headers), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack("<qQ", *tag) for tag in tags)
    start = headers + len(strings)
    total = start + len(dynamic)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, total, total, 4096)
    segment = struct.pack("<IIQQQQQQ", 2, 6, start, start, start, len(dynamic), len(dynamic), 8)
    return ident + header + load + segment + strings + dynamic


def test_files_have_owner_mode_size_and_digest() -> None:
    (layer,) = read(tar(directory("app"), member("app/x", b"abc", mode=0o4755, uid=7)))
    assert [entry.path for entry in layer] == ["/app", "/app/x"]
    assert (layer[1].uid, layer[1].mode, layer[1].size, layer[1].stored) == (7, 0o4755, 3, 3)
    assert layer[1].digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert not layer[1].is_elf


def test_layers_are_in_the_order_of_the_manifest() -> None:
    layers = read(tar(member("a")), tar(member("b")), tar(member("c")))
    assert [(entry.path, entry.layer) for layer in layers for entry in layer] == [("/a", 0), ("/b", 1), ("/c", 2)]


def test_oci_layout_with_a_compressed_layer_and_another_image() -> None:
    compressed = gzip.compress(tar(member("a", b"1")))
    config = member("blobs/sha256/cc", json.dumps({"rootfs": {"diff_ids": ["sha256:1"]}}).encode())
    other = member("blobs/sha256/dd", json.dumps({"rootfs": {"diff_ids": ["sha256:2"]}}).encode())
    images = [
        {"Config": "blobs/sha256/dd", "Layers": ["blobs/sha256/bb"]},
        {"Config": "blobs/sha256/cc", "Layers": ["blobs/sha256/aa"]},
    ]
    data = tar(
        directory("blobs/sha256"),
        member("blobs/sha256/aa", compressed),
        member("blobs/sha256/bb", tar(member("b"))),
        config,
        other,
        member("index.json", b"{}"),
        member("manifest.json", json.dumps(images).encode()),
        member("oci-layout", b"{}"),
    )
    (layer,) = archive.read(pieces(data), diff_ids=["sha256:1"])
    assert [entry.path for entry in layer] == ["/a"]


def test_a_registry_stores_layers_compressed() -> None:
    plain, packed = tar(member("a", bytes(100_000))), gzip.compress(tar(member("b", b"1")), mtime=0)
    ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in (plain, gzip.decompress(packed))]
    data = docker_archive(plain, packed, tar(member("of the base")))
    sizes = archive.compressed_sizes(pieces(data), ids)
    assert list(sizes) == list(reversed(ids)), "not the layer that was not asked for"
    assert sizes[ids[0]] == pytest.approx(len(gzip.compress(plain, 6)), abs=20)
    assert sizes[ids[1]] == len(packed)
    with pytest.raises(EngineError, match="did not send an image's archive"):
        archive.compressed_sizes(pieces(b"<html>" * 1000), ids)


def test_a_repeated_layer_that_docker_stores_as_a_link() -> None:
    ids = ["sha256:0", "sha256:0"]
    data = tar(
        member("one/layer.tar", tar(member("a", b"1"))),
        symlink("two/layer.tar", "../one/layer.tar"),
        *manifest("config.json", ["one/layer.tar", "two/layer.tar"], ids),
    )
    assert [[entry.path for entry in layer] for layer in archive.read(pieces(data), diff_ids=ids)] == [["/a"], ["/a"]]


def test_an_empty_layer() -> None:
    assert read(bytes(1024)) == ((),)


def test_a_hard_link_shares_its_content_and_stores_nothing() -> None:
    (layer,) = read(tar(member("a", b"abc"), hard_link("b", "a")))
    assert (layer[1].kind, layer[1].size, layer[1].digest) == (Kind.FILE, 3, layer[0].digest)
    assert layer[1].inode == layer[0].inode == "/a"
    assert (layer[0].stored, layer[1].stored) == (3, 0)


def test_only_requested_content_is_kept() -> None:
    (layer,) = read(tar(member("a", b"abc"), member("b", b"abc"), member("c", bytes(2 << 20))), keep=["/a", "/c"])
    assert [entry.content for entry in layer] == [b"abc", None, None]


def test_file_capabilities_are_detected() -> None:
    pax = {"SCHILY.xattr.security.capability": "\x01\x02"}
    (layer,) = read(tar(member("ping", b"x", pax=pax), member("pong", b"x")))
    assert [entry.capability for entry in layer] == [True, False]


def test_elf_files_are_parsed_below_the_requested_directory() -> None:
    library = elf(needed=["libllama.so.0", "libc.so.6"], runpath="$ORIGIN")
    (layer,) = read(tar(member("app/lib.so", library), member("usr/lib.so", library)))
    inside, outside = layer
    assert inside.elf == archive.Elf(
        machine="EM_X86_64",
        program=False,
        dynamic=True,
        needed=("libllama.so.0", "libc.so.6"),
        runpath="$ORIGIN",
        rpath=None,
    )
    assert (outside.is_elf, outside.elf) == (True, None)


def test_rpath_and_runpath_are_distinguished() -> None:
    (layer,) = read(tar(member("app/a", elf(rpath="/build")), member("app/b", elf())))
    assert [(entry.elf.runpath, entry.elf.rpath) for entry in layer if entry.elf] == [(None, "/build"), (None, None)]


@pytest.mark.parametrize(
    "content", [b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(9), elf(needed=["x"])[:150], elf()[:64] + b"\xff" * 200]
)
def test_a_damaged_elf_file_does_not_crash(content: bytes) -> None:
    (layer,) = read(tar(member("app/lib.so", content)))
    assert layer[0].is_elf
    assert layer[0].elf is None or layer[0].elf.needed == ()


def test_later_layers_replace_and_whiteouts_remove() -> None:
    below = tar(directory("d"), member("d/a", b"1"), member("d/b", b"1"), directory("e"), member("e/x", b"1"))
    above = tar(member("d/a", b"2"), member("d/.wh.b"), member(".wh.e"))
    files = merged(below, above)
    assert set(files) == {"/d", "/d/a"}
    assert files["/d/a"].layer == 1


def test_an_opaque_directory_hides_lower_layers_but_not_its_own_files() -> None:
    below = tar(directory("d"), member("d/a"), directory("d/s"), member("d/s/b"), member("dd"))
    above = tar(directory("d"), member("d/.wh..wh..opq"), member("d/new"))
    assert set(merged(below, above)) == {"/d", "/d/new", "/dd"}


def test_a_file_replaces_a_directory() -> None:
    assert set(merged(tar(directory("d"), member("d/a")), tar(member("d", b"1")))) == {"/d"}


def test_resolve_follows_links() -> None:
    files = merged(
        tar(
            directory("usr"),
            directory("usr/bin"),
            member("usr/bin/dash", b"1"),
            symlink("usr/bin/sh", "dash"),
            symlink("bin", "usr/bin"),
            symlink("etc-sh", "/bin/../bin/sh"),
            symlink("loop", "loop"),
            symlink("nowhere", "/no/where"),
        )
    )
    for path in ("/bin/sh", "/etc-sh", "/usr/bin/dash", "/usr/../bin/./sh"):
        found = archive.resolve(files, path)
        assert found is not None
        assert found.path == "/usr/bin/dash"
    assert archive.resolve(files, "/loop") is None
    assert archive.resolve(files, "/nowhere") is None


@pytest.mark.parametrize("name", odd_layers.LAYERS)
def test_odd_names_are_read_as_engines_extract_them(name: str) -> None:
    entries = merged(odd_layers.BASE, odd_layers.LAYERS[name][0])
    found = {
        path: f"-> {entry.target}" if entry.kind is Kind.SYMLINK else f"{entry.mode:o}"
        for path, entry in entries.items()
        if entry.kind is not Kind.DIRECTORY
    }
    assert found == odd_layers.files(name)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (header(b"a", b"1", checksum=b"%06o1 ") + header(b"gcc", b"1") + END, "checksum is wrong"),
        (header(b"a", b"1") + bytes(512) + header(b"gcc", b"1") + END, "a header is empty"),
        (header(b"a", b"1" * 600)[:700], "ends within a file"),
        (header(b"a", b"1") + header(b"b")[:300], "ends within a header"),
        (header(b"a", b"1", size=b"0000000000x\0") + END, "a number is malformed"),
        (header(b"a", b"1", size=b"\xff" * 12) + END, "a number is negative"),
        (records(("size", b"-1")) + header(b"a", b"1") + END, "a number is malformed"),
        (records(("path", b"gcc\0x")) + header(b"a", b"1") + END, "a name has a null byte"),
        (header(b"x", b"+17 path=bin/gcc\n", kind=b"x") + header(b"a", b"1") + END, "header is malformed"),
        (header(b"x", b"99 path=bin/gcc\n", kind=b"x") + header(b"a", b"1") + END, "header is malformed"),
        (header(b"x", b"x" * (2 << 20), kind=b"x") + END, "larger than 1 MiB"),
        (records(("GNU.sparse.name", b"decoy")) + header(b"gcc", b"1") + END, "stored as sparse"),
        (header(b"gcc", b"1", magic=b"ustar  \0", prefix=b"14763520000") + END, "access times"),
        (header(b"gcc", b"1", kind=b"S") + END, "has the type 'S'"),
        (tar(symlink("s", "t"), symlink("t", "s"), member("s/x")), "/s leads through more than 40 symbolic links"),
        (tar(member("a/" * 2100)), "a name has 420"),
        (tar(directory("d"), member("d/x"), member("d", b"1")), "/d is a directory and something else"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_engines_refuse_or_read_differently_is_an_error(layer: bytes, reason: str) -> None:
    with pytest.raises(EngineError, match=f"The layer 0/layer.tar cannot be read.*{reason}"):
        read(layer)


def test_a_layer_of_several_gzip_members_is_read_to_its_end() -> None:
    first, second = header(b"a", b"1"), header(b"usr/bin/gcc", b"1") + END
    assert set(merged(gzip.compress(first) + gzip.compress(second))) == {"/a", "/usr/bin/gcc"}


@pytest.mark.parametrize("config", [{}, {"rootfs": None}, {"rootfs": {"diff_ids": 5}}, [], [[[]]], "x", None])
def test_an_odd_configuration_is_an_error(config: object) -> None:
    stored = [member("c", json.dumps(config).encode()), member("0/layer.tar", tar(member("a")))]
    data = tar(*stored, member("manifest.json", json.dumps([{"Config": "c", "Layers": ["0/layer.tar"]}]).encode()))
    with pytest.raises(EngineError, match="does not hold the image"):
        archive.read(pieces(data), diff_ids=["sha256:0"])


def test_deeply_nested_json_beside_the_layers_is_ignored() -> None:
    stored = [member("deep", b"[" * 100_000), member("0/layer.tar", tar(member("a")))]
    data = tar(*stored, *manifest("config.json", ["0/layer.tar"], ["sha256:0"]))
    (layer,) = archive.read(pieces(data), diff_ids=["sha256:0"])
    assert [entry.path for entry in layer] == ["/a"]


def test_an_elf_file_with_65534_tables_is_damaged() -> None:
    library = bytearray(elf(needed=["x"] * 1000))
    library[32:40] = struct.pack("<Q", len(library))
    library[56:58] = struct.pack("<H", 0xFFFE)
    load, dynamic = library[64:120], library[120:176]
    (layer,) = read(tar(member("app/lib.so", bytes(library + load + dynamic * 0xFFFD))))
    assert (layer[0].is_elf, layer[0].elf) == (True, None)


def test_mutated_layers_and_images_end_with_a_result_or_an_error() -> None:
    layers = [layer for layer, _ in odd_layers.LAYERS.values()]
    archives = [docker_archive(odd_layers.BASE, layer) for layer in mutations.of_bytes(layers, 300)]
    archives += mutations.of_bytes([docker_archive(odd_layers.BASE, layer) for layer in layers], 300)
    for data in archives:
        with contextlib.suppress(EngineError):
            files = archive.merge(archive.read(pieces(data), diff_ids=["sha256:0", "sha256:1"]))
            assert all(path == posixpath.normpath(path) and path.startswith("/") for path in files)


@pytest.mark.parametrize(
    ("data", "diff_ids", "reason"),
    [
        (b"<html>" * 1000, ["sha256:0"], "did not send an image's archive"),
        (b"", ["sha256:0"], "did not send an image's archive"),
        (docker_archive(tar(member("a"))), ["sha256:9"], "does not hold the image"),
        (docker_archive(b"\x28\xb5\x2f\xfd" + bytes(2000)), ["sha256:0"], "cannot be read"),
        (docker_archive(gzip.compress(tar(member("a", bytes(range(256)) * 90)))[:150]), ["sha256:0"], "cannot be read"),
        (tar(*manifest("config.json", ["x/layer.tar"], ["sha256:0"])), ["sha256:0"], "lacks the layer"),
    ],
    ids=["not tar", "nothing", "another image", "zstd", "cut gzip", "no layer"],
)
def test_an_unreadable_archive_is_an_error(data: bytes, diff_ids: list[str], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        archive.read(pieces(data), diff_ids=diff_ids)
