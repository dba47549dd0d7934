from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from base_images.adapters.container import ProbeResult
from base_images.contract import judge, rows_contents
from base_images.contract import layers as archive
from base_images.contract.facts import ImageFacts, Places, Server, Shell, Start, Stop
from base_images.contract.judge import RowResult
from base_images.contract.layers import Elf, Entry, Kind
from base_images.contract.rows_behaviour import CPU_BACKENDS
from base_images.contract.sizes import Before
from base_images.contract.verdict import Status
from base_images.labels import Label
from base_images.recipes.consumer import Answer, Refused
from base_images.variants import Platform, find
from tests.support import images

BIN = "/app/bin/x86_64-unknown-linux-gnu"
HOME = f"{BIN}/cpu"
CUDA = f"{BIN}/cuda"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIN = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
ENTRYPOINT, HEALTH = "/usr/local/bin/llama-entrypoint", "/usr/local/bin/llama-healthcheck"

VERSION: dict[str, Any] = {
    "version": "2508201420-0123456",
    "commit": COMMIT,
    "timestamp": "2508201420",
    "variant": "cpu",
    "branch": "main",
    "variants": ["cpu"],
    "platform": "linux/amd64",
    "llama_cpp": {"tag": "b11312", "commit": PIN},
    "toolkit": {},
    "glibc": "2.41",
}
LABELS = {
    **{label.value: "any text" for label in Label if label is not Label.LLAMA_CPP_RELEASE},
    Label.VERSION.value: "2508201420-0123456",
    Label.REVISION.value: COMMIT,
    Label.CREATED.value: "2025-08-20T14:20:00Z",
    Label.BASE_DIGEST.value: f"sha256:{'1' * 64}",
    Label.PLATFORM.value: "linux/amd64",
    Label.BUILD_TIMESTAMP.value: "2508201420",
    Label.BUILD_BRANCH.value: "main",
    Label.LLAMA_CPP_TAG.value: "b11312",
    Label.LLAMA_CPP_COMMIT.value: PIN,
}


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path=path, kind=Kind.DIRECTORY, mode=mode, uid=0, gid=0)


def file(path: str, content: bytes = b"x", mode: int = 0o644, size: int | None = None) -> Entry:
    stored = len(content) if size is None else size
    return Entry(
        path=path, kind=Kind.FILE, mode=mode, uid=0, gid=0, size=stored, digest=path, inode=path, content=content
    )


def link(path: str, target: str) -> Entry:
    return Entry(path=path, kind=Kind.SYMLINK, mode=0o777, uid=0, gid=0, target=target)


def elf(path: str, *needed: str, program: bool = False) -> Entry:
    dynamic = Elf(
        machine="EM_X86_64", program=program, dynamic=True, needed=(*needed, "libc.so.6"), runpath="$ORIGIN", rpath=None
    )
    return replace(file(path, mode=0o755, size=100_000), is_elf=True, elf=dynamic)


def server_program(path: str) -> Entry:
    entry = elf(path, "libllama.so.0", program=True)
    assert entry.elf
    return replace(entry, elf=replace(entry.elf, package='{"name": "llama.cpp", "version": "b11312"}'))


BASE = [
    *(directory(path) for path in ("/etc", "/usr", "/usr/bin", "/usr/lib", "/app")),
    directory("/tmp", 0o1777),
    file("/usr/lib/libc.so.6"),
    file("/usr/bin/su", mode=0o4755),
    file("/bin/sh", mode=0o755),
    file("/etc/ssl/certs/ca-certificates.crt"),
]


def top(name: str = "cpu", /, *extra: Entry, **version: Any) -> list[Entry]:
    """Returns the layer on the base; a variant with a second directory has hard links in it."""
    home = f"{BIN}/{name}"
    own = [
        directory(home),
        server_program(f"{home}/llama-server"),
        elf(f"{home}/libllama.so.0.5.0"),
        link(f"{home}/libllama.so.0", "libllama.so.0.5.0"),
        *(elf(f"{home}/libggml-cpu-{kind}.so") for kind in CPU_BACKENDS[Platform.AMD64]),
    ]
    links = [replace(entry, path=entry.path.replace(home, HOME)) for entry in own if home != HOME]
    return [
        directory("/app/bin"),
        directory(BIN),
        *own,
        *links,
        *extra,
        file("/app/version.json", json.dumps({**VERSION, **version}).encode()),
        file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nllama:x:999:999::/home/llama:/bin/sh\n"),
        file("/etc/group", b"root:x:0:\nllama:x:999:\n"),
        file(ENTRYPOINT, mode=0o755),
        file(HEALTH, mode=0o755),
        *(file(f"/usr/share/doc/llama.cpp/{name}") for name in ("LICENSE", "NOTICES", "vendor/cpp-httplib/LICENSE")),
    ]


