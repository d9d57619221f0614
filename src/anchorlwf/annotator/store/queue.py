"""The queue of a project: items in and out, their order, who did what, and how far people agree."""

import gc
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update

from anchorlwf.annotation.events import Started
from anchorlwf.annotation.protocol import resumed
from anchorlwf.annotator.store.store import Order, Store, ordering
from anchorlwf.annotator.store.tables import events, items, projects, reading, records, seats, sessions, settle, writing
from anchorlwf.data.record import Prompt, Record
from anchorlwf.errors import MissingError, RecordError, wrong

__all__ = [
    "Proposal",
    "add_items",
    "agreement",
    "export_records",
    "finished",
    "progress",
    "propose",
    "reopened",
    "set_priority",
    "unproposed",
    "waiting",
]

_IMPORTED = "import"
"""The annotator's name on records that came finished."""
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
    given: Iterable[tuple[str, Prompt]],
    *,
    seats_each: int = 1,
    known: dict[str, Record] | None = None,
) -> tuple[int, int]:
    """Put prompts behind the queue; those it holds already stay as they are.

    They come in by small transactions, with a pause behind each, so that nobody at work has to wait for a long file.

    Args:
        store: where.
        project: its number.
        given: (record id, prompt).
        seats_each: how many people each item wants.
        known: records made elsewhere by their id: complete and rejected ones count as done, drafts are gone on from.

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
    position, seen, size, rest = 0 if last is None else last + 1, 0, _FIRST, iter(given)
    added, noted, held = 0, _LARGEST, _HELD[store.engine.dialect.name]
    # What waits to come in is no garbage; a look through all of it would stop a transaction for half a second.
    gc.freeze()
    try:
        while some := list(itertools.islice(rest, size)):
            took, new = batch.add(dict(some), position + added)
            seen, added = seen + len(some), added + new
            size = max(1, min(_LARGEST, int(size * held / took)))
            settle(store.engine, grown := added >= 2 * noted)
            noted = added if grown else noted
            time.sleep(_PAUSE)
    finally:
        gc.unfreeze()
    return added, seen - added


@dataclass(frozen=True)
class _Batch:
    """What the transactions of one `add_items` have in common."""

    store: Store
    project: int
    seats_each: int
    known: dict[str, Record]

    def add(self, given: dict[str, Prompt], position: int) -> tuple[float, int]:
        """One transaction: how many seconds others had to wait for it, and how many items were new."""
        with writing(self.store.engine) as db:
            began = time.monotonic()
            # On PostgreSQL imports of one project take turns, so that none brings what another is bringing.
            db.execute(select(projects.c.id).where(projects.c.id == self.project).with_for_update())
            there = set(db.execute(select(items.c.record_id).where(self._among(given))).scalars())
            new = {key: prompt for key, prompt in given.items() if key not in there}
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
        places = [
            {"item_id": item, "seat": seat, "done": item in done}
            for item in numbers.values()
            for seat in range(self.seats_each)
        ]
        db.execute(insert(seats), places)
        if done:
            self._finish(db, done, now)

    def _finish(self, db: Connection, done: dict[int, Record], now: float) -> None:
        """Records that came finished, by their new items."""
        verdicts = {"rejected": "reject"}
        mine = [
            {
                "item_id": item,
                "annotator": _IMPORTED,
                "verdict": verdicts.get(record.status, "accept"),
                "touched_at": now,
            }
            for item, record in done.items()
        ]
        db.execute(insert(sessions), mine)
        begun = db.execute(select(sessions.c.id, sessions.c.item_id).where(sessions.c.item_id.in_(done)))
        bodies = [{"session_id": row.id, "record": done[row.item_id].model_dump(mode="json")} for row in begun]
        db.execute(insert(records), bodies)


def _draft(record: Record | None, now: float) -> dict[str, Any] | None:
    """What a session on an unfinished record begins with; None: it begins with the model's own answer."""
    if record is None or record.status != "draft":
        return None
    return resumed(record, datetime.fromtimestamp(now, UTC)).model_dump(mode="json")


