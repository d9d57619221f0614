"""What a line typed at the terminal annotator means."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlwf.annotator.terminal.commands import HELP, Act, Go, Look, Note, Put, Tag, Weigh, parse
from anchorlwf.errors import RecordError


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("a", Act("accept")),
        ("accept", Act("accept")),
        ("x", Act("reject")),
        ("s", Act("skip")),
        ("k", Act("keep")),
        ("u", Act("undo")),
        ("r", Act("redo")),
        ("h", Act("history")),
        ("c", Act("continue")),
        ("b", Act("back")),
        ("q", Act("quit")),
        ("Quit", Act("quit")),
        ("?", Act("help")),
        ("help", Act("help")),
        ("", Act("show")),
        ("  a \t", Act("accept")),
        ("3", Look(3)),
        (" 3 ", Look(3)),
        ("03", Look(3)),
        ("3 @0.8", Weigh(3, 0.8)),
        ("g 2", Go(2)),
        ("go 2", Go(2)),
        ("n", Note(None)),
        ("n  not sure ", Note("not sure")),
        ('n ""', Note("")),
        ('note "a\\nb"', Note("a\nb")),
        ("t", Tag(None)),
        ('t a "b c"', Tag(("a", "b c"))),
        ('t ""', Tag(())),
    ],
)
def test_a_command_or_a_number_alone(line, meaning):
    assert parse(line) == meaning


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        # White space before the text will be that of the token it replaces ...
        ("3 hello", Put(3, "hello")),
        ("3   hello  there ", Put(3, "hello  there")),
        ("3 hello @0.25", Put(3, "hello", confidence=0.25)),
        ("3 1931 @0.5", Put(3, "1931", confidence=0.5)),
        ("3 me@home.org", Put(3, "me@home.org")),
        ("3 a", Put(3, "a")),
        # ... and in quotes the text is exactly what will stand there.
        ('3 "hello"', Put(3, "hello", exact=True)),
        ('0 " two  spaces"', Put(0, " two  spaces", exact=True)),
        ('3 "a\\n\\u00e9\\""', Put(3, 'a\né"', exact=True)),
        ('3 "me @0.25" @.5', Put(3, "me @0.25", exact=True, confidence=0.5)),
        ('3 "#2"', Put(3, "#2", exact=True)),
        ("3 #1", Put(3, option=1)),
        ("0 #2 @0.8", Put(0, option=2, confidence=0.8)),
        # A dollar sign of its own ends the answer.
        ("3 hello $", Put(3, "hello", end=True)),
        ("3 #2 $ @0.5", Put(3, option=2, end=True, confidence=0.5)),
        ('3 "a $"', Put(3, "a $", exact=True)),
        ("3 5$", Put(3, "5$")),
        ("3 $", Put(3, end=True)),
    ],
)
def test_a_number_and_what_shall_stand_there(line, meaning):
    assert parse(line) == meaning


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("f", r"line: expected a token number or a command, got 'f'"),
        ("-1 hello", r"line: expected a token number or a command, got '-1 hello'"),
        ("3hello", r"line: expected a token number or a command"),
        ("9" * 5000, r"line: expected a token number or a command, got '9{40}\.\.\.'"),
        ("3 #", r"alternative: expected # and its number, got #\."),
        ("3 #two", r"alternative: expected # and its number, got #two"),
        ("3 #²", r"alternative: expected # and its number, got #²"),
        ("3 #" + "9" * 5000, r"alternative: expected # and its number"),
        ('3 "hello', r"quoted text: expected one JSON string, got Unterminated string"),
        ('3 "hello" there', r"quoted text: expected one JSON string, got Extra data"),
        ('3 "\\ud800"', r"text: expected whole characters, got surrogates not allowed"),
        ("3 \udcff", r"text: expected whole characters, got surrogates not allowed"),
        ("n \udcff", r"text: expected whole characters, got surrogates not allowed"),
        ('n "\\ud800"', r"text: expected whole characters, got surrogates not allowed"),
        ("3 hello @0", r"confidence: expected more than 0, at most 1, got 0"),
        ("3 @1.5", r"confidence: expected more than 0, at most 1, got 1\.5"),
        ("3 hello @nan", r"confidence: expected more than 0, at most 1, got nan"),
        ("3 hello @sure", r"confidence: expected more than 0, at most 1, got sure"),
        ("g", r"answer: expected its number, got none"),
        ("g two", r"answer: expected its number, got two"),
        ("t don't", r"tags: expected words, or words in quotes, got No closing quotation"),
    ],
)
def test_a_line_that_means_nothing_says_why(line, problem):
    with pytest.raises(RecordError, match=problem):
        parse(line)


PARTS = st.lists(
    st.sampled_from(
        ["3", " ", "#", "#2", "$", '"', "\\", "@", "@0.5", "hello", "²", "٣", "\ud800", "\n", "u", "n", "t", "g"]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300)
@given(line=st.text(max_size=12) | PARTS | PARTS.map(lambda rest: f"3 {rest}"))
def test_any_line_is_a_command_or_a_named_mistake(line):
    try:
        found: object = parse(line)
    except RecordError as error:
        found = str(error)
    assert not isinstance(found, str) or re.search(r": expected .*, got ", found, re.DOTALL)
    if isinstance(found, Put):
        given = (found.text is not None) + (found.option is not None)
        assert given == 1 or (given == 0 and found.end)
        assert found.confidence is None or 0 < found.confidence <= 1


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), confidence=st.floats(0.01, 1))
def test_quoted_text_is_taken_to_the_letter(text, confidence):
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse(f"3 {quoted}") == Put(3, text, exact=True)
    assert parse(f"3 {quoted} @{confidence}") == Put(3, text, exact=True, confidence=confidence)
    assert parse(f"n {quoted}") == Note(text)


def test_every_form_that_the_help_shows_is_understood():
    forms = re.findall(r"^  (N.*?)  ", HELP, re.MULTILINE)
    assert forms == ["N", "N text", 'N "text"', "N #2", "N $", "N @0.8"]
    kinds = [type(parse(form.replace("N", "3"))) for form in forms]
    assert kinds == [Look, Put, Put, Put, Put, Weigh]
    commands = re.findall(r"(?:^| {2,})([a-z?]) (?:[a-z]+)", HELP.partition("\n\n")[2], re.MULTILINE)
    assert {parse(letter).name for letter in commands} == {
        "accept",
        "reject",
        "skip",
        "keep",
        "undo",
        "redo",
        "history",
        "back",
        "quit",
    }
    assert max(map(len, HELP.splitlines())) <= 80
