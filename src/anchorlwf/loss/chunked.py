"""The loss without full logits: the gradient is formed chunk by chunk in the forward pass.

With a frozen head a chunk costs three projections (model, reference, gradient) and nothing of width V outlives it.
A loss that merely loops over chunks and backpropagates once would keep every chunk's logits for autograd.

Shape suffixes: N completion tokens, C tokens of one chunk, D hidden width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anchorlwf.loss.inputs import Direction, Head, LossInputs

__all__ = ["CHUNK_BYTES", "chunk_size", "chunked_loss"]

CHUNK_BYTES = 48 * 2**20
"""Most bytes of one chunk's logits in float32; a few such buffers are alive at once."""


class _Chunk(NamedTuple):
    divergence_C: Tensor
    grad_logits_CV: Tensor | None
    """d divergence / d (hidden @ weight.T + bias): scale and soft cap are already inside."""


def chunk_size(vocabulary: int, itemsize: int = 4) -> int:
    """Tokens per chunk so that one chunk's logits stay within `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (vocabulary * itemsize))


def chunked_loss(inputs: LossInputs) -> Tensor:
    """Per-token divergence [N] in nats; peak extra memory does not depend on N (the gradient of hidden aside)."""
    return _ChunkedLoss.apply(
        inputs.hidden_ND, inputs.head.weight_VD, inputs.head.bias_V, inputs.ref_hidden_ND, inputs.ref_head,
        (inputs.head.scale, inputs.head.softcap), inputs.token_ids_N, inputs.confidence_N, inputs.direction,
    )


def _divergence(log_p_CV: Tensor, logits_ref_CV: Tensor, ids_C1: Tensor, conf_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Forward KL(q || p) per token and q itself, which takes the memory of `logits_ref_CV`.

    The anchor's own term is kept apart from the sum over the rest, so that nothing cancels where p_ref is certain.
    """
    log_ref_CV = logits_ref_CV.sub_(logits_ref_CV.logsumexp(-1, keepdim=True))
    log_r_C1, log_l_C1 = log_ref_CV.gather(-1, ids_C1), log_p_CV.gather(-1, ids_C1)
    ratio_CV = log_ref_CV - log_p_CV
    ref_CV = log_ref_CV.exp_().scatter_(-1, ids_C1, 0.0)
    rest_C1, mass_C1 = ratio_CV.mul_(ref_CV).sum(-1, keepdim=True), ref_CV.sum(-1, keepdim=True)
    share_C1 = 1 - conf_C1
    log_m_C1 = torch.logaddexp(conf_C1.log(), share_C1.log() + log_r_C1)
    own_C1 = log_m_C1.exp() * (log_m_C1 - log_l_C1)
    divergence_C1 = share_C1 * rest_C1 + torch.xlogy(share_C1, share_C1) * mass_C1 + own_C1
    return divergence_C1[:, 0], ref_CV.mul_(share_C1).scatter_(-1, ids_C1, log_m_C1.exp())


def _forward_chunk(log_p_CV: Tensor, logits_ref_CV: Tensor, ids_C1: Tensor, conf_C1: Tensor, grad: bool) -> _Chunk:
    divergence_C, target_CV = _divergence(log_p_CV, logits_ref_CV, ids_C1, conf_C1)
    return _Chunk(divergence_C, log_p_CV.exp_().sub_(target_CV) if grad else None)


def _anchor_chunk(log_p_CV: Tensor, ids_C1: Tensor, grad: bool) -> _Chunk:
    """Confidence 1: plain cross-entropy, for which the reference is not even projected."""
    divergence_C = -log_p_CV.gather(-1, ids_C1)[:, 0]
    if not grad:
        return _Chunk(divergence_C, None)
    minus_one_C1 = torch.full_like(divergence_C, -1.0)[:, None]
    return _Chunk(divergence_C, log_p_CV.exp_().scatter_add_(-1, ids_C1, minus_one_C1))


def _reverse_chunk(log_p_CV: Tensor, logits_ref_CV: Tensor, ids_C1: Tensor, conf_C1: Tensor, grad: bool) -> _Chunk:
    log_q_CV = logits_ref_CV.sub_(logits_ref_CV.logsumexp(-1, keepdim=True)).add_(torch.log1p(-conf_C1))
    log_m_C1 = torch.logaddexp(log_q_CV.gather(-1, ids_C1), conf_C1.log())
    ratio_CV = torch.sub(log_p_CV, log_q_CV.scatter_(-1, ids_C1, log_m_C1), out=logits_ref_CV)
    p_CV = log_p_CV.exp_()
    divergence_C = (p_CV * ratio_CV).sum(-1)
    return _Chunk(divergence_C, ratio_CV.sub_(divergence_C[:, None]).mul_(p_CV) if grad else None)


