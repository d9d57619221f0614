"""The terminal annotator: what lines mean, what is shown, the store it shares with the page, people at a real pty."""

import contextlib
import copy
import fcntl
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_client import Person, whole
from terminal_sitting import ASKED, CONFIG, QUESTIONS, screen_of, sit, work_of
from vllm_server import vllm_server

from anchorlwf.annotation import Correct, Quit, Session, annotate, verify_records
from anchorlwf.annotation.tree import Tree, fold
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.open import Work
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.store.queue import progress
from anchorlwf.annotator.store.store import LEASE, Store
from anchorlwf.annotator.terminal import terminal
from anchorlwf.annotator.terminal.commands import HELP, Act, Go, Look, Note, Put, Tag, Weigh, parse
from anchorlwf.annotator.terminal.render import Painter, draw_prompt, readable, visible
from anchorlwf.cli import main
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import RecordError, StorageError
from anchorlwf.model.codec import Codec
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.model.vocabulary import TokenTable, TokenText

# --- what a line means ---


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
        ["3", " ", "#", "#2", '"', "\\", "@", "@0.5", "hello", "²", "٣", "\ud800", "\n", "u", "n", "t", "g"]
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
        assert (found.text is None) != (found.option is None)
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
    assert forms == ["N", "N text", 'N "text"', "N #2", "N @0.8"]
    kinds = [type(parse(form.replace("N", "3"))) for form in forms]
    assert kinds == [Look, Put, Put, Put, Weigh]
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


# --- what is shown ---


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


# --- over the store ---


@pytest.fixture
def work(tmp_path, tiny_path) -> Work:
    return work_of(tmp_path, tiny_path)


def answer_of(exchange: Exchange, name: str = "ada") -> list[int]:
    """The ids that stand in the store for what this person has on the screen."""
    store, project = exchange.desk.store, exchange.desk.project
    return list(fold(store.events(store.next(project, name).id)).node.completion_ids)


def shown(table: TokenTable, ids: list[int], stars: tuple[int, ...] = ()) -> str:
    console, screen = screen_of()
    painter = Painter(console, table)
    for index, token in enumerate(ids):
        painter.token(index, token, None, anchor=index in stars)
    return screen.getvalue()


def test_every_step_is_in_the_store_when_the_prompt_comes_back(work):
    seen = []
    with work.open() as exchange:
        store, project = exchange.desk.store, exchange.desk.project

        def look() -> None:
            tree = fold(Store(work.url).events(store.next(project, "ada").id))
            seen.append(
                (
                    list(tree.node.completion_ids),
                    [a.position for a in tree.anchors()],
                    tree.note,
                    tree.tags,
                    [a.confidence for a in tree.anchors()],
                    tree.node.ended,
                )
            )

        lines = ["3 hello @0.5", "u", "r", "3 @0.25", "n sure?", 't x "y z"', "g 0", "0 #2", "g 1"]
        records, _ = sit(exchange, look, *(part for line in lines for part in (line, look)), "a")
        record = load_records(work.out)[0]
    first, put, undone, redone, weighed, noted, tagged, gone, elsewhere, back = seen
    assert (put[1][0], set(put[4]), put[5]) == (3, {0.5}, True)
    assert (undone, redone) == (first, put)
    assert weighed[4] == [0.25, *put[4][1:]]
    assert (noted[2], tagged[3]) == ("sure?", ("x", "y z"))
    assert gone[0] == first[0]
    assert elsewhere[1][:1] == [0]
    assert back[0] == put[0]
    assert record == records[0]
    assert (record.completion_ids, record.original_ids, record.tags) == (put[0], first[0], ["x", "y z"])
    assert {anchor.source for anchor in record.anchors} == {"human:ada"}


