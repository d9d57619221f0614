"""The loss of the paper (section 3.2), per completion token. One signature, several implementations.

q_t = c_t * delta(y_t) + (1 - c_t) * p_ref
forward (default):  D_t = KL(q_t || p_theta)      cross-entropy at c = 1, distillation at c = 0
reverse:            D_t = KL(p_theta || q_t)      the formula as printed; undefined at c = 1
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from anchorlwf.errors import LossError, wrong
from anchorlwf.loss.chunked import chunked_loss
from anchorlwf.loss.dense import dense_loss
from anchorlwf.loss.gpu_pass import GpuPass, plain_rows
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
        impl: "dense" (full logits, the oracle), "chunked" (bounded memory, any device), "triton" (the same on CUDA with
            a kernel for the rows of logits; chunked if the inputs are float64). "auto": triton where possible,
            otherwise chunked.
            On a GPU both take 1 GiB beyond the inputs at the most, on a small card less; on a CPU about 112 MiB.

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
    inputs.check()
    inputs.check_values()
    return scored_loss(inputs, impl).divergence_N


def scored_loss(inputs: LossInputs, impl: Implementation = "auto") -> Scored:
    """`anchor_loss`, and how the standing tokens are doing, which costs nothing more.

    Token ids and confidences are not checked, for on a GPU that would wait for all that is under way.

    Raises:
        LossError: shapes that do not fit; "triton" without triton or off CUDA.
    """
    if impl not in _IMPLEMENTATIONS:
        raise LossError(wrong("impl", " or ".join(_IMPLEMENTATIONS), repr(impl), "Choose one of them."))
    inputs = replace(inputs, ref_hidden_ND=inputs.ref_hidden_ND.detach())
    inputs.check()
    # Half precision inside an autocast region would undo the float32 of the projections.
    with torch.autocast(inputs.hidden_ND.device.type, enabled=False):
        return _implementation(impl, inputs)(inputs)


def _implementation(impl: Implementation, inputs: LossInputs) -> Callable[[LossInputs], Scored]:
    on_gpu = inputs.hidden_ND.is_cuda
    if impl == "dense":
        return dense_loss
    if impl != "triton" and not on_gpu:
        return chunked_loss
    if torch.float64 in {inputs.hidden_ND.dtype, inputs.ref_hidden_ND.dtype, inputs.head.weight_VD.dtype}:
        return _fall_back("sums are in float32 there, and the inputs are float64") if on_gpu else chunked_loss
    make = partial(GpuPass, rows=plain_rows, limit=inputs.memory)
    if impl == "chunked":
        return partial(chunked_loss, make=make)
    if find_spec("triton") is None:
        if impl == "triton":
            raise LossError(wrong("impl 'triton'", "triton installed", "none", "pip install triton, or use 'auto'."))
        return partial(chunked_loss, make=make)
    # Late: triton takes its time, and only Linux has it.
    from anchorlwf.loss.row_kernel import interpreted, triton_rows

    if not on_gpu and not interpreted():
        got = f"tensors on {inputs.hidden_ND.device}"
        raise LossError(wrong("impl 'triton'", "CUDA tensors", got, "Use 'auto' or 'chunked' there."))
    return partial(chunked_loss, make=partial(GpuPass, rows=triton_rows, limit=inputs.memory))


@cache
def _fall_back(reason: str) -> Callable[[LossInputs], Scored]:
    """Small chunks in the inputs' own type; says so once for each reason."""
    _log.info("The loss does not run as is fast on a GPU: %s.", reason)
    return chunked_loss
