"""Text from outside on a terminal and in GitHub's log."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from base_images.cli import views
from base_images.errors import EngineError
from base_images.untrusted import printable, without_commands

TITLE = "\x1b]0;the window's title\x07"
LINK = "\x1b]8;;http://x.example\x1b\\here\x1b]8;;\x1b\\"
MARKUP = "[/nothing] [bold]no[/bold] https://x.example/[link=y] :warning: \\[x] \\"
COMMANDS = "::error::a\n \t ::set-env name=x::b\nc ##[error]d\r::add-mask::e"

PIECES = (*"\x1b[]\x07\x9b\x9d\\\r\n\t \u202e\udcffé", "31m", "0;x", "::", "##[", "error", "]")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m \x9b32mgreen", "red green"),
        (f"{TITLE}a{LINK}b", "ahereb"),
        ("\x1b]0;not ended\nnext line", "0;not ended\nnext line"),
        ("\x1bcreset \x1b(0line", "reset line"),
        ("\x1b", "\ufffd"),
        ("one\rtwo\r\nthree\x0bfour", "one\ntwo\nthree\ufffdfour"),
        ("file\udcff name\u202egpj.exe", "file\ufffd name\ufffdgpj.exe"),
        ("tab\t and é, 漢字 and 😀", "tab\t and é, 漢字 and 😀"),
    ],
)
def test_controls_are_removed_and_the_rest_is_kept(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def is_command(line: str) -> bool:
    """Whether GitHub's runner takes a line for a workflow command (ActionCommand.cs: TryParseV2 and TryParse)."""
    return line.lstrip().startswith("::") or "##[error]" in line


def test_random_text_has_neither_controls_nor_commands() -> None:
    choose = random.Random(7)  # noqa: S311 - the same texts each time
    for _ in range(20_000):
        text = "".join(choose.choices(PIECES, k=choose.randrange(1, 12)))
        shown = without_commands(printable(text))
        assert not re.search(r"[^\n\t\x20-\x7eé\ufffd]", shown), repr(text)
        assert not any(map(is_command, re.split(r"[\r\n]", shown))), repr(text)
        assert printable(shown) == shown


def table(text: str) -> None:
    views.print_table(text, [text, "is"], [[text, "pass"], ["", text]])


def pairs(text: str) -> None:
    views.print_pairs({text: text})


def notice(text: str) -> None:
    with views.Display(views.Mode.PLAIN) as display:
        display.notice(text)


def failure(text: str) -> None:
    views.complain(views.failure(EngineError(text, detail=text)))


@pytest.mark.parametrize("show", [views.say, views.complain, table, pairs, notice, failure])
def test_what_is_printed_has_neither_controls_nor_commands_nor_markup(
    show: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    show(f"{TITLE}{COMMANDS}\n{LINK} {MARKUP}")
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown
    assert not any(map(is_command, shown.splitlines()))
    assert "here [/nothing] [bold]no[/bold] https://x.example/[link=y] :warning: \\[x] \\" in re.sub(r"\s+", " ", shown)


def test_a_cell_that_folds_before_a_colon_does_not_make_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for width in range(150, 170):
        views.print_pairs({"": f"{'x' * width}::error::y"})
        views.say(f"{'x' * width}\n::error::y")
    assert not any(map(is_command, capsys.readouterr().out.splitlines()))
