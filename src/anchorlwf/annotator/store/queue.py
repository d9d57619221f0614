"""The queue of a project: what goes in, what is decoded ahead, and the finished records that come out."""

import gc
import itertools
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, select, update

from anchorlwf.annotation.events import Started
from anchorlwf.annotation.protocol import resumed
from anchorlwf.annotator.store.store import Store, ordering
from anchorlwf.annotator.store.tables import events, items, projects, reading, records, seats, sessions, settle, writing
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import MissingError, RecordError, wrong

__all__ = [
    "IMPORTED",
    "Finished",
    "Proposal",
    "add_items",
    "export_records",
    "finished",
    "has_items",
    "held_ids",
    "propose",
    "reopened",
    "set_priority",
    "unproposed",
    "upcoming",
]

IMPORTED = "import"
"""The annotator's name on records that came in finished."""
_HELD = {"sqlite": 0.03, "postgresql": 1.0}
"""Seconds that a transaction of an import should take: on SQLite every other writer waits, on PostgreSQL imports do."""
_PAUSE = 0.015
"""Seconds for which it lets others in behind each."""
_FIRST, _LARGEST = 20, 500
"""Items of an import's first transaction, from which the size of the next ones follows, and of the largest one."""


@dataclass(frozen=True)
class Proposal:
    """What a session on an item begins with, and how sure the model was of it."""

    started: Started
    mean_entropy: float | None = None
    """Nats per token."""
    lowest_probability: float | None = None


def add_items(
    store: Store,
    project: int,
    prompts: Iterable[tuple[str, Prompt]],
    *,
    seats_each: int = 1,
    known: dict[str, Record] | None = None,
) -> tuple[int, int]:
    """Put prompts behind the queue; those it holds already stay as they are.

    They come in by small transactions, with a pause behind each, so that nobody at work has to wait for a long file.

    Args:
        store: where.
        project: its number.
        prompts: each with the id of its record.
        seats_each: how many people each item wants.
        known: records made elsewhere by their id: complete and rejected ones count as done,
            drafts are what sessions begin with.

    Returns:
        How many were added, and how many were there before.

    Raises:
        StorageError: the database is gone or full. What came in before stays; adding it again adds the rest.
    """
    if seats_each < 1:
        raise RecordError(wrong("annotators per item", "at least 1", seats_each, "Give another number."))
    with reading(store.engine) as db:
        last = db.execute(select(func.max(items.c.position)).where(items.c.project_id == project)).scalar()
    batch = _Batch(store, project, seats_each, known or {})
    position, seen, size, rest = 0 if last is None else last + 1, 0, _FIRST, iter(prompts)
    added, noted, held = 0, _LARGEST, _HELD[store.engine.dialect.name]
    # What waits to come in is no garbage; a look through all of it would stop a transaction for half a second.
    gc.freeze()
    try:
        while part := list(itertools.islice(rest, size)):
            took, new = batch.add(dict(part), position + added)
            seen, added = seen + len(part), added + new
            size = max(1, min(_LARGEST, int(size * held / took)))
            settle(store.engine, grown := added >= 2 * noted)
            noted = added if grown else noted
            time.sleep(_PAUSE)
    finally:
        gc.unfreeze()
    return added, seen - added


def has_items(store: Store, project: int) -> bool:
    """Whether the queue holds anything yet."""
    with reading(store.engine) as db:
        return db.execute(select(items.c.id).where(items.c.project_id == project).limit(1)).first() is not None


def held_ids(store: Store, project: int, among: Collection[str]) -> set[str]:
    """Those of these record ids that items of the queue have."""
    if not among:
        return set()
    mine = select(items.c.record_id).where(items.c.project_id == project, items.c.record_id.in_(among))
    with reading(store.engine) as db:
        return set(db.execute(mine).scalars())


@dataclass(frozen=True)
class _Batch:
    """What the transactions of one `add_items` have in common."""

    store: Store
    project: int
    seats_each: int
    known: dict[str, Record]

    def add(self, prompts: dict[str, Prompt], position: int) -> tuple[float, int]:
        """One transaction: how many seconds others had to wait for it, and how many items were new."""
        with writing(self.store.engine) as db:
            began = time.monotonic()
            # On PostgreSQL imports of one project take turns, so that none brings what another is bringing.
            db.execute(select(projects.c.id).where(projects.c.id == self.project).with_for_update())
            known_ids = set(db.execute(select(items.c.record_id).where(self._among(prompts))).scalars())
            new = {key: prompt for key, prompt in prompts.items() if key not in known_ids}
            self._insert(db, new, position)
        return time.monotonic() - began, len(new)

    def _among(self, keys: Iterable[str]) -> ColumnElement[bool]:
        return and_(items.c.project_id == self.project, items.c.record_id.in_(keys))

    def _insert(self, db: Connection, new: dict[str, Prompt], position: int) -> None:
        if not new:
            return
        now = self.store.clock()
        made = {key: self.known[key] for key in new.keys() & self.known.keys()}
        rows = [
            {
                "project_id": self.project,
                "position": position + index,
                "record_id": key,
                "prompt": prompt.model_dump(mode="json"),
                "proposal": _draft(made.get(key), now),
            }
            for index, (key, prompt) in enumerate(new.items())
        ]
        db.execute(insert(items), rows)
        numbers = {
            row.record_id: row.id for row in db.execute(select(items.c.id, items.c.record_id).where(self._among(new)))
        }
        done = {numbers[key]: record for key, record in made.items() if record.status != "draft"}
        new_seats = [
            {"item_id": item, "seat": seat, "done": item in done}
            for item in numbers.values()
            for seat in range(self.seats_each)
        ]
        db.execute(insert(seats), new_seats)
        if done:
            self._finish(db, done, now)

    def _finish(self, db: Connection, done: dict[int, Record], now: float) -> None:
        """Records that came finished, by their new items."""
        verdicts = {"rejected": "reject"}
        finished_sessions = [
            {
                "item_id": item,
                "annotator": IMPORTED,
                "verdict": verdicts.get(record.status, "accept"),
                "touched_at": now,
            }
            for item, record in done.items()
        ]
        db.execute(insert(sessions), finished_sessions)
        begun = db.execute(select(sessions.c.id, sessions.c.item_id).where(sessions.c.item_id.in_(done)))
        bodies = [{"session_id": row.id, "record": done[row.item_id].model_dump(mode="json")} for row in begun]
        db.execute(insert(records), bodies)


