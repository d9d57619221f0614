"""What only training knows of the weights it wrote, for the card beside them (`data/model_card.py`)."""

from pathlib import Path

import yaml
from peft import PeftModel

from anchorlwf.config import YAML_ERRORS
from anchorlwf.data.model_card import CardFacts, Correction
from anchorlwf.data.record import Record
from anchorlwf.errors import ModelError
from anchorlwf.model.generation import changes_greedy, greedy_call
from anchorlwf.model.language_model import EMBEDDED, LanguageModel
from anchorlwf.model.model_files import folder_of
from anchorlwf.run import environment
from anchorlwf.training.step_context import StepContext

__all__ = ["card_facts"]

_QUOTED = 10
"""Corrections that the card shows."""
_PACKAGES = ("anchorlwf", "peft", "transformers", "torch")


def card_facts(context: StepContext) -> CardFacts:
    """The facts of a run, from its context."""
    model, data = context.model, context.data
    dtype, versions = str(model.causal.dtype).removeprefix("torch."), environment()["versions"]
    shown = [_correction(model, data.records[int(number)]) for number in data.corrections[:_QUOTED]]
    return CardFacts(
        kind="adapter" if isinstance(model.net, PeftModel) else "model",
        base=_public_name(model.name),
        embedded=model.name == EMBEDDED,
        licence=_licence(model),
        dtype=dtype,
        autocast="bfloat16" if context.half and dtype != "bfloat16" else None,
        rank=context.config.rank if context.config.method == "lora" else None,
        call=greedy_call(model.causal.generation_config, model.stop_ids),
        settings=changes_greedy(model.causal.generation_config),
        chat=bool(model.codec.tokenizer.chat_template),
        records=data.trained,
        keep_records=len(data.keeps),
        anchors=sum(len(data.records[int(number)].anchors) for number in data.corrections),
        completion_tokens=data.completion_tokens,
        corrected=shown,
        versions={name: versions[name] for name in _PACKAGES},
    )


def _correction(model: LanguageModel, record: Record) -> Correction:
    def text(token: int | None) -> str:
        return "" if token is None else model.codec.decode([token], special=True)

    tokens = [(text(anchor.rejected_id), text(anchor.token_id)) for anchor in record.anchors]
    return Correction(
        question=str(record.messages[-1].get("content", "")), after=record.completion.strip(), tokens=tokens
    )


def _public_name(name: str) -> str:
    """A name without the path of one machine: that of the hub where the folder is the hub's, else the folder's own."""
    path = Path(name)
    if not path.is_absolute():
        return name
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/") if cached else path.name


def _licence(model: LanguageModel) -> str | None:
    """What the header of the base's own card says; nothing reaches for the network."""
    if model.name == EMBEDDED:
        return "apache-2.0"
    try:
        text = (folder_of(model.name, model.revision) / "README.md").read_text(encoding="utf-8")
        header = yaml.safe_load(text.split("---")[1])
        licence = header.get("license") or header.get("license_name")
    except (ModelError, IndexError, AttributeError, *YAML_ERRORS):
        return None
    return None if licence is None else str(licence)
