"""What a Dockerfile says, as a set of facts in which formatting, order, comments and line breaks leave no trace.

Instructions are split by dockerfile-parse. The shell of RUN is parsed by shfmt, a real shell grammar with a stable
JSON form: splitting at `&&` would take an `if`, a quoted `;` or a redirection for something else. Nothing is dropped:
a command that is not understood is a fact by its own text, and a file that cannot be parsed is an error.
"""

from __future__ import annotations

import functools
import io
import json
import posixpath
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

from dockerfile_parse.parser import DockerfileParser

from base_images.adapters.programs import find_program
from base_images.errors import SourceError

GLOBAL = "global"
"""The stage of what stands before the first FROM."""

_EXEC = {"ENTRYPOINT", "CMD", "SHELL"}
_SINGLE = {"USER", "STOPSIGNAL", "WORKDIR", "MAINTAINER", "VOLUME", "ONBUILD"}

_MANAGERS = {"apt": "apt", "apt-get": "apt", "yum": "yum", "dnf": "dnf", "pip": "pip", "pip3": "pip", "npm": "npm"}
"""Programs that install packages, and what a fact calls them; `apt` and `apt-get` are two faces of one program."""

_MANAGER_PREFIXES = (("python3", "-m"), ("python", "-m"), ("uv",))
_MANAGER_VALUE_OPTIONS = {"-o", "-t", "-r", "-c", "-i", "--python", "--index-url", "--extra-index-url"}
_CMAKE_VALUE_OPTIONS = {"-S", "-B", "-D", "-U", "-G", "-A", "-T", "-C"}
_CMAKE_BUILD_SYNONYMS = {"--parallel": "-j", "-t": "--target"}

_SPECIAL = frozenset(" \t\n*?[]{}~$;&|<>()'\"\\`#!")
"""Characters that quotes change the meaning of; around others quotes are formatting."""


