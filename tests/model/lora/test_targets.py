"""What `auto` chooses, by architecture: names of layers and parameters."""

import pytest
from zoo_models import zoo_model

from anchorlwf.errors import ModelError
from anchorlwf.model.lora.targets import choices, named


@pytest.mark.parametrize(
    ("architecture", "kind", "expected"),
    [
        ("Llama", "MLP inputs", {f"model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("gate", "up")}),
        ("GPT-2", "MLP inputs", {f"transformer.h.{i}.mlp.c_fc" for i in (0, 1)}),
        ("OPT", "MLP inputs", {f"model.decoder.layers.{i}.fc1" for i in (0, 1)}),
        ("BLOOM", "MLP inputs", {f"transformer.h.{i}.mlp.dense_h_to_4h" for i in (0, 1)}),
        # Not the routers, and not the scalar gates of the shared experts.
        (
            "Qwen2-MoE",
            "MLP inputs",
            {f"model.layers.{i}.mlp.shared_expert.{n}_proj" for i in (0, 1) for n in ("gate", "up")},
        ),
        (
            "DeepSeek-V3",
            "MLP inputs",
            {f"model.layers.{i}.mlp.{n}_proj" for i in ("0", "1") for n in ("gate", "up") if i == "0"}
            | {f"model.layers.1.mlp.shared_experts.{n}_proj" for n in ("gate", "up")},
        ),
        # Not the low-rank layers beside the MLP, which are shaped like one.
        ("Gemma 3n (text)", "MLP inputs", {f"model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("gate", "up")}),
        ("Nemotron-H", "MLP inputs", {f"model.layers.{i}.mixer.up_proj" for i in (1, 3)}),
        ("Mixtral", "expert inputs", {f"model.layers.{i}.mlp.experts.gate_up_proj" for i in (0, 1)}),
        ("gpt-oss", "expert inputs", {f"model.layers.{i}.mlp.experts.gate_up_proj" for i in (0, 1)}),
        (
            "LFM2-MoE",
            "MLP and expert inputs",
            {f"model.layers.0.feed_forward.{n}" for n in ("w1", "w3")}
            | {f"model.layers.{i}.feed_forward.experts.gate_up_proj" for i in (1, 2)},
        ),
        ("Mamba", "mixer inputs", {f"backbone.layers.{i}.mixer.in_proj" for i in (0, 1)}),
        # The language model inside, and not the vision tower, which has MLPs of its own.
        (
            "Gemma 3",
            "MLP inputs",
            {f"model.language_model.layers.{i}.mlp.{n}_proj" for i in (0, 1) for n in ("gate", "up")},
        ),
    ],
)
def test_auto_chooses(architecture, kind, expected):
    chosen = next(choices(zoo_model(architecture).causal))
    assert (chosen.kind, chosen.names) == (kind, expected)


def test_where_there_is_no_mlp_mlp_is_an_error_and_auto_goes_on():
    causal = zoo_model("DBRX").causal
    with pytest.raises(ModelError, match="LoRA targets mlp: expected MLP layers, got none recognised"):
        named(causal, "mlp")
    # Its experts are read past their module's forward pass.
    assert str(next(choices(causal))) == "attention inputs: Wqkv (2 layers)"


def test_targets_are_said_in_words():
    causal = zoo_model("GraniteMoE").causal
    assert str(next(choices(causal))) == "expert inputs: gate_up_proj (2 layers)"
    assert str(named(causal, ["q_proj"])) == "as asked: q_proj (2 layers)"
    # Only the last part of the head's name is no linear layer of a block.
    assert "lm_head" not in named(causal, "all-linear").names
