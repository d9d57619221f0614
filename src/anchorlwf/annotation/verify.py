"""Does a record still hold? The invariant of the protocol, replayed with one forward pass per record."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from anchorlwf.decode import greedy_choices
from anchorlwf.model import LanguageModel
from anchorlwf.record import Record

__all__ = ["Finding", "verify_records"]


@dataclass(frozen=True)
class Finding:
    """What one record's replay showed."""

    record: Record
    unexplained: list[int]
    """Keep positions where the reference would pick another token: the record does not hold there."""
    idle: list[int]
    """Anchors that the reference picks by itself: harmless, but nothing is learned there."""

    @property
    def holds(self) -> bool:
        """Every token is the reference's greedy choice, a tie, or an anchor."""
        return not self.unexplained


def verify_records(model: LanguageModel, records: Iterable[Record]) -> Iterator[Finding]:
    """Replay records on the reference, one by one.

    Raises:
        StampError: a record was made with another tokenizer or chat template.
    """
    for record in records:
        model.check_stamp(record)
        with model.reference():
            choices = greedy_choices(model, record.prompt_ids, record.completion_ids)
        anchored = {anchor.position for anchor in record.anchors}
        strays = [
            position for position, (best, stands) in enumerate(
                zip(choices.best_ids, record.completion_ids, strict=True)
            )
            if best != stands and not choices.tied[position] and position not in anchored
        ]
        idle = [position for position in sorted(anchored)
                if choices.best_ids[position] == record.completion_ids[position]]
        yield Finding(record, strays, idle)