@dataclass(frozen=True, kw_only=True, order=True)
class Fact:
    """One thing that a Dockerfile says.

    Attributes:
        stage: the stage that says it; `global` before the first FROM.
        kind: what is said, such as `arg`, `apt`, `cmake build` (the build directory) or `run`.
        name: about what, such as an ARG's name or a whole command; empty where there can be only one.
        value: empty where the fact is just that it is there.
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
    """Returns the facts of the Dockerfile `text`, sorted; no two have the same subject.

    What is said several times about one subject is one value, in the order in which it is said.

    Args:
        text: the file.
        name: how errors call it.

    Raises:
        SourceError: an instruction or its shell cannot be parsed, or shfmt is not installed.
    """
    said: list[Fact] = []
    installs: list[_Install] = []
    arguments: _Arguments = {}
    stages: list[str] = []
    for instruction, value, line in instructions(text, name):
        where = f"{name} line {line}"
        stage = stages[-1] if stages else GLOBAL
        if instruction == "FROM":
            stages.append(stage_name(value, len(stages)))
            said.append(Fact(stage=stages[-1], kind="from", name="", value=_base(value, arguments)))
        elif instruction == "RUN":
            _run(stage, value, where, said, installs)
        else:
            said += _facts(stage, instruction, value, where)
        if instruction == "ARG" and stage == GLOBAL:
            for key, default in assignments(value):
                if default is not None:
                    expanded, used = _expanded(default, arguments)
                    arguments[key] = (expanded, used or frozenset({key}))
    said += _install_facts(installs)
    subjects = groupby(sorted(said, key=lambda fact: fact.subject), key=lambda fact: fact.subject)
    return tuple(sorted(_without_other_names([_merged(tuple(facts)) for _, facts in subjects])))


def _without_other_names(facts: list[Fact]) -> list[Fact]:
    """Returns the facts without stages that are only another name for their base, where other stages start from them.

    Such a name lets an ARG choose a stage's base: `FROM image AS a`, `FROM $CHOICE AS b`.
    """
    stages = [fact.stage for fact in facts]
    names = {fact.stage: fact.value for fact in facts if fact.kind == "from" and stages.count(fact.stage) == 1}
    started = {fact.value.split()[0] for fact in facts if fact.kind == "from"} & names.keys()
    resolved = []
    for fact in facts:
        value = fact.value
        while fact.kind == "from" and value.split()[0] in names:
            value = names[value.split()[0]]
        if fact.stage not in started:
            resolved.append(replace(fact, value=value))
    return resolved


def _merged(facts: tuple[Fact, ...]) -> Fact:
    values = [value for value, _ in groupby(fact.value for fact in facts)]
    if len(values) == 1:
        return facts[0]
    return replace(facts[0], value=" then ".join(value or "no value" for value in values))


# Instructions.


def instructions(text: str, name: str) -> Iterator[tuple[str, str, int]]:
    """Yields each instruction of a Dockerfile with its arguments, continuation lines joined, and its line number.

    Raises:
        SourceError: something is not an instruction; the error calls the file `name`.
    """
    kept, heredocs = _without_heredocs(text.splitlines())
    # A blank line ends a continued instruction for dockerfile-parse, but not for BuildKit; a comment does for neither.
    lines = "".join(f"{line if line.strip() else '#'}\n" for line in kept)
    parser = DockerfileParser(fileobj=io.BytesIO(lines.encode()))  # type: ignore[no-untyped-call]
    for entry in parser.structure:
        instruction, value = entry["instruction"], entry["value"].strip()
        line = entry["startline"] + 1
        if instruction == "COMMENT":
            continue
        if instruction not in _EXEC | _SINGLE | {*_PARSERS, "FROM", "RUN"}:
            raise SourceError(f"{name} line {line}: {instruction} is not a Dockerfile instruction that is read here.")
        yield instruction, value + heredocs.get(entry["endline"], ""), line


_HEREDOC = re.compile(r"""(?<![<\w])<<(?P<tabs>-?)\s*(?P<quote>['"]?)(?P<end>[A-Za-z_]\w*)(?P=quote)""")
_HEREDOC_INSTRUCTION = re.compile(r"\s*(RUN|COPY|ADD)\s", re.IGNORECASE)


def _without_heredocs(lines: list[str]) -> tuple[list[str], dict[int, str]]:
    """Returns the lines with heredocs blanked, and each instruction's heredocs by the number of its last line.

    A `<<` whose end is on no later line is something else, such as text in quotes.
    """
    kept = list(lines)
    heredocs: dict[int, str] = {}
    number = 0
    while number < len(lines):
        first, last = number, number
        while last + 1 < len(lines) and (
            (_is_blank(lines[last]) and last > first) or lines[last].rstrip().endswith("\\")
        ):
            last += 1
        number = last + 1
        if not _HEREDOC_INSTRUCTION.match(lines[first]):
            continue
        for marker in _HEREDOC.finditer("\n".join(line for line in lines[first : last + 1] if not _is_blank(line))):
            ends = (line.lstrip("\t") if marker["tabs"] else line for line in lines[number:])
            number += next((count for count, line in enumerate(ends, start=1) if line == marker["end"]), 0)
        if number > last + 1:
            heredocs[last] = "\n" + "\n".join(lines[last + 1 : number])
            kept[last + 1 : number] = [""] * (number - last - 1)
    return kept, heredocs


def _is_blank(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _heredoc_bodies(value: str) -> list[tuple[str, str]]:
    """Returns the end mark and the body of each heredoc of an instruction."""
    first, *lines = value.split("\n")
    bodies = []
    for marker in _HEREDOC.finditer(first):
        body = list(takewhile(lambda line, end=marker["end"]: line.strip() != end, lines))  # type: ignore[misc]
        del lines[: len(body) + 1]
        bodies.append((marker["end"], "\n".join(body)))
    return bodies


_SETTING = re.compile(r"""([\w.-]+)\s*[:=]\s*("[^"]*"|'[^']*'|.*?)\s*(?:\s#.*)?""")


def _file(stage: str, path: str, body: str) -> Iterator[Fact]:
    """Yields what a file says that a Dockerfile writes out: its settings, `name: value` or `name = value`, by name."""
    for line in body.split("\n"):
        setting = _SETTING.fullmatch(line.strip())
        if setting and not _is_blank(line):
            yield Fact(stage=stage, kind="file", name=f"{path} {setting[1]}", value=setting[2].strip("'\"") or '""')
        elif not _is_blank(line):
            yield Fact(stage=stage, kind="file", name=path, value=" ".join(line.split()))


def stage_name(value: str, number: int) -> str:
    """Returns what facts call the stage that a FROM begins, given its arguments and its number from 0."""
    match = re.search(r"\s+AS\s+(\S+)$", value, re.IGNORECASE)
    return match[1].lower() if match else str(number)


# The value of each global ARG with those above it replaced, and the ARGs whose text is in it.
_Arguments = dict[str, tuple[str, frozenset[str]]]


def _expanded(text: str, arguments: _Arguments) -> tuple[str, frozenset[str]]:
    """Returns `text` with every known ARG replaced, and the ARGs that it depends on in the end."""
    names = [name for name in re.findall(r"\$\{(\w+)\}", text) if name in arguments]
    expanded = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], (match[0],))[0], text)
    return expanded, frozenset().union(*(arguments[name][1] for name in names))


