"""What a model's own generation config makes of its greedy answers, and the call that leaves it out.

Records, training and evaluation use plain greedy decoding. But `generate(do_sample=False)` also applies a
`repetition_penalty` of generation_config.json, so the shipped model would answer differently from the measured one.
"""

import warnings
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

from anchorlwf.errors import ModelWarning, wrong

__all__ = ["changes_greedy", "greedy_call", "warn_of_generation"]

_NEUTRAL: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "num_beams": 1,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
}
"""Settings that change which token is chosen greedily, with the value at which they do not."""
_UNSET = (
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "watermarking_config",
    "penalty_alpha",
    "dola_layers",
    "constraints",
    "force_words_ids",
    "stop_strings",
)
"""Settings that no argument of `generate` switches off: they must be None in the generation config."""


def changes_greedy(config: GenerationConfig) -> dict[str, Any]:
    """The settings of a generation config that make greedy answers differ from the plain argmax, with their values."""
    changing = {}
    for name, neutral in {**_NEUTRAL, **dict.fromkeys(_UNSET)}.items():
        value = getattr(config, name, None)
        if value is not None and value != neutral:
            changing[name] = value
    return changing


def warn_of_generation(config: GenerationConfig, *, stacklevel: int = 3) -> None:
    """Warn (`ModelWarning`) where `generate(do_sample=False)` would not give the answers that are annotated."""
    settings = changes_greedy(config)
    if settings:
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        fix = (
            "Corrections hold for plain greedy decoding: deploy with the call in the adapter's README.md, and see what "
            "the model's own settings make of them with evaluate --generation own."
        )
        warnings.warn(
            wrong("generation_config.json", "nothing that changes greedy answers", shown, fix),
            ModelWarning,
            stacklevel=stacklevel,
        )


def greedy_call(config: GenerationConfig, stop_ids: Iterable[int]) -> str:
    """Python code for the model card that decodes greedily despite the generation config.

    Args:
        config: that of the base model.
        stop_ids: the tokens that end an answer.
    """
    settings = changes_greedy(config)
    lines = [f"model.generation_config.{name} = None" for name in _UNSET if name in settings]
    options: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}
    options |= {name: neutral for name, neutral in _NEUTRAL.items() if name in settings}
    options["eos_token_id"] = sorted(stop_ids)
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return "\n".join([*lines, f"output = model.generate(**inputs, max_new_tokens=512, {given})"])
