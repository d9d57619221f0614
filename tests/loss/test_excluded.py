"""The loss where a head excludes tokens: a bias of -inf gives them probability 0, in the model, the reference or both.

Shape suffixes: N completion tokens, V vocabulary.
"""

from dataclasses import replace

import pytest
import torch

from anchorlwf.loss import Direction, anchor_loss, chunked
from anchorlwf.loss.inputs import Head, LossInputs
from anchorlwf.loss.reference_summary import summarize, summary_loss
from anchorlwf.loss.scores import token_scores

WIDTH, VOCABULARY, OUT = 5, 11, [2, 7]
"""`OUT`: the tokens that are excluded."""
# Confidences of rows whose standing token is excluded, and of rows where it is not.
ROWS = [(token, confidence) for token in (2, 7, 4) for confidence in (0.0, 1e-6, 0.5, 0.999, 1.0)]
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Of the gradient, which comes back in the type of the hidden states; values are float32 and as near as that."""
DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")


def inputs(direction, *, model=True, reference=True, dtype=torch.float64, out=OUT, scale=1.0, shared=False):
    """`LossInputs` in a type; the numbers are those that the narrowest type can hold."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(torch.bfloat16 if dtype == torch.bfloat16 else torch.float16)

    rows = [row for row in ROWS if direction == "forward" or row[1] < 1]
    hidden, ref_hidden = normal(len(rows), WIDTH), normal(len(rows), WIDTH)
    weights, biases = [normal(VOCABULARY, WIDTH) for _ in range(2)], [normal(VOCABULARY) for _ in range(2)]
    for bias, excludes in zip(biases, (model, reference), strict=True):
        bias[out] = -torch.inf if excludes else bias[out]
    head, ref_head = (
        Head(weight.to(dtype), bias.to(dtype), scale, None) for weight, bias in zip(weights, biases, strict=True)
    )
    ids, confidence = zip(*rows, strict=True)
    return LossInputs(
        hidden.to(dtype),
        ref_hidden.to(dtype),
        head,
        head if shared else ref_head,
        torch.tensor(ids),
        torch.tensor(confidence),
        direction,
    )


def by_definition(given):
    """Values [N] and gradients by the hidden states [N, D], in float64, term by term; 0 log 0 is 0."""
    log_p, log_ref = (
        (hidden.double() @ head.weight_VD.double().T + head.bias_V.double()).mul(head.scale).log_softmax(-1)
        for hidden, head in ((given.hidden_ND, given.head), (given.ref_hidden_ND, given.ref_head))
    )
    values, grads = [], []
    standing = zip(given.token_ids_N.tolist(), given.confidence_N.double(), strict=True)
    for row, (token, confidence) in enumerate(standing):
        p, q = log_p[row].exp(), (1 - confidence) * log_ref[row].exp()
        q[token] += confidence
        left, right = (q, p) if given.direction == "forward" else (p, q)
        ratio = torch.where(left > 0, left.log() - right.log(), 0.0)
        values.append((left * ratio).sum())
        by_logits = p - q if given.direction == "forward" else torch.where(p > 0, p * (ratio - values[-1]), 0.0)
        grads.append(by_logits * given.head.scale @ given.head.weight_VD.double())
    return torch.stack(values), torch.stack(grads)


def ours(given, impl):
    hidden = given.hidden_ND.clone().requires_grad_()
    value = anchor_loss(
        hidden,
        given.ref_hidden_ND,
        given.head.weight_VD,
        given.token_ids_N,
        given.confidence_N,
        bias=given.head.bias_V,
        ref_weight=given.ref_head.weight_VD,
        ref_bias=given.ref_head.bias_V,
        direction=given.direction,
        logit_scale=given.head.scale,
        impl=impl,
    )
    value.sum().backward()
    return value.detach(), hidden.grad


