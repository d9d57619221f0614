"""A project at a glance: its queue as one person sees it, its progress, and how far people agree."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import and_, func, select

from anchorlwf.annotator.store.queue import IMPORTED, finished
from anchorlwf.annotator.store.store import Order, Store, ordering
from anchorlwf.annotator.store.tables import items, reading, seats, sessions
from anchorlwf.data.record import Record

__all__ = [
    "Agreement",
    "ItemAgreement",
    "Progress",
    "QueueItem",
    "QueuePart",
    "Shares",
    "agreement",
    "progress",
    "waiting",
]


@dataclass(frozen=True)
class QueueItem:
    """One item of the queue as one person sees it."""

    id: int
    position: int
    priority: int
    title: str
    """The beginning of what is asked."""
    status: Literal["waiting", "open", "done", "skip"]
    verdict: str | None
    """accept, keep, reject or skip: this person's decision, else somebody else's; None: nobody has decided."""
    session: int | None
    """This person's own."""
    held_by: tuple[str, ...]
    """Who is at work on it."""
    mean_entropy: float | None
    """Nats per token of the answer decoded ahead; None: not decoded yet."""
    lowest_probability: float | None
    tags: tuple[str, ...]
    problem: str | None
    """Why it cannot be begun and was set aside."""


@dataclass(frozen=True)
class QueuePart:
    """Some items of a queue, in order."""

    total: int
    """Items in the whole queue."""
    items: tuple[QueueItem, ...]


@dataclass(frozen=True)
class Progress:
    """How far a project is: numbers of items, then of decisions, then working time."""

    items: int
    done: int
    open: int
    """Somebody is at work on them."""
    waiting: int
    accept: int
    keep: int
    reject: int
    skip: int
    seconds: float
    """Working time of everybody."""
    mean_seconds: float | None
    """Working time per finished item; None where nothing is finished."""
    by_annotator: Mapping[str, int]
    """Decisions by each person."""


@dataclass(frozen=True)
class Shares:
    """On how many pairs of records people agree: shares of all pairs, in [0, 1]; None where there is no pair."""

    pairs: int
    same_position: float | None
    """The first anchor stands at the same position."""
    same_token: float | None
    """The same token was put there, too."""
    same_text: float | None
    """The final answers are equal."""


@dataclass(frozen=True)
class ItemAgreement:
    """How far those who finished one item agree."""

    item: int
    annotators: tuple[str, ...]
    shares: Shares


@dataclass(frozen=True)
class Agreement:
    """How far people who finished the same items agree: over all pairs, and for every item with at least two people."""

    shares: Shares
    items: tuple[ItemAgreement, ...]


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
) -> QueuePart:
    """A part of the queue as this person sees it.

    Args:
        store, project: whose queue.
        annotator: the person.
        order: of the whole queue.
        offset, limit: which part of it.
        aside: what is wrong with items that cannot be begun.
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
            select(seats, sessions.c.annotator, sessions.c.verdict)
            .outerjoin(sessions, sessions.c.id == seats.c.session_id)
            .where(seats.c.item_id.in_(numbers))
        ):
            taken[seat.item_id].append(seat)
    now, problems = store.clock(), aside or {}
    return QueuePart(
        total,
        tuple(_listed(rows[number], mine.get(number), taken[number], now, problems.get(number)) for number in numbers),
    )


def _listed(row: Any, own: Any, taken: Sequence[Any], now: float, problem: str | None) -> QueueItem:
    """One item of `waiting`: its row, this person's session on it, its seats."""
    status: Literal["waiting", "open", "done", "skip"]
    live = [seat.annotator for seat in taken if not seat.done and seat.expires_at >= now and seat.annotator]
    if all(seat.done for seat in taken) or (own and own.verdict not in (None, "skip")):
        status = "done"
    elif own and own.verdict == "skip":
        status = "skip"
    else:
        status = "open" if live else "waiting"
    decided = [own.verdict if own else None, *(seat.verdict for seat in taken if seat.done)]
    return QueueItem(
        id=row.id,
        position=row.position,
        priority=row.priority,
        title=_title(row.prompt),
        status=status,
        verdict=next((verdict for verdict in decided if verdict is not None), None),
        session=own.id if own else None,
        held_by=tuple(live),
        mean_entropy=row.mean_entropy,
        lowest_probability=row.lowest_probability,
        tags=tuple(row.prompt.get("tags") or ()),
        problem=problem,
    )


def progress(store: Store, project: int) -> Progress:
    """Counts and working time of a project."""
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
        if annotator == IMPORTED:
            continue
        seconds += spent
        if verdict is not None:
            by_annotator[annotator] += count
        if verdict in ("accept", "keep", "reject"):
            finished_seconds, finished_count = finished_seconds + spent, finished_count + count
    return Progress(
        items=total,
        done=total - unfinished,
        open=live,
        waiting=unfinished - live,
        accept=verdicts["accept"],
        keep=verdicts["keep"],
        reject=verdicts["reject"],
        skip=verdicts["skip"],
        seconds=seconds,
        mean_seconds=finished_seconds / finished_count if finished_count else None,
        by_annotator=dict(by_annotator),
    )


def _same(left: Record, right: Record) -> tuple[bool, bool, bool]:
    """First anchors at one position; the same token there, too; the same final text."""
    first_left, first_right = (record.anchors[0] if record.anchors else None for record in (left, right))
    if first_left is None or first_right is None:
        same_position = same_token = first_left is first_right
    else:
        same_position = first_left.position == first_right.position
        same_token = same_position and first_left.token_id == first_right.token_id
    return same_position, same_token, left.completion_ids == right.completion_ids


def _shares(pairs: Sequence[tuple[bool, bool, bool]]) -> Shares:
    if not pairs:
        return Shares(0, None, None, None)
    return Shares(len(pairs), *(sum(answers) / len(pairs) for answers in zip(*pairs, strict=True)))


def agreement(store: Store, project: int) -> Agreement:
    """How far people who finished the same items agree."""
    by_item: dict[int, list[tuple[str, Record]]] = defaultdict(list)
    for done in finished(store, project):
        if done.record.status == "complete":
            by_item[done.item].append((done.annotator, done.record))
    all_pairs: list[tuple[bool, bool, bool]] = []
    listed = []
    for item, by_person in by_item.items():
        pairs = [_same(left, right) for (_, left), (_, right) in itertools.combinations(by_person, 2)]
        if pairs:
            listed.append(ItemAgreement(item, tuple(annotator for annotator, _ in by_person), _shares(pairs)))
        all_pairs += pairs
    return Agreement(_shares(all_pairs), tuple(listed))
