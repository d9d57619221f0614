"""What every implementation of the loss receives, checked once.

Shape suffixes: N completion tokens, D hidden width, V vocabulary, E tokens that a head excludes.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from anchorlwf.errors import LossError, wrong

__all__ = ["MEMORY", "Direction", "Exclusions", "Head", "LossInputs", "Scored"]

Direction = Literal["forward", "reverse"]
MEMORY = 2**30
"""Bytes: the bound where none is given."""


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

    def excluded(self) -> Tensor | None:
        """Tokens whose probability is 0 for every hidden state, because their bias is -inf: bool [V]; or None.

        A soft cap brings every logit back into its bounds, so such a head excludes nothing.
        """
        if self.bias_V is None or self.softcap is not None:
            return None
        wide = torch.promote_types(self.bias_V.dtype, torch.float32)
        return torch.isneginf(self.bias_V.detach().to(wide) * self.scale)


class Scored(NamedTuple):
    """What an implementation of the loss says of the standing tokens; float32, or float64 for such inputs."""

    divergence_N: Tensor
    """Nats; differentiable."""
    behind_N: Tensor
    """The token's logit less the largest one: 0 where it is the model's greedy choice, below 0 elsewhere."""
    log_p_N: Tensor
    """The model's log-probability of the token, nats."""
    ref_log_p_N: Tensor
    """The reference's. Nothing that means anything at confidence 1, where the target has no share of it."""


class Exclusions(NamedTuple):
    """What follows for a divergence from the tokens that a head excludes."""

    ids_E: Tensor
    """int64, the tokens that at least one of the two heads excludes. Their differences of logits are no numbers."""
    unmatched_V: Tensor
    """bool, those of them to which the distribution on the left of KL( || ) gives a share and the one on the right
    none."""
    direction: Direction

    @classmethod
    def of(cls, head: Head, ref_head: Head, direction: Direction) -> "Exclusions | None":
        """None where neither head excludes anything, as nearly always."""
        ours_V, theirs_V = head.excluded(), ref_head.excluded()
        if ours_V is None and theirs_V is None:
            return None
        nothing_V = torch.zeros(len(head.weight_VD), dtype=torch.bool, device=head.weight_VD.device)
        ours_V, theirs_V = (nothing_V if part_V is None else part_V for part_V in (ours_V, theirs_V))
        ids_E = (ours_V | theirs_V).nonzero()[:, 0]
        if not len(ids_E):
            return None
        left_V, right_V = (theirs_V, ours_V) if direction == "forward" else (ours_V, theirs_V)
        return cls(ids_E, right_V & ~left_V, direction)

    def infinite(self, token_ids_N: Tensor, confidence_N: Tensor) -> Tensor:
        """Where the divergence is infinite because of an unmatched token: bool [N]."""
        if self.direction == "forward":
            # The target leaves the reference's other tokens a share, unless it is certain.
            return self.unmatched_V.any() & (confidence_N < 1)
        # The target gives an anchor a share even where the reference gives it none.
        spared_N = self.unmatched_V[token_ids_N] & (confidence_N > 0)
        return self.unmatched_V.sum() > spared_N


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
    memory: int = MEMORY
    """Bytes that a GPU's loss may take."""

    def check(self) -> None:
        """Raise `LossError` for shapes that do not fit."""
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

    def check_values(self) -> None:
        """Raise `LossError` for values for which the divergence is undefined. It waits for the GPU."""
        if not len(self.token_ids_N):
            return
        vocabulary = len(self.head.weight_VD)
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