def _draft(record: Record | None, now: float) -> dict[str, Any] | None:
    """What a session on an unfinished record begins with; None: it begins with the model's own answer."""
    if record is None or record.status != "draft":
        return None
    return resumed(record, datetime.fromtimestamp(now, UTC)).model_dump(mode="json")


def unproposed(store: Store, project: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
    """Unfinished items whose answer was not decoded ahead yet, in the order of the queue, and their stored prompts."""
    unfinished = exists().where(seats.c.item_id == items.c.id, seats.c.done.is_(False))
    query = (
        select(items.c.id, items.c.prompt)
        .where(items.c.project_id == project, items.c.proposal.is_(None), unfinished)
        .order_by(*ordering("queue"))
        .limit(limit)
    )
    with reading(store.engine) as db:
        return [(row.id, row.prompt) for row in db.execute(query)]


def upcoming(store: Store, project: int, limit: int) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """The first items that nobody has begun and that have an answer to begin with: number, prompt and that answer."""
    begun = exists().where(sessions.c.item_id == items.c.id)
    query = (
        select(items.c.id, items.c.prompt, items.c.proposal)
        .where(items.c.project_id == project, items.c.proposal.is_not(None), ~begun)
        .order_by(*ordering("queue"))
        .limit(limit)
    )
    with reading(store.engine) as db:
        return [(row.id, row.prompt, row.proposal) for row in db.execute(query)]


def propose(store: Store, item: int, proposal: Proposal) -> None:
    """Keep an answer decoded ahead; a session begun since then is not touched."""
    values = {
        "proposal": proposal.started.model_dump(mode="json"),
        "mean_entropy": proposal.mean_entropy,
        "lowest_probability": proposal.lowest_probability,
    }
    with writing(store.engine) as db:
        db.execute(update(items).where(items.c.id == item, items.c.proposal.is_(None)).values(**values))


def set_priority(store: Store, project: int, item: int, priority: int) -> None:
    """Items of a higher priority come first. Raises `MissingError`."""
    with writing(store.engine) as db:
        mine = and_(items.c.id == item, items.c.project_id == project)
        if not db.execute(update(items).where(mine).values(priority=priority)).rowcount:
            raise MissingError(wrong("item", "one of this project", item, "Look at the queue."))


@dataclass(frozen=True)
class Finished:
    """A record that somebody finished."""

    item: int
    annotator: str
    record: Record


def finished(store: Store, project: int, among: Collection[int] | None = None) -> list[Finished]:
    """The finished records of these items, or of all, in the order of the items."""
    query = (
        select(items.c.id, sessions.c.annotator, records.c.record)
        .join(sessions, sessions.c.id == records.c.session_id)
        .join(items, items.c.id == sessions.c.item_id)
        .where(items.c.project_id == project, *_in(among))
        .order_by(items.c.position, items.c.id, sessions.c.id)
    )
    with reading(store.engine) as db:
        rows = db.execute(query).all()
    return [Finished(row.id, row.annotator, Record.model_validate(row.record)) for row in rows]


def _in(among: Collection[int] | None) -> list[ColumnElement[bool]]:
    return [] if among is None else [items.c.id.in_(among)]


def export_records(store: Store, project: int) -> list[Record]:
    """All finished records, in the order of the items."""
    return [done.record for done in finished(store, project)]


def reopened(store: Store, project: int, among: Collection[int] | None = None) -> list[int]:
    """Numbers of the sessions on these items, or on any, whose decision was taken back and that have no record now."""
    query = (
        select(sessions.c.id)
        .distinct()
        .join(items, items.c.id == sessions.c.item_id)
        .join(events, events.c.session_id == sessions.c.id)
        .outerjoin(records, records.c.session_id == sessions.c.id)
        .where(items.c.project_id == project, events.c.kind == "reopened", records.c.session_id.is_(None), *_in(among))
    )
    with reading(store.engine) as db:
        return list(db.execute(query).scalars())
