"""The record and its invariants."""

import functools
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from strategies import records

from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Anchor, ModelStamp, Prompt, Record, new_id
from anchorlwf.errors import StampError

STAMP = ModelStamp(name="m", tokenizer_sha="t", template_sha="c")
GOOD = {
    "id": new_id("a"),
    "model": STAMP,
    "messages": [{"role": "user", "content": "?"}],
    "prompt_ids": [1, 2],
    "completion_ids": [5, 6, 7],
    "completion": "abc",
}


MESSAGES: list[tuple[object, str]] = [
    ([], r"messages\n.*at least 1 item"),
    (["hi"], r"messages.0"),
    ([{"content": "x"}], r"messages\[0\].role: expected a string such as 'user'; got None"),
    ([{"role": 5, "content": "x"}], r"messages\[0\].role: expected a string such as 'user'; got 5"),
    ([{"role": " ", "content": "x"}], r"messages\[0\].role"),
    ([{"role": "user"}], r"messages\[0\].content: expected a string or a list of parts; got nothing"),
    ([{"role": "user", "content": None}], r"messages\[0\].content: .*; got None"),
    ([{"role": "user", "content": 5}], r"messages\[0\].content: .*; got 5"),
    ([{"role": "user", "content": ["x"]}], r"messages\[0\].content"),
    ([{"role": "user", "content": "x", "n": float("inf")}], r"messages\n.*expected numbers that JSON has; got inf"),
]
"""What is no chat, and what is said of it."""


def anchor(position: int, token_id: int, **more: object) -> dict[str, object]:
    return {"position": position, "token_id": token_id, **more}


@given(records())
def test_json_there_and_back_changes_nothing(record):
    line = record.model_dump_json()
    assert "\n" not in line
    assert Record.model_validate_json(line) == record


@given(records())
def test_confidences_are_the_anchors_and_zero_elsewhere(record):
    values = record.confidences
    assert len(values) == len(record.completion_ids)
    assert {i: c for i, c in enumerate(values) if c} == {a.position: a.confidence for a in record.anchors}


@given(record=records(min_anchors=1), data=st.data())
def test_an_anchor_that_names_another_token_is_refused(record, data):
    index = data.draw(st.integers(0, len(record.anchors) - 1))
    state = record.model_dump()
    state["anchors"][index]["token_id"] += 1
    state["anchors"][index]["rejected_id"] = None
    with pytest.raises(ValidationError, match=rf"anchors\[{index}\].token_id: expected .* got"):
        Record(**state)


