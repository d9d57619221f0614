"""What a model says: on the screen, as JSON, and as a prompts file to correct."""

import io
import json
import re

import pytest
from commands import refused, run, well
from rich.console import Console

from anchorlwf.annotation import annotate
from anchorlwf.cli import shared
from anchorlwf.cli.shared import shown
from anchorlwf.data.jsonl import load_prompts, save_lines
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.workflow.ask import UNCERTAIN, ask, questions

UNKNOWN = "Where does Ada live?"  # nobody in the embedded world, so that the model guesses


def test_answers_appear_with_what_was_uncertain(tmp_path):
    (tmp_path / "questions.txt").write_text(f"Who are you?\n{UNKNOWN}\n")
    done = well("ask", tmp_path / "questions.txt", "Who made you?")
    first, second, third = done.out.strip().split("\n\n")
    assert first == "> Who are you?\nI am Lumo, your assistant."
    assert third == "> Who made you?\nI was made by Fennel Labs."
    assert re.fullmatch(rf"> {re.escape(UNKNOWN)}\n.+\n  uncertain: '.+' \d\d% \(or '.+' \d\d?%\).*", second)


def test_a_question_may_be_longer_than_the_name_of_a_file_can_be(base):
    long = "Where does Ada live? " * 30
    assert [prompt.messages[-1]["content"] for prompt in questions([long], base)] == [long]


def test_json_has_every_token_and_how_certain_it_was(base):
    [told] = json.loads(well("ask", UNKNOWN, "--json").out)
    ids = base.codec.encode_prompt([{"role": "user", "content": UNKNOWN}])
    steps = list(GreedyDecoder(base, 2).stream(ids, [], 512))
    assert (told["prompt"], told["truncated"]) == (UNKNOWN, False)
    assert "".join(token["text"] for token in told["tokens"][:-1]) == told["answer"]
    assert [token["probability"] for token in told["tokens"]] == [pytest.approx(step.probability) for step in steps]
    assert [token["uncertain"] for token in told["tokens"]] == [step.probability < UNCERTAIN for step in steps]
    assert any(token["uncertain"] for token in told["tokens"])
    assert all(token["instead_probability"] <= token["probability"] for token in told["tokens"])


def test_the_text_that_streams_is_the_answer(base):
    asked, pieces, marked = [], [], []

    def on_text(text, uncertain):
        pieces.append(text)
        marked.append(uncertain)

    prompts = questions([UNKNOWN], base)
    [answer] = ask(base, prompts, on_prompt=asked.append, on_text=on_text)
    assert asked == prompts
    assert "".join(pieces) == answer.text
    assert len(pieces) > 3
    assert any(marked)
    assert not all(marked)
    assert [token.probability for token in answer.doubts] == sorted(token.probability for token in answer.doubts)


def test_characters_of_several_tokens_stream_whole(tiny_model):
    # Random weights choose bytes that are no text; what is told must be what is decoded in the end.
    pieces = []
    [answer] = ask(tiny_model, questions(["Wo wohnt Jürgen?"], tiny_model), on_text=lambda text, _: pieces.append(text))
    assert answer.text.startswith("".join(pieces))
    assert not any(piece.endswith("\ufffd") for piece in pieces)


def test_the_prompts_file_is_corrected_and_annotated(base, tmp_path):
    out = tmp_path / "prompts.jsonl"
    done = well("ask", "Who are you?", "Who made you?", "--out", out)
    assert f"2 prompts in {out}: correct the wrong answers there, then anchorlwf annotate {out}" in done.err
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": "Who are you?", "answer": "I am Lumo, your assistant."},
        {"prompt": "Who made you?", "answer": "I was made by Fennel Labs."},
    ]
    out.write_text(out.read_text().replace("Lumo", "Tarn"))
    corrected, kept = annotate(base, out)
    assert corrected.completion == "I am Tarn, your assistant."
    assert corrected.anchors
    assert kept.anchors == []


def test_what_a_prompt_came_with_stays(tmp_path):
    chat = [{"role": "user", "content": "Who made you?"}, {"role": "assistant", "content": "A."}]
    chat = [*chat, {"role": "user", "content": "Who are you?"}]
    given = tmp_path / "given.jsonl"
    save_lines(given, [{"messages": chat, "answer": "I am Tarn.", "tags": ["name"]}])
    done = well("ask", given, "--out", tmp_path / "out.jsonl")
    assert "  wanted: I am Tarn.\n" in done.out
    assert load_prompts(tmp_path / "out.jsonl") == load_prompts(given)
    [told] = json.loads(well("ask", given, "--json").out)
    assert told["wanted"] == "I am Tarn."
    assert told["answer"] != "I am Tarn."


