"""What a Dockerfile says, as a set of facts in which formatting, order, comments and line breaks leave no trace.

Nothing is dropped: a command that is not understood is a fact by its own text, and a file that cannot be parsed is an
error.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeAlias

from base_images.recipes import instructions as syntax
from base_images.recipes import shell
from base_images.recipes.shell import Command

GLOBAL = "global"
"""The stage of instructions before the first FROM."""

UNREADABLE = "unreadable"
"""The kind of a fact that stands for an instruction that cannot be read."""

WHOLE_FILE = "file"
"""The stage of an `UNREADABLE` fact that stands for all of a file."""

_EXEC = {"ENTRYPOINT", "CMD", "SHELL"}

_MANAGERS = {"apt": "apt", "apt-get": "apt", "yum": "yum", "dnf": "dnf", "pip": "pip", "pip3": "pip", "npm": "npm"}
"""Programs that install packages, and their names in facts; `apt` and `apt-get` are the same program."""

_MANAGER_PREFIXES = (("python3", "-m"), ("python", "-m"), ("uv",))
_MANAGER_VALUE_OPTIONS = {"-o", "-t", "-r", "-c", "-i", "--python", "--index-url", "--extra-index-url"}
_CMAKE_VALUE_OPTIONS = {"-S", "-B", "-D", "-U", "-G", "-A", "-T", "-C", "--preset", "--toolchain"}
_CMAKE_BUILD_SYNONYMS = {"--parallel": "-j", "-t": "--target"}


@dataclass(frozen=True, kw_only=True, order=True)
class Fact:
    """One statement of a Dockerfile.

    Attributes:
        stage: the stage it belongs to; `global` before the first FROM.
        kind: what it states, such as `arg`, `apt`, `cmake build` (the build directory) or `run`.
        name: its subject, such as an ARG's name or a whole command; empty for kinds that a stage has once.
        value: empty where the fact only states that something is present.
    """

    stage: str
    kind: str
    name: str
    value: str

    @property
    def subject(self) -> str:
        """The fact without its value, such as `build: cmake build -DGGML_NATIVE`."""
        return f"{self.stage}: {self.kind} {self.name}".rstrip()

    def __str__(self) -> str:
        return f"{self.subject} = {self.value}" if self.value else self.subject


def read(text: str, name: str) -> tuple[Fact, ...]:
    """Returns the facts of a Dockerfile, sorted; no two have the same subject.

    Several values of one subject become one value that keeps their order.

    Args:
        text: the file.
        name: the file's name in errors.

    Raises:
        SourceError: an instruction or its shell cannot be parsed, or shfmt is not installed.
    """
    return _read(text, name, tolerant=False)


def read_tolerantly(text: str, name: str) -> tuple[Fact, ...]:
    """As `read`, but what cannot be read is a fact of the kind `UNREADABLE`, whose value says why.

    Its stage is `WHOLE_FILE` where nothing of the file can be read.

    Raises:
        SourceError: shfmt is not installed.
    """
    try:
        return _read(text, name, tolerant=True)
    except syntax.TooLongError as error:
        return (Fact(stage=WHOLE_FILE, kind=UNREADABLE, name="", value=str(error)),)


def _read(text: str, name: str, *, tolerant: bool) -> tuple[Fact, ...]:
    found: list[Fact] = []
    installs: list[_Install] = []
    arguments: _Arguments = {}
    stages: list[str] = []
    for instruction, value, line in syntax.instructions(text, name):
        try:
            with syntax.located(f"{name} line {line}"):
                _instruction(instruction, value, stages, arguments, found, installs)
        except syntax.UnreadableError as error:
            if not tolerant:
                raise
            words = " ".join(f"{instruction} {value}".split())
            stage = stages[-1] if stages else GLOBAL
            found.append(Fact(stage=stage, kind=UNREADABLE, name=words, value=str(error)))
    found += _install_facts(installs)
    subjects = groupby(sorted(found, key=lambda fact: fact.subject), key=lambda fact: fact.subject)
    return tuple(sorted(_without_other_names([_merged(tuple(facts)) for _, facts in subjects], stages)))


def _instruction(
    instruction: str,
    value: str,
    stages: list[str],
    arguments: _Arguments,
    found: list[Fact],
    installs: list[_Install],
) -> None:
    """Adds what an instruction says to `stages`, `arguments`, `found` and `installs`."""
    syntax.known(instruction)
    stage = stages[-1] if stages else GLOBAL
    if instruction in {"COPY", "ADD", "RUN"}:
        value = syntax.named_stages(value, stages)
    if instruction == "FROM":
        image, stage = syntax.from_arguments(value, len(stages))
        stages.append(stage)
        found.append(Fact(stage=stage, kind="from", name="", value=_base(image, arguments)))
    elif instruction == "RUN":
        _run(stage, value, found, installs)
    else:
        found += _facts(stage, instruction, value)
    if instruction == "ARG" and stage == GLOBAL:
        for key, default in syntax.assignments(value):
            if default is not None:
                expanded, used = _expanded(default, arguments)
                arguments[key] = (expanded, used or frozenset({key}))


def _without_other_names(facts: list[Fact], stages: list[str]) -> list[Fact]:
    """Removes the stages that only name a base for other stages, and puts the base in their place.

    With such a name an ARG can choose a stage's base: `FROM image AS a`, `FROM $CHOICE AS b`. FROM knows the stages
    above it; the same name below it, or its own, is an image.
    """
    counts = Counter(fact.stage for fact in facts)
    bases = {fact.stage: fact.value for fact in facts if fact.kind == "from"}
    names: dict[str, str] = {}
    started: set[str] = set()
    for stage in dict.fromkeys(stages):
        name = bases[stage].split()[0]
        if name in names:
            started.add(name)
            bases[stage] = names[name]
        if counts[stage] == 1:
            names[stage] = bases[stage]
    return [
        replace(fact, value=bases[fact.stage]) if fact.kind == "from" else fact
        for fact in facts
        if fact.stage not in started
    ]


def _merged(facts: tuple[Fact, ...]) -> Fact:
    values = [value for value, _ in groupby(fact.value for fact in facts)]
    if len(values) == 1:
        return facts[0]
    return replace(facts[0], value=" then ".join(value or "no value" for value in values))


# Instructions.


_SETTING = re.compile(r"([\w.-]+)\s*[:=](?!//)\s*")
_QUOTED = re.compile(r"""("[^"]*"|'[^']*')(?:\s+#.*|\s*)""")


