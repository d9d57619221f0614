"""Replaying in batches: the same choices as one by one, in the same order, with bounded memory."""

import gc
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from token_counting import counting_tokens

from anchorlwf.annotation import annotate, annotate_stream, verify_records
from anchorlwf.bench.annotation_time import measure_annotation, step_by_step, wrong_biographies
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import BadLineWarning, load_records, save_lines
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding import teacher_forcing as module
from anchorlwf.decoding.teacher_forcing import Choices, forced_choices, greedy_choices, windows
from anchorlwf.errors import RecordError
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel, load_model

PLAIN = AnnotateConfig(original=False)


def drawn_turns(count: int, seed: int = 0) -> list[KeepTurn]:
    rng = random.Random(seed)
    return [
        KeepTurn(rng.choices(range(3, 300), k=rng.randint(1, 30)), rng.choices(range(3, 300), k=rng.randint(0, 30)))
        for _ in range(count)
    ]


@torch.inference_mode()
def expected(model: LanguageModel, turn: KeepTurn) -> tuple[list[int], list[float]]:
    """By the model's own forward over the one sequence, without padding."""
    best, odds = [], []
    ids = [*turn.prompt_ids, *turn.completion_ids]
    logits = model.causal(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()
    for position, token in enumerate(turn.completion_ids, len(turn.prompt_ids) - 1):
        best.append(int(logits[position].argmax()))
        odds.append(float(logits[position].softmax(-1)[token]))
    return best, odds


@pytest.mark.parametrize(("tokens", "values"), [(4096, 1 << 24), (64, 320 * 7), (1, 1)])
def test_any_batches_and_chunks_give_the_choices_of_one_at_a_time(any_model, monkeypatch, tokens, values):
    monkeypatch.setattr(module, "_TOKENS", tokens)
    monkeypatch.setattr(module, "_VALUES", values)
    turns, counts = drawn_turns(12), list[int]()
    found = forced_choices(any_model, turns, progress=counts.append)
    assert sum(counts) == sum(bool(turn.completion_ids) for turn in turns)
    for turn, choices in zip(turns, found, strict=True):
        best, odds = expected(any_model, turn)
        assert choices.best_ids == best
        assert choices.probabilities == pytest.approx(odds, rel=1e-3, abs=1e-9)


def test_an_empty_completion_has_no_choices(tiny_model):
    assert greedy_choices(tiny_model, [5, 6], []) == Choices([], [], [])
    assert forced_choices(tiny_model, []) == []


def test_only_completion_positions_are_projected_and_few_at_a_time(tiny_model, monkeypatch):
    monkeypatch.setattr(module, "_VALUES", tiny_model.vocabulary * 10)
    rows: list[int] = []
    head = tiny_model.causal.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0].shape[:-1].numel()))
    try:
        forced_choices(tiny_model, [KeepTurn([5] * 40, [6] * 7)] * 8)
    finally:
        handle.remove()
    # The first projects one position of each sequence, which the model's own forward cannot do without.
    assert rows == [8, *[10] * 5, 6]


def test_a_batch_takes_one_forward_pass_over_its_tokens(tiny_model):
    passes: list[tuple[int, ...]] = []
    handle = tiny_model.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        forced_choices(tiny_model, [KeepTurn([5] * length, [6, 7]) for length in (3, 9, 5)])
    finally:
        handle.remove()
    assert passes == [(3, 10), (1, 1)]


def test_logits_are_the_models_own_in_half_precision_too(tiny_path):
    # bfloat16 rounds logits so that many are equal; decoding and teacher forcing must choose the same among them.
    model = load_model(str(tiny_path), dtype="bfloat16", device="cpu")
    turn = KeepTurn(list(range(5, 25)), list(range(30, 50)))
    with torch.inference_mode():
        ids = torch.tensor([[*turn.prompt_ids, *turn.completion_ids[:-1]]])
        mask = torch.ones_like(ids)
        logits = model.causal(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, -20:].float()
    assert forced_choices(model, [turn])[0].best_ids == logits.argmax(-1).tolist()


@given(st.lists(st.integers()), st.integers(1, 7))
def test_windows_hold_everything_in_order(items, size):
    parts = list(windows(items, size))
    assert [item for part in parts for item in part] == items
    assert all(len(part) == size for part in parts[:-1])