def test_what_the_screen_says_is_what_is_there(work):
    with work.open() as exchange:
        table, desk = exchange.desk.decoder.table, exchange.desk
        ids = []
        _, screen = sit(
            exchange,
            lambda: ids.append(answer_of(exchange)),
            "3",
            "3 #2",
            lambda: ids.append(answer_of(exchange)),
            "h",
            "n why",
            "t",
            "",
        )
        live = desk.next("ada")
        options = desk.decoder.options("t", live.prompt_ids, ids[0][:3], 5)
        assert f"user: {QUESTIONS[0]}" in screen
        assert shown(table, ids[0]) in screen
        for number, (token, probability) in enumerate(options, 1):
            row = next(line for line in screen.splitlines() if f"#{number} " in line)
            assert visible(table.token(token)) in row
            assert f"{probability:.4f}" in row
            assert ("stands there" in row) == (token == ids[0][3])
        assert ids[1][3] == options[1][0]
        assert screen.count(shown(table, ids[1], stars=(3,))) == 2
        assert re.search(
            r"^  0  the first answer .*\n  > 1  at 3: '.*' became '.*'  \(\d+ tokens, 1 anchors\)$",
            screen,
            re.MULTILINE,
        )
        assert "note: why\ntags: none" in screen
        assert "[0 of 3 done]" in screen
        assert "0 of 3 done; the same command goes on." in screen


def test_text_takes_the_white_space_of_what_it_replaces_unless_quoted(tmp_path):
    work = work_of(tmp_path, None, ["Who are you?"])
    found = []
    with work.open() as exchange:
        codec = exchange.desk.decoder.table.codec
        sit(
            exchange,
            "3 Tarn",
            lambda: found.append(answer_of(exchange)),
            '3 "Tarn"',
            lambda: found.append(answer_of(exchange)),
        )
    assert [codec.decode(ids)[:8] for ids in found] == ["I am Tar", "I amTarn"]
    assert codec.pieces(found[0][3:4]) == [" Tarn"]


def test_bad_lines_are_answered_change_nothing_and_are_asked_again(work):
    with work.open() as exchange:
        before = []
        _, screen = sit(
            exchange,
            lambda: before.append(answer_of(exchange)),
            "fine",
            "99",
            "99 x",
            "3 #9",
            "3 #1",
            "u",
            "r",
            "c",
            "b",
            "g 5",
            "3 @0.5",
            "?",
            "3 \udcff",
            lambda: before.append(answer_of(exchange)),
            "0 Hm",
            "k",
        )
    for told in (
        "got 'fine'",
        "position: expected 0 to 23, got 99",
        "expected #1 to #5, got #9",
        "tokens that differ from the answer",
        "Nothing to undo",
        "Nothing to redo",
        "got a whole one",
        "a decision of this run",
        "answer: expected 0 to 0, got 5",
        "anchor: expected a position among []",
        HELP.splitlines()[3],
        "whole characters",
        "keep: expected the model's own answer",
    ):
        assert told in screen
    assert before[0] == before[1]


def test_the_end_of_input_quits_and_the_next_start_goes_on(work):
    stood = []
    with work.open() as exchange:
        assert sit(exchange, "3 hello", lambda: stood.append(answer_of(exchange)))[0] == []
    with work.open() as exchange:
        assert answer_of(exchange) == stood[0]
        records, screen = sit(exchange, "u", "r", "a", "a", "x", "")
        assert [record.status for record in records] == ["complete", "complete", "rejected"]
        assert records[0].completion_ids == stood[0]
        assert records[1].tags == ["keep"]  # nothing to correct, as on the page
        assert screen.count("Nothing is left") == 1
        assert "goes on" not in screen
    with work.open() as exchange:
        records_again, screen = sit(exchange, lambda: pytest.fail("nothing is left to ask"))
        assert (records_again, screen) == ([], "")
    assert load_records(work.out) == records


