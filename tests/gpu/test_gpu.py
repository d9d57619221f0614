"""On a CUDA device: the kernels against float64, the memory they take, and training. Skipped where there is none.

python -m pytest tests/gpu
"""

import pytest
import torch
from gpu_loss_cases import case

from anchorlwf.annotation import annotate
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.loss import anchor_loss
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Odd sizes, so that every tile has an edge.
SHAPES = [(7, 150, 20), (67, 32_003, 136), (300, 5_000, 512)]
OPTIONS = [{}, {"logit_scale": 0.5}, {"softcap": 5.0}]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_err_no_more_than_the_dense_loss_in_the_same_type(direction, shape, options, dtype):
    # TF32 would round the inputs of both to ten bits.
    torch.backends.cuda.matmul.allow_tf32 = False
    dense, kernels = case(direction, options, True, True, dtype, shape[2] ** -0.5 * 3, shape=shape, device="cuda")
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert kernels <= max(limit, 4 * dense)


def test_auto_is_the_kernels_there(monkeypatch):
    from anchorlwf.loss.triton_kernels import triton_loss  # only Linux has it

    called = []
    monkeypatch.setattr(
        "anchorlwf.loss.triton_kernels.triton_loss", lambda inputs: called.append(inputs) or triton_loss(inputs)
    )
    hidden, weight = torch.randn(3, 64, device="cuda"), torch.randn(200, 64, device="cuda")
    anchor_loss(hidden, hidden, weight, torch.arange(3, device="cuda"), torch.zeros(3, device="cuda"))
    assert len(called) == 1


def test_extra_memory_does_not_grow_with_the_tokens():
    extra = []
    weight = torch.randn(50_000, 256, device="cuda", dtype=torch.bfloat16)
    for count in (512, 4_096):
        hidden = torch.randn(count, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        ids, confidence = torch.zeros(count, device="cuda", dtype=torch.long), torch.zeros(count, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        anchor_loss(hidden, hidden.detach(), weight, ids, confidence).sum().backward()
        extra.append(torch.cuda.max_memory_allocated() - before)
    # What grows is the gradient of the hidden states, which is asked for, in float32 and in their own type.
    assert extra[1] - extra[0] <= (4_096 - 512) * 256 * (4 + 2 + 2) + 2**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_correction_is_learned(tmp_path, dtype):
    model = load_model(dtype=dtype, device="cuda")
    prompt = Prompt(messages=[{"role": "user", "content": "Who made you?"}], answer="I was made by Tarn.")
    records = annotate(model, [prompt], config=AnnotateConfig(max_new_tokens=32))
    result = train(model, records, out=tmp_path / "run", config=TrainConfig(max_steps=200))
    assert result.converged
