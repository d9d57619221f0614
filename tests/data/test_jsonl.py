"""JSON lines: every bad line named, no good line lost, views that other trainers take."""

import json
import warnings
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import records

from anchorlwf.data.jsonl import (
    BadLineWarning,
    Reading,
    append_record,
    load_probes,
    load_prompts,
    load_records,
    read_lines,
    save_lines,
    save_records,
)
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Anchor, ModelStamp, Prompt, Record, new_id
from anchorlwf.data.trl_rows import dpo_rows, sft_rows
from anchorlwf.errors import PromptError, PromptWarning, RecordError, StorageError

STAMP = ModelStamp(name="m", tokenizer_sha="t", template_sha="c")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def record(name: str, *, text: str = "It is b.", anchors: int = 1, **more: object) -> Record:
    ids = [5, 6, 7]
    return Record(
        id=new_id(name),
        model=STAMP,
        messages=[{"role": "user", "content": f"What is {name}?"}],
        prompt_ids=[1, 2],
        completion_ids=ids,
        completion=text,
        original_ids=[5, 9, 7],
        anchors=[Anchor(position=i, token_id=ids[i], rejected_id=9, created_at=NOON) for i in range(anchors)],
        **more,
    )


def row(name: str, **change: object) -> dict[str, object]:
    return {**json.loads(record(name).model_dump_json()), **change}


def write(path: Path, *lines: str | bytes | dict[str, object]) -> Path:
    raw = [
        json.dumps(line).encode() if isinstance(line, dict) else line.encode() if isinstance(line, str) else line
        for line in lines
    ]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


# --- reading back what was written ---