def test_a_decision_is_taken_back_and_a_skipped_item_left_to_others(work):
    with work.open() as exchange:
        records, screen = sit(exchange, "a", "x", "b", "a", "s", "b", "s", "4", "b", "b", "q")
        # Back from the skipped third item, then once more, to the second.
        assert [record.status for record in records] == ["complete"]
        assert screen.count(f"user: {QUESTIONS[1]}") == 3
        assert screen.count(f"user: {QUESTIONS[2]}") == 4
        counts = progress(exchange.desk.store, exchange.desk.project)
        assert (counts["done"], counts["keep"], counts["skip"]) == (1, 1, 0)
    assert [record.status for record in load_records(work.out)] == ["complete", "draft", "draft"]


def test_the_whole_history_is_within_reach(work):
    found = []
    with work.open() as exchange:
        _, screen = sit(
            exchange,
            "3 hello",
            "u",
            "3 she",
            "5 town",
            lambda: found.append(answer_of(exchange)),
            "g 1",
            "h",
            "g 3",
            lambda: found.append(answer_of(exchange)),
        )
    assert found[0] == found[1]
    lines = re.findall(r"^( *(?:> )?\d+)  (?=the first answer|at \d)", screen, re.MULTILINE)
    assert lines == ["  0", "  > 1", "    2", "      3"]


def test_a_long_answer_is_shown_from_a_little_before_the_change(tmp_path, tiny_path):
    work = work_of(tmp_path, tiny_path)
    with Work(work.prompts, work.out, work.model, AnnotateConfig(max_new_tokens=90)).open() as exchange:
        _, screen = sit(exchange, "70 hello")
        said = screen.split("? for help): 70 hello\n")[1]
        assert said.startswith("...  30 ")
        assert shown(exchange.desk.decoder.table, answer_of(exchange)[:41]).endswith(said[5 : said.index("  41 ")])


# --- page and terminal ---


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    from postgres import postgres_server

    with postgres_server() as database:
        yield database


def page_of(exchange: Exchange, name: str = "ada") -> Person:
    from anchorlwf.annotator.web.app import create_app
    from anchorlwf.annotator.web.settings import WebSettings

    token = name * 8
    return Person(create_app(exchange, WebSettings({name: token}, rate=1e6, burst=10**6)), token, {})


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_from_the_page_to_the_terminal_and_back(tmp_path, tiny_path, kind, request):
    url = request.getfixturevalue("new_database")() if kind == "postgresql" else None
    work = work_of(tmp_path, tiny_path, store=url)
    with work.open() as at_page:
        ada = page_of(at_page)
        session = whole(ada)
        path = f"/api/sessions/{session['id']}"
        step = ada.ok(ada.post(f"{path}/correct", {"node": 0, "position": 2, "text": "hello", "confidence": 0.5}))
        ada.stream(session["id"], step["head"]["node"])
        ada.ok(ada.post(f"{path}/note", {"text": "from the page"}))
        on_page = [token["id"] for token in ada.ok(ada.get(path))["tokens"]]
        # The page stays open while the same person goes on at the terminal.
        with work.open() as at_terminal:
            table = at_terminal.desk.decoder.table
            marked = tuple(anchor["position"] for anchor in ada.ok(ada.get(path))["anchors"])
            _, screen = sit(at_terminal, "9 town @0.25", "h", "t typed")
            assert 2 in marked
            assert shown(table, on_page, stars=marked) in screen
            assert "note: from the page" in screen
            typed = answer_of(at_terminal)
        # What the page has in memory is older: it sees what was typed when it comes back to the item.
        fetched = ada.ok(ada.post("/api/next"))
        assert [token["id"] for token in fetched["tokens"]] == typed
        assert fetched["tags"] == ["typed"]
        assert [node["parent"] for node in fetched["nodes"]] == [None, 0, 1]
        assert {a["position"]: a["confidence"] for a in fetched["anchors"]}.items() >= {2: 0.5, 9: 0.25}.items()
        ada.ok(ada.post(f"{path}/undo"))
        ada.ok(ada.post(f"{path}/decide", {"verdict": "accept"}))
        with work.open() as at_terminal:
            records, screen = sit(at_terminal, "x", "b", "a")
            assert f"user: {QUESTIONS[0]}" not in screen
            assert "[1 of 3 done]" in screen
        assert whole(ada)["prompt"]["messages"][0]["content"] == QUESTIONS[2]
    done = load_records(work.out)
    assert [record.messages[0]["content"] for record in done] == QUESTIONS[:2]
    assert done[0].completion_ids == on_page
    assert (done[0].tags, done[1:]) == (["typed"], records)