@given(record=records(min_anchors=2), data=st.data())
def test_anchors_out_of_order_are_refused(record, data):
    state = record.model_dump()
    shuffled = data.draw(st.permutations(state["anchors"]).filter(lambda order: order != state["anchors"]))
    with pytest.raises(ValidationError, match=r"strictly increasing"):
        Record(**{**state, "anchors": shuffled})


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"anchors": [anchor(3, 7)]}, r"anchors\[0\].position: expected less than the completion's 3 tokens; got 3"),
        ({"anchors": [anchor(1, 6), anchor(1, 6)]}, r"anchors\[1\].position: expected more than 1 .*; got 1"),
        ({"anchors": [anchor(-1, 7)]}, r"anchors.0.position"),
        ({"anchors": [anchor(1, 6, confidence=0)]}, r"anchors.0.confidence"),
        ({"anchors": [anchor(1, 6, confidence=1.01)]}, r"anchors.0.confidence"),
        ({"anchors": [anchor(1, 6, confidence=float("nan"))]}, r"anchors.0.confidence"),
        ({"anchors": [anchor(1, 6, ref_probability=1.5)]}, r"anchors.0.ref_probability"),
        ({"anchors": [anchor(1, 6, rejected_id=6)]}, r"expected rejected_id to differ from token_id; got 6"),
        ({"anchors": [anchor(1, 6, created_at=datetime(2026, 1, 1))]}, r"expected a time with its zone"),  # noqa: DTZ001
        ({"id": "number one"}, r"expected a UUID; got 'number one'"),
        ({"completion_ids": []}, r"completion_ids"),
        ({"prompt_ids": []}, r"prompt_ids"),
        ({"prompt_ids": [-1]}, r"prompt_ids.0"),
        ({"schema_version": 2}, r"schema_version"),
        ({"status": "done"}, r"status"),
        ({"remark": "extra"}, r"remark"),
        # Of another type, however much it looks like the right one.
        ({"schema_version": True}, r"schema_version\n.*expected 1; got True"),
        ({"schema_version": 1.0}, r"schema_version\n.*expected 1; got 1.0"),
        ({"prompt_ids": [True]}, r"prompt_ids.0\n.*valid integer"),
        ({"prompt_ids": ["5"]}, r"prompt_ids.0\n.*valid integer"),
        ({"completion_ids": [5.0, 6, 7]}, r"completion_ids.0\n.*valid integer"),
        ({"original_ids": [2**31]}, r"original_ids.0\n.*less than 2147483648"),
        ({"original_ids": [None]}, r"original_ids.0"),
        ({"anchors": [anchor(True, 6)]}, r"anchors.0.position"),
        ({"anchors": [anchor(1, "6")]}, r"anchors.0.token_id"),
        ({"anchors": [anchor(1, 6, rejected_id=5.0)]}, r"anchors.0.rejected_id"),
        ({"anchors": [anchor(1, 6, confidence=True)]}, r"anchors.0.confidence"),
        ({"anchors": [anchor(1, 6, confidence="0.5")]}, r"anchors.0.confidence"),
        ({"anchors": [anchor(1, 6, source=5)]}, r"anchors.0.source"),
        ({"anchors": [anchor(1, 6, created_at=5)]}, r"anchors.0.created_at"),
        ({"anchors": [anchor(1, 6, created_at="5")]}, r"expected a time such as 2026-11-23T12:00:00Z; got '5'"),
        (
            {"anchors": [anchor(1, 6, created_at="0001-01-01T00:00:00+14:00")]},
            r"expected a time in the years 1 to 9999",
        ),
        ({"truncated": "false"}, r"truncated"),
        ({"truncated": 1}, r"truncated"),
        ({"tags": [5]}, r"tags.0"),
        ({"ties": [3]}, r"ties\[0\]: expected less than the completion's 3 tokens; got 3"),
        ({"ties": [1, 1]}, r"ties\[1\]: expected more than 1 .*; got 1"),
        ({"tools": [{"x": [float("nan")]}]}, r"tools\n.*expected numbers that JSON has; got nan"),
        ({"tools": [functools.reduce(lambda inner, _: {"a": inner}, range(101), 0)]}, r"at most 100 brackets"),
        *(({"messages": messages}, names) for messages, names in MESSAGES),
    ],
)
def test_what_breaks_an_invariant_is_named(change, names):
    assert Record(**GOOD).completion == "abc"
    with pytest.raises(ValidationError, match=names):
        Record(**{**GOOD, **change})


def test_a_record_cannot_be_changed():
    record = Record(**GOOD)
    with pytest.raises(ValidationError, match="frozen"):
        record.completion = "other"


def test_times_are_kept_in_utc():
    noon = datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=2)))
    kept = Anchor(position=0, token_id=1, created_at=noon).created_at
    assert kept == noon
    assert kept.tzinfo is UTC
    assert kept.hour == 10


@given(st.uuids(), st.sampled_from(["{}", "{{{}}}", "urn:uuid:{}"]))
def test_one_id_has_one_spelling(value, spelling):
    spelled = spelling.format(str(value).upper() if spelling == "{}" else value)
    assert Record(**{**GOOD, "id": spelled}).id == str(value)


def test_ids_depend_on_every_part_and_on_nothing_else():
    assert new_id("a", [1, 2]) == new_id("a", [1, 2])
    assert len({new_id("a", [1, 2]), new_id("a", [1]), new_id("b", [1, 2]), new_id("a", [1, 2], None)}) == 4
    assert uuid.UUID(new_id("a")).version == 5


def test_a_prompt_may_be_plain_text():
    assert Prompt(prompt="Hello?") == Prompt(messages=[{"role": "user", "content": "Hello?"}])
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert Prompt.model_validate({"prompt": chat, "answer": "a", "tags": ["t"]}) == Prompt(
        messages=chat, answer="a", tags=["t"]
    )


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"messages": []},
        {"prompt": 5},
        {"messages": [{"content": "no role"}]},
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"prompt": "a", "anwser": "b"},
    ],
)
def test_a_prompt_that_says_nothing_clear_is_refused(line):
    with pytest.raises(ValidationError):
        Prompt.model_validate(line)


@pytest.mark.parametrize(("messages", "names"), MESSAGES)
def test_prompts_and_probes_refuse_the_same_chats(messages, names):
    with pytest.raises(ValidationError, match=names):
        Prompt(messages=messages)
    with pytest.raises(ValidationError, match=names):
        Probe(id="1", kind="recall", messages=messages, expected="x")


