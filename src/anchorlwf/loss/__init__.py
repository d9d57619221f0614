"""The loss of the paper (section 3.2), per completion token. One signature, several implementations.

q_t = c_t * delta(y_t) + (1 - c_t) * p_ref
forward (default):  D_t = KL(q_t || p_theta)      cross-entropy at c = 1, distillation at c = 0
reverse:            D_t = KL(p_theta || q_t)      the formula as printed; undefined at c = 1
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from anchorlwf.errors import LossError, wrong
from anchorlwf.loss.chunked import chunked_loss
from anchorlwf.loss.dense import dense_loss
from anchorlwf.loss.inputs import Direction, Head, LossInputs, Scored

__all__ = ["Direction", "Implementation", "anchor_loss", "scored_loss"]

Implementation = Literal["auto", "dense", "chunked", "triton"]
_IMPLEMENTATIONS = ("auto", "dense", "chunked", "triton")
_log = logging.getLogger(__name__)


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
        weight: [V, D] output projection. Its gradient is formed if it requires one.
        token_ids: [N] int64, the completion tokens.
        confidence: [N] float in [0, 1]; 0 marks a keep token, a positive value an anchor.
        bias: [V] or None.
        ref_weight, ref_bias: the reference's head. None: a detached `weight` and `bias`. Give them if the head is
            trained, because the reference must not change.
        direction: "forward", or "reverse" for the formula as the paper prints it. Reverse needs confidence < 1 at every
            anchor and hardly learns anchors whose probability is near zero: its gradient contains a factor p_theta.
        logit_scale: multiplies the logits (Cohere, Granite).
        softcap: soft cap of the logits (Gemma 2), applied after the scale.
        impl: "dense" (full logits, the oracle), "chunked" (bounded memory, any device), "triton" (CUDA; chunked if
            the head is trained or the inputs are float64). "auto": triton where possible, otherwise chunked.

    Returns:
        [N] in float32 (float64 for float64 inputs), whatever the dtype of the inputs. For N = 0 it is empty but still
        has a graph. A token whose bias is -inf has probability 0 and contributes nothing; the divergence is infinite
        only where the target gives it some probability and the model none (reverse: the other way round).

    Raises:
        LossError: shapes that do not fit, token ids or confidences out of range, reverse at confidence 1, or "triton"
            without triton or off CUDA.
    """
    head = Head(weight, bias, logit_scale, softcap)
    ref_weight, ref_bias = weight if ref_weight is None else ref_weight, bias if ref_bias is None else ref_bias
    ref_head = Head(ref_weight.detach(), None if ref_bias is None else ref_bias.detach(), logit_scale, softcap)
    inputs = LossInputs(hidden, ref_hidden, head, ref_head, token_ids, confidence, direction)
    return scored_loss(inputs, impl).divergence_N


def scored_loss(inputs: LossInputs, impl: Implementation = "auto") -> Scored:
    """`anchor_loss`, and how far the standing tokens are from being the greedy choice, which costs nothing more.

    Raises:
        LossError: as `anchor_loss`.
    """
    if impl not in _IMPLEMENTATIONS:
        raise LossError(wrong("impl", " or ".join(_IMPLEMENTATIONS), repr(impl), "Choose one of them."))
    inputs = replace(inputs, ref_hidden_ND=inputs.ref_hidden_ND.detach())
    inputs.check()
    # Half precision inside an autocast region would undo the float32 of the projections.
    with torch.autocast(inputs.hidden_ND.device.type, enabled=False):
        return _implementation(impl, inputs)(inputs)


def _implementation(impl: Implementation, inputs: LossInputs) -> Callable[[LossInputs], Scored]:
    if impl in ("dense", "chunked") or (impl == "auto" and not inputs.hidden_ND.is_cuda):
        return dense_loss if impl == "dense" else chunked_loss
    if find_spec("triton") is None:
        if impl == "triton":
            raise LossError(wrong("impl 'triton'", "triton installed", "none", "pip install triton, or use 'auto'."))
        return _fall_back("triton is not installed")
    head = inputs.head
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (head.weight_VD, head.bias_V)):
        return _fall_back("the head trains")
    if torch.float64 in {inputs.hidden_ND.dtype, inputs.ref_hidden_ND.dtype, head.weight_VD.dtype}:
        return _fall_back("the kernels accumulate in float32, and the inputs are float64")
    # Late: triton takes its time, and only Linux has it.
    from anchorlwf.loss.triton_kernels import interpreted, triton_loss

    if not inputs.hidden_ND.is_cuda and not interpreted():
        got = f"tensors on {inputs.hidden_ND.device}"
        raise LossError(wrong("impl 'triton'", "CUDA tensors", got, "Use 'auto' or 'chunked' there."))
    return triton_loss


@cache
def _fall_back(reason: str) -> Callable[[LossInputs], Scored]:
    """Chunked; says so once for each reason."""
    _log.info("The loss runs chunked, not in Triton: %s.", reason)
    return chunked_loss
