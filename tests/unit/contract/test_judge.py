from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from base_images.adapters.container import ProbeResult
from base_images.adapters.engine import Image
from base_images.contract import judge
from base_images.contract import layers as archive
from base_images.contract.facts import ImageFacts, Server, Shell, Start
from base_images.contract.judge import RowResult
from base_images.contract.layers import Elf, Entry, Kind
from base_images.contract.rows_behaviour import CPU_BACKENDS
from base_images.contract.verdict import Status
from base_images.labels import Label
from base_images.recipes.consumer import Answer, Refused
from base_images.variants import Platform, find

HOME = "/app/bin/x86_64-unknown-linux-gnu/cpu"
CUDA = "/app/bin/x86_64-unknown-linux-gnu/cuda"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIN = "0c1e57098bba43ac29e6e3b677cdceebdd22334f"
HEALTH = "/usr/local/bin/llama-healthcheck"

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
    Label.TITLE.value: "llama.cpp cpu",
    Label.DESCRIPTION.value: "llama-server",
    Label.VERSION.value: "2508201420-0123456",
    Label.REVISION.value: COMMIT,
    Label.CREATED.value: "2025-08-20T14:20:00Z",
    Label.SOURCE.value: "https://example.org",
    Label.URL.value: "https://example.org",
    Label.DOCUMENTATION.value: "https://example.org",
    Label.LICENSES.value: "MIT",
    Label.BASE_NAME.value: "docker.io/ubuntu:24.04",
    Label.BASE_DIGEST.value: f"sha256:{'1' * 64}",
    Label.REF_NAME.value: "cpu-2508201420-0123456",
    Label.VARIANT.value: "cpu",
    Label.VARIANTS.value: "cpu",
    Label.PLATFORM.value: "linux/amd64",
    Label.ACCELERATION.value: "cpu",
    Label.BUILD_TIMESTAMP.value: "2508201420",
    Label.BUILD_BRANCH.value: "main",
    Label.BUILD_ORIGIN.value: "registries",
    Label.BUILD_ARGUMENTS.value: "{}",
    Label.LLAMA_CPP_TAG.value: "b11312",
    Label.LLAMA_CPP_COMMIT.value: PIN,
    Label.GLIBC.value: "2.41",
}


def directory(path: str, mode: int = 0o755) -> Entry:
    return Entry(path=path, kind=Kind.DIRECTORY, mode=mode, uid=0, gid=0)


def file(path: str, content: bytes = b"x", mode: int = 0o644, size: int | None = None) -> Entry:
    return Entry(
        path=path,
        kind=Kind.FILE,
        mode=mode,
        uid=0,
        gid=0,
        size=len(content) if size is None else size,
        digest=path,
        inode=path,
        content=content,
    )


def link(path: str, target: str) -> Entry:
    return Entry(path=path, kind=Kind.SYMLINK, mode=0o777, uid=0, gid=0, target=target)


def elf(path: str, *needed: str, program: bool = False) -> Entry:
    dynamic = Elf(
        machine="EM_X86_64", program=program, dynamic=True, needed=(*needed, "libc.so.6"), runpath="$ORIGIN", rpath=None
    )
    return replace(file(path, mode=0o755, size=100_000), is_elf=True, elf=dynamic)


BASE = [
    *(directory(path) for path in ("/etc", "/usr", "/usr/bin", "/usr/lib", "/app")),
    directory("/tmp", 0o1777),
    file("/usr/lib/libc.so.6"),
    file("/usr/bin/su", mode=0o4755),
    file("/etc/ssl/certs/ca-certificates.crt"),
]
TOP = [
    directory("/app/bin"),
    directory("/app/bin/x86_64-unknown-linux-gnu"),
    directory(HOME),
    elf(f"{HOME}/llama-server", "libllama.so.0", program=True),
    elf(f"{HOME}/libllama.so.0.5.0"),
    link(f"{HOME}/libllama.so.0", "libllama.so.0.5.0"),
    *(elf(f"{HOME}/libggml-cpu-{name}.so") for name in CPU_BACKENDS[Platform.AMD64]),
    file("/app/version.json", json.dumps(VERSION).encode()),
    file("/etc/passwd", b"root:x:0:0::/root:/bin/sh\nllama:x:999:999::/home/llama:/bin/sh\n"),
    file("/etc/group", b"root:x:0:\nllama:x:999:\n"),
    file("/usr/local/bin/llama-entrypoint", mode=0o755),
    file(HEALTH, mode=0o755),
]


