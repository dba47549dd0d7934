"""Contract rows 9, 10, 12, 17 and 21: unwanted files, permissions, duplicates, the size and the license texts."""

from __future__ import annotations

import json
import posixpath
import re
from collections import defaultdict

from base_images.contract import layers, sizes
from base_images.contract.facts import ImageFacts
from base_images.contract.layers import Entry, Kind
from base_images.contract.verdict import Status, Verdict, some
from base_images.labels import Label, toolkit
from base_images.variants import megabytes

DUPLICATE_BYTES = 64 << 10
"""Equal files below this size do not count as duplicates of the payload."""

GROWN = 1.02
"""The part of the measured size from which an image counts as grown."""

DOCUMENTATION = "/usr/share/doc/llama.cpp"
_LICENSE_TEXTS = ("LICENSE", "NOTICES", "vendor/cpp-httplib/LICENSE")
"""What dockerfiles/llama-licenses makes at least."""

_CACHES = (
    *("/var/lib/apt/lists/", "/var/cache/apt/", "/var/cache/yum/", "/var/cache/dnf/", "/var/cache/apk/"),
    *("/root/.cache/", "/root/.npm/", "/root/.ccache/", "/ccache/"),
)
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


def contents(facts: ImageFacts) -> Verdict:
    """Row 9: no build tool, source, cache or other program of llama.cpp is in the image."""
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
        kinds["Another program besides llama-server"] += extra
    count = sum(map(len, kinds.values()))
    seen = f"{len(facts.files)} paths, {count} that do not belong"
    findings = [f"{what} in the image: {some(paths)}." for what, paths in kinds.items()]
    if findings and facts.variant and facts.variant.runs_on_toolkit:
        base = layers.merge(facts.layers[: facts.base_layers])
        if all(path in base for paths in kinds.values() for path in paths):
            excepted = f"All {count} are of the toolkit's image that {facts.variant.name} runs on: a known exception."
            return Verdict(seen, [excepted], Status.EXCEPTION)
    return Verdict(seen, findings)


def _misplaced(path: str, entry: Entry) -> str:
    """Returns what kind of unwanted file a path is; empty when it belongs in an image."""
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


def privileges(facts: ImageFacts) -> Verdict:
    """Row 10: no setuid file or file capability beyond the base's, and nothing that everyone can write."""
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
        findings.append(f"Setuid or setgid, and not so in the base image: {some(set_id)}.")
    if capable:
        findings.append(f"File capabilities that the base image does not give: {some(capable)}.")
    if open_files:
        findings.append(f"Files that everyone may write: {some(open_files)}.")
    if open_directories:
        findings.append(f"Directories that everyone may write, and not sticky: {some(open_directories)}.")
    count = sum(bool(entry.mode & 0o6000) for entry in files)
    return Verdict(f"{count} setuid or setgid files; {facts.base}", findings)


def stored_once(facts: ImageFacts) -> Verdict:
    """Row 12: no layer stores a file again, and no two payload files have the same content."""
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
                f"{bytes_again} bytes: {some([entry.path for entry in again])}."
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
            findings.append(f"One content is stored {len(entries)} times: {some([entry.path for entry in entries])}.")
    return Verdict(f"{len(facts.layers)} layers, {megabytes(wasted)} stored again", findings)


def has_grown(facts: ImageFacts) -> bool:
    """Returns whether an image is larger than its variant was when last measured, by more than builds differ."""
    measured = facts.variant.size_measured if facts.variant and _is_measured(facts) else None
    return measured is not None and facts.sizes.added > measured * GROWN


def _is_measured(facts: ImageFacts) -> bool:
    """Returns whether the variant's sizes are for the device architectures that the image was compiled for."""
    variant = facts.variant
    if variant is None or not variant.size_architectures or variant.architectures is None:
        return variant is not None
    name = next(key for key, argument in variant.toolkit.items() if argument == variant.architectures.argument)
    return toolkit(facts.image.labels).get(name) == variant.size_architectures


def size(facts: ImageFacts) -> Verdict:
    """Row 17: the layers above the base are within the variant's size budget; what grew, by layer and file."""
    added = facts.sizes.added
    seen = f"{megabytes(added)} over its base; {facts.base}"
    grown: list[str] = []
    if facts.before and facts.before.sizes:
        more = added - facts.before.sizes.added
        grown = list(sizes.growth(facts.before.sizes, facts.sizes))
        than = f"{megabytes(abs(more))} {'more' if more > 0 else 'less'}" if more else "as much"
        seen += f"; {than} {'than' if more else 'as'} {facts.before.name}"
    elif facts.before:
        seen += f"; {facts.before.name}"
    budget = facts.variant.size_budget if facts.variant and _is_measured(facts) else None
    if budget is not None and added > budget:
        over = f"The image adds {megabytes(added)} to its base, over the budget of {megabytes(budget)}."
        return Verdict(seen, [over, *grown])
    seen = f"{seen}; {'no budget yet' if budget is None else f'budget {megabytes(budget)}'}"
    status = Status.NOT_APPLICABLE if budget is None else Status.PASS
    return Verdict(f"{seen}. {' '.join(grown)}" if grown else seen, status=status)


def licenses(facts: ImageFacts) -> Verdict:
    """Row 21: the license texts are in the image, and each llama-server's ELF note names llama.cpp and its version."""
    texts = [path for path in facts.files if path.startswith(f"{DOCUMENTATION}/")]
    missing = [
        name for name in _LICENSE_TEXTS if not (entry := facts.files.get(f"{DOCUMENTATION}/{name}")) or not entry.size
    ]
    findings = [f"{DOCUMENTATION} lacks {', '.join(missing)}."] if missing else []
    tag = facts.image.labels.get(Label.LLAMA_CPP_TAG, "")
    for server in facts.servers:
        entry = facts.files.get(server.path)
        note = entry.elf.package if entry and entry.elf else ""
        try:
            package = json.loads(note)
            named = (package["name"], package["version"]) == ("llama.cpp", tag)
        except (ValueError, TypeError, KeyError, RecursionError):
            named = False
        if not named:
            findings.append(
                f"The package note of {server.path} does not name llama.cpp {tag}: {note or 'there is none'}."
            )
    return Verdict(f"{len(texts)} paths in {DOCUMENTATION}", findings)