TOP = top()


def result(stdout: str = "", exit_code: int = 0) -> ProbeResult:
    return ProbeResult(exit_code=exit_code, stdout=stdout, stderr="", seconds=0.1)


def good_server(home: str = HOME) -> Server:
    backends = (f"{home}/libggml-cpu-zen4.so",)
    return Server(
        path=f"{home}/llama-server",
        version=result(f"version: 0.5.0-dev (build 11312, commit {PIN[:9]})\nbuilt with GNU"),
        start=Start(ready=True, log="ok", backends=backends, health=result(), exit_code=0, stop_seconds=0.2),
        copied=result(),
    )


SERVER = good_server()
ANSWER = Answer(directory="cpu", arguments=("--jinja", "--threads", "4", "--no-mmap"), refused=())
REFUSED = Refused(argument="--no-mmap", sentence="error: invalid argument: --no-mmap")
FLASH = Refused(argument="--flash-attn", sentence='error while handling argument "--flash-attn": error: unknown value')


def answering(variant: str = "cpu", **changes: Any) -> ImageFacts:
    return replace(GOOD, variant=find(variant), answers=(replace(ANSWER, directory=variant, **changes),))


def refusing(*refused: Refused, variant: str = "cpu") -> ImageFacts:
    return answering(variant, arguments=("--flash-attn", "--no-mmap"), refused=refused)


LDD = {entry.path: "\tlibc.so.6 => /usr/lib/libc.so.6 (0x1)\n" for entry in TOP if entry.is_elf}
PLACES = Places(user="54321:0", result=result())
STOP = Stop(phase="while it loads a model", reached=True, exit_code=143, seconds=0.2, log="loading")
SHELL = Shell(
    runs=result(),
    version_json=result("{}"),
    curl=result("curl 8"),
    missing_tools=(),
    glibc="2.41",
    ldd=LDD,
    health=result(),
)


def with_layers(facts: ImageFacts, *layers: list[Entry]) -> ImageFacts:
    numbered = tuple(tuple(replace(entry, layer=number) for entry in layer) for number, layer in enumerate(layers))
    return replace(facts, layers=numbered, files=archive.merge(numbered))


def good(name: str = "cpu", *backends: str, glibc: str = "2.41") -> ImageFacts:
    """Returns a good image of a variant; all but cpu have a second directory, for the processor."""
    variant, variants = find(name), list(dict.fromkeys((name, "cpu")))
    labels = {
        **LABELS,
        Label.VARIANT.value: name,
        Label.VARIANTS.value: ",".join(variants),
        Label.REF_NAME.value: f"{name}-{VERSION['version']}",
        Label.GLIBC.value: glibc,
    }
    facts = ImageFacts(
        reference="image",
        image=images.image(labels=labels, user="999:999", entrypoint=(ENTRYPOINT,), healthcheck=(HEALTH,)),
        variant=variant,
        asked=None,
        platform=Platform.AMD64,
        layers=(),
        files={},
        base_layers=1,
        base="the base is ubuntu:24.04",
        servers=tuple(good_server(f"{BIN}/{directory}") for directory in variants),
        answers=(ANSWER,),
        shell=replace(SHELL, glibc=glibc),
        shell_error="",
        places=(PLACES,),
        stops=(STOP,),
    )
    extra = [elf(f"{BIN}/{name}/{backend}", *variant.host_libraries) for backend in backends]
    return with_layers(facts, BASE, top(name, *extra, variant=name, variants=variants, glibc=glibc))


GOOD = good()
CUDA_IMAGE = good("cuda", "libggml-cuda.so")


def adding(*entries: Entry) -> ImageFacts:
    return with_layers(GOOD, BASE, [*TOP, *entries])


def compared(facts: ImageFacts) -> ImageFacts:
    return replace(facts, before=Before(name="latest-cpu (1)", sizes=GOOD.sizes))


def without(path: str, *instead: Entry) -> ImageFacts:
    assert any(entry.path == path for entry in TOP)
    return with_layers(GOOD, BASE, [*(entry for entry in TOP if entry.path != path), *instead])


def changing(path: str, **changes: Any) -> ImageFacts:
    """Returns the good image with a changed entry at `path`."""
    return without(path, replace(GOOD.files[path], **changes))


def image(**changes: Any) -> ImageFacts:
    return replace(GOOD, image=replace(GOOD.image, **changes))


def label(label: Label, value: str | None) -> ImageFacts:
    others = {name: old for name, old in GOOD.image.labels.items() if name != label}
    return image(labels=others if value is None else {**others, label.value: value})