def result(stdout: str = "", exit_code: int = 0) -> ProbeResult:
    return ProbeResult(exit_code=exit_code, stdout=stdout, stderr="", seconds=0.1)


IMAGE = Image(
    id="sha256:1",
    tags=(),
    repo_digests=(),
    labels=LABELS,
    architecture="amd64",
    created="",
    size=0,
    user="999:999",
    working_directory="/app",
    entrypoint=("/usr/local/bin/llama-entrypoint",),
    command=(),
    environment={"PATH": "/usr/local/bin:/usr/bin"},
    healthcheck=(HEALTH,),
    diff_ids=(),
    history=(),
)
SERVER = Server(
    path=f"{HOME}/llama-server",
    version=result(f"version: 0.5.0-dev (build 11312, commit {PIN[:9]})\nbuilt with GNU"),
    start=Start(
        ready=True,
        log="listening",
        backends=(f"{HOME}/libggml-cpu-zen4.so",),
        health=result(),
        exit_code=0,
        stop_seconds=0.2,
    ),
    copied=result(),
)
ANSWER = Answer(directory="cpu", arguments=("--jinja", "--threads", "4", "--no-mmap"), refused=())
REFUSED = Refused(argument="--no-mmap", sentence="error: invalid argument: --no-mmap")
FLASH = Refused(argument="--flash-attn", sentence='error while handling argument "--flash-attn": error: unknown value')


def answering(variant: str = "cpu", **changes: Any) -> ImageFacts:
    return replace(GOOD, variant=find(variant), answers=(replace(ANSWER, directory=variant, **changes),))


SHELL = Shell(
    runs=result(),
    version_json=result("{}"),
    curl=result("curl 8"),
    missing_tools=(),
    glibc="2.41",
    ldd={entry.path: "\tlibc.so.6 => /usr/lib/libc.so.6 (0x1)\n" for entry in TOP if entry.is_elf},
    health=result(),
)


def with_layers(facts: ImageFacts, *layers: list[Entry]) -> ImageFacts:
    numbered = tuple(tuple(replace(entry, layer=number) for entry in layer) for number, layer in enumerate(layers))
    return replace(facts, layers=numbered, files=archive.merge(numbered))


GOOD = with_layers(
    ImageFacts(
        reference="image",
        image=IMAGE,
        variant=find("cpu"),
        asked=None,
        platform=Platform.AMD64,
        layers=(),
        files={},
        base_layers=1,
        base="the base is ubuntu:24.04",
        servers=(SERVER,),
        answers=(ANSWER,),
        shell=SHELL,
        shell_error="",
    ),
    BASE,
    TOP,
)


def adding(*entries: Entry) -> ImageFacts:
    return with_layers(GOOD, BASE, [*TOP, *entries])


def changing(path: str, **changes: Any) -> ImageFacts:
    """Returns the good image with a changed entry at `path`."""
    assert any(entry.path == path for entry in TOP)
    return with_layers(GOOD, BASE, [replace(entry, **changes) if entry.path == path else entry for entry in TOP])


def without(path: str) -> ImageFacts:
    assert any(entry.path == path for entry in TOP)
    return with_layers(GOOD, BASE, [entry for entry in TOP if entry.path != path])


def image(**changes: Any) -> ImageFacts:
    return replace(GOOD, image=replace(IMAGE, **changes))


def label(label: Label, value: str | None) -> ImageFacts:
    others = {name: old for name, old in LABELS.items() if name != label}
    return image(labels=others if value is None else {**others, label.value: value})