def unproposed(store: Store, project: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
    """Items whose answer was not decoded ahead yet, in the order of the queue, and their prompts as they are stored."""
    query = (
        select(items.c.id, items.c.prompt)
        .where(items.c.project_id == project, items.c.proposal.is_(None))
        .order_by(*ordering("queue"))
        .limit(limit)
    )
    with reading(store.engine) as db:
        return [(row.id, row.prompt) for row in db.execute(query)]


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


def _title(prompt: dict[str, Any]) -> str:
    asked = [message for message in prompt["messages"] if message.get("role") == "user"] or prompt["messages"]
    return str(asked[-1].get("content") or "")[:120] if asked else ""


def waiting(
    store: Store,
    project: int,
    annotator: str,
    order: Order = "queue",
    offset: int = 0,
    limit: int = 50,
    *,
    aside: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """A part of the queue as this person sees it (the `GET /api/queue` of docs/annotator_api.md).

    `aside`: what is wrong with items that cannot be begun.
    """
    with reading(store.engine) as db:
        total = db.execute(select(func.count()).where(items.c.project_id == project)).scalar_one()
        # By offset and limit first: prompts may be long.
        chosen = (
            select(items.c.id)
            .where(items.c.project_id == project)
            .order_by(*ordering(order))
            .offset(offset)
            .limit(limit)
        )
        numbers = list(db.execute(chosen).scalars())
        rows = {row.id: row for row in db.execute(select(items).where(items.c.id.in_(numbers)))}
        mine = {
            row.item_id: row
            for row in db.execute(
                select(sessions).where(sessions.c.item_id.in_(numbers), sessions.c.annotator == annotator)
            )
        }
        taken: dict[int, list[Any]] = defaultdict(list)
        for seat in db.execute(
            select(seats, sessions.c.annotator)
            .outerjoin(sessions, sessions.c.id == seats.c.session_id)
            .where(seats.c.item_id.in_(numbers))
        ):
            taken[seat.item_id].append(seat)
    listed = [
        _listed(rows[number], mine.get(number), taken[number], store.clock(), (aside or {}).get(number))
        for number in numbers
    ]
    return {"total": total, "items": listed}


def _listed(row: Any, own: Any, taken: Sequence[Any], now: float, problem: str | None) -> dict[str, Any]:
    """One item of `waiting`: its row, this person's session on it, its seats."""
    live = [seat.annotator for seat in taken if not seat.done and seat.expires_at >= now and seat.annotator]
    if all(seat.done for seat in taken) or (own and own.verdict not in (None, "skip")):
        status = "done"
    elif own and own.verdict == "skip":
        status = "skip"
    else:
        status = "open" if live else "waiting"
    return {
        "id": row.id,
        "position": row.position,
        "priority": row.priority,
        "title": _title(row.prompt),
        "status": status,
        "session": own.id if own else None,
        "held_by": live,
        "mean_entropy": row.mean_entropy,
        "lowest_probability": row.lowest_probability,
        "tags": row.prompt.get("tags", []),
        "problem": problem,
    }


def progress(store: Store, project: int) -> dict[str, Any]:
    """Counts and working time of a project (the `GET /api/progress` of docs/annotator_api.md)."""
    mine = items.c.project_id == project
    held = and_(seats.c.session_id.is_not(None), seats.c.expires_at >= store.clock())
    # Counted by the database: a queue may be long.
    seated = select(func.count(seats.c.item_id.distinct())).join(items, items.c.id == seats.c.item_id)
    with reading(store.engine) as db:
        total = db.execute(select(func.count()).where(mine)).scalar_one()
        unfinished = db.execute(seated.where(mine, seats.c.done.is_(False))).scalar_one()
        live = db.execute(seated.where(mine, seats.c.done.is_(False), held)).scalar_one()
        worked = db.execute(
            select(sessions.c.annotator, sessions.c.verdict, func.count(), func.sum(sessions.c.seconds))
            .join(items, items.c.id == sessions.c.item_id)
            .where(mine)
            .group_by(sessions.c.annotator, sessions.c.verdict)
        ).all()
    verdicts, by_annotator = Counter[str | None](), Counter[str]()
    seconds, finished_seconds, finished_count = 0.0, 0.0, 0
    for annotator, verdict, count, spent in worked:
        verdicts[verdict] += count
        if annotator == _IMPORTED:
            continue
        seconds += spent
        if verdict is not None:
            by_annotator[annotator] += count
        if verdict in ("accept", "keep", "reject"):
            finished_seconds, finished_count = finished_seconds + spent, finished_count + count
    return {
        "items": total,
        "done": total - unfinished,
        "open": live,
        "waiting": unfinished - live,
        **{verdict: verdicts[verdict] for verdict in ("accept", "keep", "reject", "skip")},
        "seconds": seconds,
        "mean_seconds": finished_seconds / finished_count if finished_count else None,
        "by_annotator": dict(by_annotator),
    }


def _finished(store: Store, project: int, among: Collection[int] | None = None) -> list[tuple[int, str, Record]]:
    query = (
        select(items.c.id, sessions.c.annotator, records.c.record)
        .join(sessions, sessions.c.id == records.c.session_id)
        .join(items, items.c.id == sessions.c.item_id)
        .where(items.c.project_id == project, *_in(among))
        .order_by(items.c.position, items.c.id, sessions.c.id)
    )
    with reading(store.engine) as db:
        rows = db.execute(query).all()
    return [(row.id, row.annotator, Record.model_validate(row.record)) for row in rows]


def _in(among: Collection[int] | None) -> list[ColumnElement[bool]]:
    return [] if among is None else [items.c.id.in_(among)]


def finished(store: Store, project: int, among: Collection[int] | None = None) -> list[tuple[int, Record]]:
    """The finished records of these items, or of all, each with its item, in the order of the items."""
    return [(item, record) for item, _annotator, record in _finished(store, project, among)]


def export_records(store: Store, project: int) -> list[Record]:
    """All finished records, in the order of the items."""
    return [record for _item, _annotator, record in _finished(store, project)]


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


def _same(one: Record, other: Record) -> tuple[bool, bool, bool]:
    """First anchors at one position; the same token there, too; the same final text."""
    first = one.anchors[0].position if one.anchors else None
    second = other.anchors[0].position if other.anchors else None
    place = first == second
    token = place and (first is None or one.anchors[0].token_id == other.anchors[0].token_id)
    return place, token, one.completion_ids == other.completion_ids


def _shares(pairs: Sequence[tuple[bool, bool, bool]]) -> dict[str, Any]:
    names = ("same_position", "same_token", "same_text")
    rates = {name: sum(pair[i] for pair in pairs) / len(pairs) if pairs else None for i, name in enumerate(names)}
    return {"pairs": len(pairs), **rates}


def agreement(store: Store, project: int) -> dict[str, Any]:
    """How far people who finished the same item agree.

    Shares of all pairs, in [0, 1]: the same first error, the same token put there, the same text in the end; and the
    same for every item with two annotators or more.
    """
    by_item: dict[int, list[tuple[str, Record]]] = defaultdict(list)
    for item, annotator, record in _finished(store, project):
        if record.status == "complete":
            by_item[item].append((annotator, record))
    every, listed = [], []
    for item, done in by_item.items():
        pairs = [_same(one, other) for (_, one), (_, other) in itertools.combinations(done, 2)]
        if pairs:
            listed.append({"item": item, "annotators": [annotator for annotator, _ in done], **_shares(pairs)})
        every += pairs
    return {**_shares(every), "items": listed}