class _Pieces(NamedTuple):
    head: Head
    ref_head: Head
    hidden_ND: Tensor
    ref_hidden_ND: Tensor
    token_ids_N: Tensor
    confidence_N: Tensor
    direction: Direction


def _one_chunk(part: _Pieces, rows_C: Tensor, certain: bool, grad: bool) -> _Chunk:
    hidden_CD = part.hidden_ND[rows_C]
    logits_CV = part.head.logits(hidden_CD)
    # The soft cap's slope is needed after the logits are gone.
    softcap = part.head.softcap
    slope_CV = 1 - (logits_CV / softcap).square() if softcap is not None and grad else None
    log_p_CV = logits_CV.sub_(logits_CV.logsumexp(-1, keepdim=True))
    ids_C1 = part.token_ids_N[rows_C][:, None]
    if certain:
        chunk = _anchor_chunk(log_p_CV, ids_C1, grad)
    else:
        logits_ref_CV = part.ref_head.logits(part.ref_hidden_ND[rows_C]).to(log_p_CV.dtype)
        conf_C1 = part.confidence_N[rows_C][:, None].to(log_p_CV.dtype)
        compute = _forward_chunk if part.direction == "forward" else _reverse_chunk
        chunk = compute(log_p_CV, logits_ref_CV, ids_C1, conf_C1, grad)
    if chunk.grad_logits_CV is not None:
        if slope_CV is not None:
            chunk.grad_logits_CV.mul_(slope_CV)
        if part.head.scale != 1.0:
            chunk.grad_logits_CV.mul_(part.head.scale)
    return chunk


def _chunks(part: _Pieces) -> Iterator[tuple[Tensor, bool]]:
    """Row indices of each chunk, certain anchors (confidence 1) apart from the rest."""
    size = chunk_size(part.head.weight_VD.shape[0])
    certain_N = part.confidence_N == 1
    for certain, mask_N in ((True, certain_N), (False, ~certain_N)):
        for rows_C in mask_N.nonzero()[:, 0].split(size):
            if len(rows_C):
                yield rows_C, certain


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, ref_hidden_ND: Tensor, ref_head: Head,
        shape: tuple[float, float | None], token_ids_N: Tensor, confidence_N: Tensor, direction: Direction,
    ) -> Tensor:
        head = Head(weight_VD, bias_V, *shape)
        part = _Pieces(head, ref_head, hidden_ND, ref_hidden_ND, token_ids_N, confidence_N, direction)
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        head_trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        # The weight's gradient sums over tokens with factors that only backward knows, so it must recompute anyway.
        early = ctx.needs_input_grad[0] and not head_trains
        divergence_N = hidden_ND.new_zeros(len(hidden_ND), dtype=wide)
        grad_hidden_ND = torch.zeros_like(hidden_ND) if early else None
        for rows_C, certain in _chunks(part):
            chunk = _one_chunk(part, rows_C, certain, early)
            divergence_N[rows_C] = chunk.divergence_C
            if grad_hidden_ND is not None and chunk.grad_logits_CV is not None:
                grad_hidden_ND[rows_C] = (chunk.grad_logits_CV @ weight_VD.to(wide)).to(hidden_ND.dtype)
        ctx.part, ctx.wide = part, wide
        ctx.save_for_backward(grad_hidden_ND, hidden_ND if head_trains else None, weight_VD if head_trains else None)
        return divergence_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_N,) = grads
        grad_hidden_ND, hidden_ND, weight_VD = ctx.saved_tensors
        rest: tuple[None, ...] = (None,) * 6
        if hidden_ND is None:
            if grad_hidden_ND is None:
                return (None, None, None, *rest)
            return ((grad_hidden_ND * grad_N[:, None]).to(grad_hidden_ND.dtype), None, None, *rest)
        part, wide = ctx.part, ctx.wide
        out_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        out_VD = torch.zeros_like(weight_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        out_V = torch.zeros(len(weight_VD), dtype=wide, device=weight_VD.device) if ctx.needs_input_grad[2] else None
        for rows_C, certain in _chunks(part):
            chunk = _one_chunk(part, rows_C, certain, grad=True)
            assert chunk.grad_logits_CV is not None
            grad_logits_CV = chunk.grad_logits_CV.mul_(grad_N[rows_C][:, None])
            if out_ND is not None:
                out_ND[rows_C] = (grad_logits_CV @ weight_VD.to(wide)).to(out_ND.dtype)
            if out_VD is not None:
                out_VD.addmm_(grad_logits_CV.T, hidden_ND[rows_C].to(wide))
            if out_V is not None:
                out_V += grad_logits_CV.sum(0)
        bias_V = part.head.bias_V
        return (
            out_ND,
            out_VD.to(weight_VD.dtype) if out_VD is not None else None,
            out_V.to(bias_V.dtype) if out_V is not None and bias_V is not None else None,
            *rest,
        )
