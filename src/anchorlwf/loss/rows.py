"""Logits of a few tokens, turned in place into their divergences and into the gradient by the logits.

Each function takes raw buffers and leaves the gradient in the model's one, so that nothing of width V is allocated and
the few rows stay in a core's cache from the first pass to the last. Every sum is one of exp(logit - largest logit).

The last two functions finish a divergence from sums over the vocabulary, of which the token's own entry is kept out,
so that nothing cancels where a distribution is certain. `own` is the token's logit less the largest one.

A head excludes a token by a bias of -inf. Its logit minus the other head's is no number then, but weighs nothing: such
entries are set to 0. Where a divergence is infinite is decided apart (`Exclusions.infinite`).

Shape suffixes: B tokens of one block, V vocabulary, E tokens that a head excludes.
"""

import torch
from torch import Tensor

from anchorlwf.loss.inputs import Head

__all__ = [
    "RowScores",
    "certain_rows",
    "finish_logits",
    "forward_rows",
    "forward_terms",
    "reverse_rows",
    "reverse_terms",
]

RowScores = tuple[Tensor, Tensor, Tensor, Tensor]
"""[B] each, in the order of `Scored`."""


def finish_logits(logits_BV: Tensor, head: Head, slope_BV: Tensor | None = None) -> None:
    """Bias, scale and soft cap, in place. The cap's slope, of which the gradient will need it, goes to `slope_BV`."""
    if head.bias_V is not None:
        logits_BV.add_(head.bias_V)
    if head.scale != 1.0:
        logits_BV.mul_(head.scale)
    if head.softcap is not None:
        logits_BV.div_(head.softcap).tanh_()
        if slope_BV is not None:
            torch.mul(logits_BV, logits_BV, out=slope_BV).neg_().add_(1.0)
        logits_BV.mul_(head.softcap)


def _exp_of_shifted(logits_BV: Tensor, ids_B1: Tensor) -> tuple[Tensor, Tensor]:
    """exp(logits - largest) in place; (its sum, the token's shifted logit), [B, 1] each."""
    own_B1 = logits_BV.sub_(logits_BV.amax(-1, keepdim=True)).gather(-1, ids_B1)
    return logits_BV.exp_().sum(-1, keepdim=True), own_B1


def certain_rows(logits_BV: Tensor, ids_B1: Tensor, *, grad: bool) -> RowScores:
    """Confidence 1: plain cross-entropy. Leaves p - delta(token). The reference is not asked; 0 stands in its place."""
    norm_B1, own_B1 = _exp_of_shifted(logits_BV, ids_B1)
    if grad:
        logits_BV.div_(norm_B1).scatter_add_(-1, ids_B1, torch.full_like(own_B1, -1.0))
    divergence_B1 = norm_B1.log() - own_B1
    return _columns(divergence_B1, own_B1, -divergence_B1, torch.zeros_like(own_B1))


def _columns(*found_B1: Tensor) -> RowScores:
    divergence_B1, own_B1, log_p_B1, ref_log_p_B1 = found_B1
    return divergence_B1[:, 0], own_B1[:, 0], log_p_B1[:, 0], ref_log_p_B1[:, 0]


def _without(gap_BV: Tensor, excluded_E: Tensor | None) -> Tensor:
    """Differences of logits, in place 0 at tokens that a head excludes."""
    return gap_BV if excluded_E is None else gap_BV.index_fill_(-1, excluded_E, 0.0)


def forward_rows(
    logits_BV: Tensor,
    logits_ref_BV: Tensor,
    spare_BV: Tensor,
    ids_B1: Tensor,
    conf_B1: Tensor,
    excluded_E: Tensor | None,
    *,
    grad: bool,
) -> RowScores:
    """Forward KL(q || p). Leaves p - q; uses up the reference's logits and `spare_BV`."""
    logits_BV.sub_(logits_BV.amax(-1, keepdim=True))
    ref_BV = logits_ref_BV.sub_(logits_ref_BV.amax(-1, keepdim=True))
    own_B1, own_ref_B1 = logits_BV.gather(-1, ids_B1), ref_BV.gather(-1, ids_B1)
    gap_BV = _without(torch.sub(ref_BV, logits_BV, out=spare_BV), excluded_E)
    norm_B1 = logits_BV.exp_().sum(-1, keepdim=True)
    others_B1 = ref_BV.exp_().scatter_(-1, ids_B1, 0.0).sum(-1, keepdim=True)
    norm_ref_B1 = others_B1 + own_ref_B1.exp()
    gap_B1 = gap_BV.mul_(ref_BV).sum(-1, keepdim=True)
    log_norm_B1 = norm_B1.log()
    divergence_B1, m_B1 = forward_terms(gap_B1, others_B1, norm_ref_B1, log_norm_B1, own_B1, own_ref_B1, conf_B1)
    if grad:
        share_B1 = (1 - conf_B1) / norm_ref_B1
        logits_BV.div_(norm_B1).addcmul_(ref_BV, share_B1, value=-1.0).scatter_add_(-1, ids_B1, -m_B1)
    return _columns(divergence_B1, own_B1, own_B1 - log_norm_B1, own_ref_B1 - norm_ref_B1.log())