RELEASED = {"tag": "b11312", "commit": PIN, "release": "v0.6.0"}


def released(label: str = "v0.6.0", suffix: str = "") -> ImageFacts:
    """Returns an image of llama.cpp's v0.6.0 with this label, whose server adds a suffix to its version."""
    labels = {**GOOD.image.labels, Label.LLAMA_CPP_RELEASE.value: label}
    said = result(f"version: 0.6.0{suffix} (build 11312, commit {PIN[:9]})")
    made = replace(version(llama_cpp=RELEASED), servers=(replace(SERVER, version=said),))
    return replace(made, image=replace(GOOD.image, labels=labels))


def version(**changes: Any) -> ImageFacts:
    return with_layers(GOOD, BASE, top("cpu", **changes))


def shell(**changes: Any) -> ImageFacts:
    return replace(GOOD, shell=replace(SHELL, **changes))


def server(**changes: Any) -> ImageFacts:
    return replace(GOOD, servers=(replace(SERVER, **changes),))


def started(**changes: Any) -> ImageFacts:
    return server(start=replace(SERVER.start, **changes))


def writing(stdout: str, exit_code: int = 0) -> ImageFacts:
    return replace(GOOD, places=(replace(PLACES, result=result(stdout, exit_code)),))


def stopped(**changes: Any) -> ImageFacts:
    return replace(GOOD, stops=(replace(STOP, **changes),))


def ldd(path: str, output: str) -> ImageFacts:
    return shell(ldd={**LDD, path: output})


def with_group(*lines: str, user: str = "999") -> ImageFacts:
    """Returns the good image with these groups; the user is in the first."""
    gid = lines[0].split(":")[2]
    content = {"/etc/group": "\n".join(lines).encode(), "/etc/passwd": f"llama:x:999:{gid}::/:/bin/sh\n".encode()}
    top = [replace(entry, content=content.get(entry.path, entry.content)) for entry in TOP]
    return replace(with_layers(GOOD, BASE, top), image=replace(GOOD.image, user=user))


def linked(path: str, **changes: Any) -> ImageFacts:
    old = GOOD.files[path].elf
    assert old is not None
    return changing(path, elf=replace(old, **changes))


def row(facts: ImageFacts, number: int) -> RowResult:
    return judge.judge(facts)[number - 1]


def test_a_good_image_passes_all_rows_in_order() -> None:
    rows = judge.judge(GOOD)
    assert [row.number for row in rows] == list(range(1, 22))
    assert [(row.number, row.findings) for row in rows if row.status is not Status.PASS] == []


ELF = f"{HOME}/libllama.so.0.5.0"
LICENSES = "/usr/share/doc/llama.cpp"

