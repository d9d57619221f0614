"""Which weights: SHA-256 of the files that a model and its adapter are loaded from."""

import sys

from anchorlwf.errors import ModelError, wrong
from anchorlwf.files import file_sha
from anchorlwf.model.language_model import LanguageModel, adapter_of
from anchorlwf.model.model_files import EMBEDDED, confine, files_of, folder_of

__all__ = ["Hashes", "differences", "model_hashes", "named_hashes"]

Hashes = dict[str, dict[str, str]]
"""{part: {file: SHA-256}}; the parts are base, tuned and adapter."""


def _folder_hashes(source: str, revision: str | None, fetch: bool) -> dict[str, str]:
    folder = folder_of(source, revision, fetch=fetch)
    deciding = files_of(folder)
    if not any(name.endswith((".safetensors", ".gguf")) for name in deciding):
        fix = "Give the folder that holds model.safetensors or adapter_model.safetensors."
        raise ModelError(wrong(f"weights {source}", "*.safetensors", "none", fix))
    confine(source, folder, deciding)
    try:
        return {name: file_sha(path) for name, path in deciding.items()}
    except OSError as error:
        fix = "Look after the file, then try again."
        raise ModelError(wrong(f"weights {source}", "files that can be read", error, fix)) from error


def named_hashes(
    model: str | None = None,
    adapter: str | None = None,
    base: str | None = None,
    *,
    revision: str | None = None,
    base_revision: str | None = None,
    fetch: bool = False,
) -> Hashes:
    """Hashes of weights, and of all else in their folders that decides an answer, by name; nothing is loaded.

    Args:
        model: folder or hub name (a folder that holds an adapter names its base). None: the embedded model.
        adapter: folder of the adapter put on it.
        base: the model before training, for a fully tuned one.
        revision, base_revision: hub revisions.
        fetch: download a hub name that is not in the local cache. Otherwise that is an error.

    Returns:
        `base` and, if there is one, `adapter`; with `base` given, `base` and `tuned`.

    Raises:
        ModelError: no safetensors there, or a file that lies outside its folder.
    """
    name, inside = adapter_of(EMBEDDED if model is None else model)
    own = _folder_hashes(name, revision, fetch)
    hashes = {"base": own} if base is None else {"base": _folder_hashes(base, base_revision, fetch), "tuned": own}
    folder = adapter or inside
    return hashes if folder is None else {**hashes, "adapter": _folder_hashes(folder, None, fetch)}


def model_hashes(model: LanguageModel, base: LanguageModel | None = None, before: Hashes | None = None) -> Hashes:
    """Hashes of the files that loaded models came from; see `named_hashes`.

    Args:
        model, base: as `load_model` gave them.
        before: hashes taken before they were loaded; what lies there now must be the same. None: no file may have
            been replaced or written to since, as far as the file system tells.

    Raises:
        ModelError: weights that were trained in memory or put together there, files that are missing or changed, or
            code that came from elsewhere.
    """
    for loaded in (model, base):
        if loaded is not None and loaded.marks is None:
            fix = "Load the model again, an adapter with adapter=FOLDER."
            raise ModelError(wrong("weights", "a model and adapter loaded from files", "what lives in memory", fix))
    if before is None:
        _check_untouched(model, base)
    hashes = named_hashes(
        model.name,
        model.adapter,
        None if base is None else base.name,
        revision=model.revision,
        base_revision=None if base is None else base.revision,
    )
    if before is None:
        _check_untouched(model, base)
    elif problems := differences(before, hashes):
        fix = "They were changed meanwhile: evaluate again."
        raise ModelError(wrong("weights", "the files of before loading", "; ".join(problems), fix))
    for loaded in (model, base):
        if loaded is not None:
            _check_code(loaded, hashes)
    return hashes


def _check_untouched(*models: LanguageModel | None) -> None:
    for model in models:
        if model is None or model.marks is None:
            continue
        now = model.marks_now()
        touched = sorted(path for path in now.keys() | model.marks.keys() if now.get(path) != model.marks.get(path))
        if touched:
            fix = "Load and evaluate again."
            raise ModelError(wrong("weights", "the files that were loaded", f"{', '.join(touched)} changed since", fix))


def _check_code(model: LanguageModel, hashes: Hashes) -> None:
    """Code that came with a model decides its answers as well, and may come from another repository."""
    known = {digest for part in hashes.values() for digest in part.values()}
    for kind in (*type(model.causal).__mro__, *type(model.codec.tokenizer).__mro__):
        if kind.__module__.startswith("transformers_modules"):
            path = sys.modules[kind.__module__].__file__
            if path is None or file_sha(path) not in known:
                fix = "Copy that code into the model's folder, and name it there (auto_map)."
                raise ModelError(wrong(f"weights {model.name}", "code from its own folder", kind.__module__, fix))


def differences(recorded: Hashes, present: Hashes) -> list[str]:
    """A line for each file that is not what was recorded."""
    lines = []
    for part in sorted(recorded.keys() | present.keys()):
        ours, theirs = present.get(part, {}), recorded.get(part, {})
        for name in sorted(ours.keys() | theirs.keys()):
            expected, got = theirs.get(name, "none"), ours.get(name, "none")
            if expected != got:
                lines.append(f"weights, {part}, {name}: expected {expected[:12]}, got {got[:12]}")
    return lines