def version(**changes: Any) -> ImageFacts:
    return changing("/app/version.json", content=json.dumps({**VERSION, **changes}).encode())


def shell(**changes: Any) -> ImageFacts:
    return replace(GOOD, shell=replace(SHELL, **changes))


def server(**changes: Any) -> ImageFacts:
    return replace(GOOD, servers=(replace(SERVER, **changes),))


def started(**changes: Any) -> ImageFacts:
    return server(start=replace(SERVER.start, **changes))


def ldd(path: str, output: str) -> ImageFacts:
    assert SHELL.ldd is not None
    return shell(ldd={**SHELL.ldd, path: output})


def with_group(*lines: str, user: str = "999") -> ImageFacts:
    """Returns the good image with these groups; the user is in the first."""
    gid = lines[0].split(":")[2]
    content = {"/etc/group": "\n".join(lines).encode(), "/etc/passwd": f"llama:x:999:{gid}::/:/bin/sh\n".encode()}
    top = [replace(entry, content=content.get(entry.path, entry.content)) for entry in TOP]
    return replace(with_layers(GOOD, BASE, top), image=replace(IMAGE, user=user))


def linked(path: str, **changes: Any) -> ImageFacts:
    old = GOOD.files[path].elf
    assert old is not None
    return changing(path, elf=replace(old, **changes))


def row(facts: ImageFacts, number: int) -> RowResult:
    return judge.judge(facts)[number - 1]


def test_a_good_image_passes_all_rows_in_order() -> None:
    rows = judge.judge(GOOD)
    assert [row.number for row in rows] == list(range(1, 19))
    assert [(row.number, row.findings) for row in rows if row.status is not Status.PASS] == []


ELF = f"{HOME}/libllama.so.0.5.0"