DEFECTS: list[tuple[int, str, Callable[[], ImageFacts]]] = [
    (1, "There is no .*/cpu/llama-server", lambda: without(SERVER.path)),
    (1, "cannot be executed by all: .* has mode 0750", lambda: changing(SERVER.path, mode=0o750)),
    (1, "cannot be executed by all: /app/bin has mode 0700", lambda: changing("/app/bin", mode=0o700)),
    (1, "is built for EM_AARCH64, but the image says linux/amd64", lambda: linked(SERVER.path, machine="EM_AARCH64")),
    (1, "is not an ELF program", lambda: changing(SERVER.path, is_elf=False, elf=None)),
    (1, "tells the variant", lambda: replace(GOOD, variant=None)),
    (1, "is for riscv64", lambda: replace(GOOD, platform=None, image=replace(GOOD.image, architecture="riscv64"))),
    (2, r"RUNPATH '/app/build/bin:' instead of RUNPATH '\$ORIGIN'", lambda: linked(ELF, runpath="/app/build/bin:")),
    (2, "No RUNPATH instead", lambda: linked(ELF, runpath=None)),
    (2, "RPATH '/build' instead", lambda: linked(ELF, rpath="/build")),
    (2, "libllama.so.0 is not found, needed by .*llama-server", lambda: without(f"{HOME}/libllama.so.0")),
    (2, "libz.so.1 is not found", lambda: ldd(ELF, "\tlibz.so.1 => not found\n")),
    (2, "unresolved symbols: llama_x", lambda: ldd(ELF, f"undefined symbol: llama_x\t({ELF})\n")),
    (2, "another version", lambda: ldd(ELF, f"{ELF}: /lib/libc.so.6: version `GLIBC_2.99' not found (needed)\n")),
    (2, "no working ldd", lambda: shell(ldd=None)),
    (2, "Not readable as ELF", lambda: changing(ELF, elf=None)),
    (2, "There is no llama-server", lambda: with_layers(GOOD, BASE)),
    (3, "does not start: boom", lambda: server(copied=result("boom", 127))),
    (3, "cannot run a shell", lambda: server(copied=None)),
    (4, "no user 'llama'", lambda: changing("/etc/passwd", content=b"root:x:0:0::/root:/bin/sh\n")),
    (4, "is 1000 and not 999", lambda: changing("/etc/passwd", content=b"llama:x:1000:1000::/:/bin/sh\n")),
    (4, "no group 'llama'", lambda: changing("/etc/group", content=b"")),
    (4, "The group 'llama' is 5", lambda: changing("/etc/group", content=b"llama:x:5:\n")),
    (4, "The group 'llama' is 998 and not 999, which is free", lambda: with_group("llama:x:998:")),
    (4, "in the group 999 and not in llama, 998", lambda: changing("/etc/group", content=b"llama:x:998:\na:x:999:\n")),
    (4, "runs as 'root'", lambda: image(user="")),
    (4, "runs as '0'", lambda: image(user="0")),
    (4, "runs as '999:0'", lambda: image(user="999:0")),
    (4, "Not owned by root: .*libllama", lambda: changing(ELF, uid=999)),
    (4, "Writable by others", lambda: changing(ELF, mode=0o775)),
    (4, "There is no /app/bin", lambda: with_layers(GOOD, BASE)),
    (5, "There is no directory /app", lambda: with_layers(GOOD, [entry for entry in BASE if entry.path != "/app"])),
    (5, "WORKDIR is /", lambda: image(working_directory="/")),
    (5, "There is no /app/version.json", lambda: without("/app/version.json")),
    (5, "cannot be read by all", lambda: changing("/app/version.json", mode=0o600)),
    (5, "user cannot read", lambda: shell(version_json=result("Permission denied", 1))),
    (6, "not valid JSON", lambda: changing("/app/version.json", content=b"{'a': 1}")),
    (6, "not valid JSON", lambda: changing("/app/version.json", content=b"\xff\xfe")),
    (6, "not a JSON object", lambda: changing("/app/version.json", content=b"[]")),
    (6, "There is no", lambda: without("/app/version.json")),
    (6, "no text at 'branch'", lambda: version(branch="")),
    (6, "no text at 'glibc'", lambda: version(glibc=None)),
    (6, "is not a version", lambda: version(version="202508201420-0123456")),
    (6, "not the one of its version", lambda: version(commit="f" * 40)),
    (6, "not a full commit hash", lambda: version(commit="0123456")),
    (6, "timestamp '1755699600'", lambda: version(timestamp="1755699600")),
    (6, "the image is 'cpu'", lambda: version(variant="cuda")),
    (6, "variants are 'cpu'", lambda: version(variants="cpu")),
    (6, "the image is for linux/amd64", lambda: version(platform="linux/arm64")),
    (6, "'master' as its tag", lambda: version(llama_cpp={"tag": "master", "commit": PIN})),
    (6, "None as its commit", lambda: version(llama_cpp={"tag": "b1"})),
    (6, "None as its tag", lambda: version(llama_cpp="b11312")),
    (6, "'0.6.0' as its release: without one", lambda: version(llama_cpp={**RELEASED, "release": "0.6.0"})),
    (6, "'' as its release", lambda: version(llama_cpp={**RELEASED, "release": ""})),
    (6, "toolkit is", lambda: version(toolkit={"cuda": ""})),
    (7, "Missing labels: .*licenses", lambda: label(Label.LICENSES, None)),
    (7, "title is empty", lambda: label(Label.TITLE, " ")),
    (7, "RFC 3339", lambda: label(Label.CREATED, "1755699600")),
    (7, "RFC 3339", lambda: label(Label.CREATED, "2025-13-20T14:20:00Z")),
    (7, "is not a digest", lambda: label(Label.BASE_DIGEST, "sha256:12")),
    (7, "branch is 'x', but version.json says 'main'", lambda: label(Label.BUILD_BRANCH, "x")),
    (7, "variants is 'cuda,cpu', but", lambda: label(Label.VARIANTS, "cuda,cpu")),
    (7, "ref.name is 'cpu'", lambda: label(Label.REF_NAME, "cpu")),
    (7, "commit is '0+', but version.json", lambda: label(Label.LLAMA_CPP_COMMIT, "0" * 40)),
    (7, "release is there, but version.json's", lambda: label(Label.LLAMA_CPP_RELEASE, "v0.6.0")),
    (7, r"llama_cpp\.release, which .* is missing", lambda: version(llama_cpp=RELEASED)),
    (7, "'v0.5.0', but version.json says 'v0.6.0'", lambda: released(label="v0.5.0")),
    (7, "bodhi.toolkit.cuda, which", lambda: version(toolkit={"cuda": "12.8.1"})),
    (7, "'cuda' was asked for", lambda: replace(GOOD, asked=find("cuda"))),
    (8, "no POSIX shell", lambda: shell(runs=result("", 127))),
    (8, "Of coreutils mv is missing", lambda: shell(missing_tools=("mv",))),
    (8, "curl does not run: not there", lambda: shell(curl=result("not there", 127))),
    (8, "cannot run sleep: no such file", lambda: replace(GOOD, shell=None, shell_error="no such file")),
    (8, "no CA certificates", lambda: with_layers(GOOD, BASE[:-1], TOP)),
    (8, "entrypoint's program .* is not in", lambda: without(ENTRYPOINT)),
    (8, "health check's program .* is not in", lambda: without(HEALTH)),
    (8, "health check's program .* cannot be executed", lambda: changing(HEALTH, mode=0o644)),
    (8, "has no health check", lambda: image(healthcheck=())),
    (8, "does not follow", lambda: started(health=result("connection refused", 1))),
    (8, "first process is another program", lambda: shell(health=result("", 1))),
    (9, "Another program of llama.cpp in the image: /usr/bin/llama-cli", lambda: adding(elf("/usr/bin/llama-cli"))),
    (9, "body of another", lambda: adding(elf(f"{HOME}/libllama-cli-impl.so"))),
    (9, "Another program beside", lambda: adding(elf(f"{HOME}/test-backend-ops", program=True))),
    (9, "A script", lambda: adding(file("/app/convert_hf_to_gguf.py"))),
    (9, "build tool .*: /usr/bin/x86_64-linux-gnu-g", lambda: adding(file("/usr/bin/x86_64-linux-gnu-g++-14"))),
    (9, "A build tool in the image: /usr/bin/cmake", lambda: adding(file("/usr/bin/cmake"))),
    (9, "A build tool", lambda: adding(link("/usr/local/bin/node", "/opt/node"))),
    (9, "A package list", lambda: adding(file("/var/lib/apt/lists/deb_Packages"))),
    (9, "A git repo", lambda: adding(directory("/app/.git"))),
    (9, "Source code", lambda: adding(file("/app/CMakeLists.txt"), file("/app/src/llama.cpp"))),
    (10, "Setuid .*: /usr/bin/x", lambda: adding(file("/usr/bin/x", mode=0o4755))),
    (10, "Setuid .*: /usr/bin/su", lambda: adding(file("/usr/bin/su", mode=0o6755))),
    (10, "File capabilities .*: /usr/bin/ping", lambda: adding(replace(file("/usr/bin/ping"), capability=True))),
    (10, r"Setuid .*: /usr/bin/caf\\xe9", lambda: adding(file("/usr/bin/caf\udce9", mode=0o4755))),
    (10, "Files that everyone may write: /etc/x", lambda: adding(file("/etc/x", mode=0o666))),
    (10, "Directories .*: /var/x", lambda: adding(directory("/var/x", 0o777))),
    (11, "did not start to listen, exit code 127: boom", lambda: started(ready=False, exit_code=127, log="a\nboom\n")),
    (12, "Layer 3 of 3 stores again .* 100000 bytes: .*libllama", lambda: with_layers(GOOD, BASE, TOP, [elf(ELF)])),
    (12, "stored 2 times", lambda: adding(replace(elf(f"{HOME}/copy.so"), digest=ELF))),
    (13, "reports build 1, but", lambda: server(version=result(f"version: 1.0 (build 1, commit {PIN[:9]})"))),
    (13, "reports commit abcdef0, but", lambda: server(version=result("version: 1.0 (build 11312, commit abcdef0)"))),
    (13, "reports commit unknown", lambda: server(version=result("version: 1.0 (build 11312, commit unknown)"))),
    (13, "names no build", lambda: server(version=result("boom", 127))),
    (13, r"does not report the version 0\.6\.0 that .*: version: 0\.6\.0-dev", lambda: released(suffix="-dev")),
    (13, "do not say what was built", lambda: label(Label.LLAMA_CPP_TAG, None)),
    (13, "lacks 1 of the 14 .*: haswell", lambda: without(f"{HOME}/libggml-cpu-haswell.so")),
    (13, "lacks 14 of the 14 portable CPU backends", lambda: cann_without("/cpu/libggml-cpu-")),
    (13, "one kind of processor", lambda: adding(elf(f"{HOME}/libggml-cpu.so"))),
    (14, "There is no llama-server", lambda: replace(GOOD, servers=())),
    (14, f"^There is no {CUDA}/libggml-cuda.so, which the accelerator is computed with.$", lambda: good("cuda")),
    (14, "has not loaded a CPU backend", lambda: started(backends=())),
    (14, "has not loaded a CPU backend", lambda: started(backends=("/elsewhere/libggml-cpu-x64.so",))),
    (14, "has not loaded a CPU backend", lambda: started(backends=(f"{HOME}/libggml-cuda.so",))),
    (15, "still runs 10 s after", lambda: started(exit_code=None)),
    (15, "ends with status 143", lambda: started(exit_code=143)),
    (15, "did not start", lambda: started(ready=False)),
    (16, "older than 2.36", lambda: replace(label(Label.GLIBC, "2.9"), shell=replace(SHELL, glibc="2.9"))),
    (16, "older than 2.36", lambda: good("vulkan", "libggml-vulkan.so", glibc="2.35")),
    (16, "label bodhi.glibc is '2.41', but", lambda: shell(glibc="2.40")),
    (16, "getconf names no", lambda: shell(glibc="")),
    (18, f"cpu/llama-server refuses --no-mmap, which BodhiApp passes: {REFUSED.sentence}", lambda: refusing(REFUSED)),
    (18, "cpu/llama-server does not start with BodhiApp's arguments: boom", lambda: answering(failure="boom")),
    (18, "takes --flash-attn, which .* records as refused: remove that record", lambda: refusing(variant="cuda")),
    (18, "There is no llama-server", lambda: replace(GOOD, servers=(), answers=())),
    (19, "54321:0 cannot write a new volume at /models, /data", lambda: writing("/models\n/data\n")),
    (
        19,
        "What 54321:0 can write could not be tried: sh: not found",
        lambda: replace(GOOD, places=(replace(PLACES, result=replace(result("", 127), stderr="sh: not found")),)),
    ),
    (20, "still runs 10 s after SIGTERM while it loads a model", lambda: stopped(exit_code=None, seconds=10.0)),
    (20, "takes 1.5 s to stop while it loads a model", lambda: stopped(seconds=1.5)),
    (20, "as it ended before: boom", lambda: stopped(reached=False, exit_code=1, log="a\nboom\n")),
    (20, "There is no llama-server", lambda: replace(GOOD, servers=(), stops=())),
    (21, "llama.cpp lacks LICENSE.", lambda: without(f"{LICENSES}/LICENSE")),
    (21, "llama.cpp lacks NOTICES.", lambda: changing(f"{LICENSES}/NOTICES", size=0)),
    (21, "does not name llama.cpp b11312: there is none", lambda: linked(SERVER.path, package="")),
    (21, "does not name llama.cpp b11312: {", lambda: linked(SERVER.path, package='{"name": "llama.cpp"}')),
    (21, "does not name llama.cpp b11312: 7", lambda: linked(SERVER.path, package="7")),
    (21, "does not name llama.cpp b10454", lambda: label(Label.LLAMA_CPP_TAG, "b10454")),
    (17, "over the budget of 76.0 MB", lambda: adding(file("/usr/lib/ffmpeg", size=76_000_000))),
    (
        17,
        "has 76.0 MB more: /usr/lib/ffmpeg is new",
        lambda: compared(adding(file("/usr/lib/ffmpeg", size=76_000_000))),
    ),
]


