"""An adapter and the base it was made for: notes are saved beside its weights and checked when it is loaded.

PEFT leaves layers without weights in the file as they were initialised, and ignores weights that belong to no layer.
"""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from anchorlwf.data.jsonl import problem_of
from anchorlwf.data.record import ModelStamp
from anchorlwf.errors import ModelError, ModelWarning, wrong
from anchorlwf.model.fingerprint import base_sha, tensors_sha
from anchorlwf.model.loading import few, read_json, reading, refuse_integers, stored
from anchorlwf.model.lora.attachment import without_wrappers

__all__ = ["NOTES", "AdapterNotes", "adapter_settings", "note_adapter", "put_adapter"]

NOTES = "anchorlwf.json"
"""File in an adapter's folder that says what it was made for."""
_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_AGAIN = "Copy the adapter's folder again, or train it again."


class AdapterNotes(BaseModel):
    """What training notes beside an adapter; SHA-256s are in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    base: ModelStamp
    """The model it was trained on, with its tokenizer and template."""
    base_sha: str
    """Of the base's weights, see `fingerprint.base_sha`."""
    base_dtype: str
    """Of the weights as they were loaded."""
    weights_sha: str
    """Of the adapter's own."""
    settings_sha: str
    """Of adapter_config.json but for the base's name, which may be changed when a folder is moved."""


def adapter_settings(folder: str | Path) -> dict[str, Any]:
    """What adapter_config.json holds, checked.

    Raises:
        ModelError: no such file, or a torn one; a kind of adapter that cannot be put on a causal language model.
    """
    path = Path(folder) / _SETTINGS
    if not path.is_file():
        inside = Path(folder) / "adapter"
        fix = "Give the folder that training wrote, such as runs/first/adapter."
        if (inside / _SETTINGS).is_file():
            fix = f"Give {inside}."
        got = "none" if Path(folder).is_dir() else "no such folder"
        raise ModelError(wrong(f"adapter {folder}", f"a folder with {_SETTINGS}", got, fix))
    settings = read_json(path)
    kind, task, base = (settings.get(key) for key in ("peft_type", "task_type", "base_model_name_or_path"))
    config = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind) if isinstance(kind, str) else None
    if config is None or issubclass(config, PromptLearningConfig):
        fix = "Merge it into its base, where PEFT can, and give that as the model."
        raise ModelError(wrong(f"{path}, peft_type", "LORA, or another kind that changes layers", repr(kind), fix))
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(wrong(f"{path}, task_type", "CAUSAL_LM", repr(task), "Give an adapter for a language model."))
    if not isinstance(base, str | None):
        raise ModelError(wrong(f"{path}, base_model_name_or_path", "a name", repr(base), _AGAIN))
    return settings


def note_adapter(folder: Path, base: PreTrainedModel, stamp: ModelStamp) -> None:
    """Write down beside a saved adapter what it was made for, and what it is.

    Args:
        folder: of the adapter, as PEFT saved it.
        base: the network it was trained on; the adapter may be on it.
        stamp: of the model.
    """
    notes = AdapterNotes(
        base=stamp,
        base_sha=base_sha(base),
        base_dtype=str(base.dtype),
        weights_sha=tensors_sha(load_file(folder / _WEIGHTS)),
        settings_sha=_settings_sha(adapter_settings(folder)),
    )
    (folder / NOTES).write_text(notes.model_dump_json(indent=2) + "\n", encoding="utf-8")


def put_adapter(net: PreTrainedModel, folder: str | Path, stamp: ModelStamp) -> PeftModel:
    """The network with the adapter on it, frozen.

    Args:
        net: the base, on the CPU; it is changed in place.
        folder: of the adapter.
        stamp: of the base.

    Raises:
        ModelError: an adapter that was made for another base, or of which anything does not fit this one; or one whose
            files are torn, missing, or not those that training wrote.
    """
    settings, what = adapter_settings(folder), f"adapter {folder} on {stamp.name}"
    weights, notes = _weights(folder), _notes(Path(folder))
    if notes is not None:
        _check_files(Path(folder), notes, settings, weights)
        _check_base(what, notes, net, stamp)
    _check_base_weights(what, settings, weights, net)
    fix = "Give the base it was trained on, or train it again on this one."
    with reading(what, "an adapter for this model", fix):
        tuned = PeftModel.from_pretrained(net, str(folder))
        # The first loading keeps to itself what did not fit; the second says it.
        mapping = getattr(net, "_checkpoint_conversion_mapping", {})
        result = tuned.load_adapter(str(folder), "default", torch_device="cpu", key_mapping=mapping)
    named = {"missing": result.missing_keys, "of no layer": result.unexpected_keys}
    got = "; ".join(f"{kind}: {few(names)}" for kind, names in named.items() if names)
    if got:
        raise ModelError(wrong(what, "weights for the layers that it names, and no others", got, fix))
    if notes is None:
        _warn_by_name(what, settings, (stamp.name, net.name_or_path))
    return tuned


