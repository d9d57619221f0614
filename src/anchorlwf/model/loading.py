"""Reading a checkpoint completely or not at all: damaged, missing or unexpected parts are refused by name.

transformers fills missing weights with random numbers, ignores weights it has no use for, treats a
generation_config.json it cannot parse as absent, and builds an empty tokenizer where its files are missing; at best it
mentions this in its log. A changed value cannot be seen here: a flipped byte among the weights, or another number in
config.json. Only a hash that was taken earlier shows that (`adapter`, the certificate).
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from anchorlwf.errors import AnchorLwfError, ModelError, wrong
from anchorlwf.model.formats.gguf import gguf_network, gguf_tokenizer, is_gguf
from anchorlwf.model.formats.quantised import check_quantised, keep_trainable

__all__ = ["Checkpoint", "few", "read_json", "reading", "refuse_integers", "stored"]

_MODEL = "a folder or hub name of a causal language model in safetensors, or a GGUF file"
_AGAIN = "Copy or download the model again, whole."
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TABLE = re.compile(r"(^|\.)(masked_bias|causal_mask|inv_freq|position_ids|embed_positions|(cos|sin)_cached)$")
_CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
# Of code that came with a model, and of a text model that is read out of one for text and images.
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


@contextlib.contextmanager
def reading(what: str, expected: str, fix: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads the user's files into a `ModelError`.

    On damaged files libraries raise nearly anything: TypeError, KeyError, ImportError, or a bare Exception.
    """
    try:
        yield
    except AnchorLwfError:
        raise
    except BaseException as error:
        # A panic in a Rust library (tokenizers) derives from BaseException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            fix = "Read the code that comes with it; if you trust its author, say so: --trust-remote-code."
        raise ModelError(wrong(what, expected, _said(error), fix)) from error


def _said(error: BaseException) -> str:
    """The message of a library's error, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, KeyError) or not lines:
        return f"{type(error).__name__} {''.join(lines)}".strip()
    # "Error(s) in loading state_dict for PeftModelForCausalLM:" says nothing yet.
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1]).rstrip(".")


def few(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelError` for a file that is torn or holds anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(wrong(f"{path}", "a JSON object", f"a damaged file ({_said(error)})", _AGAIN)) from error
    if not isinstance(content, dict):
        raise ModelError(wrong(f"{path}", "a JSON object", type(content).__name__, _AGAIN))
    return content


def stored(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Type (as safetensors names it) and shape of each tensor in the file, by name."""
    with safe_open(str(path), framework="pt") as file:
        names: list[str] = file.keys()
        parts = {name: file.get_slice(name) for name in names}
        return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}


def refuse_integers(what: str, types: Mapping[str, str]) -> None:
    """Raise `ModelError` if weights are stored as integers, which reading would turn into floats without a word.

    Args:
        what: whose weights, for the message.
        types: of those that are floats in the network, as stored.
    """
    integers = {name: kind for name, kind in types.items() if not kind.startswith(("F", "BF"))}
    if integers:
        got = f"{few(set(integers.values()))} for {few(integers)}"
        raise ModelError(wrong(what, "floating-point weights", got, _AGAIN))


