import json
import os
from dataclasses import asdict, dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.annotation import Session
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.divergence import completion_hidden
from anchorlwf.errors import ConfigError, RecordError
from anchorlwf.model.batch import KeepTurn, collate
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import reference_cache as reference
from anchorlwf.training import train
from anchorlwf.training.reference_cache import (
    GIB,
    Contents,
    ReferenceKey,
    build_reference_cache,
    length_sorted,
    reference_bytes,
)


def flat(report):
    values = asdict(report)
    assert values.pop("held_out") == {}
    return values


@pytest.fixture(scope="module")
def records(tiny_path):
    """Six corrected answers of the tiny model, of several lengths."""
    model = load_model(str(tiny_path), dtype="float32", device="cpu")
    found = []
    for index in range(6):
        config = AnnotateConfig(max_new_tokens=6 + 2 * index)
        session = Session(model, Prompt(messages=[{"role": "user", "content": "why? " * (1 + index)}]), config)
        session.correct(2, [60 + index], confidence=1.0 if index % 2 else 0.8, source="test")
        found.append(session.record("complete"))
    return found


@pytest.fixture
def forwards(monkeypatch):
    """One entry per forward pass of a reference, wherever it is asked for."""
    calls, plain = [], LanguageModel.as_reference

    def counted(self):
        calls.append(self)
        return plain(self)

    monkeypatch.setattr(LanguageModel, "as_reference", counted)
    return calls


@pytest.fixture
def small_batches(monkeypatch):
    """Two records of the tiny model to a batch."""
    plain = length_sorted
    monkeypatch.setattr(reference, "length_sorted", lambda contents: plain(contents, 80))


def build(model, turns, root, limit=GIB, **options):
    return build_reference_cache(model, turns, Contents(turns), root, limit=limit, **options)


def live(model, turns):
    batch = collate(turns, model.codec.pad_id)
    with model.as_reference() as net:
        return completion_hidden(net.net, net.backbone, batch)


def rows(tiny_path, records, out, **options):
    found = []
    config = TrainConfig(**{"max_steps": 6, "stop": False, "learning_rate": 5e-3, "batch_size": 8, **options})
    result = train(load_model(str(tiny_path)), records, out=out, config=config, on_step=found.append)
    return found, result


def shards(root):
    return sorted(root.rglob("*.safetensors"))


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora_dropout": 0.2},
        {"method": "full", "learning_rate": 1e-3},
        {"batch_size": 2, "accumulation": 2},
        {"gradient_checkpointing": True},
        {"reduction": "token", "hinge": False},
    ],
    ids=str,
)
def test_losses_and_report_are_those_without(tiny_path, records, tmp_path, options):
    options = {"impl": "chunked", **options}
    without, plain = rows(tiny_path, records, tmp_path / "without", reference_cache_size=0, **options)
    with_it, cached = rows(tiny_path, records, tmp_path / "with", **options)
    assert shards(tmp_path / "with" / "reference")
    assert not (tmp_path / "without" / "reference").exists()
    assert with_it[-1]["loss"] != with_it[0]["loss"], "something trained"
    for name in ("loss", "keep_kl", "held", "anchors", "beta"):
        assert [row[name] for row in with_it] == pytest.approx([row[name] for row in without], abs=1e-6, rel=1e-6)
    assert flat(cached.report) == pytest.approx(flat(plain.report), abs=1e-6)


def test_with_the_same_batch_shapes_everything_is_bit_equal(tiny_path, records, tmp_path):
    one = [records[0]]
    without, plain = rows(tiny_path, one, tmp_path / "without", reference_cache_size=0)
    with_it, cached = rows(tiny_path, one, tmp_path / "with", impl="chunked")
    assert with_it == without
    assert cached.report == plain.report


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 2, "accumulation": 2},
        {"gradient_checkpointing": True},
        {"reduction": "token", "hinge": False},
    ],
    ids=str,
)
def test_with_summaries_losses_differ_by_rounding(tiny_path, records, tmp_path, options):
    without, plain = rows(tiny_path, records, tmp_path / "without", reference_cache_size=0, **options)
    with_it, cached = rows(tiny_path, records, tmp_path / "with", **options)
    [index] = (tmp_path / "with").rglob("reference/*/index.json")
    assert json.loads(index.read_text())["summarized"] is True
    assert [row["held"] for row in with_it] == [row["held"] for row in without]
    # The first step's is the loss of the same weights; from then on the optimizer sees other last bits.
    assert with_it[0]["loss"] == pytest.approx(without[0]["loss"], rel=3e-6)
    for name in ("loss", "keep_kl", "beta"):
        assert [row[name] for row in with_it] == pytest.approx([row[name] for row in without], rel=1e-4, abs=2e-6)
    assert flat(cached.report) == pytest.approx(flat(plain.report), rel=1e-4, abs=2e-6)