DEFECTS: list[tuple[int, str, Callable[[], ImageFacts]]] = [
    (1, "There is no .*/cpu/llama-server", lambda: without(SERVER.path)),
    (1, "cannot be executed by all: .* has mode 0750", lambda: changing(SERVER.path, mode=0o750)),
    (1, "cannot be executed by all: /app/bin has mode 0700", lambda: changing("/app/bin", mode=0o700)),
    (1, "is built for EM_AARCH64, but the image says linux/amd64", lambda: linked(SERVER.path, machine="EM_AARCH64")),
    (1, "is not an ELF program", lambda: changing(SERVER.path, is_elf=False, elf=None)),
    (1, "tells the variant", lambda: replace(GOOD, variant=None)),
    (1, "is for riscv64", lambda: replace(GOOD, platform=None, image=replace(IMAGE, architecture="riscv64"))),
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
    (
        4,
        "is in the group 999 and not in llama, 998",
        lambda: changing("/etc/group", content=b"llama:x:998:\na:x:999:\n"),
    ),
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
    (6, "toolkit is", lambda: version(toolkit={"cuda": ""})),
    (7, "Missing labels: .*licenses", lambda: label(Label.LICENSES, None)),
    (7, "title is empty", lambda: label(Label.TITLE, " ")),
    (7, "RFC 3339", lambda: label(Label.CREATED, "1755699600")),
    (7, "RFC 3339", lambda: label(Label.CREATED, "2025-13-20T14:20:00Z")),
    (7, "is no digest", lambda: label(Label.BASE_DIGEST, "sha256:12")),
    (7, "branch is 'x', but version.json says 'main'", lambda: label(Label.BUILD_BRANCH, "x")),
    (7, "variants is 'cuda,cpu', but", lambda: label(Label.VARIANTS, "cuda,cpu")),
    (7, "ref.name is 'cpu'", lambda: label(Label.REF_NAME, "cpu")),
    (7, "commit is '0+', but version.json", lambda: label(Label.LLAMA_CPP_COMMIT, "0" * 40)),
    (7, "bodhi.toolkit.cuda, which", lambda: version(toolkit={"cuda": "12.8.1"})),
    (7, "'cuda' was asked for", lambda: replace(GOOD, asked=find("cuda"))),
    (8, "no POSIX shell", lambda: shell(runs=result("", 127))),
    (8, "Of coreutils mv is missing", lambda: shell(missing_tools=("mv",))),
    (8, "curl does not run: not there", lambda: shell(curl=result("not there", 127))),
    (8, "cannot run sleep: no such file", lambda: replace(GOOD, shell=None, shell_error="no such file")),
    (8, "no CA certificates", lambda: with_layers(GOOD, BASE[:-1], TOP)),
    (8, "entrypoint's program .* is not in", lambda: without("/usr/local/bin/llama-entrypoint")),
    (8, "health check's program .* is not in", lambda: without(HEALTH)),
    (8, "health check's program .* cannot be executed", lambda: changing(HEALTH, mode=0o644)),
    (8, "has no health check", lambda: image(healthcheck=())),
    (8, "does not follow", lambda: started(health=result("connection refused", 1))),
    (8, "first process is not llama-server", lambda: shell(health=result("", 1))),
    (9, "Another program of llama.cpp in the image: /usr/bin/llama-cli", lambda: adding(elf("/usr/bin/llama-cli"))),
    (9, "body of another", lambda: adding(elf(f"{HOME}/libllama-cli-impl.so"))),
    (9, "Another program beside", lambda: adding(elf(f"{HOME}/test-backend-ops", program=True))),
    (9, "A script", lambda: adding(file("/app/convert_hf_to_gguf.py"))),
    (
        9,
        "A build tool in the image: /usr/bin/x86_64-linux-gnu-g",
        lambda: adding(file("/usr/bin/x86_64-linux-gnu-g++-14")),
    ),
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
    (11, "did not come to listen, exit code 127: boom", lambda: started(ready=False, exit_code=127, log="a\nboom\n")),
    (12, "Layer 3 of 3 stores again .* 100000 bytes: .*libllama", lambda: with_layers(GOOD, BASE, TOP, [elf(ELF)])),
    (12, "stored 2 times", lambda: adding(replace(elf(f"{HOME}/copy.so"), digest=ELF))),
    (13, "reports build 1, but", lambda: server(version=result(f"version: 1.0 (build 1, commit {PIN[:9]})"))),
    (13, "reports commit abcdef0, but", lambda: server(version=result("version: 1.0 (build 11312, commit abcdef0)"))),
    (13, "reports commit unknown", lambda: server(version=result("version: 1.0 (build 11312, commit unknown)"))),
    (13, "names no build", lambda: server(version=result("boom", 127))),
    (13, "do not say what was built", lambda: label(Label.LLAMA_CPP_TAG, None)),
    (13, "lacks 1 of the 14 .*: haswell", lambda: without(f"{HOME}/libggml-cpu-haswell.so")),
    (13, "one kind of processor", lambda: adding(elf(f"{HOME}/libggml-cpu.so"))),
    (14, "There is no llama-server", lambda: replace(GOOD, servers=())),
    (14, "has not loaded a CPU backend", lambda: started(backends=())),
    (14, "has not loaded a CPU backend", lambda: started(backends=("/elsewhere/libggml-cpu-x64.so",))),
    (14, "has not loaded a CPU backend", lambda: started(backends=(f"{HOME}/libggml-cuda.so",))),
    (15, "still runs 10 s after", lambda: started(exit_code=None)),
    (15, "ends with status 143", lambda: started(exit_code=143)),
    (15, "did not start", lambda: started(ready=False)),
    (
        16,
        "older than 2.36",
        lambda: replace(shell(glibc="2.9"), image=replace(IMAGE, labels={Label.GLIBC.value: "2.9"})),
    ),
    (16, "label bodhi.glibc is '2.41', but", lambda: shell(glibc="2.40")),
    (16, "getconf names no", lambda: shell(glibc="")),
    (
        18,
        "cpu/llama-server refuses --no-mmap, which BodhiApp passes: error: invalid argument: --no-mmap",
        lambda: answering(refused=(REFUSED,)),
    ),
    (18, "cpu/llama-server does not start with BodhiApp's arguments: boom", lambda: answering(failure="boom")),
    (
        18,
        "cuda/llama-server takes --flash-attn, which dockerfiles/consumer.toml records as refused: remove that record",
        lambda: answering("cuda", arguments=("--flash-attn",)),
    ),
    (18, "There is no llama-server", lambda: replace(GOOD, servers=(), answers=())),
    (17, "over the budget of 76.0 MB", lambda: adding(file("/usr/lib/ffmpeg", size=76_000_000))),
]


