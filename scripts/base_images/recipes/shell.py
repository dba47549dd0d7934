"""The shell of RUN, parsed by shfmt: a real shell grammar with a stable JSON form.

Splitting at `&&` would take an `if`, a quoted `;` or a redirect for something else.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from base_images.adapters.programs import find_program
from base_images.errors import SourceError
from base_images.recipes.instructions import MalformedError, braced

_SPECIAL = frozenset(" \t\n*?[]{}~$;&|<>()'\"\\`#!")
"""Characters whose meaning quotes change; around others quotes are formatting."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A simple command of a RUN.

    Attributes:
        words: the program and its arguments; empty where the command only assigns variables.
        variables: the assignments before it, by name.
        when: its conditions and redirections in brackets; may be empty.
        written: the path and the text of the file that `cat > FILE << EOF` writes.
    """

    words: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    when: str
    written: tuple[str, str] | None = None


def commands(text: str) -> Iterator[Command]:
    """Yields the simple commands of a shell text.

    Raises:
        MalformedError: the text is not shell.
        SourceError: shfmt is not installed.
    """
    return _commands(_parse(text), text.encode(), (), whole=True)


def one_line(text: str) -> str:
    """Returns a shell text on one line, without quotes that change nothing.

    Raises:
        MalformedError, SourceError: as `commands`.
    """
    return "; ".join(_text(statement, text.encode()) for statement in _parse(text))


def _commands(statements: list[Any], source: bytes, when: tuple[str, ...], *, whole: bool = False) -> Iterator[Command]:
    """Yields the simple commands of a list of statements; without `set -e` only the status of the last one counts.

    Args:
        statements: shfmt's nodes.
        source: the text that shfmt parsed.
        when: the conditions of all of them.
        whole: whether they are all of a RUN, where a `set` is for everything below it.
    """
    ends = False
    for number, statement in enumerate(statements, start=1):
        options = _set_options(statement) if whole else frozenset()
        ends = ends or "-e" in options
        if options:
            yield from _without_tracing(options, when)
        elif number == len(statements):
            yield from _statement(statement, source, when)
        elif ends:
            yield from _before_others(statement, source, when)
        else:
            yield from _statement(statement, source, (*when, _LOST))


_LOST = "whether it fails or not"


def _before_others(statement: Any, source: bytes, when: tuple[str, ...]) -> Iterator[Command]:
    """Yields the commands of a statement below `set -e`, which is not for the first commands of an `&&` list."""
    command = statement.get("Cmd") or {}
    if command.get("Type") == "BinaryCmd" and command["Op"] == "&&":
        yield from _statement(command["X"], source, (*when, _LOST))
        yield from _before_others(command["Y"], source, when)
    else:
        yield from _statement(statement, source, when)


_LONG_OPTIONS = {"errexit": "-e", "nounset": "-u", "xtrace": "-x", "verbose": "-v"}


def _set_options(statement: Any) -> frozenset[str]:
    """Returns the options of a `set -eux` or `set -euo pipefail`; none for any other statement."""
    command = statement.get("Cmd") or {}
    if command.get("Type") != "CallExpr" or command.get("Assigns") or statement.get("Redirs"):
        return frozenset()
    words = iter("".join(part.get("Value", "?") for part in word["Parts"]) for word in command.get("Args", ()))
    found: set[str] = set()
    if next(words, "") != "set":
        return frozenset()
    for word in words:
        if not re.fullmatch(r"-[a-z]*[a-z]", word):
            return frozenset()
        found |= {f"-{letter}" for letter in word[1:] if letter != "o"}
        if "o" in word:
            name = next(words, "")
            found.add(_LONG_OPTIONS.get(name, f"-o {name}"))
    return frozenset(found)


def _without_tracing(options: frozenset[str], when: tuple[str, ...]) -> Iterator[Command]:
    """Yields the `set` for what is left beside -e, which the other commands show, and -x and -v, which only print."""
    if left := sorted(options - {"-e", "-x", "-v"}):
        yield Command(words=("set", *left), variables=(), when=_when(when))


def _statement(statement: Any, source: bytes, when: tuple[str, ...]) -> Iterator[Command]:
    command = statement.get("Cmd") or {}
    kind = command.get("Type")
    simple = kind in {"CallExpr", "DeclClause"}
    if statement.get("Negated") or statement.get("Background") or (statement.get("Redirs") and not simple):
        kind = None
    if simple and kind:
        redirections = statement.get("Redirs", ())
        heredoc = "\n".join(_heredoc(redirect, source) for redirect in redirections if redirect.get("Hdoc"))
        targets = [_word(redirect["Word"], source) for redirect in redirections if redirect["Op"] in {">", ">>"}]
        made = _simple(command, source, ())
        written = (targets[0], heredoc) if heredoc and targets and made.words == ("cat",) else None
        texts = (
            "<<" + ("" if written else f" {' '.join(heredoc.split())}")
            if redirect.get("Hdoc")
            else _slice(redirect, source)
            for redirect in redirections
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
        for item in command.get("Items", []):
            patterns = "|".join(_word(pattern, source) for pattern in item["Patterns"])
            yield from _commands(item.get("Stmts", []), source, (*when, f"case {word} is {patterns}"))
    elif kind == "Block":
        yield from _commands(command["Stmts"], source, when)
    else:
        yield Command(words=(_text(statement, source),), variables=(), when=_when(when))


def _heredoc(redirection: Any, source: bytes) -> str:
    """Returns the body of a heredoc without its end mark."""
    body = redirection["Hdoc"]
    return source[body["Pos"]["Offset"] : body["End"]["Offset"]].decode().rpartition("\n")[0]


def _last(statement: Any, source: bytes) -> str:
    """Returns the last command of an `&&` or `||` list."""
    while (statement.get("Cmd") or {}).get("Type") == "BinaryCmd":
        statement = statement["Cmd"]["Y"]
    return _text(statement, source)


def _if(clause: Any, source: bytes, when: tuple[str, ...]) -> Iterator[Command]:
    condition = "; ".join(_text(statement, source) for statement in clause["Cond"])
    yield from _commands(clause["Then"], source, (*when, f"if {condition}"))
    otherwise = clause.get("Else")
    if otherwise and otherwise.get("Cond"):
        yield from _if(otherwise, source, (*when, f"unless {condition}"))
    elif otherwise:
        yield from _commands(otherwise["Then"], source, (*when, f"unless {condition}"))


def _simple(command: Any, source: bytes, when: tuple[str, ...]) -> Command:
    assigned = command.get("Assigns", [])
    if command["Type"] == "DeclClause":
        words, assigned = [command["Variant"]["Value"]], command.get("Args", [])
        plain = words == ["export"] and assigned and all({"Name", "Value"} <= each.keys() for each in assigned)
    else:
        words = [_word(word, source) for word in command.get("Args", ())]
        plain = True
    if not plain or any({"Append", "Array", "Index"} & assignment.keys() for assignment in assigned):
        return Command(words=(_slice(command, source),), variables=(), when=_when(when))
    variables = tuple(
        (
            assignment["Name"]["Value"],
            _word(assignment["Value"], source, splits=False) if assignment.get("Value") else "",
        )
        for assignment in assigned
    )
    return Command(words=tuple(words), variables=variables, when=_when(when))


def _when(conditions: tuple[str, ...]) -> str:
    return f" [{', '.join(conditions)}]" if conditions else ""


def _text(statement: Any, source: bytes) -> str:
    """Returns a statement on one line; simple commands lose the quotes that change nothing."""
    command = statement.get("Cmd") or {}
    prefix = "! " if statement.get("Negated") else ""
    suffix = "".join(f" {_slice(redirect, source)}" for redirect in statement.get("Redirs", ()))
    suffix += " &" if statement.get("Background") else ""
    if command.get("Type") == "BinaryCmd":
        left, right = (_text(command[side], source) for side in ("X", "Y"))
        return f"{prefix}{left} {command['Op']} {right}{suffix}"
    if command.get("Type") == "CallExpr":
        simple = _simple(command, source, ())
        words = [*(f"{name}={value}" for name, value in simple.variables), *simple.words]
        return f"{prefix}{' '.join(words)}{suffix}"
    return _slice(statement, source)


def _slice(node: Any, source: bytes) -> str:
    text = source[node["Pos"]["Offset"] : node["End"]["Offset"]].decode()
    return braced(" ".join(text.split())).rstrip("; ")


# One character or one expansion of a word, and whether quotes keep the shell from acting on it.
_Unit = tuple[str, bool]


def _word(word: Any, source: bytes, *, splits: bool = True) -> str:
    """Returns a word with the fewest quotes that keep its meaning.

    Args:
        word: shfmt's node.
        source: the text that shfmt parsed.
        splits: whether the shell splits and globs the word here; it does not in an assignment.
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
    """Joins units, within one pair of quotes where one of them needs quotes."""
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
            inside = "; ".join(_text(statement, source) for statement in part["Stmts"])
            yield f"$({inside})", quoted
        else:
            yield _slice(part, source), quoted


def _parse(text: str) -> list[Any]:
    """Returns shfmt's statements of a shell text."""
    done = _shfmt(text)
    if done.returncode:
        raise MalformedError(f"the shell cannot be parsed: {done.stderr.strip()}")
    return list(json.loads(done.stdout).get("Stmts", []))


@functools.cache  # recipes share most of their shell
def _shfmt(text: str) -> subprocess.CompletedProcess[str]:
    program = find_program("shfmt")
    if not program:
        raise SourceError("shfmt, which parses the shell of Dockerfiles, is missing: install the project's packages.")
    return subprocess.run(
        [program, "--language-dialect", "bash", "--to-json"], input=text, capture_output=True, text=True, check=False
    )