@pytest.mark.parametrize(
    ("options", "summarized"), [({}, True), ({"impl": "chunked"}, False), ({"method": "full"}, False)], ids=str
)
def test_states_are_summarized_where_head_and_objective_allow_it(tiny_model, records, tmp_path, options, summarized):
    rows(tiny_model.name, records, tmp_path, max_steps=2, **options)
    [index] = tmp_path.rglob("reference/*/index.json")
    assert json.loads(index.read_text())["summarized"] is summarized


def test_the_reverse_direction_keeps_states(tiny_path, records, tmp_path):
    unsure = [record for record in records if record.anchors[0].confidence < 1]
    rows(tiny_path, unsure, tmp_path, direction="reverse")
    [index] = tmp_path.rglob("reference/*/index.json")
    assert json.loads(index.read_text())["summarized"] is False


def test_an_adapter_on_the_head_keeps_states(any_model, records, tmp_path):
    if any_model.causal.config.get_text_config().tie_word_embeddings:
        return  # refused
    [head] = [
        name for name, module in any_model.causal.named_modules() if module is any_model.causal.get_output_embeddings()
    ]
    config = TrainConfig(max_steps=2, stop=False, batch_size=8, targets=[head])
    train(load_model(any_model.name), records, out=tmp_path, config=config)
    [index] = tmp_path.rglob("reference/*/index.json")
    assert json.loads(index.read_text())["summarized"] is False


def test_a_soft_cap_keeps_states(any_model, records, tmp_path):
    capped = any_model.causal.config.get_text_config().model_type == "gemma2"
    train(load_model(any_model.name), records, out=tmp_path, config=TrainConfig(max_steps=2, stop=False, batch_size=8))
    [index] = tmp_path.rglob("reference/*/index.json")
    assert json.loads(index.read_text())["summarized"] is not capped


def test_every_architecture_gives_the_states_of_its_own_forward(any_model, records, tmp_path):
    cache = build(any_model, records, tmp_path)
    assert torch.equal(cache.states(records[:1]), build(any_model, records, tmp_path).states(records[:1]))
    assert float((cache.states(records) - live(any_model, records)).abs().max()) < 1e-5
    backwards = records[::-1]
    assert float((cache.states(backwards) - live(any_model, backwards)).abs().max()) < 1e-5, "any order may be asked"


def test_half_precision_is_kept_as_it_is(tiny_path, records, tmp_path):
    model = load_model(str(tiny_path), dtype="bfloat16", device="cpu")
    cache = build(model, records[:1], tmp_path)
    assert cache.states(records[:1]).dtype == torch.bfloat16
    assert torch.equal(cache.states(records[:1]), live(model, records[:1]))


# --- no forward pass too many ---------------------------------------------------------------------------------------


def test_no_reference_forward_once_it_is_built(tiny_path, records, tmp_path, forwards):
    rows(tiny_path, records, tmp_path / "run", batch_size=2)
    assert len(forwards) == 1, "one batch holds all six; neither steps nor report asked again"
    rows(tiny_path, records[::-1], tmp_path / "run", batch_size=3)
    assert len(forwards) == 1, "the next run in that folder finds it, whatever the order of the records"
    rows(tiny_path, records, tmp_path / "without", batch_size=2, reference_cache_size=0)
    assert len(forwards) == 1 + 6 + 3, "six steps, and a report over three batches"


@pytest.mark.usefixtures("small_batches")
def test_a_crash_half_way_loses_the_broken_batch_only(fresh_model, records, tmp_path, forwards, monkeypatch):
    plain = reference.write_atomic

    def broken(path, content):
        if path.name == "000001.safetensors":
            raise KeyboardInterrupt
        plain(path, content)

    monkeypatch.setattr(reference, "write_atomic", broken)
    with pytest.raises(KeyboardInterrupt):
        build(fresh_model, records, tmp_path)
    [first] = shards(tmp_path)
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(reference, "write_atomic", plain)
    forwards.clear()
    progress = []
    cache = build(fresh_model, records, tmp_path, on_batch=lambda *done: progress.append(done))
    batches = len(length_sorted(Contents(records), 80))
    assert batches >= 3
    assert progress == [(number, batches) for number in range(2, batches + 1)]
    assert len(forwards) == batches - 1
    assert len(shards(tmp_path)) == batches
    assert first.stat().st_mtime_ns == written
    assert float((cache.states(records) - live(fresh_model, records)).abs().max()) < 1e-5