def assert_exact(found, truth, direction, dtype):
    (value, grad), (true_value, true_grad) = found, truth
    assert not value.isnan().any()
    assert torch.equal(value.isinf(), true_value.isinf())
    finite = true_value.isfinite()
    bound = min(BOUNDS[dtype], 1e-5)
    torch.testing.assert_close(value[finite].double(), true_value[finite], rtol=bound, atol=bound)
    # Forward, the gradient is p - q, infinitely far off or not. Reverse, what is infinite has none.
    rows = torch.ones_like(finite) if direction == "forward" else finite
    torch.testing.assert_close(grad[rows].double(), true_grad[rows], rtol=BOUNDS[dtype], atol=BOUNDS[dtype])
    assert not grad[~rows].isfinite().all(-1).any()


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
@pytest.mark.parametrize("who", ["both", "model", "reference"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("impl", ["dense", "chunked", "auto"])
def test_value_and_gradient_are_those_of_the_definition(impl, direction, who, dtype):
    given = inputs(direction, model=who != "reference", reference=who != "model", dtype=dtype)
    truth = by_definition(given)
    if who == "both":
        # An anchor that the model can never give stays infinitely far off; a keep token that nobody gives is none.
        lost = (given.confidence_N > 0) & (given.token_ids_N != 4) & (direction == "forward")
        assert torch.equal(truth[0].isinf(), lost)
    assert_exact(ours(given, impl), truth, direction, dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("impl", ["dense", "chunked"])
def test_one_excluded_token_that_is_the_anchor_has_the_anchors_share(impl, direction):
    # Only the reference excludes it, and the target gives it the confidence: finite in both directions.
    given = inputs(direction, model=False, out=[2])
    truth = by_definition(given)
    anchor = (given.token_ids_N == 2) & (given.confidence_N > 0)
    assert truth[0][anchor].isfinite().all()
    assert_exact(ours(given, impl), truth, direction, torch.float64)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_chunks_and_blocks_do_not_show(monkeypatch, direction):
    monkeypatch.setattr(chunked, "CHUNK_BYTES", 3 * VOCABULARY * 8)
    monkeypatch.setattr(chunked, "BLOCK_ROWS", 2)
    given = inputs(direction)
    assert_exact(ours(given, "chunked"), by_definition(given), direction, torch.float64)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize("impl", ["dense", "chunked"])
def test_a_bias_that_the_scale_makes_infinite_excludes_too(impl, scale):
    given = inputs("forward", dtype=torch.float32, scale=scale)
    truth, lowest = by_definition(given), torch.finfo(torch.float32).min
    heads = [replace(head, bias_V=head.bias_V.nan_to_num(neginf=lowest)) for head in (given.head, given.ref_head)]
    given = replace(given, head=heads[0], ref_head=heads[1])
    if scale > 1:
        assert_exact(ours(given, impl), truth, "forward", torch.float32)
    else:
        value, grad = ours(given, impl)
        keep = (given.token_ids_N == 4) | (given.confidence_N == 0)
        torch.testing.assert_close(value[keep].double(), truth[0][keep], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad.double(), truth[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("impl", ["dense", "chunked"])
def test_the_heads_own_gradient_is_finite_and_nothing_at_what_it_excludes(impl, direction):
    given = inputs(direction)
    keep = given.token_ids_N == 4
    weight, bias = given.head.weight_VD.clone().requires_grad_(), given.head.bias_V.clone().requires_grad_()
    value = anchor_loss(
        given.hidden_ND[keep],
        given.ref_hidden_ND[keep],
        weight,
        given.token_ids_N[keep],
        given.confidence_N[keep],
        bias=bias,
        ref_weight=given.ref_head.weight_VD,
        ref_bias=given.ref_head.bias_V,
        direction=direction,
        impl=impl,
    )
    value.sum().backward()
    for grad in (weight.grad, bias.grad):
        assert grad.isfinite().all()
        assert not grad[OUT].any()
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_summary_gives_the_same(dtype):
    given = inputs("forward", dtype=dtype, shared=True)
    hidden = given.hidden_ND.clone().requires_grad_()
    summary = summarize(given.ref_hidden_ND, given.head, given.token_ids_N)
    value = summary_loss(hidden, summary, given.head, given.token_ids_N, given.confidence_N).divergence_N
    value.sum().backward()
    assert_exact((value.detach(), hidden.grad), by_definition(given), "forward", dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("impl", ["dense", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_share_too_small_for_a_float_is_a_share_all_the_same(impl, direction, dtype):
    # exp(-2000) is 0 in every type; what gives it is infinitely far from what excludes it.
    far, near = torch.tensor([[0.0, -2000.0, 1.0]], dtype=dtype), torch.tensor([[0.5, 0.0, 0.0]], dtype=dtype)
    out = torch.tensor([0.0, -torch.inf, 0.0], dtype=dtype)
    biases = (out, torch.zeros_like(out)) if direction == "forward" else (torch.zeros_like(out), out)
    states = (near, far) if direction == "forward" else (far, near)
    arguments = (torch.eye(3, dtype=dtype), torch.tensor([0]), torch.tensor([0.0]))
    value = anchor_loss(*states, *arguments, bias=biases[0], ref_bias=biases[1], direction=direction, impl=impl)
    assert value.tolist() == [torch.inf]


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=str)
def test_scores_of_excluded_tokens_are_minus_infinity_and_never_the_choice(dtype):
    given = inputs("forward", dtype=dtype)
    best, log_p = token_scores(given.head, given.hidden_ND, given.token_ids_N)
    assert not set(best.tolist()) & set(OUT)
    assert torch.equal(log_p == -torch.inf, given.token_ids_N != 4)
    assert not log_p.isnan().any()
