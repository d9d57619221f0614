"""The loss without full logits: the gradient is formed chunk by chunk in the forward pass.

With a frozen head a chunk costs three projections (model, reference, gradient) and nothing of width V outlives it: all
chunks share one buffer, and a chunk's logits become its gradient in place. A loss that merely loops over chunks and
backpropagates once would keep every chunk's logits for autograd.

What is fast on a CPU: many rows per matrix product (so model and reference go through a shared head in one), and few
rows per elementwise pass (so that a block of them stays in cache through all passes).

Shape suffixes: N completion tokens, C tokens of one chunk, K those of them that the reference sees, S = C + K rows of
the buffer, B tokens of one block, D hidden width, V vocabulary, T part of the vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anchorlwf.loss.inputs import Direction, Exclusions, Head, LossInputs, Scored
from anchorlwf.loss.products import add_outer, project, project_back
from anchorlwf.loss.rows import RowScores, certain_rows, finish_logits, forward_rows, reverse_rows

__all__ = ["CHUNK_BYTES", "Pass", "block_size", "chunk_size", "chunked_loss", "even_size", "same"]

CHUNK_BYTES = 56 * 2**20
"""Maximum number of bytes of one chunk's logits. Model and reference have such a buffer each; little else is alive."""
CACHE_BYTES = 2**20
"""Of a core's second-level cache, what the three rows of a token may take."""
BLOCK_ROWS = 16
"""Maximum number of rows of a block for any number of threads: their spare buffers must stay small."""