@settings(max_examples=30)  # each one waits for the disk
@given(rows=st.lists(records(), min_size=1, max_size=4, unique_by=lambda r: r.id))
def test_what_is_saved_or_appended_is_what_is_loaded(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("io")
    save_records(folder / "saved.jsonl", rows)
    for one in rows:
        append_record(folder / "appended.jsonl", one)
    assert load_records(folder / "saved.jsonl") == rows
    assert (folder / "saved.jsonl").read_bytes() == (folder / "appended.jsonl").read_bytes()


def test_a_later_line_replaces_an_earlier_one_of_the_same_id(tmp_path):
    path = tmp_path / "r.jsonl"
    for name, text in (("a", "old"), ("b", "b"), ("a", "new")):
        append_record(path, record(name, text=text))
    assert [(r.id, r.completion) for r in load_records(path)] == [(new_id("b"), "b"), (new_id("a"), "new")]
    assert len(path.read_text().splitlines()) == 3


def test_blank_lines_are_no_lines(tmp_path):
    path = write(tmp_path / "r.jsonl", "", row("a"), "   ", row("b"))
    assert len(load_records(path)) == 2


def test_prompts_and_rows_of_plain_dicts(tmp_path):
    save_lines(tmp_path / "p.jsonl", [{"prompt": "Hé?", "answer": "Há."}, Prompt(prompt="And?")])
    assert "Hé?" in (tmp_path / "p.jsonl").read_text(encoding="utf-8")
    expected = [Prompt(prompt="Hé?", answer="Há."), Prompt(prompt="And?")]
    assert load_prompts(tmp_path / "p.jsonl") == expected
    assert load_prompts([{"prompt": "Hé?", "answer": "Há."}, {"prompt": "And?"}]) == expected


# --- bad lines ---

BAD_LINES = {
    "not UTF-8": (b'{"id": "\xff"}', ["expected UTF-8 text", "at byte 8"]),
    "broken": ('{"id": ', ["expected one JSON object", "broken JSON", "column 8"]),
    "two objects": ("{} {}", ["expected one JSON object", "broken JSON"]),
    "too deep": ("[" * 100_000, ["expected one JSON object", "broken JSON"]),
    "too long a number": ('{"id": ' + "1" * 5000 + "}", ["expected one JSON object", "broken JSON"]),
    "half a character": (json.dumps(row("a", completion="\ud83d")), ["expected one JSON object", "surrogates"]),
    "a list": ("[1]", ["expected a JSON object, got list"]),
    "null": ("null", ["expected a JSON object, got NoneType"]),
    "missing field": (
        {k: v for k, v in row("a").items() if k != "prompt_ids"},
        ["prompt_ids: expected the field, got nothing"],
    ),
    "wrong type": (row("a", prompt_ids="1 2"), ["prompt_ids: expected a valid list, got '1 2'"]),
    "wrong item": (row("a", prompt_ids=[1, "x"]), ["prompt_ids.1: expected a valid integer", "got 'x'"]),
    "unknown field": (row("a", remark="hm"), ["remark: expected", "got 'hm'"]),
    "unknown status": (row("a", status="done"), ["status: expected 'draft', 'complete' or 'rejected', got 'done'"]),
    "no UUID": (row("a", id="one"), ["id: expected a UUID; got 'one'"]),
    "not a number": (
        json.dumps(row("a", anchors=[{"position": 0, "token_id": 5, "confidence": float("nan")}])),
        ["anchors.0.confidence: expected", "got nan"],
    ),
    "wrong anchor": (
        row("a", anchors=[{"position": 0, "token_id": 6}]),
        ["anchors[0].token_id: expected 5", "completion_ids[0]", "got 6"],
    ),
    "two wrongs": (row("a", id="one", status="done"), ["id: expected a UUID; got 'one'", "; status: expected"]),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_by_file_line_field_expected_and_got(tmp_path, kind):
    line, named = BAD_LINES[kind]
    path = write(tmp_path / "r.jsonl", row("a"), "", line, row("b"))
    with pytest.raises(RecordError) as caught:
        load_records(path)
    message = str(caught.value)
    for part in (f"{path}, line 3: ", *named, "2 other lines are good", "skip_bad"):
        assert part in message
    with pytest.warns(BadLineWarning) as warned:
        assert load_records(path, skip_bad=True) == [Record.model_validate(row(name)) for name in "ab"]
    assert [str(one.message).startswith(f"{path}, line 3: ") for one in warned] == [True]
    # The warning points at whoever asked to skip.
    assert warned[0].filename == __file__


def test_a_long_value_is_cut_short_in_the_message(tmp_path):
    path = write(tmp_path / "r.jsonl", row("a", prompt_ids="x" * 10_000))
    with pytest.raises(RecordError) as caught:
        load_records(path)
    assert len(str(caught.value)) < 500


def test_every_bad_line_is_named_at_once(tmp_path):
    path = write(tmp_path / "r.jsonl", "[1]", row("a"), row("a", id="one"), "nothing")
    with pytest.raises(RecordError) as caught:
        load_records(path)
    assert [f"line {n}:" in str(caught.value) for n in (1, 2, 3, 4)] == [True, False, True, True]
    good, bad = read_lines(path, Record)
    assert ([r.id for r in good], [b.line for b in bad]) == ([new_id("a")], [1, 3, 4])


@given(lines=st.lists(st.binary(max_size=40).filter(lambda raw: b"\n" not in raw), max_size=4))
def test_any_bytes_are_either_good_lines_or_named(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("fuzz") / "r.jsonl", *lines, row("a"))
    good, bad = read_lines(path, Record)
    assert [r.id for r in good] == [new_id("a")]
    assert [b.line for b in bad] == [n for n, raw in enumerate(lines, 1) if raw.strip()]


@pytest.mark.parametrize("content", ["", "\n", "  \n\n"])
def test_an_empty_file_is_an_error_of_its_own(tmp_path, content):
    path = tmp_path / "r.jsonl"
    path.write_text(content)
    for skip_bad in (False, True):
        with pytest.raises(RecordError, match=r"r.jsonl: expected at least one record, got an empty file"):
            load_records(path, skip_bad=skip_bad)
    with pytest.raises(RecordError, match="dataset: expected at least one probe"):
        load_probes([])


def test_a_whole_character_may_be_escaped_in_two_halves(tmp_path):
    path = write(tmp_path / "p.jsonl", r'{"prompt": "\ud83d\ude00"}')
    assert load_prompts(path) == [Prompt(prompt="😀")]


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(RecordError, match="expected a JSONL file, got no such file"):
            load_records(path)


def test_probe_ids_are_unique():
    line = {"id": "p", "kind": "recall", "messages": [{"role": "user", "content": "?"}], "expected": "x"}
    assert load_probes([line]) == [Probe(**line)]
    with pytest.raises(RecordError, match="probe id: expected each id once, got 'p' twice"):
        load_probes([line, line])


# --- one reader ---


def test_a_reading_returns_rows_and_problems_and_says_nothing_by_itself():
    content = b'{"prompt": "a"}\n\n[1]\n{"prompt": "long"}\n{"prompt": "b"}\n{"prompt": "c"}'

    def check(prompt: Prompt) -> list[str]:
        text = prompt.messages[0]["content"]
        if text == "long":
            raise PromptError("too long")
        return [] if text == "a" else ["odd"]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading = Reading(BytesIO(content), Prompt, check, name="upload")
        rows = list(reading.good_lines())
    assert [(line.number, line.start, row.messages[0]["content"]) for line, row in rows] == [
        (1, 0, "a"),
        (5, 40, "b"),
        (6, 56, "c"),
    ]
    assert b"".join(line.content for line, _ in rows) == content.replace(b'\n[1]\n{"prompt": "long"}\n', b"")
    assert [(bad.source, bad.line, bad.kind) for bad in reading.bad] == [
        ("upload", 3, RecordError),
        ("upload", 4, PromptError),
    ]
    assert (reading.count, reading.remarks) == (3, {"odd": [5, 6]})
    with pytest.warns(PromptWarning, match="upload, lines 5, 6: odd") as told:
        reading.warn_of_remarks()
    assert len(told) == 1
    with (
        pytest.warns(PromptWarning),
        pytest.raises(RecordError, match=r"upload, line 3: .*\n.*line 4: too long\n3 other"),
    ):
        reading.report(skip_bad=False)


def test_an_empty_upload_is_named():
    with pytest.raises(RecordError, match="upload: expected at least one prompt, got an empty file"):
        list(Reading(BytesIO(b" \n"), Prompt, name="upload").lines())


# --- crashes ---


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_line_torn_by_a_crash_costs_only_itself(tmp_path, kept):
    path = tmp_path / "r.jsonl"
    append_record(path, record("a"))
    path.write_bytes(path.read_bytes() + record("b").model_dump_json().encode()[:kept])
    append_record(path, record("c"))
    with pytest.raises(RecordError, match="line 2: expected one JSON object"):
        load_records(path)
    with pytest.warns(BadLineWarning, match="line 2"):
        assert [r.id for r in load_records(path, skip_bad=True)] == [new_id("a"), new_id("c")]


def test_a_whole_line_that_only_lacks_its_end_is_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    append_record(path, record("a"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    append_record(path, record("b"))
    assert [r.id for r in load_records(path)] == [new_id("a"), new_id("b")]


def test_a_place_that_takes_no_file(tmp_path):
    (tmp_path / "file").write_text("old")
    for action in (lambda path: save_records(path, [record("a")]), lambda path: append_record(path, record("a"))):
        with pytest.raises(StorageError, match="cannot write"):
            action(tmp_path / "file" / "r.jsonl")


# --- datasets ---


def test_a_dataset_gives_back_what_went_in():
    datasets = pytest.importorskip("datasets")
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Belmora"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}}
    other = {"type": "function", "function": {"name": "g", "parameters": {"properties": {"year": {"type": "integer"}}}}}
    rows = [
        record("b", anchors=2, tags=["t"], ties=[1], truncated=True, tools=[tool, other]),
        record("a", anchors=0),
        record("c", anchors=3).model_copy(
            update={
                "messages": [
                    {"role": "user", "content": "What?"},
                    {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "name": "f", "content": "x"},
                ]
            }
        ),
    ]
    padded = [json.loads(one.model_dump_json(exclude_defaults=True)) for one in rows]
    # Rows leave out what is default, so the dataset pads: whole columns, and fields of the dicts within them.
    dataset = datasets.Dataset.from_list(padded)
    assert dataset[1]["tags"] is None
    assert dataset[0]["messages"][0]["tool_calls"] is None
    assert load_records(dataset) == rows


def test_a_bad_row_of_a_dataset_is_named():
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([row("a"), row("b", status="done")])
    with pytest.raises(RecordError, match=r"dataset, line 2: status: expected .*, got 'done'"):
        load_records(dataset)


def test_rows_keep_an_explicit_null_where_they_come_as_dicts():
    message = {"role": "assistant", "content": None, "tool_calls": []}
    asked = {"role": "user", "content": "?"}
    assert load_prompts([{"messages": [asked, message, asked], "answer": None}])[0].messages[1] == message


# --- views for other trainers ---

VIEWED = [record("a"), record("b", status="draft"), record("c", status="rejected"), record("d", anchors=0)]


def test_the_sft_view_holds_complete_records_in_trls_form(tiny_model):
    trl = pytest.importorskip("trl.data_utils")
    rows = sft_rows(VIEWED)
    assert [r["prompt"][0]["content"] for r in rows] == ["What is a?", "What is d?"]
    for one in rows:
        assert set(one) == {"prompt", "completion"}
        assert trl.is_conversational(one)
        text = trl.apply_chat_template(dict(one), tiny_model.codec.tokenizer)
        assert text["prompt"].endswith("<|im_start|>assistant\n")
        assert text["completion"].startswith("It is b.<|im_end|>")
    with_tools = sft_rows([record("e", tools=[{"type": "function", "function": {"name": "f"}}])])[0]
    assert with_tools["tools"][0]["function"]["name"] == "f"


def test_the_dpo_view_holds_corrected_records_in_trls_form(tiny_model):
    trl = pytest.importorskip("trl.data_utils")
    unrejected = record("e").model_copy(update={"original_ids": []})
    rows = dpo_rows([*VIEWED, unrejected], lambda ids: f"decoded {ids}")
    assert len(rows) == 1
    (one,) = rows
    assert set(one) == {"prompt", "chosen", "rejected"}
    assert one["chosen"] == [{"role": "assistant", "content": "It is b."}]
    assert one["rejected"] == [{"role": "assistant", "content": "decoded [5, 9, 7]"}]
    assert trl.is_conversational(one)
    text = trl.apply_chat_template(dict(one), tiny_model.codec.tokenizer)
    assert text["rejected"].startswith("decoded [5, 9, 7]<|im_end|>")


def test_good_lines_raise_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_records(write(tmp_path / "r.jsonl", row("a")), skip_bad=True)
