"""What is read from the source of the pin against what the server built of it says of itself."""

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
"""Where common_arg::to_string begins the help text."""


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
def said(engine: Engine, cpu_image: Image) -> dict[tuple[str, ...], Said]:
    done = engine.probe(ContainerSpec(image=cpu_image.id, command=("--help",)))
    assert done.exit_code == 0, done.output
    found = [_said(block) for block in re.split(r"\n(?=-\S)|\n\n", done.stdout) if re.match(r"-(?!----)", block)]
    return {one.names: one for one in found}


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
    arguments: tuple[Argument, ...], said: dict[tuple[str, ...], Said]
) -> None:
    printed = {names: one.environment for names, one in said.items()}
    read = {spellings(one): one.environment[:1] for one in arguments}
    conditional = {spellings(one) for one in arguments if one.condition}
    assert len(printed) > 200
    assert {names: read[names] for names in read if names in printed or names not in conditional} == printed


@pytest.mark.parametrize(("variable", "is_read"), [("LLAMA_ARG_NO_JINJA", True), ("LLAMA_ARG_NO_SUCH", False)])
def test_the_form_that_turns_off_is_read(engine: Engine, cpu_image: Image, variable: str, *, is_read: bool) -> None:
    command = ("--no-jinja", "--version")
    done = engine.probe(ContainerSpec(image=cpu_image.id, command=command, environment={variable: "1"}))
    assert done.exit_code == 0, done.output
    assert ("will be overwritten by command line argument --no-jinja" in done.output) is is_read


def test_hints_and_values_are_those_that_the_server_prints(
    arguments: tuple[Argument, ...], said: dict[tuple[str, ...], Said]
) -> None:
    compared = 0
    for one in arguments:
        printed = said.get(spellings(one))
        if printed is None:
            assert one.condition
        elif any(hint.endswith("()") for hint in one.hints):  # a function of another file: a list of an enum's names
            assert len(printed.hints.split(",")) == len(one.values), one
        else:
            assert " ".join(one.hints) == printed.hints, one
            if listed := re.search(r"allowed values: ([\w, ]+) \(", printed.text):
                assert tuple(listed[1].split(", ")) == one.values
                compared += 1
    assert compared


def test_defaults_are_those_that_the_server_prints(
    arguments: tuple[Argument, ...], said: dict[tuple[str, ...], Said]
) -> None:
    wrong = []
    for one in arguments:
        if printed := said.get(spellings(one)):
            text = printed.text.partition("(env: ")[0]
            states = server_arguments.stated(text.replace("%", "%%"))
            read = one.default or (one.initial if states else "")
            # Of a constant that the help prints as a number, or by a function of another file, the name is read.
            if not (_same(read, states) or re.fullmatch(r"[A-Z_]+(, [A-Z_]+)*", read)):
                wrong.append((one.names, read, states))
    assert wrong == []


def _same(read: str, printed: str) -> bool:
    try:
        return float(read) == float(printed)
    except ValueError:
        return printed in {read, read.partition(",")[0]}  # only a value that was put in holds a comma
