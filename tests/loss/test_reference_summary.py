"""The loss from a summary of the reference, against the dense loss over both models' logits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from live_bytes import LiveBytes

from anchorlwf.loss import anchor_loss, chunked
from anchorlwf.loss.inputs import Head
from anchorlwf.loss.reference_summary import Summary, can_summarize, summarize, summary_loss

CONFIDENCES = [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]


def problem(confidences, *, width=6, vocabulary=11, bias=False, scale=1.0, size=1.0, seed=0, dtype=torch.float64):
    """(hidden, reference's hidden, head, ids, confidences)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    count = len(confidences)
    head = Head(normal(vocabulary, width), normal(vocabulary) if bias else None, scale, None)
    ids = torch.randint(0, vocabulary, (count,), generator=generator)
    return normal(count, width) * size, normal(count, width) * size, head, ids, torch.tensor(confidences)


def truth(hidden, ref_hidden, head, ids, confidence, share):
    """Value and gradient of the dense loss in float64."""
    wide = hidden.double().clone().requires_grad_()
    bias = None if head.bias_V is None else head.bias_V.double()
    loss = anchor_loss(
        wide,
        ref_hidden.double(),
        head.weight_VD.double(),
        ids,
        confidence,
        bias=bias,
        logit_scale=head.scale,
        impl="dense",
    )
    (loss * share).sum().backward()
    return loss.detach(), wide.grad


def ours(hidden, ref_hidden, head, ids, confidence, share):
    own = hidden.clone().requires_grad_()
    loss = summary_loss(own, summarize(ref_hidden, head, ids), head, ids, confidence).divergence_N
    (loss * share).sum().backward()
    return loss.detach(), own.grad


@given(
    st.lists(st.sampled_from(CONFIDENCES), max_size=9),
    st.booleans(),
    st.sampled_from([1.0, 0.25, 3.0]),
    st.integers(0, 10_000),
)
def test_it_is_the_dense_loss_in_value_and_gradient(confidences, bias, scale, seed):
    case = problem(confidences, bias=bias, scale=scale, seed=seed)
    share = torch.linspace(0.5, 2, len(confidences), dtype=torch.float64)
    for found, expected in zip(ours(*case, share), truth(*case, share), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("moved", [0.001, 1.0], ids=["near the reference", "far from it"])
def test_float32_rounds_as_the_loss_over_both_models_does(size, moved):
    hidden, ref_hidden, head, ids, confidence = problem(
        CONFIDENCES * 20, width=64, vocabulary=5_000, bias=True, size=size, dtype=torch.float32
    )
    case = torch.lerp(ref_hidden, hidden, moved), ref_hidden, head, ids, confidence
    share = torch.ones(len(ids))
    own = case[0].clone().requires_grad_()
    both = anchor_loss(own, ref_hidden, head.weight_VD, ids, confidence, bias=head.bias_V, impl="chunked")
    both.sum().backward()
    largest = float(head.logits(case[0]).abs().max())
    # On top of what rounds there: differences of numbers as large as the logits, where the other sums differences.
    slack = 4 * torch.finfo(torch.float32).eps * torch.tensor([largest, 1.0])
    for found, exact, peer, more in zip(
        ours(*case, share), truth(*case, share.double()), (both.detach(), own.grad), slack, strict=True
    ):
        assert found.dtype == torch.float32
        assert (found - exact).abs().max() <= 2 * (peer - exact).abs().max() + more


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_chunks_do_not_show(monkeypatch, tokens):
    case = problem(CONFIDENCES * 3, vocabulary=50)
    share = torch.ones(len(case[-1]), dtype=torch.float64)
    whole = ours(*case, share)
    monkeypatch.setattr(chunked, "CHUNK_BYTES", tokens * 50 * 8 // 2)
    for found, expected in zip(ours(*case, share), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_pass_gradcheck():
    hidden, ref_hidden, head, ids, confidence = problem(CONFIDENCES, bias=True, scale=0.7)
    summary = summarize(ref_hidden, head, ids)
    assert torch.autograd.gradcheck(
        lambda own: summary_loss(own, summary, head, ids, confidence).divergence_N, (hidden.requires_grad_(),)
    )


@given(st.floats(0, 1), st.integers(0, 1000), st.sampled_from([0.01, 1.0, 30.0]))
def test_a_divergence_is_never_below_zero_and_finite(confidence, seed, size):
    case = problem([confidence] * 3, seed=seed, size=size, dtype=torch.float32)
    value, grad = ours(*case, torch.ones(3))
    assert bool((value >= 0).all())
    assert bool(value.isfinite().all())
    assert bool(grad.isfinite().all())


@given(st.integers(0, 1000))
def test_a_model_that_is_its_reference_has_nothing_to_keep(seed):
    _, ref_hidden, head, ids, _ = problem([0.0] * 5, seed=seed)
    value, grad = ours(ref_hidden, ref_hidden, head, ids, torch.zeros(5), torch.ones(5))
    assert float(value.max()) < 1e-12
    assert float(grad.abs().max()) < 1e-12


@pytest.mark.parametrize("confidence", [0.0, 1e-6, 0.5, 1.0])
def test_a_token_that_the_reference_all_but_excludes(confidence):
    head = Head(torch.eye(4), torch.tensor([0.0, 0.0, 0.0, -torch.inf]), 1.0, None)
    ref_hidden = torch.tensor([[900.0, 0, 0, 0]] * 2)
    hidden, ids = torch.tensor([[900.0, 1, 0, 0]] * 2), torch.tensor([1, 3])
    value, grad = ours(hidden, ref_hidden, head, ids, torch.full((2,), confidence), torch.ones(2))
    # In float64 exp(-900) is 0. An anchor where the head itself says never stays infinitely far off.
    first = hidden[:1], ref_hidden[:1], head.weight_VD, ids[:1], torch.tensor([confidence])
    assert value[0] == pytest.approx(float(anchor_loss(*first, impl="dense")), rel=1e-5, abs=1e-4)
    assert float(value[1]) == (0.0 if confidence == 0 else torch.inf)
    assert bool(grad[0].isfinite().all())


@pytest.mark.parametrize("offset", [10.0, 100.0])
def test_what_all_logits_have_in_common_costs_digits_and_no_more(offset):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5_000, 64, generator=generator) / 4
    weight[:, 0] = 1.0
    ref_hidden = torch.randn(32, 64, generator=generator)
    hidden = ref_hidden + 0.01 * torch.randn(32, 64, generator=generator)
    hidden[:, 0] = ref_hidden[:, 0] = offset
    case = hidden, ref_hidden, Head(weight, None, 1.0, None), torch.arange(32), torch.zeros(32)
    value, exact = ours(*case, torch.ones(32))[0], truth(*case, torch.ones(32).double())[0]
    assert float((value - exact).abs().max()) <= 4 * torch.finfo(torch.float32).eps * (offset + 20)


def test_without_a_gradient_nothing_is_projected_back(monkeypatch):
    hidden, ref_hidden, head, ids, confidence = problem(CONFIDENCES)
    summary = summarize(ref_hidden, head, ids)
    expected = summary_loss(hidden.clone().requires_grad_(), summary, head, ids, confidence).divergence_N
    monkeypatch.setattr("anchorlwf.loss.reference_summary.project_back", None)
    assert torch.equal(summary_loss(hidden, summary, head, ids, confidence).divergence_N, expected)


def test_autocast_does_not_reach_inside():
    hidden, ref_hidden, head, ids, confidence = problem(CONFIDENCES, dtype=torch.float32)
    summary = summarize(ref_hidden, head, ids)
    plain = summary_loss(hidden, summary, head, ids, confidence).divergence_N
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(summary_loss(hidden, summary, head, ids, confidence).divergence_N, plain)


def test_a_summary_goes_through_one_tensor():
    _, ref_hidden, head, ids, _ = problem(CONFIDENCES)
    summary = summarize(ref_hidden, head, ids)
    stacked = summary.stacked()
    assert stacked.shape == (len(CONFIDENCES), 6 + 2)
    for found, expected in zip(Summary.of(stacked), summary, strict=True):
        assert torch.equal(found, expected)
    torch.testing.assert_close(summary.log_p_N, head.logits(ref_hidden).log_softmax(-1).gather(-1, ids[:, None])[:, 0])


def test_extra_memory_does_not_grow_with_the_tokens(monkeypatch):
    width, vocabulary, peaks = 256, 20_000, []
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 64 * vocabulary * 4)
    for count in (256, 2048):
        case = problem([0.0, 0.5, 0.0, 1.0] * (count // 4), width=width, vocabulary=vocabulary, dtype=torch.float32)
        hidden, ref_hidden, head, ids, confidence = case
        summary, own = summarize(ref_hidden, head, ids), hidden.requires_grad_()
        with LiveBytes() as live:
            summary_loss(own, summary, head, ids, confidence).divergence_N.sum().backward()
        peaks.append(live.peak)
    chunk = 2 * 64 * vocabulary * 4
    assert chunk <= peaks[0] <= 1.5 * chunk
    # The gradient, made in the forward pass and scaled in the backward pass; a few numbers per token.
    assert peaks[1] - peaks[0] <= (2048 - 256) * (width * 2 * 4 + 200)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({}, True),
        ({"softcap": 30.0}, False),
        ({"trains": True}, False),
        ({"dtype": torch.bfloat16}, False),
        ({"other": True}, False),
        ({"bias_trains": True}, False),
    ],
    ids=str,
)
def test_only_a_frozen_linear_head_of_both_can_be_summarized(change, allowed):
    weight = torch.randn(11, 6).to(change.get("dtype", torch.float32)).requires_grad_("trains" in change)
    bias = torch.randn(11).requires_grad_("bias_trains" in change)
    ref_weight = weight.detach().clone() if "other" in change else weight.detach()
    head = Head(weight, bias, 1.0, change.get("softcap"))
    assert can_summarize(head, Head(ref_weight, bias.detach(), 1.0, change.get("softcap"))) == allowed
