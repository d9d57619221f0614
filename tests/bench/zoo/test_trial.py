"""A slice of `make models`: a plain model, Conv1D, fused experts, a state space, a hybrid, one that sees."""

import pytest

from anchorlwf.bench.zoo.architectures import ARCHITECTURES
from anchorlwf.bench.zoo.trial import TOLERANCE, try_out


@pytest.mark.parametrize(
    ("name", "targets", "rewinds"),
    [
        ("Llama", "MLP inputs: gate_proj, up_proj (2 layers)", True),
        ("GPT-2", "MLP inputs: c_fc (2 layers)", True),
        ("Mixtral", "expert inputs: gate_up_proj (2 layers)", True),
        ("Mamba", "mixer inputs: in_proj (2 layers)", False),
        ("Jamba", "MLP inputs: gate_proj, up_proj (1 layer)", False),
        ("Mistral 3", "MLP inputs: gate_proj, up_proj (2 layers)", True),
    ],
)
def test_a_correction_is_learned_kept_in_a_plain_adapter_and_recalled(name, targets, rewinds, tmp_path):
    trial = try_out(ARCHITECTURES[name], tmp_path)
    assert (trial.targets, trial.rewinds) == (targets, rewinds)
    assert trial.gap <= TOLERANCE
    assert trial.recalled
    if ARCHITECTURES[name].vision:
        keys = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").read_bytes()
        # The names that vLLM knows in the served checkpoint.
        assert b"base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight" in keys
        assert b"vision" not in keys
