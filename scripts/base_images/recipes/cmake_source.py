"""Reads CMake files into commands with their arguments and the conditions they are under.

A tokenizer of its own: CMake's grammar has only comments, words, quoted and bracketed arguments and parentheses, and
there is no parser for it among the project's packages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from base_images.errors import SourceError

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
    |(?P<comment>\#)?\[(?P<bracket>=*)\[
    |(?P<line>\#[^\n]*)
    |"(?P<quoted>(?:[^"\\]|\\.)*)"
    |(?P<open>\()|(?P<close>\))
    |(?P<word>(?:[^\s()"\#\\]|\\.|"(?:[^"\\]|\\.)*")+)
    """,
    re.DOTALL | re.VERBOSE,
)
_BLOCKS = ("foreach", "while", "function", "macro", "block")


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of a CMake file.

    Attributes:
        name: its name in lower case; CMake ignores the case.
        arguments: its arguments without quotes and comments; parentheses among them are arguments.
        conditions: the conditions of the `if`s around it, the outermost first.
    """

    name: str
    arguments: tuple[str, ...]
    conditions: tuple[str, ...]


def commands(text: str) -> tuple[Command, ...]:
    """Returns the commands of a CMake file, without those that only form blocks, in source order.

    Raises:
        SourceError: the file is not CMake, or an `if` and its `endif` do not match; the error names the line.
    """
    found: list[Command] = []
    blocks: list[tuple[str, list[str]]] = []
    branches: list[list[str]] = []
    for name, arguments, line in _calls(text):
        condition = re.sub(r"\$\{(\w+)\}", r"\1", " ".join(arguments))
        match name:
            case "if":
                blocks.append(("if", [condition]))
                branches.append([condition])
            case "elseif" | "else" if blocks and blocks[-1][0] == "if":
                # An elseif's own condition is enough to tell it from the others.
                blocks[-1] = ("if", [condition] if name == "elseif" else [f"not ({each})" for each in branches[-1]])
                branches[-1].append(condition)
            case _ if name in _BLOCKS:
                blocks.append((name, []))
                branches.append([])
            case "else" | "elseif":
                raise SourceError(f"line {line}: {name} without if")
            case _ if name.startswith("end") and name[3:] in {"if", *_BLOCKS}:
                if not blocks or blocks.pop()[0] != name[3:]:
                    raise SourceError(f"line {line}: {name} without {name[3:]}")
                branches.pop()
            case _:
                under = tuple(condition for _, conditions in blocks for condition in conditions)
                found.append(Command(name=name, arguments=tuple(arguments), conditions=under))
    if blocks:
        raise SourceError(f"the last {blocks[-1][0]} does not end")
    return tuple(found)


def _calls(text: str) -> Iterator[tuple[str, list[str], int]]:
    """Yields each command's name, arguments and line."""
    arguments: list[str] = []
    name, depth, line = "", 0, 1
    for kind, value, at in _tokens(text):
        if not depth:
            line = text.count("\n", 0, at) + 1 if not name else line
            if kind == "word" and not name:
                name, arguments = value.lower(), []
            elif kind == "open" and name:
                depth = 1
            else:
                raise SourceError(f"line {line}: this is not CMake")
        elif depth == 1 and kind == "close":
            yield name, arguments, line
            name, depth = "", 0
        else:
            depth += (kind == "open") - (kind == "close")
            arguments.append(re.sub(r"\\([\"\\])", r"\1", value))
    if name:
        raise SourceError(f"line {line}: this is not CMake")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yields the kind, the text and the offset of each token but comments and space."""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        closing = f"]{token['bracket']}]" if token and token["bracket"] is not None else ""
        end = text.find(closing, token.end()) if token and closing else 0
        if not token or end < 0:
            raise SourceError(f"line {text.count(chr(10), 0, at) + 1}: this is not CMake")
        if closing and not token["comment"]:
            yield "bracket", text[token.end() : end].removeprefix("\n"), at
        elif not closing and token.lastgroup not in {"space", "line"}:
            yield str(token.lastgroup), token[str(token.lastgroup)], at
        at = end + len(closing) if closing else token.end()