def _base(value: str, arguments: _Arguments) -> str:
    image, used = _expanded(_braced(re.sub(r"\s+AS\s+\S+$", "", value, flags=re.IGNORECASE)), arguments)
    return f"{image} by {' '.join(sorted(used))}" if used else image


def _facts(stage: str, instruction: str, value: str, where: str) -> Iterable[Fact]:
    if instruction in _PARSERS:
        return _PARSERS[instruction](stage, instruction.lower(), value)
    text = _exec_or_shell(value, where) if instruction in _EXEC else _braced(" ".join(value.split()))
    return [Fact(stage=stage, kind=instruction.lower(), name="", value=text)]


def _variables(stage: str, kind: str, value: str) -> Iterator[Fact]:
    for name, default in assignments(value, old_form=kind == "env"):
        if default is None:
            yield Fact(stage=stage, kind=kind, name=name, value="")
        else:
            yield from _variable(stage, kind, name, default)


def _variable(stage: str, kind: str, name: str, value: str, when: str = "") -> Iterator[Fact]:
    """Yields what a variable is set to; CMake flags in it are facts of their own."""
    words = value.split()
    flags = [word for word in words if word.startswith("-D")]
    for flag in flags:
        yield _flag(stage, f"{kind} {name}", flag, when)
    rest = [word for word in words if word not in flags] if flags else [value or '""']
    if rest:
        yield Fact(stage=stage, kind=kind, name=name, value=" ".join(rest) + when)


def _flag(stage: str, kind: str, flag: str, when: str) -> Fact:
    """Returns the fact of `-DNAME=VALUE` or `-DNAME:TYPE=VALUE`; the type says nothing that CMake acts on."""
    name, _, value = flag.partition("=")
    return Fact(stage=stage, kind=kind, name=name.partition(":")[0], value=(value or '""') + when)


def _labels(stage: str, kind: str, value: str) -> Iterator[Fact]:
    """Yields the names: what they say of an image is each publisher's own."""
    for name, _ in assignments(value, old_form=True):
        yield Fact(stage=stage, kind=kind, name=name, value="")


def _ports(stage: str, kind: str, value: str) -> Iterator[Fact]:
    for port in _words(value):
        yield Fact(stage=stage, kind=kind, name=port, value="")


def _copies(stage: str, kind: str, value: str) -> Iterator[Fact]:
    """Yields one fact for each source; its name holds the stage that it comes from."""
    bodies = _heredoc_bodies(value)
    options, rest = _options(value.split("\n", maxsplit=1)[0])
    origin = "".join(f"{option.lower()} " for option in options if option.startswith("--from="))
    others = "".join(f" {option}" for option in sorted(options) if not option.startswith("--from="))
    *sources, target = _exec_form(rest) or _words(rest)
    for end, body in bodies:
        yield from _file(stage, posixpath.join(target, end) if target.endswith("/") else target, body)
    for source in sources:
        # The mark that ends a heredoc is the file's name only where the target is a directory.
        written = source.startswith("<<") and not target.endswith("/")
        name = "<<" if written else origin + posixpath.normpath(source)
        yield Fact(stage=stage, kind=kind, name=name, value=posixpath.normpath(target) + others)


def _health(stage: str, kind: str, value: str) -> Iterator[Fact]:
    options, rest = _options(value)
    instruction, _, command = rest.partition(" ")
    words = [*sorted(options), instruction.upper(), _exec_or_shell(command.strip(), stage) if command else ""]
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


def _options(value: str) -> tuple[list[str], str]:
    """Returns the leading `--name=value` options of an instruction, and what follows them."""
    options = list(takewhile(lambda word: word.startswith("--"), value.split()))
    rest = value
    for option in options:
        rest = rest.lstrip().removeprefix(option)
    return [_braced(option) for option in options], rest.strip()


def _exec_form(value: str) -> list[str]:
    """Returns the words of a JSON list; none when the text is the shell form, which may begin with `[` as well."""
    try:
        words = json.loads(value)
    except json.JSONDecodeError:
        return []
    return words if isinstance(words, list) else []


