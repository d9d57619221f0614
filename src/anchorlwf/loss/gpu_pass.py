"""How a GPU passes over the tokens: large chunks, each three products and one pass over rows of logits.

What is fast on a GPU: products as cuBLAS has them, and as few walks over the logits as can be. So a chunk's logits are
float32 rows of model and reference, as many as the bound on memory allows, and one kernel (`row_kernel`) turns them
into divergences and into the gradient, in the head's own type, which is what the third product takes in. Nothing is
recomputed. Where there is no Triton, `plain_rows` does the same in torch's operations.

Nothing here waits for the GPU, unless a head has a bias, which may exclude tokens.

Shape suffixes: N tokens, C tokens of a chunk, D hidden width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anchorlwf.loss.chunked import Pass, even_size
from anchorlwf.loss.inputs import Direction, Exclusions, Head, Scored
from anchorlwf.loss.products import project
from anchorlwf.loss.rows import finish_logits, forward_rows, reverse_rows

__all__ = ["GpuPass", "Rows", "plain_rows"]

TILE_ROWS = 128
"""Chunks are multiples of this, for cuBLAS's tiles are that high."""
LINE = 64
"""Rows of logits begin at multiples of so many numbers: a whole line of memory in any type."""
SHARE_OF_CARD = 32
"""The logits take no more than one such part of a card's memory."""
HALF_BOOST = 2.0**15
"""float16 has no numbers below 6e-8. Gradients are multiplied by this before they are rounded to it, which is exact;
|p - q| is 1 at the most, so none becomes infinite."""


@dataclass(frozen=True)
class Rows:
    """One chunk, as the pass over rows gets it."""

    logits_CV: Tensor
    """Raw, float32; may be overwritten."""
    ref_logits_CV: Tensor
    head: Head
    ref_head: Head
    direction: Direction
    ids_C: Tensor
    confidence_C: Tensor
    """float32."""
    infinite_C: Tensor
    """int8, 1 where the divergence is infinite because of what a head excludes."""
    factor_C: Tensor
    """The gradient of each token is multiplied by this before it is rounded."""
    excluded_E: Tensor | None
    """See `Exclusions.ids_E`."""
    scores_4C: Tensor
    """Written: the fields of `Scored`."""
    grad_CV: Tensor | None
    """Written: the gradient by the raw logits, without the head's scale. May be `logits_CV` itself."""


