"""NaN and infinity: never saved, never decoded, and told as what they are, a fault of weights or of options."""

import json
import re
from pathlib import Path

import pytest
import torch
from commands import refused, run
from ddp_train import as_rank
from forks import forks, free_port
from training_runs import adapter, corrections, largest_gap, steps
from transformers import GPTJConfig, GPTJForCausalLM

from anchorlwf.annotation import annotate, retention_records, verify_records
from anchorlwf.arena.baselines.trl_methods import BaselinePrompt, train_dpo, train_grpo
from anchorlwf.config import AnnotateConfig, BaselineConfig, TrainConfig
from anchorlwf.data.jsonl import save_lines, save_records
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import GreedyDecoder, decode_batch
from anchorlwf.decoding.keep_records import HELD_OUT_TAG, keep_records
from anchorlwf.divergence import token_kl
from anchorlwf.errors import ModelError
from anchorlwf.evaluation import evaluate
from anchorlwf.model.batch import KeepTurn, collate, pack, shared_length
from anchorlwf.model.head import probe_head
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train
from anchorlwf.training.step_context import nonfinite_error
from anchorlwf.workflow import SideBySide

MESSAGES = [{"role": "user", "content": "Where was she born?"}]
PROMPTS = [{"messages": MESSAGES, "answer": "By the sea."}]
PROBE = Probe(id="a", kind="retain", messages=MESSAGES, expected="sea")
TOO_FAST = {"learning_rate": 1e25}


def damage(model, value=torch.nan, name="layers.1.mlp.down_proj.weight"):
    [weight] = [weight for own, weight in model.net.named_parameters() if own.endswith(name)]
    with torch.no_grad():
        weight.view(-1)[3] = value
    return model


@pytest.fixture
def damaged(fresh_model):
    return damage(fresh_model)


# --- training -------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize(("cache", "method"), [(8, "lora"), (0, "lora"), (8, "full")])
def test_a_loss_that_is_no_number_ends_training_names_the_records_and_leaves_what_was_there(
    tiny_path, tmp_path, cache, method
):
    records = corrections(load_model(str(tiny_path)), 3)
    train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=steps(2, method=method))
    kept = {path: data for path, data in contents(tmp_path / "run").items() if path.parent.name in ("adapter", "model")}
    kept[tmp_path / "run" / "train.json"] = (tmp_path / "run" / "train.json").read_bytes()
    config = steps(20, **TOO_FAST, reference_cache_size=cache, method=method)
    with pytest.raises(ModelError, match=r"loss of step [23]: expected finite numbers, got NaN or infinity") as raised:
        train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=config)
    assert all(record.id in str(raised.value) for record in records)
    assert "Lower learning_rate (it is 1e+25)" in str(raised.value)
    after = contents(tmp_path / "run")
    assert len(kept) > 2
    assert {path: after[path] for path in kept} == kept
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row, parse_constant=pytest.fail)["step"] for row in rows] in ([1], [1, 2])


def test_weights_ruined_by_a_step_at_which_drift_is_measured_are_told(tiny_path, tmp_path):
    model = load_model(str(tiny_path))
    held_out = Prompt(messages=[{"role": "user", "content": "What is number 2?"}], tags=["retain", HELD_OUT_TAG])
    records = [*corrections(model, 1), *keep_records(model, [held_out], 8)]
    with pytest.raises(ModelError, match="held-out answers: expected finite numbers, got NaN or infinity") as raised:
        train(model, records, out=tmp_path / "run", config=steps(1, **TOO_FAST))
    assert records[1].id in str(raised.value)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("all_anchors", [False, True])
def test_weights_that_the_last_step_ruins_are_not_saved(tiny_path, tmp_path, all_anchors):
    [record] = corrections(load_model(str(tiny_path)), 1)
    if all_anchors:  # no keep token, and so no divergence that would tell
        anchor = record.anchors[0].model_copy(update={"rejected_id": None})
        every = [anchor.model_copy(update={"position": i, "token_id": t}) for i, t in enumerate(record.completion_ids)]
        record = record.model_copy(update={"anchors": every})
    with pytest.raises(ModelError, match=f"tuned model after step 1: .* at the records {record.id}"):
        train(load_model(str(tiny_path)), [record], out=tmp_path / "run", config=steps(1, **TOO_FAST))
    assert not (tmp_path / "run" / "adapter").exists()
    assert not (tmp_path / "run" / "train.json").exists()


