"""The syntax of Dockerfiles: instructions, heredocs, options and words, as BuildKit reads them.

dockerfile-parse splits the instructions.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

from dockerfile_parse.parser import DockerfileParser

from base_images.errors import SourceError

_INSTRUCTION = re.compile(
    "ADD|ARG|CMD|COPY|ENTRYPOINT|ENV|EXPOSE|FROM|HEALTHCHECK|LABEL|MAINTAINER|ONBUILD|RUN|SHELL|STOPSIGNAL|USER|VOLUME"
    "|WORKDIR"
)

MAX_CHARACTERS = 64 << 10
"""Of a Dockerfile, and of a value with its ARGs replaced; upstream's largest Dockerfile has 7,000."""

_SHOWN = 60


class MalformedError(ValueError):
    """An instruction that BuildKit refuses; `located` names its file and line."""


class UnreadableError(SourceError):
    """An instruction that cannot be read, with its file and line."""


class TooLongError(SourceError):
    """A file that is no Dockerfile by its length."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Names the file and line of an instruction in the errors of its parts.

    Raises:
        UnreadableError: the instruction is malformed.
    """
    try:
        yield
    except MalformedError as error:
        raise UnreadableError(f"{where}: {error}.") from error
    except RecursionError as error:
        raise UnreadableError(f"{where} is nested too deeply to be read here.") from error


