from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence

import pytest

from base_images.contract import layers as archive
from base_images.contract.layers import Entry, Kind
from base_images.errors import EngineError

Member = tuple[tarfile.TarInfo, bytes]


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


def tar(*members: Member) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def manifest(config: str, layers: Sequence[str], diff_ids: Sequence[str]) -> tuple[Member, Member]:
    return (
        member(config, json.dumps({"rootfs": {"diff_ids": list(diff_ids)}}).encode()),
        member("manifest.json", json.dumps([{"Config": config, "Layers": list(layers)}]).encode()),
    )


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


def test_a_repeated_layer_that_docker_stores_as_a_link() -> None:
    ids = ["sha256:0", "sha256:0"]
    data = tar(
        member("one/layer.tar", tar(member("a", b"1"))),
        member("two/layer.tar", kind=tarfile.SYMTYPE, link="../one/layer.tar"),
        *manifest("config.json", ["one/layer.tar", "two/layer.tar"], ids),
    )
    assert [[entry.path for entry in layer] for layer in archive.read(pieces(data), diff_ids=ids)] == [["/a"], ["/a"]]


def test_an_empty_layer() -> None:
    assert read(bytes(1024)) == ((),)


def test_a_hard_link_shares_its_content_and_stores_nothing() -> None:
    (layer,) = read(tar(member("a", b"abc"), member("b", kind=tarfile.LNKTYPE, link="a")))
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
    def link(name: str, target: str) -> Member:
        return member(name, kind=tarfile.SYMTYPE, link=target)

    files = merged(
        tar(
            directory("usr"),
            directory("usr/bin"),
            member("usr/bin/dash", b"1"),
            link("usr/bin/sh", "dash"),
            link("bin", "usr/bin"),
            link("etc-sh", "/bin/../bin/sh"),
            link("loop", "loop"),
            link("nowhere", "/no/where"),
        )
    )
    for path in ("/bin/sh", "/etc-sh", "/usr/bin/dash", "/usr/../bin/./sh"):
        found = archive.resolve(files, path)
        assert found is not None
        assert found.path == "/usr/bin/dash"
    assert archive.resolve(files, "/loop") is None
    assert archive.resolve(files, "/nowhere") is None


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
