"""What is trained on: the complete ones of the records, looked at one by one before anything is done with them."""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from torch.utils.data import Dataset, IterableDataset, Subset

from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import Source, given_rows, load_records
from anchorlwf.data.record import Record
from anchorlwf.data.record_file import RecordFile
from anchorlwf.decoding.keep_records import HELD_OUT_TAG
from anchorlwf.errors import ConfigError, PromptError, RecordError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.packing import fed_length
from anchorlwf.training.reference_cache import Contents

__all__ = ["Records", "TrainingSet", "by_number", "read_training_set"]


class Records(Protocol):
    """Records by number: a list, a `RecordFile`, a torch dataset such as `ConcatDataset`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True)
class TrainingSet:
    """The records of a training run, and what must be known of all of them beforehand."""

    records: Records
    """Complete ones only."""
    corrections: Sequence[int]
    """Numbers of those with anchors."""
    keeps: Sequence[int]
    """Numbers of the keep records, which have no anchor."""
    held_out: Sequence[int]
    """Numbers of the keep records that are tagged `held-out`: never trained on, the drift is measured on them."""
    contents: Contents
    """Of `records`, in their order."""
    lengths: Sequence[int]
    """`fed_length` of each."""
    completion_tokens: int
    """Of the records that are trained on."""
    sha: str
    """SHA-256 over what is learned of them, in their order: prompt and completion ids, confidences, tags that count."""

    @property
    def trained(self) -> int:
        """How many records are trained on."""
        return len(self.corrections) + len(self.keeps)


def by_number(records: Source | Records) -> Records:
    """A file stays on disk, and so does a sequence over one; anything else becomes a list of records.

    Raises:
        RecordError: as `load_records`, for what is no record.
    """
    if isinstance(records, str | Path):
        return RecordFile(records)
    # To torch, whatever has a length and numbers is a dataset, which its types do not say.
    if isinstance(records, Sequence | Dataset) and not isinstance(records, list | tuple | bytes | IterableDataset):
        return cast(Records, records)
    return given_rows(cast(Source, records), Record, load_records)


def read_training_set(model: LanguageModel, records: Records, config: TrainConfig) -> TrainingSet:
    """Choose the complete records and make sure that all of them can be trained on. Each is read once.

    Raises:
        RecordError: no complete record, or no anchor among them.
        StampError: a record was made with another tokenizer or chat template.
        PromptError: a record is longer than the model's context.
        ConfigError: a reverse direction with confidence 1.
    """
    reading = _Reading(model, config)
    contents = Contents(reading.complete(records))
    if not reading.chosen:
        got = f"{len(records)} records, none complete"
        raise RecordError(wrong("records", "at least one complete record", got, "Finish annotating first."))
    if not reading.corrections:
        fix = "There is nothing to learn; annotate a wrong answer."
        raise RecordError(wrong("records", "at least one anchor", "none", fix))
    return TrainingSet(
        Subset(cast(Any, records), reading.chosen),
        reading.corrections,
        reading.keeps,
        reading.held_out,
        contents,
        reading.lengths,
        reading.tokens,
        reading.digest.hexdigest(),
    )


class _Reading:
    """One pass over the records: which are chosen, of which kind, and how long they are."""

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        self.chosen, self.lengths = array("Q"), array("I")
        self.corrections, self.keeps, self.held_out = array("Q"), array("Q"), array("Q")
        self.tokens, self.digest = 0, hashlib.sha256()
        self._check = _Check(model, config)

    def complete(self, records: Records) -> Iterator[Record]:
        for index in range(len(records)):
            record: object = records[index]
            if not isinstance(record, Record):
                fix = "Load the rows with load_records."
                raise RecordError(wrong(f"records[{index}]", "a Record", type(record).__name__, fix))
            if record.status == "complete":
                self._check(record)
                self._take(index, record)
                yield record

    def _take(self, index: int, record: Record) -> None:
        aside = not record.anchors and HELD_OUT_TAG in record.tags
        kind = self.corrections if record.anchors else self.held_out if aside else self.keeps
        kind.append(len(self.chosen))
        self.chosen.append(index)
        self.lengths.append(fed_length(record))
        self.tokens += 0 if aside else len(record.completion_ids)
        learned = [record.prompt_ids, record.completion_ids, record.confidences, *([HELD_OUT_TAG] if aside else [])]
        self.digest.update(json.dumps(learned).encode())


class _Check:
    """Whether a record can be trained on: by this model, in this direction."""

    def __init__(self, model: LanguageModel, config: TrainConfig) -> None:
        self._model, self._reverse = model, config.direction == "reverse"
        # Either takes its time where it is asked for every record.
        self._stamp, self._context = model.stamp, model.context_length

    def __call__(self, record: Record) -> None:
        if self._reverse and any(anchor.confidence == 1 for anchor in record.anchors):
            fix = "Use direction forward, or annotate with less confidence."
            got = "confidence 1, where KL(p_theta || q) is infinite"
            raise ConfigError(wrong("direction reverse", "anchors with confidence below 1", got, fix))
        self._model.check_stamp(record, self._stamp)
        length = len(record.prompt_ids) + len(record.completion_ids)
        if self._context is not None and length > self._context:
            fix = "Leave it out."
            raise PromptError(wrong(f"record {record.id}", f"at most {self._context} tokens", length, fix))