def decoded(content: bytes, name: str) -> str:
    """Returns the text of a file that is called `name` in errors.

    Raises:
        SourceError: it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{name} line {line} is not UTF-8: save the file in that encoding.") from error


def read_text(path: Path, *, tolerant: bool = False) -> str:
    """Returns the text of a file; `tolerant`: bytes that are not UTF-8 are replaced.

    Raises:
        SourceError: it cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return content.decode(errors="replace") if tolerant else decoded(content, str(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error


def instructions(text: str, name: str) -> Iterator[tuple[str, str, int]]:
    """Yields each instruction of a Dockerfile with its arguments, continuation lines joined, and its line number.

    Whether the instruction is known is for `known` to say.

    Raises:
        TooLongError: the text is too long; the error calls the file `name`.
    """
    if len(text) > MAX_CHARACTERS:
        raise TooLongError(f"{name} has {len(text)} characters, more than are read here: is it a Dockerfile?")
    kept, heredocs = _without_heredocs(text.splitlines())
    # A blank line ends a continued instruction for dockerfile-parse, but not for BuildKit; a comment does for neither.
    lines = "".join(f"{line if line.strip() else '#'}\n" for line in _completed(kept))
    parser = DockerfileParser(fileobj=io.BytesIO(lines.encode()))  # type: ignore[no-untyped-call]
    for entry in parser.structure:
        instruction, value = entry["instruction"], entry["value"].strip()
        line = entry["startline"] + 1
        if instruction == "COMMENT":
            continue
        yield instruction, value + heredocs.get(entry["endline"], ""), line


def known(instruction: str) -> None:
    """Raises MalformedError unless Dockerfiles have the instruction."""
    if not _INSTRUCTION.fullmatch(instruction):
        raise MalformedError(f"{instruction} is not a Dockerfile instruction that is read here")


def _completed(lines: list[str]) -> list[str]:
    """Returns the lines with the end of the file as the end of its last instruction: dockerfile-parse would drop it."""
    last = next((number for number in reversed(range(len(lines))) if not is_blank(lines[number])), None)
    if last is None or not lines[last].rstrip().endswith("\\"):
        return lines
    return [*lines[:last], lines[last].rstrip().rstrip("\\"), *lines[last + 1 :]]


_HEREDOC = re.compile(r"""(?<![<\w])<<(?P<tabs>-?)\s*(?P<quote>['"]?)(?P<end>[A-Za-z_](?:[\w.-]*\w)?)(?P=quote)""")
_HEREDOC_INSTRUCTION = re.compile(r"\s*(RUN|COPY|ADD)\s", re.IGNORECASE)


def _without_heredocs(lines: list[str]) -> tuple[list[str], dict[int, str]]:
    """Returns the lines with heredocs blanked, and each instruction's heredocs by the number of its last line.

    A `<<` without its end mark on a later line is no heredoc, such as text in quotes.
    """
    kept = list(lines)
    heredocs: dict[int, str] = {}
    last_at = {form: number for number, line in enumerate(lines) for form in (line, line.lstrip("\t"))}
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
            if last_at.get(marker["end"], -1) < number:
                continue
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


def other_interpreter(script: str) -> str:
    """Returns the first line of a script that names a program other than a shell; empty if there is none."""
    first = script.split("\n", maxsplit=1)[0].strip()
    return first if first.startswith("#!") and not re.search(r"[/ ](ba|da|k|z)?sh( |$)", first) else ""


def from_arguments(value: str, number: int) -> tuple[str, str]:
    """Returns the image of a FROM with its options, and the name of the stage; without one its number from 0."""
    words = value.split()
    if len(words) > 2 and words[-2].upper() == "AS":  # noqa: PLR2004 - the image, AS and the name
        return " ".join(words[:-2]), words[-1].lower()
    return " ".join(words), str(number)


def leading_options(value: str) -> tuple[list[str], str]:
    """Returns the leading `--name=value` options of an instruction, and what follows them."""
    options = list(takewhile(lambda word: word.startswith("--"), value.split()))
    rest = value
    for option in options:
        rest = rest.lstrip().removeprefix(option)
    return [braced(option) for option in options], rest.strip()


_STAGE_NUMBER = re.compile(r"(--from=|--mount=\S*?\bfrom=)(\d+)(?=[\s,]|$)")


def named_stages(value: str, stages: Sequence[str]) -> str:
    """Returns the arguments of COPY, ADD or RUN with the names of stages that its options have by number."""
    options, rest = leading_options(value)
    if not any(_STAGE_NUMBER.search(option) for option in options):
        return value

    def name(match: re.Match[str]) -> str:
        return match[1] + (stages[int(match[2])] if int(match[2]) < len(stages) else match[2])

    return " ".join([*(_STAGE_NUMBER.sub(name, option) for option in options), rest])


def exec_form(value: str) -> list[str]:
    """Parses the exec form, a JSON list; empty for the shell form, which may begin with `[` as well.

    Raises:
        MalformedError: it is a list of something else than strings.
    """
    try:
        words = json.loads(value)
    except ValueError:
        return []
    if not isinstance(words, list):
        return []
    if not all(isinstance(word, str) for word in words):
        raise MalformedError(f"the list {_short(value)} has something else than strings in it")
    return words


def assignments(value: str, *, old_form: bool = False) -> Iterator[tuple[str, str | None]]:
    """Yields the names and values of ARG, ENV and LABEL; the value is None where a name stands alone.

    Args:
        value: the instruction's arguments.
        old_form: whether `NAME any text` is one name with a value, as in ENV and LABEL; in ARG it is three names.

    Raises:
        MalformedError: as `split_words`, or there is no name.
    """
    words = list(split_words(value))
    if not words[0]:
        raise MalformedError("a name is missing")
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
        MalformedError: a quote or an escape is not complete.
    """
    word, end = "", 0
    for part in _WORD_PART.finditer(value):
        if between := value[end : part.start()]:
            if not between.isspace():
                raise _incomplete(value)
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
        raise _incomplete(value)
    yield word


def _incomplete(value: str) -> MalformedError:
    return MalformedError(f"a quote is opened and not closed, or nothing follows a backslash, in {_short(value)}")


def _short(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")


def braced(text: str) -> str:
    """Writes `$NAME` as `${NAME}`."""
    return re.sub(r"(?<!\\)\$([A-Za-z_]\w*)", r"${\1}", text)