def test_an_answer_that_was_cut_is_not_offered_as_right(tmp_path):
    out = tmp_path / "prompts.jsonl"
    done = well("ask", "Who are you?", "--max-new-tokens", 3, "--out", out)
    assert "[cut at the maximum number of tokens]" in done.out
    assert json.loads(out.read_text()) == {"prompt": "Who are you?"}
    assert "1 of them without an answer, which was cut" in done.err


@pytest.mark.parametrize(
    "typed", ["Who are you?\n\n Who made you? ", '{"prompt": "Who are you?"}\n{"prompt": "Who made you?"}\n']
)
def test_standard_input_is_lines_or_json_lines(monkeypatch, typed):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    told = json.loads(well("ask", "-", "--json").out)
    assert [row["prompt"] for row in told] == ["Who are you?", "Who made you?"]


@pytest.mark.parametrize(
    ("arguments", "typed", "message"),
    [
        (["none.txt"], "", r"none\.txt: expected a file, got no such file"),
        (["none.jsonl"], "", r"none\.jsonl: expected a JSONL file, got no such file"),
        (["-"], "", r"standard input: expected at least one prompt, got an empty file"),
        (["-"], '{"prompt": "Who?"}\n{"text": 1}\n', r"standard input, line 2: "),
        (["questions.txt", "--out", "questions.txt"], "", r"--out: expected another file than the questions"),
    ],
)
def test_what_cannot_be_asked_is_told(monkeypatch, tmp_path, arguments, typed, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "questions.txt").write_text("Who are you?\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    refused(run("ask", *arguments), message)
    assert (tmp_path / "questions.txt").read_text() == "Who are you?\n"


def test_plain_lines_of_standard_input_are_named_by_their_numbers_and_can_be_skipped(monkeypatch):
    typed = "Who are you?\n\n" + "far too long " * 2000 + "\nWho made\u2028you?\r\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    refused(run("ask", "-"), r"standard input, line 3: prompt: expected fewer than")
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    done = well("ask", "-", "--skip-bad", "--json")
    assert [answer["prompt"] for answer in json.loads(done.out)] == ["Who are you?", "Who made\u2028you?"]
    assert "standard input, line 3" in done.err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n \n"))
    refused(run("ask", "-"), r"standard input: expected at least one prompt, got an empty file\. Write a prompt")


@pytest.mark.parametrize(
    "command", [["ask", "\udcff"], ["chat", "-p", "a\udcff"], ["fix", "-p", "\udcff", "--answer", "b"]]
)
def test_what_is_no_text_is_refused(command, tmp_path):
    more = ["--out", tmp_path / "run"] if command[0] == "fix" else []
    refused(run(*command, *more), r"text: expected whole characters, got half of one, ")


def test_bytes_that_are_no_text_are_refused_where_they_are_typed(monkeypatch):
    for command in (["chat"], ["ask", "-"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
        done = run(*command)
        assert (done.code, done.out) == (2, "")
        assert "expected UTF-8 text, got " in done.err
    # Where the surroundings name no encoding, Python lets such bytes through.
    surroundings = {"encoding": "utf-8", "errors": "surrogateescape"}
    for command, problem in ((["chat"], "got half of one, "), (["ask", "-"], "standard input, line 2: expected UTF-8")):
        typed = io.BytesIO(b"\xff\n" if command == ["chat"] else b"Hi\n\xff\n")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(typed, **surroundings))
        done = run(*command)
        assert (done.code, done.out) == (2, "")
        assert problem in done.err


def test_nothing_in_an_answer_commands_the_terminal(monkeypatch):
    text = "a\x1b]52;c;eHg=\x07b\u202ec\n\td"
    ordinary = (
        "Bonjour\u00a0! \u3000\u4f60\u597d \u0645\u06cc\u200c\u0631\u0648\u062f so\u00adft \U0001f469\u200d\U0001f33e"
    )
    assert shown(text) == text, "a file gets what the model said"
    monkeypatch.setattr(shared, "out", Console(force_terminal=True, markup=False, emoji=False))
    assert shown(text) == "a␛]52;c;eHg=␇b‹U+202E›c\n\td"
    assert shown(ordinary) == ordinary
