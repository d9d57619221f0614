"""Decisions become records, and records a file beside the store."""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from anchorlwf.annotation.former_ids import FormerIds
from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.store.store import SessionRow
from anchorlwf.data.jsonl import append_record
from anchorlwf.data.record import ModelStamp, Prompt, Record, Status, new_id
from anchorlwf.data.record_file import RecordJournal
from anchorlwf.errors import StorageError
from anchorlwf.model.codec import Codec

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)
_HELD = 256
"""Items looked up again at a time while others wait for the file."""
_STATUS: dict[str, Status] = {"accept": "complete", "keep": "complete", "reject": "rejected"}


class Ledger:
    """Makes records of decided sessions, and keeps `out` up to date with them.

    Args:
        stamp, codec: of the model.
        out: file that finished records are appended to; None: the store alone.
        begun_as: the name of the model when the store was begun, which may have been another path to it.
        shared: several people do each item, so that each one's record needs an id of its own.

    Attributes:
        former: the ids under which work of 0.1.0 on these prompts may be stored.
    """

    def __init__(
        self,
        stamp: ModelStamp,
        codec: Codec,
        out: Path | None = None,
        *,
        begun_as: str | None = None,
        shared: bool = False,
    ) -> None:
        self._stamp, self._codec, self._out, self._shared = stamp, codec, out, shared
        self._first = stamp.model_copy(update={"name": begun_as or stamp.name})
        self.former = FormerIds(stamp, codec)

    def key(self, prompt: Prompt) -> str:
        """The id under which a prompt is queued, whatever name the model goes by meanwhile."""
        return prompt.record_id(self._first)

    def other_keys(self, prompt: Prompt) -> list[str]:
        """The ids that its record may have besides: of work done without this store, and of 0.1.0."""
        return [prompt.record_id(self._stamp), *self.former.of(prompt)]

    def record(self, row: SessionRow, prompt_ids: Sequence[int], tree: Tree) -> Record:
        """The record of a session as it stands; a draft while it is undecided."""
        node = tree.node
        kept = ["keep"] if tree.verdict == "keep" else []
        return Record.build(
            row.prompt,
            self._stamp,
            prompt_ids=prompt_ids,
            completion_ids=node.completion_ids,
            decode=self._codec.decode,
            record_id=new_id(row.record_id, row.annotator) if self._shared else row.record_id,
            original_ids=tree.original_ids,
            anchors=tree.anchors(),
            ties=tree.ties(),
            truncated=node.truncated,
            status=_STATUS.get(tree.verdict or "", "draft"),
            tags=[*tree.tags, *kept],
        )

    def publish(self, record: Record) -> None:
        """Append to `out`. The store has the record already, so a full disk there costs nothing but this copy."""
        if self._out is None:
            return
        try:
            append_record(self._out, record)
        except StorageError as error:
            _log.warning("%s The store has the record; the next start writes it to the file.", error)

    def known(self) -> dict[str, Record]:
        """What `out` holds, by id. A line torn by a crash is warned of: the store has what it held."""
        known: dict[str, Record] = {}
        for record in () if self._out is None else RecordJournal(self._out).news():
            known[record.id] = record
            self.former.learn(record.model.name)
        return known

    def reconcile(self, stored: Callable[[Collection[int] | None], dict[int, list[Record]]]) -> None:
        """Bring `out` up to the store, which may have gone further when a process died between the two.

        Others may be at work on both: what is behind is looked up in the store once more while nobody else writes the
        file, so that no older state comes after a newer one.

        Args:
            stored: gives the records of these items of the store (None: of all), by item: finished ones, and drafts
                of sessions whose decision was taken back.
        """
        if self._out is None:
            return
        journal, known = RecordJournal(self._out), dict[str, Record]()

        def learn(news: Iterable[Record]) -> None:
            known.update((record.id, record) for record in news)

        learn(journal.news())
        behind = [item for item, records in stored(None).items() if _behind(records, known)]
        for first in range(0, len(behind), _HELD):
            some = behind[first : first + _HELD]

            def choose(news: Iterable[Record], some: list[int] = some) -> list[Record]:
                learn(news)
                return [record for records in stored(some).values() for record in _behind(records, known)]

            journal.add(choose, over_torn=True)


def _behind(records: Sequence[Record], known: dict[str, Record]) -> list[Record]:
    """Those of one item's records that the file does not hold as they are.

    A draft takes the place of a finished record, not of nothing, and not of one that somebody else has finished.
    """
    finished = {record.id for record in records if record.status != "draft"}
    return [
        record
        for record in records
        if (
            known.get(record.id) != record
            if record.status != "draft"
            else record.id not in finished and record.id in known and known[record.id].status != "draft"
        )
    ]
