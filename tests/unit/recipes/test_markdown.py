"""Text from outside in Markdown, read by a parser of Markdown."""

from __future__ import annotations

import random

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from base_images.recipes import markdown

COMMENT = "<!-- -->"
PIECES = (*"`\\|*_[]()<>$#!@- ab\n", "``", "```", "~~", "](", "<img src=x>", "&lt;", "@me", ":x:", "://")

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def inline(text: str) -> list[Token]:
    return [child for token in PARSER.parse(text) if token.type == "inline" for child in token.children or ()]


def parsed(text: str) -> str:
    """Returns what a reader sees of one line of Markdown, which must hold nothing but text and code."""
    tokens = inline(text)
    comments = [token for token in tokens if token.type == "html_inline" and token.content == COMMENT]
    shown = [token for token in tokens if token not in comments]
    assert {token.type for token in shown} <= {"text", "code_inline", "text_special"}, text
    return "".join(token.content for token in shown)


def words(text: str) -> str:
    return "".join(text.split())


def plain(text: str) -> str:
    return text.replace("`", "").replace(r"\|", "|")


def test_random_text_stays_text_in_a_sentence_and_in_a_table() -> None:
    choose = random.Random(11)  # noqa: S311 - the same texts each time
    for _ in range(3_000):
        value = "".join(choose.choices(PIECES, k=choose.randrange(1, 10)))
        assert words(parsed(f"x {markdown.code(value)} x")) == f"x{words(value)}x", value
        seen, given = words(parsed(f"x {markdown.text(value)} x")), f"x{words(value)}x"
        # The backquotes around code are not shown, and code is escaped for a table.
        assert plain(seen) == plain(given), value
        for shown in (markdown.text(value), markdown.code(value, in_table=True)):
            cells = inline(f"| one | two |\n| --- | --- |\n| a {shown} b | c |")
            assert cells[-1].content == "c", value


@pytest.mark.parametrize("value", ["``<img src=x>", "`` a `b` <img src=x>", "<img src=`x`>", "a```<b>``"])
def test_an_odd_number_of_backquotes_lets_no_markup_through(value: str) -> None:
    assert "<img" not in PARSER.render(markdown.text(value)) + PARSER.render(markdown.code(value))
    assert "<b>" not in PARSER.render(markdown.text(value)) + PARSER.render(markdown.code(value))


def test_nobody_is_mentioned_and_no_emoji_appears() -> None:
    assert markdown.text("for @somebody: a :bug: at 10:20:30 for :100:") == (
        f"for @{COMMENT}somebody: a :{COMMENT}bug: at 10:20:30 for :{COMMENT}100:"
    )


def test_a_list_escapes_its_title() -> None:
    assert markdown.bullets("<img>", ["*x*"]) == [r"**\<img\>**", "", "- *x*", ""]


def test_nothing_is_no_code() -> None:
    assert markdown.code(" \n") == ""