@pytest.mark.parametrize(
    ("number", "reason", "defect"), DEFECTS, ids=[f"{number}-{reason[:40]}" for number, reason, _ in DEFECTS]
)
def test_a_defect_fails_its_row_with_a_reason(number: int, reason: str, defect: Callable[[], ImageFacts]) -> None:
    judged = row(defect(), number)
    assert judged.status is Status.FAIL
    assert any(re.search(reason, finding) for finding in judged.findings), judged.findings
    assert all(finding.strip() and "\n" not in finding for finding in judged.findings)


STATIC = Elf(machine="EM_X86_64", program=False, dynamic=False, needed=(), runpath=None, rpath=None)
SHELL_FORM = ("/bin/sh", "-c", "curl -f localhost || exit 1")

HARMLESS: list[tuple[int, str, Callable[[], ImageFacts]]] = [
    (2, "a static file has no RUNPATH", lambda: adding(replace(elf(f"{HOME}/static"), elf=STATIC))),
    (4, "USER by name", lambda: image(user="llama")),
    (4, "USER without its group", lambda: image(user="999")),
    (4, "a base that gave the group's number away", lambda: with_group("llama:x:998:", "docker:x:999:")),
    (4, "that group in USER", lambda: with_group("llama:x:998:", "docker:x:999:", user="999:998")),
    (7, "another time zone", lambda: label(Label.CREATED, "2025-08-20T16:20:00.5+02:00")),
    (
        8,
        "a health check in shell form",
        lambda: replace(adding(file("/bin/sh", mode=0o755)), image=replace(IMAGE, healthcheck=SHELL_FORM)),
    ),
    (
        9,
        "empty apt lists",
        lambda: adding(file("/var/lib/apt/lists/lock", b""), directory("/var/lib/apt/lists/partial")),
    ),
    (9, "a link to the server", lambda: adding(link("/usr/local/bin/llama-server", SERVER.path))),
    (10, "sticky and links", lambda: adding(directory("/var/tmp", 0o1777), link("/etc/l", "x"))),
    (12, "a hard link", lambda: adding(replace(elf(f"{HOME}/libllama.so"), digest=ELF, inode=ELF))),
    (
        12,
        "an empty file again",
        lambda: with_layers(GOOD, BASE, [*TOP, file("/app/empty", b"")], [file("/app/empty", b"")]),
    ),
    (12, "the base's own repetition", lambda: replace(with_layers(GOOD, BASE, BASE, TOP), base_layers=2)),
    (13, "an older llama.cpp's wording", lambda: server(version=result(f"version: 11312 ({PIN[:8]})\nbuilt with"))),
    (17, "a large base", lambda: replace(adding(file("/usr/lib/ffmpeg", size=76_000_000)), base_layers=2)),
]


@pytest.mark.parametrize(
    ("number", "harmless"),
    [(number, harmless) for number, _, harmless in HARMLESS],
    ids=[f"{number}-{what}" for number, what, _ in HARMLESS],
)
def test_a_harmless_deviation_passes(number: int, harmless: Callable[[], ImageFacts]) -> None:
    judged = row(harmless(), number)
    assert (judged.status, judged.findings) == (Status.PASS, ())


