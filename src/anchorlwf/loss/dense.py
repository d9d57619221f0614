"""The loss with full logits: plain mathematics, differentiated by autograd. The oracle of the other implementations.

Shape suffixes: N completion tokens, V vocabulary.
"""

import torch
from torch import Tensor

from anchorlwf.loss.inputs import LossInputs, Scored

__all__ = ["dense_loss"]


def dense_loss(inputs: LossInputs) -> Scored:
    """Divergences in nats; materialises logits of model and reference, [N, V] each."""
    log_p_NV = inputs.head.logits(inputs.hidden_ND).log_softmax(-1)
    with torch.no_grad():
        log_ref_NV = inputs.ref_head.logits(inputs.ref_hidden_ND).log_softmax(-1)
        log_q_NV = log_target(log_ref_NV, inputs.token_ids_N, inputs.confidence_N)
        own_N = log_p_NV.gather(-1, inputs.token_ids_N[:, None])[:, 0]
        behind_N = own_N - log_p_NV.amax(-1)
    pair = (log_p_NV, log_q_NV) if inputs.direction == "reverse" else (log_q_NV, log_p_NV)
    ref_log_p_N = log_ref_NV.gather(-1, inputs.token_ids_N[:, None])[:, 0]
    return Scored(_kl(*pair), behind_N, own_N, ref_log_p_N)


def _kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """KL(a || b) from logarithms, [N]; infinite where b excludes what a does not."""
    # What a excludes adds nothing, whatever b says of it. A certain target excludes all but the anchor, and a head all
    # tokens whose bias is -inf.
    log_ratio_NV = torch.where(log_a_NV == -torch.inf, 0.0, log_a_NV - log_b_NV)
    # A share too small for a float still makes an infinite ratio infinite.
    share_NV = log_a_NV.exp().clamp(min=torch.finfo(log_a_NV.dtype).tiny)
    return (share_NV * log_ratio_NV).sum(-1)


def log_target(log_ref_NV: Tensor, token_ids_N: Tensor, confidence_N: Tensor) -> Tensor:
    """log q = log(c * delta(token) + (1 - c) * p_ref), computed in logarithms throughout; shape [N, V]."""
    wide_N = confidence_N.to(log_ref_NV.dtype)
    log_q_NV = log_ref_NV + torch.log1p(-wide_N)[:, None]
    index_N1 = token_ids_N[:, None]
    at_token_N1 = torch.logaddexp(log_q_NV.gather(-1, index_N1), wide_N.log()[:, None])
    return log_q_NV.scatter(-1, index_N1, at_token_N1)
