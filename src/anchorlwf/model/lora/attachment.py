"""Attaching LoRA, and making sure that what was asked for is what trains.

PEFT rewrites names on its own account: for many mixtures of experts, `gate_proj` becomes the routed experts' fused
parameter wherever it stands, so that dense layers and shared experts of that name get nothing. And an adapter on a
parameter that a network reads past the forward pass of its module changes nothing.
"""

import dataclasses
import re
import warnings
from collections.abc import Iterable

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anchorlwf.errors import ModelError, wrong
from anchorlwf.model.loading import few
from anchorlwf.model.lora.targets import ALL_LINEAR, AUTO, Targets, choices, named

__all__ = ["attach", "without_wrappers"]

_FIX = "Name linear layers of this architecture, or use auto or all-linear."
_WRAPPERS = re.compile(r"(\.base_layer)+(?=\.|$)")


def without_wrappers(name: str) -> str:
    """The name that a module or parameter of the base has without the LoRA layers around it."""
    return _WRAPPERS.sub("", name)


def attach(causal: PreTrainedModel, config: LoraConfig, targets: str | list[str]) -> tuple[PeftModel, Targets]:
    """Put LoRA on a network; everything else is frozen.

    Args:
        causal: in eval mode; changed in place. After an error its layers are as they were.
        config: without targets.
        targets: see `TrainConfig`.

    Returns:
        The network with the adapter, and what trains.

    Raises:
        ModelError: nothing fits the targets, PEFT cannot put an adapter there, or it would not train; or the targets
            include a head or embedding that share one weight. Such an adapter changes both ends of the network while
            training and merges wrongly (PEFT only warns).
    """
    layers = dict(causal.named_modules())
    options = choices(causal) if targets == AUTO else iter([named(causal, targets)])
    got = "none recognised"
    try:
        for option in options:
            if targets != ALL_LINEAR:
                _refuse_tied(causal, option)
            net = _attached(causal, config, targets, option, layers)
            idle = _idle(net)
            if not idle:
                trained = _trained(net)
                layers.clear()  # nothing is put back
                return net, option.of(trained)
            got = f"{few(idle)}, which change nothing"
            _put_back(causal, layers)
    finally:
        _put_back(causal, layers)
    raise ModelError(wrong(f"LoRA targets {targets}", "layers that read the hidden state", got, _FIX))


def _refuse_tied(causal: PreTrainedModel, targets: Targets) -> None:
    ends = (causal.get_input_embeddings(), causal.get_output_embeddings())
    if ends[0].weight is not ends[1].weight:
        return
    clash = [name for name, module in causal.named_modules() if module in ends and name in targets.modules]
    if clash:
        fix = "Leave them out (the default, auto, does)."
        raise ModelError(wrong("LoRA targets", "no tied head or embedding", ", ".join(clash), fix))


def _put_back(causal: PreTrainedModel, layers: dict[str, nn.Module]) -> None:
    """Every layer where it was; PEFT's own `unload` fails on parameters."""
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        if name and getattr(layers[parent], child) is not layer:
            setattr(layers[parent], child, layer)
    if layers:
        vars(causal).pop("peft_config", None)


def _attached(
    causal: PreTrainedModel, config: LoraConfig, asked: str | list[str], targets: Targets, layers: dict[str, nn.Module]
) -> PeftModel:
    """LoRA on the targets: by names, or where PEFT makes others of these, on the layers' weights as parameters."""
    as_asked = asked == ALL_LINEAR or not targets.recognised
    net = _with_lora(causal, config, asked if as_asked else list(targets.modules), targets.parameters, asked)
    trained = _trained(net)
    missing = targets.names - trained
    extra = set() if asked == ALL_LINEAR or not targets.names else trained - targets.names
    if not missing and not extra:
        return net
    _put_back(causal, layers)
    kept = [name for name in targets.modules if name in trained]
    weights = [f"{name}.weight" for name in targets.modules if name in missing]
    fused = sorted(trained - targets.names - extra)
    net = _with_lora(causal, config, kept, (*targets.parameters, *weights, *fused), asked)
    left = targets.names ^ (_trained(net) - set(fused))
    if left:
        raise ModelError(wrong("LoRA targets", "just what was asked for", f"a difference in {few(left)}", _FIX))
    return net


def _with_lora(
    causal: PreTrainedModel,
    config: LoraConfig,
    modules: str | list[str],
    parameters: Iterable[str],
    asked: str | list[str],
) -> PeftModel:
    own = dataclasses.replace(config, target_modules=modules, target_parameters=list(parameters) or None)
    if own.target_parameters and own.lora_dropout:
        fix = "Set lora_dropout to 0, or give other targets."
        got = f"{config.lora_dropout} with {few(own.target_parameters)}"
        raise ModelError(wrong("lora_dropout", "0 where an adapter is put on a parameter", got, fix))
    try:
        with warnings.catch_warnings():
            # It finds out by itself that the weights of a Conv1D are transposed.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            return get_peft_model(causal, own)
    except (ValueError, ImportError) as error:
        raise ModelError(wrong("LoRA targets", "modules of this model", asked, f"{_FIX} ({error})")) from error


def _trained(net: PeftModel) -> set[str]:
    """The layers and parameters of the base that have an adapter, by their names in the base."""
    found = set()
    base = net.get_base_model()
    for name, module in base.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        plain = without_wrappers(name)
        if isinstance(module, ParamWrapper):
            whole = isinstance(module.get_base_layer(), nn.Linear | Conv1D)
            found.add(plain if whole else f"{plain}.{module.parameter_name}")
        else:
            found.add(plain)
    return found


def _idle(net: PeftModel) -> list[str]:
    """The adapter's weights that no output depends on."""
    weights = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    vocabulary = net.get_base_model().get_input_embeddings().weight
    ids_BT = torch.arange(1, 9, device=vocabulary.device)[None] % vocabulary.shape[0]
    # In eval mode some kernels for quantised weights have no gradient.
    net.train()
    try:
        with torch.enable_grad():
            logits = net(input_ids=ids_BT, use_cache=False).logits.float()
    finally:
        net.eval()
    gradients = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True)
    return [name for name, gradient in zip(weights, gradients, strict=True) if gradient is None]
