"""One number from per-token divergences, however the batch was cut."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.loss.reduce import Counts, reduce_loss


@given(
    data=st.data(),
    reduction=st.sampled_from(["token", "balanced"]),
    anchors=st.lists(st.booleans(), max_size=12),
    alpha=st.floats(0.1, 4),
    beta=st.floats(0.1, 4),
    hinge=st.booleans(),
)
def test_shares_of_micro_batches_add_up_to_the_batch(data, reduction, anchors, alpha, beta, hinge):
    count = len(anchors)
    anchor_N = torch.tensor(anchors, dtype=torch.bool)
    values = torch.linspace(0.5, 3.0, count, dtype=torch.float64)
    pull_N = torch.arange(count).remainder(3).ne(0).double() if hinge else None
    counts = Counts(anchors=sum(anchors), keeps=count - sum(anchors))
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    totals, grads = [], []
    for edges in ([0, count], [0, *cuts, count]):
        divergence_N = values.clone().requires_grad_()
        total = sum(
            reduce_loss(
                divergence_N[a:b],
                anchor_N[a:b],
                counts,
                reduction,
                alpha=alpha,
                beta=beta,
                pull_N=None if pull_N is None else pull_N[a:b],
            )
            for a, b in pairwise(edges)
        )
        total.backward()
        totals.append(total.item())
        grads.append(divergence_N.grad)
    assert totals[1] == pytest.approx(totals[0], rel=1e-12)
    assert torch.equal(grads[0], grads[1])
    # And the whole is what the formula says.
    weights = [(alpha if a else beta) * (1.0 if pull_N is None else pull_N[i].item()) for i, a in enumerate(anchors)]
    sizes = [count] * count if reduction == "token" else [counts.anchors if a else counts.keeps for a in anchors]
    expected = sum(w * v / n for w, v, n in zip(weights, values.tolist(), sizes, strict=True))
    assert totals[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reduction", ["token", "balanced"])
@pytest.mark.parametrize("anchors", [[], [True, True], [False, False]], ids=["no token", "only anchors", "no anchor"])
def test_a_side_that_is_empty_adds_nothing_and_keeps_the_graph(reduction, anchors):
    divergence_N = torch.full((len(anchors),), 3.0, requires_grad=True)
    counts = Counts(sum(anchors), len(anchors) - sum(anchors))
    loss = reduce_loss(divergence_N, torch.tensor(anchors, dtype=torch.bool), counts, reduction)
    assert loss.item() == (3.0 if anchors else 0.0)
    loss.backward()
    assert torch.equal(divergence_N.grad, torch.full((len(anchors),), 1 / max(1, len(anchors))))