def _setting(line: str) -> tuple[str, str] | None:
    """Returns the name and the value of `name: value` or `name = value`, without a comment; None for another line."""
    found = _SETTING.match(line)
    if not found:
        return None
    rest = line[found.end() :]
    quoted = _QUOTED.fullmatch(rest)
    return found[1], quoted[1] if quoted else re.split(r"\s#", rest, maxsplit=1)[0].rstrip()


def _file(stage: str, path: str, body: str) -> Iterator[Fact]:
    """Yields the lines of a file that a Dockerfile writes; settings, `name: value` or `name = value`, by name."""
    for line in body.split("\n"):
        setting = _setting(line.strip())
        if setting and not syntax.is_blank(line):
            yield Fact(stage=stage, kind="file", name=f"{path} {setting[0]}", value=setting[1].strip("'\"") or '""')
        elif not syntax.is_blank(line):
            yield Fact(stage=stage, kind="file", name=path, value=" ".join(line.split()))


# The expanded value of each global ARG, and the ARGs that it is made of.
_Arguments: TypeAlias = dict[str, tuple[str, frozenset[str]]]


def _expanded(text: str, arguments: _Arguments) -> tuple[str, frozenset[str]]:
    """Replaces every known ARG in `text`; also returns the ARGs that the result depends on."""
    names = [name for name in re.findall(r"\$\{(\w+)\}", text) if name in arguments]
    expanded = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], (match[0],))[0], text)
    if len(expanded) > syntax.MAX_CHARACTERS:
        raise syntax.MalformedError(f"a value with its ARGs replaced has {len(expanded)} characters")
    return expanded, frozenset().union(*(arguments[name][1] for name in names))


def _base(value: str, arguments: _Arguments) -> str:
    image, used = _expanded(syntax.braced(value), arguments)
    if not image.strip():
        raise syntax.MalformedError("FROM names no image")
    return f"{image} by {' '.join(sorted(used))}" if used else image


def _facts(stage: str, instruction: str, value: str) -> Iterable[Fact]:
    if instruction in _PARSERS:
        return _PARSERS[instruction](stage, instruction.lower(), value)
    text = _exec_or_shell(value) if instruction in _EXEC else syntax.braced(" ".join(value.split()))
    return [Fact(stage=stage, kind=instruction.lower(), name="", value=text)]


def _variables(stage: str, kind: str, value: str) -> Iterator[Fact]:
    for name, default in syntax.assignments(value, old_form=kind == "env"):
        if default is None:
            yield Fact(stage=stage, kind=kind, name=name, value="")
        else:
            yield from _variable(stage, kind, name, default)


