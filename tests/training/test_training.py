import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import adapter, corrections, largest_gap, steps, world_corrections
from transformers import OPTConfig, OPTForCausalLM

from anchorlwf.annotation import annotate, retention_records
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.divergence import token_kl
from anchorlwf.errors import ConfigError, ModelError, RecordError, StampError, StorageError
from anchorlwf.model.fingerprint import base_sha
from anchorlwf.model.head import probe_head
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import holding, train, trainer

ROOT = Path(__file__).parents[2]


# --- learning -------------------------------------------------------------------------------------------------------


def test_training_stops_when_every_anchor_holds_and_free_running_decoding_gives_the_answers(tmp_path):
    model = load_model()
    records = world_corrections(model, 4)
    result = train(model, records, out=tmp_path / "run")
    assert result.converged
    assert result.steps < 200
    assert result.report.anchors_held == result.report.anchors == sum(len(r.anchors) for r in records)
    decoder = GreedyDecoder(model)
    for record in records:
        assert decoder.complete(record.prompt_ids, [], len(record.completion_ids)).ids == record.completion_ids


def test_the_saved_adapter_is_the_tuned_model(tiny_path, tmp_path):
    model = load_model(str(tiny_path))
    records = corrections(model, 2)
    train(model, records, out=tmp_path / "run", config=steps(5, learning_rate=5e-3))
    again = load_model(str(tiny_path), adapter=tmp_path / "run" / "adapter")
    assert load_model(str(tmp_path / "run" / "adapter")).name == str(tiny_path)
    notes = json.loads((tmp_path / "run" / "adapter" / "anchorlwf.json").read_text())
    assert notes["base_sha"] == base_sha(load_model(str(tiny_path)).causal)
    assert notes["base"] == model.stamp.model_dump(mode="json")
    [kl] = token_kl(again, model, records[:1])
    assert max(map(abs, kl)) < 1e-6
    [moved] = token_kl(again, None, records[:1])
    assert max(moved) > 1e-4


def test_every_architecture_trains(any_model, tmp_path):
    model = load_model(any_model.name)
    records = corrections(model, 2)
    first = []
    train(model, records, out=tmp_path / "run", config=steps(12, learning_rate=5e-3), on_step=first.append)
    assert first[-1]["loss"] < first[0]["loss"]
    assert first[0]["keep_kl"] < 1e-5, "before the first step the model is its reference"


