"""The arguments read from the pin's source, compared with the help of the server built from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from base_images import settings
from base_images.adapters.container import ContainerSpec
from base_images.adapters.engine import Engine, Image
from base_images.build import source
from base_images.build.inputs import Origin
from base_images.labels import Label
from base_images.progress import silent
from base_images.recipes import server_arguments
from base_images.recipes.server_arguments import Argument

HELP_COLUMN = 40
"""The column where common_arg::to_string begins the help text."""


class Said(NamedTuple):
    """An argument of --help."""

    names: tuple[str, ...]
    hints: str
    text: str

    @property
    def environment(self) -> tuple[str, ...]:
        return tuple(re.findall(r"\(env: (\w+)\)", self.text))


@pytest.fixture(scope="module")
def arguments(cpu_image: Image) -> tuple[Argument, ...]:
    pin = settings.load().pin
    assert cpu_image.labels[Label.LLAMA_CPP_COMMIT] == pin.commit, "build the cpu image of the pin first"
    tree: Path = source.resolve(pin, path=None, origin=Origin.AUTO, root=settings.ROOT, listener=silent).path
    return server_arguments.read(*((tree / path).read_text(encoding="utf-8") for path in server_arguments.FILES))


@pytest.fixture(scope="module")
def printed_help(engine: Engine, cpu_image: Image) -> dict[tuple[str, ...], Said]:
    done = engine.probe(ContainerSpec(image=cpu_image.id, command=("--help",)))
    assert done.exit_code == 0, done.output
    found = [_said(block) for block in re.split(r"\n(?=-\S)|\n\n", done.stdout) if re.match(r"-(?!----)", block)]
    return {printed.names: printed for printed in found}


def _said(block: str) -> Said:
    head, _, rest = block.partition("\n")
    if head[:HELP_COLUMN].endswith("   "):
        head, rest = head[:HELP_COLUMN], f"{head[HELP_COLUMN:]}\n{rest}"
    names = re.match(r"-[^\s,]+(, +-[^\s,]+)*", head)
    assert names, block
    hints = head[names.end() :].strip()
    return Said(names=tuple(re.split(r", +", names[0])), hints=hints, text=" ".join(rest.split()))


def spellings(argument: Argument) -> tuple[str, ...]:
    return (*argument.names, *argument.negated)


def test_names_and_variables_are_those_that_the_server_prints(
    arguments: tuple[Argument, ...], printed_help: dict[tuple[str, ...], Said]
) -> None:
    printed = {names: printed.environment for names, printed in printed_help.items()}
    read = {spellings(argument): argument.environment[:1] for argument in arguments}
    conditional = {spellings(argument) for argument in arguments if argument.condition}
    assert len(printed) > 200
    assert {names: read[names] for names in read if names in printed or names not in conditional} == printed


@pytest.mark.parametrize(("variable", "is_read"), [("LLAMA_ARG_NO_JINJA", True), ("LLAMA_ARG_NO_SUCH", False)])
def test_the_negated_variable_is_read(engine: Engine, cpu_image: Image, variable: str, *, is_read: bool) -> None:
    command = ("--no-jinja", "--version")
    done = engine.probe(ContainerSpec(image=cpu_image.id, command=command, environment={variable: "1"}))
    assert done.exit_code == 0, done.output
    assert ("will be overwritten by command line argument --no-jinja" in done.output) is is_read


def test_hints_and_values_are_those_that_the_server_prints(
    arguments: tuple[Argument, ...], printed_help: dict[tuple[str, ...], Said]
) -> None:
    compared = 0
    for argument in arguments:
        printed = printed_help.get(spellings(argument))
        if printed is None:
            assert argument.condition
        elif any(hint.endswith("()") for hint in argument.hints):
            # A function of another file lists the names of an enum.
            assert len(printed.hints.split(",")) == len(argument.values), argument
        else:
            assert " ".join(argument.hints) == printed.hints, argument
            if listed := re.search(r"allowed values: ([\w, ]+) \(", printed.text):
                assert tuple(listed[1].split(", ")) == argument.values
                compared += 1
    assert compared


def test_defaults_are_those_that_the_server_prints(
    arguments: tuple[Argument, ...], printed_help: dict[tuple[str, ...], Said]
) -> None:
    wrong = []
    for argument in arguments:
        if printed := printed_help.get(spellings(argument)):
            text = printed.text.partition("(env: ")[0]
            states = server_arguments.stated(text.replace("%", "%%"))
            read = argument.default or (argument.initial if states else "")
            # Of a constant that the help prints as a number, or by a function of another file, the name is read.
            if not (_same(read, states) or re.fullmatch(r"[A-Z_]+(, [A-Z_]+)*", read)):
                wrong.append((argument.names, read, states))
    assert wrong == []


def _same(read: str, printed: str) -> bool:
    try:
        return float(read) == float(printed)
    except ValueError:
        return printed in {read, read.partition(",")[0]}  # only a value that was put in holds a comma
