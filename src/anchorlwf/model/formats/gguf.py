"""GGUF files, llama.cpp's format: read into an ordinary network, whose weights are floating-point numbers again."""

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from anchorlwf.errors import ModelError, wrong

__all__ = ["gguf_network", "gguf_tokenizer", "is_gguf"]


def is_gguf(source: str | Path) -> bool:
    """Whether this is a GGUF file, by its name."""
    return Path(source).suffix == ".gguf" and Path(source).is_file()


def _needs_package(file: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        fix = "Run `pip install gguf`, or give the model in safetensors."
        raise ModelError(wrong(f"model {str(file)!r}", "the package gguf, which reads it", "none", fix))


def gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer inside, with its chat template.

    Raises:
        ModelError: the package gguf is not installed.
        Exception: whatever transformers raises for a file that is damaged or of an architecture that it cannot read.
    """
    _needs_package(file)
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def gguf_network(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The network inside, with all its weights in `dtype`, on the CPU. Raises as `gguf_tokenizer`."""
    _needs_package(file)
    net, info = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=dtype,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        fix = "Copy or download the file again, whole."
        raise ModelError(wrong(f"model {str(file)!r}", "all weights", f"missing: {', '.join(missing[:4])}", fix))
    # It refuses to be saved while it speaks of a quantisation, which is gone.
    net.hf_quantizer = None
    vars(net.config).pop("quantization_config", None)
    return net