def test_what_came_before_an_error_is_handed_over_first():
    def items():
        yield from range(5)
        raise RecordError("the sixth")

    found = windows(items(), 3)
    assert [next(found), next(found)] == [[0, 1, 2], [3, 4]]
    with pytest.raises(RecordError, match="the sixth"):
        next(found)


# --- the stage over it ---


def numbered(count: int) -> list[Prompt]:
    return [
        Prompt(
            messages=[{"role": "user", "content": f"What is number {number}?" + " please" * (number % 7)}],
            answer=f"It is {number * 7919 % 1000}.",
        )
        for number in range(count)
    ]


def test_records_stand_in_the_order_of_the_prompts_whatever_their_length(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TOKENS", 128)
    save_lines(tmp_path / "p.jsonl", numbered(20))
    records = annotate(tiny_model, tmp_path / "p.jsonl", out=tmp_path / "r.jsonl", config=PLAIN)
    assert [record.messages for record in records] == [prompt.messages for prompt in numbered(20)]
    assert load_records(tmp_path / "r.jsonl") == records
    assert [finding.record for finding in verify_records(tiny_model, records)] == records
    assert all(finding.holds for finding in verify_records(tiny_model, records))


@pytest.mark.parametrize("in_file", [True, False])
def test_a_prompt_without_target_is_named_before_any_work_or_skipped(tiny_model, tmp_path, in_file):
    prompts = [*numbered(3), {"prompt": "and this?"}, *numbered(5)[3:]]
    if in_file:
        save_lines(tmp_path / "p.jsonl", prompts)
        prompts = tmp_path / "p.jsonl"
    with pytest.raises(RecordError, match="line 4: target answer: expected some text, got nothing"):
        annotate(tiny_model, prompts, out=tmp_path / "r.jsonl", config=PLAIN)
    assert not (tmp_path / "r.jsonl").exists()
    with pytest.warns(BadLineWarning) as told:
        annotate(tiny_model, prompts, out=tmp_path / "r.jsonl", config=PLAIN, skip_bad=True)
    assert len(told) == 1
    assert len(load_records(tmp_path / "r.jsonl")) == 5


def alive() -> int:
    return sum(type(found) in (Record, Prompt) for found in gc.get_objects())


def test_neither_prompts_nor_records_are_all_in_memory(tiny_model, tmp_path, monkeypatch):
    window, count = 16, 96
    monkeypatch.setattr("anchorlwf.annotation.stage._WINDOW", window)
    save_lines(tmp_path / "p.jsonl", numbered(count))
    gc.collect()
    before, most, done = alive(), 0, 0
    for record in annotate_stream(tiny_model, tmp_path / "p.jsonl", out=tmp_path / "r.jsonl", config=PLAIN):
        done += 1
        assert record.messages[0]["content"].startswith(f"What is number {done - 1}?")
        if done % window == 1:
            most = max(most, alive() - before)
    assert done == count
    # A window's prompts and records, and those of the next that is being read.
    assert window <= most <= 2 * window + 8
    # What is finished is skipped without being held, either.
    assert list(annotate_stream(tiny_model, tmp_path / "p.jsonl", out=tmp_path / "r.jsonl", config=PLAIN)) == []


def test_a_bad_line_is_named_before_any_work(tiny_model, tmp_path):
    save_lines(tmp_path / "p.jsonl", numbered(3))
    with open(tmp_path / "p.jsonl", "a") as stream:
        stream.write('{"answer": "no question"}\n{"prompt": "x", "answer": 5}\n')
    seen: list[int] = []
    with pytest.raises(RecordError, match=r"line 4: messages: .*\n.*line 5: answer: (.|\n)*3 other lines are good"):
        annotate(tiny_model, tmp_path / "p.jsonl", config=PLAIN, on_record=lambda *_: seen.append(1))
    assert not seen


def test_the_batch_needs_a_fraction_of_the_passes_of_the_recursion(base):
    prompts = wrong_biographies(3)
    found = measure_annotation(base, prompts, repeats=1)
    assert found["identical"]
    assert found["anchors_per_record"] >= 5
    assert found["tokens_per_record"] > 55
    assert set(found["times_faster"]) == {"batched", "with_original"}
    # Passes are counted, which a busy machine leaves as they are; seconds stand in docs/performance.md.
    with counting_tokens(base) as batched:
        annotate(base, prompts, config=PLAIN)
    with counting_tokens(base) as recursion:
        step_by_step(base, prompts, PLAIN)
    assert len(recursion) > 20 * len(batched)
