"""Quantised checkpoints: those that an adapter can be trained on, and why the others are refused."""

import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import nn

from anchorlwf.errors import ModelError, wrong

__all__ = ["check_quantised", "keep_trainable"]

_BITSANDBYTES = "bitsandbytes"
_FIX = "Give the checkpoint it was made from, and quantise after training."


def _method(settings: object) -> str | None:
    """As transformers names it."""
    if not isinstance(settings, Mapping):
        return None
    method = settings.get("quant_method")
    if method is None and {"load_in_4bit", "load_in_8bit"} & set(settings):
        return _BITSANDBYTES
    return None if method is None else str(method)


def check_quantised(what: str, config: Mapping[str, Any]) -> bool:
    """Whether the checkpoint is quantised, in a way that training can start from.

    Args:
        what: whose configuration it is, for the message.
        config: what config.json says; the text model inside a larger one may have settings of its own.

    Raises:
        ModelError: it is quantised in another way, or by bitsandbytes, which is not installed.
    """
    # JSON has no other mappings; asking the abstract class costs half a second once.
    nested = (value for value in config.values() if isinstance(value, dict))
    found = [settings for each in (config, *nested) if (settings := each.get("quantization_config")) is not None]
    for settings in found:
        method = _method(settings)
        if method == _BITSANDBYTES:
            if importlib.util.find_spec(_BITSANDBYTES) is None:
                fix = f"Run `pip install bitsandbytes`, on a machine that it supports. Or: {_FIX}"
                raise ModelError(wrong(what, f"the package {_BITSANDBYTES}, which reads its weights", "none", fix))
            continue
        got = f"weights quantised by {method}" if method else "a quantization_config of no known method"
        expected = f"weights in float32, bfloat16 or float16, or quantised by {_BITSANDBYTES} in 4 or 8 bits"
        why = f"Gradients through other quantised weights are not supported. {_FIX}" if method else _FIX
        raise ModelError(wrong(what, expected, got, why))
    return bool(found)


def keep_trainable(net: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for a CPU at the first answer: no gradient passes those."""
    for module in net.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
