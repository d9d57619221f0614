"""A merged model is written only if it answers as base and adapter do."""

import json
import shutil

import pytest
import torch
from commands import refused, run, well
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anchorlwf.data.jsonl import load_records
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.errors import ConfigError, ModelError
from anchorlwf.model.language_model import load_model
from anchorlwf.model.model_files import embedded_path
from anchorlwf.workflow import merge as merging


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merged_model_gives_the_corrected_answers(job, tmp_path, dtype):
    report = json.loads(well("merge", job / "run", "--out", tmp_path / "m", "--dtype", dtype, "--json").out)
    records = [record for record in load_records(job / "records.jsonl") if record.anchors]
    assert (report["records"], report["reproduced"], report["dtype"]) == (len(records), len(records), dtype)
    assert report["tokens"] > sum(len(record.completion_ids) for record in records)
    assert report["largest_difference"] < (1e-3 if dtype == "float32" else 1)
    assert json.loads((tmp_path / "m" / "merge.json").read_text()) == report
    # Any library loads it, without PEFT and without us.
    net = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert str(net.dtype) == f"torch.{dtype}"
    model = load_model(str(tmp_path / "m"), dtype=dtype)
    for batch in decode_batch(model, [record.prompt_ids for record in records], 64):
        assert {index: answer.ids for index, answer in batch} == {
            index: record.completion_ids for index, record in enumerate(records)
        }
    card = (tmp_path / "m" / "README.md").read_text()
    assert "library_name: transformers" in card
    assert "merge" not in card


def test_an_earlier_merge_is_replaced_and_nothing_else(job, tmp_path):
    plain = well("merge", job / "run" / "adapter", "--out", tmp_path / "m")
    # Beside a lone adapter nobody says where the records lie.
    assert "corrected answers reproduced: unknown; --records names them" in plain.out
    again = well("merge", job / "run" / "adapter", "--out", tmp_path / "m", "--records", job / "records.jsonl")
    assert "corrected answers reproduced: 2 of 2" in again.out
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    done = run("merge", job / "run", "--out", tmp_path / "mine")
    refused(done, r"--out .*mine: expected a folder that is empty, or that merge wrote, got other files")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_model_that_sees_keeps_what_it_sees_with(job, tmp_path):
    shutil.copytree(embedded_path(), tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"image_processor_type": "SiglipImageProcessor"}')
    merging.merge(job / "run", tmp_path / "m", model=str(tmp_path / "base"))
    kept = (tmp_path / "m" / "preprocessor_config.json").read_text()
    assert kept == '{"image_processor_type": "SiglipImageProcessor"}'
    assert not (tmp_path / "m" / "processor_config.json").exists()


def test_a_merge_that_answers_otherwise_is_not_kept(job, tmp_path, monkeypatch):
    def spoiled(tuned, stage, facts, dtype):
        writing(tuned, stage, facts, dtype)
        weights = load_file(stage / "model.safetensors")
        name = next(name for name in weights if "down_proj" in name)
        weights[name] = torch.zeros_like(weights[name])
        save_file(weights, stage / "model.safetensors", metadata={"format": "pt"})

    writing = merging._write
    monkeypatch.setattr(merging, "_write", spoiled)
    with pytest.raises(ModelError, match=r"expected the answers of base and adapter, got \d of 2 corrected answers"):
        merging.merge(job / "run", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_merge_whose_logits_are_right_but_not_its_answers_is_not_kept():
    measured = {"out": "m", "base": "b", "adapter": "a", "tokens": 9, "mean_kl": 1e-3, "choices_changed": 1}
    whole = {**measured, "dtype": "bfloat16", "largest_difference": 0.2, "records": 3, "known": 2, "reproduced": 2}
    assert merging.MergeReport(**whole).holds
    assert not merging.MergeReport(**{**whole, "reproduced": 1}).holds
    assert not merging.MergeReport(**{**whole, "mean_kl": 0.02}).holds
    assert not merging.MergeReport(**{**whole, "dtype": "float32"}).holds


def test_there_must_be_an_adapter(job, tmp_path):
    with pytest.raises(ModelError, match=r"expected a folder with adapter_config\.json"):
        merging.merge(tmp_path / "none", tmp_path / "m")
    shutil.copytree(job / "run" / "adapter", tmp_path / "run" / "model")
    (tmp_path / "run" / "model" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="is a model already"):
        merging.merge(tmp_path / "run", tmp_path / "m")
    with pytest.raises(ConfigError, match="--out"):
        merging.merge(job / "run", job)