def test_only_the_record_at_fault_is_named(tiny_path, tmp_path, monkeypatch):
    model = load_model(str(tiny_path))
    records = corrections(model, 4)
    real = model.backbone.forward

    def overflowing(*arguments, **options):
        output = real(*arguments, **options)
        # As half precision overflows at one token and no other. Packed or padded, record 2 holds it alone; what its
        # prompt begins with may stand apart.
        ids = options["input_ids"]
        start = records[2].prompt_ids[shared_length(records) :]
        width = len(start)
        for row, column in [(r, c) for r in range(len(ids)) for c in range(ids.shape[1] - width + 1)]:
            if ids[row, column : column + width].tolist() == start:
                output["last_hidden_state"][row, column + width] += torch.inf
        return output

    monkeypatch.setattr(model.backbone, "forward", overflowing)
    others = [record.id for index, record in enumerate(records) if index != 2]
    config = steps(3, reference_cache_size=0)
    with pytest.raises(ModelError, match=f"loss of step 1: .*{records[2].id}") as raised:
        train(model, records, out=tmp_path / "run", config=config)
    assert not any(name in str(raised.value) for name in others)
    # The optimizer has changed nothing.
    fresh = load_model(str(tiny_path))
    fresh.attach_lora(config.rank, config.lora_alpha, config.lora_dropout, config.targets, config.seed)
    untouched = fresh.net.state_dict()
    assert all(torch.equal(weight, untouched[name]) for name, weight in model.net.state_dict().items())


def test_a_message_names_five_records_and_counts_the_rest(tiny_model):
    records = corrections(tiny_model, 7)
    turns = [KeepTurn(record.prompt_ids, record.completion_ids) for record in records]
    told = str(nonfinite_error("loss", turns, records, 1e-3))
    assert [record.id in told for record in records] == [True] * 5 + [False] * 2
    assert "and 2 more" in told


@pytest.mark.parametrize("batched", [pack, lambda records: collate(records, 0)], ids=["packed", "padded"])
def test_a_batch_gives_its_turns_back(tiny_model, batched):
    records = corrections(tiny_model, 4)
    records.append(records[0].model_copy(update={"completion_ids": records[0].completion_ids[:1], "anchors": []}))
    found = batched(records).turns([3, 0, 4])
    assert found == [KeepTurn(records[i].prompt_ids, records[i].completion_ids) for i in (3, 0, 4)]