def reverse_rows(
    logits_BV: Tensor,
    logits_ref_BV: Tensor,
    spare_BV: Tensor,
    ids_B1: Tensor,
    conf_B1: Tensor,
    excluded_E: Tensor | None,
    *,
    grad: bool,
) -> RowScores:
    """Reverse KL(p || q) for confidences below 1. Leaves p (log p - log q - KL); uses up the rest.

    Where it is infinite there is no gradient.
    """
    logits_BV.sub_(logits_BV.amax(-1, keepdim=True))
    logits_ref_BV.sub_(logits_ref_BV.amax(-1, keepdim=True))
    own_B1, own_ref_B1 = logits_BV.gather(-1, ids_B1), logits_ref_BV.gather(-1, ids_B1)
    log_norm_ref_B1 = torch.exp(logits_ref_BV, out=spare_BV).sum(-1, keepdim=True).log()
    gap_BV = _without(torch.sub(logits_BV, logits_ref_BV, out=logits_ref_BV), excluded_E)
    others_B1 = logits_BV.exp_().scatter_(-1, ids_B1, 0.0).sum(-1, keepdim=True)
    norm_B1 = others_B1 + own_B1.exp()
    gap_B1 = torch.mul(logits_BV, gap_BV, out=spare_BV).sum(-1, keepdim=True)
    divergence_B1, log_m_B1 = reverse_terms(gap_B1, others_B1, norm_B1, log_norm_ref_B1, own_B1, own_ref_B1, conf_B1)
    log_norm_B1 = norm_B1.log()
    if grad:
        gap_BV.add_(log_norm_ref_B1 - log_norm_B1 - torch.log1p(-conf_B1) - divergence_B1)
        own_gap_B1 = torch.where(own_B1 == -torch.inf, 0.0, own_B1 - log_norm_B1 - log_m_B1 - divergence_B1)
        gap_BV.scatter_(-1, ids_B1, own_gap_B1)
        logits_BV.scatter_(-1, ids_B1, own_B1.exp()).mul_(gap_BV).div_(norm_B1)
    return _columns(divergence_B1, own_B1, own_B1 - log_norm_B1, own_ref_B1 - log_norm_ref_B1)


def forward_terms(
    gap: Tensor, others: Tensor, norm_ref: Tensor, log_norm: Tensor, own: Tensor, own_ref: Tensor, conf: Tensor
) -> tuple[Tensor, Tensor]:
    """Forward KL and q(token), from gap = sum exp(l_ref) (l_ref - l) and others = sum exp(l_ref)."""
    share, log_norm_ref, mass = 1 - conf, norm_ref.log(), others / norm_ref
    rest = gap / norm_ref + mass * (log_norm - log_norm_ref)
    log_m = torch.logaddexp(conf.log(), share.log() + own_ref - log_norm_ref)
    m = log_m.exp()
    # What has no share of the target adds nothing, however improbable it is.
    own_term = torch.where(m > 0, m * (log_m - own + log_norm), 0.0)
    return share * rest + torch.xlogy(share, share) * mass + own_term, m


def reverse_terms(
    gap: Tensor, others: Tensor, norm: Tensor, log_norm_ref: Tensor, own: Tensor, own_ref: Tensor, conf: Tensor
) -> tuple[Tensor, Tensor]:
    """Reverse KL and log q(token), from gap = sum exp(l) (l - l_ref) and others = sum exp(l)."""
    log_share, log_norm = torch.log1p(-conf), norm.log()
    log_m = torch.logaddexp(own_ref - log_norm_ref + log_share, conf.log())
    rest = (gap + others * (log_norm_ref - log_norm - log_share)) / norm
    own_term = torch.where(own == -torch.inf, 0.0, (own - log_norm).exp() * (own - log_norm - log_m))
    return rest + own_term, log_m