def _settings_sha(settings: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in settings.items() if key != "base_model_name_or_path"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _weights(folder: str | Path) -> dict[str, Tensor]:
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise ModelError(wrong(f"adapter {folder}", f"a folder with {_WEIGHTS}", "none", _AGAIN))
    with reading(f"adapter {folder}, {_WEIGHTS}", "weights in safetensors", _AGAIN):
        refuse_integers(f"adapter {folder}", {name: kind for name, (kind, _) in stored(path).items()})
        return load_file(path)


def _notes(folder: Path) -> AdapterNotes | None:
    path = folder / NOTES
    if not path.is_file():
        return None
    try:
        return AdapterNotes.model_validate_json(json.dumps(read_json(path)))
    except ValidationError as error:
        fix = f"{_AGAIN} Without {path}, names are all that is compared."
        raise ModelError(wrong(f"{path}", "the notes that training wrote", problem_of(error), fix)) from error


def _check_files(folder: Path, notes: AdapterNotes, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse files that are not those that training wrote."""
    for file, noted, ours in (
        (_WEIGHTS, notes.weights_sha, tensors_sha(weights)),
        (_SETTINGS, notes.settings_sha, _settings_sha(settings)),
    ):
        if noted != ours:
            fix = f"{_AGAIN} If you changed it on purpose, delete {folder / NOTES}."
            raise ModelError(wrong(f"adapter {folder}, {file}", f"what training wrote ({noted[:12]})", ours[:12], fix))


def _check_base(what: str, notes: AdapterNotes, net: PreTrainedModel, stamp: ModelStamp) -> None:
    types = {notes.base_dtype, str(net.dtype)}
    if len(types) == 1 or str(torch.float16) not in types:
        ours = base_sha(net)
        if notes.base_sha != ours:
            fix = "Give the base it was trained on, or train it again on this one."
            expected, got = f"the weights of {notes.base.name} ({notes.base_sha[:12]})", f"others ({ours[:12]})"
            raise ModelError(wrong(what, expected, got, fix))
    else:
        # Rounded to float16 and then to bfloat16, weights are not what they are rounded once.
        _warn(f"{what}: trained in {notes.base_dtype}; in {net.dtype} it cannot be told whether this is its base.")
    for part in notes.base.differences(stamp):
        fix = "Give the model it was trained on as it was, or check its answers again."
        _warn(wrong(f"{what}, {part}", f"that of {notes.base.name}", "another", fix))


def _check_base_weights(
    what: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], net: PreTrainedModel
) -> None:
    """Refuse weights of the base in the file, which PEFT would write over those of the model, unless they are equal.

    PEFT saves a head or an embedding that has an adapter, or that was resized, beside the adapter.
    """
    replaced = tuple(settings.get("modules_to_save") or ())
    ours = net.state_dict()
    for name, weight in weights.items():
        plain = without_wrappers(name.removeprefix("base_model.model."))
        if plain not in ours or plain.rpartition(".")[0].endswith(replaced):
            continue
        if weight.shape != ours[plain].shape or not torch.equal(weight.to(ours[plain]), ours[plain]):
            fix = "Give the base it was trained on; or merge the two where it was, and give that as the model."
            raise ModelError(wrong(what, "no weights of the base, or the same", f"another {plain}", fix))


def _warn_by_name(what: str, settings: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Without notes of ours, names are all there is to compare: the base's (`names`), and those of the settings."""
    base = settings.get("base_model_name_or_path")
    if base is not None and not any(_same_name(base, name) for name in names):
        fix = "Give the base it was trained on, unless the two are one model."
        _warn(wrong(what, f"the base that it names, {base}", names[0], fix))
    config: type[PeftConfig] = PEFT_TYPE_TO_CONFIG_MAPPING[settings["peft_type"]]
    known = {field.name for field in dataclasses.fields(config)}
    unread = {key for key, value in settings.items() if key not in known and value not in (None, False)}
    if unread:
        _warn(wrong(f"{what}, {_SETTINGS}", "settings that this PEFT knows", few(unread), "They are left out."))


def _same_name(first: str, second: str) -> bool:
    """Whether two names can mean one model: the same folder, or the same last part."""
    folders = Path(first), Path(second)
    if all(folder.is_dir() for folder in folders):
        return folders[0].samefile(folders[1])
    return folders[0].name.lower() == folders[1].name.lower()


def _warn(message: str) -> None:
    warnings.warn(message, ModelWarning, stacklevel=4)