def test_what_moved_on_elsewhere_is_said_and_shown_as_it_is_now(work):
    with work.open() as exchange, work.open() as elsewhere:
        ada = page_of(elsewhere)
        on_page = []

        def correct() -> None:
            on_page.append(whole(ada))
            body = {"node": 0, "position": 1, "text": "hello"}
            ada.ok(ada.post(f"/api/sessions/{on_page[0]['id']}/correct", body))
            ada.stream(on_page[0]["id"], 1)

        def accept() -> None:
            ada.ok(ada.post(f"/api/sessions/{on_page[0]['id']}/decide", {"verdict": "accept"}))

        ids = []
        records, screen = sit(
            exchange, correct, "5 town", lambda: ids.append(answer_of(exchange)), accept, "n late", "a"
        )
        stars = [anchor["position"] for anchor in ada.ok(ada.get(f"/api/sessions/{on_page[0]['id']}"))["anchors"]]
        assert stars[0] == 1
        assert shown(exchange.desk.decoder.table, ids[0], tuple(stars)) in screen
        assert len(re.findall(r"session: expected version \d+, got \d+", screen.replace("\n", " "))) == 2
        assert [record.messages[0]["content"] for record in records] == QUESTIONS[1:2]
    assert [record.messages[0]["content"] for record in load_records(work.out)] == QUESTIONS[:2]


def test_two_terminals_never_get_the_same_item(work):
    with work.open() as ada, work.open() as bob:
        met = []

        def ask(exchange: Exchange, name: str) -> None:
            for _ in range(2):
                _, screen = sit(exchange, "s", name=name)
                met.extend((name, question) for question in QUESTIONS if f"user: {question}\n" in screen)

        _, screen = sit(ada, lambda: ask(bob, "bob"), "a")
        assert f"user: {QUESTIONS[0]}" in screen
        # Bob skipped two, each of which ada may do; what ada has before her he never saw.
        assert {question for _, question in met} == set(QUESTIONS[1:])


def test_thinking_long_does_not_lose_the_item(work, monkeypatch):
    monkeypatch.setattr(terminal, "_RENEW", 0.02)
    with work.open() as ada, work.open() as bob:
        clock = [time.time()]
        for exchange in (ada, bob):
            exchange.desk.store.clock = lambda: clock[0]

        def think() -> None:
            for _ in range(4):
                clock[0] += LEASE * 0.6
                time.sleep(0.2)
            assert f"user: {QUESTIONS[0]}" not in sit(bob, name="bob")[1]

        records, screen = sit(ada, think, "3 hello", "a")
        assert len(records) == 1
        assert "somebody else" not in screen


def test_who_lost_the_item_is_told_and_gets_another(work):
    with work.open() as ada, work.open() as bob:
        clock = [time.time()]
        for exchange in (ada, bob):
            exchange.desk.store.clock = lambda: clock[0]

        def sleep() -> None:
            clock[0] += LEASE + 1
            assert f"user: {QUESTIONS[0]}" in sit(bob, "0 Hm", name="bob")[1]

        records, screen = sit(ada, sleep, "3 hello", "x")
        assert "expected ada to hold it, got somebody else" in screen.replace("\n", " ")
        assert [record.messages[0]["content"] for record in records] == [QUESTIONS[1]]


# --- trouble ---


