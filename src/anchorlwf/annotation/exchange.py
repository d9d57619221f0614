"""A project with all that goes in and out of it: prompts, records, lawftrack's data sets, comparisons."""

import json
from collections import defaultdict
from collections.abc import Collection
from typing import Any, Literal

from anchorlwf.annotation.ahead import Ahead
from anchorlwf.annotation.decoders import LocalDecoder
from anchorlwf.annotation.desk import Desk
from anchorlwf.annotation.lawftrack import Span, read_lawftrack
from anchorlwf.annotation.queue import add_items, finished, reopened
from anchorlwf.annotation.store import SessionRow
from anchorlwf.annotation.tree import replay
from anchorlwf.annotation.views import tokens
from anchorlwf.errors import ModelError, RecordError, wrong
from anchorlwf.jsonl import load_prompts, load_records
from anchorlwf.record import Prompt, Record

__all__ = ["Exchange"]


class Exchange:
    """The project behind a page.

    Args:
        name: of the project.
        desk: its sessions.
        per_item: how many people each item wants.
        ahead: told of new items; None: nothing is decoded ahead.
    """

    def __init__(self, name: str, desk: Desk, *, per_item: int = 1, ahead: Ahead | None = None) -> None:
        self.name, self.desk, self._per_item, self._ahead = name, desk, per_item, ahead

    @property
    def can_compare(self) -> bool:
        """The model has an adapter that can be switched off."""
        decoder = self.desk.decoder
        return isinstance(decoder, LocalDecoder) and decoder.has_adapter

    def fits(self, prompt: Prompt) -> None:
        """Raise `PromptError` where the model cannot take a prompt: the `check` of `load_prompts`."""
        self.desk.decoder.room(self.desk.decoder.table.codec.encode_prompt(prompt.messages, prompt.tools), 1)

    def add(self, prompts: list[Prompt], known: dict[str, Record] | None = None) -> tuple[int, int]:
        """Prompts that `fits` found good into the queue: how many were new, and how many there before."""
        keyed = [(self.desk.ledger.key(prompt), prompt) for prompt in prompts]
        counts = add_items(self.desk.store, self.desk.project, keyed, seats_each=self._per_item, known=known)
        if self._ahead is not None:
            self._ahead.more()
        return counts

    def publish(self) -> None:
        """Bring the file of records up to the store, which is ahead of it where a process died between the two."""
        self.desk.ledger.reconcile(self._stored)

    def _stored(self, among: Collection[int] | None = None) -> dict[int, list[Record]]:
        """What the store holds of these items, or of all: the `stored` of `Ledger.reconcile`."""
        desk, by_item = self.desk, defaultdict[int, list[Record]](list)
        for item, record in finished(desk.store, desk.project, among):
            by_item[item].append(record)
        for session in reopened(desk.store, desk.project, among):
            row = desk.store.session(session)
            by_item[row.item].append(self._draft(row))
        return by_item

    def _draft(self, row: SessionRow) -> Record:
        """The record of an undecided session as it is stored, whoever's it is."""
        desk = self.desk
        prompt_ids = desk.decoder.table.codec.encode_prompt(row.prompt.messages, row.prompt.tools)
        return desk.ledger.record(row, prompt_ids, replay(desk.store.events(row.id)))

    def take(
        self, form: Literal["records", "lawftrack", "prompts"], content: str, span: Span = "first"
    ) -> dict[str, Any]:
        """A file's content into the project: the reply to `POST /api/import`.

        Raises:
            RecordError: a line that is not what it should be; nothing is added then.
            StampError: records of another model.
        """
        flagged: list[dict[str, Any]] = []
        if form == "prompts":
            added, known = self.add(load_prompts(_lines(content), check=self.fits))
        else:
            if form == "records":
                records = load_records(_lines(content))
            else:
                found = read_lawftrack(
                    content, self.desk.decoder.table, self.desk.decoder.stamp, self.desk.decoder.stop_ids, span=span
                )
                records, flagged = found.records, [flag.json() for flag in found.flags]
            added, known = self._add_records(records)
        return {"added": added, "known": known, "flagged": flagged}

    def _add_records(self, records: list[Record]) -> tuple[int, int]:
        for record in records:
            self._check(record)
        keyed = [
            (record.id, Prompt(messages=record.messages, tools=record.tools, tags=record.tags)) for record in records
        ]
        return add_items(
            self.desk.store,
            self.desk.project,
            keyed,
            seats_each=self._per_item,
            known={record.id: record for record in records},
        )

    def _check(self, record: Record) -> None:
        stamp = self.desk.decoder.stamp
        if (record.model.tokenizer_sha, record.model.template_sha) != (stamp.tokenizer_sha, stamp.template_sha):
            fix = "Start the annotator with that model."
            raise RecordError(wrong(f"record {record.id}", f"ids of {stamp.name}", f"of {record.model.name}", fix))

    def compare(self, prompt_ids: list[int]) -> dict[str, Any]:
        """Answers of base and tuned model with KL per token: the reply to `POST /api/compare`. Raises `ModelError`."""
        desk = self.desk
        if not isinstance(desk.decoder, LocalDecoder):
            fix = "Start with --model set to the folder of an adapter."
            raise ModelError(wrong("comparison", "a model in this process", "a remote one", fix))
        found = desk.decoder.compare(prompt_ids, desk.config.max_new_tokens)
        return {
            name: [
                {**token, "kl": kl}
                for token, kl in zip(tokens(desk.decoder.table, ids, [None] * len(ids)), kls, strict=True)
            ]
            for name, (ids, kls) in found.items()
        }


def _lines(content: str) -> list[dict[str, Any]]:
    """JSONL as rows. Raises `RecordError`, with the line's number."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise RecordError(wrong(f"line {number}", "one JSON object", error, "Mend the line.")) from error
        if not isinstance(row, dict):
            raise RecordError(wrong(f"line {number}", "one JSON object", type(row).__name__, "Mend the line."))
        rows.append(row)
    if not rows:
        raise RecordError(wrong("content", "at least one line", "none", "Choose another file."))
    return rows