def cases(table: list[tuple[int, str, Callable[[], ImageFacts]]]) -> pytest.MarkDecorator:
    ids = [f"{number}-{text[:40]}" for number, text, _ in table]
    return pytest.mark.parametrize(("number", "text", "changed"), table, ids=ids)


def test_an_image_that_grew_within_its_budget_passes_and_says_what_grew() -> None:
    grown = row(compared(adding(file("/usr/lib/ffmpeg", size=1_000_000))), 17)
    assert grown.status is Status.PASS
    assert "; 1.0 MB more than latest-cpu (1); budget 76.0 MB. Layer 1 of 1 above the base" in grown.seen
    assert grown.seen.endswith("has 1.0 MB more: /usr/lib/ffmpeg is new (1.0 MB).")
    assert "; as much as latest-cpu (1); budget 76.0 MB" in row(compared(GOOD), 17).seen
    unknown = row(replace(GOOD, before=Before(name="not compared: the registry is gone")), 17)
    assert unknown.status is Status.PASS
    assert "; not compared: the registry is gone; budget" in unknown.seen
    measured = GOOD.variant and GOOD.variant.size_measured
    assert measured
    assert not rows_contents.has_grown(adding(file("/x", size=int(measured * 1.01) - GOOD.sizes.added)))
    assert rows_contents.has_grown(adding(file("/x", size=int(measured * 1.03) - GOOD.sizes.added)))