def _variable(stage: str, kind: str, name: str, value: str, when: str = "") -> Iterator[Fact]:
    """Yields the value of a variable; each CMake flag in it is a fact of its own."""
    words = value.split()
    flags = [word for word in words if word.startswith("-D")]
    for flag in flags:
        yield _flag(stage, f"{kind} {name}", flag, when)
    rest = [word for word in words if word not in flags] if flags else [value or '""']
    if rest:
        yield Fact(stage=stage, kind=kind, name=name, value=" ".join(rest) + when)


def _flag(stage: str, kind: str, flag: str, when: str) -> Fact:
    """Returns the fact of `-DNAME=VALUE` or `-DNAME:TYPE=VALUE`; CMake ignores the type."""
    name, _, value = flag.partition("=")
    return Fact(stage=stage, kind=kind, name=name.partition(":")[0], value=(value or '""') + when)


def _labels(stage: str, kind: str, value: str) -> Iterator[Fact]:
    """Yields the names only: the values differ by publisher."""
    for name, _ in syntax.assignments(value, old_form=True):
        yield Fact(stage=stage, kind=kind, name=name, value="")


def _ports(stage: str, kind: str, value: str) -> Iterator[Fact]:
    for port in syntax.split_words(value):
        yield Fact(stage=stage, kind=kind, name=port, value="")


def _copies(stage: str, kind: str, value: str) -> Iterator[Fact]:
    """Yields one fact per source; its name includes `--from`."""
    bodies = syntax.heredoc_bodies(value)
    options, rest = syntax.leading_options(value.split("\n", maxsplit=1)[0])
    origin = "".join(f"{option.lower()} " for option in options if option.startswith("--from="))
    others = "".join(f" {option}" for option in sorted(options) if not option.startswith("--from="))
    *sources, target = syntax.exec_form(rest) or syntax.split_words(rest)
    if not sources:
        raise syntax.MalformedError(f"{kind.upper()} names no source or no target")
    for end, body in bodies:
        yield from _file(stage, posixpath.join(target, end) if target.endswith("/") else target, body)
    for source in sources:
        # A heredoc's end mark is the file's name only where the target is a directory.
        written = source.startswith("<<") and not target.endswith("/")
        name = "<<" if written else origin + _path(source)
        yield Fact(stage=stage, kind=kind, name=name, value=posixpath.normpath(target) + others)


def _path(source: str) -> str:
    """Returns a path without what changes nothing in it; a URL is none."""
    return source if "://" in source else posixpath.normpath(source)


def _health(stage: str, kind: str, value: str) -> Iterator[Fact]:
    options, rest = syntax.leading_options(value)
    instruction, _, command = rest.partition(" ")
    words = [*sorted(options), instruction.upper(), _exec_or_shell(command.strip()) if command else ""]
    yield Fact(stage=stage, kind=kind, name="", value=" ".join(words).strip())


_PARSERS = {
    "ARG": _variables,
    "ENV": _variables,
    "LABEL": _labels,
    "EXPOSE": _ports,
    "COPY": _copies,
    "ADD": _copies,
    "HEALTHCHECK": _health,
}


def _exec_or_shell(value: str) -> str:
    if words := syntax.exec_form(value):
        return json.dumps(words)
    return shell.one_line(value)


# RUN.


@dataclass(frozen=True, kw_only=True)
class _Install:
    stage: str
    manager: str
    options: tuple[str, ...]
    packages: tuple[str, ...]
    when: str


def _run(stage: str, value: str, found: list[Fact], installs: list[_Install]) -> None:
    """Adds the facts of a RUN to `found`, and its installs to `installs`."""
    options, text = syntax.leading_options(value)
    found += [Fact(stage=stage, kind="run option", name=option, value="") for option in options]
    if words := syntax.exec_form(text):
        found.append(Fact(stage=stage, kind="run", name=json.dumps(words), value=""))
        return
    script = syntax.run_script(text)
    if other := syntax.other_interpreter(script):
        found.append(Fact(stage=stage, kind="run", name=other, value=" ".join(script.split())))
        return
    for command in shell.commands(script):
        if command.written:
            found += _file(stage, *command.written)
        install = _install(stage, command)
        program = command.words[0] if command.words else ""
        if program in {"", "export"}:
            for name, assigned in command.variables:
                found += _variable(stage, "variable", name, assigned, command.when)
            continue
        if install:
            installs.append(install)
            program = install.manager
        elif program == "cmake" and "--install" not in command.words:
            found += _cmake(stage, command)
        else:
            prefix = [f"{name}={assigned}" for name, assigned in command.variables]
            words = [*prefix, _MANAGERS.get(program, program), *command.words[1:]]
            found.append(Fact(stage=stage, kind="run", name=" ".join(words), value=command.when.strip()))
            continue
        for name, assigned in command.variables:
            found += _variable(stage, f"{program} environment", name, assigned, command.when)


