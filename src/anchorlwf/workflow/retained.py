"""What is kept as it was while a model is corrected: what it writes itself, or the answers to prompts of one's own."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from anchorlwf.annotation import PromptLike, retention_records
from anchorlwf.config import RetainConfig
from anchorlwf.data.record import Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention import AUTO, NONE, Candidate, retain, usual_retention

__all__ = ["AUTO", "NONE", "Kept", "Retain", "keep_records_for", "resolved"]

Retain = str | Path | Iterable[PromptLike] | None
"""`auto`, `none`, or prompts: a file or rows. None: `auto`; for the embedded model, which writes little, `none`."""


class Kept(NamedTuple):
    """What is trained to stay."""

    records: list[Record]
    """Keep records; those tagged `held-out` measure the drift."""
    candidates: list[Candidate]
    """Prompts the model wrote that seem to ask for a corrected fact in other words."""


def resolved(model: LanguageModel, wanted: Retain) -> str | Path | Iterable[PromptLike]:
    """What is meant where nothing was said."""
    return usual_retention(model.name) if wanted is None else wanted


def keep_records_for(
    model: LanguageModel,
    corrections: Sequence[Record],
    wanted: Retain,
    *,
    config: RetainConfig | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Kept:
    """Keep records to train beside corrections.

    Args:
        model: that is corrected; its reference answers.
        corrections: complete records with anchors: their neighbours are kept, and what asks for the same fact is not.
        wanted: see `Retain`.
        config: how many the model writes, where it does.
        skip_bad: go on without the bad lines of a file, and warn of each.
        on_progress: called with a kind, how many there are, and how many are wanted.

    Raises:
        RecordError, PromptError, ModelError, StorageError: as `retain` and `retention_records`.
    """
    chosen = resolved(model, wanted)
    if chosen == NONE:
        return Kept([], [])
    if chosen == AUTO:
        retained = retain(model, corrections, config=config, on_progress=on_progress)
        return Kept([*retained.records, *retained.held_out], retained.candidates)
    return Kept(retention_records(model, chosen, skip_bad=skip_bad), [])