def test_a_budget_is_for_the_devices_that_the_size_was_measured_for() -> None:
    def of(architectures: str) -> ImageFacts:
        labels = {**CUDA_IMAGE.image.labels, "bodhi.toolkit.cuda_arch": architectures}
        made = replace(CUDA_IMAGE, image=replace(CUDA_IMAGE.image, labels=labels))
        return with_layers(made, BASE, [*made.layers[1], file("/usr/lib/large", size=200_000_000)])

    assert row(of("90"), 17).status is Status.FAIL
    assert rows_contents.has_grown(of("90"))
    for other in ("default", "90;100"):
        assert row(of(other), 17).status is Status.NOT_APPLICABLE
        assert not rows_contents.has_grown(of(other))


@cases(DEFECTS)
def test_a_defect_fails_its_row_with_a_reason(number: int, text: str, changed: Callable[[], ImageFacts]) -> None:
    judged = row(changed(), number)
    assert judged.status is Status.FAIL
    assert any(re.search(text, finding) for finding in judged.findings), judged.findings
    assert all(finding.strip() and "\n" not in finding for finding in judged.findings)


STATIC = Elf(machine="EM_X86_64", program=False, dynamic=False, needed=(), runpath=None, rpath=None)
EMPTY = file("/app/empty", b"")

