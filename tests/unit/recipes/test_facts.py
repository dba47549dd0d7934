"""Reading the facts of a Dockerfile."""

from __future__ import annotations

import re

import pytest

from base_images.errors import SourceError
from base_images.recipes import facts as recipe_facts
from base_images.recipes.facts import Fact
from tests.unit.recipes.conftest import UPSTREAM


def lost_words(text: str, facts: tuple[Fact, ...]) -> set[str]:
    """Returns the words of a Dockerfile that no fact contains, to show what the parser drops."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\$(\w+)", r" \1 ", lines)
    lines = re.sub(r'(image\.\w+=)("[^"]*"|\S+)', r"\1", lines)  # only the name of a label is a fact
    syntax = {"if", "then", "else", "fi", "case", "esac", "in", "export", "AS", "apt-get", "pip3", "install", "cmake"}
    words = set(re.findall(r"[\w.+:/%~*-]+", lines)) - syntax
    stated = " ".join(f"{fact.stage} {fact.kind.upper()} {fact.kind} {fact.name} {fact.value}" for fact in facts)
    return {word for word in words if word.rstrip("/").removeprefix("./") not in stated} - {";", "RUN", "-j"}


def test_facts_lose_no_word_of_a_file() -> None:
    facts = recipe_facts.read(UPSTREAM, "cuda")
    # Replaced in FROM by what they stand for.
    assert lost_words(UPSTREAM, facts) <= {"DEV_IMAGE", "RUN_IMAGE"}
    # And the test can fail.
    without = tuple(fact for fact in facts if fact.name != "ldconfig")
    assert "ldconfig" in lost_words(UPSTREAM, without)


def test_subjects_are_unique() -> None:
    facts = recipe_facts.read(UPSTREAM, "cuda")
    assert len({fact.subject for fact in facts}) == len(facts)


@pytest.mark.parametrize(
    ("run", "fact"),
    [
        ("a | b > c", "x: run a | b > c"),
        ("yes | apt-get install -y nano", "x: run yes | apt-get install -y nano"),
        ("for i in 1 2; do echo $i; done", "x: run for i in 1 2; do echo ${i}; done"),
        ("(cd y && make)", "x: run (cd y && make)"),
        ("! test -e y", "x: run ! test -e y"),
        ("[ -e y ] && make", "x: run [ -e y ]"),
        ('["make", "all"]', 'x: run ["make", "all"]'),
        ("{ make; }", "x: run make"),
        ("DEBIAN_FRONTEND=noninteractive apt install -y y", "x: apt environment DEBIAN_FRONTEND = noninteractive"),
        ("python3 -m pip install 'y>=2'", "x: pip y = >=2"),
        ("uv pip install y", "x: pip y"),
        ("dnf install -y y", "x: dnf y"),
        ("npm install -g y", "x: npm y"),
        ("pip install -r requirements.txt", "x: run pip install -r requirements.txt"),
        ("if a; then b; elif c; then d; fi", "x: run d = [unless a, if c]"),
        ("cmake --install build --prefix /y", "x: run cmake --install build --prefix /y"),
        ("cmake ..", "x: cmake . -S = .."),
        ("export PATH", "x: run export PATH"),
        ("export A=b C=", "x: run export A=b C="),
        ("A=(b c)", "x: run A=(b c)"),
        ("case $A in b|c) d ;; esac", "x: run d = [case ${A} is b|c]"),
        ("export A='-DX=$O'", "x: variable A -DX = \\$O"),
        ('export A="-DX=$O"', "x: variable A -DX = ${O}"),
        ("A+=b", "x: run A+=b"),
        ("set -euo pipefail; a", "x: run set -o pipefail -u"),
        ("set -euo pipefail; a; b", "x: run a"),
        ("set -o errexit; a; b", "x: run a"),
        ("set -f; a; b", "x: run a = [whether it fails or not]"),
        ("set -e; a && b; c", "x: run a = [whether it fails or not]"),
        ("set -e; a && b; c", "x: run b"),
        ("if a; then set -e; fi; b; c", "x: run b = [whether it fails or not]"),
        ("if a; then set -e; fi", "x: run set -e = [if a]"),
        ("set -- a; b", "x: run set -- a = [whether it fails or not]"),
        ("A=", 'x: variable A = ""'),
        ("a || b && c || d", "x: run d = [if `c` fails]"),
        ("echo $'a' \"b\\\"c\" '' d\\ e", "x: run echo $'a' 'b\"c' '' 'd e'"),
        ("""echo "it's $A" """, """x: run echo "it's ${A}\""""),
    ],
)
def test_forms_of_shell_commands(run: str, fact: str) -> None:
    assert fact in [str(found) for found in recipe_facts.read(f"FROM scratch AS x\nRUN {run}\n", "x")]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            'COPY <<EOF /a\n# no\nA: "1" # one\nB = x y\nplain\nEOF\n',
            ["copy << = /a", "file /a = plain", "file /a A = 1", "file /a B = x y"],
        ),
        (
            "COPY <<A <<'B' /d/\nX: 1\nA\nX: 2\nB\n",
            ["copy <<A = /d", "copy <<B = /d", "file /d/A X = 1", "file /d/B X = 2"],
        ),
        ("RUN cat > /a << EOF\nA: $B\nEOF\n", ["file /a A = $B", "run cat = [> /a, <<]"]),
        (
            "RUN x && \\\n # no\n cat <<-EOF >> /a && y\n\tA: 1\n\tEOF\n",
            ["file /a A = 1", "run cat = [<<, >> /a]", "run x", "run y"],
        ),
        (
            "RUN <<EOF\n#!/usr/bin/env python3\nif True:\n    print(1)\nEOF\n",
            ["run #!/usr/bin/env python3 = #!/usr/bin/env python3 if True: print(1)"],
        ),
        ("RUN <<EOF\n#!/bin/bash -e\nx\nEOF\n", ["run x"]),
        (
            "RUN <<EOF\nset -e\napt-get install -y a\nEOF\n",
            ["apt a", "apt option -y"],
        ),
        ("RUN python3 <<EOF\nprint(1)\nEOF\nRUN z\n", ["run python3 = [<< print(1)]", "run z"]),
        (
            "RUN echo 'a << b'\nRUN echo $((1<<2))\nRUN cat <<< b\n",
            ["run cat = [<<< b]", "run echo 'a << b'", "run echo $((1<<2))"],
        ),
    ],
    ids=["copied", "two to a directory", "cat", "tabs", "another program", "bash", "a script", "to a program", "none"],
)
def test_heredocs(text: str, facts: list[str]) -> None:
    found = [str(fact).removeprefix("x: ") for fact in recipe_facts.read(f"FROM scratch AS x\n{text}USER u\n", "x")]
    assert found == sorted([*facts, "from = scratch", "user = u"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN if true; then", "line 2: the shell cannot be parsed"),
        ("RAN true", "line 2: RAN is not a Dockerfile instruction"),
        ('ENV X="y', "a quote"),
    ],
)
def test_unreadable_instructions_are_errors(line: str, message: str) -> None:
    with pytest.raises(SourceError, match=f"(?i){message}"):
        recipe_facts.read(f"FROM scratch\n{line}\n", "x")


@pytest.mark.parametrize(
    ("arguments", "base"),
    [
        ("ARG A=1\nARG B=x:${A}\nARG C=$B", "x:1 by A"),
        ("ARG C=x:1", "x:1 by C"),
        ("ARG A=1\nARG A=${A}-slim\nARG C=x:$A", "x:1-slim by A"),
        ("ARG C=x:${C}", "x:${C} by C"),
        ("ARG C", "${C}"),
    ],
)
def test_a_base_names_the_arguments_that_it_depends_on(arguments: str, base: str) -> None:
    assert f"y: from = {base}" in [str(fact) for fact in recipe_facts.read(f"{arguments}\nFROM ${{C}} AS y\n", "y")]