def _exec_or_shell(value: str, where: str) -> str:
    if words := _exec_form(value):
        return json.dumps(words)
    return "; ".join(_shell_text(statement, value.encode()) for statement in _parse_shell(value, where))


def assignments(value: str, *, old_form: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yields the names and values of ARG, ENV and LABEL; None where a name stands alone.

    Args:
        value: the instruction's arguments.
        old_form: whether `NAME any text` is one name with a value, as in ENV and LABEL; in ARG it is three names.
    """
    words = list(_words(value))
    if old_form and "=" not in words[0] and len(words) > 1 and "=" not in words[1]:
        name, rest = value.split(maxsplit=1)
        yield name, _braced(rest)
        return
    for word in words:
        name, has_value, text = word.partition("=")
        yield name, text if has_value else None


_WORD_PART = re.compile(r"""'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|(?P<plain>[^\s'"\\]+)""")


def _words(value: str) -> Iterator[str]:
    """Yields the words of an instruction as BuildKit's own lexer has them: no globbing, no splitting of variables."""
    word, end = "", 0
    for part in _WORD_PART.finditer(value):
        if between := value[end : part.start()]:
            if not between.isspace():
                raise SourceError(f"A quote is opened and not closed, or nothing follows a backslash, in {value!r}.")
            yield word
            word = ""
        end = part.end()
        literal = part["single"] if part["single"] is not None else part["escaped"]
        if literal is not None:
            word += literal.replace("$", "\\$")
        elif part["double"] is not None:
            word += _braced(re.sub(r'\\(["\\])', r"\1", part["double"]))
        else:
            word += _braced(part["plain"])
    if value[end:].strip():
        raise SourceError(f"A quote is opened and not closed, or nothing follows a backslash, in {value!r}.")
    yield word


def _braced(text: str) -> str:
    """Returns `text` with `$NAME` written as `${NAME}`."""
    return re.sub(r"(?<!\\)\$([A-Za-z_]\w*)", r"${\1}", text)


