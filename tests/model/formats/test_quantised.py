"""Bases quantised by bitsandbytes are trained on; without the package they are refused before any work."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from checkpoints import logits
from training_runs import corrections

from anchorlwf.bench.zoo.architectures import ARCHITECTURES, build
from anchorlwf.config import TrainConfig
from anchorlwf.errors import ModelError
from anchorlwf.model.formats.quantised import check_quantised
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train


def test_the_reason_is_told_where_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"the package bitsandbytes, .* Run `pip install bitsandbytes`"):
        check_quantised("model", {"quantization_config": {"quant_method": "bitsandbytes"}})


def test_whether_a_configuration_is_quantised(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    assert not check_quantised("model", {"quantization_config": None, "text_config": {}})
    assert check_quantised("model", {"text_config": {"quantization_config": {"load_in_4bit": True}}})
    with pytest.raises(ModelError, match=r"quantised by gptq\. Gradients through other quantised weights"):
        check_quantised("model", {"quantization_config": {"quant_method": "gptq"}})


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_is_trained_on_a_quantised_base_and_found_again(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    wide = {"hidden_size": 64, "intermediate_size": 128}
    net, tokenizer = build(replace(ARCHITECTURES["Llama"], settings=wide))
    net.save_pretrained(tmp_path / "whole")
    settings = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", quantization_config=settings, dtype=torch.float32)
    small.save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    model = load_model(str(tmp_path / "small"), dtype="float32", device="cpu")
    config = TrainConfig(max_steps=3, stop=False, learning_rate=1e-2)
    result = train(model, corrections(model, 1), out=tmp_path / "run", config=config)
    again = load_model(result.weights, dtype="float32", device="cpu")
    assert torch.equal(logits(again), logits(model))
    with model.reference():
        assert not torch.equal(logits(again), logits(model))
