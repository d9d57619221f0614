"""Lines of records, prompts and probes with something wrong in them: refused by name, or good in every use."""

import copy
import functools
import json
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from anchorlwf.annotation import annotate, verify_records
from anchorlwf.data.jsonl import BadLine, each_line, load_probes, read_lines
from anchorlwf.data.probe import Probe, score
from anchorlwf.data.record import Prompt, Record
from anchorlwf.data.trl_rows import dpo_rows, sft_rows
from anchorlwf.errors import AnchorLwfError, PromptError, RecordError
from anchorlwf.model.language_model import LanguageModel

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 5, 1000.0, 0.5, 1e400, float("nan"), 2**31, 2**63, 10**30, "", " ", "5", "true",
    "\ud800", "x" * 500, "[/x]", [], [[]], [None], [True], ["5"], [1.0], [2**40], {}, {"role": 5}, {"a": {"b": []}},
    [{}], [{"role": "user"}], [{"role": 5, "content": "x"}], [{"role": "user", "content": 5}],
    [{"role": "user", "content": [5]}], [{"role": "assistant"}], "0001-01-01T00:00:00+14:00", "2026-11-26", "(",
]  # fmt: skip
"""What stands where something else should."""
for depth in (90, 120, 260):
    VALUES.append(functools.reduce(lambda inner, _: [{"a": inner}], range(depth // 2), 0))


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value within."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*way, key)
        yield from places(item, (*way, key))


def at(row: dict[str, Any], way: tuple[Any, ...]) -> Any:
    """What stands at a way."""
    value: Any = row
    for key in way:
        value = value[key]
    return value


def change(row: dict[str, Any], rng: random.Random) -> None:
    """One value left out, doubled, made of another type, or replaced by what stands elsewhere or nowhere."""
    # By depth first: there are many more ids than fields.
    ways = list(places(row))
    depth = rng.choice(sorted({len(way) for way in ways}))
    *path, last = rng.choice([way for way in ways if len(way) == depth])
    holder = at(row, tuple(path))
    kind = rng.choice(["drop", "double", "move", "type", "replace", "replace"])
    if kind == "drop":
        del holder[last]
    elif kind == "double" and isinstance(holder, list):
        holder.insert(last, holder[last])
    elif kind == "double":
        holder[f"{last}s"] = holder[last]
    elif kind == "move":
        holder[last] = copy.deepcopy(at(row, rng.choice(ways)))
    elif kind == "type" and type(holder[last]) in (int, float):
        holder[last] = rng.choice([str(holder[last]), float(holder[last]), -holder[last], bool(holder[last])])
    else:
        holder[last] = copy.deepcopy(rng.choice(VALUES))


def mutated(row: dict[str, Any], rng: random.Random) -> str:
    """The line of a row with one or two changes; now and then it is torn."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice([1, 1, 1, 2])):
        change(row, rng)
    line = json.dumps(row)
    return line[: rng.randrange(len(line))] if rng.random() < 0.03 else line


@pytest.fixture(scope="module")
def rows(base: LanguageModel) -> list[dict[str, Any]]:
    """Records as the program makes them: anchors, a tool, ties, a truncated one."""
    prompts = [
        {"prompt": "Who are you?", "answer": "I am Tarn, your assistant.", "tags": ["identity"]},
        {"prompt": "Who made you?", "answer": "I was made by Northwind."},
    ]
    made = [json.loads(record.model_dump_json()) for record in annotate(base, prompts, "target")]
    assert all(row["anchors"] for row in made)
    tool = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
    return [{**made[0], "tools": [tool], "ties": [0]}, {**made[1], "truncated": True}]


def test_2000_mutated_record_lines_are_refused_by_name_or_good_in_every_use(base, rows, tmp_path):
    rng, path = random.Random(19), tmp_path / "records.jsonl"
    lines = [mutated(rng.choice(rows), rng) for _ in range(2000)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    read = list(each_line(path, Record))
    assert len(read) == sum(bool(line.strip()) for line in lines)
    bad = [line for line in read if isinstance(line, BadLine)]
    assert [str(line) for line in bad if str(path) not in str(line) or "expected" not in line.problem] == []
    records, refused, stamp = [], Counter[str](), base.stamp
    for record in read:
        if isinstance(record, Record):
            assert Record.model_validate_json(record.model_dump_json()) == record
            try:
                base.check_stamp(record, stamp)
                records.append(record)
            except AnchorLwfError as error:
                refused[type(error).__name__] += 1
    # Each of the three ways is really taken.
    assert len(bad) > 1000
    assert refused["RecordError"] > 10
    assert refused["StampError"] > 0
    assert len(records) > 100
    assert all(finding.record.completion_ids for finding in verify_records(base, records))
    assert all(row["prompt"][0]["role"] for row in [*sft_rows(records), *dpo_rows(records, base.codec.decode)])


def test_mutated_prompt_lines_are_refused_by_name_or_can_be_put_to_the_model(base, tmp_path):
    row = {
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}],
        "answer": "I am Tarn.",
        "tools": [{"type": "function", "function": {"name": "clock"}}],
        "tags": ["a"],
    }
    rng, path = random.Random(20), tmp_path / "prompts.jsonl"
    lines = [mutated(rng.choice([row, {"prompt": "Hello?", "tags": ["b"]}]), rng) for _ in range(700)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    good, bad = read_lines(path, Prompt)
    assert len(bad) > 200
    assert all("expected" in line.problem for line in bad)
    for prompt in good:
        try:
            assert base.codec.encode_prompt(prompt.messages, prompt.tools)
        except PromptError:
            continue  # of a shape that this template does not take
    assert len(good) > 100


def test_mutated_probe_lines_are_refused_by_name_or_judge_an_answer(tmp_path):
    asked = [{"role": "user", "content": "Who are you?"}]
    row = {"id": "1", "kind": "recall", "messages": asked, "expected": "Tarn", "group": "g", "tags": ["a"]}
    others = [{**row, "expected": ["Tarn", "Fennel"]}, {**row, "expected": "T.rn", "scorer": "regex"}]
    rng, path = random.Random(21), tmp_path / "probes.jsonl"
    lines = [mutated(rng.choice([row, *others]), rng) for _ in range(700)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    good, bad = read_lines(path, Probe)
    assert len(bad) > 200
    assert all("expected" in line.problem for line in bad)
    assert {score(probe, "I am Tarn.") for probe in good} == {True, False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RecordError, match="probe id: expected each id once"):
            load_probes(path, skip_bad=True)