@pytest.mark.parametrize("reduction", ["token", "balanced"])
def test_both_reductions_and_the_reverse_direction_learn(tiny_path, tmp_path, reduction):
    model = load_model(str(tiny_path))
    records = corrections(model, 2, confidence=0.9, likely=True)
    rows = []
    config = steps(15, learning_rate=5e-3, reduction=reduction, direction="reverse", hinge=False)
    train(model, records, out=tmp_path / "run", config=config, on_step=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_full_fine_tuning_keeps_its_reference_and_moves_the_head_with_it(tiny_path, tmp_path):
    model, untouched = load_model(str(tiny_path)), load_model(str(tiny_path))
    records = corrections(model, 2)
    result = train(model, records, out=tmp_path / "run", config=steps(5, method="full", learning_rate=1e-3))
    assert Path(result.weights).name == "model"
    tuned = load_model(result.weights)
    with model.reference() as reference:
        for name, value in untouched.net.state_dict().items():
            assert torch.equal(reference.state_dict()[name], value)
    moved = tuned.net.get_output_embeddings().weight - untouched.net.get_output_embeddings().weight
    assert float(moved.abs().max()) > 0
    assert torch.equal(tuned.net.get_output_embeddings().weight, model.net.get_output_embeddings().weight)


def test_keep_records_lower_the_drift_where_no_correction_speaks(tiny_path, tmp_path):
    def drift(with_retention):
        model = load_model(str(tiny_path))
        records = corrections(model, 2)
        elsewhere = retention_records(
            model, ["tell me more", "and then?", "why is that"], AnnotateConfig(max_new_tokens=12)
        )
        config = steps(20, learning_rate=5e-3, beta=5.0)
        train(model, records + (elsewhere if with_retention else []), out=tmp_path / "run", config=config)
        values = [value for turn in token_kl(model, None, elsewhere) for value in turn]
        return sum(values) / len(values)

    assert drift(with_retention=True) < 0.5 * drift(with_retention=False)


def test_a_head_that_gets_lora_trains_and_saves(any_model, tmp_path):
    model = load_model(any_model.name)
    if model.causal.config.get_text_config().tie_word_embeddings:
        with pytest.raises(ModelError, match="tied head"):
            train(model, corrections(model, 1), out=tmp_path / "run", config=steps(1, targets=_head_name(model)))
        return
    rows = []
    config = steps(10, learning_rate=5e-3, targets=_head_name(model))
    train(model, corrections(model, 2), out=tmp_path / "run", config=config, on_step=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]


def _head_name(model):
    head = model.causal.get_output_embeddings()
    return [next(name.rsplit(".", 1)[-1] for name, module in model.causal.named_modules() if module is head)]


# --- exactness ------------------------------------------------------------------------------------------------------


def test_accumulation_and_two_processes_give_the_same_parameters(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 8)
    found = {}
    for accumulation in (1, 2, 4):
        out = tmp_path / f"accumulation{accumulation}"
        config = steps(4, batch_size=8 // accumulation, accumulation=accumulation, reference_cache_size=0)
        train(load_model(str(tiny_path)), records, out=out, config=config)
        found[accumulation] = adapter(out)
    save_records(tmp_path / "records.jsonl", records)
    steps(4, batch_size=4, save_steps=3).save(tmp_path / "two.yaml")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        str(ROOT / "tests" / "support" / "ddp_train.py"),
        str(tiny_path),
        str(tmp_path / "records.jsonl"),
        str(tmp_path / "two"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found["two processes"] = adapter(tmp_path / "two")
    assert len(list((tmp_path / "two" / "reference").rglob("*.safetensors"))) == 1, "one cache for both"
    assert largest_gap(found[1], found[2]) < 1e-5
    assert largest_gap(found[1], found[4]) < 1e-5
    assert largest_gap(found[1], found["two processes"]) < 1e-5
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4], "one process logs, and a resumed run logs no step twice"
    assert {path.name for path in (tmp_path / "two" / "checkpoints").iterdir()} == {"checkpoint-3"}
    first = load_file(tmp_path / "two-first" / "adapter_model.safetensors")
    assert largest_gap(first, adapter(tmp_path / "two")) == 0.0


def test_gradient_checkpointing_changes_nothing(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 2)
    for name, on in (("without", False), ("with", True)):
        config = steps(4, gradient_checkpointing=on)
        train(load_model(str(tiny_path)), records, out=tmp_path / name, config=config)
    assert largest_gap(adapter(tmp_path / "without"), adapter(tmp_path / "with")) < 1e-6


def test_reading_ahead_changes_nothing_and_ends_with_training(tiny_path, tmp_path, monkeypatch):
    records, found = corrections(load_model(str(tiny_path)), 6), {}
    drawn, draw = [], trainer._drawn
    monkeypatch.setattr(trainer, "_drawn", lambda *given: drawn.append(threading.current_thread().name) or draw(*given))
    for ahead in (False, True):
        monkeypatch.setattr(trainer.AnchorTrainer, "reads_ahead", ahead)
        drawn.clear()
        out = tmp_path / str(ahead)
        train(load_model(str(tiny_path)), records, out=out, config=steps(5, batch_size=2, accumulation=2))
        found[ahead] = adapter(out), [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        # The first is wanted at once; behind the last there is nothing, which is found out beforehand.
        assert len(drawn) == 5 + ahead
        assert ("MainThread" in drawn[1:]) is not ahead
    assert largest_gap(found[False][0], found[True][0]) == 0.0
    assert found[False][1] == found[True][1]
    assert not [one for one in threading.enumerate() if one.name.startswith("ThreadPoolExecutor")]


def test_what_goes_wrong_while_reading_ahead_is_told(tiny_path, tmp_path, monkeypatch):
    records = corrections(load_model(str(tiny_path)), 4)
    monkeypatch.setattr(trainer.AnchorTrainer, "reads_ahead", True)

    def remove(row):
        if row["step"] == 2:
            for file in (tmp_path / "run" / "reference").rglob("*.safetensors"):
                file.unlink()

    with pytest.raises(ConfigError, match="Start again"):
        train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=steps(9, batch_size=2), on_step=remove)


def test_resume_is_bit_exact(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 6)
    options = {"batch_size": 2, "lora_dropout": 0.1, "save_steps": 4, "drift_budget": 1e-6}
    train(load_model(str(tiny_path)), records, out=tmp_path / "whole", config=steps(8, **options))

    class StoppedError(Exception):
        pass

    def interrupt(row):
        if row["step"] == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(load_model(str(tiny_path)), records, out=tmp_path / "cut", config=steps(8, **options), on_step=interrupt)
    assert not (tmp_path / "cut" / "adapter").exists(), "nothing half-trained is left where a result belongs"
    train(load_model(str(tiny_path)), records, out=tmp_path / "cut", config=steps(8, **options), resume=True)
    assert largest_gap(adapter(tmp_path / "whole"), adapter(tmp_path / "cut")) == 0.0
    betas = [json.loads(line)["beta"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(line)["beta"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert betas[-4:] == whole[-4:]
    assert betas[-1] > 1.0


def test_the_flat_recipe_gives_the_losses_of_the_trainer(base, tmp_path):
    spec = importlib.util.spec_from_file_location("loop", ROOT / "recipes" / "loop.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    records = annotate(base, recipe.corrections(), "target")
    flat = recipe.loop(load_model(), records, steps=6, stop=False, say=lambda text: None)
    rows = []
    config = steps(
        6,
        learning_rate=recipe.RATE,
        rank=recipe.RANK,
        lora_alpha=8.0 * recipe.RANK,
        targets="mlp",
        drift_budget=recipe.BUDGET,
        hold=recipe.HOLD,
        beta=recipe.BETA,
    )
    train(load_model(), records, out=tmp_path / "run", config=config, on_step=rows.append)
    assert flat == pytest.approx([row["loss"] for row in rows], rel=1e-4)


# --- control --------------------------------------------------------------------------------------------------------


def test_a_tight_budget_really_lowers_the_drift(tmp_path):
    def end(budget):
        model = load_model()
        records = world_corrections(model, 4)
        # Fast enough to overshoot where nothing holds it.
        config = TrainConfig(drift_budget=budget, learning_rate=3e-3)
        return train(model, records, out=tmp_path / "run", config=config)

    loose, tight = end(1.0), end(5e-4)
    assert loose.report.keep_kl > 5e-4
    assert tight.converged
    assert tight.report.keep_kl <= 5e-4


def test_holding_asks_for_the_greedy_choice_and_a_share_of_the_target():
    greedy = torch.tensor([True, False, True, True])
    log_p = torch.tensor([0.95, 0.95, 0.5, 0.5]).log()
    confidence, ref_p = torch.tensor([1.0, 1.0, 1.0, 0.5]), torch.tensor([0.0, 0.0, 0.0, 0.1])
    # The last one's target is 0.5 + 0.5 * 0.1 = 0.55, of which 0.9 is 0.495.
    assert holding(greedy, log_p, confidence, ref_p.log(), 0.9).tolist() == [True, False, False, True]
    assert not holding(greedy, log_p, torch.zeros(4), ref_p.log(), 0.9).any(), "keep tokens are no anchors"


def test_without_hinge_anchors_pull_on(tmp_path):
    def last_probability(hinge):
        model = load_model()
        records = world_corrections(model, 1)
        train(model, records, out=tmp_path / "run", config=steps(40, learning_rate=1e-3, hinge=hinge))
        [anchor, *_] = records[0].anchors
        choices = GreedyDecoder(model).alternatives(records[0].prompt_ids, records[0].completion_ids)
        return choices[anchor.position].probability

    assert last_probability(hinge=False) > last_probability(hinge=True)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused_with_a_reason(tiny_path, tmp_path):
    model = load_model(str(tiny_path))
    [record] = corrections(model, 1)
    out = tmp_path / "run"
    with pytest.raises(RecordError, match="none complete"):
        train(model, [record.model_copy(update={"status": "draft"})], out=out)
    with pytest.raises(RecordError, match="at least one anchor"):
        train(model, [record.model_copy(update={"anchors": []})], out=out)
    with pytest.raises(ConfigError, match="got confidence 1, where"):
        train(model, [record], out=out, config=TrainConfig(direction="reverse"))
    stamp = record.model.model_copy(update={"tokenizer_sha": "0" * 64})
    with pytest.raises(StampError, match="tokenizer"):
        train(model, [record.model_copy(update={"model": stamp})], out=out)
    with pytest.raises(ConfigError, match="checkpoint"):
        train(model, [record], out=out, resume=True)
    with pytest.raises(ModelError, match="LoRA targets"):
        train(load_model(str(tiny_path)), [record], out=out, config=TrainConfig(targets=["no_such_layer"]))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable"):
        train(model, [record], out=tmp_path / "file" / "run")


def test_resume_with_other_options_is_refused(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 1)
    train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=steps(2, save_steps=1))
    with pytest.raises(ConfigError, match=r"max_steps 3 \(was 2\)"):
        train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=steps(3, save_steps=1), resume=True)


def test_a_head_that_does_more_than_we_know_is_refused(any_model):
    model = load_model(any_model.name)
    probe_head(model)
    config = model.causal.config.get_text_config()
    # The model's forward does not read this attribute, or reads another value: our reading is then wrong.
    config.logits_scaling = 3.0
    with pytest.raises(ModelError, match="output head"):
        probe_head(model)


def test_a_head_that_reads_a_decoder_within_the_base_trains(base, tmp_path):
    config = OPTConfig(
        vocab_size=base.vocabulary,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        word_embed_proj_dim=32,
    )
    model = LanguageModel(OPTForCausalLM(config).eval(), base.codec, "opt")
    probe_head(model)
    rows = []
    train(model, corrections(model, 1), out=tmp_path / "run", config=steps(10, learning_rate=5e-3), on_step=rows.append)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_model_whose_hidden_states_cannot_be_seen_is_refused(fresh_model, monkeypatch):
    unused = torch.nn.Linear(1, 1)
    monkeypatch.setattr(LanguageModel, "backbone_of", staticmethod(lambda net: unused))
    with pytest.raises(ModelError, match="hidden states"):
        probe_head(fresh_model)


def test_a_record_counts_once_where_there_are_more_micro_batches_than_records(fresh_model, tmp_path):
    records = corrections(fresh_model, 3)
    train(fresh_model, records, out=tmp_path / "run", config=steps(2, accumulation=8, batch_size=1))
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["records"] for row in rows] == [3, 3]