def gpu(name: str, *, backend: str | None, glibc: str = "2.41") -> ImageFacts:
    """Returns a good image of another variant with two directories, the second of hard links."""
    variant = find(name)
    home = HOME.replace("/cpu", f"/{name}")
    own = [
        replace(entry, path=entry.path.replace(HOME, home), inode=entry.inode.replace(HOME, home))
        for entry in TOP
        if entry.path.startswith(HOME)
    ]
    links = [replace(entry, path=entry.path.replace(home, HOME)) for entry in own]
    content = {**VERSION, "variant": name, "variants": [name, "cpu"], "glibc": glibc}
    labels = {
        **LABELS,
        Label.VARIANT.value: name,
        Label.VARIANTS.value: f"{name},cpu",
        Label.REF_NAME.value: f"{name}-{VERSION['version']}",
        Label.GLIBC.value: glibc,
    }
    rest = [entry for entry in TOP if not entry.path.startswith(HOME) and entry.path != "/app/version.json"]
    rest.append(file("/app/version.json", json.dumps(content).encode()))
    extra = [elf(f"{home}/{backend}", *variant.host_libraries)] if backend else []
    own_server = replace(
        SERVER,
        path=f"{home}/llama-server",
        start=replace(SERVER.start, backends=(f"{home}/libggml-cpu-zen4.so",)),
    )
    return replace(
        with_layers(GOOD, BASE, [*rest, *own, *links, *extra]),
        variant=variant,
        image=replace(IMAGE, labels=labels),
        servers=(own_server, SERVER),
        shell=replace(SHELL, glibc=glibc),
    )


def statuses(facts: ImageFacts) -> dict[int, Status]:
    return {row.number: row.status for row in judge.judge(facts) if row.status is not Status.PASS}


def test_the_accelerator_row_names_the_test_on_a_device() -> None:
    facts = gpu("cuda", backend="libggml-cuda.so")
    assert statuses(facts) == {14: Status.ELSEWHERE, 17: Status.NOT_APPLICABLE}
    assert "`invoke test-local-images --device` on a host that has it" in row(facts, 14).seen


def test_cann_needs_no_loaded_backend() -> None:
    facts = gpu("cann", backend=None)
    files = {path: entry for path, entry in facts.files.items() if "/cann/libggml-cpu-" not in path}
    silent = tuple(replace(server, start=replace(server.start, backends=())) for server in facts.servers)
    judged = replace(facts, files=files, servers=silent)
    assert statuses(judged) == {14: Status.ELSEWHERE, 17: Status.NOT_APPLICABLE}
    assert "`invoke test-local-images --device` on a host that has it" in row(judged, 14).seen


def test_the_cpu_directory_of_cann_needs_all_cpu_backends() -> None:
    facts = gpu("cann", backend=None)
    files = {path: entry for path, entry in facts.files.items() if "/cpu/libggml-cpu-" not in path}
    assert "lacks 14 of the 14 portable CPU backends" in row(replace(facts, files=files), 13).findings[0]


def test_compilers_are_an_exception_only_in_a_toolkit_base() -> None:
    facts = gpu("rocm", backend="libggml-hip.so")
    compilers = [directory("/opt"), file("/opt/rocm/bin/hipcc", mode=0o755), file("/usr/bin/cmake", mode=0o755)]
    excepted = row(with_layers(facts, [*BASE, *compilers], list(facts.layers[1])), 9)
    assert excepted.status is Status.EXCEPTION
    assert excepted.findings == ("All 2 are of the toolkit's image that rocm runs on: a known exception.",)

    ours = row(with_layers(facts, [*BASE, *compilers], [*facts.layers[1], file("/usr/bin/git", mode=0o755)]), 9)
    assert ours.status is Status.FAIL
    slim = row(with_layers(gpu("cuda", backend="libggml-cuda.so"), [*BASE, *compilers], list(facts.layers[1])), 9)
    assert slim.status is Status.FAIL


def test_a_missing_health_check_program_is_one_finding() -> None:
    facts = without(HEALTH)
    fails = result("not found", 127)
    broken = replace(
        facts,
        shell=replace(SHELL, health=fails),
        servers=(replace(SERVER, start=replace(SERVER.start, health=fails)),),
    )
    assert len(row(broken, 8).findings) == 1


