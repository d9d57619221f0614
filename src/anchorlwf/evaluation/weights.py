"""Which weights: SHA-256 of the files that a model and its adapter are loaded from."""

import hashlib
from pathlib import Path

from huggingface_hub import snapshot_download
from peft import PeftModel

from anchorlwf.errors import ModelError, wrong
from anchorlwf.model import EMBEDDED, LanguageModel, adapter_of, embedded_path

__all__ = ["Hashes", "file_sha", "model_hashes", "named_hashes"]

Hashes = dict[str, dict[str, str]]
"""{part: {file: SHA-256}}; the parts are base, tuned and adapter."""
_FILES = ["*.safetensors", "config.json", "adapter_config.json"]


def file_sha(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` gives it."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _folder_hashes(source: str, revision: str | None = None) -> dict[str, str]:
    folder = embedded_path() if source == EMBEDDED else Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, revision=revision, allow_patterns=_FILES, local_files_only=True))
        except (OSError, ValueError) as error:
            fix = "Give the folder, or load the model once."
            raise ModelError(wrong(f"weights {source}", "a folder or a cached hub name", "neither", fix)) from error
    found = sorted({path for pattern in _FILES for path in folder.glob(pattern)})
    if not any(path.suffix == ".safetensors" for path in found):
        fix = "Give the folder that holds model.safetensors or adapter_model.safetensors."
        raise ModelError(wrong(f"weights {source}", "*.safetensors", "none", fix))
    return {path.name: file_sha(path) for path in found}


def named_hashes(
    model: str | None = None,
    adapter: str | None = None,
    base: str | None = None,
    *,
    revision: str | None = None,
    base_revision: str | None = None,
) -> Hashes:
    """Hashes of weights by name, as `load_model` takes names; nothing is loaded or fetched.

    Args:
        model: folder or hub name (a folder that holds an adapter names its base). None: the embedded model.
        adapter: folder of the adapter put on it.
        base: the model before training, for a fully tuned one.
        revision, base_revision: hub revisions.

    Returns:
        `base` and, if there is one, `adapter`; with `base` given, `base` and `tuned`.

    Raises:
        ModelError: no safetensors there; a hub name must lie in the local cache.
    """
    name, inside = adapter_of(EMBEDDED if model is None else model)
    own = _folder_hashes(name, revision)
    found = {"base": own} if base is None else {"base": _folder_hashes(base, base_revision), "tuned": own}
    folder = adapter or inside
    return found if folder is None else {**found, "adapter": _folder_hashes(folder)}


def model_hashes(model: LanguageModel, base: LanguageModel | None = None) -> Hashes:
    """Hashes of the files that loaded models came from; see `named_hashes`.

    Raises:
        ModelError: the adapter in `model` did not come from a folder, or files are missing.
    """
    if isinstance(model.net, PeftModel) and model.adapter is None:
        fix = "Load the model again, with adapter=FOLDER."
        raise ModelError(wrong("weights", "an adapter loaded from a folder", "one that lives in memory", fix))
    return named_hashes(
        model.name,
        model.adapter,
        None if base is None else base.name,
        revision=model.revision,
        base_revision=None if base is None else base.revision,
    )
