"""How a network's cache may be used: found out by trying, not by its name.

Some networks go wrong without a word where they are fed several tokens behind what their cache holds (state spaces),
ignore the cache they are given (RWKV), or accept none of the common kind (MiniMax, xLSTM).

Shape suffixes: B rows, T tokens, V vocabulary.
"""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from anchorlwf.model.language_model import LanguageModel

__all__ = ["CacheUse", "GenerateUse", "cache_bytes", "cache_use", "generate_use", "take_back", "trim"]

_log = logging.getLogger(__name__)
_ARGUMENTS = ("past_key_values", "cache_params")
_REWINDING = (DynamicLayer, DynamicSlidingWindowLayer)
_REACH = 2048
"""Tokens behind its window that the cache of a sliding window keeps, so that it can rewind by as many."""
_FIRST, _MORE = 6, 3
"""Tokens that are fed first, and those that follow: enough to fill the usual convolution."""


@dataclass(frozen=True)
class CacheUse:
    """What a cache may be used for, in a decoder of one sequence."""

    argument: str | None
    """Of the network, by which it takes a cache; None: it takes none that gives the right logits."""
    rewinds: bool = False
    """Its last tokens may be dropped."""
    appends: bool = False
    """Several tokens may be fed at once behind what it holds; otherwise one."""
    positions: bool = False
    """The network must be told the positions of what it is fed; left alone, it counts from 0 again."""

    def empty(self, model: LanguageModel) -> DynamicCache | None:
        """A cache that holds nothing; None where the network is fed everything each time."""
        if self.argument is None:
            return None
        cache = DynamicCache(config=model.causal.config)
        for layer in cache.layers:
            if type(layer) is DynamicSlidingWindowLayer and self.rewinds:
                # Otherwise what leaves the window is gone at once.
                layer.activate_past_recording()
        return cache

    def inputs(self, cache: DynamicCache, start: int, ids_BT: Tensor) -> dict[str, Any]:
        """What the network is called with to append ids to a cache that holds `start` tokens."""
        inputs = {"input_ids": ids_BT, "use_cache": True, str(self.argument): cache}
        if self.positions:
            inputs["position_ids"] = torch.arange(start, start + ids_BT.shape[1], device=ids_BT.device)[None]
        return inputs


@dataclass(frozen=True)
class GenerateUse:
    """How `generate` gives the right logits."""

    use_cache: bool = True
    pads: bool = True
    """Prompts of several lengths may go together, padded on the left."""


def cache_bytes(cache: DynamicCache | None) -> int:
    """What a cache holds."""
    layers = [] if cache is None else cache.layers
    parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
    # Layers that carry states hold several of a kind, by number.
    states = (getattr(layer, name, {}) for layer in layers for name in ("conv_states", "recurrent_states"))
    parts += [part for several in states for part in several.values()]
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))


def take_back(cache: DynamicCache | None, removed: int) -> bool:
    """Drop the last tokens of a cache that rewinds; False where that reaches too far, and it is of no use any more."""
    return all(_without_last(layer, removed) for layer in ([] if cache is None else cache.layers))


def _without_last(layer: Any, removed: int) -> bool:
    """Not by `crop`, which on a sliding window drops what a second crop would need."""
    if not layer.is_initialized:
        return True  # it shares the keys and values of another layer
    kept = layer.keys.shape[-2] - removed
    if isinstance(layer, DynamicSlidingWindowLayer):
        if kept < min(layer.sliding_window - 1, layer.cumulative_length - removed):
            return False
        layer.cumulative_length -= removed
    layer.keys, layer.values = layer.keys[..., :kept, :], layer.values[..., :kept, :]
    return True


def trim(cache: DynamicCache | None) -> None:
    """Let sliding windows forget what nobody goes back to: not with each token, for that would copy each time."""
    for layer in [] if cache is None else cache.layers:
        # Of the others some have no keys, and those that do not record their past forget it by themselves.
        if type(layer) is DynamicSlidingWindowLayer and layer.is_initialized:
            kept = layer.sliding_window - 1 + _REACH
            if layer.keys.shape[-2] > kept + _REACH:
                layer.keys, layer.values = (part[..., -kept:, :].clone() for part in (layer.keys, layer.values))


_cache_uses: WeakKeyDictionary[PreTrainedModel, CacheUse] = WeakKeyDictionary()
_generate_uses: WeakKeyDictionary[PreTrainedModel, GenerateUse] = WeakKeyDictionary()


def cache_use(model: LanguageModel) -> CacheUse:
    """Tried once for each network, but for caches of keys and values alone, which are trusted."""
    causal = model.causal
    if causal not in _cache_uses:
        _cache_uses[causal] = _tried_cache(model)
    return _cache_uses[causal]


