"""One Triton program per token: from two rows of raw logits to the divergence and the gradient by the model's.

A program walks its rows twice. The first walk keeps, for each of its lanes, the largest logit so far, the sum of
exponentials, and the weighted sum of differences between the two models; the lanes are joined at its end. The second
walk writes the gradient, rounded once, to the type of the head. Nothing is added atomically, so results repeat bit by
bit.

Differences are summed relative to the running maxima (whose moves are made up for), and the token's own term is kept
out of every sum: so nothing cancels for logits of +-1e4, nor where a distribution is certain. A bias of -inf excludes a
token: the difference of its two logits is no number, and weighs nothing.

This also runs on a CPU, in Triton's interpreter (TRITON_INTERPRET=1, before triton is imported), which is how it is
tested without a GPU. This file may be longer than others: a kernel and what launches it are read together.

Shape suffixes: C tokens of a chunk, V vocabulary.
"""

import triton
import triton.language as tl

from anchorlwf.loss.gpu_pass import Rows

__all__ = ["interpreted", "triton_rows"]

BLOCK, WARPS = 4096, 8
"""Logits that a program takes at a time, and the warps that share them."""


@triton.jit
def _finish(block, bias_ptr, cols, V, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Bias, scale and soft cap; (logits, the soft cap's slope)."""
    if HAS_BIAS:
        block += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
    block *= scale
    slope = tl.full(block.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        bent = 2 * tl.sigmoid(2 * block / softcap) - 1
        slope = 1 - bent * bent
        block = softcap * bent
    return block, slope


@triton.jit
def _log_of_sum(left, right):
    """log(exp(left) + exp(right)), where at least one of the two is a number."""
    top = tl.maximum(left, right)
    return top + tl.log(tl.exp(left - top) + tl.exp(right - top))


@triton.jit
def _rows(
    logits_ptr,
    ref_ptr,
    bias_ptr,
    ref_bias_ptr,
    ids_ptr,
    confidence_ptr,
    infinite_ptr,
    factor_ptr,
    grad_ptr,
    scores_ptr,
    score_step,
    row_step,
    V,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_REF_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_step
    ref_ptr += row * row_step
    grad_ptr += row * row_step
    own_id = tl.load(ids_ptr + row).to(tl.int32)
    # Finite, so that a first block multiplies a sum of zero by the move of the maximum, and gets zero.
    top = tl.full((BLOCK,), -1.0e30, tl.float32)
    ref_top = tl.full((BLOCK,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    ref_total = tl.zeros((BLOCK,), tl.float32)
    gap = tl.zeros((BLOCK,), tl.float32)
    own = tl.zeros((BLOCK,), tl.float32)
    ref_own = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        inside = cols < V
        logits = tl.load(logits_ptr + cols, mask=inside, other=-1.0e30)
        ref = tl.load(ref_ptr + cols, mask=inside, other=-1.0e30)
        logits, _ = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        ref, _ = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SOFTCAP)
        at = cols == own_id
        own += tl.where(at, logits, 0.0)
        ref_own += tl.where(at, ref, 0.0)
        others = inside & (cols != own_id)
        new_top = tl.maximum(top, tl.where(inside, logits, -1.0e30))
        new_ref_top = tl.maximum(ref_top, tl.where(inside, ref, -1.0e30))
        both = others & (logits > float("-inf")) & (ref > float("-inf"))
        logits = tl.where(others, logits - new_top, -1.0e30)
        ref = tl.where(others, ref - new_ref_top, -1.0e30)
        p = tl.exp(logits)
        q = tl.exp(ref)
        move = new_top - top
        ref_move = new_ref_top - ref_top
        shrink = tl.exp(-move)
        ref_shrink = tl.exp(-ref_move)
        if REVERSE:
            gap = (gap + total * (ref_move - move)) * shrink + tl.where(both, p * (logits - ref), 0.0)
        else:
            gap = (gap + ref_total * (move - ref_move)) * ref_shrink + tl.where(both, q * (ref - logits), 0.0)
        total = total * shrink + p
        ref_total = ref_total * ref_shrink + q
        top = new_top
        ref_top = new_ref_top

    # The lanes are joined.
    row_top = tl.max(top, axis=0)
    row_ref_top = tl.max(ref_top, axis=0)
    below = top - row_top
    ref_below = ref_top - row_ref_top
    weight = tl.exp(below)
    ref_weight = tl.exp(ref_below)
    others_sum = tl.sum(total * weight, axis=0)
    ref_others_sum = tl.sum(ref_total * ref_weight, axis=0)
    own_z = tl.sum(own, axis=0) - row_top
    ref_own_z = tl.sum(ref_own, axis=0) - row_ref_top
    norm = others_sum + tl.exp(own_z)
    ref_norm = ref_others_sum + tl.exp(ref_own_z)
    log_norm = tl.log(norm)
    ref_log_norm = tl.log(ref_norm)

    # `rows.forward_terms` and `rows.reverse_terms`, for one token.
    confidence = tl.load(confidence_ptr + row)
    share = 1 - confidence
    log_share = tl.log(tl.maximum(share, 1.0e-37))
    log_m = _log_of_sum(tl.log(tl.maximum(confidence, 1.0e-37)), log_share + ref_own_z - ref_log_norm)
    log_m = tl.where(confidence > 0, log_m, ref_own_z - ref_log_norm)
    log_m = tl.where(share > 0, log_m, 0.0)
    m = tl.exp(log_m)
    if REVERSE:
        gap_sum = tl.sum((gap + total * (below - ref_below)) * weight, axis=0)
        rest = (gap_sum + others_sum * (ref_log_norm - log_norm - log_share)) / norm
        term = tl.exp(own_z - log_norm) * (own_z - log_norm - log_m)
        divergence = rest + tl.where(own_z > float("-inf"), term, 0.0)
    else:
        gap_sum = tl.sum((gap + ref_total * (ref_below - below)) * ref_weight, axis=0)
        mass = ref_others_sum / ref_norm
        rest = gap_sum / ref_norm + mass * (log_norm - ref_log_norm)
        own_term = tl.where(m > 0, m * (log_m - own_z + log_norm), 0.0)
        # What has no share of the target adds nothing, however improbable it is.
        kept = tl.where(share > 0, share * (rest + log_share * mass), 0.0)
        divergence = kept + own_term
    divergence = tl.where(tl.load(infinite_ptr + row) != 0, float("inf"), divergence)
    tl.store(scores_ptr + row, divergence)
    tl.store(scores_ptr + score_step + row, own_z)
    tl.store(scores_ptr + 2 * score_step + row, own_z - log_norm)
    tl.store(scores_ptr + 3 * score_step + row, ref_own_z - ref_log_norm)

    if GRAD:
        factor = tl.load(factor_ptr + row)
        for start in range(0, V, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            inside = cols < V
            logits = tl.load(logits_ptr + cols, mask=inside, other=-1.0e30)
            ref = tl.load(ref_ptr + cols, mask=inside, other=-1.0e30)
            logits, slope = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
            ref, _ = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SOFTCAP)
            at = cols == own_id
            logits -= row_top
            ref -= row_ref_top
            p = tl.exp(logits) / norm
            if REVERSE:
                log_q = tl.where(at, log_m, ref - ref_log_norm + log_share)
                grad = p * (logits - log_norm - log_q - divergence)
                grad = tl.where(logits > float("-inf"), grad, 0.0)
                # Where it is infinite there is no gradient.
                grad = tl.where(divergence < float("inf"), grad, float("nan"))
            else:
                grad = p - tl.where(at, m, tl.exp(ref) * (share / ref_norm))
            grad *= slope * factor
            tl.store(grad_ptr + cols, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def interpreted() -> bool:
    """Whether this kernel runs in Triton's interpreter, and so on a CPU."""
    return not isinstance(_rows, triton.runtime.JITFunction)


def triton_rows(given: Rows) -> None:
    """Fill `given.scores_4C`, and `given.grad_CV` where there is one."""
    count, vocabulary = given.logits_CV.shape
    head, ref_head, row_step = given.head, given.ref_head, given.logits_CV.stride(0)
    assert all(rows is None or rows.stride() == (row_step, 1) for rows in (given.ref_logits_CV, given.grad_CV))
    # What is missing is never read; something must stand in its place.
    nothing = given.logits_CV
    _rows[(count,)](
        given.logits_CV,
        given.ref_logits_CV,
        nothing if head.bias_V is None else head.bias_V,
        nothing if ref_head.bias_V is None else ref_head.bias_V,
        given.ids_C,
        given.confidence_C,
        given.infinite_C,
        given.factor_C,
        nothing if given.grad_CV is None else given.grad_CV,
        given.scores_4C,
        given.scores_4C.stride(0),
        row_step,
        vocabulary,
        float(head.scale),
        float(head.softcap or 1.0),
        HAS_BIAS=head.bias_V is not None,
        HAS_REF_BIAS=ref_head.bias_V is not None,
        HAS_SOFTCAP=head.softcap is not None,
        REVERSE=given.direction == "reverse",
        GRAD=given.grad_CV is not None,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
