"""Greedy choice and log-probability of standing tokens, and how far those are from being it, as every loss tells."""

import pytest
import torch

from anchorlwf.loss import chunked, products, scored_loss
from anchorlwf.loss.inputs import Head, LossInputs
from anchorlwf.loss.reference_summary import summarize, summary_loss
from anchorlwf.loss.scores import token_scores

CONFIDENCES = [0.0, 1.0, 0.5, 0.0, 1.0, 0.0, 0.9, 0.0]


def given(direction="forward", dtype=torch.float32, **shape):
    """Every second token is the model's greedy choice."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    confidence = torch.tensor(CONFIDENCES)
    if direction == "reverse":
        confidence = confidence.clamp(max=0.9)
    count = len(confidence)
    head = Head(normal(30, 6), normal(30), shape.get("scale", 1.0), shape.get("softcap"))
    hidden, ids = normal(count, 6), torch.randint(0, 30, (count,), generator=generator)
    ids[::2] = head.logits(hidden).argmax(-1)[::2]
    return LossInputs(hidden, normal(count, 6), head, head, ids, confidence, direction)


def expected(inputs):
    logits = inputs.head.logits(inputs.hidden_ND)
    return logits.gather(-1, inputs.token_ids_N[:, None])[:, 0] - logits.amax(-1)


def log_p(inputs, hidden):
    return inputs.head.logits(hidden).log_softmax(-1).gather(-1, inputs.token_ids_N[:, None])[:, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [{}, {"scale": 0.5, "softcap": 4.0}], ids=["plain", "scaled and capped"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", ["dense", "chunked"])
def test_the_greedy_choice_is_0_behind_and_others_are_below(monkeypatch, impl, direction, shape, dtype):
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 3 * 30 * 4)
    inputs = given(direction, dtype, **shape)
    found = scored_loss(inputs, impl)
    torch.testing.assert_close(found.behind_N, expected(inputs), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.behind_N == 0, inputs.head.logits(inputs.hidden_ND).argmax(-1) == inputs.token_ids_N)
    log_ps = [log_p(inputs, inputs.hidden_ND), log_p(inputs, inputs.ref_hidden_ND)]
    torch.testing.assert_close(found.log_p_N, log_ps[0], rtol=1e-5, atol=1e-5)
    # At confidence 1 the target has no share of the reference.
    part = inputs.confidence_N < 1
    torch.testing.assert_close(found.ref_log_p_N[part], log_ps[1][part], rtol=1e-5, atol=1e-5)
    assert not any(scores.requires_grad for scores in found[1:])


def test_a_summary_tells_it_too(monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 2 * 30 * 4)
    inputs = given()
    summary = summarize(inputs.ref_hidden_ND, inputs.head, inputs.token_ids_N)
    hidden = inputs.hidden_ND.requires_grad_()
    found = summary_loss(hidden, summary, inputs.head, inputs.token_ids_N, inputs.confidence_N)
    torch.testing.assert_close(found.behind_N, expected(inputs), rtol=1e-5, atol=1e-5)
    assert (found.behind_N == 0).tolist() == [True, False] * 4
    torch.testing.assert_close(found.log_p_N, log_p(inputs, inputs.hidden_ND).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.ref_log_p_N, log_p(inputs, inputs.ref_hidden_ND), rtol=1e-5, atol=1e-5)
    assert found.divergence_N.requires_grad
    assert not any(scores.requires_grad for scores in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1.0, None), (0.5, 4.0)], ids=["plain", "scaled and capped"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_scores_of_tokens_are_those_of_full_logits(small_chunks, monkeypatch, dtype, shape, count):
    small_chunks(3, 50)
    monkeypatch.setattr(products, "TILE_BYTES", 12 * 20 * 4)  # a narrow head is widened in several parts
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(50, 12, generator=generator).to(dtype), torch.randn(50, generator=generator).to(dtype)
    hidden, ids = torch.randn(count, 12, generator=generator).to(dtype), torch.arange(count)
    head = Head(weight, bias, *shape)
    best, log_p = token_scores(head, hidden, ids)
    logits = head.logits(hidden)
    assert torch.equal(best, logits.argmax(-1))
    torch.testing.assert_close(log_p, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0].float())
    assert log_p.dtype == torch.float32
