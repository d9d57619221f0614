"""A project with all that goes in and out of it: prompts, records, lawftrack's data sets, comparisons."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

from anchorlwf.annotation.checks import check_record
from anchorlwf.annotation.importers.lawftrack import Flag, Span, read_lawftrack
from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.store.queue import add_items, finished, has_items, held_ids, reopened
from anchorlwf.annotator.store.store import SessionRow
from anchorlwf.data.jsonl import BadLine, Check, Reading, Row, refusal
from anchorlwf.data.record import Prompt, Record
from anchorlwf.decoding.teacher_forcing import windows
from anchorlwf.errors import ModelError, RecordError, wrong

__all__ = ["ComparedAnswer", "Comparison", "Exchange", "Intake"]

_WINDOW = 100
"""Prompts looked up in the store at a time."""
_NAMED = 20
"""Bad lines named where there is no good one."""


@dataclass(frozen=True)
class Intake:
    """What came of a file's content that was brought into a project."""

    added: int
    """Items that are new."""
    known: int
    """Items that were there before; they stay as they are."""
    flags: list[Flag]
    """Lines, samples and anchors that were left out, and why."""


@dataclass(frozen=True)
class ComparedAnswer:
    """A greedy answer of one of two compared models."""

    ids: list[int]
    token_kl: list[float]
    """KL(base || tuned) at each token, in nats."""


@dataclass(frozen=True)
class Comparison:
    """The greedy answers of the model without its adapter and with it."""

    base: ComparedAnswer
    tuned: ComparedAnswer


class Exchange:
    """The project behind a page and a terminal.

    Args:
        name: of the project.
        desk: its sessions.
        per_item: how many people each item wants.
        ahead: told of new items; None: nothing is decoded ahead.
    """

    def __init__(self, name: str, desk: Desk, *, per_item: int = 1, ahead: Ahead | None = None) -> None:
        self.name, self.desk, self.per_item, self._ahead = name, desk, per_item, ahead

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
        keyed = self._keyed(prompts, known or {})
        counts = add_items(self.desk.store, self.desk.project, keyed, seats_each=self.per_item, known=known)
        if self._ahead is not None:
            self._ahead.more()
        return counts

    def _keyed(self, prompts: Iterable[Prompt], known: dict[str, Record]) -> Iterator[tuple[str, Prompt]]:
        """Each prompt with the id of its record; where it is in the queue or known under another one, with that."""
        ledger, store, project = self.desk.ledger, self.desk.store, self.desk.project
        if not known and not has_items(store, project):
            yield from ((ledger.key(prompt), prompt) for prompt in prompts)
            return
        for window in windows(prompts, _WINDOW):
            keyed = [(ledger.key(prompt), prompt) for prompt in window]
            there = held_ids(store, project, [key for key, _ in keyed]) | known.keys()
            others = {key: ledger.other_keys(prompt) for key, prompt in keyed if key not in there}
            there |= held_ids(store, project, [other for ids in others.values() for other in ids])
            for key, prompt in keyed:
                yield next((other for other in others.get(key, ()) if other in there), key), prompt

    def publish(self) -> None:
        """Bring the file of records up to the store, which is ahead of it where a process died between the two."""
        self.desk.ledger.reconcile(self._stored)

    def _stored(self, among: Collection[int] | None = None) -> dict[int, list[Record]]:
        """What the store holds of these items, or of all: the `stored` of `Ledger.reconcile`."""
        desk, by_item = self.desk, defaultdict[int, list[Record]](list)
        for done in finished(desk.store, desk.project, among):
            by_item[done.item].append(done.record)
        for session in reopened(desk.store, desk.project, among):
            row = desk.store.session(session)
            by_item[row.item] += self._draft(row)
        return by_item

    def _draft(self, row: SessionRow) -> list[Record]:
        """The record of an undecided session as it is stored, whoever's it is; none without a token."""
        desk, tree = self.desk, fold(self.desk.store.events(row.id))
        if not tree.state.completion_ids:
            return []
        prompt_ids = desk.decoder.table.codec.encode_prompt(row.prompt.messages, row.prompt.tools)
        return [desk.ledger.record(row, prompt_ids, tree)]

    def take(self, form: Literal["records", "lawftrack", "prompts"], content: str, span: Span = "first") -> Intake:
        """Bring a file's content into the project.

        What is no good is left out and flagged, by its line or sample; the rest comes in.

        Args:
            form: what the file holds.
            content: of the file.
            span: of lawftrack's replacements, which tokens become anchors.

        Raises:
            AnchorLwfError: nothing in it is any good; what is wrong with it.
        """
        if form == "lawftrack":
            return self._take_lawftrack(content, span)
        bad: list[BadLine] = []
        if not content.strip():
            raise RecordError(wrong("content", "at least one line", "none", "Choose another file."))
        if form == "prompts":
            added, known = self.add(_good(content, Prompt, self.fits, bad))
        else:
            added, known = self._add_records(_good(content, Record, self._takes, bad))
        if not added + known:
            raise refusal(bad[:_NAMED], 0)
        return Intake(added, known, [Flag(f"line {line.line}", None, line.problem) for line in bad])

    def _take_lawftrack(self, content: str, span: Span) -> Intake:
        decoder = self.desk.decoder
        imported = read_lawftrack(content, decoder.table, decoder.stamp, decoder.stop_ids, span=span, check=self._takes)
        added, known = self._add_records(imported.records)
        return Intake(added, known, imported.flags)

    def _add_records(self, records: Iterable[Record]) -> tuple[int, int]:
        latest = {record.id: record for record in records}
        keyed = [
            (record.id, Prompt(messages=record.messages, tools=record.tools, tags=record.tags))
            for record in latest.values()
        ]
        return add_items(self.desk.store, self.desk.project, keyed, seats_each=self.per_item, known=latest)

    def _takes(self, record: Record) -> None:
        """Raise what is wrong with a record from outside: other ids, or what no prompt may have either."""
        fix = "Start the annotator with that model."
        record.model.require_same(self.desk.decoder.stamp, f"record {record.id}", fix)
        check_record(record, self.desk.decoder.table, self.desk.decoder.room)

    def compare(self, prompt_ids: list[int]) -> Comparison:
        """Answers of base and tuned model to a prompt. Raises `ModelError` where there are not two models."""
        desk = self.desk
        if not isinstance(desk.decoder, LocalDecoder):
            fix = "Start with --model set to the folder of an adapter."
            raise ModelError(wrong("comparison", "a model in this process", "a remote one", fix))
        answers = desk.decoder.compare(prompt_ids, desk.config.max_new_tokens)
        return Comparison(base=ComparedAnswer(*answers["base"]), tuned=ComparedAnswer(*answers["tuned"]))


def _good(content: str, kind: type[Row], check: Check[Row], bad: list[BadLine]) -> Iterator[Row]:
    """The good lines of a JSONL file's content one by one, since they may be many; the bad ones are put into `bad`.

    What `check` remarks on good ones is warned of at the end.
    """
    reading = Reading(BytesIO(content.encode(errors="surrogatepass")), kind, check, name="import")
    for _, row in reading.good_lines():
        yield row
    bad += reading.bad
    reading.warn_of_remarks()
