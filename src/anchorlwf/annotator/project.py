"""A project with all that goes in and out of it: prompts, records, lawftrack's data sets, comparisons."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Literal

from anchorlwf.annotation.checks import check_record
from anchorlwf.annotation.importers.lawftrack import Span, read_lawftrack
from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.store.queue import add_items, finished, reopened
from anchorlwf.annotator.store.store import SessionRow
from anchorlwf.annotator.web.payloads import tokens
from anchorlwf.data.jsonl import BadLine, Line, Row, checked_line, refusal, row_of
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import ModelError, RecordError, StampError, wrong

__all__ = ["Exchange"]

_NAMED = 20
"""Bad lines named where there is no good one."""


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

    def fits(self, prompt: Prompt) -> list[str]:
        """Raise `PromptError` where the model cannot take a prompt, and remark on it: the `check` of `load_prompts`."""
        codec = self.desk.decoder.table.codec
        self.desk.decoder.room(codec.encode_prompt(prompt.messages, prompt.tools), 1)
        return codec.remarks(prompt.messages, prompt.tools)

    def add(self, prompts: Iterable[Prompt], known: dict[str, Record] | None = None) -> tuple[int, int]:
        """Prompts that `fits` found good into the queue: how many were new, and how many there before."""
        keyed = ((self.desk.ledger.key(prompt), prompt) for prompt in prompts)
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
        return desk.ledger.record(row, prompt_ids, fold(desk.store.events(row.id)))

    def take(
        self, form: Literal["records", "lawftrack", "prompts"], content: str, span: Span = "first"
    ) -> dict[str, Any]:
        """A file's content into the project: the reply to `POST /api/import`.

        What is no good is set aside and flagged, by its line or sample; the rest comes in.

        Raises:
            AnchorLwfError: nothing in it is any good; what is wrong with it.
        """
        bad: list[BadLine] = []
        if form == "prompts":
            added, known = self.add(_good(content, Prompt, self.fits, bad))
        elif form == "records":
            added, known = self._add_records(_good(content, Record, self._takes, bad))
        else:
            decoder = self.desk.decoder
            found = read_lawftrack(
                content, decoder.table, decoder.stamp, decoder.stop_ids, span=span, check=self._takes
            )
            added, known = self._add_records(found.records)
            return {"added": added, "known": known, "flagged": [flag.json() for flag in found.flags]}
        if not added + known:
            if bad:
                raise refusal(bad[:_NAMED], 0)
            raise RecordError(wrong("content", "at least one line", "none", "Choose another file."))
        flagged = [{"sample": f"line {one.line}", "anchor": None, "reason": one.problem} for one in bad]
        return {"added": added, "known": known, "flagged": flagged}

    def _add_records(self, records: Iterable[Record]) -> tuple[int, int]:
        latest = {record.id: record for record in records}
        keyed = [
            (record.id, Prompt(messages=record.messages, tools=record.tools, tags=record.tags))
            for record in latest.values()
        ]
        return add_items(self.desk.store, self.desk.project, keyed, seats_each=self._per_item, known=latest)

    def _takes(self, record: Record) -> None:
        """Raise what is wrong with a record from outside: other ids, or what no prompt may have either."""
        stamp = self.desk.decoder.stamp
        if (record.model.tokenizer_sha, record.model.template_sha) != (stamp.tokenizer_sha, stamp.template_sha):
            fix = "Start the annotator with that model."
            raise StampError(wrong(f"record {record.id}", f"ids of {stamp.name}", f"of {record.model.name}", fix))
        check_record(record, self.desk.decoder.table, self.desk.decoder.room)

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


def _good(content: str, kind: type[Row], check: Callable[[Row], object], bad: list[BadLine]) -> Iterator[Row]:
    """The good lines of a JSONL file's content one by one, since they may be many; the bad ones are put into `bad`."""
    for number, text in enumerate(content.split("\n"), 1):
        if not text.strip():
            continue
        row = checked_line(Line(number, row_of(text.encode(errors="surrogatepass"))), "import", kind, check)
        if isinstance(row, BadLine):
            bad.append(row)
        else:
            yield row
