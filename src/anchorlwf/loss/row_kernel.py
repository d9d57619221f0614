"""One Triton program per token: from two rows of raw logits to the divergence and the gradient by the model's.

A program walks its rows twice. The first walk keeps, for each of its lanes, the largest logit so far, the sum of
exponentials, and the weighted sum of differences between the two models; the lanes are joined at its end. The second
walk writes the gradient, rounded once, to the type of the head. Nothing is added atomically, so results repeat bit by
bit.

What takes time is memory: both rows are read twice, for they do not fit where a program could keep them. So there must
be little to do per logit: a lane takes several neighbours at once, and rescales its sums once for all of them.

Logits are counted from the token's own when they are subtracted from each other, and the token's own term is kept out
of every sum: so nothing cancels for logits of +-1e4, nor where a distribution is certain. A bias of -inf excludes a
token: the difference of its two logits is no number, and weighs nothing.

This also runs on a CPU, in Triton's interpreter (TRITON_INTERPRET=1, before triton is imported), which is how it is
tested without a GPU. This file may be longer than others: a kernel and what launches it are read together.

Shape suffixes: C tokens of a chunk, V vocabulary.
"""

import triton
import triton.language as tl

from anchorlwf.loss.gpu_pass import Rows

__all__ = ["interpreted", "triton_rows"]

LANES, PER_LANE, WARPS = 2048, 4, 32
"""Logits that a program takes at a time: so many lanes of so many neighbours; and the warps that share them."""


