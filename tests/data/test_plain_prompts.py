import pytest

from anchorlwf.data.jsonl import load_prompts
from anchorlwf.errors import BadLineWarning, PromptWarning, RecordError


def asked(prompts):
    return [(prompt.messages, prompt.answer) for prompt in prompts]


def user(text):
    return [{"role": "user", "content": text}]


def test_plain_text_holds_a_prompt_per_line(tmp_path):
    file = tmp_path / "questions.txt"
    # With a mark of the byte order, breaks of Windows, blank lines, and what JSON and CSV would take for their own.
    file.write_bytes('\ufeffWho are you?\r\n\n  Is "a, b" {1}?  \nWo wohnt Jürgen?'.encode())
    texts = ["Who are you?", 'Is "a, b" {1}?', "Wo wohnt Jürgen?"]
    assert asked(load_prompts(file)) == [(user(text), None) for text in texts]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["prompt", "question", "Question"])
def test_a_table_holds_prompts_and_answers(tmp_path, separator, name):
    file = tmp_path / "questions.CSV"
    rows = [(name, "answer"), ("Who are you?", "I am Tarn."), ('"Two\nlines?"', ""), ("", ""), ('"Say ""a"""', '"b"')]
    file.write_text("".join(separator.join(row) + "\r\n" for row in rows), encoding="utf-8-sig", newline="")
    expected = [("Who are you?", "I am Tarn."), ("Two\nlines?", None), ('Say "a"', "b")]
    assert asked(load_prompts(file)) == [(user(text), answer) for text, answer in expected]


def test_other_columns_are_named(tmp_path):
    file = tmp_path / "questions.csv"
    file.write_text("id,prompt,topic\n1,Who are you?,identity\n")
    with pytest.warns(PromptWarning, match=r"questions\.csv: the columns id, topic are not read, only prompt"):
        assert asked(load_prompts(file)) == [(user("Who are you?"), None)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,answer\nWho?,I.\n", r"a\.csv: expected a column `prompt` or `question`, got text, answer\."),
        ("a.csv", b"", r"a\.csv: expected a column `prompt` or `question`, got an empty first line"),
        ("a.csv", b"prompt,answer\n", r"a\.csv: expected at least one prompt, got an empty file\. Write a prompt"),
        ("a.csv", b"prompt\nWhy, and when?\n", r"a\.csv, line 2: expected 1 fields, got 2; put texts with separators"),
        ("a.csv", b"prompt,answer\nIn Rome, who?,I.\n", r"line 2: expected 2 fields, got 3; put texts"),
        (
            "a.csv",
            b'prompt\n"Who?\nWhat?\n',
            r"a\.csv, line 2: expected a row of a table, got a broken one .*nothing behind",
        ),
        ("a.csv", b"prompt,answer\nWho?,I.\n,I.\n", r"a\.csv, line 3: expected a prompt, got an empty field"),
        ("a.csv", b'prompt\n"Two\nlines?"\n\xff\n', r"a\.csv, line 4: expected UTF-8 text"),
        ("a.txt", b"Who?\n\xe4?\n", r"a\.txt, line 2: expected UTF-8 text"),
        ("a.txt", b"\n", r"a\.txt: expected at least one prompt, got an empty file"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=message):
        load_prompts(tmp_path / name)


def test_bad_lines_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("prompt\nWho?\n" + "x" * 200_000 + "\n")
    with pytest.warns(BadLineWarning, match=r"a\.csv, line 3: expected a row of a table, got a broken one"):
        assert asked(load_prompts(tmp_path / "a.csv", skip_bad=True)) == [(user("Who?"), None)]
