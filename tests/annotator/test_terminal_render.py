"""What the terminal annotator shows of tokens and texts, whatever they hold."""

import copy
import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from terminal_sitting import screen_of

from anchorlwf.annotator.terminal.render import Painter, draw_prompt, visible
from anchorlwf.data.record import Prompt
from anchorlwf.model.codec import Codec
from anchorlwf.model.vocabulary import TokenTable, TokenText
from anchorlwf.readable import readable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("\n", "⏎"),
        ("\t x", "⇥·x"),
        ("é漢", "é漢"),
        ("\x00", "␀"),
        ("\x1b[31m", "␛[31m"),
        ("\u202e", "‹U+202E›"),
        ("", "‹7›"),
        ("[b]", "[b]"),
    ],
)
def test_white_space_and_control_characters_are_made_visible(text, shown):
    assert visible(TokenText(7, text, None, special=False)) == shown


def test_bytes_that_are_no_character_are_shown_as_bytes():
    assert visible(TokenText(7, "\ufffd", "e4bd", special=False)) == "‹E4 BD›"


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_in_a_text_commands_the_terminal_or_hides(text):
    console, screen = screen_of()
    draw_prompt(console, Prompt(messages=[{"role": "user", "content": text}]))
    assert all(char == "\n" or char.isprintable() for char in screen.getvalue())
    assert [line for line in readable(text).split("\n") if line.strip()] == [
        line for line in screen.getvalue().removeprefix("user: ").split("\n") if line.strip()
    ]


def test_every_token_is_shown_with_its_number_whatever_it_holds(tiny_model):
    # Square brackets and backslashes would be markup to the console, colons an emoji.
    codec = Codec(copy.deepcopy(tiny_model.codec.tokenizer))
    codec.tokenizer.add_tokens(["[bold]x[/bold]", "\\\\", "\\\\\\", "[/]", "\\[red]", "[link=a]", ":smile:"])
    table, ids = TokenTable(codec), list(range(len(codec.tokenizer)))
    console, screen = screen_of(60)
    painter = Painter(console, table)
    for index, token in enumerate(ids):
        painter.token(index, token, 0.5, anchor=index == 3)
    painter.rest()
    shown = screen.getvalue()
    for index, token in enumerate(ids):
        number = "3*" if index == 3 else str(index)
        assert re.search(rf"(^|  ){re.escape(f'{number} {visible(table.token(token))}')}(=|  |\n)", shown, re.MULTILINE)
    # A line is full, and no longer than the screen, before the next begins; a line break ends it, too.
    for line, after in itertools.pairwise(shown.splitlines()):
        first = re.split(r"  (?=\d)", after)[0]
        assert len(line) <= 60
        assert "⏎" in line or len(line) + 2 + len(first) > 60


def test_a_character_of_several_tokens_is_shown_behind_the_last(tiny_model):
    ids = tiny_model.codec.encode("漢🙂")
    console, screen = screen_of()
    painter = Painter(console, TokenTable(tiny_model.codec))
    for index, token in enumerate(ids):
        painter.token(index, token, None, anchor=False)
    assert len(ids) == 7
    assert screen.getvalue() == "0 ‹E6›  1 ‹BC›  2 ‹A2›=漢  3 ‹F0›  4 ‹9F›  5 ‹99›  6 ‹82›=🙂"
