"""The terminal annotator: every form a line may take, then a person at a real terminal (a pty, and processes)."""

import copy
import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from anchorlwf.annotation import (
    Accept,
    Correct,
    Quit,
    Reject,
    Session,
    TerminalAnnotator,
    Undo,
    View,
    annotate,
    verify_records,
)
from anchorlwf.annotation.terminal import HELP, Ask, parse_line, visible
from anchorlwf.config import AnnotateConfig
from anchorlwf.decode import GreedyDecoder
from anchorlwf.errors import RecordError
from anchorlwf.jsonl import load_records, save_lines
from anchorlwf.model import LanguageModel
from anchorlwf.record import Prompt
from anchorlwf.text import Codec

# --- what a line means ---


def view_of(model: LanguageModel, ids: list[int]) -> View:
    prompt = Prompt(messages=[{"role": "user", "content": "Where was she born?"}])
    prompt_ids = model.codec.encode_prompt(prompt.messages)
    return View(prompt, model.codec, ids, [], False, lambda: GreedyDecoder(model, 4).alternatives(prompt_ids, ids))


@pytest.fixture(scope="module")
def view(tiny_model: LanguageModel) -> View:
    """Token 0 is a whole word without white space before it, token 3 has some; twelve tokens and no more."""
    found = view_of(tiny_model, tiny_model.codec.encode("She was born in a small town by the sea"))
    pieces = found.codec.pieces(found.completion_ids)
    assert not pieces[0].startswith(" ")
    assert pieces[3].startswith(" ")
    assert 10 < len(pieces) < 40
    return found


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        ("a", Accept()), ("x", Reject()), ("u", Undo()), ("q", Quit()), ("?", Ask(None)), ("", Ask(None)),
        ("  a \t", Accept()), ("3", Ask(3)), (" 3 ", Ask(3)), ("03", Ask(3)), ("3 @0.8", Ask(3)),
    ],
)
def test_a_command_or_a_number_alone(view, line, meaning):
    assert parse_line(line, view, 1.0) == meaning


@pytest.mark.parametrize(
    ("line", "position", "text", "confidence"),
    [
        # White space before the text is that of the token it replaces ...
        ("3 hello", 3, " hello", 0.9),
        ("0 Hello", 0, "Hello", 0.9),
        ("3   hello  there ", 3, " hello  there", 0.9),
        ("3 hello @0.25", 3, " hello", 0.25),
        ("3 hello there @1", 3, " hello there", 1.0),
        ("3 1931 @0.5", 3, " 1931", 0.5),
        ("3 me@home.org", 3, " me@home.org", 0.9),
        ("3 a", 3, " a", 0.9),
        # ... and in quotes the text is exactly what stands there.
        ('3 "hello"', 3, "hello", 0.9),
        ('0 " two  spaces"', 0, " two  spaces", 0.9),
        ('3 "a\\n\\u00e9\\""', 3, 'a\né"', 0.9),
        ('3 "hello" @0.25', 3, "hello", 0.25),
        ('3 "me @0.25"', 3, "me @0.25", 0.9),
        ('3 "#2" @.5', 3, "#2", 0.5),
    ],
)
def test_a_number_and_a_text(view, line, position, text, confidence):
    assert parse_line(line, view, 0.9) == Correct(position, view.codec.encode(text), confidence)


@pytest.mark.parametrize(("line", "rank", "confidence"), [("3 #1", 1, 1.0), ("3 #4", 4, 1.0), ("0 #2 @0.8", 2, 0.8)])
def test_a_number_and_an_alternative(view, line, rank, confidence):
    position = int(line[0])
    token = view.steps()[position].alternatives[rank - 1][0]
    assert parse_line(line, view, 1.0) == Correct(position, [token], confidence)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("b", r"line: expected a token number or a command, got 'b'"),
        ("accept", r"line: expected a token number or a command, got 'accept'"),
        ("-1 hello", r"line: expected a token number or a command, got '-1 hello'"),
        ("3hello", r"line: expected a token number or a command"),
        ("99", r"token: expected 0 to \d+, got 99"),
        ("99 hello", r"token: expected 0 to \d+, got 99"),
        ("9" * 5000, r"line: expected a token number or a command"),
        ("3 #0", r"alternative: expected #1 to #4, got #0"),
        ("3 #5", r"alternative: expected #1 to #4, got #5"),
        ("3 #", r"alternative: expected #1 to #4, got #\."),
        ("3 #two", r"alternative: expected #1 to #4, got #two"),
        ("3 #²", r"alternative: expected #1 to #4, got #²"),
        ("3 #" + "9" * 5000, r"alternative: expected #1 to #4"),
        ('3 "hello', r"quoted text: expected one JSON string, got Unterminated string"),
        ('3 "hello" there', r"quoted text: expected one JSON string, got Extra data"),
        ('3 "\\ud800"', r"text: expected whole characters, got surrogates not allowed"),
        ("3 \udcff", r"text: expected whole characters, got surrogates not allowed"),
        ("3 hello @0", r"confidence: expected more than 0, at most 1, got 0"),
        ("3 hello @1.5", r"confidence: expected more than 0, at most 1, got 1\.5"),
        ("3 hello @nan", r"confidence: expected more than 0, at most 1, got nan"),
        ("3 hello @sure", r"confidence: expected more than 0, at most 1, got sure"),
    ],
)
def test_a_line_that_means_nothing_says_why(view, line, problem):
    with pytest.raises(RecordError, match=problem):
        parse_line(line, view, 1.0)


