"""Layers with odd names and what a container has of them, for comparison with an engine and with our own reading."""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.archives import END, directory, hard_link, header, member, records, symlink, tar

BASE = tar(
    directory("usr"), directory("usr/bin"), member("usr/bin/a", b"a"), directory("lib"), symlink("bin", "usr/bin")
)
"""Below each of the `LAYERS`."""

BELOW = {"/usr/bin/a": "644", "/bin": "-> usr/bin"}
"""The files of `BASE`."""

USR = (directory("usr"), directory("usr/bin"))
SETUID = {"mode": b"0004755\0"}

# The layer, and the files that it adds (with their mode or target) or removes (None).
LAYERS: Mapping[str, tuple[bytes, Mapping[str, str | None]]] = {
    "absolute": (tar(member("/usr/bin/gcc", b"1")), {"/usr/bin/gcc": "644"}),
    "two slashes": (tar(member("//usr//bin/gcc", b"1")), {"/usr/bin/gcc": "644"}),
    "dots": (tar(member("./usr/./bin/../bin/gcc", b"1")), {"/usr/bin/gcc": "644"}),
    "above the root": (tar(member("none/../../../usr/bin/gcc", b"1")), {"/usr/bin/gcc": "644"}),
    "trailing slash": (tar(member("usr/bin/gcc/", b"1")), {"/usr/bin/gcc": "644"}),
    "not UTF-8": (tar(member("caf\udce9", b"1")), {"/caf\udce9": "644"}),
    "brace": (tar(member("{", b"1"), member("[x", b"2")), {"/{": "644", "/[x": "644"}),
    "long": (tar(member("d/" * 100 + "x" * 200, b"1")), {"/" + "d/" * 100 + "x" * 200: "644"}),
    "through a link of this layer": (
        tar(*USR, symlink("s", "/usr/bin"), member("s/gcc", b"1")),
        {"/s": "-> /usr/bin", "/usr/bin/gcc": "644"},
    ),
    "through a link with dots": (
        tar(directory("d"), directory("d/e"), symlink("s", "../d/e/.."), member("s/x", b"1")),
        {"/s": "-> ../d/e/..", "/d/x": "644"},
    ),
    "through a link of a lower layer": (tar(member("bin/gcc", b"1")), {"/bin": None, "/bin/gcc": "644"}),
    "a directory over a file": (tar(member("usr/bin/a/x", b"1")), {"/usr/bin/a": None, "/usr/bin/a/x": "644"}),
    "hard link to an absolute name": (
        tar(member("t", b"1"), hard_link("x", "//./t")),
        {"/t": "644", "/x": "644"},
    ),
    "hard link above the root": (tar(member("t", b"1"), hard_link("x", "../../t")), {"/t": "644", "/x": "644"}),
    "hard link through a link": (
        tar(directory("d"), member("d/t", b"1"), symlink("s", "d"), hard_link("x", "s/t")),
        {"/d/t": "644", "/s": "-> d", "/x": "644"},
    ),
    "hard link that changes the mode": (
        tar(member("t", b"1"), hard_link("x", "t", mode=0o4755)),
        {"/t": "4755", "/x": "4755"},
    ),
    "hard link to a link": (
        tar(member("t", b"1"), symlink("s", "t"), hard_link("x", "s")),
        {"/t": "644", "/s": "-> t", "/x": "-> t"},
    ),
    "whiteout with dots": (tar(member("lib/..//./usr/bin/.wh.a")), {"/usr/bin/a": None}),
    "whiteout of a directory's type": (tar(directory("usr/bin/.wh.a")), {"/usr/bin/a": None}),
    "whiteout and a new file": (
        tar(member("usr/bin/.wh.a"), member("usr/bin/a", b"1", mode=0o755)),
        {"/usr/bin/a": "755"},
    ),
    "whiteout through a link of this layer": (
        tar(*USR, symlink("s", "usr/bin"), member("s/.wh.a")),
        {"/s": "-> usr/bin", "/usr/bin/a": None},
    ),
    "whiteout through a link of a lower layer": (tar(member("bin/.wh.a")), {"/bin": None}),
    "below a whiteout's name": (tar(member("usr/bin/.wh.a/b", b"1")), {"/usr/bin/.wh.a/b": "644"}),
    "opaque": (
        tar(member("/usr/bin/n", b"1"), member("/usr/bin/.wh..wh..opq")),
        {"/usr/bin/a": None, "/usr/bin/n": "644"},
    ),
    "opaque root": (tar(member(".wh..wh..opq"), member("n", b"1")), {"/n": "644"}),
    "global header": (
        records(("path", b"usr/decoy"), kind=b"g") + header(b"usr/bin/gcc", b"1", **SETUID) + END,
        {"/usr/bin/gcc": "4755"},
    ),
    "two extended headers": (
        records(("path", b"usr/decoy")) + records(("mtime", b"1")) + header(b"usr/bin/gcc", b"1", **SETUID) + END,
        {"/usr/bin/gcc": "4755"},
    ),
    "extended header and a long name": (
        records(("path", b"usr/decoy"))
        + header(b"L", b"usr/bin/gcc\0", kind=b"L")
        + header(b"x", b"1", **SETUID)
        + END,
        {"/usr/bin/gcc": "4755"},
    ),
    "empty path in an extended header": (
        records(("path", b"")) + header(b"usr/bin/gcc", b"1", **SETUID) + END,
        {"/usr/bin/gcc": "4755"},
    ),
    "size in an extended header": (
        records(("size", b"1")) + header(b"x", b"1", size=b"00000000000\0") + header(b"gcc", b"1", **SETUID) + END,
        {"/x": "644", "/gcc": "4755"},
    ),
    "numbers after a null byte": (
        header(b"x", b"12345", size=b"\x000000000005\0", checksum=b"\0%06o\0") + header(b"gcc", b"1", **SETUID) + END,
        {"/x": "644", "/gcc": "4755"},
    ),
    "binary number": (
        header(b"x", b"1", size=b"\x80" + bytes(10) + b"\x01") + header(b"gcc", b"1", **SETUID) + END,
        {"/x": "644", "/gcc": "4755"},
    ),
    "directory with a prefix": (header(b"gcc", b"1", prefix=b"usr/bin") + END, {"/usr/bin/gcc": "644"}),
    "nothing after the end": (header(b"x", b"1") + END + header(b"y", b"1") + END, {"/x": "644"}),
    "no end": (header(b"x", b"1"), {"/x": "644"}),
}


def files(name: str) -> dict[str, str]:
    """Returns the files of a container with the layer `name` over `BASE`: their mode, or the target of a link."""
    return {path: text for path, text in {**BELOW, **LAYERS[name][1]}.items() if text is not None}
