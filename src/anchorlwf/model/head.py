"""The output projection of a model, in a form that projects hidden states outside the model.

Applying `lm_head` alone is wrong where logits are scaled or capped, so the result is compared with the model's own
logits before anything relies on it.

Shape suffixes: B records, T tokens, D hidden width, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from anchorlwf.errors import ModelError, wrong
from anchorlwf.loss.inputs import Head
from anchorlwf.model.language_model import LanguageModel

__all__ = ["captured_hidden", "probe_head", "read_head", "reference_head"]

_SCALES = ("logit_scale", "lm_head_multiplier")
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@contextlib.contextmanager
def captured_hidden(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect `last_hidden_state` of every forward pass of `backbone`, with its graph.

    A hook, so that the outermost wrapper (DistributedDataParallel) still runs its own forward and synchronises.
    """
    hidden: list[Tensor] = []
    handle = backbone.register_forward_hook(lambda _module, _inputs, output: hidden.append(output[0]))
    try:
        yield hidden
    finally:
        handle.remove()


def _shape(config: object) -> tuple[float, float | None]:
    """(scale, soft cap) of the logits, under the names that architectures give them."""
    scale = math.prod(getattr(config, name, None) or 1.0 for name in _SCALES)
    divisor = getattr(config, "logits_scaling", None) or 1.0
    caps = (getattr(config, name, None) for name in _SOFT_CAPS)
    return scale / divisor, next((cap for cap in caps if cap), None)


def _head_of(causal: nn.Module, frozen: bool) -> Head:
    layer = causal.get_output_embeddings()  # type: ignore[operator]
    weight, bias = layer.weight, getattr(layer, "bias", None)
    if isinstance(layer, LoraLayer) and not frozen:
        for name in layer.active_adapters:
            weight = weight + layer.get_delta_weight(name)
    if frozen:
        weight, bias = weight.detach(), None if bias is None else bias.detach()
    return Head(weight, bias, *_shape(causal.config.get_text_config()))  # type: ignore[operator,union-attr]


def read_head(model: LanguageModel) -> Head:
    """The head in training: weight [V, D] (with LoRA's change, where the head has one), bias, scale, soft cap."""
    return _head_of(model.causal, frozen=False)


def reference_head(model: LanguageModel) -> Head:
    """The reference's head, detached: of the frozen copy, or of the base under the adapter."""
    with model.reference() as net:
        return _head_of(net if net is not model.net else model.causal, frozen=True)


@torch.no_grad()
def probe_head(model: LanguageModel) -> None:
    """Compare the head as read with the model's own logits on a few tokens.

    Raises:
        ModelError: they differ, so a loss over projected hidden states would train against wrong probabilities; or
            they are no finite numbers.
    """
    vocabulary = model.causal.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(0, vocabulary, (2, 8), generator=generator).to(model.device)
    with model.reference() as net, captured_hidden(model.backbone_of(net)) as hidden:
        logits_BTV = net(input_ids=ids_BT, use_cache=False).logits.float()
    kind = type(model.causal).__name__
    if not hidden:
        what, got = "a network below the head that the model calls", type(model.backbone).__name__
        raise ModelError(wrong(f"{kind}: hidden states", what, f"{got}, which it does not", "It is not supported yet."))
    model.check_finite(logits_BTV.amax(-1))
    head = reference_head(model)
    ours_BTV = head.logits(hidden[0].flatten(0, 1)).view_as(logits_BTV)
    scale = logits_BTV[logits_BTV.isfinite()].abs().max().clamp(min=1.0)
    # Tokens that the head excludes (a bias of -inf) have no difference, and must be the same ones.
    gap = float((ours_BTV - logits_BTV).where(ours_BTV != logits_BTV, 0.0).abs().max() / scale)
    # Half precision rounds the model's own logits to 8 bits; a wrong scale or cap is off by far more.
    tolerance = 1e-3 if logits_BTV.dtype == hidden[0].dtype else 4e-2
    if gap > tolerance:
        fix = f"The head of {kind} does more than scale and soft-cap; it is not supported yet."
        raise ModelError(
            wrong(
                "output head",
                "hidden states that project to the model's own logits",
                f"a relative gap of {gap:.1e}",
                fix,
            )
        )
