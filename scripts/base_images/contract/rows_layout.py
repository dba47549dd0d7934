"""Contract rows 1, 2, 4 and 5: paths, linking, ownership and the working directory."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from base_images.contract import layers
from base_images.contract.facts import GROUP, PASSWD, VERSION_JSON, ImageFacts
from base_images.contract.layers import Kind
from base_images.contract.verdict import NO_SERVER, Verdict, blocked_by, last_line, some
from base_images.labels import Label
from base_images.variants import Platform

LLAMA_USER = "llama"

LLAMA_ID = 999
"""UID of the user, and GID of its group unless the base image uses that number for another group. Existing
installations have volumes that this number owns (dockerfiles/llama-user)."""

RUNPATH = "$ORIGIN"
_MACHINES = {Platform.AMD64: "EM_X86_64", Platform.ARM64: "EM_AARCH64"}
_NOT_FOUND = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)
_NO_VERSION = re.compile(r"^.*version `.+' not found.*$", re.MULTILINE)
_UNDEFINED = re.compile(r"^(?:undefined symbol: (\S+)|.*symbol lookup error: (.+?))\s+\(.*\)$", re.MULTILINE)


def layout(facts: ImageFacts) -> Verdict:
    """Row 1: each of the variant's directories has a llama-server for the platform that all users can execute."""
    found = ", ".join(server.path for server in facts.servers) or "no llama-server"
    if facts.platform is None:
        return Verdict(found, [f"The image is for {facts.image.architecture}, which no target triple is known for."])
    if facts.variant is None:
        return Verdict(found, [f"Neither the label {Label.VARIANT} nor a directory below /app/bin tells the variant."])
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
        elif closed := blocked_by(facts.files, entry, 0o001):
            findings.append(f"{path} cannot be executed by all: {closed.path} has mode {closed.mode:04o}.")
    return Verdict(found, findings)


def libraries(facts: ImageFacts) -> Verdict:
    """Row 2: every ELF file finds its libraries by RUNPATH and resolves its symbols."""
    elves = [entry for entry in facts.payload if entry.is_elf]
    if not elves:
        return Verdict("no ELF file", [NO_SERVER])
    damaged = [entry.path for entry in elves if entry.elf is None]
    dynamic = [(entry, entry.elf) for entry in elves if entry.elf and entry.elf.dynamic]
    findings = [f"Not readable as ELF: {some(damaged)}."] if damaged else []
    wrong: dict[str, list[str]] = defaultdict(list)
    for entry, elf in dynamic:
        if elf.rpath is not None:
            wrong[f"RPATH {elf.rpath!r}"].append(entry.path)
        if elf.runpath != RUNPATH:
            wrong["No RUNPATH" if elf.runpath is None else f"RUNPATH {elf.runpath!r}"].append(entry.path)
    findings += [f"{what} instead of RUNPATH {RUNPATH!r} on {some(paths)}." for what, paths in wrong.items()]

    missing = _missing_libraries(facts)
    findings += [f"{name} is not found, needed by {some(paths)}." for name, paths in sorted(missing.items())]
    findings += _unresolved(facts)
    if facts.shell is None or facts.shell.ldd is None:
        findings.append("The image has no working ldd, so symbols could not be checked.")
    right = sum(elf.runpath == RUNPATH and elf.rpath is None for _, elf in dynamic)
    return Verdict(f"{len(elves)} ELF files, {right} with RUNPATH {RUNPATH}", findings)


def ownership(facts: ImageFacts) -> Verdict:
    """Row 4: the image runs as llama, and root owns the payload."""
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
        findings.append(f"Not owned by root: {some(foreign)}.")
    if writable:
        findings.append(f"Writable by others than the owner: {some(writable)}.")
    seen = f"runs as {configured or 'root'}"
    return Verdict(f"{seen}; its group is {group}, as the base gave {LLAMA_ID} to {taken}" if taken else seen, findings)


def working_directory(facts: ImageFacts) -> Verdict:
    """Row 5: the working directory is /app, and all users can read version.json."""
    findings = []
    if facts.image.working_directory != "/app":
        findings.append(f"The WORKDIR is {facts.image.working_directory} and not /app.")
    app = layers.resolve(facts.files, "/app")
    if app is None or app.kind is not Kind.DIRECTORY:
        findings.append("There is no directory /app.")
    entry = layers.resolve(facts.files, VERSION_JSON)
    if entry is None or entry.kind is not Kind.FILE:
        findings.append(f"There is no {VERSION_JSON}.")
    elif closed := blocked_by(facts.files, entry, 0o004):
        findings.append(f"{VERSION_JSON} cannot be read by all: {closed.path} has mode {closed.mode:04o}.")
    elif facts.shell and facts.shell.version_json.exit_code:
        findings.append(f"The image's user cannot read {VERSION_JSON}: {last_line(facts.shell.version_json)}")
    return Verdict(f"WORKDIR {facts.image.working_directory}", findings)


def _host_libraries(facts: ImageFacts) -> Mapping[str, tuple[str, ...]]:
    return facts.variant.host_libraries if facts.variant else {}


def _missing_libraries(facts: ImageFacts) -> dict[str, list[str]]:
    """Maps each missing library to the payload files that need it, by the image's files and by the output of ldd."""
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
    """Yields the symbols that ldd does not resolve, unless the file lacks a library, which is the cause then."""
    host = _host_libraries(facts)
    for path, output in _ldd(facts).items():
        lacking = set(_NOT_FOUND.findall(output))
        if lacking - set(host):
            continue
        excepted = tuple(prefix for name in lacking for prefix in host[name])
        symbols = [symbol or error for symbol, error in _UNDEFINED.findall(output)]
        symbols = sorted({symbol for symbol in symbols if not excepted or not symbol.startswith(excepted)})
        if symbols:
            yield f"{path} has unresolved symbols: {some(symbols)}."
        for line in sorted(set(_NO_VERSION.findall(output))):
            yield f"{path} needs another version of a library: {line.strip()}."


def _ldd(facts: ImageFacts) -> Mapping[str, str]:
    return (facts.shell.ldd if facts.shell else None) or {}


def _table(facts: ImageFacts, path: str) -> list[list[str]]:
    """Returns the fields of each line of /etc/passwd or /etc/group."""
    entry = layers.resolve(facts.files, path)
    text = (entry.content or b"").decode("utf-8", errors="replace") if entry else ""
    return [line.split(":") for line in text.splitlines() if line]
