"""What was asked for is what trains, whatever PEFT makes of the names; otherwise the network stays as it was."""

import pytest
import torch
from checkpoints import logits
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from zoo_models import zoo_model

from anchorlwf.errors import ModelError
from anchorlwf.model.fingerprint import base_sha, network_sha
from anchorlwf.model.lora.attachment import attach, without_wrappers

RANK4 = LoraConfig(r=4, lora_alpha=8.0, task_type="CAUSAL_LM")


def adapted(model):
    return {without_wrappers(name) for name, _ in model.causal.named_modules() if "lora_A.default" in name}


@pytest.mark.parametrize("targets", ["auto", "mlp", ["gate_proj", "up_proj"], r".*\.(gate|up)_proj"])
@pytest.mark.parametrize("architecture", ["DeepSeek-V3", "GLM-4.5 (MoE)", "Qwen2-MoE"])
def test_shared_experts_and_dense_layers_are_not_lost_to_routed_ones(architecture, targets):
    model = zoo_model(architecture)
    asked = {
        name
        for name, module in model.causal.named_modules()
        if isinstance(module, nn.Linear) and name.endswith((".gate_proj", ".up_proj"))
    }
    assert any("shared_expert" in name for name in asked)
    model.attach_lora(4, 8.0, 0.0, targets, seed=0)
    assert model.targets.names == asked
    assert {name.removesuffix(".lora_A.default") for name in adapted(model)} == asked


def test_peft_alone_loses_them():
    # Where this fails, PEFT has changed, and the detour by parameters may go.
    model = zoo_model("DeepSeek-V3")
    net = get_peft_model(model.causal, LoraConfig(target_modules=["gate_proj", "up_proj"]))
    assert all(".experts." in name for name, weight in net.named_parameters() if weight.requires_grad)


def test_all_linear_means_all_of_them_in_a_mixture_too():
    model = zoo_model("DeepSeek-V3")
    linear = {name for name, module in model.causal.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    model.attach_lora(4, 8.0, 0.0, "all-linear", seed=0)
    assert linear <= model.targets.names
    # As PEFT has it, the routed experts belong to them.
    assert "model.layers.1.mlp.experts.down_proj" in model.targets.names


@pytest.mark.parametrize("architecture", ["Mixtral", "GraniteMoE", "GPT-2", "DeepSeek-V3"])
def test_an_adapter_changes_the_answers_and_not_the_base(architecture):
    model = zoo_model(architecture)
    before, sha, plain = network_sha(model.causal), base_sha(model.causal), logits(model)
    model.attach_lora(4, 8.0, 0.0, "all-linear" if architecture == "Mixtral" else "auto", seed=0)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.5)
    assert not torch.equal(logits(model), plain)
    with model.reference():
        assert torch.equal(logits(model), plain)
    # Two parameters of one module have two wrappers, one in the other.
    assert (network_sha(model.causal), base_sha(model.causal)) == (before, sha)


def test_layers_that_the_network_does_not_use_are_refused():
    model = zoo_model("Llama")
    model.causal.model.layers[0].mlp.spare = nn.Linear(32, 64)
    plain = logits(model)
    with pytest.raises(ModelError, match=r"got .*spare\.lora_A\.default\.weight.*, which change nothing"):
        model.attach_lora(4, 8.0, 0.0, ["spare", "up_proj"], seed=0)
    assert not any(isinstance(module, LoraLayer) for module in model.causal.modules())
    assert torch.equal(logits(model), plain)
    del model.causal.model.layers[0].mlp.spare
    model.attach_lora(4, 8.0, 0.0, "auto", seed=0)


def test_dropout_on_a_parameter_is_refused():
    model = zoo_model("Mixtral")
    with pytest.raises(ModelError, match=r"lora_dropout: expected 0 .*, got 0\.1 with model\.layers\.0\.mlp\.experts"):
        model.attach_lora(4, 8.0, 0.1, "auto", seed=0)
    assert not any(isinstance(module, LoraLayer) for module in model.causal.modules())


def test_the_network_is_in_eval_mode_and_has_no_gradients_afterwards():
    model = zoo_model("GPT-2")
    net, _ = attach(model.causal, RANK4, "auto")
    assert not any(module.training for module in net.modules())
    assert all(weight.grad is None for weight in net.parameters())


def test_names_without_wrappers():
    assert without_wrappers("a.base_layer.base_layer.w") == "a.w"
    assert without_wrappers("a.base_layer") == "a"
    assert without_wrappers("a.my_base_layer.w") == "a.my_base_layer.w"
