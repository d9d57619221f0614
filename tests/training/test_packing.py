import itertools
import json
import logging
from dataclasses import asdict
from functools import cache
from uuid import UUID

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONTEXT, WINDOW
from transformers import AttentionInterface, AutoModelForCausalLM

from anchorlwf import divergence
from anchorlwf.annotation import Session
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.divergence import completion_hidden
from anchorlwf.model import attention
from anchorlwf.model.attention import WITHIN_RECORDS, attention_kind, within_records
from anchorlwf.model.batch import KeepTurn, collate, pack, shared_length
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import step_context, step_sampler, train, trainer
from anchorlwf.training.packing import fed_length, packing_flaw
from anchorlwf.training.reference_cache import Contents, ReferenceKey

_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 1, "head_dim": 16}
PACKS = {
    "qwen3": ("Qwen3Config", _GROUPED),
    "llama": ("LlamaConfig", _SIZES),
    "gpt_neox": ("GPTNeoXConfig", _SIZES),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": CONTEXT,
            "initializer_range": 0.3,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": WINDOW}),
}
REFUSED = {
    "gemma2": ("Gemma2Config", {**_GROUPED, "sliding_window": WINDOW}),
    "falcon": ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": True}),
    "lfm2": ("Lfm2Config", {**_SIZES, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}),
}
LENGTHS = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=6)
"""Tokens of prompt and completion, per record."""
SYSTEM = torch.arange(40, 52).tolist()
"""What prompts of a conversation begin with."""
MIXED = [(9, 5), (1, 3), (17, 12), (4, 1), (1, 1), (6, 8), (6, 8), (20, 2)]