def test_a_missing_accelerator_backend_is_a_finding() -> None:
    judged = row(gpu("cuda", backend=None), 14)
    assert judged.status is Status.FAIL
    assert judged.findings == (f"There is no {CUDA}/libggml-cuda.so, which the accelerator is computed with.",)


def test_a_second_copy_for_the_cpu_directory_is_a_finding() -> None:
    facts = gpu("cuda", backend="libggml-cuda.so")
    upper = [replace(entry, inode=entry.path) for entry in facts.layers[1]]
    judged = row(with_layers(facts, BASE, upper), 12)
    assert judged.status is Status.FAIL
    assert len(judged.findings) == 16


def test_host_driver_libraries_are_excepted_by_name_and_symbol() -> None:
    library = f"{CUDA}/libggml-cuda.so"
    lacking = f"\tlibcuda.so.1 => not found\nundefined symbol: cuMemCreate\t({library})\n"
    facts = gpu("cuda", backend="libggml-cuda.so")
    excepted = replace(facts, shell=replace(SHELL, ldd={library: lacking}))
    assert row(excepted, 2).status is Status.PASS
    other = replace(facts, shell=replace(SHELL, ldd={library: f"{lacking}undefined symbol: ggml_x\t({library})\n"}))
    assert row(other, 2).findings == (f"{library} has unresolved symbols: ggml_x.",)
    on_cpu = replace(excepted, variant=find("cpu"))
    assert f"libcuda.so.1 is not found, needed by {library}." in row(on_cpu, 2).findings


def test_a_recorded_refusal_is_an_exception_with_its_reason_and_remedy() -> None:
    arguments = ("--flash-attn", "--no-mmap")
    known = row(answering("cuda", arguments=arguments, refused=(FLASH,)), 18)
    assert (known.status, known.seen) == (Status.EXCEPTION, "cuda/ takes 1 of 2")
    [sentence] = known.findings
    assert "cuda/llama-server refuses --flash-attn, since " in sentence
    assert sentence.endswith("instead: `--flash-attn on`.")

    both = row(answering("cuda", arguments=arguments, refused=(FLASH, REFUSED)), 18)
    assert both.status is Status.FAIL
    assert len(both.findings) == 1
    elsewhere = row(answering("musa", arguments=arguments, refused=(FLASH,)), 18)
    assert elsewhere.status is Status.FAIL


def test_an_old_glibc_is_an_exception_for_musa_only() -> None:
    musa = gpu("musa", backend="libggml-musa.so", glibc="2.35")
    assert row(musa, 16).status is Status.EXCEPTION
    assert judge.ContractReport(reference="x", image_id="y", variant="musa", rows=judge.judge(musa)).ok
    assert row(gpu("vulkan", backend="libggml-vulkan.so", glibc="2.35"), 16).status is Status.FAIL


def test_an_empty_image_gets_all_rows() -> None:
    empty = replace(
        with_layers(GOOD, []),
        variant=None,
        servers=(),
        shell=None,
        shell_error="no sleep",
        image=replace(IMAGE, labels={}, user="", working_directory="/", entrypoint=(), healthcheck=()),
    )
    rows = judge.judge(empty)
    assert [row.number for row in rows] == list(range(1, 19))
    assert {row.number for row in rows if row.status is not Status.FAIL} == {9, 10, 12, 17}


def test_a_report_is_json_with_an_overall_result() -> None:
    good = judge.ContractReport(reference="image", image_id="sha256:1", variant="cpu", rows=judge.judge(GOOD))
    assert good.ok
    said = json.loads(json.dumps(good.as_dict()))
    assert (said["ok"], said["variant"], len(said["rows"])) == (True, "cpu", 18)
    assert set(said["rows"][0]) == {"number", "title", "status", "seen", "findings"}
    bad = replace(good, rows=judge.judge(without(SERVER.path)))
    assert not bad.ok
    assert json.loads(json.dumps(bad.as_dict()))["rows"][0]["status"] == "fail"