@dataclass(frozen=True)
class Checkpoint:
    """Where a model's files are: a folder, a GGUF file, or a name on the hub."""

    name: str
    """As the user knows it."""
    source: str
    """Folder, GGUF file or hub name."""
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Raises `ModelError` if this can be neither a folder nor a hub name."""
        path = Path(self.source)
        if is_gguf(path):
            return
        if not self.source:
            got, fix = "an empty name", "Leave the option out for the embedded model."
        elif path.is_file():
            got, fix = "a file", f"Give the folder that holds it: {path.parent}."
        elif not path.is_dir() and not _HUB_NAME.fullmatch(self.source):
            got, fix = "no such folder", "Check the path."
        else:
            return
        raise ModelError(wrong(self._what, _MODEL, got, fix))

    @property
    def _what(self) -> str:
        return f"model {self.name!r}"

    @property
    def _local(self) -> bool:
        return Path(self.source).is_dir()

    @property
    def _gguf(self) -> bool:
        return is_gguf(self.source)

    @property
    def _options(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def file(self, name: str) -> Path | None:
        """The file of that name, fetched if need be; None where there is none, as beside a GGUF file."""
        if self._gguf:
            return None
        missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        with reading(self._what, "a folder or hub name", "Check the name, or give a local folder."):
            path = cached_file(self.source, name, revision=self.revision, **missing)
        return None if path is None else Path(path)

    def settings(self, name: str) -> dict[str, Any] | None:
        """The object in one of the JSON files, None where there is none. Raises `ModelError` for a torn one."""
        path = self.file(name)
        return None if path is None else read_json(path)

    def read(self, dtype: torch.dtype, device: torch.device) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        """The tokenizer, and the network with all its weights: on the CPU, or on `device` where they are quantised.

        Raises:
            ModelError: files that are torn or missing; another kind of model; weights quantised in a way that cannot
                be trained on; weights that are missing, left over or of another shape.
        """
        if not self._gguf:
            quantised = self._check_config()
            return self.tokenizer(), self._network(dtype, {"": device} if quantised else None)
        tokenizer = self.tokenizer()
        with reading(self._what, "a causal language model that transformers reads from GGUF", _AGAIN):
            net = gguf_network(Path(self.source), dtype)
        net.generation_config.eos_token_id = tokenizer.eos_token_id
        net.generation_config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, net

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer alone. Raises `ModelError` if its files are torn or missing."""
        if self._gguf:
            with reading(f"{self._what}, tokenizer", "one that transformers reads from GGUF", _AGAIN):
                return gguf_tokenizer(Path(self.source))
        names = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
        settings, *others = (self.settings(name) for name in names)
        if not self._local and settings is None and not any(others):
            raise self._not_found()
        what, fix = f"{self._what}, tokenizer", "Copy or download tokenizer.json and the files beside it again."
        template = self.file("chat_template.jinja")
        if template is not None and not template.stat().st_size:
            raise ModelError(wrong(f"{self._what}, chat_template.jinja", "a template", "an empty file", fix))
        with reading(what, "readable files", fix):
            tokenizer = AutoTokenizer.from_pretrained(self.source, **self._options)
        if not self._has_vocabulary(tokenizer.vocab_files_names):
            raise ModelError(wrong(what, "a vocabulary, such as tokenizer.json", "none", fix))
        if not settings and self.file("tekken.json") is None:
            # transformers would take another class of tokenizer, and the end of turn that is usual for it.
            got = "no such file" if settings is None else "an empty object"
            fix = "Copy or download it again; if there never was one, let transformers write it (save_pretrained)."
            raise ModelError(wrong(f"{what}, tokenizer_config.json", "its settings", got, fix))
        return tokenizer

    def _has_vocabulary(self, names: dict[str, str]) -> bool:
        """Whether it was read from a file; where there is none, transformers makes one of special tokens alone."""
        own = [names[kind] for kind in ("vocab_file", "merges_file") if kind in names]
        alternatives = [["tokenizer.json"], own, ["tokenizer.model"], ["tekken.json"]]
        # A tokenizer without names of files needs none: one of bytes.
        return not names or any(whole and all(self.file(name) for name in whole) for whole in alternatives)

    def _network(self, dtype: torch.dtype, device_map: dict[str, torch.device] | None) -> PreTrainedModel:
        self.settings("generation_config.json")
        if self._local and not self._weight_files():
            fix = "Copy it again, or save the model in safetensors."
            raise ModelError(wrong(self._what, _MODEL, "no model.safetensors", fix))
        with reading(self._what, "a causal language model in safetensors", _AGAIN):
            net, info = self._loader().from_pretrained(
                self.source,
                dtype=dtype,
                device_map=device_map,
                use_safetensors=True,
                output_loading_info=True,
                # Those of another shape are named below; transformers would name them in its log alone.
                ignore_mismatched_sizes=True,
                **self._options,
            )
            self._check_weights(net, info)
            self._check_kind(net)
            if device_map is not None:
                keep_trainable(net)
        return net

    def _loader(self) -> Any:
        """The class that reads the network whole.

        A model for text and images keeps its other parts, so that the text model inside has the names that servers
        know, and an adapter on it fits what they serve.
        """
        config = self.settings("config.json") or {}
        seeing = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config["model_type"])
        return AutoModelForImageTextToText if seeing in (config.get("architectures") or ()) else AutoModelForCausalLM

    def _check_weights(self, net: PreTrainedModel, info: dict[str, Any]) -> None:
        """Refuse weights that do not fit the network, and those stored as integers."""
        entries = {name: entry for path in self._weight_files() for name, entry in stored(path).items()}
        info["unexpected_keys"] = [
            name for name in info["unexpected_keys"] if not _is_table(name, entries.get(name, ("", []))[1])
        ]
        _check_keys(self._what, info)
        floats = {name for name, weight in net.named_parameters() if weight.is_floating_point()}
        # A checkpoint may name its weights with or without the network's prefix.
        floats |= {name.removeprefix(f"{net.base_model_prefix}.") for name in floats}
        refuse_integers(self._what, {name: kind for name, (kind, _) in entries.items() if name in floats})

    def _not_found(self) -> ModelError:
        got = "no folder of that name, and no such model on the hub, or no way to reach it"
        fix = "Check the name, or give a local folder."
        return ModelError(wrong(self._what, _MODEL, got, fix))

    def _check_config(self) -> bool:
        """What config.json says about the kind of model, before anything is built after it: is it quantised?"""
        config = self.settings("config.json")
        if config is None and self.file("adapter_config.json") is not None:
            fix = "Merge it into its base, or download it and give its folder."
            raise ModelError(wrong(self._what, "a base model", "an adapter", fix))
        if config is None and not self._local:
            raise self._not_found()
        if config is None:
            inside = [f"{self.source}/{name}" for name in ("adapter", "model") if (Path(self.source) / name).is_dir()]
            fix = f"Give {' or '.join(inside)}." if inside else "Give the folder that holds the model's files."
            raise ModelError(wrong(self._what, _MODEL, "a folder without config.json", fix))
        what = f"{self._what}, config.json"
        if not isinstance(config.get("model_type"), str):
            raise ModelError(wrong(what, "a model_type", repr(config.get("model_type")), _AGAIN))
        for key in ("dtype", "torch_dtype"):
            named = config.get(key) or "float32"
            if not isinstance(getattr(torch, str(named).removeprefix("torch."), None), torch.dtype):
                fix = "Write the type of the weights there, such as bfloat16."
                raise ModelError(wrong(f"{what}, {key}", "a type of torch", repr(named), fix))
        quantised = check_quantised(what, config)
        _refuse_other_kinds(what, config)
        fix = f"{_AGAIN} Or it needs a newer transformers."
        with reading(what, "a configuration that transformers knows", fix):
            AutoConfig.from_pretrained(self.source, **self._options)
        return quantised

    def _weight_files(self) -> list[Path]:
        """The safetensors files, by the index where there are several."""
        whole = self.file("model.safetensors")
        index = None if whole is not None else self.settings("model.safetensors.index.json")
        if index is None:
            return [] if whole is None else [whole]
        what, shards = f"{self._what}, model.safetensors.index.json", index.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ModelError(wrong(what, "a weight_map of file names", repr(shards)[:80], _AGAIN))
        outside = {name for name in shards.values() if Path(name).name != name}
        if outside:
            raise ModelError(wrong(what, "files beside it", few(outside), _AGAIN))
        paths = {name: self.file(name) for name in sorted(set(shards.values()))}
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            raise ModelError(wrong(self._what, "every file that the index names", f"{few(missing)} missing", _AGAIN))
        return [path for path in paths.values() if path is not None]

    def _check_kind(self, net: PreTrainedModel) -> None:
        """Refuse what the configuration alone does not show."""
        if getattr(net, "_hf_peft_config_loaded", False):
            fix = "Merge it into its base, or give the base and the adapter in folders of their own."
            raise ModelError(wrong(self._what, "a base model", "an adapter on one", fix))
        # These architectures read in both directions unless told not to; but GPT-NeoX has the switch and ignores it.
        switches = [getattr(net.config, switch, True) for switch in ("is_decoder", "causal")]
        if not all(switches) and not _is_causal(net):
            fix = "Give a model that was trained to continue text."
            raise ModelError(wrong(self._what, "a causal language model", "an encoder, which sees later tokens", fix))