@dataclass(frozen=True)
class GpuPass(Pass):
    """A pass in large chunks, in the order of the tokens."""

    rows: Callable[[Rows], None]
    limit: int
    """Bytes that the pass may take beyond its inputs, the gradient of the hidden states included."""

    @property
    def boost(self) -> float:
        """What the gradients of `chunks` are multiplied by, a power of two."""
        return HALF_BOOST if self._grad_dtype == torch.float16 else 1.0

    @property
    def _grad_dtype(self) -> torch.dtype:
        """That of the gradient by the logits: the head's where that loses nothing that matters, else float32."""
        dtype = self.head.weight_VD.dtype
        # float16 is too short for factors that nobody knows beforehand, and for the reverse direction's gradient.
        small = dtype == torch.float16 and (self.factor_N is not None or self.direction == "reverse")
        return torch.float32 if small else dtype

    def chunks(self) -> Iterator[tuple[slice, Scored, Tensor | None]]:
        """As `Pass.chunks`, in slices."""
        count, vocabulary = self.hidden_ND.shape[0], len(self.head.weight_VD)
        width = -(-vocabulary // LINE) * LINE
        size = self._size(count, width)
        logits_2CW = self.hidden_ND.new_empty(2, size, width, dtype=torch.float32)
        grad_CW = logits_2CW[0]
        if self.grad and self._grad_dtype != torch.float32:
            grad_CW = logits_2CW.new_empty(size, width, dtype=self._grad_dtype)
        exclusions = Exclusions.of(self.head, self.ref_head, self.direction)
        infinite_N = self._infinite(exclusions)
        factor_N = logits_2CW.new_full((count,), self.boost) if self.factor_N is None else self.factor_N.float()
        scores_4N = logits_2CW.new_empty(4, count)
        confidence_N, excluded_E = self.confidence_N.float(), None if exclusions is None else exclusions.ids_E
        for start in range(0, count, size or 1):
            chunk = slice(start, min(start + size, count))
            here = chunk.stop - start
            logits_CV, ref_logits_CV = logits_2CW[:, :here, :vocabulary]
            project(self.hidden_ND[chunk], self.head.weight_VD, logits_CV)
            project(self.ref_hidden_ND[chunk], self.ref_head.weight_VD, ref_logits_CV)
            given = Rows(
                logits_CV,
                ref_logits_CV,
                self.head,
                self.ref_head,
                self.direction,
                self.token_ids_N[chunk],
                confidence_N[chunk],
                infinite_N[chunk],
                factor_N[chunk],
                excluded_E,
                scores_4N[:, chunk],
                grad_CW[:here, :vocabulary] if self.grad else None,
            )
            self.rows(given)
            yield chunk, Scored(*given.scores_4C), given.grad_CV

    def _infinite(self, exclusions: Exclusions | None) -> Tensor:
        if exclusions is None:
            return torch.zeros_like(self.token_ids_N, dtype=torch.int8)
        return exclusions.infinite(self.token_ids_N, self.confidence_N).to(torch.int8)

    def _size(self, count: int, width: int) -> int:
        """Tokens of a chunk."""
        room = self.limit
        if self.hidden_ND.is_cuda:
            card = torch.cuda.get_device_properties(self.hidden_ND.device).total_memory
            room = min(room, card // SHARE_OF_CARD)
        half, grad_bytes = self._grad_dtype != torch.float32, 4 * self.hidden_ND.numel()
        # Of a great many tokens the gradient alone takes more than there is.
        room = max(room // 2, room - self.grad * grad_bytes)
        spares = 1 + (self.grad and self.head.softcap is not None) if self.rows is plain_rows else 0
        most = max(1, room // (width * (8 + 4 * spares + 2 * (half and self.grad))))
        if most <= TILE_ROWS:
            return even_size(count, most)
        most -= most % TILE_ROWS
        return min(count, -(-even_size(count, most) // TILE_ROWS) * TILE_ROWS)


def plain_rows(given: Rows) -> None:
    """Fill `given.scores_4C`, and `given.grad_CV` where there is one.

    All rows of a chunk at once, for what is small costs a GPU as much time as what is not.
    """
    walk, grad_CV = forward_rows if given.direction == "forward" else reverse_rows, given.grad_CV
    logits_CV, ref_CV, factor_C1 = given.logits_CV, given.ref_logits_CV, given.factor_C[:, None]
    slope_CV = torch.empty_like(logits_CV) if grad_CV is not None and given.head.softcap is not None else None
    finish_logits(logits_CV, given.head, slope_CV)
    finish_logits(ref_CV, given.ref_head)
    ids_C1, conf_C1 = given.ids_C[:, None], given.confidence_C[:, None]
    spare_CV = torch.empty_like(logits_CV)
    scored = walk(logits_CV, ref_CV, spare_CV, ids_C1, conf_C1, given.excluded_E, grad=grad_CV is not None)
    torch.stack(scored, out=given.scores_4C)
    infinite_C = given.infinite_C != 0
    given.scores_4C[0].masked_fill_(infinite_C, torch.inf)
    if grad_CV is None:
        return
    if slope_CV is not None:
        logits_CV.mul_(slope_CV)
    if given.direction == "reverse":
        factor_C1 = factor_C1.masked_fill(infinite_C[:, None], torch.nan)
    # Multiplied in float32, and rounded once.
    torch.mul(logits_CV, factor_C1, out=grad_CV)