HARMLESS: list[tuple[int, str, Callable[[], ImageFacts]]] = [
    (2, "a static file has no RUNPATH", lambda: adding(replace(elf(f"{HOME}/static"), elf=STATIC))),
    (4, "USER by name", lambda: image(user="llama")),
    (4, "USER without its group", lambda: image(user="999")),
    (4, "a base that gave the group's number away", lambda: with_group("llama:x:998:", "docker:x:999:")),
    (4, "that group in USER", lambda: with_group("llama:x:998:", "docker:x:999:", user="999:998")),
    (7, "another time zone", lambda: label(Label.CREATED, "2025-08-20T16:20:00.5+02:00")),
    (8, "a health check in shell form", lambda: image(healthcheck=("/bin/sh", "-c", "curl -f localhost || exit 1"))),
    (9, "no apt lists", lambda: adding(file("/var/lib/apt/lists/lock", b""), directory("/var/lib/apt/lists/partial"))),
    (9, "a link to the server", lambda: adding(link("/usr/local/bin/llama-server", SERVER.path))),
    (10, "sticky and links", lambda: adding(directory("/var/tmp", 0o1777), link("/etc/l", "x"))),
    (12, "a hard link", lambda: adding(replace(elf(f"{HOME}/libllama.so"), digest=ELF, inode=ELF))),
    (12, "an empty file again", lambda: with_layers(GOOD, BASE, [*TOP, EMPTY], [EMPTY])),
    (12, "the base's own repetition", lambda: replace(with_layers(GOOD, BASE, BASE, TOP), base_layers=2)),
    (13, "an older llama.cpp's wording", lambda: server(version=result(f"version: 11312 ({PIN[:8]})\nbuilt with"))),
    (17, "a large base", lambda: replace(adding(file("/usr/lib/ffmpeg", size=76_000_000)), base_layers=2)),
]


@cases(HARMLESS)
def test_a_harmless_deviation_passes(number: int, text: str, changed: Callable[[], ImageFacts]) -> None:
    judged = row(changed(), number)
    assert (judged.status, judged.findings) == (Status.PASS, ()), text


def cann_without(backends: str) -> ImageFacts:
    """Returns an image of cann without those files, whose servers have loaded no backend."""
    facts = good("cann")
    files = {path: entry for path, entry in facts.files.items() if backends not in path}
    silent = tuple(replace(server, start=replace(server.start, backends=())) for server in facts.servers)
    return replace(facts, files=files, servers=silent)


@pytest.mark.parametrize("facts", [CUDA_IMAGE, cann_without("/cann/libggml-cpu-")], ids=["cuda", "cann"])
def test_the_accelerator_row_names_the_test_on_a_device(facts: ImageFacts) -> None:
    statuses = {row.number: row.status for row in judge.judge(facts) if row.status is not Status.PASS}
    assert statuses == {14: Status.ELSEWHERE, 17: Status.NOT_APPLICABLE}
    assert "`invoke test-local-images --device` on a host that has it" in row(facts, 14).seen


def test_compilers_are_an_exception_only_in_a_toolkit_base() -> None:
    facts = good("rocm", "libggml-hip.so")
    compilers = [directory("/opt"), file("/opt/rocm/bin/hipcc", mode=0o755), file("/usr/bin/cmake", mode=0o755)]
    excepted = row(with_layers(facts, [*BASE, *compilers], list(facts.layers[1])), 9)
    assert excepted.status is Status.EXCEPTION
    assert excepted.findings == ("All 2 are of the toolkit's image that rocm runs on: a known exception.",)

    ours = with_layers(facts, [*BASE, *compilers], [*facts.layers[1], file("/usr/bin/git", mode=0o755)])
    slim = with_layers(CUDA_IMAGE, [*BASE, *compilers], list(facts.layers[1]))
    assert [row(other, 9).status for other in (ours, slim)] == [Status.FAIL] * 2


