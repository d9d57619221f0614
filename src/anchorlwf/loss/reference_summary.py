"""The forward loss from a summary of the reference: two projections per token, as many as cross-entropy takes.

Let model and reference share a frozen head without a soft cap, z = s (W h + b). Then

    KL(p_ref || p) = (log Z - s g.h) - (log Z_ref - s g.h_ref)         g = E_ref[W_v] = sum_v p_ref(v) W_v
    d KL / d h     = s (E_p[W_v] - g)

because W comes out of E_ref[z_ref - z], and the biases cancel. So g, the second bracket and log p_ref(y), which are
D + 2 numbers, are all that a token ever needs of the reference, and they do not change while a model trains. With
confidence c, r = p_ref(y) and m = c + (1 - c) r:

    KL(q || p) = (1 - c) (KL(p_ref || p) - r (log r - log p(y)) + (1 - r) log(1 - c)) + m (log m - log p(y))
    d / d h    = s (E_p[W_v] - (1 - c) g - c W_y)

Shape suffixes: N completion tokens, C tokens of one chunk, B tokens of one block, D hidden width, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anchorlwf.loss.chunked import block_size, chunk_size, even_size, same
from anchorlwf.loss.inputs import Head, Scored
from anchorlwf.loss.products import project, project_back
from anchorlwf.loss.rows import finish_logits

__all__ = ["Summary", "can_summarize", "summarize", "summary_loss"]


_ROWS = 256


class Summary(NamedTuple):
    """What is kept of the reference for each token, in float32, or in float64 where the head is."""

    mean_row_ND: Tensor
    """g: the mean row of the head, by the reference's probabilities."""
    offset_N: Tensor
    """log Z_ref - s g.h_ref, nats: its entropy, and its mean bias times s."""
    log_p_N: Tensor
    """Of the standing token, nats."""

    def stacked(self) -> Tensor:
        """In one tensor: [N, D + 2]."""
        return torch.cat([self.mean_row_ND, self.offset_N[:, None], self.log_p_N[:, None]], 1)

    @classmethod
    def of(cls, stacked_NX: Tensor) -> "Summary":
        """The inverse of `stacked`."""
        return cls(stacked_NX[:, :-2], stacked_NX[:, -2], stacked_NX[:, -1])


def can_summarize(head: Head, ref_head: Head) -> bool:
    """Whether a summary is enough for the loss: both share one head, which is frozen, linear and at least float32."""
    trains = any(part is not None and part.requires_grad for part in (head.weight_VD, head.bias_V))
    wide = head.weight_VD.dtype in (torch.float32, torch.float64)
    return same(head.weight_VD, ref_head.weight_VD) and wide and not trains and head.softcap is None


@torch.no_grad()
def summarize(ref_hidden_ND: Tensor, head: Head, token_ids_N: Tensor) -> Summary:
    """The reference's summary.

    Args:
        ref_hidden_ND: its hidden states at the predicting positions.
        head: see `can_summarize`.
        token_ids_N: int64, the standing tokens.
    """
    mean_row_ND, log_z_N, log_p_N, _ = _pass(ref_hidden_ND, head, token_ids_N, means=True)
    offset_N = log_z_N - head.scale * _dot(mean_row_ND, ref_hidden_ND)
    return Summary(mean_row_ND, offset_N.to(log_p_N.dtype), log_p_N)


def summary_loss(hidden_ND: Tensor, summary: Summary, head: Head, token_ids_N: Tensor, confidence_N: Tensor) -> Scored:
    """What `scored_loss` gives in the forward direction; the divergence [N], in nats, is differentiable in `hidden_ND`.

    The brackets are differences of numbers as large as logits, so its rounding is absolute: in float32 about 2e-7 of
    the largest logit, which includes what all logits have in common.

    Args:
        hidden_ND: the model's states, which are widened to the head's dtype.
        summary: of the same positions.
        head: see `can_summarize`.
        token_ids_N: int64, the standing tokens.
        confidence_N: in [0, 1]; 0 marks a keep token.
    """
    # Half precision inside an autocast region would undo the float32 of the projections.
    with torch.autocast(hidden_ND.device.type, enabled=False):
        # The same where a network ends in a product, which such a region computed in half precision.
        hidden_ND = hidden_ND.to(head.weight_VD.dtype)
        divergence_N, behind_N, log_p_N = _SummaryLoss.apply(hidden_ND, summary, head, token_ids_N, confidence_N)
        return Scored(divergence_N, behind_N, log_p_N, summary.log_p_N)