def test_what_kills_left_of_files_and_caches_is_cleared_away(fresh_model, records, tmp_path):
    build(fresh_model, records[:2], tmp_path)
    build(fresh_model, records, tmp_path)
    whole = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for folder in [*tmp_path.iterdir()]:
        (folder / ".000007.safetensors.k3_d9xqz").write_bytes(b"x")
        (folder / ".index.json.k3_d9xqz").write_bytes(b"x")
    (tmp_path / "0123456789abcdef").mkdir()
    (tmp_path / "0123456789abcdef" / "000000.safetensors").write_bytes(b"of a cache that was being removed")
    (tmp_path / "notes.txt").write_text("mine")
    build(fresh_model, records, tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [*whole, tmp_path / "notes.txt"]


@pytest.mark.usefixtures("small_batches")
def test_damaged_and_foreign_files_are_computed_again(fresh_model, records, tmp_path, forwards, caplog):
    right = build(fresh_model, records, tmp_path / "ours").states(records)
    build(fresh_model, records[:2], tmp_path / "other")
    torn, flipped, foreign, *rest = shards(tmp_path / "ours")
    torn.write_bytes(torn.read_bytes()[:-7])
    content = bytearray(flipped.read_bytes())
    content[-9] ^= 1
    flipped.write_bytes(content)
    foreign.write_bytes(shards(tmp_path / "other")[0].read_bytes())
    kept = [file.stat().st_mtime_ns for file in rest]
    forwards.clear()
    again = build(fresh_model, records, tmp_path / "ours").states(records)
    assert len(forwards) == 3
    assert [("is damaged" in line, "another cache" in line) for line in caplog.messages] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    assert torch.equal(again, right)
    assert [file.stat().st_mtime_ns for file in rest] == kept


@pytest.mark.usefixtures("small_batches")
def test_a_process_that_follows_another_looks_at_keys_but_not_at_every_byte(
    fresh_model, records, tmp_path, forwards, monkeypatch
):
    build(fresh_model, records, tmp_path / "ours")
    build(fresh_model, records[:2], tmp_path / "other")
    foreign, *rest = shards(tmp_path / "ours")
    foreign.write_bytes(shards(tmp_path / "other")[0].read_bytes())
    summed, plain = [], reference.tensors_sha
    monkeypatch.setattr(reference, "tensors_sha", lambda tensors: summed.append(len(tensors)) or plain(tensors))
    forwards.clear()
    cache = build(fresh_model, records, tmp_path / "ours", checksums=False)
    assert len(forwards) == 1, "what belongs elsewhere is never taken"
    assert len(summed) == 1, "the file that was computed; none of the others"
    assert len(rest) >= 2
    assert float((cache.states(records) - live(fresh_model, records)).abs().max()) < 1e-5


# --- keys -----------------------------------------------------------------------------------------------------------


def test_the_key_knows_what_states_depend_on(tiny_path, records):
    def key(turns=records, change=None, dtype="float32"):
        model = load_model(str(tiny_path), dtype=dtype, device="cpu")
        if change is not None:
            change(model)
        return ReferenceKey.of(model, Contents(turns))

    def weight(model):
        with torch.no_grad():
            model.causal.get_input_embeddings().weight[3, 3] += 1e-3

    def setting(model):
        model.causal.config.rms_norm_eps *= 2

    def adapter(model):
        model.attach_lora(2, 8.0, 0.0, "mlp", 0)

    def frozen_copy(model):
        model.keep_reference_copy()
        weight(model)

    ours = key()
    # Neither the order, nor ids and anchors, nor what trains on top of the reference.
    assert key(records[::-1]) == ours
    assert key([*records, records[0]]) == ours
    assert key([KeepTurn(r.prompt_ids, r.completion_ids) for r in records]) == ours
    assert key(change=adapter) == ours
    assert key(change=frozen_copy) == ours
    moved = KeepTurn([*records[0].prompt_ids, records[0].completion_ids[0]], records[0].completion_ids[1:])
    assert key([moved, *records[1:]]).records != ours.records, "where the prompt ends counts"
    assert key(records[1:]).records != ours.records
    assert key(change=weight).weights != ours.weights
    assert key(change=setting).weights != ours.weights
    assert key(dtype="bfloat16").dtype != ours.dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert key().dtype not in {ours.dtype, key(dtype="bfloat16").dtype}


def test_another_key_gets_another_folder_and_a_forged_one_is_refused(fresh_model, records, tmp_path):
    ours, fewer = build(fresh_model, records, tmp_path), build(fresh_model, records[:3], tmp_path)
    assert ours.folder != fewer.folder
    with pytest.raises(RecordError, match="a record it was built for"):
        fewer.states(records[5:])
    (ours.folder / "index.json").write_bytes((fewer.folder / "index.json").read_bytes())
    with pytest.raises(ConfigError, match=r"got other records\. Delete"):
        build(fresh_model, records, tmp_path)
    (ours.folder / "index.json").write_text("{")
    with pytest.raises(ConfigError, match="got no key"):
        build(fresh_model, records, tmp_path)
    lost = build(fresh_model, records[:2], tmp_path)
    shards(lost.folder)[0].unlink()
    with pytest.raises(ConfigError, match=r"file 000000\.safetensors"):
        lost.states(records[:1])


# --- size -----------------------------------------------------------------------------------------------------------


def test_the_bound_holds_over_all_keys(fresh_model, records, tmp_path):
    needed = reference_bytes(fresh_model, Contents(records))
    assert needed == sum(len(record.completion_ids) for record in records) * 32 * 4
    assert reference_bytes(fresh_model, Contents([*records, *records])) == needed
    with pytest.raises(ConfigError, match="reference_cache_size"):
        build(fresh_model, records, tmp_path, limit=needed - 1)
    assert not shards(tmp_path)
    old, new = build(fresh_model, records[:3], tmp_path), build(fresh_model, records[3:], tmp_path)
    os.utime(old.folder / "index.json", (0, 0))
    size = sum(file.stat().st_size for file in new.folder.iterdir())
    last = build(fresh_model, records, tmp_path, limit=needed + size)
    assert sorted(tmp_path.iterdir()) == sorted([new.folder, last.folder]), "the oldest went, no more"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reference_cache_size": 0}, "reference_cache_size"),
        ({"reference_cache_size": 1e-6}, "reference_cache_size"),
        ({"max_steps": 1}, "one pass"),
        ({"max_steps": 3, "batch_size": 2}, "one pass"),
    ],
)
def test_where_it_does_not_pay_or_fit_it_stays_off(tiny_path, records, tmp_path, caplog, options, reason):
    with caplog.at_level("INFO", logger="anchorlwf"):
        found, _ = rows(tiny_path, records, tmp_path, **options)
    assert len(found) == options.get("max_steps", 6)
    [line] = [message for message in caplog.messages if "reference cache" in message]
    assert line.startswith("no reference cache")
    assert reason in line
    assert not shards(tmp_path / "reference")


