"""anchorlwf: correct a language model with a few tokens, and keep the rest as it was.

Importing this package imports no torch; the names below load what they need when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorlwf.annotation import annotate
    from anchorlwf.data.jsonl import load_records, save_records
    from anchorlwf.data.probe import Probe
    from anchorlwf.data.record import Anchor, ModelStamp, Record
    from anchorlwf.evaluation import evaluate
    from anchorlwf.loss import anchor_loss
    from anchorlwf.model.language_model import load_model
    from anchorlwf.training import train

__version__ = "0.1.0"
__all__ = [
    "Anchor",
    "ModelStamp",
    "Probe",
    "Record",
    "anchor_loss",
    "annotate",
    "evaluate",
    "load_model",
    "load_records",
    "save_records",
    "train",
]

_HOMES = {
    "Anchor": "data.record",
    "ModelStamp": "data.record",
    "Probe": "data.probe",
    "Record": "data.record",
    "anchor_loss": "loss",
    "annotate": "annotation",
    "evaluate": "evaluation",
    "load_model": "model.language_model",
    "load_records": "data.jsonl",
    "save_records": "data.jsonl",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found  # the next use finds it directly
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
