"""What an image must be: the 18 rows of the contract, judged by an image's facts. Never prints.

Every row is a pure function of `ImageFacts`. It says what was seen and finds nothing, or finds what is wrong and where,
each finding one sentence. A row that no check of an image alone can prove names the test that does.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from packaging.version import InvalidVersion
from packaging.version import Version as PackageVersion

from base_images import versions
from base_images.adapters.container import ProbeResult
from base_images.adapters.engine import Engine
from base_images.contract import layers
from base_images.contract.facts import GROUP, PASSWD, VERSION_JSON, ImageFacts, Server, gather, which
from base_images.contract.layers import Entry, Kind
from base_images.errors import UsageError
from base_images.image import ARBITRARY_USER, STOP_SECONDS
from base_images.labels import TOOLKIT_PREFIX, Label
from base_images.recipes import consumer
from base_images.variants import STATIC_BACKENDS, Platform, Variant, megabytes

LLAMA_USER = "llama"
LLAMA_ID = 999
"""Number of the user, and of the group where the base image has not given it away: volumes are owned by number, and
those of existing installations belong to this one (dockerfiles/llama-user)."""

RUNPATH = "$ORIGIN"
MINIMUM_GLIBC = "2.36"
DUPLICATE_BYTES = 64 << 10
"""Smaller files of one content are no second copy of a payload."""

HOST_LIBRARIES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "cuda": {"libcuda.so.1": ("cu",)},
    "musa": {"libmusa.so.1": ("mu",)},
    "cann": {"libascend_hal.so": ("hal", "drv")},
}
"""Variant to the driver libraries that only the host has, each with the prefixes of the symbols it brings."""

ACCELERATOR_BACKENDS: Mapping[str, str] = {
    "cuda": "libggml-cuda.so",
    "rocm": "libggml-hip.so",
    "vulkan": "libggml-vulkan.so",
    "musa": "libggml-musa.so",
    "intel": "libggml-sycl.so",
}
"""Variant to the library that llama.cpp loads for its accelerator; cann is linked with its own."""

# llama.cpp b11312, ggml/src/CMakeLists.txt, the calls of ggml_add_cpu_backend_variant.
CPU_BACKENDS: Mapping[Platform, tuple[str, ...]] = {
    Platform.AMD64: (
        *("x64", "sse42", "sandybridge", "ivybridge", "piledriver", "haswell", "skylakex", "cannonlake"),
        *("cascadelake", "icelake", "cooperlake", "zen4", "alderlake", "sapphirerapids"),
    ),
    Platform.ARM64: (
        *("armv8.0_1", "armv8.2_1", "armv8.2_2", "armv8.2_3"),
        *("armv8.6_1", "armv8.6_2", "armv9.2_1", "armv9.2_2"),
    ),
}
"""The portable set of CPU backends, one library each; GGML_NATIVE would build a single one called libggml-cpu.so."""

_MACHINES = {Platform.AMD64: "EM_X86_64", Platform.ARM64: "EM_AARCH64"}
_CA_CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_CACHES = (
    *("/var/lib/apt/lists/", "/var/cache/apt/", "/var/cache/yum/", "/var/cache/dnf/", "/var/cache/apk/"),
    *("/root/.cache/", "/root/.npm/", "/root/.ccache/", "/ccache/"),
)
_DEVICE_TEST = "that the device is used is for `invoke test-local-images --device` on a host that has it"
_NO_SERVER = "There is no llama-server in the image."

_COMPILER = r"(?:gcc|g\+\+|cc|c\+\+|clang|clang\+\+|gfortran|ld|as)"
_BUILD_TOOL = re.compile(
    rf"(?:[a-z0-9_]+-linux-gnu-)?{_COMPILER}(?:-[0-9.]+)?"
    r"|cmake|ctest|ninja|g?make|meson|ccache|sccache|git|node|npm|npx|nvcc|hipcc|amdclang(?:\+\+)?|icp?x|mcc"
)
_BIN_DIRECTORY = re.compile(r"(?:/usr(?:/local)?)?/s?bin|/opt/.*/bin|/root/\.local/bin")
_LLAMA_PROGRAM = re.compile(r"llama(?:-.+)?|ggml-rpc-server|rpc-server")
_PROGRAM_BODY = re.compile(r"libllama-(.+)-impl\.so")
_SCRIPT = re.compile(r"convert[_-].*\.py|tools\.sh")
_SOURCE = re.compile(r"CMakeLists\.txt|.*\.(?:c|cc|cpp|cxx|cu|cuh|h|hpp|hip|comp|metal|m4)")

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
_VERSION_LINE = re.compile(r"^version: .*?(?:build )?(\d+)(?:, commit | \()(\w+)\)", re.MULTILINE)
_NOT_FOUND = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)
_NO_VERSION = re.compile(r"^.*version `.+' not found.*$", re.MULTILINE)
_UNDEFINED = re.compile(r"^(?:undefined symbol: (\S+)|.*symbol lookup error: (.+?))\s+\(.*\)$", re.MULTILINE)


class Status(StrEnum):
    """How a row ended; only `fail` is a finding against the image."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    EXCEPTION = "exception"
    NOT_APPLICABLE = "not-applicable"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """One row of the contract.

    Attributes:
        number: 1 to 18.
        seen: what the image is in this respect, in a few words.
        findings: what is wrong, a sentence each; with an exception, what was excepted.
    """

    number: int
    title: str
    status: Status
    seen: str
    findings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """All 18 rows of one image, in order.

    Attributes:
        variant: its name; None when nothing told.
    """

    reference: str
    image_id: str
    variant: str | None
    rows: tuple[RowResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no row failed."""
        return all(row.status is not Status.FAIL for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as what `json.dumps` takes."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class _Verdict:
    """A row's judgement; without a status it is `fail` when there are findings and `pass` when there are none."""

    seen: str
    findings: Sequence[str] = ()
    status: Status | None = None


def check(engine: Engine, reference: str, variant: Variant | None = None) -> ContractReport:
    """Returns how the image that `reference` names now keeps the contract.

    Args:
        engine: where the image is.
        reference: a tag, a digest or an id.
        variant: what the image is taken for; its own label must agree, and need not exist.

    Raises:
        ImageNotFoundError: the engine has no such image.
        EngineError: the engine failed.
    """
    facts = gather(engine, reference, variant)
    return ContractReport(
        reference=reference,
        image_id=facts.image.id,
        variant=facts.variant.name if facts.variant else None,
        rows=judge(facts),
    )


def judge(facts: ImageFacts) -> tuple[RowResult, ...]:
    """Returns all rows in order, each exactly once."""
    rows = []
    for number, (title, row) in enumerate(_ROWS, start=1):
        verdict = row(facts)
        status = verdict.status or (Status.FAIL if verdict.findings else Status.PASS)
        rows.append(
            RowResult(number=number, title=title, status=status, seen=verdict.seen, findings=tuple(verdict.findings))
        )
    return tuple(rows)


def _layout(facts: ImageFacts) -> _Verdict:
    found = ", ".join(server.path for server in facts.servers) or "no llama-server"
    if facts.platform is None:
        return _Verdict(found, [f"The image is for {facts.image.architecture}, which no target triple is known for."])
    if facts.variant is None:
        return _Verdict(found, [f"Neither the label {Label.VARIANT} nor a directory below /app/bin tells the variant."])
    findings = []
    for directory in facts.directories:
        path = f"{directory}/llama-server"
        entry = layers.resolve(facts.files, path)
        if entry is None:
            findings.append(f"There is no {path}.")
        elif entry.kind is not Kind.FILE or not entry.is_elf:
            findings.append(f"{path} is not an ELF program.")
        elif entry.elf and entry.elf.machine != _MACHINES[facts.platform]:
            findings.append(f"{path} is built for {entry.elf.machine}, but the image says {facts.platform.docker}.")
        elif closed := _closed(facts.files, entry, 0o001):
            findings.append(f"{path} cannot be executed by all: {closed.path} has mode {closed.mode:04o}.")
    return _Verdict(found, findings)


def _libraries(facts: ImageFacts) -> _Verdict:
    elves = [entry for entry in facts.payload if entry.is_elf]
    if not elves:
        return _Verdict("no ELF file", [_NO_SERVER])
    damaged = [entry.path for entry in elves if entry.elf is None]
    dynamic = [(entry, entry.elf) for entry in elves if entry.elf and entry.elf.dynamic]
    findings = [f"Not readable as ELF: {_some(damaged)}."] if damaged else []
    wrong: dict[str, list[str]] = defaultdict(list)
    for entry, elf in dynamic:
        if elf.rpath is not None:
            wrong[f"RPATH {elf.rpath!r}"].append(entry.path)
        if elf.runpath != RUNPATH:
            wrong["No RUNPATH" if elf.runpath is None else f"RUNPATH {elf.runpath!r}"].append(entry.path)
    findings += [f"{what} instead of RUNPATH {RUNPATH!r} on {_some(paths)}." for what, paths in wrong.items()]

    missing = _missing_libraries(facts)
    findings += [f"{name} is not found, needed by {_some(paths)}." for name, paths in sorted(missing.items())]
    findings += _unresolved(facts)
    if facts.shell is None or facts.shell.ldd is None:
        findings.append("The image has no working ldd, so symbols could not be checked.")
    right = sum(elf.runpath == RUNPATH and elf.rpath is None for _, elf in dynamic)
    return _Verdict(f"{len(elves)} ELF files, {right} with RUNPATH {RUNPATH}", findings)


def _relocation(facts: ImageFacts) -> _Verdict:
    def finding(server: Server) -> str | None:
        if server.copied is None:
            return f"{server.path} could not be copied and started: the image cannot run a shell."
        if server.copied.exit_code:
            return f"A copy of {posixpath.dirname(server.path)} does not start: {_last_line(server.copied)}"
        return None

    return _each_server(facts, "its copy in /tmp starts", finding)


def _ownership(facts: ImageFacts) -> _Verdict:
    findings = []
    users = {name: fields for name, *fields in _table(facts, PASSWD)}
    groups = {name: fields[1] for name, *fields in _table(facts, GROUP) if len(fields) > 1}
    user = users.get(LLAMA_USER, [])
    group = groups.get(LLAMA_USER)
    taken = next((name for name, number in groups.items() if number == str(LLAMA_ID) and name != LLAMA_USER), "")
    if LLAMA_USER not in users:
        findings.append(f"There is no user {LLAMA_USER!r} in {PASSWD}.")
    elif user[1:2] != [str(LLAMA_ID)]:
        findings.append(f"The user {LLAMA_USER!r} is {':'.join(user[1:2])} and not {LLAMA_ID}.")
    if group is None:
        findings.append(f"There is no group {LLAMA_USER!r} in {GROUP}.")
    elif group != str(LLAMA_ID) and not taken:
        findings.append(f"The group {LLAMA_USER!r} is {group} and not {LLAMA_ID}, which is free.")
    elif user and user[2:3] != [group]:
        findings.append(
            f"The user {LLAMA_USER!r} is in the group {':'.join(user[2:3])} and not in {LLAMA_USER}, {group}."
        )

    configured = facts.image.user
    name, _, group_name = configured.partition(":")
    numeric = f"{LLAMA_ID}, or {LLAMA_ID}:{group or LLAMA_ID}"
    if name not in {LLAMA_USER, str(LLAMA_ID)} or group_name not in {"", LLAMA_USER, group}:
        findings.append(f"The image runs as {configured or 'root'!r} and not as {LLAMA_USER}: USER {numeric}.")

    tree = [entry for path, entry in facts.files.items() if path == "/app/bin" or path.startswith("/app/bin/")]
    if not tree:
        findings.append("There is no /app/bin.")
    foreign = [entry.path for entry in tree if entry.uid != 0]
    writable = [entry.path for entry in tree if entry.kind is not Kind.SYMLINK and entry.mode & 0o022]
    if foreign:
        findings.append(f"Not owned by root: {_some(foreign)}.")
    if writable:
        findings.append(f"Writable by others than the owner: {_some(writable)}.")
    seen = f"runs as {configured or 'root'}"
    return _Verdict(
        f"{seen}; its group is {group}, as the base gave {LLAMA_ID} to {taken}" if taken else seen, findings
    )


def _working_directory(facts: ImageFacts) -> _Verdict:
    findings = []
    if facts.image.working_directory != "/app":
        findings.append(f"The WORKDIR is {facts.image.working_directory} and not /app.")
    app = layers.resolve(facts.files, "/app")
    if app is None or app.kind is not Kind.DIRECTORY:
        findings.append("There is no directory /app.")
    entry = layers.resolve(facts.files, VERSION_JSON)
    if entry is None or entry.kind is not Kind.FILE:
        findings.append(f"There is no {VERSION_JSON}.")
    elif closed := _closed(facts.files, entry, 0o004):
        findings.append(f"{VERSION_JSON} cannot be read by all: {closed.path} has mode {closed.mode:04o}.")
    elif facts.shell and facts.shell.version_json.exit_code:
        findings.append(f"The image's user cannot read {VERSION_JSON}: {_last_line(facts.shell.version_json)}")
    return _Verdict(f"WORKDIR {facts.image.working_directory}", findings)


def _version_json(facts: ImageFacts) -> _Verdict:
    content = _version_content(facts)
    if isinstance(content, str):
        return _Verdict("no version.json that can be read", [content])
    return _Verdict(f"version {content.get('version')}", list(_version_findings(facts, content)))


def _labels(facts: ImageFacts) -> _Verdict:
    labels = facts.image.labels
    wanted = [label.value for label in Label if label is not Label.GLIBC]
    missing = [name for name in wanted if name not in labels]
    findings = [f"Missing labels: {_some(missing, limit=len(wanted))}."] if missing else []
    findings += [f"The label {name} is empty." for name, value in labels.items() if not value.strip()]
    created = labels.get(Label.CREATED, "")
    if created.strip() and not _is_rfc_3339(created):
        findings.append(f"The label {Label.CREATED} is {created!r}, which is not a time as RFC 3339 writes it.")
    digest = labels.get(Label.BASE_DIGEST, "")
    if digest.strip() and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        findings.append(f"The label {Label.BASE_DIGEST} is {digest!r}, which is no digest.")
    if facts.asked and labels.get(Label.VARIANT, facts.asked.name) != facts.asked.name:
        findings.append(
            f"The label {Label.VARIANT} is {labels[Label.VARIANT]!r}, but {facts.asked.name!r} was asked for."
        )
    content = _version_content(facts)
    if not isinstance(content, str):
        findings += [
            f"The label {name} is {labels[name]!r}, but version.json says {said!r}."
            for name, said in _said_by_version_json(content)
            if labels.get(name, "").strip() and labels[name] != said
        ]
        findings += [
            f"The label {name}, which version.json's toolkit calls for, is missing."
            for name, _ in _said_by_version_json(content)
            if name.startswith(TOOLKIT_PREFIX) and name not in labels
        ]
    present = sum(bool(labels.get(name, "").strip()) for name in wanted)
    return _Verdict(f"{present} of {len(wanted)} labels", findings)


def _tools(facts: ImageFacts) -> _Verdict:
    """Row 8, and the health check: it is one more program that has to be in the image and to work there."""
    findings = []
    if facts.shell is None:
        findings.append(f"The image cannot run sleep: {facts.shell_error}")
    else:
        if facts.shell.runs.exit_code:
            findings.append("There is no POSIX shell: `sh -c true` fails.")
        elif facts.shell.missing_tools:
            findings.append(f"Of coreutils {', '.join(facts.shell.missing_tools)} is missing.")
        if facts.shell.curl.exit_code:
            findings.append(f"curl does not run: {_last_line(facts.shell.curl)}")
    stores = [layers.resolve(facts.files, path) for path in _CA_CERTIFICATES]
    if not any(store and store.size for store in stores):
        findings.append(f"There are no CA certificates: neither {' nor '.join(_CA_CERTIFICATES)} holds any.")
    findings += _entrypoint_findings(facts)
    findings += _health_findings(facts)
    return _Verdict(f"health check: {' '.join(facts.image.healthcheck) or 'none'}", findings)


def _contents(facts: ImageFacts) -> _Verdict:
    kinds: dict[str, list[str]] = defaultdict(list)
    for path, entry in facts.files.items():
        if kind := _misplaced(path, entry):
            kinds[kind].append(path)
    extra = [
        entry.path
        for entry in facts.payload
        if entry.elf
        and entry.elf.program
        and entry.path.startswith("/app/bin/")
        and not _LLAMA_PROGRAM.fullmatch(posixpath.basename(entry.path))
    ]
    if extra:
        kinds["Another program beside llama-server"] += extra
    count = sum(map(len, kinds.values()))
    seen = f"{len(facts.files)} paths, {count} that do not belong"
    findings = [f"{what} in the image: {_some(paths)}." for what, paths in kinds.items()]
    if findings and facts.variant and facts.variant.runs_on_toolkit and _all_of_base(facts, kinds.values()):
        excepted = f"All {count} are of the toolkit's image that {facts.variant.name} runs on: a known exception."
        return _Verdict(seen, [excepted], Status.EXCEPTION)
    return _Verdict(seen, findings)


def _misplaced(path: str, entry: Entry) -> str:
    """What a path that does not belong in an image is; empty for all others."""
    directory, name = posixpath.split(path)
    is_file = entry.kind is Kind.FILE
    body = _PROGRAM_BODY.fullmatch(name)
    rules = {
        "Another program of llama.cpp": (
            is_file and entry.is_elf and name != "llama-server" and _LLAMA_PROGRAM.fullmatch(name)
        ),
        "The body of another program of llama.cpp": is_file and body and body[1] != "server",
        "A script of llama.cpp": is_file and _SCRIPT.fullmatch(name) and not path.startswith("/usr/"),
        "A build tool": (
            entry.kind in {Kind.FILE, Kind.SYMLINK}
            and _BUILD_TOOL.fullmatch(name)
            and _BIN_DIRECTORY.fullmatch(directory)
        ),
        "A package list or cache": is_file and entry.size and path.startswith(_CACHES),
        "A git repository": entry.kind is Kind.DIRECTORY and name == ".git",
        "Source code": is_file and _SOURCE.fullmatch(name) and not path.startswith(("/usr/", "/opt/")),
    }
    return next((kind for kind, applies in rules.items() if applies), "")


def _all_of_base(facts: ImageFacts, kinds: Iterable[Iterable[str]]) -> bool:
    base = layers.merge(facts.layers[: facts.base_layers])
    return all(path in base for paths in kinds for path in paths)


def _privileges(facts: ImageFacts) -> _Verdict:
    base = layers.merge(facts.layers[: facts.base_layers])

    def is_new(entry: Entry) -> bool:
        below = base.get(entry.path)
        return below is None or (entry.mode & 0o6000, entry.capability) != (below.mode & 0o6000, below.capability)

    files = [entry for entry in facts.files.values() if entry.kind is Kind.FILE]
    set_id = [entry.path for entry in files if entry.mode & 0o6000 and is_new(entry)]
    capable = [entry.path for entry in files if entry.capability and is_new(entry)]
    open_files = [entry.path for entry in files if entry.mode & 0o002]
    open_directories = [
        path
        for path, entry in facts.files.items()
        if entry.kind is Kind.DIRECTORY and entry.mode & 0o002 and not entry.mode & 0o1000
    ]
    findings = []
    if set_id:
        findings.append(f"Setuid or setgid, and not so in the base image: {_some(set_id)}.")
    if capable:
        findings.append(f"File capabilities that the base image does not give: {_some(capable)}.")
    if open_files:
        findings.append(f"Files that everyone may write: {_some(open_files)}.")
    if open_directories:
        findings.append(f"Directories that everyone may write, and not sticky: {_some(open_directories)}.")
    count = sum(bool(entry.mode & 0o6000) for entry in files)
    return _Verdict(f"{count} setuid or setgid files; {facts.base}", findings)


def _hardened(facts: ImageFacts) -> _Verdict:
    def finding(server: Server) -> str | None:
        if server.start.ready:
            return None
        return (
            f"{server.path}, read-only and without privileges as {ARBITRARY_USER}, did not come to listen, "
            f"exit code {server.start.exit_code}: {_last(server.start.log)}"
        )

    return _each_server(facts, f"listens as {ARBITRARY_USER}, read-only", finding)


def _stored_once(facts: ImageFacts) -> _Verdict:
    findings = []
    lower: set[tuple[str, str]] = set()
    wasted = 0
    for number, layer in enumerate(facts.layers):
        stored = [entry for entry in layer if entry.stored]
        again = [entry for entry in stored if (entry.path, entry.digest) in lower]
        if again and number >= facts.base_layers:
            bytes_again = sum(entry.stored for entry in again)
            wasted += bytes_again
            findings.append(
                f"Layer {number + 1} of {len(facts.layers)} stores again what a lower layer holds, "
                f"{bytes_again} bytes: {_some([entry.path for entry in again])}."
            )
        lower.update((entry.path, entry.digest) for entry in stored)
    copies: dict[str, dict[tuple[int, str], Entry]] = defaultdict(dict)
    for entry in facts.payload:
        if entry.kind is Kind.FILE and entry.size >= DUPLICATE_BYTES:
            copies[entry.digest].setdefault((entry.layer, entry.inode), entry)
    for same in copies.values():
        if len(same) > 1:
            entries = list(same.values())
            wasted += sum(entry.size for entry in entries[1:])
            findings.append(f"One content is stored {len(entries)} times: {_some([entry.path for entry in entries])}.")
    return _Verdict(f"{len(facts.layers)} layers, {megabytes(wasted)} stored again", findings)


def _portable(facts: ImageFacts) -> _Verdict:
    if not facts.servers:
        return _Verdict("no llama-server", [_NO_SERVER])
    findings = []
    tag = facts.image.labels.get(Label.LLAMA_CPP_TAG, "")
    commit = facts.image.labels.get(Label.LLAMA_CPP_COMMIT, "")
    if not tag or not commit:
        findings.append(f"The labels {Label.LLAMA_CPP_TAG} and {Label.LLAMA_CPP_COMMIT} do not say what was built.")
    said = ""
    for server in facts.servers:
        output = server.version.output
        match = _VERSION_LINE.search(output)
        if not match or server.version.exit_code:
            findings.append(f"{server.path} --version names no build and commit: {_last(output)}")
            continue
        said = f"build {match[1]}, commit {match[2]}"
        if tag and match[1] != tag.removeprefix("b"):
            findings.append(f"{server.path} reports build {match[1]}, but the label {Label.LLAMA_CPP_TAG} is {tag!r}.")
        if commit and not commit.startswith(match[2]):
            findings.append(
                f"{server.path} reports commit {match[2]}, but the label {Label.LLAMA_CPP_COMMIT} is {commit!r}."
            )
    findings += _cpu_backend_findings(facts)
    return _Verdict(said or "no version", findings)


def _accelerator(facts: ImageFacts) -> _Verdict:
    if not facts.servers:
        return _Verdict("no llama-server", [_NO_SERVER])
    if facts.variant and facts.variant.name in STATIC_BACKENDS:
        seen = f"backends are linked in; {_DEVICE_TEST}"
        return _Verdict(seen, status=Status.ELSEWHERE)
    findings = []
    loaded: list[str] = []
    for server in facts.servers:
        loaded += map(posixpath.basename, server.start.backends)
        if not any(path.startswith(f"{posixpath.dirname(server.path)}/libggml-cpu") for path in server.start.backends):
            findings.append(f"{server.path} has not loaded a CPU backend from its own directory.")
    seen = f"loaded {', '.join(sorted(set(loaded))) or 'no backend'}"
    if facts.variant is None or facts.variant.name not in ACCELERATOR_BACKENDS:
        return _Verdict(seen, findings)
    backend = f"{facts.directories[0]}/{ACCELERATOR_BACKENDS[facts.variant.name]}" if facts.directories else ""
    if layers.resolve(facts.files, backend) is None:
        findings.append(f"There is no {backend}, which the accelerator is computed with.")
    return _Verdict(
        f"{seen}; {_DEVICE_TEST}",
        findings,
        None if findings else Status.ELSEWHERE,
    )


def _stops(facts: ImageFacts) -> _Verdict:
    def finding(server: Server) -> str | None:
        start = server.start
        if not start.ready:
            return f"{server.path} did not start, so it could not be stopped."
        if start.exit_code is None:
            return f"{server.path} still runs {STOP_SECONDS} s after SIGTERM."
        return f"{server.path} ends with status {start.exit_code} after SIGTERM." if start.exit_code else None

    seconds = max((server.start.stop_seconds for server in facts.servers), default=0)
    return _each_server(facts, f"stopped within {seconds:.1f} s", finding)


def _glibc(facts: ImageFacts) -> _Verdict:
    glibc = facts.shell.glibc if facts.shell else ""
    if not glibc:
        return _Verdict("no glibc", ["getconf names no glibc version."])
    findings = []
    label = facts.image.labels.get(Label.GLIBC, "")
    if label != glibc:
        findings.append(f"The label {Label.GLIBC} is {label!r}, but the image has glibc {glibc}.")
    try:
        old = PackageVersion(glibc) < PackageVersion(MINIMUM_GLIBC)
    except InvalidVersion:
        return _Verdict(glibc, [*findings, f"The glibc version {glibc!r} cannot be compared."])
    if old and not findings and facts.variant and facts.variant.name == "musa":
        excepted = f"musa's base has glibc {glibc}, older than {MINIMUM_GLIBC}: a known exception."
        return _Verdict(glibc, [excepted], Status.EXCEPTION)
    if old:
        findings.append(f"glibc {glibc} is older than {MINIMUM_GLIBC}, which BodhiApp is built with.")
    return _Verdict(f"glibc {glibc}", findings)


def _size(facts: ImageFacts) -> _Verdict:
    added = sum(entry.stored for layer in facts.layers[facts.base_layers :] for entry in layer)
    seen = f"{megabytes(added)} over its base; {facts.base}"
    if facts.variant is None or facts.variant.size_budget is None:
        return _Verdict(f"{seen}; no budget yet", status=Status.NOT_APPLICABLE)
    budget = facts.variant.size_budget
    if added <= budget:
        return _Verdict(f"{seen}; budget {megabytes(budget)}")
    return _Verdict(seen, [f"The image adds {megabytes(added)} to its base, over the budget of {megabytes(budget)}."])


def _consumer(facts: ImageFacts) -> _Verdict:
    if not facts.servers:
        return _Verdict("no llama-server", [_NO_SERVER])
    if facts.variant is None:
        return _Verdict("the variant is unknown, and so are its arguments", status=Status.NOT_APPLICABLE)
    judged = consumer.judge(facts.answers, consumer.load().refusals_of(facts.variant.name))
    taken = (
        f"{one.directory}/ takes {len(consumer.grouped(one.arguments)) - len(one.refused)} of "
        f"{len(consumer.grouped(one.arguments))}"
        for one in facts.answers
    )
    if judged.known and not judged.findings:
        return _Verdict("; ".join(taken), judged.known, Status.EXCEPTION)
    return _Verdict("; ".join(taken), judged.findings)


_ROWS: tuple[tuple[str, Callable[[ImageFacts], _Verdict]], ...] = (
    ("llama-server where BodhiApp looks for it", _layout),
    ("libraries beside it, RUNPATH $ORIGIN, nothing unresolved", _libraries),
    ("starts from a copy in another directory", _relocation),
    ("user llama by number; payload owned by root", _ownership),
    ("WORKDIR /app, version.json readable", _working_directory),
    ("version.json is complete", _version_json),
    ("labels are complete and true", _labels),
    ("shell, coreutils, curl, CA certificates, health check", _tools),
    ("llama-server and nothing else", _contents),
    ("no new setuid, nothing world-writable", _privileges),
    ("starts hardened as an arbitrary user", _hardened),
    ("nothing stored twice", _stored_once),
    ("pinned build, portable code", _portable),
    ("the accelerator is used, aloud", _accelerator),
    ("SIGTERM ends it with 0", _stops),
    ("glibc is new enough", _glibc),
    ("within its size budget", _size),
    (f"takes the arguments that {consumer.NAME} passes", _consumer),
)


def _each_server(facts: ImageFacts, seen: str, finding: Callable[[Server], str | None]) -> _Verdict:
    if not facts.servers:
        return _Verdict("no llama-server", [_NO_SERVER])
    findings = [text for server in facts.servers if (text := finding(server))]
    return _Verdict(seen if not findings else f"fails for {len(findings)} of {len(facts.servers)}", findings)


def _host_libraries(facts: ImageFacts) -> Mapping[str, tuple[str, ...]]:
    return HOST_LIBRARIES.get(facts.variant.name, {}) if facts.variant else {}


def _missing_libraries(facts: ImageFacts) -> dict[str, list[str]]:
    """Library name to the payload files that do not find it: by what lies in the image, and by what ldd says."""
    system = {posixpath.basename(path) for path in facts.files if not path.startswith("/app/")}
    missing: dict[str, set[str]] = defaultdict(set)
    for entry in facts.payload:
        for name in entry.elf.needed if entry.elf else ():
            beside = layers.resolve(facts.files, posixpath.join(posixpath.dirname(entry.path), name))
            if name not in system and (beside is None or beside.kind is not Kind.FILE):
                missing[name].add(entry.path)
    for path, output in _ldd(facts).items():
        for name in _NOT_FOUND.findall(output):
            missing[name].add(path)
    return {name: sorted(paths) for name, paths in missing.items() if name not in _host_libraries(facts)}


def _unresolved(facts: ImageFacts) -> Iterator[str]:
    """Symbols that ldd does not resolve. Those of a file that lacks a library are only a consequence."""
    host = _host_libraries(facts)
    for path, output in _ldd(facts).items():
        lacking = set(_NOT_FOUND.findall(output))
        if lacking - set(host):
            continue
        excepted = tuple(prefix for name in lacking for prefix in host[name])
        symbols = [one or other for one, other in _UNDEFINED.findall(output)]
        symbols = sorted({symbol for symbol in symbols if not excepted or not symbol.startswith(excepted)})
        if symbols:
            yield f"{path} has unresolved symbols: {_some(symbols)}."
        for line in sorted(set(_NO_VERSION.findall(output))):
            yield f"{path} needs another version of a library: {line.strip()}."


def _ldd(facts: ImageFacts) -> Mapping[str, str]:
    return (facts.shell.ldd if facts.shell else None) or {}


def _closed(files: Mapping[str, Entry], entry: Entry, bit: int) -> Entry | None:
    """The entry itself, or the directory above it, that keeps other users out; None when all may pass."""
    if not entry.mode & bit:
        return entry
    path = entry.path
    while path != "/":
        path = posixpath.dirname(path)
        above = files.get(path)
        if above is not None and not above.mode & 0o001:
            return above
    return None


def _table(facts: ImageFacts, path: str) -> list[list[str]]:
    """The lines of /etc/passwd or /etc/group as fields."""
    entry = layers.resolve(facts.files, path)
    text = (entry.content or b"").decode("utf-8", errors="replace") if entry else ""
    return [line.split(":") for line in text.splitlines() if line]


def _version_content(facts: ImageFacts) -> dict[str, Any] | str:
    """version.json as an object, or the sentence that says why there is none."""
    entry = layers.resolve(facts.files, VERSION_JSON)
    if entry is None or entry.content is None:
        return f"There is no {VERSION_JSON}."
    try:
        content = json.loads(entry.content)
    except (ValueError, RecursionError) as error:
        return f"{VERSION_JSON} is not valid JSON: {error}."
    return content if isinstance(content, dict) else f"{VERSION_JSON} is not a JSON object."


def _version_findings(facts: ImageFacts, content: Mapping[str, Any]) -> Iterator[str]:
    for key in ("version", "commit", "timestamp", "variant", "branch", "platform", "glibc"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            yield f"version.json has no text at {key!r}."
    version = None
    try:
        version = versions.parse(str(content.get("version", "")))
    except UsageError as error:
        yield f"version.json's version is wrong: {error}"
    commit = str(content.get("commit", ""))
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        yield f"version.json's commit {commit!r} is not a full commit hash."
    elif version and not commit.startswith(version.commit):
        yield f"version.json's commit {commit} is not the one of its version {version}."
    if version and content.get("timestamp") != version.timestamp:
        yield f"version.json's timestamp {content.get('timestamp')!r} is not the one of its version {version}."
    yield from _build_findings(facts, content)


def _build_findings(facts: ImageFacts, content: Mapping[str, Any]) -> Iterator[str]:
    """What version.json says of the variant, the platform, llama.cpp and the toolkit."""
    variant = content.get("variant")
    if facts.variant and variant != facts.variant.name:
        yield f"version.json's variant is {variant!r}, but the image is {facts.variant.name!r}."
    if facts.variant and content.get("variants") != list(facts.variant.directories):
        yield f"version.json's variants are {content.get('variants')!r} and not {list(facts.variant.directories)!r}."
    if facts.platform and content.get("platform") != facts.platform.docker:
        yield f"version.json's platform is {content.get('platform')!r}, but the image is for {facts.platform.docker}."
    llama_cpp = content.get("llama_cpp")
    for key, form in (("tag", r"b\d+"), ("commit", r"[0-9a-f]{40}")):
        value = llama_cpp.get(key) if isinstance(llama_cpp, dict) else None
        if not isinstance(value, str) or not re.fullmatch(form, value):
            yield f"version.json's llama_cpp has {value!r} as its {key}."
    toolkit = content.get("toolkit")
    if not isinstance(toolkit, dict) or not all(isinstance(value, str) and value for value in toolkit.values()):
        yield f"version.json's toolkit is {toolkit!r}, not names with versions."


def _said_by_version_json(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels that repeat what version.json says, with its value."""
    for label, key in (
        (Label.VERSION, "version"),
        (Label.REVISION, "commit"),
        (Label.BUILD_TIMESTAMP, "timestamp"),
        (Label.BUILD_BRANCH, "branch"),
        (Label.VARIANT, "variant"),
        (Label.PLATFORM, "platform"),
        (Label.GLIBC, "glibc"),
    ):
        if isinstance(content.get(key), str):
            yield label.value, content[key]
    if isinstance(content.get("variants"), list):
        yield Label.VARIANTS.value, ",".join(map(str, content["variants"]))
    if isinstance(content.get("variant"), str) and isinstance(content.get("version"), str):
        yield Label.REF_NAME.value, f"{content['variant']}-{content['version']}"
    llama_cpp = content.get("llama_cpp")
    if isinstance(llama_cpp, dict):
        yield Label.LLAMA_CPP_TAG.value, str(llama_cpp.get("tag"))
        yield Label.LLAMA_CPP_COMMIT.value, str(llama_cpp.get("commit"))
    toolkit = content.get("toolkit")
    if isinstance(toolkit, dict):
        for name, value in toolkit.items():
            yield f"{TOOLKIT_PREFIX}{name}", str(value)


def _is_rfc_3339(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return _RFC_3339.fullmatch(text) is not None


def _entrypoint_findings(facts: ImageFacts) -> Iterator[str]:
    if facts.image.entrypoint:
        yield from _program_findings(facts, "entrypoint", facts.image.entrypoint[0])


def _health_findings(facts: ImageFacts) -> Iterator[str]:
    command = facts.image.healthcheck
    if not command:
        yield "The image has no health check."
        return
    absent = list(_program_findings(facts, "health check", command[0]))
    yield from absent
    if absent:
        return
    for server in facts.servers:
        health = server.start.health
        if health is not None and health.exit_code:
            yield f"The health check does not follow {server.path} to the port it was given: {_last_line(health)}"
    if facts.shell and facts.shell.health and facts.shell.health.exit_code:
        yield (
            "The health check fails a container whose first process is not llama-server: "
            f"{_last_line(facts.shell.health)}"
        )


def _program_findings(facts: ImageFacts, what: str, program: str) -> Iterator[str]:
    entry = which(facts.files, program, facts.image.environment.get("PATH", ""))
    if entry is None:
        yield f"The {what}'s program {program} is not in the image."
    elif closed := _closed(facts.files, entry, 0o001):
        yield f"The {what}'s program {program} cannot be executed by all: {closed.path} has mode {closed.mode:04o}."


def _cpu_backend_findings(facts: ImageFacts) -> Iterator[str]:
    for directory in sorted({posixpath.dirname(server.path) for server in facts.servers}):
        if posixpath.basename(directory) in STATIC_BACKENDS:
            continue
        if layers.resolve(facts.files, f"{directory}/libggml-cpu.so"):
            yield f"{directory}/libggml-cpu.so is a CPU backend for one kind of processor, that of the build machine."
        wanted = CPU_BACKENDS[facts.platform] if facts.platform else ()
        absent = [name for name in wanted if not layers.resolve(facts.files, f"{directory}/libggml-cpu-{name}.so")]
        if absent:
            yield f"{directory} lacks {len(absent)} of the {len(wanted)} portable CPU backends: {_some(absent)}."


def _some(names: Iterable[str], limit: int = 3) -> str:
    """`a, b, c and 34 more`."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _last_line(result: ProbeResult) -> str:
    return _last(result.output) if not result.timed_out else "it did not end in time."


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing."