def _install(stage: str, command: Command) -> _Install | None:
    """Returns the packages that a command installs; None if it installs none by name."""
    words = command.words
    for prefix in _MANAGER_PREFIXES:
        if words[: len(prefix)] == prefix:
            words = words[len(prefix) :]
    if not words or words[0] not in _MANAGERS:
        return None
    options, others = _split_options(words[1:], _MANAGER_VALUE_OPTIONS)
    if others[:1] != ["install"] or not others[1:]:
        return None
    return _Install(
        stage=stage,
        manager=_MANAGERS[words[0]],
        options=tuple(f"{name} {value}".strip() for name, value in options),
        packages=tuple(package.strip("'") for package in others[1:]),
        when=command.when,
    )


def _install_facts(installs: list[_Install]) -> Iterator[Fact]:
    """Yields packages with their version constraint, and options with their packages unless a whole stage has them."""
    for (stage, manager), group in groupby(
        sorted(installs, key=lambda install: (install.stage, install.manager)),
        key=lambda install: (install.stage, install.manager),
    ):
        together = list(group)
        for install in together:
            for package in install.packages:
                name = re.split(r"[=<>~!]", package, maxsplit=1)[0]
                held = package.removeprefix(name)
                yield Fact(stage=stage, kind=manager, name=name, value=f"{held}{install.when}".strip())
        for option in {option for install in together for option in install.options}:
            having = [install for install in together if option in install.options]
            packages = sorted({package for install in having for package in install.packages})
            scope = "" if having == together else f"for {' '.join(packages)}"
            yield Fact(stage=stage, kind=f"{manager} option", name=option, value=scope)


def _split_options(words: Iterable[str], with_value: set[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns options with their values, and the other words."""
    options: list[tuple[str, str]] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        if word in with_value:
            options.append((word, next(left, "")))
        elif word.startswith("-") and word != "-":
            options.append((word, ""))
        else:
            others.append(word)
    return options, others


def _cmake(stage: str, command: Command) -> Iterator[Fact]:
    """Yields the options of `cmake`; their kind has the build directory."""
    if "--build" in command.words:
        yield from _cmake_build(stage, command)
        return
    options, others = _split_options(command.words[1:], _CMAKE_VALUE_OPTIONS)
    # `-Bbuild` is `-B build`; a lone path is the source directory.
    joined = [
        (name[:2], name[2:]) if not value and name[:2] in _CMAKE_VALUE_OPTIONS else (name, value)
        for name, value in options
    ]
    paths = [word for word in others if "$" not in word]
    joined += [("-S", path) for path in paths]
    directory = next((value for name, value in joined if name == "-B"), ".")
    kind = f"cmake {posixpath.normpath(directory)}"
    for name, value in joined:
        if name == "-D":
            yield _flag(stage, kind, f"-D{value}", command.when)
        elif name != "-B":
            yield Fact(stage=stage, kind=kind, name=name, value=f"{value}{command.when}".strip())
    for word in others:
        if word not in paths:
            yield Fact(stage=stage, kind=kind, name=word, value=command.when.strip())


def _cmake_build(stage: str, command: Command) -> Iterator[Fact]:
    option, values = "", list[str]()
    grouped: list[tuple[str, list[str]]] = []
    for word in command.words[1:]:
        if word.startswith("-"):
            option, _, value = word.partition("=")
            if re.match(r"-j.", option):
                option, value = "-j", option[2:]
            values = [value] if value else []
            grouped.append((_CMAKE_BUILD_SYNONYMS.get(option, option), values))
        elif grouped:
            values.append(word)
    directory = next((values[0] for option, values in grouped if option == "--build" and values), ".")
    kind = f"cmake --build {posixpath.normpath(directory)}"
    for option, values in grouped:
        if option == "--target":
            for target in values:
                yield Fact(stage=stage, kind=kind, name=f"--target {target}", value=command.when.strip())
        elif option == "--build":
            yield Fact(stage=stage, kind=kind, name="", value=command.when.strip())
        else:
            yield Fact(stage=stage, kind=kind, name=option, value=f"{' '.join(values)}{command.when}".strip())