@dataclass(frozen=True)
class Lengths:
    prompt: int
    completion: int

    def turn(self, index):
        return KeepTurn([index] * self.prompt, [index] * self.completion)


@given(
    st.lists(st.builds(Lengths, st.integers(1, 20), st.integers(1, 20)), max_size=30),
    st.integers(1, 120),
    st.randoms(use_true_random=False),
)
def test_batches_hold_every_turn_once_within_the_bound_in_any_order(lengths, most, random):
    turns = [one.turn(index) for index, one in enumerate(lengths)]
    contents = Contents(turns)
    batches = [batch.tolist() for batch in length_sorted(contents, most)]
    found = [turns[contents.places[number]] for batch in batches for number in batch]
    assert sorted(found, key=str) == sorted(turns, key=str)
    sizes = [len(turn.prompt_ids) + len(turn.completion_ids) for turn in found]
    assert sizes == sorted(sizes)
    assert contents.lengths.tolist() == [
        len(turns[place].prompt_ids) + len(turns[place].completion_ids) for place in contents.places
    ]
    for batch in batches:
        widest = max(contents.lengths[batch])
        assert len(batch) == 1 or len(batch) * widest <= most
    shuffled = random.sample(turns, len(turns))
    again = Contents([*shuffled, *shuffled[:2]])
    assert [batch.tolist() for batch in length_sorted(again, most)] == batches
    assert [again.name(number) for number in range(len(again))] == [contents.name(n) for n in range(len(contents))]
    assert again.completion_lengths.tolist() == contents.completion_lengths.tolist()