def test_a_chat_may_hold_parts_and_an_assistant_that_only_calls_a_tool():
    call = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "clock", "content": "12:00"},
    ]
    assert Record(**{**GOOD, "messages": messages}).messages == Prompt(messages=messages).messages == messages


@pytest.mark.parametrize("change", [{"answer": 5}, {"tags": [True]}, {"tags": "a"}, {"tools": ["clock"]}])
def test_a_prompt_s_other_fields_are_as_strict(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        Prompt(prompt="x", **change)


# --- what builds and compares them ---


@given(records())
def test_a_record_is_built_from_prompt_stamp_and_ids(record):
    prompt = Prompt(messages=record.messages, tools=record.tools, answer="x", tags=["asked", *record.tags])
    built = Record.build(
        prompt,
        record.model,
        prompt_ids=tuple(record.prompt_ids),
        completion_ids=tuple(record.completion_ids),
        decode=lambda ids: f"the text of {ids}",
        original_ids=tuple(record.original_ids),
        anchors=tuple(record.anchors),
        ties=tuple(record.ties),
        truncated=record.truncated,
        status=record.status,
        tags=["asked", "more"],
    )
    assert built == record.model_copy(
        update={
            "id": prompt.record_id(record.model),
            "completion": f"the text of {record.completion_ids}",
            "tags": list(dict.fromkeys(["asked", *record.tags, "more"])),
        }
    )


def test_a_built_record_may_have_an_id_of_its_own_and_keeps_the_invariants():
    given = {"prompt_ids": [1], "completion_ids": [5], "decode": str}
    assert Record.build(Prompt(prompt="?"), STAMP, record_id=new_id("own"), **given).id == new_id("own")
    with pytest.raises(ValidationError, match="expected less than the completion's 1 tokens"):
        Record.build(Prompt(prompt="?"), STAMP, anchors=[Anchor(position=1, token_id=5)], **given)


@pytest.mark.parametrize(
    ("change", "differences", "message"),
    [
        ({"name": "elsewhere", "revision": "r", "date": "2026-11-26"}, [], None),
        ({"tokenizer_sha": "T"}, ["tokenizer"], r"draft 1: tokenizer: expected t \(m\), got T \(m\)\. Start over\."),
        (
            {"name": "n", "tokenizer_sha": "T", "template_sha": "C" * 64},
            ["tokenizer", "chat template"],
            rf"draft 1: tokenizer and chat template: expected t and c \(m\), got T and {'C' * 12} \(n\)\. Start over\.",
        ),
    ],
)
def test_stamps_are_compared_by_what_makes_ids_mean_something_else(change, differences, message):
    other = STAMP.model_copy(update=change)
    assert STAMP.differences(other) == other.differences(STAMP) == differences
    if message is None:
        STAMP.require_same(other, "draft 1", "Start over.")
    else:
        with pytest.raises(StampError, match=message):
            STAMP.require_same(other, "draft 1", "Start over.")


@pytest.mark.parametrize("field", ["prompt_ids", "original_ids", "completion_ids", "rejected_id"])
def test_every_id_of_a_record_must_be_in_the_vocabulary(field):
    stray = {"anchors": [anchor(0, 5, rejected_id=40)]} if field == "rejected_id" else {field: [5, 40, 6]}
    record = Record(**{**GOOD, **stray})
    record.require_vocabulary(41)
    with pytest.raises(StampError, match=rf"record {record.id}: token ids: expected less than 40, got 40"):
        record.require_vocabulary(40)


def test_the_former_id_is_that_of_the_rendered_prompt():
    # As release 0.1.0 gave it to a prompt of tests/data/released_0_1_0.
    ids = [1, 87, 85, 264, 201, 915, 426, 755, 506, 397, 884, 33, 2, 201, 1, 535, 507, 431, 201]
    prompt = Prompt(prompt="Where does Vesna Mardelt live?")
    assert prompt.former_id("embedded", ids) == "a5fde734-37bf-5316-adb3-9c73c814b08b"
    others = [prompt.former_id("other", ids), prompt.former_id("embedded", ids[1:]), prompt.record_id(STAMP)]
    answered = prompt.model_copy(update={"answer": "In Almora."}).former_id("embedded", ids)
    assert len({prompt.former_id("embedded", ids), answered, *others}) == 5
