"""The loss against a brute force of its definition, and what it must never do: overflow or cancel.

Shape suffixes: N completion tokens, D hidden width, V vocabulary.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import CONFIDENCES, IMPLEMENTATIONS, Case, assert_near, brute, brute_gradient, make
from torch.nn import functional

from anchorlwf.errors import LossError

LOGITS = [{}, {"softcap": 3.0}, {"logit_scale": 0.25}, {"logit_scale": 0.5, "softcap": 2.0}]


@pytest.mark.parametrize("options", LOGITS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_value_and_gradient_are_those_of_the_definition(impl, direction, bias, head, options):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    case = make(confidences, bias=bias, own_ref_head=head, direction=direction, **options)
    share = torch.linspace(-1.0, 2.0, len(confidences))
    arguments = case.trained(head)
    divergence = case.loss(impl)
    assert divergence.dtype == torch.float32
    assert_near(divergence, brute(case), 1e-5)
    (divergence * share).sum().backward()
    for name, tensor in arguments.items():
        assert_near(tensor.grad, brute_gradient(case, name, share.double().numpy()), 1e-5)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_without_a_head_of_its_own_the_reference_has_ours_and_does_not_move(impl, head):
    case = make(bias=True)
    own = replace(case, ref_weight=case.weight.clone(), ref_bias=case.bias.clone())
    grads = []
    for original in (case, own):
        one = replace(original, hidden=case.hidden.clone(), weight=case.weight.clone(), bias=case.bias.clone())
        arguments = one.trained(head)
        loss = one.loss(impl)
        grads.append([loss, *torch.autograd.grad(loss.sum(), list(arguments.values()))])
    for ours, theirs in zip(*grads, strict=True):
        # Not bit by bit: a head that is shared is projected through once, with twice the rows.
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_half_precision_goes_in_and_float32_comes_out(impl, direction, head):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    case = make(
        confidences, width=16, vocabulary=40, bias=True, own_ref_head=True, dtype=torch.bfloat16, direction=direction
    )
    arguments = case.trained(head)
    divergence = case.loss(impl)
    assert divergence.dtype == torch.float32
    # The arithmetic is float32, so the values are exact for the rounded inputs; gradients are rounded to bfloat16.
    assert_near(divergence, brute(case), 1e-5)
    divergence.sum().backward()
    for name, tensor in arguments.items():
        assert tensor.grad.dtype == torch.bfloat16
        if name != "weight":
            assert_near(tensor.grad.float(), brute_gradient(case, name, np.ones(len(confidences))), 2e-2)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_does_not_reach_inside(impl):
    case = make(width=16, vocabulary=40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = case.loss(impl)
    assert torch.equal(inside, case.loss(impl))


# --- special cases of the method ---


def from_logits(
    logits: torch.Tensor, ref_logits: torch.Tensor, ids: list[int], conf: list[float], **options: object
) -> Case:
    """A case whose head is the identity, so that hidden states are logits."""
    return Case(logits, ref_logits, torch.eye(logits.shape[-1]), torch.tensor(ids), torch.tensor(conf), options=options)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_confidence_zero_is_the_divergence_from_the_reference(impl):
    case = make((0.0,) * 6, width=8, vocabulary=30)
    log_p, log_ref = ((h @ case.weight.T).log_softmax(-1) for h in (case.hidden, case.ref_hidden))
    for direction, (source, target) in (("forward", (log_p, log_ref)), ("reverse", (log_ref, log_p))):
        case.options["direction"] = direction
        expected = functional.kl_div(source, target, reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(case.loss(impl), expected)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_confidence_one_is_cross_entropy(impl):
    case = make((1.0,) * 6, width=8, vocabulary=30)
    expected = functional.cross_entropy(case.hidden @ case.weight.T, case.token_ids, reduction="none")
    torch.testing.assert_close(case.loss(impl), expected)


@given(
    st.floats(0, 0.9999), st.sampled_from(["forward", "reverse"]), st.sampled_from(IMPLEMENTATIONS), st.integers(0, 9)
)
def test_a_model_that_is_its_target_has_nothing_to_learn(confidence, direction, impl, token):
    confidence = float(np.float32(confidence))
    ref_logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(token), dtype=torch.float64)
    target = (1 - confidence) * ref_logits.softmax(-1)
    target[0, token] += confidence
    case = from_logits(target.log().float(), ref_logits.float(), [token], [confidence], direction=direction)
    case.trained(False)
    divergence = case.loss(impl)
    divergence.sum().backward()
    assert abs(divergence.item()) < 1e-6
    assert case.hidden.grad.abs().max() < 1e-6


@given(st.floats(0, 1), st.sampled_from(IMPLEMENTATIONS), st.integers(0, 1000))
def test_a_divergence_is_never_below_zero(confidence, impl, seed):
    assert make((confidence,) * 3, seed=seed).loss(impl).min() > -1e-6


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_extreme_logits_stay_finite_and_right(impl, direction, size):
    confidences = CONFIDENCES if direction == "forward" else CONFIDENCES[:-1]
    sides = torch.tensor([[1.0, -1.0, 0.0, 0.5], [-1.0, 1.0, 0.0, 0.5]]) * size
    # Model and reference certain of the same token, of different ones, and the anchor in each of these places.
    rows = [(m, r, token, c) for m in (0, 1) for r in (0, 1) for token in (0, 1, 2) for c in confidences]
    case = from_logits(
        sides[[row[0] for row in rows]],
        sides[[row[1] for row in rows]],
        [row[2] for row in rows],
        [row[3] for row in rows],
        direction=direction,
    )
    case.trained(False)
    divergence = case.loss(impl)
    divergence.sum().backward()
    assert divergence.isfinite().all()
    assert case.hidden.grad.isfinite().all()
    np.testing.assert_allclose(divergence.detach().numpy(), brute(case), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_token_is_a_loss_with_a_graph(impl, head):
    case = make((), bias=True)
    arguments = case.trained(head)
    loss = case.loss(impl)
    assert loss.shape == (0,)
    loss.sum().backward()
    for tensor in arguments.values():
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))


# --- arguments that are refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(1, 7, 5)}, r"hidden: expected shape \[N, D\], got \[1, 7, 5\]"),
        ({"ref_hidden": torch.zeros(6, 5)}, r"ref_hidden: expected shape \[7, 5\], got \[6, 5\]"),
        ({"weight": torch.zeros(9, 4)}, r"weight: expected shape \[9, 5\], got \[9, 4\]"),
        ({"ref_weight": torch.zeros(8, 5)}, r"ref_weight: expected shape \[9, 5\], got \[8, 5\]"),
        ({"ref_weight": torch.zeros(9, 4)}, r"ref_hidden: expected shape \[7, 4\], got \[7, 5\]"),
        ({"token_ids": torch.zeros(6, dtype=torch.long)}, r"token_ids: expected shape \[7\], got \[6\]"),
        ({"token_ids": torch.zeros(7, 1, dtype=torch.long)}, r"token_ids: expected shape \[7\], got \[7, 1\]"),
        ({"confidence": torch.zeros(6)}, r"confidence: expected shape \[7\], got \[6\]"),
        ({"bias": torch.zeros(8)}, r"bias: expected shape \[9\], got \[8\]"),
        ({"ref_bias": torch.zeros(8)}, r"ref_bias: expected shape \[9\], got \[8\]"),
        ({"token_ids": torch.zeros(7, dtype=torch.int32)}, r"token_ids: expected dtype int64, got torch.int32"),
        ({"token_ids": torch.full((7,), 9)}, r"token_ids: expected 0 to 8, got 9 to 9"),
        ({"token_ids": torch.tensor([0, 1, -1, 0, 0, 0, 0])}, r"token_ids: expected 0 to 8, got -1 to 1"),
        ({"confidence": torch.full((7,), 1.001)}, r"confidence: expected values in \[0, 1\], got \[1.00"),
        ({"confidence": torch.full((7,), -0.1)}, r"confidence: expected values in \[0, 1\], got \[-0.1"),
        ({"confidence": torch.full((7,), torch.nan)}, r"confidence: expected values in \[0, 1\], got \[nan"),
        ({"options": {"direction": "backward"}}, r"direction: expected 'forward' or 'reverse', got 'backward'"),
        ({"options": {"direction": "reverse"}}, r"'reverse': expected every anchor's confidence below 1, got 1"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(change, message):
    case = replace(make(), **change)
    for impl in IMPLEMENTATIONS:
        with pytest.raises(LossError, match=message):
            case.loss(impl)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(LossError, match="impl: expected auto or dense or chunked or triton, got 'fast'"):
        make().loss("fast")


def test_auto_is_one_of_the_implementations():
    case = make()
    assert any(torch.equal(case.loss("auto"), case.loss(impl)) for impl in IMPLEMENTATIONS)
