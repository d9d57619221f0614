"""The loss of the paper (section 3.2), per completion token. One signature, several implementations.

    q_t = c_t * delta(y_t) + (1 - c_t) * p_ref
    forward (default):  D_t = KL(q_t || p_theta)      cross-entropy at c = 1, distillation at c = 0
    reverse:            D_t = KL(p_theta || q_t)      the formula as printed; undefined at c = 1
"""

from typing import Literal

import torch
from torch import Tensor

from anchorlwf.errors import LossError, wrong
from anchorlwf.loss.chunked import chunked_loss
from anchorlwf.loss.dense import dense_loss
from anchorlwf.loss.inputs import Direction, Head, LossInputs

__all__ = ["Direction", "Implementation", "anchor_loss"]

Implementation = Literal["auto", "dense", "chunked"]
_IMPLEMENTATIONS = {"auto": chunked_loss, "chunked": chunked_loss, "dense": dense_loss}


def anchor_loss(
    hidden: Tensor,
    ref_hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    confidence: Tensor,
    *,
    bias: Tensor | None = None,
    ref_weight: Tensor | None = None,
    ref_bias: Tensor | None = None,
    direction: Direction = "forward",
    logit_scale: float = 1.0,
    softcap: float | None = None,
    impl: Implementation = "auto",
) -> Tensor:
    """Per-token divergence between the model and its target, in nats; differentiable in hidden, weight and bias.

    Args:
        hidden: [N, D] final hidden states of the model at the positions that predict the N completion tokens.
        ref_hidden: [N, D] the reference's hidden states at the same positions; never differentiated.
        weight: [V, D] output projection. Its gradient is formed where it requires one.
        token_ids: [N] int64, the tokens that stand there.
        confidence: [N] float in [0, 1]; 0 marks a keep token, more an anchor.
        bias: [V] or None.
        ref_weight, ref_bias: the reference's head; None: a detached `weight` and `bias`. Give them when the head
            trains, for the reference must not move.
        direction: "forward", or "reverse" for the printed formula. Reverse needs confidence < 1 at every anchor and
            hardly learns anchors whose probability is near zero: its gradient carries a factor p_theta.
        logit_scale: multiplies the logits (Cohere, Granite).
        softcap: soft cap of the logits (Gemma 2), applied after the scale.
        impl: "dense" (full logits, the oracle), "chunked" (bounded memory), "auto".

    Returns:
        [N] in float32 (float64 for float64 inputs), whatever the dtype of the inputs. Empty for N = 0, with a graph.

    Raises:
        LossError: shapes that do not fit, token ids or confidences out of range, or reverse at confidence 1.
    """
    if impl not in _IMPLEMENTATIONS:
        raise LossError(wrong("impl", " or ".join(_IMPLEMENTATIONS), repr(impl), "Choose one of them."))
    ref_weight = weight if ref_weight is None else ref_weight
    ref_bias = bias if ref_bias is None else ref_bias
    inputs = LossInputs(
        hidden, ref_hidden.detach(), Head(weight, bias, logit_scale, softcap),
        Head(ref_weight.detach(), None if ref_bias is None else ref_bias.detach(), logit_scale, softcap),
        token_ids, confidence, direction,
    )
    inputs.check()
    # Half precision inside an autocast region would undo the float32 of the projections.
    with torch.autocast(hidden.device.type, enabled=False):
        return _IMPLEMENTATIONS[impl](inputs)
