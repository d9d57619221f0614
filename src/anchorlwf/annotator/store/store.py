"""Durable sessions: leases, events and records. Whatever a method returns is committed.

Two people never work on one seat of an item: a seat is taken by a conditional update, renewed by every step, and free
again some time after its holder fell silent. Work that was left behind stays in the store and goes on where it was,
unless somebody else took the seat meanwhile.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    insert,
    or_,
    select,
    update,
)

from anchorlwf.annotation.events import EVENTS, Decided, Event, Reopened
from anchorlwf.annotator.store.tables import (
    connect,
    events,
    items,
    projects,
    reading,
    records,
    seats,
    sessions,
    writing,
)
from anchorlwf.data.jsonl import problem_of
from anchorlwf.data.record import ModelStamp, Prompt, Record
from anchorlwf.errors import ConflictError, MissingError, RecordError, wrong

__all__ = ["IDLE", "LEASE", "Order", "SessionRow", "Store", "ordering"]

LEASE = 600.0
"""Seconds of silence after which an item may go to somebody else."""
IDLE = 60.0
"""A longer pause between two steps (seconds) counts as this much working time."""

Order = Literal["queue", "uncertain", "probability"]
"""As given (priority, then position), highest mean entropy first, or lowest token probability first."""


@dataclass(frozen=True)
class SessionRow:
    """One person's work on one item, as the store knows it."""

    id: int
    item: int
    project: int
    annotator: str
    version: int
    verdict: str | None
    seconds: float
    """Working time so far."""
    touched_at: float
    """Of the last step, epoch seconds."""
    body: dict[str, Any]
    """The prompt as it is stored."""
    record_id: str
    proposal: dict[str, Any] | None
    lease_until: float | None
    """Epoch seconds; None where the seat is not (or no longer) needed."""

    @cached_property
    def prompt(self) -> Prompt:
        """What is asked. Raises `RecordError` where an older version has stored what this one does not take."""
        try:
            return Prompt.model_validate(self.body)
        except ValidationError as error:
            fix = "Import the prompt again, mended."
            raise RecordError(wrong(f"item {self.item}", "a prompt", problem_of(error), fix)) from error


def ordering(order: Order) -> list[ColumnElement[Any]]:
    """ORDER BY of a queue; items not yet measured come last."""
    first: list[ColumnElement[Any]] = [items.c.priority.desc()]
    if order == "uncertain":
        first += [items.c.mean_entropy.is_(None), items.c.mean_entropy.desc()]
    elif order == "probability":
        first += [items.c.lowest_probability.is_(None), items.c.lowest_probability]
    return [*first, items.c.position, items.c.id]