class Held:
    """A stream of which five tokens come; then somebody who has seen one of them presses Ctrl-C."""

    def __init__(self, steps, seen: threading.Event) -> None:
        self._steps, self._seen, self._closed = steps, seen, threading.Event()

    def __iter__(self):
        yield from itertools.islice(self._steps, 5)
        self._seen.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        self._closed.wait(10)
        yield from self._steps

    def close(self) -> None:
        self._closed.set()
        self._steps.close()


def test_ctrl_c_stops_what_streams_and_c_lets_it_go_on(work, monkeypatch):
    stream, token, seen, held = LocalDecoder.stream, Painter.token, threading.Event(), []

    def once_held(self, key, prompt_ids, prefix_ids, limit, **options):
        steps = stream(self, key, prompt_ids, prefix_ids, limit, **options)
        if len(prefix_ids) != 4 or held:  # the first continuation of a correction at 3
            return steps
        held.append(Held(steps, seen))
        return held[0]

    def painted(self, index, *arguments, **options) -> None:
        token(self, index, *arguments, **options)
        if held and index == 4:
            seen.set()

    monkeypatch.setattr(LocalDecoder, "stream", once_held)
    monkeypatch.setattr(Painter, "token", painted)
    with work.open() as exchange:
        ids = []
        records, screen = sit(
            exchange,
            "3 #2",
            lambda: ids.append(answer_of(exchange)),
            "a",
            "c",
            lambda: ids.append(answer_of(exchange)),
            "a",
            "q",
        )
        assert 9 <= len(ids[0]) < len(ids[1])
        assert ids[1][: len(ids[0])] == ids[0]
        assert screen.count("The answer was stopped; c lets it go on.") == 1
        assert "answer: expected a whole one" in screen
        assert records[0].completion_ids == ids[1]
    # The same as without a stop.
    with Work(work.prompts, work.out.with_name("other.jsonl"), work.model, CONFIG).open() as exchange:
        assert sit(exchange, "3 #2", "a")[0][0].completion_ids == ids[1]


def test_a_full_disk_is_said_and_the_step_repeated_when_there_is_room(work, monkeypatch):
    with work.open() as exchange:
        store, full = exchange.desk.store, [False]
        append = store.append

        def failing(*arguments):
            if full[0]:
                raise StorageError("annotation store: expected a writable database, got database or disk is full.")
            return append(*arguments)

        monkeypatch.setattr(store, "append", failing)
        ids = []
        records, screen = sit(
            exchange,
            lambda: ids.append(answer_of(exchange)),
            lambda: full.__setitem__(0, True),
            "0 Hm",
            "a",
            lambda: ids.append(answer_of(exchange)),
            lambda: full.__setitem__(0, False),
            "a",
        )
        assert ids[0] == ids[1]
        assert screen.count("disk is full") == 2
        assert [record.completion_ids for record in records] == [ids[0]]


@pytest.mark.parametrize("torn", ["a line of its own", "the last record"])
def test_a_line_torn_by_a_crash_does_not_keep_the_work_from_going_on(work, torn):
    with work.open() as exchange:
        first = sit(exchange, "a", "a")[0]
    whole_file = work.out.read_bytes()
    work.out.write_bytes(whole_file + b'{"id": "half' if torn == "a line of its own" else whole_file[:-100])
    with pytest.warns(match="broken JSON"), work.open() as exchange:
        second = sit(exchange, "a")[0]
    # A record that was torn is written anew from the store, and the file with it.
    still_torn = pytest.warns(match="broken JSON") if torn == "a line of its own" else contextlib.nullcontext()
    with still_torn:
        assert load_records(work.out, skip_bad=True) == [*first, *second]


def test_a_draft_made_without_a_store_is_gone_on_from(work, tiny_model):
    class Once:
        source = "human:ada"

        def __init__(self) -> None:
            self.verdicts = [Correct(3, [100]), Quit()]

        def review(self, _view):
            return self.verdicts.pop(0)

        def complain(self, error) -> None:
            raise error

    (draft,) = annotate(tiny_model, work.prompts, Once(), out=work.out, config=CONFIG)
    with work.open() as exchange:
        (record,), screen = sit(exchange, "a")
        assert shown(exchange.desk.decoder.table, draft.completion_ids, stars=(3,)) in screen
    assert record.model_dump() == {**draft.model_dump(), "status": "complete"}


