"""Which layers of a network get LoRA.

MLP inputs come first: in measurements on the embedded world, corrections made there changed other answers the least.
Where a network has none, or has them in a few of its layers only, the experts of a mixture join them; these are single
parameters with an axis of experts. Where there is neither, it is the inputs of attention or of a recurrent mixer.

Layers are recognised by their shapes and their neighbours, not by a list of architectures.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anchorlwf.errors import ModelError, wrong

__all__ = ["ALL_LINEAR", "AUTO", "MLP", "Targets", "choices", "named"]

AUTO, MLP, ALL_LINEAR = "auto", "mlp", "all-linear"

_MLP_NAME = re.compile(r"(^|[._])(mlp|feed_forward|ffn|ff|fc1|shared_experts?|shared_mlp)([._]|$)")
_ATTENTION_NAME = re.compile(r"attn|attention")
_ROUTER_NAME = re.compile(r"(^|[._])(router|gate)([._]|$)")
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_OUTPUT_NAME = re.compile(r"(^|_)(o|out|output|down|fc2|w2|c_proj|4h_to_h)(_|$)|^dense$")
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Targets:
    """Layers, and parameters that are no layer's weight, by their names in the network."""

    kind: str
    """In words, such as `MLP inputs`."""
    modules: tuple[str, ...]
    """Linear layers."""
    parameters: tuple[str, ...] = ()
    """Such as `model.layers.0.mlp.experts.gate_up_proj`."""

    recognised: bool = True
    """By us; otherwise they are what somebody asked for, in PEFT's terms."""

    @property
    def names(self) -> set[str]:
        """All of them."""
        return {*self.modules, *self.parameters}

    def of(self, names: set[str]) -> "Targets":
        """What became of them."""
        modules = [name for name in self.modules if name in names]
        return replace(self, modules=tuple(modules), parameters=tuple(sorted(names - set(modules))))

    def __str__(self) -> str:
        """Such as `MLP inputs: gate_proj, up_proj (30 layers)`."""
        lasts = dict.fromkeys(_last(name) for name in (*self.modules, *self.parameters))
        layers = len({_layer(name) for name in self.names})
        return f"{self.kind}: {', '.join(lasts)} ({layers} layer{'s' * (layers != 1)})"


def _last(name: str) -> str:
    """The part of a name that tells a layer from its neighbours."""
    parts = name.split(".")
    # GraniteMoE's experts are the weight of a module; a layer of a Sequential has only a number.
    return ".".join(parts[-2:]) if parts[-1] == "weight" or parts[-1].isdecimal() else parts[-1]


def _layer(name: str) -> str:
    """The number of the block that a name belongs to; the name's beginning where there is none."""
    found = _LAYER.search(name)
    return name.partition(".")[0] if found is None else found[1]


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear layer, None for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    # GPT-2's linear layer, whose weight is transposed.
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None