def generate_use(model: LanguageModel) -> GenerateUse:
    """Tried once for each network, but for those with a cache of keys and values alone."""
    causal = model.causal
    if causal not in _generate_uses:
        options = [GenerateUse(cache, pads) for cache in (True, False) for pads in (True, False)]
        plain = cache_use(model).rewinds
        right = options[0] if plain else next((use for use in options if _generates(model, use)), options[-1])
        _generate_uses[causal] = right
    return _generate_uses[causal]


def _argument(causal: PreTrainedModel) -> str | None:
    names = inspect.signature(causal.forward).parameters
    return next((name for name in _ARGUMENTS if name in names), None)


@torch.inference_mode()
def _tried_cache(model: LanguageModel) -> CacheUse:
    argument = _argument(model.causal)
    if argument is None:
        return CacheUse(None)
    try:
        layers = DynamicCache(config=model.causal.config).layers
        # `is_croppable` claims too much for hybrid caches, so only the layers that `take_back` knows are trusted.
        if argument == _ARGUMENTS[0] and all(type(layer) in _REWINDING for layer in layers):
            return CacheUse(argument, rewinds=True, appends=True)
        whole_V = _whole(model)
        for use in (CacheUse(argument), CacheUse(argument, positions=True)):
            if _near(_in_parts(model, use, (_FIRST, *[1] * _MORE)), whole_V, _exact(model)):
                return replace(use, appends=_appends(model, use, whole_V))
    except Exception as error:  # noqa: BLE001 - whatever a network raises, it can be fed everything
        _log.info("decoding without a cache: %s: %s", type(error).__name__, error)
    return CacheUse(None)


def _appends(model: LanguageModel, use: CacheUse, whole_V: Tensor) -> bool:
    try:
        return _near(_in_parts(model, use, (_FIRST, _MORE)), whole_V, _exact(model))
    except Exception:  # noqa: BLE001 - as above; then one token at a time
        return False


def _ids(model: LanguageModel) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.vocabulary, (_FIRST + _MORE,), generator=generator).tolist()


def _exact(model: LanguageModel) -> bool:
    return model.causal.dtype == torch.float32


def _whole(model: LanguageModel, ids: Sequence[int] | None = None) -> Tensor:
    """Logits behind the ids, fed at once and without a cache: [V]."""
    ids_BT = torch.tensor([_ids(model) if ids is None else ids], device=model.device)
    return model.net(input_ids=ids_BT, use_cache=False).logits[0, -1].float()


def _in_parts(model: LanguageModel, use: CacheUse, sizes: Sequence[int]) -> Tensor:
    """The same logits, fed in parts of these sizes."""
    cache, start = DynamicCache(config=model.causal.config), 0
    for part_BT in torch.tensor([_ids(model)], device=model.device).split(list(sizes), dim=1):
        output = model.net(**use.inputs(cache, start, part_BT))
        start += part_BT.shape[1]
    return output.logits[0, -1].float()


def _near(ours_V: Tensor, whole_V: Tensor, exact: bool) -> bool:
    """Equal but for rounding; `exact`: of float32."""
    finite_V = whole_V.isfinite()
    scale = whole_V[finite_V].abs().max().clamp(min=1e-6)
    # Half precision rounds to 8 bits; what forgets a part of its state is off by more.
    return bool(((ours_V - whole_V)[finite_V].abs().max() / scale) < (1e-4 if exact else 3e-2))


@torch.inference_mode()
def _generates(model: LanguageModel, use: GenerateUse) -> bool:
    """Whether the logits of two tokens generated behind each of two prompts are right."""
    ids, pad = _ids(model), model.codec.pad_id
    prompts = [ids[:_FIRST], ids if use.pads else ids[-_FIRST:]]
    gaps = [len(prompts[1]) - len(prompt) for prompt in prompts]
    rows = [([pad] * gap + prompt, [0] * gap + [1] * len(prompt)) for gap, prompt in zip(gaps, prompts, strict=True)]
    ids_BT, mask_BT = (torch.tensor(part, device=model.device) for part in zip(*rows, strict=True))
    config = GenerationConfig(
        max_new_tokens=2,
        do_sample=False,
        use_cache=use.use_cache,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    own, model.causal.generation_config = model.causal.generation_config, config
    try:
        output = model.net.generate(input_ids=ids_BT, attention_mask=mask_BT)
        firsts = output.sequences[:, ids_BT.shape[1]].tolist()
        wholes = [(prompt, [*prompt, first]) for prompt, first in zip(prompts, firsts, strict=True)]
        return all(
            _near(output.logits[step][row].float(), _whole(model, whole[step]), _exact(model))
            for row, whole in enumerate(wholes)
            for step in (0, 1)
        )
    except Exception as error:  # noqa: BLE001 - the next way is tried
        _log.info("generate %s: %s: %s", use, type(error).__name__, error)
        return False
    finally:
        model.causal.generation_config = own