@cache
def net_of(name):
    kind, sizes = {**PACKS, **REFUSED}[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = getattr(transformers, kind)(vocab_size=320, bos_token_id=None, eos_token_id=2, pad_token_id=0, **sizes)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture
def model_of(tiny_model):
    """Tiny random models by name; shared, so they must not be changed."""
    return lambda name: LanguageModel(net_of(name), tiny_model.codec, name)


def turns_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = [[torch.randint(3, 320, (length,), generator=generator).tolist() for length in pair] for pair in lengths]
    return [KeepTurn(*pair) for pair in ids]


def instructed(turns):
    """The same turns behind one system prompt."""
    return [KeepTurn(SYSTEM + turn.prompt_ids, turn.completion_ids) for turn in turns]


def states(model, batch):
    return completion_hidden(model.net, model.backbone, batch)


def gap(one, other):
    return float((one - other).abs().max() / other.abs().max())


def changed(turn):
    return KeepTurn([(token + 7) % 320 for token in turn.prompt_ids], [(t + 7) % 320 for t in turn.completion_ids])


# --- batches --------------------------------------------------------------------------------------------------------


@given(LENGTHS)
def test_a_packed_batch_holds_the_tokens_of_the_padded_one_and_no_others(lengths):
    turns = turns_of(lengths)
    packed, padded = pack(turns), collate(turns, pad_id=0)
    assert packed.input_ids_BT.shape == (1, sum(map(fed_length, turns)))
    assert torch.equal(packed.input_ids_BT[0], padded.input_ids_BT[padded.attention_mask_BT.bool()])
    assert torch.equal(packed.token_ids_N, padded.token_ids_N)
    positions = packed.position_ids_BT[0, packed.column_N]
    assert torch.equal(positions, padded.column_N), "each token is predicted from the same place in its record"
    assert packed.records == padded.records == len(turns)
    for batch in (packed, padded):
        ones = torch.ones_like(batch.token_ids_N)
        assert batch.per_record(ones).tolist() == [len(turn.completion_ids) for turn in turns]


@given(LENGTHS.filter(lambda lengths: len(lengths) > 1))
def test_what_all_prompts_begin_with_stands_there_once(lengths):
    turns = instructed(turns_of(lengths))
    packed, padded = pack(turns, share=True), collate(turns, pad_id=0)
    shared = shared_length(turns)
    assert len(SYSTEM) - 1 <= shared < min(len(turn.prompt_ids) for turn in turns)
    assert packed.input_ids_BT.shape == (1, sum(map(fed_length, turns)) - shared * (len(turns) - 1))
    assert packed.input_ids_BT[0, :shared].tolist() == turns[0].prompt_ids[:shared]
    assert torch.equal(packed.position_ids_BT[0, packed.column_N], padded.column_N)
    assert torch.equal(packed.token_ids_N, padded.token_ids_N)
    assert packed.turns(range(len(turns))) == padded.turns(range(len(turns))) == turns
    ones = torch.ones_like(packed.token_ids_N)
    assert packed.per_record(ones).tolist() == [len(turn.completion_ids) for turn in turns]


def test_nothing_is_shared_by_one_record_nor_where_it_would_not_pay():
    turns = instructed(turns_of(MIXED))
    assert shared_length(turns[:1]) == 0
    few = [KeepTurn(SYSTEM[:4] + turn.prompt_ids, turn.completion_ids) for turn in turns_of(MIXED)]
    assert shared_length(few) == 0
    assert pack(few, share=True).bounds.tolist() == pack(few).bounds.tolist()


# --- exactness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("name", PACKS)
def test_states_loss_and_gradients_are_those_of_padded_batches(model_of, name, shared):
    model, turns = model_of(name), instructed(turns_of(MIXED)) if shared else turns_of(MIXED)
    assert packing_flaw(model, max(map(fed_length, turns))) is None
    found = []
    for batch in (collate(turns, pad_id=0), pack(turns, share=shared)):
        hidden_ND = states(model, batch)
        weight = model.causal.get_output_embeddings().weight
        loss = torch.nn.functional.cross_entropy(hidden_ND @ weight.T, batch.token_ids_N)
        parameters = [one for one in model.net.parameters() if one.requires_grad]
        found.append((hidden_ND.detach(), loss.detach(), torch.autograd.grad(loss, parameters)))
    (padded, padded_loss, padded_grads), (packed, packed_loss, packed_grads) = found
    assert gap(packed, padded) < 1e-5
    assert float(packed_loss) == pytest.approx(float(padded_loss), rel=1e-5)
    assert (
        max(
            gap(one, other)
            for one, other in zip(packed_grads, padded_grads, strict=True)
            if float(other.abs().max()) > 1e-6
        )
        < 1e-4
    )


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
def test_any_lengths_give_the_states_of_padded_batches(model_of, name):
    model = model_of(name)

    @given(LENGTHS)
    def check(lengths):
        turns = turns_of(lengths)
        with torch.no_grad():
            assert gap(states(model, pack(turns)), states(model, collate(turns, pad_id=0))) < 1e-5
            turns = instructed(turns)
            assert gap(states(model, pack(turns, share=True)), states(model, collate(turns, pad_id=0))) < 1e-5

    check()


@pytest.mark.parametrize("behind", [list, instructed], ids=["apart", "shared"])
@pytest.mark.parametrize("name", PACKS)
def test_nothing_crosses_from_one_record_to_another(model_of, name, behind):
    model, turns = model_of(name), turns_of(MIXED)
    splits = [len(turn.completion_ids) for turn in turns]
    with torch.no_grad():
        before = states(model, pack(behind(turns), share=True)).split(splits)
        for place in range(len(turns)):
            others = behind([*turns[:place], changed(turns[place]), *turns[place + 1 :]])
            after = states(model, pack(others, share=True)).split(splits)
            same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
            assert same == [index != place for index in range(len(turns))]


def test_flash_attention_is_given_the_bounds(model_of, monkeypatch):
    model, turns, seen = model_of("qwen3"), turns_of(MIXED), []

    def flash(
        module,
        query,
        key,
        value,
        _mask,
        cu_seq_lens_q=None,
        cu_seq_lens_k=None,
        max_length_q=None,
        max_length_k=None,
        **options,
    ):
        if cu_seq_lens_q is None:  # the padded batch; padding on the right is never looked at
            return attention.sdpa_attention_forward(module, query, key, value, None, **options)
        seen.append((cu_seq_lens_q.tolist(), cu_seq_lens_k.tolist(), max_length_q, max_length_k))
        lengths = cu_seq_lens_q.diff().tolist()
        return attention._sdpa_within_records(module, query, key, value, None, record_lengths=lengths, **options)

    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_test", flash)
    monkeypatch.setattr(model.causal.config, "_attn_implementation", "flash_attention_test")
    assert packing_flaw(model, 30) is None
    seen.clear()
    states(model, pack(turns))
    bounds = pack(turns).bounds.tolist()
    assert seen == [(bounds, bounds, 28, 28)] * 2, "once a layer"


# --- what cannot be packed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gemma2", "eager attention cannot be told"), ("falcon", "TypeError"), ("lfm2", "change with the record before")],
)
def test_what_cannot_is_refused_with_the_reason(model_of, name, reason):
    assert reason in packing_flaw(model_of(name), 20)


