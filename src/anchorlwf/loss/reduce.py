"""From per-token divergences to one number, exact under gradient accumulation and data parallelism.

An accumulation window over all ranks counts as one batch: every sum is divided by that batch's global counts, so how
it was cut into micro-batches cannot change the gradient.

Shape suffix: N completion tokens of one micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Counts", "Reduction", "reduce_loss"]

Reduction = Literal["token", "balanced"]


@dataclass(frozen=True)
class Counts:
    """Tokens of the global batch (all micro-batches of the window, all ranks)."""

    anchors: int
    keeps: int
    """Keep tokens of the records with anchors."""
    retained: int = 0
    """Tokens of keep records, which have no anchor."""


def reduce_loss(
    divergence_N: Tensor,
    anchor_N: Tensor,
    counts: Counts,
    reduction: Reduction,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    pull_N: Tensor | None = None,
    retained_N: Tensor | None = None,
) -> Tensor:
    """One micro-batch's share of the batch loss (a scalar, nats); shares add up to the whole.

    token:     sum_t w_t D_t / (anchors + keeps)               (the paper's sum, averaged)
    balanced:  alpha * mean over anchors + beta * mean over keep tokens
    where w_t is alpha at anchors and beta at keep tokens. Both are taken over the corrected records; keep records add
    beta * mean over their own tokens. So neither how many of them there are nor how long they are makes an anchor pull
    less. An empty side is legal: it contributes a zero that keeps its graph.

    Args:
        divergence_N: from `anchor_loss`.
        anchor_N: bool, True at anchors.
        counts: of the global batch.
        reduction: "token" or "balanced".
        alpha, beta: weights of anchors and keep tokens.
        pull_N: float factor per token, 0 where a held anchor no longer pulls (hinge); None: all 1.
        retained_N: bool, True at the tokens of keep records; None: there are none.
    """
    weighted_N = divergence_N if pull_N is None else divergence_N * pull_N
    own_N = ~anchor_N if retained_N is None else ~(anchor_N | retained_N)

    def sum_of(these_N: Tensor) -> Tensor:
        # Selecting would wait for the GPU, to know how many there are.
        return weighted_N.where(these_N, 0.0).sum()

    anchor_sum, keep_sum = sum_of(anchor_N), sum_of(own_N)
    retained = 0.0 if retained_N is None else beta * sum_of(retained_N) / max(1, counts.retained)
    if reduction == "token":
        return (alpha * anchor_sum + beta * keep_sum) / max(1, counts.anchors + counts.keeps) + retained
    return alpha * anchor_sum / max(1, counts.anchors) + beta * keep_sum / max(1, counts.keeps) + retained