PARTS = st.lists(
    st.sampled_from(["3", " ", "#", "#2", '"', "\\", "@", "@0.5", "hello", "²", "٣", "\ud800", "\n", "u", "[b]"]),
    max_size=8,
).map("".join)


@settings(max_examples=300)
@given(line=st.text(max_size=12) | PARTS | PARTS.map(lambda rest: f"3 {rest}"))
def test_any_line_is_a_verdict_a_question_or_a_named_mistake(view, line):
    verdict, screen = shown_by(view, line)
    if isinstance(verdict, Correct):
        assert 0 <= verdict.position < len(view.completion_ids)
        assert 0 < verdict.confidence <= 1
    else:
        # Asked again after a question or a mistake, the annotator finds the input at its end and quits.
        commands = {"a": Accept(), "x": Reject(), "u": Undo()}
        assert verdict == commands.get(line.strip(), Quit())
        answered = re.search(r": expected .*, got |alternatives of token N|token \d", screen, re.DOTALL)
        assert answered or line.strip() in {*commands, "q"}


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), confidence=st.floats(0.01, 1))
def test_quoted_text_is_taken_to_the_letter(view, text, confidence):
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    assert parse_line(f"3 {quoted}", view, 0.5) == Correct(3, view.codec.encode(text), 0.5)
    assert parse_line(f"3 {quoted} @{confidence}", view, 0.5) == Correct(3, view.codec.encode(text), confidence)


def test_every_form_that_the_help_shows_is_understood(view):
    forms = re.findall(r"^  (N.*?)  ", HELP, re.MULTILINE)
    assert forms == ["N", "N text", 'N "text"', "N #2"]
    for form in forms:
        for line in (form.replace("N", "3"), form.replace("N", "3") + " @0.8"):
            assert isinstance(parse_line(line, view, 1.0), Correct if form != "N" else Ask)
    commands = re.findall(r"(?:^|  )(\S) \w+", HELP.splitlines()[-1])
    assert {type(parse_line(command, view, 1.0)) for command in commands} == {Undo, Accept, Reject, Quit, Ask}


# --- what is shown ---


@pytest.mark.parametrize(
    ("piece", "shown"),
    [(" the", "·the"), ("\n", "⏎"), ("\t x", "⇥·x"), ("é漢", "é漢"), ("\x00", "\\x00"), ("", "∅"), ("[b]", "[b]")],
)
def test_white_space_and_control_characters_are_made_visible(piece, shown):
    assert visible(piece) == shown


def lines(*given: str) -> Callable[[], str]:
    rest = list(given)

    def read() -> str:
        if not rest:
            raise EOFError
        return rest.pop(0)

    return read


def shown_by(view: View, *given: str) -> tuple[object, str]:
    screen = io.StringIO()
    verdict = TerminalAnnotator("human:ada", Console(file=screen, width=100_000), lines(*given)).review(view)
    return verdict, screen.getvalue()


def test_every_token_is_shown_with_its_number_whatever_it_holds(tiny_model):
    # Square brackets and backslashes would be markup to the console, colons an emoji.
    codec = Codec(copy.deepcopy(tiny_model.codec.tokenizer))
    codec.tokenizer.add_tokens(["[bold]x[/bold]", "\\\\", "\\\\\\", "[/]", "\\[red]", "[link=a]", ":smile:"])
    ids = list(range(len(codec.tokenizer)))
    prompt = Prompt(messages=[{"role": "user", "content": "[red]Why[/red]? :smile: \\"}])
    verdict, screen = shown_by(View(prompt, codec, ids, [], False, list), "q")
    assert verdict == Quit()
    pieces = [visible(piece) for piece in codec.pieces(ids)]
    assert pieces[-1] == ":smile:"
    assert "  ".join(f"{index} {piece}" for index, piece in enumerate(pieces)) in screen
    assert "user: [red]Why[/red]? :smile: \\\n" in screen


def test_bad_lines_are_answered_and_asked_again(view):
    verdict, screen = shown_by(view, "hello", "99", "3 #9", "3", "?", "", "u")
    assert verdict == Undo()
    for told in ("got 'hello'", "got 99", "expected #1 to #4, got #9", "token 3"):
        assert told in screen
    assert screen.count("alternatives of token N") == 2