def test_a_forward_that_drops_what_it_does_not_know_is_refused(model_of, monkeypatch):
    model = model_of("llama")
    plain = model.causal.model.forward

    def forward(input_ids=None, attention_mask=None, position_ids=None, **_):
        return plain(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)

    monkeypatch.setattr(model.causal.model, "forward", forward)
    assert "record_lengths" in packing_flaw(model, 20)
    assert attention_kind(model.backbone) == model.causal.config._attn_implementation == "sdpa", "as it was"


def test_attention_across_records_is_seen(model_of, monkeypatch):
    plain = divergence.network_inputs

    def one_record(batch, kind):
        inputs = plain(batch, kind)
        return {**inputs, **({"record_lengths": [batch.input_ids_BT.shape[1]]} if batch.bounds is not None else {})}

    monkeypatch.setattr(divergence, "network_inputs", one_record)
    assert "change with the record before" in packing_flaw(model_of("qwen3"), 20)


def test_a_window_that_is_not_kept_is_seen_where_a_record_is_longer(model_of, monkeypatch):
    kept = attention._mask
    monkeypatch.setattr(attention, "_mask", lambda shared, length, _, device: kept(shared, length, None, device))
    assert packing_flaw(model_of("mistral"), WINDOW) is None
    assert "differ by" in packing_flaw(model_of("mistral"), WINDOW + 8)


# --- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tiny_path):
    """Six corrected answers of several lengths; the tiny models share one tokenizer."""
    model = load_model(str(tiny_path), dtype="float32", device="cpu")
    found = []
    for index in range(6):
        session = Session(
            model,
            Prompt(messages=[{"role": "user", "content": "why? " * (1 + index)}]),
            AnnotateConfig(max_new_tokens=6 + 2 * index),
        )
        session.correct(2, [60 + index], confidence=1.0, source="test")
        found.append(session.record("complete"))
    return found


def lengthened(records, count):
    """`count` records with prompts of several lengths."""
    plain = records[0]
    return [
        plain.model_copy(update={"id": str(UUID(int=i)), "prompt_ids": plain.prompt_ids + [50] * (i * 7 % 40)})
        for i in range(count)
    ]


def test_the_reference_and_a_step_go_through_what_is_shared_once(tiny_path, records, tmp_path, monkeypatch):
    system = records[0].prompt_ids[:1] * 10
    alike = [one.model_copy(update={"prompt_ids": system + one.prompt_ids}) for one in records]
    fed, plain = [], divergence.network_inputs
    monkeypatch.setattr(divergence, "network_inputs", lambda *given: fed.append(given[0]) or plain(*given))
    trained(tiny_path, alike, tmp_path, max_steps=2)
    tokens = sum(map(fed_length, alike))
    shared = shared_length(alike)
    whole = [batch for batch in fed if batch.bounds is not None and batch.records == len(alike)]
    assert len(whole) >= 4, "the reference's states, two steps and the report"
    assert {batch.input_ids_BT.shape[1] for batch in whole} == {tokens - shared * (len(alike) - 1)}


