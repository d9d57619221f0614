"""The loss without full logits: the same whatever the chunks, in a memory that does not grow with the tokens."""

from dataclasses import replace

import pytest
import torch
from live_bytes import LiveBytes
from loss_cases import IMPLEMENTATIONS, make


@pytest.mark.parametrize("tokens", [1, 3, 10])
@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_chunked_is_dense_across_chunks(small_chunks, direction, head, tokens):
    confidences = (0.0, 0.4, 0.0, 0.9, 0.0) * 5
    if direction == "forward":
        # Certain anchors go through chunks of their own; more of them than one chunk holds, and in between the rest.
        confidences = tuple(c or float(i % 4 == 0) for i, c in enumerate(confidences))
    found = []
    for impl in IMPLEMENTATIONS:
        case = make(
            confidences, width=12, vocabulary=50, bias=True, own_ref_head=True, softcap=5.0, direction=direction
        )
        small_chunks(tokens, 50)
        arguments = case.trained(head)
        loss = case.loss(impl)
        share = torch.linspace(0.5, 1.5, len(confidences))
        found.append([loss.detach(), *torch.autograd.grad((loss * share).sum(), list(arguments.values()))])
    for dense, ours in zip(*found, strict=True):
        assert (dense - ours).norm() <= 1e-5 * dense.norm()


@pytest.mark.parametrize("head", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gradients_of_chunked_pass_gradcheck(small_chunks, direction, head):
    small_chunks(2, 7)
    confidences = (0.0, 0.3, 1.0, 0.99, 1.0) if direction == "forward" else (0.0, 0.3, 0.99)
    case = make(
        confidences,
        width=3,
        vocabulary=7,
        bias=True,
        own_ref_head=True,
        dtype=torch.float64,
        direction=direction,
        softcap=4.0,
        logit_scale=0.7,
    )
    arguments = case.trained(head)
    names = list(arguments)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        return replace(case, **dict(zip(names, values, strict=True))).loss("chunked")

    assert loss(*arguments.values()).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, tuple(arguments.values()))


@pytest.mark.parametrize("trained", [("hidden",), ("weight",), ("bias",), ("hidden", "bias"), ("weight", "bias"), ()])
def test_chunked_gives_a_gradient_to_whatever_asks_for_one(trained):
    found = []
    for impl in IMPLEMENTATIONS:
        case = make(bias=True, own_ref_head=True)
        for name in trained:
            getattr(case, name).requires_grad_()
        loss = case.loss(impl)
        assert loss.requires_grad == bool(trained)
        if trained:
            loss.sum().backward()
        for name in ("hidden", "weight", "bias", "ref_hidden", "ref_weight", "ref_bias"):
            assert (getattr(case, name).grad is not None) == (name in trained)
        found.append([getattr(case, name).grad for name in trained])
    for dense, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-5, atol=1e-6)


def test_chunked_leaves_its_inputs_alone():
    case = make(bias=True, own_ref_head=True, logit_scale=0.5, softcap=3.0)
    before = {name: tensor.clone() for name, tensor in vars(case).items() if isinstance(tensor, torch.Tensor)}
    case.trained(True)
    case.loss("chunked").sum().backward()
    for name, tensor in before.items():
        assert torch.equal(getattr(case, name).detach(), tensor)


# --- memory ---


WIDTH, VOCABULARY = 32, 20_000


def peak_bytes(impl: str, count: int, head: bool, direction: str = "forward") -> int:
    confidences = ((0.0, 0.5, 0.0, 1.0 if direction == "forward" else 0.9) * count)[:count]
    case = make(confidences, width=WIDTH, vocabulary=VOCABULARY, own_ref_head=head, direction=direction)
    case.trained(head)
    with LiveBytes() as live:
        case.loss(impl).sum().backward()
    return live.peak


def test_the_meter_sees_what_is_alive_and_what_is_freed():
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        for _ in range(5):
            (kept + 1).add_(1).view(10, 100).sum().item()
    assert 8000 <= live.peak <= 8100
    assert 4000 <= live.now <= 4100


@pytest.mark.parametrize(("head", "direction"), [(False, "forward"), (False, "reverse"), (True, "forward")])
def test_peak_memory_of_chunked_does_not_depend_on_the_number_of_tokens(small_chunks, head, direction):
    small_chunks(64, VOCABULARY)
    few, many, chunk = 256, 2048, 64 * VOCABULARY * 4
    low, high = peak_bytes("chunked", few, head, direction), peak_bytes("chunked", many, head, direction)
    # The gradient of hidden, made in the forward pass and scaled in the backward pass, and a few numbers per token.
    assert high - low <= (many - few) * (2 * WIDTH * 4 + 64)
    # A few buffers of one chunk; where the head trains, its gradient too.
    assert 2 * chunk <= low <= 5 * chunk + head * 2 * VOCABULARY * WIDTH * 4


def test_peak_memory_of_dense_does():
    assert peak_bytes("dense", 512, False) - peak_bytes("dense", 256, False) >= 256 * VOCABULARY * 4