@triton.jit
def _finish(block, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SCALE, HAS_SOFTCAP):
    """Bias, scale and soft cap."""
    if HAS_BIAS:
        block += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)
    if HAS_SCALE:
        block *= scale
    if HAS_SOFTCAP:
        block = softcap * (2 * tl.sigmoid(2 * block / softcap) - 1)
    return block


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
    HAS_SCALE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    GRAD: tl.constexpr,
    LANES: tl.constexpr,
    PER_LANE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_step
    ref_ptr += row * row_step
    grad_ptr += row * row_step
    own_id = tl.load(ids_ptr + row).to(tl.int32)
    own = tl.load(logits_ptr + own_id)
    ref_own = tl.load(ref_ptr + own_id)
    own = _finish(own, bias_ptr, own_id, V, scale, softcap, HAS_BIAS, HAS_SCALE, HAS_SOFTCAP)
    ref_own = _finish(ref_own, ref_bias_ptr, own_id, V, scale, softcap, HAS_REF_BIAS, HAS_SCALE, HAS_SOFTCAP)
    base = tl.where(own > float("-inf"), own, 0.0)
    ref_base = tl.where(ref_own > float("-inf"), ref_own, 0.0)
    first_cols = tl.arange(0, LANES)[:, None] * PER_LANE + tl.arange(0, PER_LANE)[None, :]
    # Finite, so that a first block multiplies a sum of zero by the move of the maximum, and gets zero; and far above
    # what stands for logits that do not count, so that these never weigh anything.
    top = tl.full((LANES,), -1.0e25, tl.float32)
    ref_top = tl.full((LANES,), -1.0e25, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    ref_total = tl.zeros((LANES,), tl.float32)
    gap = tl.zeros((LANES,), tl.float32)
    for start in range(0, V, LANES * PER_LANE):
        cols = start + first_cols
        inside = cols < V
        logits = tl.load(logits_ptr + cols, mask=inside, other=0.0)
        ref = tl.load(ref_ptr + cols, mask=inside, other=0.0)
        logits = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SCALE, HAS_SOFTCAP)
        ref = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SCALE, HAS_SOFTCAP)
        others = inside & (cols != own_id)
        logits = tl.where(others, logits, -1.0e30)
        ref = tl.where(others, ref, -1.0e30)
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        new_ref_top = tl.maximum(ref_top, tl.max(ref, axis=1))
        p = tl.exp(logits - new_top[:, None])
        q = tl.exp(ref - new_ref_top[:, None])
        shrink = tl.exp(top - new_top)
        ref_shrink = tl.exp(ref_top - new_ref_top)
        gaps = (logits - base) - (ref - ref_base)
        if HAS_BIAS or HAS_REF_BIAS:
            gaps = tl.where((logits > float("-inf")) & (ref > float("-inf")), gaps, 0.0)
        if REVERSE:
            gap *= shrink
            gap += tl.sum(p * gaps, axis=1)
        else:
            gap *= ref_shrink
            gap += tl.sum(q * gaps, axis=1)
        total = total * shrink + tl.sum(p, axis=1)
        ref_total = ref_total * ref_shrink + tl.sum(q, axis=1)
        top = new_top
        ref_top = new_ref_top

    # The lanes are joined.
    row_top = tl.maximum(tl.max(top, axis=0), own)
    row_ref_top = tl.maximum(tl.max(ref_top, axis=0), ref_own)
    weight = tl.exp(top - row_top)
    ref_weight = tl.exp(ref_top - row_ref_top)
    others_sum = tl.sum(total * weight, axis=0)
    ref_others_sum = tl.sum(ref_total * ref_weight, axis=0)
    own_z = own - row_top
    ref_own_z = ref_own - row_ref_top
    norm = others_sum + tl.exp(own_z)
    ref_norm = ref_others_sum + tl.exp(ref_own_z)
    log_norm = tl.log(norm)
    ref_log_norm = tl.log(ref_norm)
    # What turns a gap into a difference of log-probabilities.
    base_gap = ((base - row_top) - log_norm) - ((ref_base - row_ref_top) - ref_log_norm)

    # `rows.forward_terms` and `rows.reverse_terms`, for one token.
    confidence = tl.load(confidence_ptr + row)
    share = 1 - confidence
    log_share = tl.log(tl.maximum(share, 1.0e-37))
    log_m = _log_of_sum(tl.log(tl.maximum(confidence, 1.0e-37)), log_share + ref_own_z - ref_log_norm)
    log_m = tl.where(confidence > 0, log_m, ref_own_z - ref_log_norm)
    log_m = tl.where(share > 0, log_m, 0.0)
    m = tl.exp(log_m)
    if REVERSE:
        base_gap -= log_share
        rest = (tl.sum(gap * weight, axis=0) + others_sum * base_gap) / norm
        term = tl.exp(own_z - log_norm) * (own_z - log_norm - log_m)
        divergence = rest + tl.where(own_z > float("-inf"), term, 0.0)
    else:
        mass = ref_others_sum / ref_norm
        rest = -(tl.sum(gap * ref_weight, axis=0) / ref_norm + mass * base_gap)
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
        p_factor = factor / norm
        q_factor = factor * share / ref_norm
        # From the end: what was read last may still be in the cache.
        last = (tl.cdiv(V, LANES * PER_LANE) - 1) * LANES * PER_LANE
        for back in range(0, V, LANES * PER_LANE):
            cols = last - back + first_cols
            inside = cols < V
            logits = tl.load(logits_ptr + cols, mask=inside, other=0.0)
            ref = tl.load(ref_ptr + cols, mask=inside, other=0.0)
            logits = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SCALE, HAS_SOFTCAP)
            ref = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SCALE, HAS_SOFTCAP)
            slope = logits / softcap
            at = cols == own_id
            p = tl.exp(logits - row_top) * p_factor
            if REVERSE:
                # As the divergence was made of them, so that nothing is left where one token has all of it.
                gaps = ((logits - base) - (ref - ref_base)) + base_gap
                grad = p * (tl.where(at, own_z - log_norm - log_m, gaps) - divergence)
                grad = tl.where(logits > float("-inf"), grad, 0.0)
                # Where it is infinite there is no gradient.
                grad = tl.where(divergence < float("inf"), grad, float("nan"))
            else:
                grad = p - tl.where(at, m * factor, tl.exp(ref - row_ref_top) * q_factor)
            if HAS_SOFTCAP:
                grad *= 1 - slope * slope
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
        HAS_SCALE=head.scale != 1.0,
        HAS_SOFTCAP=head.softcap is not None,
        REVERSE=given.direction == "reverse",
        GRAD=given.grad_CV is not None,
        LANES=LANES,
        PER_LANE=PER_LANE,
        num_warps=WARPS,
    )
