"""Records that stay on disk: the same as those in memory, and memory that does not grow with them."""

import gc
import json
import pickle
import tracemalloc
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import records
from torch.utils.data import ConcatDataset, DataLoader

from anchorlwf.bench.memory import train_many
from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import append_record, load_records, save_records
from anchorlwf.data.record import Anchor, Record, new_id
from anchorlwf.data.record_file import RecordFile
from anchorlwf.errors import AnchorLwfError, RecordError, StampError
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import load_model
from anchorlwf.training import reference_cache as reference
from anchorlwf.training import train
from anchorlwf.training.dataset import by_number, read_training_set
from anchorlwf.training.reference_cache import GIB, Contents, build_reference_cache, length_sorted

BAD = [b"[1]", b"{}", b'{"id": "\xff"}', b"{", b"nothing"]
BLANK = [b"", b"   ", b"\r"]


def made(model, index, /, **change):
    """A short record of this model's, unlike any of another index."""
    ids = [40 + index % 7, 50 + index // 7 % 200, 60]
    record = Record(
        id=new_id(index),
        model=model.stamp,
        messages=[{"role": "user", "content": f"question {index}"}],
        prompt_ids=model.codec.encode_prompt([{"role": "user", "content": f"question {index}"}]),
        completion_ids=ids,
        completion=model.codec.decode(ids),
        anchors=[Anchor(position=0, token_id=ids[0])],
    )
    return record.model_copy(update=change)


def written(model, path, count):
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(f"{made(model, index).model_dump_json()}\n" for index in range(count))
    return path


# --- the same as in memory ------------------------------------------------------------------------------------------


def outcome(action):
    """What an action gives, or what it raises; and what it warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = list(action())
        except AnchorLwfError as error:
            found = (type(error), str(error))
    return found, [str(one.message) for one in caught]


@settings(max_examples=100)
@given(data=st.data())
def test_it_gives_what_load_records_gives_whatever_the_file_holds(tmp_path_factory, data):
    pool = data.draw(st.lists(records(), max_size=4))
    ids = st.sampled_from([one.id for one in pool])
    again = st.builds(lambda one, name: one.model_copy(update={"id": name}), records(), ids)
    good = (again | st.sampled_from(pool)).map(lambda one: one.model_dump_json().encode()) if pool else st.nothing()
    lines = data.draw(st.lists(good | st.sampled_from(BAD) | st.sampled_from(BLANK), max_size=10))
    path = tmp_path_factory.mktemp("file") / "r.jsonl"
    ending = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    path.write_bytes(ending.join(lines) + data.draw(st.sampled_from([b"", ending])))
    for skip_bad in (False, True):
        expected = outcome(lambda skip=skip_bad: load_records(path, skip_bad=skip))
        assert outcome(lambda skip=skip_bad: RecordFile(path, skip_bad=skip)) == expected


def test_records_are_reached_by_number_and_slice_and_from_other_processes(tiny_model, tmp_path):
    file = RecordFile(written(tiny_model, tmp_path / "r.jsonl", 5))
    listed = load_records(tmp_path / "r.jsonl")
    assert len(file) == 5
    assert (file[-1], file[1:4], file[::-2]) == (listed[-1], listed[1:4], listed[::-2])
    assert listed[3] in file
    for outside in (5, -6):
        with pytest.raises(IndexError):
            file[outside]
    assert list(pickle.loads(pickle.dumps(file))) == listed
    [batch] = DataLoader(file, batch_size=5, num_workers=1, collate_fn=list)
    assert batch == listed


def test_a_skipped_line_is_warned_of_where_the_file_was_opened(tiny_model, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(f"nothing\n{made(tiny_model, 0).model_dump_json()}\n")
    with pytest.warns(UserWarning, match="line 1: expected one JSON object") as warned:
        assert len(RecordFile(path, skip_bad=True)) == 1
    assert warned[0].filename == __file__


# --- a file that does not stay as it was ----------------------------------------------------------------------------


def test_lines_may_be_appended_and_whatever_else_happens_is_noticed(tiny_model, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(written(tiny_model, path, 3).read_bytes().rstrip(b"\n"))
    file, before = RecordFile(path), load_records(path)
    append_record(path, made(tiny_model, 1, status="draft"))
    assert list(file) == before, "somebody goes on annotating"
    content = path.read_bytes()
    second = content.index(b"question 1")
    path.write_bytes(content[:second] + b"question 7" + content[second + 10 :])
    assert file[0] == before[0]
    with pytest.raises(RecordError, match=r"r\.jsonl, byte \d+: expected the line that stood there .* Leave the file"):
        file[1]
    path.write_bytes(content[:second])
    with pytest.raises(RecordError, match="expected the line that stood there"):
        file[1]
    path.unlink()
    with pytest.raises(RecordError, match="got No such file"):
        file[0]


# --- training -------------------------------------------------------------------------------------------------------


def test_training_from_a_file_is_training_from_a_list(tiny_path, tiny_model, tmp_path):
    path, rows = tmp_path / "r.jsonl", {}
    first = [made(tiny_model, index) for index in range(6)]
    replaced, draft = made(tiny_model, 2, completion="replaced"), made(tiny_model, 9, status="draft")
    save_records(path, [replaced, *first, draft])
    file = RecordFile(path)
    sources = {
        "path": path,
        "list": load_records(path),
        "generator": iter(file),
        "file": file,
        "joined": ConcatDataset([file, []]),
    }
    results = {}
    for name, source in sources.items():
        rows[name] = []
        config = TrainConfig(max_steps=5, batch_size=2, stop=False, learning_rate=5e-3)
        results[name] = train(
            load_model(str(tiny_path)), source, out=tmp_path / name, config=config, on_step=rows[name].append
        )
        assert (results[name].records, results[name].completion_tokens) == (6, 18)
    assert [rows[name] == rows["list"] for name in sources] == [True] * 5
    assert [results[name].report == results["list"].report for name in sources] == [True] * 5
    assert rows["list"][-1]["loss"] != rows["list"][0]["loss"], "something trained"


def test_only_what_is_trained_on_must_fit_the_model(tiny_model, tmp_path):
    stamp = tiny_model.stamp.model_copy(update={"tokenizer_sha": "0" * 64})
    foreign = made(tiny_model, 0, model=stamp)
    path = tmp_path / "r.jsonl"
    save_records(path, [foreign, made(tiny_model, 0), made(tiny_model, 1, model=stamp, status="draft")])
    assert len(read_training_set(tiny_model, RecordFile(path), TrainConfig()).records) == 1, (
        "replaced, and not finished"
    )
    append_record(path, foreign)
    with pytest.raises(StampError, match="tokenizer"):
        read_training_set(tiny_model, RecordFile(path), TrainConfig())


def peak(action):
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_hardly_grows_with_the_number_of_records(tiny_model, tmp_path, monkeypatch):
    def prepare(path):
        intake = read_training_set(tiny_model, by_number(path), TrainConfig())
        build_reference_cache(tiny_model, intake.records, intake.contents, tmp_path / path.stem, limit=GIB)

    # Small batches, so that either peak holds a whole one.
    monkeypatch.setattr(reference, "length_sorted", lambda contents: length_sorted(contents, 500))
    few, many = (written(tiny_model, tmp_path / f"{count}.jsonl", count) for count in (150, 650))
    prepare(written(tiny_model, tmp_path / "first.jsonl", 150))
    per_record = (peak(lambda: prepare(many)) - peak(lambda: prepare(few))) / 500
    assert per_record < 600
    assert peak(lambda: load_records(few)) / 150 > 2400, "so that the bound says something"


def test_the_measured_training_has_a_cache_and_different_records(tmp_path):
    measured = train_many(70, tmp_path)
    assert (measured["records"], measured["steps"]) == (70, 3)
    assert measured["seconds"] > 0
    assert measured["peak_mib"] > 100
    assert list(tmp_path.rglob("*.safetensors")) != list(tmp_path.rglob("adapter_model.safetensors"))


# --- contents -------------------------------------------------------------------------------------------------------


def test_contents_are_found_by_what_they_are_zeros_at_their_end_included():
    turns = [KeepTurn([index], [1, 2]) for index in range(2000)]
    contents = Contents([*turns, turns[5]])
    assert len(contents) == 2000
    names = [contents.name(number) for number in range(2000)]
    assert names == sorted(names)
    assert {len(name) for name in names} == {64}
    assert any(name.endswith("00") for name in names)
    assert [contents.places[number] for number in contents.find(turns)] == list(range(2000))
    for other in (KeepTurn([5, 1], [2]), KeepTurn([2000], [1, 2])):
        with pytest.raises(KeyError):
            contents.find([turns[0], other])


def test_a_files_lines_end_where_they_say(tmp_path, tiny_model):
    record = made(tiny_model, 0, completion="two\nlines\u2028or\x85three")
    save_records(tmp_path / "r.jsonl", [record, made(tiny_model, 1)])
    assert RecordFile(tmp_path / "r.jsonl")[0] == record
    assert json.loads((tmp_path / "r.jsonl").read_bytes().split(b"\n")[0])["completion"] == record.completion