def chunk_size(vocabulary: int, itemsize: int = 4) -> int:
    """Tokens per chunk so that one chunk's logits stay within `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (vocabulary * itemsize))


def even_size(count: int, maximum: int) -> int:
    """Tokens per chunk, up to `maximum`: equal ones, for a small last one would be slow for its size."""
    return -(-count // max(1, -(-count // maximum)))


def chunked_loss(inputs: LossInputs, make: "Callable[..., Pass] | None" = None) -> Scored:
    """Divergences in nats; peak extra memory does not depend on N (the gradient of hidden aside).

    `make`: how the tokens are passed over; None: as is fast on a CPU.
    """
    return Scored(
        *_ChunkedLoss.apply(
            inputs.hidden_ND,
            inputs.head.weight_VD,
            inputs.head.bias_V,
            inputs.ref_hidden_ND,
            inputs.ref_head,
            (inputs.head.scale, inputs.head.softcap),
            inputs.token_ids_N,
            inputs.confidence_N,
            inputs.direction,
            make or Pass,
        )
    )


def block_size(logits_CV: Tensor, maximum: int, *, rows: int) -> int:
    """Tokens per elementwise pass: for each thread as many as its cache holds, at `rows` rows of width V per token."""
    if logits_CV.device.type != "cpu":
        return min(maximum, BLOCK_ROWS)
    each = max(1, CACHE_BYTES // (rows * logits_CV.shape[1] * logits_CV.itemsize))
    return min(maximum, BLOCK_ROWS, torch.get_num_threads() * each)


def same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return (first.data_ptr(), first.shape, first.stride(), first.dtype) == (
        second.data_ptr(),
        second.shape,
        second.stride(),
        second.dtype,
    )


@dataclass(frozen=True)
class Pass:
    """One pass over all tokens: its arguments, and the buffers that its chunks use in turn."""

    head: Head
    ref_head: Head
    hidden_ND: Tensor
    ref_hidden_ND: Tensor
    token_ids_N: Tensor
    confidence_N: Tensor
    direction: Direction
    grad: bool
    factor_N: Tensor | None
    """The gradients are multiplied by this; None: by `boost`."""

    @property
    def boost(self) -> float:
        """A factor of the gradients that keeps them within their type."""
        return 1.0

    @property
    def wide(self) -> torch.dtype:
        """Of the scores, and of all sums."""
        return torch.promote_types(self.hidden_ND.dtype, torch.float32)

    def chunks(self) -> Iterator[tuple[Any, Scored, Tensor | None]]:
        """Chunk by chunk: (an index of its tokens, their scores [C], their gradient by the raw logits [C, V] or None).

        Certain anchors (confidence 1) come first, in each chunk too: they are the ones the reference never sees. The
        gradient lacks the factor `head.scale`, which is cheaper applied to what is made of it, and lies in a buffer
        that the next chunk overwrites.
        """
        count, vocabulary = len(self.hidden_ND), len(self.head.weight_VD)
        certain_N = self.confidence_N == 1
        order_N, certain = (~certain_N).byte().argsort(stable=True), int(certain_N.sum())
        size = even_size(count, chunk_size(vocabulary, self.wide.itemsize))
        logits_SV = self.hidden_ND.new_empty(size + min(size, count - certain), vocabulary, dtype=self.wide)
        spares = [logits_SV.new_empty(block_size(logits_SV, size, rows=3), vocabulary) for _ in range(self._spares())]
        exclusions = Exclusions.of(self.head, self.ref_head, self.direction)
        for start in range(0, count, size or 1):
            rows_C = order_N[start : start + size]
            without = min(max(certain - start, 0), len(rows_C))
            self._logits(rows_C, without, logits_SV)
            scored = self._scored(rows_C, without, logits_SV, spares, exclusions)
            if self.factor_N is not None:
                logits_SV[: len(rows_C)].mul_(self.factor_N[rows_C][:, None])
            yield rows_C, scored, logits_SV[: len(rows_C)] if self.grad else None

    def _spares(self) -> int:
        return 2 if self.grad and self.head.softcap is not None else 1

    def _logits(self, rows_C: Tensor, without: int, logits_SV: Tensor) -> None:
        """Raw logits: those of the model, and below them those of the reference for all but the first tokens."""
        hidden_CD = self.hidden_ND[rows_C].to(self.wide)
        ref_hidden_KD = self.ref_hidden_ND[rows_C[without:]].to(self.wide)
        count, total = len(hidden_CD), len(hidden_CD) + len(ref_hidden_KD)
        if same(self.head.weight_VD, self.ref_head.weight_VD):
            project(torch.cat([hidden_CD, ref_hidden_KD]), self.head.weight_VD, logits_SV[:total])
        else:
            project(hidden_CD, self.head.weight_VD, logits_SV[:count])
            project(ref_hidden_KD, self.ref_head.weight_VD, logits_SV[count:total])

    def _scored(
        self, rows_C: Tensor, without: int, logits_SV: Tensor, spares: list[Tensor], exclusions: Exclusions | None
    ) -> Scored:
        """Scores [C]; the model's logits become the gradient of their divergences."""
        count, block, excluded_E = len(rows_C), len(spares[0]), None if exclusions is None else exclusions.ids_E
        ids_C1 = self.token_ids_N[rows_C][:, None]
        conf_C1 = self.confidence_N[rows_C][:, None].to(self.wide)
        scored: list[RowScores] = []
        for low, high in ((0, without), (without, count)):
            for start in range(low, high, block):
                part = slice(start, min(start + block, high))
                size = part.stop - start
                logits_BV, ids_B1 = logits_SV[part], ids_C1[part]
                slope_BV = spares[1][:size] if len(spares) > 1 else None
                finish_logits(logits_BV, self.head, slope_BV)
                if start < without:
                    scored.append(certain_rows(logits_BV, ids_B1, grad=self.grad))
                else:
                    ref_BV = logits_SV[count - without + start :][:size]
                    finish_logits(ref_BV, self.ref_head)
                    rows = forward_rows if self.direction == "forward" else reverse_rows
                    spare_BV = spares[0][:size]
                    scored.append(rows(logits_BV, ref_BV, spare_BV, ids_B1, conf_C1[part], excluded_E, grad=self.grad))
                if slope_BV is not None:
                    logits_BV.mul_(slope_BV)
        divergence_C, *others = map(torch.cat, zip(*scored, strict=True))
        if exclusions is not None:
            infinite_C = exclusions.infinite(ids_C1[:, 0], conf_C1[:, 0])
            divergence_C.masked_fill_(infinite_C, torch.inf)
            if self.direction == "reverse":
                logits_SV[:count].masked_fill_(infinite_C[:, None], torch.nan)
        return Scored(divergence_C, *others)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        ref_hidden_ND: Tensor,
        ref_head: Head,
        shape: tuple[float, float | None],
        token_ids_N: Tensor,
        confidence_N: Tensor,
        direction: Direction,
        make: Callable[..., Pass],
    ) -> tuple[Tensor, ...]:
        head = Head(weight_VD, bias_V, *shape)
        head_trains = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        # The weight's gradient sums over tokens with factors that only backward knows, so it must recompute anyway.
        early = ctx.needs_input_grad[0] and not head_trains
        work = make(head, ref_head, hidden_ND, ref_hidden_ND, token_ids_N, confidence_N, direction, early, None)
        found = Scored(*(hidden_ND.new_zeros(len(hidden_ND), dtype=work.wide) for _ in Scored._fields))
        grad_hidden_ND = torch.zeros_like(hidden_ND, dtype=work.wide) if early else None
        for rows_C, scored, grad_CV in work.chunks():
            for whole_N, part_C in zip(found, scored, strict=True):
                whole_N[rows_C] = part_C
            if grad_hidden_ND is not None and grad_CV is not None:
                grad_hidden_ND[rows_C] = project_back(grad_CV, weight_VD).mul_(head.scale / work.boost)
        ctx.dtype = hidden_ND.dtype
        if head_trains:
            ctx.rest = (ref_hidden_ND, ref_head, shape, token_ids_N, confidence_N, direction, make)
        kept = (hidden_ND, weight_VD, bias_V) if head_trains else (None, None, None)
        ctx.save_for_backward(grad_hidden_ND, *kept)
        ctx.mark_non_differentiable(*found[1:])
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_N = grads[0]
        grad_hidden_ND, hidden_ND, weight_VD, bias_V = ctx.saved_tensors
        rest: tuple[None, ...] = (None,) * 7
        if hidden_ND is None:
            if grad_hidden_ND is None:
                return (None, None, None, *rest)
            return ((grad_hidden_ND * grad_N[:, None]).to(ctx.dtype), None, None, *rest)
        ref_hidden_ND, ref_head, shape, token_ids_N, confidence_N, direction, make = ctx.rest
        head, factor_N = Head(weight_VD, bias_V, *shape), grad_N * shape[0]
        work = make(head, ref_head, hidden_ND, ref_hidden_ND, token_ids_N, confidence_N, direction, True, factor_N)
        out_ND = torch.zeros_like(hidden_ND) if ctx.needs_input_grad[0] else None
        out_VD = torch.zeros_like(weight_VD, dtype=work.wide) if ctx.needs_input_grad[1] else None
        out_V = weight_VD.new_zeros(len(weight_VD), dtype=work.wide) if ctx.needs_input_grad[2] else None
        for rows_C, _, grad_CV in work.chunks():
            assert grad_CV is not None
            if out_ND is not None:
                out_ND[rows_C] = project_back(grad_CV, weight_VD).to(out_ND.dtype)
            if out_VD is not None:
                add_outer(out_VD, grad_CV, hidden_ND[rows_C])
            if out_V is not None:
                out_V += grad_CV.sum(0, dtype=work.wide)
        return (
            out_ND,
            out_VD.to(weight_VD.dtype) if out_VD is not None else None,
            out_V.to(bias_V.dtype) if out_V is not None and bias_V is not None else None,
            *rest,
        )
