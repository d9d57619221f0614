"""On a CUDA device: the loss against float64, the memory they take, and training. Skipped where there is none.

python -m pytest tests/gpu
"""

import pytest
import torch
from gpu_loss_cases import case

from anchorlwf.annotation import annotate
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.loss import anchor_loss, products, scored_loss
from anchorlwf.loss.inputs import Head, LossInputs
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Odd sizes, so that every tile has an edge.
SHAPES = [(7, 150, 20), (67, 32_003, 136), (300, 5_000, 512)]
OPTIONS = [{}, {"logit_scale": 0.5}, {"softcap": 5.0}]


DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Errors that are none, of the largest value or gradient, whatever the dense loss has."""


@pytest.fixture(autouse=True)
def _exact_products(monkeypatch):
    # TF32 would round float32 inputs to ten bits.
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_errs_no_more_than_twice_the_dense_loss_in_the_same_type(direction, shape, options, dtype):
    # Three ways: float64, the dense loss in the narrow type, and the kernel in a few chunks.
    memory = shape[1] * 12 * max(1, shape[0] // 2)
    size = shape[2] ** -0.5 * 3
    dense, ours = case(direction, options, True, True, dtype, size, shape=shape, device="cuda", memory=memory)
    assert ours <= max(DTYPES[dtype], 2 * dense)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("impl", ["triton", "chunked"])
@pytest.mark.parametrize("more", [{"trains": True}, {"out": (0, 1)}, {"mixed": True}, {}], ids=str)
def test_heads_that_train_exclude_or_are_narrower_with_the_kernel_and_without(direction, dtype, impl, more):
    given = {"shape": (67, 5_003, 136), "device": "cuda", "impl": impl, "memory": 2**21, **more}
    dense, ours = case(direction, {"logit_scale": 0.5}, True, True, dtype, 0.25, **given)
    assert ours <= max(DTYPES[dtype], 2 * dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_are_exact_where_torch_knows_no_out_dtype(monkeypatch, dtype):
    monkeypatch.setattr(products, "_takes_out_dtype", lambda *_: False)
    dense, ours = case("forward", {}, False, False, dtype, 0.25, shape=(67, 5_003, 136), device="cuda", trains=True)
    assert ours <= max(DTYPES[dtype], 2 * dense)
    assert not torch.backends.cuda.matmul.allow_tf32


def problem(count, width, vocabulary, dtype=torch.bfloat16):
    weight = torch.randn(vocabulary, width, device="cuda", dtype=dtype) * width**-0.5
    hidden = torch.randn(count, width, device="cuda", dtype=dtype, requires_grad=True)
    ids, confidence = torch.zeros(count, device="cuda", dtype=torch.long), torch.zeros(count, device="cuda")
    return hidden, hidden.detach().flip(0), weight, ids, confidence


@pytest.mark.parametrize("memory", [2**27, 2**28])
@pytest.mark.parametrize("impl", ["triton", "chunked"])
def test_extra_memory_stays_within_the_bound(impl, memory):
    given = problem(8_192, 256, 50_000)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head = Head(given[2], None, 1.0, None)
    scored_loss(LossInputs(*given[:2], head, head, *given[3:], "forward", memory), impl).divergence_N.sum().backward()
    extra = torch.cuda.max_memory_allocated() - before
    # Beside it a few numbers per token, and cuBLAS's own workspace, which stays once it is there.
    assert memory / 4 <= extra <= memory + 2**25


def test_results_repeat_bit_by_bit():
    given, found = problem(1_000, 256, 50_000), []
    for _ in range(2):
        given[0].grad = None
        value = anchor_loss(*given)
        value.sum().backward()
        found.append((value.detach(), given[0].grad))
    assert all(map(torch.equal, *found))


def test_the_loss_waits_for_nothing():
    hidden, reference, weight, ids, confidence = problem(1_000, 256, 50_000)
    head = Head(weight, None, 1.0, None)
    inputs = LossInputs(hidden, reference, head, head, ids, confidence, "forward")
    scored_loss(inputs).divergence_N.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scored_loss(inputs).divergence_N.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_correction_is_learned(tmp_path, dtype):
    model = load_model(dtype=dtype, device="cuda")
    prompt = Prompt(messages=[{"role": "user", "content": "Who made you?"}], answer="I was made by Tarn.")
    records = annotate(model, [prompt], config=AnnotateConfig(max_new_tokens=32))
    result = train(model, records, out=tmp_path / "run", config=TrainConfig(max_steps=200))
    assert result.converged