def test_two_processes_end_together_and_name_the_records_of_both(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 4)
    save_records(tmp_path / "records.jsonl", records)
    steps(4, **TOO_FAST, batch_size=2).save(tmp_path / "two.yaml")
    arguments, log = [str(path) for path in (tiny_path, tmp_path / "records.jsonl", tmp_path / "two")], tmp_path / "log"
    port = free_port()
    ranks = [forks().Process(target=as_rank, args=(rank, port, log, arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    assert [process.exitcode for process in ranks] == [1, 1], log.read_text()
    told = re.findall(r"ModelError: (loss of step 2: .*)", log.read_text())
    assert len(told) == 2
    assert all(record.id in line for line in told for record in records)
    assert not (tmp_path / "two" / "adapter").exists()


def test_a_peer_whose_loss_is_no_number_is_told_too():
    prompt, rows = BaselinePrompt(MESSAGES, "sea", chosen="By the sea.", rejected="In a town."), []
    with pytest.raises(ModelError, match=r"loss of step \d: expected finite numbers, got nan"):
        train_dpo(load_model(), [prompt], BaselineConfig(**TOO_FAST, steps=6), on_step=rows.append)
    assert 1 <= len(rows) < 6


def test_a_peer_that_cannot_sample_any_more_is_told_too():
    model = load_model()
    model.attach_lora(8, 64.0, 0.0, "mlp", 0)
    damage(model, name="layers.0.mlp.up_proj.lora_A.default.weight")
    config = BaselineConfig(steps=2, num_generations=4, max_new_tokens=8)
    with pytest.raises(ModelError, match="sampling: expected finite numbers as probabilities"):
        train_grpo(model, [BaselinePrompt(MESSAGES, "sea")], config)


# --- models ---------------------------------------------------------------------------------------------------------

USES = {
    "annotate": lambda model, out: annotate(model, PROMPTS),
    "annotate without the original": lambda model, out: annotate(model, PROMPTS, config=AnnotateConfig(original=False)),
    "stream": lambda model, out: GreedyDecoder(model).complete(prompt_of(model), [], 8),
    "judge": lambda model, out: GreedyDecoder(model).judge(prompt_of(model), [], [5, 6]),
    "alternatives": lambda model, out: GreedyDecoder(model).alternatives(prompt_of(model), [5, 6]),
    "decode a batch": lambda model, out: list(decode_batch(model, [prompt_of(model)], 8)),
    "retention records": lambda model, out: retention_records(model, ["Who are you?"]),
    "evaluate": lambda model, out: evaluate(model, [PROBE], base=model, out=out / "results.json"),
    "chat": lambda model, out: SideBySide(model, 8).ask("Who are you?"),
    "drift": lambda model, out: token_kl(model, None, [KeepTurn(prompt_of(model), [5, 6])]),
    "probe the head": lambda model, out: probe_head(model),
}


def prompt_of(model):
    return model.codec.encode_prompt(MESSAGES)


@pytest.mark.parametrize("use", list(USES))
def test_a_model_whose_weights_hold_nan_is_refused_wherever_it_is_used(damaged, tmp_path, use):
    with pytest.raises(
        ModelError, match=r"got NaN or infinity, which stand in its weights .*layers\.1\.mlp\.down_proj"
    ):
        USES[use](damaged, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_records_are_neither_verified_nor_trained_with_it(tiny_model, damaged, tmp_path):
    records = corrections(tiny_model, 1)
    with pytest.raises(ModelError, match="which stand in its weights"):
        list(verify_records(damaged, records))
    with pytest.raises(ModelError, match="which stand in its weights"):
        train(damaged, records, out=tmp_path / "run", config=TrainConfig())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinite_weights_are_found_like_nan(fresh_model, value):
    with pytest.raises(ModelError, match=r"which stand in its weights model\.embed_tokens\.weight"):
        list(decode_batch(damage(fresh_model, value, "embed_tokens.weight"), [prompt_of(fresh_model)], 8))


def test_an_overflow_of_sound_weights_names_the_type(fresh_model):
    with torch.no_grad():
        fresh_model.causal.model.norm.weight.fill_(3e38)
    with pytest.raises(ModelError, match=r"got NaN or infinity in torch\.float32\. Load it in another dtype"):
        GreedyDecoder(fresh_model).complete(prompt_of(fresh_model), [], 8)


def test_a_drift_is_refused_whichever_of_the_two_models_is_damaged(tiny_model, damaged):
    turn = [KeepTurn(prompt_of(tiny_model), [5, 6])]
    for pair in ((tiny_model, damaged), (damaged, tiny_model)):
        with pytest.raises(ModelError, match="which stand in its weights"):
            token_kl(*pair, turn)


def test_the_commands_end_with_exit_code_2(damaged, tiny_model, tmp_path):
    folder = tmp_path / "damaged"
    damaged.net.save_pretrained(folder)
    damaged.codec.tokenizer.save_pretrained(folder)
    prompts, records, probes = (tmp_path / f"{name}.jsonl" for name in ("prompts", "records", "probes"))
    save_lines(prompts, PROMPTS)
    save_records(records, corrections(tiny_model, 2))
    save_lines(probes, [PROBE])
    for command in (
        ["annotate", prompts, "--out", tmp_path / "out.jsonl"],
        ["verify", records],
        ["train", records, "--out", tmp_path / "run"],
        ["evaluate", "--probes", probes, "--out", tmp_path / "results.json"],
        ["chat", "--prompt", "Who are you?"],
        ["fix", "--prompt", "Who are you?", "--answer", "No one.", "--out", tmp_path / "fix"],
    ):
        refused(run(*command, "--model", folder), r"expected finite numbers, got NaN or infinity, which stand in")
    assert not (tmp_path / "out.jsonl").exists()
    assert not (tmp_path / "results.json").exists()


def test_train_ends_with_exit_code_2_where_the_loss_is_no_number(tiny_path, tiny_model, tmp_path):
    save_records(tmp_path / "records.jsonl", corrections(tiny_model, 2))
    arguments = ["train", tmp_path / "records.jsonl", "--out", tmp_path / "run", "--model", tiny_path]
    refused(run(*arguments, "--retain", "none", "--learning-rate", "1e25"), r"loss of step 2: expected finite numbers")
    assert not (tmp_path / "run" / "train.json").exists()


# --- what is infinite on purpose ------------------------------------------------------------------------------------


@pytest.fixture
def excluding(base):
    """A model whose head excludes two tokens by a bias of -inf, as padded vocabularies sometimes are."""
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=base.vocabulary, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=96)
    net = GPTJForCausalLM(config).eval()
    with torch.no_grad():
        net.lm_head.weight.mul_(20)
        net.lm_head.bias[[7, 300]] = -torch.inf
    return LanguageModel(net, base.codec, "gptj")


@pytest.mark.parametrize("impl", ["auto", "chunked", "dense"])
def test_a_head_that_excludes_tokens_is_trained_and_measured(excluding, tmp_path, impl):
    probe_head(excluding)
    records, rows = corrections(excluding, 2), []
    result = train(
        excluding, records, out=tmp_path / "run", config=steps(10, learning_rate=5e-3, impl=impl), on_step=rows.append
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.report.keep_kl > 0
    assert all(value >= 0 for [kl] in [token_kl(excluding, None, records[:1])] for value in kl)


def test_the_implementations_train_such_a_head_alike(excluding, base, tmp_path):
    records, found = corrections(excluding, 2), []
    weights = {name: weight.clone() for name, weight in excluding.net.state_dict().items()}
    for impl in ("auto", "chunked", "dense"):
        net = GPTJForCausalLM(excluding.causal.config).eval()
        net.load_state_dict(weights)
        model = LanguageModel(net, base.codec, "gptj")
        train(model, records, out=tmp_path / impl, config=steps(5, impl=impl))
        found.append(adapter(tmp_path / impl))
    assert largest_gap(found[0], found[2]) < 1e-4
    assert largest_gap(found[1], found[2]) < 1e-4