def test_alternatives_are_shown_with_their_probabilities(view):
    _, screen = shown_by(view, "3", "a")
    for number, (token, probability) in enumerate(view.steps()[3].alternatives, 1):
        [piece] = view.codec.pieces([token])
        row = next(line for line in screen.splitlines() if f"#{number} " in line)
        assert visible(piece) in row
        assert f"{probability:.4f}" in row


def test_the_end_of_input_is_a_quit(view):
    assert shown_by(view)[0] == Quit()


def test_a_cut_answer_is_said_to_be_cut(tiny_model):
    screen = io.StringIO()
    person = TerminalAnnotator("human:ada", Console(file=screen, width=200), lines("3 hello @0.5", "3 hello", "a"))
    (record,) = annotate(tiny_model, ["hello"], person, config=AnnotateConfig(max_new_tokens=9))
    assert "The answer was cut at the token limit." in screen.getvalue()
    # The second line asks for what stands there by now.
    assert "expected tokens that differ from the answer, got the same" in screen.getvalue()
    assert {(anchor.confidence, anchor.source) for anchor in record.anchors} == {(0.5, "human:ada")}


# --- people at a terminal ---

PROMPT = "token, a, x, u, q or ?"
QUESTIONS = ["Who are you?", "Who made you?", "Where were you made?", "When were you made?"]


class Screen:
    """`anchorlwf annotate --annotator terminal` on a pseudo-terminal: what is typed, and what appears."""

    def __init__(self, folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 4000, 0, 0))
        command = [Path(sys.executable).with_name("anchorlwf"), "annotate", folder / "p.jsonl", "--out",
                   folder / "r.jsonl", "--annotator", "terminal", "--name", "ada"]
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "4000",
                 "PYTHONIOENCODING": "utf-8:strict"},
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
            assert time.monotonic() < deadline, f"{text!r} did not appear behind {self.text[self._seen:]!r}"
            assert self._read(), f"{text!r} did not appear before the end: {self.text[self._seen:]!r}"
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


@contextmanager
def terminal(folder: Path) -> Iterator[Screen]:
    screen = Screen(folder)
    try:
        screen.expect(PROMPT)
        yield screen
    finally:
        screen.process.kill()
        screen.process.wait()
        os.close(screen._ours)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal")
    save_lines(path / "p.jsonl", [{"prompt": question} for question in QUESTIONS])
    return path


class Twin(Session):
    """The same corrections, made here: what the person at the terminal should see and keep."""

    def __init__(self, model: LanguageModel, question: str) -> None:
        super().__init__(model, Prompt(messages=[{"role": "user", "content": question}]), AnnotateConfig())
        self.own = list(self.state.completion_ids)

    def put(self, position: int, *token_ids: int, confidence: float = 1) -> str:
        self.correct(position, list(token_ids), confidence=confidence, source="human:ada")
        return self.shown

    @property
    def shown(self) -> str:
        pieces = self.view().codec.pieces(list(self.state.completion_ids))
        return "  ".join(f"{index} {visible(piece)}" for index, piece in enumerate(pieces))


def test_a_person_corrects_undoes_accepts_rejects_quits_and_comes_back(base, folder):
    first, second, third, fourth = (Twin(base, question) for question in QUESTIONS)
    assert len(first.own) > 5

    with terminal(folder) as screen:
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
        assert screen.end(b"q\n") == 0
        assert "3 records" in screen.text
        assert "1 draft: the same command takes it up again" in screen.text
        # Nothing hides the cursor or wipes a line out while somebody types.
        assert not re.search(rb"\x1b\[\?25l|\x1b\[2K", screen.raw)
    before = (folder / "r.jsonl").read_bytes()
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected", "draft"]
    for record, twin in zip(records, (first, second, third), strict=True):
        assert (record.completion_ids, record.original_ids) == (list(twin.state.completion_ids), twin.own)
        assert [(a.position, a.token_id, a.confidence, a.source) for a in record.anchors] == [
            (a.position, a.token_id, a.confidence, a.source) for a in twin.state.anchors
        ]
    assert [len(record.anchors) > 0 for record in records] == [True, False, True]

    with terminal(folder) as screen:
        assert third.shown in screen.text
        assert not any(question in screen.text for question in QUESTIONS[:2])
        assert fourth.shown in screen.type("a")
        # Ctrl-C: what is finished is kept, what is not is not there.
        assert screen.end(b"\x03") == 130
        assert "Interrupted." in screen.text
        assert "Traceback" not in screen.text
    assert (folder / "r.jsonl").read_bytes().startswith(before)
    records = load_records(folder / "r.jsonl")
    assert [record.status for record in records] == ["complete", "rejected", "complete"]
    assert records[2].completion_ids == list(third.state.completion_ids)
    assert all(finding.holds for finding in verify_records(base, records))