class _SummaryLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, summary: Summary, head: Head, token_ids_N: Tensor, confidence_N: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad = ctx.needs_input_grad[0]
        mean_row_ND, log_z_N, own_log_p_N, behind_N = _pass(hidden_ND, head, token_ids_N, means=grad)
        conf_N = confidence_N.double()
        log_r_N, log_p_N = summary.log_p_N.double(), own_log_p_N.double()
        r_N, share_N = log_r_N.exp(), 1 - conf_N
        kl_N = (log_z_N - head.scale * _dot(summary.mean_row_ND, hidden_ND)) - summary.offset_N
        m_N = conf_N + share_N * r_N
        own_N = torch.where(r_N > 0, r_N * (log_r_N - log_p_N), 0.0)
        rest_N = share_N * (kl_N - own_N) + torch.xlogy(share_N, share_N) * (1 - r_N)
        # What has no share of the target adds nothing, however improbable it is. A divergence is never below zero; its
        # rounding is.
        divergence_N = (rest_N + torch.where(m_N > 0, m_N * (m_N.log() - log_p_N), 0.0)).clamp(min=0)
        if grad:
            mean_row_ND.addcmul_(summary.mean_row_ND, share_N.to(hidden_ND.dtype)[:, None], value=-1)
            anchor_N = conf_N > 0
            mean_row_ND[anchor_N] -= conf_N[anchor_N, None].to(hidden_ND.dtype) * head.weight_VD[token_ids_N[anchor_N]]
            ctx.save_for_backward(mean_row_ND.mul_(head.scale))
        ctx.mark_non_differentiable(behind_N, own_log_p_N)
        return divergence_N.to(hidden_ND.dtype), behind_N, own_log_p_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        (grad_hidden_ND,) = ctx.saved_tensors
        return grad_hidden_ND * grad_N[:, None], None, None, None, None


def _dot(left_ND: Tensor, right_ND: Tensor) -> Tensor:
    """Row by row, in float64 [N]; a few rows at a time, for wide copies of all would be most of the memory."""
    pairs = zip(left_ND.split(_ROWS), right_ND.split(_ROWS), strict=True)
    return torch.cat([(left.double() * right).sum(-1) for left, right in pairs])


def _pass(hidden_ND: Tensor, head: Head, token_ids_N: Tensor, *, means: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[W_v] [N, D] (nothing unless `means`), log Z [N] in float64, and of the tokens log p and `Scored.behind_N`."""
    count, vocabulary = len(hidden_ND), len(head.weight_VD)
    mean_row_ND = hidden_ND.new_empty(count if means else 0, hidden_ND.shape[1])
    log_z_N = hidden_ND.new_empty(count, dtype=torch.float64)
    log_p_N, behind_N = hidden_ND.new_empty(count), hidden_ND.new_empty(count)
    # One buffer where the loss over both models' logits has two.
    size = even_size(count, 2 * chunk_size(vocabulary, hidden_ND.itemsize))
    buffer_CV = hidden_ND.new_empty(size, vocabulary)
    for start in range(0, count, size or 1):
        chunk = slice(start, min(start + size, count))
        logits_CV = buffer_CV[: chunk.stop - start]
        project(hidden_ND[chunk], head.weight_VD, logits_CV)
        norm_C, top_C, behind_N[chunk] = _exponentials(logits_CV, head, token_ids_N[chunk])
        log_norm_C = norm_C.double().log()
        log_z_N[chunk], log_p_N[chunk] = log_norm_C + top_C, behind_N[chunk] - log_norm_C
        if means:
            mean_row_ND[chunk] = project_back(logits_CV, head.weight_VD).div_(norm_C[:, None])
    return mean_row_ND, log_z_N, log_p_N, behind_N


def _exponentials(logits_CV: Tensor, head: Head, ids_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(logits - largest) in place of raw logits. Returns its sum, the largest, and the token's less it: [C] each."""
    size = block_size(logits_CV, len(logits_CV), rows=1)
    parts = []
    for start in range(0, len(logits_CV), size):
        block = slice(start, start + size)
        logits_BV = logits_CV[block]
        finish_logits(logits_BV, head)
        top_B1 = logits_BV.amax(-1, keepdim=True)
        own_B1 = logits_BV.sub_(top_B1).gather(-1, ids_C[block, None])
        parts.append(torch.cat([logits_BV.exp_().sum(-1, keepdim=True), top_B1, own_B1], 1))
    norm_C, top_C, own_C = torch.cat(parts).unbind(1)
    return norm_C, top_C, own_C
