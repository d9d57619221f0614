"""Decisions become records, and records a file beside the store."""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path

from anchorlwf.annotation.store import SessionRow
from anchorlwf.annotation.tree import Tree
from anchorlwf.errors import StorageError
from anchorlwf.jsonl import append_record, earlier_records, save_records
from anchorlwf.record import ModelStamp, Prompt, Record, new_id
from anchorlwf.text import Codec

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)
_STATUS = {"accept": "complete", "keep": "complete", "reject": "rejected"}


class Ledger:
    """Makes records of decided sessions, and keeps `out` up to date with them.

    Args:
        stamp, codec: of the model.
        out: file that finished records are appended to; None: the store alone.
        shared: several people do each item, so that each one's record needs an id of its own.
    """

    def __init__(self, stamp: ModelStamp, codec: Codec, out: Path | None = None, *, shared: bool = False) -> None:
        self._stamp, self._codec, self._out, self._shared = stamp, codec, out, shared
        self._lock = threading.Lock()

    def key(self, prompt: Prompt) -> str:
        """The id of the record a prompt becomes: work done without a store counts here."""
        return prompt.record_id(self._stamp)

    def record(self, row: SessionRow, prompt_ids: Sequence[int], tree: Tree) -> Record:
        """The record of a session as it stands; a draft while it is undecided."""
        node = tree.node
        kept = ["keep"] if tree.verdict == "keep" else []
        return Record.model_validate(
            {
                "id": new_id(row.record_id, row.annotator) if self._shared else row.record_id,
                "model": self._stamp,
                "messages": row.prompt.messages,
                "tools": row.prompt.tools,
                "prompt_ids": list(prompt_ids),
                "original_ids": list(tree.original_ids),
                "completion_ids": list(node.completion_ids),
                "completion": self._codec.decode(list(node.completion_ids)),
                "anchors": list(tree.anchors()),
                "ties": list(tree.ties()),
                "truncated": node.truncated,
                "status": _STATUS.get(tree.verdict or "", "draft"),
                "tags": list(dict.fromkeys([*row.prompt.tags, *tree.tags, *kept])),
            }
        )

    def publish(self, record: Record) -> None:
        """Append to `out`. The store has the record already, so a full disk there costs nothing but this copy."""
        if self._out is None:
            return
        try:
            with self._lock:
                append_record(self._out, record)
        except StorageError as error:
            _log.warning("%s The store has the record; the next start writes it to the file.", error)

    def known(self) -> dict[str, Record]:
        """What `out` holds, by id. A line torn by a crash is warned of: the store has what it held."""
        return {} if self._out is None else earlier_records(self._out)

    def reconcile(self, stored: Sequence[Record], taken_back: Sequence[Record] = ()) -> None:
        """Bring `out` up to the store, which may have gone further when a process died between the two.

        Args:
            stored: every finished record.
            taken_back: drafts of the sessions whose decision was taken back. Where `out` still holds one as finished
                and `stored` has none, the draft takes its place.
        """
        known, finished = self.known(), {record.id for record in stored}
        behind = [record for record in stored if known.get(record.id) != record]
        behind += [
            draft
            for draft in taken_back
            if draft.id not in finished and draft.id in known and known[draft.id].status != "draft"
        ]
        if self._out is not None and behind:
            save_records(self._out, {**known, **{record.id: record for record in behind}}.values())
