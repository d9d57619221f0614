"""Does a record still hold? The invariant of the protocol, checked with one forward pass per batch of records."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from anchorlwf.data.record import Record
from anchorlwf.decoding.teacher_forcing import Choices, forced_choices, windows
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Finding", "verify_records"]

_WINDOW = 128
"""Records in memory at a time."""


@dataclass(frozen=True)
class Finding:
    """What the reference says of one record."""

    record: Record
    unexplained: list[int]
    """Keep positions where the reference would pick another token: the record does not hold there."""
    idle: list[int]
    """Anchors that the reference picks by itself: harmless, but nothing is learned there."""
    ending: str | None = None
    """What is wrong with how the answer ends: the model would run on behind it, or it runs on itself."""

    @property
    def holds(self) -> bool:
        """Every token is the reference's greedy choice, a tie, or an anchor; and the answer ends as a turn does."""
        return not self.unexplained and self.ending is None


def _ending(model: LanguageModel, record: Record, anchored: set[int]) -> str | None:
    ids, stop_ids, end = record.completion_ids, model.stop_ids, model.codec.end_id(model.stop_ids)
    inner = next((position for position, token in enumerate(ids[:-1]) if token in stop_ids), None)
    if inner is not None:
        return f"it goes on behind the end of turn at {inner}"
    if ids[-1] not in stop_ids:
        return None if record.truncated else "it has no end of turn"
    if ids[-1] != end and len(ids) - 1 in anchored:
        names = [model.codec.decode([token], special=True) for token in (ids[-1], end)]
        return f"its last anchor is {names[0]}, where turns end with {names[1]}"
    return None


def _finding(model: LanguageModel, record: Record, choices: Choices) -> Finding:
    anchored = {anchor.position for anchor in record.anchors}
    strays = [
        position
        for position, (best, stands) in enumerate(zip(choices.best_ids, record.completion_ids, strict=True))
        if best != stands and not choices.tied[position] and position not in anchored
    ]
    idle = [position for position in sorted(anchored) if choices.best_ids[position] == record.completion_ids[position]]
    return Finding(record, strays, idle, _ending(model, record, anchored))


def _checked(model: LanguageModel, records: Iterable[Record]) -> Iterator[Record]:
    stamp = model.stamp
    for record in records:
        model.check_stamp(record, stamp)
        yield record


def verify_records(model: LanguageModel, records: Iterable[Record]) -> Iterator[Finding]:
    """Check records against the reference, in batches; the findings come in the records' order.

    Raises:
        StampError: a record was made with another tokenizer or chat template.
    """
    for window in windows(_checked(model, records), _WINDOW):
        with model.as_reference() as reference:
            choices = forced_choices(reference, window)
        yield from (_finding(model, *pair) for pair in zip(window, choices, strict=True))