def test_a_missing_health_check_program_is_one_finding() -> None:
    fails = result("not found", 127)
    broken = replace(without(HEALTH), shell=replace(SHELL, health=fails), servers=started(health=fails).servers)
    assert len(row(broken, 8).findings) == 1


def test_a_second_copy_for_the_cpu_directory_is_a_finding() -> None:
    upper = [replace(entry, inode=entry.path) for entry in CUDA_IMAGE.layers[1]]
    judged = row(with_layers(CUDA_IMAGE, BASE, upper), 12)
    assert (judged.status, len(judged.findings)) == (Status.FAIL, 16)


def test_host_driver_libraries_are_excepted_by_name_and_symbol() -> None:
    library = f"{CUDA}/libggml-cuda.so"
    lacking = f"\tlibcuda.so.1 => not found\nundefined symbol: cuMemCreate\t({library})\n"
    excepted = replace(CUDA_IMAGE, shell=replace(SHELL, ldd={library: lacking}))
    assert row(excepted, 2).status is Status.PASS
    other = replace(
        CUDA_IMAGE, shell=replace(SHELL, ldd={library: f"{lacking}undefined symbol: ggml_x\t({library})\n"})
    )
    assert row(other, 2).findings == (f"{library} has unresolved symbols: ggml_x.",)
    on_cpu = replace(excepted, variant=find("cpu"))
    assert f"libcuda.so.1 is not found, needed by {library}." in row(on_cpu, 2).findings


def test_a_recorded_refusal_is_an_exception_with_its_reason_and_remedy() -> None:
    known = row(refusing(FLASH, variant="cuda"), 18)
    assert (known.status, known.seen) == (Status.EXCEPTION, "cuda/ takes 1 of 2")
    [sentence] = known.findings
    assert "cuda/llama-server refuses --flash-attn, since " in sentence
    assert sentence.endswith("instead: `--flash-attn on`.")

    both = row(refusing(FLASH, REFUSED, variant="cuda"), 18)
    assert (both.status, len(both.findings)) == (Status.FAIL, 1)
    assert row(refusing(FLASH, variant="musa"), 18).status is Status.FAIL


def test_an_old_glibc_is_an_exception_for_musa_only() -> None:
    musa = good("musa", "libggml-musa.so", glibc="2.35")
    assert row(musa, 16).status is Status.EXCEPTION
    assert judge.ContractReport(reference="x", image_id="y", variant="musa", rows=judge.judge(musa)).ok


@pytest.mark.parametrize(("seconds", "status"), [(1.7, Status.PASS), (5.1, Status.FAIL)])
def test_an_emulated_server_has_longer_to_stop(seconds: float, status: Status) -> None:
    facts = replace(stopped(seconds=seconds), emulated=True)
    assert (row(facts, 20).status, row(facts, 20).seen) == (status, f"stopped within {seconds} s, emulated")


def test_a_child_image_with_an_entrypoint_of_its_own_has_no_row_of_ours_to_stop() -> None:
    assert row(replace(GOOD, stops=()), 20).status is Status.NOT_APPLICABLE


def test_an_empty_image_gets_all_rows() -> None:
    empty = replace(
        with_layers(GOOD, []),
        variant=None,
        servers=(),
        shell=None,
        shell_error="no sleep",
        places=(replace(PLACES, result=result("", 127)),),
        stops=(),
        image=replace(GOOD.image, labels={}, user="", working_directory="/", entrypoint=(), healthcheck=()),
    )
    rows = judge.judge(empty)
    assert [row.number for row in rows] == list(range(1, 22))
    assert {row.number for row in rows if row.status is not Status.FAIL} == {9, 10, 12, 17}


def test_a_report_is_json_with_an_overall_result() -> None:
    good = judge.ContractReport(reference="image", image_id="sha256:1", variant="cpu", rows=judge.judge(GOOD))
    assert good.ok
    said = json.loads(json.dumps(good.as_dict()))
    assert (said["ok"], said["variant"], len(said["rows"])) == (True, "cpu", 21)
    assert set(said["rows"][0]) == {"number", "title", "status", "seen", "findings"}
    bad = replace(good, rows=judge.judge(without(SERVER.path)))
    assert not bad.ok
    assert json.loads(json.dumps(bad.as_dict()))["rows"][0]["status"] == "fail"
