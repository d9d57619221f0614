"""The loss on a GPU: both heads are projected tile by tile inside two kernels, and no logit reaches memory.

    1. statistics  one sweep over the vocabulary: of model and reference the largest logit, the sum of exponentials and
                   the token's logit, and of both together the weighted sum of differences. The divergence follows.
    2. gradient    recomputes the tiles of a part of the vocabulary, now that the normalisers are known, and writes the
                   gradient by the logits of that part; a matrix product adds its share to the gradient of hidden.

A frozen head thus costs five projections (chunked: three), for on a GPU reading and writing full rows of logits is what
takes time. Nothing is added atomically, so results repeat bit by bit. Reference and model may differ in width.

Differences are summed relative to the running maxima (whose moves are made up for), and the token's own term is kept
out of every sum: so nothing cancels for logits of +-1e4, nor where a distribution is certain.

float32 accumulates everywhere. The gradient by the logits is float32; where it meets a bfloat16 head it is split into
two bfloat16 planes (16 bits of mantissa), so that tensor cores can multiply it.

This file may be longer than others: a kernel and what launches it are read together. It also runs on a CPU, in
Triton's interpreter (TRITON_INTERPRET=1, before triton is imported), which is how it is tested without a GPU. The
interpreter multiplies bfloat16 wrongly, so there (`WIDEN`) tiles become float32 before they are multiplied.

Shape suffixes: N tokens, P parts of the vocabulary swept apart, D hidden width, V vocabulary, T a part of it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from anchorlwf.loss.inputs import Exclusions, LossInputs, Scored
from anchorlwf.loss.rows import forward_terms, reverse_terms

__all__ = ["interpreted", "triton_loss"]

BLOCK_N, BLOCK_V, BLOCK_D, WARPS = 64, 128, 64, 8
"""One program's tile, and how much of the hidden width it takes in at a time."""
PROGRAMS = 512
"""Of the first kernel, about as many as keep a large GPU busy: the vocabulary is swept in that many parts."""
TOKENS = 4096
"""Maximum number of tokens of one gradient buffer."""
GRAD_BYTES = 64 * 2**20
"""Maximum number of bytes of the gradient by the logits of a part of the vocabulary."""