# The shell of RUN.


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A simple command of a RUN.

    Attributes:
        when: empty, or under which condition it runs and where its output goes.
        written: the file and the text of `cat > FILE << EOF`.
    """

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    when: str
    written: tuple[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class _Install:
    stage: str
    manager: str
    options: tuple[str, ...]
    packages: tuple[str, ...]
    when: str


def _run(stage: str, value: str, where: str, said: list[Fact], installs: list[_Install]) -> None:
    """Adds what a RUN says to `said`, and the packages it installs to `installs`."""
    options, text = _options(value)
    said += [Fact(stage=stage, kind="run option", name=option, value="") for option in options]
    if words := _exec_form(text):
        said.append(Fact(stage=stage, kind="run", name=json.dumps(words), value=""))
        return
    if text.startswith("<<") and _HEREDOC.fullmatch(text.split("\n")[0].strip()):  # all of it is the script
        [(_, text)] = _heredoc_bodies(text)
    for command in _commands(_parse_shell(text, where), text.encode(), ()):
        if command.written:
            said += _file(stage, *command.written)
        install = _install(stage, command)
        program = command.words[0] if command.words else ""
        if program in {"", "export"}:
            for name, assigned in command.variables:
                said += _variable(stage, "variable", name, assigned, command.when)
            continue
        if install:
            installs.append(install)
            program = install.manager
        elif program == "cmake" and "--install" not in command.words:
            said += _cmake(stage, command)
        else:
            prefix = [f"{name}={assigned}" for name, assigned in command.variables]
            words = [*prefix, _MANAGERS.get(program, program), *command.words[1:]]
            said.append(Fact(stage=stage, kind="run", name=" ".join(words), value=command.when.strip()))
            continue
        for name, assigned in command.variables:
            said += _variable(stage, f"{program} environment", name, assigned, command.when)


def _install(stage: str, command: _Command) -> _Install | None:
    """Returns what a command installs; None when it names no package to install."""
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
    """Yields packages with the version they are held to, and options, which say for what if not for all of a stage."""
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


def _cmake(stage: str, command: _Command) -> Iterator[Fact]:
    """Yields what `cmake` is told; facts of a build directory other than the usual one have its name."""
    if "--build" in command.words:
        yield from _cmake_build(stage, command)
        return
    options, others = _split_options(command.words[1:], _CMAKE_VALUE_OPTIONS)
    # -B and -S may be joined with what follows; a lone path is the source directory.
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


def _cmake_build(stage: str, command: _Command) -> Iterator[Fact]:
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


def _commands(statements: list[Any], source: bytes, when: tuple[str, ...]) -> Iterator[_Command]:
    """Yields the simple commands of a list of statements; the status of all but the last is lost."""
    for number, statement in enumerate(statements, start=1):
        lost = () if number == len(statements) else ("whether it fails or not",)
        yield from _statement(statement, source, when + lost)


def _statement(statement: Any, source: bytes, when: tuple[str, ...]) -> Iterator[_Command]:
    command = statement.get("Cmd") or {}
    kind = command.get("Type")
    simple = kind in {"CallExpr", "DeclClause"}
    if statement.get("Negated") or statement.get("Background") or (statement.get("Redirs") and not simple):
        kind = None
    if simple and kind:
        redirections = statement.get("Redirs", ())
        heredoc = "\n".join(_heredoc(one, source) for one in redirections if one.get("Hdoc"))
        targets = [_word(one["Word"], source) for one in redirections if one["Op"] in {">", ">>"}]
        made = _simple(command, source, ())
        written = (targets[0], heredoc) if heredoc and targets and made.words == ("cat",) else None
        texts = (
            "<<" + ("" if written else f" {' '.join(heredoc.split())}") if one.get("Hdoc") else _slice(one, source)
            for one in redirections
        )
        yield replace(made, when=_when((*when, *texts)), written=written)
    elif kind == "BinaryCmd" and command["Op"] in {"&&", "||"}:
        yield from _statement(command["X"], source, when)
        after = (f"if `{_last(command['X'], source)}` fails",) if command["Op"] == "||" else ()
        yield from _statement(command["Y"], source, when + after)
    elif kind == "IfClause":
        yield from _if(command, source, when)
    elif kind == "CaseClause":
        word = _word(command["Word"], source)
        for item in command["Items"]:
            patterns = "|".join(_word(pattern, source) for pattern in item["Patterns"])
            yield from _commands(item.get("Stmts", []), source, (*when, f"case {word} is {patterns}"))
    elif kind == "Block":
        yield from _commands(command["Stmts"], source, when)
    else:
        yield _Command(words=(_shell_text(statement, source),), variables=(), when=_when(when))


def _heredoc(redirection: Any, source: bytes) -> str:
    """Returns the body of a heredoc, without the line that ends it."""
    body = redirection["Hdoc"]
    return source[body["Pos"]["Offset"] : body["End"]["Offset"]].decode().rpartition("\n")[0]


def _last(statement: Any, source: bytes) -> str:
    """Returns the last command of a list."""
    while (statement.get("Cmd") or {}).get("Type") == "BinaryCmd":
        statement = statement["Cmd"]["Y"]
    return _shell_text(statement, source)


def _if(clause: Any, source: bytes, when: tuple[str, ...]) -> Iterator[_Command]:
    condition = "; ".join(_shell_text(statement, source) for statement in clause["Cond"])
    yield from _commands(clause["Then"], source, (*when, f"if {condition}"))
    otherwise = clause.get("Else")
    if otherwise and otherwise.get("Cond"):
        yield from _if(otherwise, source, (*when, f"unless {condition}"))
    elif otherwise:
        yield from _commands(otherwise["Then"], source, (*when, f"unless {condition}"))


def _simple(command: Any, source: bytes, when: tuple[str, ...]) -> _Command:
    assigned = command.get("Assigns", [])
    if command["Type"] == "DeclClause":
        words, assigned = [command["Variant"]["Value"]], command.get("Args", [])
        plain = words == ["export"] and assigned and all(one.get("Value") for one in assigned)
    else:
        words = [_word(word, source) for word in command.get("Args", ())]
        plain = True
    if not plain or any({"Append", "Array", "Index"} & one.keys() for one in assigned):
        return _Command(words=(_slice(command, source),), variables=(), when=_when(when))
    variables = tuple(
        (one["Name"]["Value"], _word(one["Value"], source, splits=False) if one.get("Value") else "")
        for one in assigned
    )
    return _Command(words=tuple(words), variables=variables, when=_when(when))


def _when(conditions: tuple[str, ...]) -> str:
    return f" [{', '.join(conditions)}]" if conditions else ""


def _shell_text(statement: Any, source: bytes) -> str:
    """Returns a statement on one line; quotes that change nothing are gone in simple commands."""
    command = statement.get("Cmd") or {}
    prefix = "! " if statement.get("Negated") else ""
    suffix = "".join(f" {_slice(redirection, source)}" for redirection in statement.get("Redirs", ()))
    suffix += " &" if statement.get("Background") else ""
    if command.get("Type") == "BinaryCmd":
        left, right = (_shell_text(command[side], source) for side in ("X", "Y"))
        return f"{prefix}{left} {command['Op']} {right}{suffix}"
    if command.get("Type") == "CallExpr":
        simple = _simple(command, source, ())
        words = [*(f"{name}={value}" for name, value in simple.variables), *simple.words]
        return f"{prefix}{' '.join(words)}{suffix}"
    return _slice(statement, source)


def _slice(node: Any, source: bytes) -> str:
    text = source[node["Pos"]["Offset"] : node["End"]["Offset"]].decode()
    return _braced(" ".join(text.split())).rstrip("; ")


# A word is a list of units: one character or one expansion, and whether quotes keep the shell from acting on it.
_Unit = tuple[str, bool]


def _word(word: Any, source: bytes, *, splits: bool = True) -> str:
    """Returns a word with the fewest quotes that mean the same.

    Args:
        word: shfmt's node.
        source: the text that it was parsed from.
        splits: whether the shell splits and globs it here; it does not in an assignment.
    """
    units = list(_units(word.get("Parts", []), source, quoted=False))
    if not splits:
        return "".join(f"\\{text}" if quoted and text in {"$", "`"} else text for text, quoted in units)
    groups: list[list[_Unit]] = [[]]
    for text, quoted in units:
        if not quoted and (len(text) > 1 or text in _SPECIAL):
            groups += [[(text, False)], []]
        else:
            groups[-1].append((text, quoted and (len(text) > 1 or text in _SPECIAL)))
    return "".join(_quote(group) for group in groups) or "''"


def _quote(units: list[_Unit]) -> str:
    """Returns units that need quotes, or do not care, with one pair of quotes where one of them needs it."""
    texts = [text for text, _ in units]
    needing = [index for index, (_, quoted) in enumerate(units) if quoted]
    if not needing:
        return "".join(texts)
    # Up to the `=` of an option, so that its name can be read.
    first = max((index + 1 for index, text in enumerate(texts[: needing[0]]) if text == "="), default=0)
    inside = texts[first:]
    if any(len(text) > 1 for text in inside) or "'" in inside:
        quoted = '"' + "".join(f"\\{text}" if text in {"$", "`", '"', "\\"} else text for text in inside) + '"'
    else:
        quoted = "'" + "".join(inside) + "'"
    return "".join(texts[:first]) + quoted


def _units(parts: list[Any], source: bytes, *, quoted: bool) -> Iterator[_Unit]:
    for part in parts:
        kind = part["Type"]
        if kind == "SglQuoted" and not part.get("Dollar"):
            yield from ((character, True) for character in part.get("Value", ""))
        elif kind == "DblQuoted" and not part.get("Dollar"):
            yield from _units(part.get("Parts", []), source, quoted=True)
        elif kind == "Lit":
            # Inside double quotes a backslash is only special before these.
            escape = r"\\([$`\"\\])" if quoted else r"\\(.)"
            for match in re.finditer(f"{escape}|(.)", part["Value"], re.DOTALL):
                yield (match[1], True) if match[1] is not None else (match[2], quoted)
        elif kind == "CmdSubst" and part.get("Stmts"):
            inside = "; ".join(_shell_text(statement, source) for statement in part["Stmts"])
            yield f"$({inside})", quoted
        else:
            yield _slice(part, source), quoted


def _parse_shell(text: str, where: str) -> list[Any]:
    """Returns shfmt's statements of a shell text.

    Raises:
        SourceError: the text is not shell, or shfmt is missing.
    """
    done = _shfmt(text)
    if done.returncode:
        raise SourceError(f"{where}: the shell cannot be parsed: {done.stderr.strip()}.")
    return list(json.loads(done.stdout).get("Stmts", []))


@functools.cache  # the files of all variants have most of their shell in common
def _shfmt(text: str) -> subprocess.CompletedProcess[str]:
    program = find_program("shfmt")
    if not program:
        raise SourceError("shfmt, which parses the shell of Dockerfiles, is missing: install the project's packages.")
    return subprocess.run(
        [program, "--language-dialect", "bash", "--to-json"], input=text, capture_output=True, text=True, check=False
    )
