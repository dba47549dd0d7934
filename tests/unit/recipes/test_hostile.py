"""Files that nobody should write: every parser ends, with a result or with a sentence that names the file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from base_images import settings
from base_images.errors import SourceError, UsageError
from base_images.recipes import consumer, consumer_checkout, dockerfile, facts, mirror, server_arguments
from base_images.settings import ROOT
from tests.support import mutations
from tests.unit.recipes.test_server_arguments import ARG_CPP, COMMON_H

RECIPES = tuple(mirror.our_texts(ROOT).values())


def parsed(text: str) -> list[str]:
    return [str(fact) for fact in facts.read(text, "x.Dockerfile")]


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("FROM a AS a\n", ["a: from = a"]),
        ("FROM a AS a\nFROM a AS b\nRUN x\n", ["b: from = a", "b: run x"]),
        ("FROM b AS a\nFROM a AS b\nRUN x\n", ["b: from = b", "b: run x"]),
        ("FROM c AS a\nFROM a AS b\nFROM b AS c\nRUN x\n", ["c: from = c", "c: run x"]),
        ("ARG A=$B\nARG B=$A\nFROM $A\n", ["0: from = ${B} by A", "global: arg A = ${B}", "global: arg B = ${A}"]),
        ("FROM a\nRUN case x in esac\n", ["0: from = a"]),
        ("FROM a\nRUN export -p x=1\n", ["0: from = a", "0: run export -p x=1"]),
        ("FROM a\nRUN <<EOF\nEOF\n", ["0: from = a"]),
        ("FROM a\nRUN x \\\n", ["0: from = a", "0: run x"]),
        ("FROM a\nONBUILD COPY x y\n", ["0: from = a", "0: onbuild = COPY x y"]),
    ],
)
def test_odd_dockerfiles_are_read(text: str, stated: list[str]) -> None:
    assert parsed(text) == stated


DOUBLING = "ARG A0=xxxxxxxxxx\n" + "".join(f"ARG A{number}=$A{number - 1}$A{number - 1}\n" for number in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('FROM a\nCOPY ["a", 5]\n', r"""x.Dockerfile line 2: the list '\["a", 5\]' has something else than strings"""),
        ("FROM a\nCOPY x\n", "x.Dockerfile line 2: COPY names no source or no target"),
        ("FROM\n", "x.Dockerfile line 1: FROM names no image"),
        ("FROM a\nENV\n", "x.Dockerfile line 2: a name is missing"),
        ('FROM a\n\nENV A="x\n', r"x.Dockerfile line 3: a quote is opened and not closed.*, in 'A=\"x'"),
        ("FROM a\nRUN echo 'x\n", "x.Dockerfile line 2: the shell cannot be parsed"),
        ("FROM a\nCMD " + "[" * 9000, "x.Dockerfile line 2 is nested too deeply"),
        ("FROM a\nRUN " + "if a; then " * 500 + "x; " + "fi; " * 500, "x.Dockerfile line 2 is nested too deeply"),
        (DOUBLING + "FROM $A39\n", "x.Dockerfile line 14: a value with its ARGs replaced has"),
        ("FROM a\n" + "#\n" * 40_000, "x.Dockerfile has 80007 characters"),
    ],
)
def test_malformed_dockerfiles_are_errors_with_a_line(text: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        parsed(text)


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\n" + "RUN <<A\n" * 8000,
        "FROM a" + " " * 65_000 + "b\n",
        "FROM a\nCOPY <<E /x\na: x" + " " * 65_000 + "y\nE\n",
        "FROM a\nENV A=" + "''" * 32_000 + "\n",
    ],
    ids=["heredocs", "FROM", "setting", "quotes"],
)
def test_long_dockerfiles_take_no_time(text: str) -> None:
    assert parsed(text)


def test_a_recipe_that_is_not_utf_8_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".devops").mkdir()
    (tmp_path / ".devops" / "cpu.Dockerfile").write_bytes(b"FROM a\n# caf\xe9\n")
    with pytest.raises(SourceError, match=r"cpu.Dockerfile line 2 is not UTF-8"):
        dockerfile.global_arguments(tmp_path / ".devops" / "cpu.Dockerfile", {})
    assert facts.read(mirror.upstream_texts(tmp_path)["cpu"], "cpu") == facts.read("FROM a\n", "cpu")


INIT = "common_params_context common_params_parser_init"
USE = '    add_opt(common_arg({"-z"}, "N", T0, [](common_params & params) { params.port = 1; }).set_env("Z"));\n'


def with_tables(count: int, following: Callable[[int], str]) -> str:
    tables = "".join(f"static const std::vector<int> T{at} = {{ {following(at)} }};\n" for at in range(count))
    return ARG_CPP.replace(INIT, tables + INIT).replace("    if (ex ==", f"{USE}    if (ex ==", 1)


@pytest.mark.parametrize(
    "arg_cpp",
    [
        with_tables(1, lambda at: f"T{at}"),
        with_tables(2, lambda at: f"T{1 - at}"),
        with_tables(40, lambda at: f"T{at + 1}, T{at + 1}"),
        ARG_CPP.replace("LLAMA_EXAMPLE_CLI", "(" * 5000 + "LLAMA_EXAMPLE_CLI" + ")" * 5000, 1),
    ],
    ids=["itself", "cycle", "doubling", "nested"],
)
def test_cpp_that_refers_to_itself_is_an_error(arg_cpp: str) -> None:
    with pytest.raises(SourceError, match="nested too deeply, or refers to itself"):
        server_arguments.read(arg_cpp, COMMON_H)


def test_a_number_that_squares_itself_does_not_grow_for_ever() -> None:
    squares = "    params.port = params.port * params.port;\n" * 60
    assert server_arguments.read(ARG_CPP.replace("    if (ex ==", f"{squares}    if (ex ==", 1), COMMON_H)


def _with_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


CONSUMER_TEXT = (ROOT / consumer.FILE).read_text(encoding="utf-8")
PARSERS: Mapping[str, tuple[Callable[[str, Path], object], tuple[str, ...], int]] = {
    "facts": (lambda text, _: facts.read(text, "x.Dockerfile"), RECIPES, 300),
    "global_arguments": (
        lambda text, path: dockerfile.global_arguments(_with_file(path / "x", text), {}),
        RECIPES,
        300,
    ),
    "arg.cpp": (lambda text, _: server_arguments.read(text, COMMON_H), (ARG_CPP,), 300),
    "common.h": (lambda text, _: server_arguments.read(ARG_CPP, text), (COMMON_H,), 150),
    "consumer.toml": (
        lambda text, path: consumer.load.__wrapped__(_with_file(path / consumer.FILE, text).parents[1]),
        (CONSUMER_TEXT,),
        100,
    ),
    "differences.toml": (
        lambda text, path: mirror.load_records(_with_file(path / "x", text)),
        ((ROOT / mirror.DIFFERENCES).read_text(encoding="utf-8"),),
        60,
    ),
    "pyproject.toml": (
        lambda text, path: settings.load(_with_file(path / "pyproject.toml", text).parent),
        ((ROOT / "pyproject.toml").read_text(encoding="utf-8"),),
        100,
    ),
    "checkout": (
        lambda text, path: consumer_checkout.read(
            _with_file(path / "devops" / "cpu.Dockerfile", text).parents[1], consumer.load()
        ),
        RECIPES[:1],
        60,
    ),
}


@pytest.mark.parametrize("name", PARSERS)
def test_mutated_files_end_with_a_result_or_a_sentence(tmp_path: Path, name: str) -> None:
    parse, texts, count = PARSERS[name]
    for text in mutations.of_text(texts, count):
        with contextlib.suppress(SourceError, UsageError):
            parse(text, tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[tool]\n# caf\xe9\n", "is not UTF-8"),
        (b"a = " + b"[" * 9000, "is not valid TOML"),
        (b"a = " + b"9" * 5000, "is not valid TOML"),
        (b"[tool]\nbase-images = 5\n", r"lacks the key 'llama-cpp'"),
        (b"[tool.base-images.llama-cpp]\nrepository = 5\n", r"has no text at the key 'repository'"),
    ],
)
def test_an_odd_pyproject_is_an_error(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        settings.load(tmp_path)