def test_over_a_server_that_decodes(base, tmp_path):
    with vllm_server(base) as server:
        work = work_of(tmp_path, None, ["Who are you?"], remote=server.url)
        with work.open() as exchange:
            (record,), screen = sit(exchange, "3", "3 #2", "a")
    assert re.search(r"#1 .*stands there", screen)
    assert [anchor.position for anchor in record.anchors] == [3]
    assert all(finding.holds for finding in verify_records(base, [record]))


def test_several_people_do_each_item(tmp_path, tiny_path):
    work = work_of(tmp_path, tiny_path, ["hello"], per_item=2)
    with work.open() as exchange:
        (one,), (other,) = (sit(exchange, "a", name=name)[0] for name in ("ada", "bob"))
        assert sit(exchange, name="carl")[0] == []
    assert one.id != other.id
    assert load_records(work.out) == [one, other]


# --- people at a terminal ---

PROMPT = "token or command (? for help): "


class Screen:
    """`anchorlwf annotate --annotator terminal` on a pseudo-terminal: what is typed, and what appears."""

    def __init__(self, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 4000, 0, 0))
        command = [
            Path(sys.executable).with_name("anchorlwf"),
            "annotate",
            folder / "p.jsonl",
            "--out",
            folder / "r.jsonl",
            "--annotator",
            "terminal",
            "--name",
            "ada",
        ]
        self.process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "4000", "PYTHONIOENCODING": "utf-8:strict"},
            # Ctrl-C reaches the process by way of its controlling terminal.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - takes no lock
        )
        os.close(theirs)
        self.raw, self._seen = b"", 0

    @property
    def text(self) -> str:
        """All that appeared, without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode(errors="replace"))

    def expect(self, text: str) -> str:
        """Wait until `text` appears behind what was waited for before; what appeared up to there."""
        deadline = time.monotonic() + 60
        while (found := self.text.find(text, self._seen)) < 0:
            assert time.monotonic() < deadline, f"{text!r} did not appear behind {self.text[self._seen :]!r}"
            assert self._read(), f"{text!r} did not appear before the end: {self.text[self._seen :]!r}"
        part, self._seen = self.text[self._seen : found], found + len(text)
        return part

    def _read(self) -> bool:
        if not select.select([self._ours], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._ours, 65_536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.raw += data
        return bool(data)

    def type(self, line: str | bytes) -> str:
        """Type a line; what appears until the next question."""
        os.write(self._ours, (line.encode() if isinstance(line, str) else line) + b"\n")
        return self.expect(PROMPT)

    def end(self, keys: bytes) -> int:
        """Type keys that end the process; its exit code."""
        os.write(self._ours, keys)
        while self._read():
            pass
        return self.process.wait(60)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait(10)


@contextmanager
def started(folder: Path) -> Iterator[Screen]:
    screen = Screen(folder)
    try:
        screen.expect(PROMPT)
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen._ours)


class Twin(Session):
    """The same corrections, made here: what the person at the terminal should see and keep."""

    def __init__(self, model: LanguageModel, question: str) -> None:
        super().__init__(model, Prompt(messages=[{"role": "user", "content": question}]), AnnotateConfig())
        self._table = TokenTable(model.codec)
        self.own = list(self.state.completion_ids)

    def put(self, position: int, *token_ids: int, confidence: float = 1) -> str:
        self.correct(position, list(token_ids), confidence=confidence, source="human:ada")
        return self.shown

    @property
    def shown(self) -> str:
        stars = tuple(anchor.position for anchor in self.state.anchors)
        return shown(self._table, list(self.state.completion_ids), stars)

    @property
    def anchors(self) -> list[tuple]:
        return [(a.position, a.token_id, a.confidence, a.source) for a in self.state.anchors]


def anchors_of(record: Record | Tree) -> list[tuple]:
    anchors = record.anchors if isinstance(record, Record) else record.anchors()
    return [(a.position, a.token_id, a.confidence, a.source) for a in anchors]


def test_a_person_is_interrupted_and_killed_and_loses_nothing(base, folder):
    first, second, third = (Twin(base, question) for question in ASKED[:3])
    assert len(first.own) > 5

    with started(folder) as screen:
        assert first.shown in screen.text
        assert re.search(r"#1.*#2.*#8", screen.type("2"), re.DOTALL)
        # By an alternative's number, and taken back; by text, and taken back; by quoted text, which stays.
        chosen = first.steps()[2].alternatives[1][0]
        assert first.put(2, chosen) in screen.type("2 #2")
        first.undo()
        assert first.shown in screen.type("u")
        assert first.put(3, *base.codec.encode(" Tarn")) in screen.type("3 Tarn")
        first.undo()
        assert first.shown in screen.type("u")
        assert first.put(3, *base.codec.encode("Tarn")) in screen.type('3 "Tarn"')
        # Lines that mean nothing change nothing, bytes that are no text among them.
        assert "expected a token number or a command, got 'hello'" in screen.type("hello")
        assert "can't decode byte 0xff" in screen.type(b"2 \xff")
        assert "expected tokens that differ from the answer, got the same" in screen.type("2 #1")
        assert second.shown in screen.type("a")
        assert third.shown in screen.type("x")
        assert third.put(2, *base.codec.encode(" Vesna"), confidence=0.75) in screen.type("2 Vesna @0.75")
        assert screen.end(b"\x03") == 130
        assert "Interrupted." in screen.text
        assert "Traceback" not in screen.text
        # Nothing hides the cursor or wipes a line out while somebody types.
        assert not re.search(rb"\x1b\[\?25l|\x1b\[2K", screen.raw)
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected"]
    for record, twin in zip(records, (first, second), strict=True):
        assert (record.completion_ids, record.original_ids) == (list(twin.state.completion_ids), twin.own)
        assert anchors_of(record) == twin.anchors

    with started(folder) as screen:
        assert third.shown in screen.text
        assert not any(question in screen.text for question in ASKED[:2])
        assert "note: sure" in screen.type("n sure")
        screen.kill()
    with work_of(folder, None, ASKED).open() as exchange:
        live = exchange.desk.next("ada")
        assert (live.tree.node.completion_ids, live.tree.note) == (third.state.completion_ids, "sure")
        assert anchors_of(live.tree) == third.anchors
        exchange.desk.decide(live, "accept")
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected", "complete"]
    assert all(finding.holds for finding in verify_records(base, records))


def test_the_command_counts_what_it_finished_and_wants_a_name_of_the_team(tmp_path):
    save_lines(tmp_path / "p.jsonl", [{"prompt": question} for question in ASKED[:2]])
    (tmp_path / "team.yaml").write_text(f"ada: {'a' * 32}\n")
    command = [
        Path(sys.executable).with_name("anchorlwf"),
        "annotate",
        "p.jsonl",
        "--out",
        "r.jsonl",
        "--annotator",
        "terminal",
        "--annotators",
        "team.yaml",
    ]
    done = subprocess.run(
        [*command, "--name", "ada", "--json"],
        input="3 Tarn\na\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "records": 1,
        "anchors": 1,
        "completion_tokens": len(load_records(tmp_path / "r.jsonl")[0].completion_ids),
        "already_right": 0,
        "drafts": 0,
        "out": "r.jsonl",
    }
    assert "1 of 2 done; the same command goes on." in done.stderr
    assert "\x1b" not in done.stderr
    for name in ("eve", "", "a" * 65, "a\x1b"):
        with pytest.raises(SystemExit) as ended, contextlib.chdir(tmp_path):
            main([*map(str, command[1:]), "--name", name])
        assert ended.value.code == 2