def _linears(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The linear layers directly below a module, by their names there."""
    shapes = {name: _shape(child) for name, child in module.named_children()}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def _width(causal: PreTrainedModel) -> int:
    """Of the hidden states; some embeddings are narrower."""
    width = getattr(causal.config.get_text_config(), "hidden_size", None)
    return int(width or causal.get_input_embeddings().weight.shape[1])


def _text_modules(causal: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that read text, by name: in a model that sees, those of the language model inside."""
    text = causal.get_decoder()
    for prefix, module in causal.named_modules():
        if module is text:
            yield from module.named_modules(prefix=prefix)
            return
    yield from causal.named_modules()


def _blocks(causal: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    """Those of the text modules that are part of a repeated block."""
    return [(name, module) for name, module in _text_modules(causal) if _LAYER.search(f".{name}.")]


def _reads_and_writes(shapes: dict[str, tuple[int, int]], width: int) -> list[str]:
    """Those of a block's layers that read the hidden state and lead, doubled or not, into another that writes it."""
    downs = {name: inputs for name, (inputs, outputs) in shapes.items() if outputs == width}
    return [
        name
        for name, (inputs, outputs) in shapes.items()
        # An MLP with a gate may hold it in the same layer: twice as many outputs.
        if inputs == width
        and not _OUTPUT_NAME.search(name)
        and any(outputs in (inner, 2 * inner) for down, inner in downs.items() if down != name)
    ]


def _recurrent(module: nn.Module) -> bool:
    """Whether it convolves or carries a state of its own; its input looks like that of an MLP with a gate."""
    own = any(True for _ in module.parameters(recurse=False))
    return own or any(isinstance(child, nn.Conv1d) for child in module.children())


def _mlp_inputs(causal: PreTrainedModel) -> list[str]:
    """The layers through which MLP blocks read the hidden state (gate and up, or the first of two)."""
    width, by_name, by_shape = _width(causal), [], []
    for parent, module in _blocks(causal):
        if _ATTENTION_NAME.search(parent) or _EXPERT.search(f"{parent}."):
            continue
        for child in _reads_and_writes(_linears(module), width):
            name = f"{parent}.{child}"
            if _MLP_NAME.search(name):
                by_name.append(name)
            elif len(_linears(module)) <= 3 and not _recurrent(module):
                by_shape.append(name)
    return by_name or by_shape


def _expert_inputs(causal: PreTrainedModel) -> tuple[list[str], list[str]]:
    """(layers, parameters) through which routed experts read the hidden state."""
    width, layers, parameters = _width(causal), [], []
    for parent, module in _blocks(causal):
        if _EXPERT.search(f"{parent}."):
            layers += [f"{parent}.{child}" for child in _reads_and_writes(_linears(module), width)]
        if isinstance(module, nn.Conv1d) or _ATTENTION_NAME.search(parent):
            continue
        for child, weight in module.named_parameters(recurse=False):
            name = f"{parent}.{child}"
            # [experts, outputs, inputs] or [experts, inputs, outputs].
            shaped = weight.dim() == 3 and min(weight.shape) > 1 and width in weight.shape[1:]
            if shaped and not _OUTPUT_NAME.search(_last(name).partition(".")[0]):
                parameters.append(name)
    return layers, parameters


def _mixer_inputs(causal: PreTrainedModel) -> list[str]:
    """The layers through which attention, or what stands in its place, reads the hidden state."""
    width = _width(causal)
    return [
        f"{parent}.{child}"
        for parent, module in _blocks(causal)
        for child, (inputs, _) in _linears(module).items()
        if inputs == width and not _OUTPUT_NAME.search(child) and not _ROUTER_NAME.search(f"{parent}.{child}")
    ]


def choices(causal: PreTrainedModel) -> Iterator[Targets]:
    """What `auto` may choose for a network, the best first."""
    mlp, (layers, parameters) = _mlp_inputs(causal), _expert_inputs(causal)
    mixtures = {_layer(name) for name in (*layers, *parameters)} - {_layer(name) for name in mlp}
    # A few dense layers before many mixtures are no place for a correction alone.
    if mlp and len({_layer(name) for name in mlp}) >= len(mixtures):
        yield Targets("MLP inputs", tuple(mlp))
    elif mixtures:
        kind = "MLP and expert inputs" if mlp else "expert inputs"
        lone = [[name for name in names if _layer(name) in mixtures] for names in (layers, parameters)]
        yield Targets(kind, (*mlp, *lone[0]), tuple(lone[1]))
    mixers = _mixer_inputs(causal)
    if mixers:
        recurrent = not any(_ATTENTION_NAME.search(name) for name in mixers)
        yield Targets("mixer inputs" if recurrent else "attention inputs", tuple(mixers))


def named(causal: PreTrainedModel, targets: str | list[str]) -> Targets:
    """What a person asks for: `mlp`, `all-linear`, a pattern or names, as PEFT matches them.

    Raises:
        ModelError: `mlp`, and the network has no MLP that is recognised.
    """
    if targets == MLP:
        mlp = _mlp_inputs(causal)
        if not mlp:
            fix = "Give targets: auto, all-linear, or the names of linear layers."
            raise ModelError(wrong("LoRA targets mlp", "MLP layers", "none recognised", fix))
        return Targets("MLP inputs", tuple(mlp))
    if targets == ALL_LINEAR:
        head = causal.get_output_embeddings()
        layers = [name for name, module in causal.named_modules() if _shape(module) and module is not head]
        return Targets("all linear layers", tuple(layers))
    config = LoraConfig(target_modules=targets)
    matched = [name for name, _ in causal.named_modules() if check_target_module_exists(config, name)]
    return Targets("as asked", tuple(matched), recognised=False)