def trained(path, records, out, **options):
    rows, model = [], load_model(str(path), dtype="float32", device="cpu")
    config = TrainConfig(**{"max_steps": 6, "stop": False, "learning_rate": 3e-3, "batch_size": 8, **options})
    result = train(model, records, out=out, config=config, on_step=rows.append)
    return rows, result, model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"method": "full", "learning_rate": 1e-3},
        {"batch_size": 3, "reference_cache_size": 0},
    ],
    ids=str,
)
def test_training_ends_as_with_padded_batches(tiny_path, records, tmp_path, monkeypatch, options):
    rows, packed, _ = trained(tiny_path, records, tmp_path / "packed", **options)
    monkeypatch.setattr(step_context, "may_pack", lambda model, longest: False)
    # To compare step by step, the same records must come together.
    sampler = trainer.StepSampler
    monkeypatch.setattr(trainer, "StepSampler", lambda *own, **given: sampler(*own, **{**given, "grouped": False}))
    others, padded, _ = trained(tiny_path, records, tmp_path / "padded", **options)
    assert rows[-1]["loss"] != rows[0]["loss"]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=1e-4)
    packed_report, padded_report = asdict(packed.report), asdict(padded.report)
    assert packed_report.pop("held_out") == padded_report.pop("held_out") == {}
    assert packed_report == pytest.approx(padded_report, rel=1e-3, abs=1e-6)


def test_training_packs_and_leaves_the_model_its_own_attention(tiny_path, records, tmp_path, monkeypatch):
    named, packs, plain = [], [], step_context.batch_of

    def watched(model, records, *, packed):
        packs.append(len(records) if packed else "padded")
        return plain(model, records, packed=packed)

    monkeypatch.setattr(step_context, "batch_of", watched)
    model = load_model(str(tiny_path), dtype="float32", device="cpu")
    config = TrainConfig(max_steps=3, stop=False, method="full", learning_rate=1e-3, save_steps=2)
    train(
        model,
        records,
        out=tmp_path / "run",
        config=config,
        on_step=lambda row: named.append(model.causal.config._attn_implementation),
    )
    assert packs == [6, 6, 6, 6], "three steps and the report"
    assert [*named, model.causal.config._attn_implementation] == ["sdpa"] * 4
    saved = [*(tmp_path / "run").rglob("config.json")]
    assert len(saved) == 2, "a checkpoint and the model"
    assert not any(WITHIN_RECORDS in file.read_text() for file in saved)


def test_the_name_comes_back_whatever_happens(model_of):
    model = model_of("qwen3")
    with pytest.raises(RuntimeError), within_records(model.backbone), within_records(model.backbone):
        assert model.causal.config._attn_implementation == WITHIN_RECORDS
        raise RuntimeError
    assert model.causal.config._attn_implementation == "sdpa"


def test_packed_and_padded_references_are_different_caches(tiny_model, records, tmp_path):
    keys = {ReferenceKey.of(tiny_model, Contents(records), packed=packed).sha for packed in (True, False)}
    assert len(keys) == 2
    trained(tiny_model.name, records, tmp_path)
    [index] = tmp_path.rglob("reference/*/index.json")
    assert json.loads(index.read_text())["packed"] is True


# --- batches of like length, where records cannot be packed ----------------------------------------------------------


@pytest.fixture
def collated(monkeypatch):
    """The records of every padded training batch, in order."""
    found, plain = [], step_context.batch_of

    def watched(model, records, *, packed):
        if not packed:
            found.append(records)
        return plain(model, records, packed=packed)

    monkeypatch.setattr(step_context, "batch_of", watched)
    return found


def epochs(collated, steps, epoch):
    """Record ids in the order of training, an epoch a list."""
    ids = [record.id for batch in collated[:steps] for record in batch]
    return [ids[start : start + epoch] for start in range(0, len(ids), epoch)]


def mean_gap(pairs):
    """Tokens by which one record of a pair is longer than the other."""
    gaps = [abs(fed_length(one) - fed_length(other)) for one, other in pairs]
    return sum(gaps) / len(gaps)


