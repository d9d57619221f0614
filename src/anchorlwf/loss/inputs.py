"""What every implementation of the loss receives, checked once.

Shape suffixes: N completion tokens, D hidden width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anchorlwf.errors import LossError, wrong

__all__ = ["Direction", "Head", "LossInputs"]

Direction = Literal["forward", "reverse"]


@dataclass(frozen=True)
class Head:
    """A projection to the vocabulary: softcap(scale * (hidden @ weight.T + bias))."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] in float32, or in float64 where the inputs are."""
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        logits_NV = hidden_ND.to(wide) @ self.weight_VD.to(wide).T
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V.to(wide)
        if self.scale != 1.0:
            logits_NV = logits_NV * self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * torch.tanh(logits_NV / self.softcap)
        return logits_NV


@dataclass(frozen=True)
class LossInputs:
    """Checked arguments of `anchor_loss`."""

    hidden_ND: Tensor
    ref_hidden_ND: Tensor
    head: Head
    ref_head: Head
    token_ids_N: Tensor
    confidence_N: Tensor
    direction: Direction

    def check(self) -> None:
        """Raise `LossError` for shapes that do not fit and values for which the divergence is undefined."""
        hidden, weight = self.hidden_ND, self.head.weight_VD
        if hidden.dim() != 2:
            raise LossError(wrong("hidden", "shape [N, D]", list(hidden.shape), "Select completion positions first."))
        count, width = hidden.shape
        vocabulary = weight.shape[0]
        wanted = {
            "weight": (weight, (vocabulary, width)),
            "ref_hidden": (self.ref_hidden_ND, (count, self.ref_head.weight_VD.shape[-1])),
            "ref_weight": (self.ref_head.weight_VD, (vocabulary, self.ref_hidden_ND.shape[-1])),
            "token_ids": (self.token_ids_N, (count,)),
            "confidence": (self.confidence_N, (count,)),
            "bias": (self.head.bias_V, (vocabulary,)),
            "ref_bias": (self.ref_head.bias_V, (vocabulary,)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise LossError(wrong(name, f"shape {list(shape)}", list(tensor.shape), "Match it to hidden."))
        if self.token_ids_N.dtype != torch.long:
            raise LossError(wrong("token_ids", "dtype int64", self.token_ids_N.dtype, "Call .long() on it."))
        if self.direction not in ("forward", "reverse"):
            raise LossError(wrong("direction", "'forward' or 'reverse'", repr(self.direction), "Choose one."))
        if count:
            self._check_values(vocabulary)

    def _check_values(self, vocabulary: int) -> None:
        low, high = self.token_ids_N.aminmax()
        if low < 0 or high >= vocabulary:
            got = f"{int(low)} to {int(high)}"
            raise LossError(wrong("token_ids", f"0 to {vocabulary - 1}", got, "Check the tokenizer against the head."))
        confidence_N = self.confidence_N
        # NaN fails both comparisons, so it is caught here too.
        if not bool(((confidence_N >= 0) & (confidence_N <= 1)).all()):
            raise LossError(wrong("confidence", "values in [0, 1]", confidence_N.tolist()[:8], "0 marks a keep token."))
        if self.direction == "reverse" and bool((confidence_N == 1).any()):
            raise LossError(
                "direction='reverse': expected every anchor's confidence below 1, got 1. KL(p_theta || q) is infinite "
                "against a target that is certain, unless p_theta is certain too. Use direction='forward' (it is "
                "cross-entropy at confidence 1), or lower the confidence; note that reverse KL hardly learns tokens "
                "whose probability is near zero, for its gradient vanishes there."
            )