class Store:
    """The annotation store behind a page or a terminal; safe to share between threads and processes.

    Args:
        url: file name or SQLAlchemy URL.
        lease: seconds a silent session keeps its seat.
        clock: epoch seconds; tests turn it.

    Raises:
        ConfigError, StorageError: as `connect`.
    """

    def __init__(self, url: str, *, lease: float = LEASE, clock: Callable[[], float] = time.time) -> None:
        self.engine = connect(url)
        self._lease, self.clock = lease, clock

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    def project(self, name: str, stamp: ModelStamp) -> int:
        """The project of this name, made if need be. The date that its template prints stays that of its first day.

        Raises:
            StampError: its ids belong to another tokenizer or chat template.
        """
        with writing(self.engine) as db:
            found = db.execute(select(projects).where(projects.c.name == name)).first()
            if found is None:
                made = insert(projects).values(name=name, stamp=stamp.model_dump()).returning(projects.c.id)
                return db.execute(made).scalar_one()
            theirs = ModelStamp.model_validate(found.stamp)
            if theirs.date is None and stamp.date is not None:
                dated = theirs.model_copy(update={"date": stamp.date}).model_dump()
                db.execute(update(projects).where(projects.c.id == found.id).values(stamp=dated))
        theirs.require_same(stamp, f"project {name!r}", "Use that model, or another --store.")
        return found.id

    def stamp(self, project: int) -> ModelStamp:
        """What a project's ids belong to, as it was when the project was made."""
        with reading(self.engine) as db:
            stored = db.execute(select(projects.c.stamp).where(projects.c.id == project)).scalar_one()
        return ModelStamp.model_validate(stored)

    def _find(self, db: Connection, session: int) -> SessionRow:
        # The seat held, if any; a session holds at most one.
        query = (
            select(
                sessions,
                items.c.project_id,
                items.c.prompt,
                items.c.record_id,
                items.c.proposal,
                seats.c.expires_at,
                seats.c.done,
            )
            .join(items, items.c.id == sessions.c.item_id)
            .outerjoin(seats, seats.c.session_id == sessions.c.id)
            .where(sessions.c.id == session)
        )
        row = db.execute(query).first()
        if row is None:
            raise MissingError(wrong("session", "one in the store", session, "Take an item from the queue."))
        until = None if row.done is None or row.done else row.expires_at
        return SessionRow(
            row.id,
            row.item_id,
            row.project_id,
            row.annotator,
            row.version,
            row.verdict,
            row.seconds,
            row.touched_at,
            row.prompt,
            row.record_id,
            row.proposal,
            until,
        )

    def session(self, session: int) -> SessionRow:
        """One session. Raises `MissingError`."""
        with reading(self.engine) as db:
            return self._find(db, session)

    def events(self, session: int) -> list[Event]:
        """All that happened in a session, in order. Raises `RecordError` for what this version cannot read."""
        query = select(events.c.body).where(events.c.session_id == session).order_by(events.c.number)
        with reading(self.engine) as db:
            bodies = list(db.execute(query).scalars())
        try:
            return [EVENTS.validate_python(body) for body in bodies]
        except ValidationError as error:
            fix = "Go on with the version that wrote them."
            raise RecordError(wrong(f"session {session}", "its events", problem_of(error), fix)) from error

    def _free(self) -> ColumnElement[bool]:
        unheld = or_(seats.c.session_id.is_(None), seats.c.expires_at < self.clock())
        return and_(seats.c.done.is_(False), unheld)

    def _sit(self, db: Connection, item: int, session: int) -> bool:
        """Hold a seat of the item: one's own, or a free one."""
        until = self.clock() + self._lease
        mine = update(seats).where(seats.c.session_id == session).values(expires_at=until)
        if db.execute(mine).rowcount:
            return True
        free = select(seats.c.seat).where(seats.c.item_id == item, self._free()).order_by(seats.c.seat).limit(1)
        seat = db.execute(free.with_for_update(skip_locked=True)).scalar()
        if seat is None:
            return False
        free_seat = and_(seats.c.item_id == item, seats.c.seat == seat)
        db.execute(update(seats).where(free_seat).values(session_id=session, expires_at=until))
        return True

    def _session_of(self, db: Connection, item: int, annotator: str) -> int:
        mine = select(sessions.c.id).where(sessions.c.item_id == item, sessions.c.annotator == annotator)
        session = db.execute(mine).scalar()
        if session is not None:
            return session
        row = {"item_id": item, "annotator": annotator, "touched_at": self.clock()}
        return db.execute(insert(sessions).values(**row).returning(sessions.c.id)).scalar_one()

    def next(
        self, project: int, annotator: str, order: Order = "queue", *, without: Collection[int] = ()
    ) -> SessionRow | None:
        """Lease what this person should do next: what they left open, else the first free item of the queue.

        `without`: items that are passed over.
        """
        # In the statement itself: a database takes so many parameters and no more.
        passed: BindParameter[int] = bindparam("passed", list(without), expanding=True, literal_execute=True)
        offered = and_(items.c.project_id == project, items.c.id.not_in(passed))
        mine = and_(sessions.c.item_id == items.c.id, sessions.c.annotator == annotator)
        with writing(self.engine) as db:
            # On PostgreSQL two tabs of one person would otherwise both begin the same item.
            left_open = (
                select(sessions.c.id, sessions.c.item_id)
                .join(items, items.c.id == sessions.c.item_id)
                .join(seats, seats.c.session_id == sessions.c.id)
                .where(offered, mine, sessions.c.verdict.is_(None), seats.c.done.is_(False))
                .order_by(*ordering(order))
                .limit(1)
            )
            left = db.execute(left_open).first()
            if left is not None and self._sit(db, left.item_id, left.id):
                return self._find(db, left.id)
            decided = exists().where(mine, sessions.c.verdict.is_not(None))
            free = (
                select(items.c.id, seats.c.seat)
                .join(seats, seats.c.item_id == items.c.id)
                .where(offered, self._free(), ~decided)
                .order_by(*ordering(order), seats.c.seat)
                .limit(1)
                .with_for_update(of=seats, skip_locked=True)
            )
            item = db.execute(free).scalar()
            if item is None:
                return None
            session = self._session_of(db, item, annotator)
            assert self._sit(db, item, session), "the seat was free and is locked"
            return self._find(db, session)

    def open(self, project: int, item: int, annotator: str) -> SessionRow:
        """This person's session on one item, begun if need be. What they decided is shown without a lease.

        Raises:
            MissingError: no such item.
            ConflictError: all its seats are taken.
        """
        with writing(self.engine) as db:
            there = select(items.c.id).where(items.c.id == item, items.c.project_id == project)
            if db.execute(there).scalar() is None:
                raise MissingError(wrong("item", "one of this project", item, "Look at the queue."))
            session = self._session_of(db, item, annotator)
            row = self._find(db, session)
            if row.verdict is None and not self._sit(db, item, session):
                raise ConflictError(wrong(f"item {item}", "a free seat", "others at work", "Take another item."))
            return self._find(db, session)

    def renew(self, session: int) -> float:
        """Keep the seat; until when (epoch seconds). Raises `ConflictError` where somebody else has it."""
        with writing(self.engine) as db:
            row = self._find(db, session)
            self._hold(db, row)
        return self.clock() + self._lease

    def leave(self, session: int) -> None:
        """Give the seat back, if the session holds one that is still needed."""
        with writing(self.engine) as db:
            held = update(seats).where(seats.c.session_id == session, seats.c.done.is_(False))
            db.execute(held.values(session_id=None, expires_at=0.0))

    def _hold(self, db: Connection, row: SessionRow) -> None:
        if not self._sit(db, row.item, row.id):
            got = "somebody else, after a long pause"
            fix = "Take another item; what you did here stays in the store."
            raise ConflictError(wrong(f"item {row.item}", f"{row.annotator} to hold it", got, fix))

    def append(self, session: int, known: int, happened: Sequence[Event], record: Record | None = None) -> SessionRow:
        """Store events behind the first `known` ones, all or none, and the record that a decision makes.

        Raises:
            ConflictError: the session has other events by now, or its seat went to somebody else.
            StorageError: nothing was stored.
        """
        now = self.clock()
        bodies = [event.model_dump(mode="json") for event in happened]
        with writing(self.engine) as db:
            row = self._find(db, session)
            self._hold(db, row)
            at_work = row.seconds + min(IDLE, max(0.0, now - row.touched_at))
            step = update(sessions).where(sessions.c.id == session, sessions.c.version == known)
            if not db.execute(step.values(version=known + len(bodies), seconds=at_work, touched_at=now)).rowcount:
                fix = "Fetch the session again."
                raise ConflictError(wrong("session", f"version {known}", row.version, fix))
            db.execute(
                insert(events),
                [
                    {"session_id": session, "number": known + index, "kind": body["kind"], "body": body}
                    for index, body in enumerate(bodies)
                ],
            )
            for event in happened:
                self._settle(db, session, event)
            if record is not None:
                db.execute(insert(records).values(session_id=session, record=record.model_dump(mode="json")))
            return self._find(db, session)

    def _settle(self, db: Connection, session: int, event: Event) -> None:
        """What a decision, or taking it back, means for the seat and the record."""
        if not isinstance(event, Decided | Reopened):
            return
        verdict = event.verdict if isinstance(event, Decided) else None
        db.execute(update(sessions).where(sessions.c.id == session).values(verdict=verdict))
        held = update(seats).where(seats.c.session_id == session)
        if verdict == "skip":
            db.execute(held.values(session_id=None, expires_at=0.0))
        else:
            db.execute(held.values(done=verdict is not None))
        if verdict is None:
            db.execute(delete(records).where(records.c.session_id == session))