def test_padded_batches_are_of_like_length_and_every_record_comes_once_an_epoch(
    tiny_folder, records, tmp_path, collated, caplog
):
    many, options = lengthened(records, 32), {"batch_size": 2, "max_steps": 32, "reference_cache_size": 0}
    with caplog.at_level(logging.INFO, logger="anchorlwf"):
        trained(tiny_folder("gemma2"), many, tmp_path / "one", **options)
    assert caplog.text.count("eager attention cannot be told where records begin") == 1
    first, second = epochs(collated, 32, 32)
    assert sorted(first) == sorted(second) == sorted(record.id for record in many)
    assert first != second, "shuffled anew"
    assert mean_gap(collated[:32]) < 0.6 * mean_gap(itertools.combinations(many, 2))
    for seed, same in ((0, True), (1, False)):
        collated.clear()
        trained(tiny_folder("gemma2"), many, tmp_path / f"seed{seed}", seed=seed, **options)
        assert (epochs(collated, 32, 32) == [first, second]) is same


def test_resuming_goes_on_in_the_same_order(tiny_folder, records, tmp_path, collated):
    class StoppedError(Exception):
        pass

    def interrupt(row):
        if row["step"] == 7:
            raise StoppedError

    many, path = lengthened(records, 8), str(tiny_folder("gemma2"))
    config = TrainConfig(batch_size=2, max_steps=9, stop=False, save_steps=6, reference_cache_size=0)
    train(load_model(path), many, out=tmp_path / "whole", config=config)
    whole = [[record.id for record in batch] for batch in collated[:9]]
    with pytest.raises(StoppedError):
        train(load_model(path), many, out=tmp_path / "cut", config=config, on_step=interrupt)
    collated.clear()
    train(load_model(path), many, out=tmp_path / "cut", config=config, resume=True)
    assert [[record.id for record in batch] for batch in collated[:3]] == whole[6:]


def test_what_fits_in_one_batch_is_sampled_as_ever(tiny_folder, records, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(step_sampler, "get_length_grouped_indices", lambda *_, **__: asked.append(1))
    trained(tiny_folder("gemma2"), records, tmp_path, batch_size=6, max_steps=2)
    assert not asked


def test_steps_in_bfloat16_are_measured_in_float32(tiny_path, records, tmp_path, monkeypatch):
    seen, plain = [], step_context.completion_hidden

    def watched(net, backbone, batch):
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return plain(net, backbone, batch)

    monkeypatch.setattr(step_context, "completion_hidden", watched)
    rows, _, model = trained(tiny_path, records, tmp_path / "half", mixed_precision="bf16")
    assert (True, True) in seen
    assert all(half == steps for steps, half in seen), "only steps are computed in bfloat16"
    assert {weight.dtype for weight in model.net.parameters()} == {torch.float32}
    assert (tmp_path / "half" / "adapter" / "README.md").read_text().count("steps computed in bfloat16") == 1
    seen.clear()
    others, _, _ = trained(tiny_path, records, tmp_path / "whole")
    assert not any(half for _, half in seen), "a narrow network gains nothing"
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=0.05)


def test_attention_that_is_gone_back_through_on_a_cpu_is_computed_in_float32(model_of, monkeypatch):
    seen, plain = [], attention.sdpa_attention_forward

    def watched(module, query, *others, **options):
        seen.append((query.requires_grad, query.dtype, torch.is_autocast_enabled("cpu")))
        return plain(module, query, *others, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", watched)
    model, batch = model_of("llama"), pack(instructed(turns_of(MIXED)), share=True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        measured_ND = states(model, batch)
    assert {(graph, half) for graph, _, half in seen} == {(False, True)}, "what is only measured stays as it is"
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        hidden_ND = states(model, batch)
    assert {*seen} == {(True, torch.float32, False)}
    assert hidden_ND.dtype == measured_ND.dtype
    exact_ND = states(model, batch).detach()
    assert gap(hidden_ND.detach(), exact_ND) <= 1.1 * gap(measured_ND, exact_ND)


@pytest.mark.parametrize(("known", "half"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False)])
def test_a_wide_network_steps_in_bfloat16_where_the_processor_has_it(tiny_path, monkeypatch, known, half):
    model = load_model(str(tiny_path), dtype="float32", device="cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    monkeypatch.setattr(step_context, "_WIDE", 16)
    assert step_context._steps_in_half(model, TrainConfig()) == half
    assert not step_context._steps_in_half(model, TrainConfig(mixed_precision="no"))