def _refuse_other_kinds(what: str, config: dict[str, Any]) -> None:
    """Refuse encoders, classifiers and models without a head, by the architecture they were saved as."""
    expected = "a causal language model"
    if config.get("is_encoder_decoder"):
        fix = "Give a model that continues its prompt."
        raise ModelError(wrong(what, expected, f"an encoder with a decoder ({config['model_type']})", fix))
    architectures = config.get("architectures") or []
    custom = config.get("auto_map")
    if isinstance(custom, dict) and "AutoModelForCausalLM" in custom:
        return
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise ModelError(wrong(f"{what}, architectures", "a list of names", repr(architectures)[:80], _AGAIN))
    if architectures and not any(name in _CAUSAL or name.endswith(_CAUSAL_ENDINGS) for name in architectures):
        fix = "Give one with a language model head, such as those whose architecture ends in ForCausalLM."
        raise ModelError(wrong(what, expected, few(architectures), fix))


def _is_table(name: str, shape: list[int]) -> bool:
    """Whether an old checkpoint stores there what the network computes itself: a mask, positions, their rotations."""
    return bool(_TABLE.search(name)) or (name.endswith(".bias") and len(shape) == 4)


def _check_keys(what: str, info: dict[str, Any]) -> None:
    """Refuse weights that do not fit the network; tied ones, which are stored once, are not missing."""
    missing, unexpected, mismatched = (info[f"{kind}_keys"] for kind in ("missing", "unexpected", "mismatched"))
    got = []
    if mismatched:
        shapes = [f"{name} {list(stored)} for {list(ours)}" for name, stored, ours in mismatched]
        got.append(f"another shape: {few(shapes)}")
    if missing:
        got.append(f"missing: {few(missing)}")
    if unexpected:
        got.append(f"left over: {few(unexpected)}")
    if got:
        fix = "Copy or download it again; or mend config.json, if it describes another network."
        raise ModelError(wrong(what, "just the weights that config.json describes", "; ".join(got), fix))


@torch.no_grad()
def _is_causal(net: nn.Module) -> bool:
    """Whether the last token leaves the logits before it as they are."""
    ids_BT = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]])
    logits_BTV = net(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
    gap = float((logits_BTV[0] - logits_BTV[1]).abs().max() / logits_BTV.abs().max().clamp(min=1e-6))
    return gap < 1e-3