@triton.jit
def _raw_tile(
    hidden_ptr,
    weight_ptr,
    rows,
    cols,
    N,
    V,
    D,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    tile = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for start in range(0, D, BLOCK_D):
        width = start + tl.arange(0, BLOCK_D)
        hidden = tl.load(
            hidden_ptr + rows[:, None] * D + width[None, :], mask=(rows[:, None] < N) & (width[None, :] < D), other=0.0
        )
        weight = tl.load(
            weight_ptr + cols[:, None] * D + width[None, :], mask=(cols[:, None] < V) & (width[None, :] < D), other=0.0
        )
        if WIDEN:
            hidden = hidden.to(tl.float32)
            weight = weight.to(tl.float32)
        tile += tl.dot(hidden, tl.trans(weight), input_precision="ieee")
    return tile


@triton.jit
def _finish(tile, bias_ptr, cols, V, scale, softcap, HAS_BIAS: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Bias, scale and soft cap; (logits, the soft cap's slope)."""
    if HAS_BIAS:
        tile += tl.load(bias_ptr + cols, mask=cols < V, other=0.0).to(tl.float32)[None, :]
    tile *= scale
    slope = tl.full(tile.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        bent = 2 * tl.sigmoid(2 * tile / softcap) - 1
        slope = 1 - bent * bent
        tile = softcap * bent
    return tile, slope


@triton.jit
def _statistics(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    ref_hidden_ptr,
    ref_weight_ptr,
    ref_bias_ptr,
    ids_ptr,
    out_ptr,
    N,
    V,
    D,
    REF_D,
    sweep,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_REF_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    part = tl.program_id(1)
    ids = tl.load(ids_ptr + rows, mask=rows < N, other=0)
    # Finite, so that a first tile multiplies a sum of zero by the move of the maximum, and gets zero.
    top = tl.full((BLOCK_N,), -1.0e30, tl.float32)
    ref_top = tl.full((BLOCK_N,), -1.0e30, tl.float32)
    total = tl.zeros((BLOCK_N,), tl.float32)
    ref_total = tl.zeros((BLOCK_N,), tl.float32)
    gap = tl.zeros((BLOCK_N,), tl.float32)
    own = tl.zeros((BLOCK_N,), tl.float32)
    ref_own = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(part * sweep, tl.minimum(part * sweep + sweep, V), BLOCK_V):
        cols = (start + tl.arange(0, BLOCK_V)).to(tl.int64)
        logits = _raw_tile(hidden_ptr, weight_ptr, rows, cols, N, V, D, BLOCK_N, BLOCK_V, BLOCK_D, WIDEN)
        logits, _ = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        ref = _raw_tile(ref_hidden_ptr, ref_weight_ptr, rows, cols, N, V, REF_D, BLOCK_N, BLOCK_V, BLOCK_D, WIDEN)
        ref, _ = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SOFTCAP)

        inside = (cols < V)[None, :]
        at = (cols[None, :] == ids[:, None]) & inside
        own += tl.sum(tl.where(at, logits, 0.0), axis=1)
        ref_own += tl.sum(tl.where(at, ref, 0.0), axis=1)
        new_top = tl.maximum(top, tl.max(tl.where(inside, logits, -1.0e30), axis=1))
        new_ref_top = tl.maximum(ref_top, tl.max(tl.where(inside, ref, -1.0e30), axis=1))
        others = inside & (cols[None, :] != ids[:, None])
        # A bias of -inf excludes a token: the difference of the two logits is no number then, and weighs nothing.
        both = others & (logits > float("-inf")) & (ref > float("-inf"))
        logits = tl.where(others, logits - new_top[:, None], -1.0e30)
        ref = tl.where(others, ref - new_ref_top[:, None], -1.0e30)
        p = tl.exp(logits)
        q = tl.exp(ref)
        move = new_top - top
        ref_move = new_ref_top - ref_top
        if REVERSE:
            gap = (gap + total * (ref_move - move)) * tl.exp(-move)
            gap += tl.sum(tl.where(both, p * (logits - ref), 0.0), axis=1)
        else:
            gap = (gap + ref_total * (move - ref_move)) * tl.exp(-ref_move)
            gap += tl.sum(tl.where(both, q * (ref - logits), 0.0), axis=1)
        total = total * tl.exp(-move) + tl.sum(p, axis=1)
        ref_total = ref_total * tl.exp(-ref_move) + tl.sum(q, axis=1)
        top = new_top
        ref_top = new_ref_top
    # `out` has the shape 7, P, N.
    parts = tl.num_programs(1).to(tl.int64)
    at_row = out_ptr + part * N + rows
    step = parts * N
    tl.store(at_row, top, mask=rows < N)
    tl.store(at_row + step, ref_top, mask=rows < N)
    tl.store(at_row + 2 * step, total, mask=rows < N)
    tl.store(at_row + 3 * step, ref_total, mask=rows < N)
    tl.store(at_row + 4 * step, gap, mask=rows < N)
    tl.store(at_row + 5 * step, own, mask=rows < N)
    tl.store(at_row + 6 * step, ref_own, mask=rows < N)


@triton.jit
def _gradient(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    ref_hidden_ptr,
    ref_weight_ptr,
    ref_bias_ptr,
    ids_ptr,
    row_ptr,
    out_ptr,
    N,
    V,
    D,
    REF_D,
    first_row,
    last_row,
    first_col,
    last_col,
    width,
    plane,
    row_step,
    scale,
    softcap,
    HAS_BIAS: tl.constexpr,
    HAS_REF_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    REVERSE: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows = (first_row + tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    cols = (first_col + tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)).to(tl.int64)
    ids = tl.load(ids_ptr + rows, mask=rows < N, other=0)
    # rows [5, N], as `_triton_rows` wrote them
    log_norm = tl.load(row_ptr + rows, mask=rows < N, other=0.0)
    ref_log_norm = tl.load(row_ptr + row_step + rows, mask=rows < N, other=0.0)
    share = tl.load(row_ptr + 2 * row_step + rows, mask=rows < N, other=0.0)
    own = tl.load(row_ptr + 3 * row_step + rows, mask=rows < N, other=0.0)
    divergence = tl.load(row_ptr + 4 * row_step + rows, mask=rows < N, other=0.0)

    logits = _raw_tile(hidden_ptr, weight_ptr, rows, cols, N, V, D, BLOCK_N, BLOCK_V, BLOCK_D, WIDEN)
    logits, slope = _finish(logits, bias_ptr, cols, V, scale, softcap, HAS_BIAS, HAS_SOFTCAP)
    ref = _raw_tile(ref_hidden_ptr, ref_weight_ptr, rows, cols, N, V, REF_D, BLOCK_N, BLOCK_V, BLOCK_D, WIDEN)
    ref, _ = _finish(ref, ref_bias_ptr, cols, V, scale, softcap, HAS_REF_BIAS, HAS_SOFTCAP)

    log_p = logits - log_norm[:, None]
    log_ref = ref - ref_log_norm[:, None]
    at = cols[None, :] == ids[:, None]
    p = tl.exp(log_p)
    if REVERSE:
        grad = p * (log_p - tl.where(at, own[:, None], log_ref + share[:, None]) - divergence[:, None])
        grad = tl.where(log_p > float("-inf"), grad, 0.0)
    else:
        grad = p - tl.where(at, own[:, None], share[:, None] * tl.exp(log_ref))
    grad *= slope
    where = (rows - first_row)[:, None] * width + (cols - first_col)[None, :]
    mask = (rows[:, None] < last_row) & (cols[None, :] < last_col)
    high = grad.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + where, high, mask=mask)
    if SPLIT:
        low = (grad - high.to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + plane + where, low, mask=mask)


def interpreted() -> bool:
    """Whether these kernels run in Triton's interpreter, and so on a CPU."""
    return not isinstance(_statistics, triton.runtime.JITFunction)


def triton_loss(inputs: LossInputs) -> Scored:
    """Divergences in nats, differentiable in hidden; the head must be frozen."""
    return Scored(*_TritonLoss.apply(inputs.hidden_ND, inputs))


class _Launch:
    """The arguments that both kernels share."""

    def __init__(self, inputs: LossInputs) -> None:
        head, ref_head = inputs.head, inputs.ref_head
        hidden_ND, ref_hidden_ND = inputs.hidden_ND.contiguous(), inputs.ref_hidden_ND.contiguous()
        weight_VD, ref_weight_VD = head.weight_VD.contiguous(), ref_head.weight_VD.contiguous()
        self.inputs, self.weight_VD = inputs, weight_VD
        self.count, self.vocabulary = len(hidden_ND), len(weight_VD)
        dtypes = {tensor.dtype for tensor in (hidden_ND, weight_VD, ref_hidden_ND, ref_weight_VD)}
        # A missing bias or cap is never read; something must stand in its place.
        self.tensors = (
            hidden_ND,
            weight_VD,
            weight_VD if head.bias_V is None else head.bias_V.contiguous(),
            ref_hidden_ND,
            ref_weight_VD,
            ref_weight_VD if ref_head.bias_V is None else ref_head.bias_V.contiguous(),
            inputs.token_ids_N.contiguous(),
        )
        self.sizes = (self.count, self.vocabulary, hidden_ND.shape[1], ref_hidden_ND.shape[1])
        self.shape = (float(head.scale), float(head.softcap or 1.0))
        self.options = {
            "HAS_BIAS": head.bias_V is not None,
            "HAS_REF_BIAS": ref_head.bias_V is not None,
            "HAS_SOFTCAP": head.softcap is not None,
            "REVERSE": inputs.direction == "reverse",
            "WIDEN": interpreted() or len(dtypes) > 1,
            "num_warps": WARPS,
            "BLOCK_N": BLOCK_N,
            "BLOCK_V": BLOCK_V,
            "BLOCK_D": BLOCK_D,
        }

    def statistics(self) -> tuple[Scored, Tensor]:
        """(scores [N], what the gradient needs of every token [5, N])."""
        blocks = triton.cdiv(self.count, BLOCK_N)
        tiles = triton.cdiv(self.vocabulary, BLOCK_V)
        sweep = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // blocks)))
        parts = triton.cdiv(tiles, sweep)
        out_7PN = self.inputs.hidden_ND.new_empty(7, parts, self.count, dtype=torch.float32)
        _statistics[blocks, parts](*self.tensors, out_7PN, *self.sizes, sweep * BLOCK_V, *self.shape, **self.options)
        return _triton_rows(out_7PN, self.inputs)

    def grad_hidden(self, rows_5N: Tensor) -> Tensor:
        """d divergence / d hidden, [N, D] in float32."""
        split = self.weight_VD.dtype == torch.bfloat16
        dtype = torch.bfloat16 if split else torch.float32
        height = min(TOKENS, self.count)
        width = max(1, GRAD_BYTES // (4 * height * BLOCK_V)) * BLOCK_V
        buffer = rows_5N.new_empty((1 + split) * height * width, dtype=dtype)
        grad_ND = rows_5N.new_zeros(self.inputs.hidden_ND.shape)
        for row in range(0, self.count, height):
            last_row = min(row + height, self.count)
            for col in range(0, self.vocabulary, width):
                last_col = min(col + width, self.vocabulary)
                across, down = last_col - col, last_row - row
                grid = triton.cdiv(down, BLOCK_N), triton.cdiv(across, BLOCK_V)
                _gradient[grid](
                    *self.tensors,
                    rows_5N,
                    buffer,
                    *self.sizes,
                    row,
                    last_row,
                    col,
                    last_col,
                    across,
                    down * across,
                    self.count,
                    *self.shape,
                    SPLIT=split,
                    **self.options,
                )
                for plane_NT in buffer[: (1 + split) * down * across].view(1 + split, down, across):
                    _add_product(grad_ND[row:last_row], plane_NT, self.weight_VD[col:last_col])
        return grad_ND.mul_(self.inputs.head.scale)


def _add_product(sum_ND: Tensor, grad_NT: Tensor, weight_TD: Tensor) -> None:
    """sum += grad @ weight in float32, on tensor cores where both are bfloat16."""
    release = tuple(map(int, torch.__version__.split(".")[:2]))
    if sum_ND.is_cuda and grad_NT.dtype == torch.bfloat16 and release >= (2, 8):
        torch.addmm(sum_ND, grad_NT, weight_TD, out_dtype=torch.float32, out=sum_ND)
    else:
        sum_ND.addmm_(grad_NT.float(), weight_TD.float())


def _triton_rows(parts_7PN: Tensor, inputs: LossInputs) -> tuple[Scored, Tensor]:
    """Join the parts of the vocabulary and finish the divergence, one number per token at a time."""
    tops_PN, ref_tops_PN, totals_PN, ref_totals_PN, gaps_PN, owns_PN, ref_owns_PN = parts_7PN
    top_N, ref_top_N = tops_PN.amax(0), ref_tops_PN.amax(0)
    below_PN, ref_below_PN = tops_PN - top_N, ref_tops_PN - ref_top_N
    others_N, ref_others_N = (totals_PN * below_PN.exp()).sum(0), (ref_totals_PN * ref_below_PN.exp()).sum(0)
    own_N, ref_own_N = owns_PN.sum(0) - top_N, ref_owns_PN.sum(0) - ref_top_N
    norm_N, ref_norm_N = others_N + own_N.exp(), ref_others_N + ref_own_N.exp()
    conf_N = inputs.confidence_N.to(torch.float32)
    if inputs.direction == "reverse":
        gap_N = ((gaps_PN + totals_PN * (below_PN - ref_below_PN)) * below_PN.exp()).sum(0)
        divergence_N, own_target_N = reverse_terms(gap_N, others_N, norm_N, ref_norm_N.log(), own_N, ref_own_N, conf_N)
        share_N = torch.log1p(-conf_N)
    else:
        gap_N = ((gaps_PN + ref_totals_PN * (ref_below_PN - below_PN)) * ref_below_PN.exp()).sum(0)
        divergence_N, own_target_N = forward_terms(
            gap_N, ref_others_N, ref_norm_N, norm_N.log(), own_N, ref_own_N, conf_N
        )
        share_N = 1 - conf_N
    exclusions = Exclusions.of(inputs.head, inputs.ref_head, inputs.direction)
    if exclusions is not None:
        divergence_N.masked_fill_(exclusions.infinite(inputs.token_ids_N, inputs.confidence_N), torch.inf)
    rows = [top_N + norm_N.log(), ref_top_N + ref_norm_N.log(), share_N, own_target_N, divergence_N]
    log_ps = (own_N - norm_N.log(), ref_own_N - ref_norm_N.log())
    return Scored(divergence_N, own_N, *log_ps), torch.stack(rows)


class _TritonLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, inputs: LossInputs) -> tuple[Tensor, ...]:
        ctx.dtype = hidden_ND.dtype
        if not len(hidden_ND):
            ctx.save_for_backward(hidden_ND.new_zeros(hidden_ND.shape, dtype=torch.float32))
            return tuple(hidden_ND.new_zeros(0, dtype=torch.float32) for _ in Scored._fields)
        launch = _Launch(inputs)
        (divergence_N, behind_N, *log_ps), rows_5N = launch.statistics()
        ctx.save_for_backward(launch.grad_hidden(rows_5N) if ctx.needs_input_grad[0] else None)
        ctx.mark_non_differentiable(behind_N, *log_ps)
        return divergence_N, behind_N, *log_ps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad_ND,) = ctx.saved_tensors
        return (grad_ND * grads[0][:, None]).to(ctx.dtype), None
