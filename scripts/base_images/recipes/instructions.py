"""The syntax of Dockerfiles: instructions, heredocs, options and words, as BuildKit reads them.

dockerfile-parse splits the instructions.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from itertools import takewhile

from dockerfile_parse.parser import DockerfileParser

from base_images.errors import SourceError

_INSTRUCTION = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME"
    "|WORKDIR"
)


def instructions(text: str, name: str) -> Iterator[tuple[str, str, int]]:
    """Yields each instruction of a Dockerfile with its arguments, continuation lines joined, and its line number.

    Raises:
        SourceError: a line is not a known instruction; the error calls the file `name`.
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
        if not _INSTRUCTION.fullmatch(instruction):
            raise SourceError(f"{name} line {line}: {instruction} is not a Dockerfile instruction that is read here.")
        yield instruction, value + heredocs.get(entry["endline"], ""), line


_HEREDOC = re.compile(r"""(?<![<\w])<<(?P<tabs>-?)\s*(?P<quote>['"]?)(?P<end>[A-Za-z_]\w*)(?P=quote)""")
_HEREDOC_INSTRUCTION = re.compile(r"\s*(RUN|COPY|ADD)\s", re.IGNORECASE)


def _without_heredocs(lines: list[str]) -> tuple[list[str], dict[int, str]]:
    """Returns the lines with heredocs blanked, and each instruction's heredocs by the number of its last line.

    A `<<` without its end mark on a later line is no heredoc, such as text in quotes.
    """
    kept = list(lines)
    heredocs: dict[int, str] = {}
    number = 0
    while number < len(lines):
        first, last = number, number
        while last + 1 < len(lines) and (
            (is_blank(lines[last]) and last > first) or lines[last].rstrip().endswith("\\")
        ):
            last += 1
        number = last + 1
        if not _HEREDOC_INSTRUCTION.match(lines[first]):
            continue
        for marker in _HEREDOC.finditer("\n".join(line for line in lines[first : last + 1] if not is_blank(line))):
            ends = (line.lstrip("\t") if marker["tabs"] else line for line in lines[number:])
            number += next((count for count, line in enumerate(ends, start=1) if line == marker["end"]), 0)
        if number > last + 1:
            heredocs[last] = "\n" + "\n".join(lines[last + 1 : number])
            kept[last + 1 : number] = [""] * (number - last - 1)
    return kept, heredocs


def is_blank(line: str) -> bool:
    """Whether a line is empty or a comment."""
    return not line.strip() or line.lstrip().startswith("#")


def heredoc_bodies(value: str) -> list[tuple[str, str]]:
    """Returns the end mark and the body of each heredoc of an instruction."""
    first, *lines = value.split("\n")
    bodies = []
    for marker in _HEREDOC.finditer(first):
        body = list(takewhile(lambda line, end=marker["end"]: line.strip() != end, lines))  # type: ignore[misc]
        del lines[: len(body) + 1]
        bodies.append((marker["end"], "\n".join(body)))
    return bodies


def run_script(value: str) -> str:
    """Returns the shell of a RUN without options; where one heredoc is all of it, its body."""
    if value.startswith("<<") and _HEREDOC.fullmatch(value.split("\n", maxsplit=1)[0].strip()):
        [(_, value)] = heredoc_bodies(value)
    return value


def stage_name(value: str, number: int) -> str:
    """Returns the name of the stage that a FROM begins, given the FROM's arguments; else the stage's number from 0."""
    match = re.search(r"\s+AS\s+(\S+)$", value, re.IGNORECASE)
    return match[1].lower() if match else str(number)


def leading_options(value: str) -> tuple[list[str], str]:
    """Returns the leading `--name=value` options of an instruction, and what follows them."""
    options = list(takewhile(lambda word: word.startswith("--"), value.split()))
    rest = value
    for option in options:
        rest = rest.lstrip().removeprefix(option)
    return [braced(option) for option in options], rest.strip()


def exec_form(value: str) -> list[str]:
    """Parses the exec form, a JSON list; empty for the shell form, which may begin with `[` as well."""
    try:
        words = json.loads(value)
    except json.JSONDecodeError:
        return []
    return words if isinstance(words, list) else []


def assignments(value: str, *, old_form: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yields the names and values of ARG, ENV and LABEL; the value is None where a name stands alone.

    Args:
        value: the instruction's arguments.
        old_form: whether `NAME any text` is one name with a value, as in ENV and LABEL; in ARG it is three names.
    """
    words = list(split_words(value))
    if old_form and "=" not in words[0] and len(words) > 1 and "=" not in words[1]:
        name, rest = value.split(maxsplit=1)
        yield name, braced(rest)
        return
    for word in words:
        name, has_value, text = word.partition("=")
        yield name, text if has_value else None


_WORD_PART = re.compile(r"""'(?P<single>[^']*)'|"(?P<double>(?:\\.|[^"\\])*)"|\\(?P<escaped>.)|(?P<plain>[^\s'"\\]+)""")


def split_words(value: str) -> Iterator[str]:
    """Splits an instruction into words as BuildKit's lexer does: without globbing or splitting of variables.

    Raises:
        SourceError: a quote or an escape is not complete.
    """
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
            word += braced(re.sub(r'\\(["\\])', r"\1", part["double"]))
        else:
            word += braced(part["plain"])
    if value[end:].strip():
        raise SourceError(f"A quote is opened and not closed, or nothing follows a backslash, in {value!r}.")
    yield word


def braced(text: str) -> str:
    """Writes `$NAME` as `${NAME}`."""
    return re.sub(r"(?<!\\)\$([A-Za-z_]\w*)", r"${\1}", text)
