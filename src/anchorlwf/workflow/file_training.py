"""Train on a file of records, beside other wordings of its corrections and what must stay."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch.utils.data import ConcatDataset

from anchorlwf.data.record import Record
from anchorlwf.data.record_file import RecordFile
from anchorlwf.decoding.keep_records import KEEP_TAG
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import TrainResult, train
from anchorlwf.workflow.paraphrased import Beside, records_beside, save_paraphrases
from anchorlwf.workflow.retained import AUTO, NONE, resolved

__all__ = ["train_file"]


def train_file(
    records: str | Path,
    out: str | Path,
    loading: Mapping[str, Any],
    beside: Mapping[str, Any],
    *,
    skip_bad: bool = False,
    on_retain: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> tuple[TrainResult, list[Record]]:
    """Train on a file of records and on what stands beside them; every process of a run trains on the same.

    Args:
        records: a JSONL file, read from disk as records are needed unless what stands beside depends on them.
        out: the run folder; receives `paraphrases.jsonl`, and what `train` writes.
        loading: for `load_model`.
        beside: `retain`, `paraphrase` and `config`, as for `records_beside`; where the file holds keep records that
            `retain` wrote, no `retain` is `none`.
        skip_bad: go on without bad lines, and warn of each.
        on_retain: called with a kind, how many the model has written, and how many are wanted.
        **options: of `train`.

    Returns:
        What training came to, and the records of other wordings.

    Raises:
        RecordError, PromptError, ConfigError, ModelError, StorageError: as `load_model`, `records_beside` and `train`.
    """
    # Whatever has a length and numbers is a dataset to torch, which its types do not say.
    listed: Any = RecordFile(records, skip_bad=skip_bad)
    model = load_model(**loading)
    made = _beside(model, listed, dict(beside), skip_bad, on_retain)
    added: Any = [*made.paraphrases, *made.keep]
    everything = ConcatDataset([listed, added]) if added else listed
    save = partial(save_paraphrases, out, made.paraphrases)
    return train(model, everything, out=out, on_begin=save, **options), made.paraphrases


def _beside(
    model: LanguageModel,
    listed: Any,
    wanted: dict[str, Any],
    skip_bad: bool,
    on_retain: Callable[[str, int, int], None] | None,
) -> Beside:
    retain, reworded = wanted.get("retain"), wanted.get("paraphrase") not in (None, NONE, [NONE])
    written = retain is None and any(map(_is_kept, listed))
    retain = NONE if written else resolved(model, retain)
    if (retain == NONE and not reworded) or next(_corrections(listed), None) is None:
        return Beside([], [])
    model.codec.pin(listed[0].model if len(listed) else None)  # one date in all prompts
    # Only what the model writes itself and other wordings depend on all of a correction; otherwise it stays on disk.
    needed = list(_corrections(listed)) if retain == AUTO or reworded else []
    # What one process has written is in the cache for the others.
    with PartialState().main_process_first():
        made = records_beside(model, needed, **{**wanted, "retain": retain}, skip_bad=skip_bad, on_progress=on_retain)
    asked = {tuple(record.prompt_ids) for record in needed or _corrections(listed)}
    return made._replace(keep=[record for record in made.keep if tuple(record.prompt_ids) not in asked])


def _is_kept(record: Record) -> bool:
    return KEEP_TAG in record.tags and not record.anchors and record.status == "complete"


def _corrections(listed: Iterable[Record]) -> Iterator[Record]:
    return (record for record in listed if record.anchors and record.status == "complete")
