"""The store loses nothing, hands no seat out twice, and says how far people agree; on SQLite and on PostgreSQL."""

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest
from forks import forks
from sqlalchemy import event as alchemy_event
from sqlalchemy import text
from store_worker import write_until_killed

from anchorlwf.annotation.events import Decided, Noted, Reopened, Started
from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.store import tables as schema
from anchorlwf.annotator.store.overview import agreement, progress, waiting
from anchorlwf.annotator.store.queue import Proposal, add_items, export_records, propose, set_priority, unproposed
from anchorlwf.annotator.store.store import Store
from anchorlwf.data.record import Anchor, ModelStamp, Prompt, Record, new_id
from anchorlwf.errors import ConfigError, ConflictError, MissingError, StampError, StorageError

STAMP = ModelStamp(name="m", tokenizer_sha="t", template_sha="c")
BOTH = pytest.mark.parametrize("kind", ["sqlite", "postgresql"], indirect=True)


def now() -> datetime:
    return datetime.now(UTC)


def prompt(number: int) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": f"question {number} \x00 \u2028 \U0001f44b"}])


def record(number: int, *tokens: int, status: str = "complete", position: int | None = None) -> Record:
    anchors = [] if position is None else [Anchor(position=position, token_id=tokens[position], created_at=now())]
    return Record(
        id=new_id("r", number),
        model=STAMP,
        messages=prompt(number).messages,
        prompt_ids=[1],
        completion_ids=list(tokens or (1, 2)),
        completion="x",
        status=status,
        anchors=anchors,
    )


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    from postgres import postgres_server

    with postgres_server() as database:
        yield database


@pytest.fixture
def kind(request, tmp_path) -> str:
    """URL of an empty database of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return request.getfixturevalue("new_database")()


class Clock:
    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at


def filled(url: str, count: int, *, seats: int = 1, clock: Callable[[], float] = time.time) -> tuple[Store, int]:
    store = Store(url, clock=clock)
    project = store.project("p", STAMP)
    prompts = [(new_id("r", number), prompt(number)) for number in range(count)]
    assert add_items(store, project, prompts, seats_each=seats) == (count, 0)
    return store, project


def begin(store: Store, session: int) -> None:
    store.append(session, 0, [Started(at=now(), completion_ids=(1, 2), ended=True)])


def decide(store: Store, project: int, annotator: str, made: Record, verdict: str = "accept") -> int:
    row = store.next(project, annotator)
    begin(store, row.id)
    done = None if verdict == "skip" else made
    store.append(row.id, 1, [Decided(at=now(), verdict=verdict)], done)
    return row.item


@BOTH
def test_what_is_written_comes_back_unchanged(kind):
    store, project = filled(kind, 1)
    row = store.next(project, "ada")
    begin(store, row.id)
    store.append(row.id, 1, [Noted(at=now(), text="\x00 \u2028 👋 \r\n"), Noted(at=now(), text="end")])
    store.close()
    again = Store(kind)
    assert again.session(row.id).prompt == prompt(0)
    assert [e.kind for e in again.events(row.id)] == ["started", "noted", "noted"]
    assert again.events(row.id)[1].text == "\x00 \u2028 👋 \r\n"
    assert fold(again.events(row.id)).version == again.session(row.id).version == 3
    again.close()


@BOTH
def test_many_people_at_once_never_get_the_same_item(kind):
    people, count = 8, 40
    store, project = filled(kind, count)
    got: list[tuple[str, int]] = []
    failed: list[Exception] = []

    def work(name: str) -> None:
        try:
            while (row := store.next(project, name)) is not None:
                got.append((name, row.item))
                begin(store, row.id)
                store.append(row.id, 1, [Decided(at=now(), verdict="accept")], record(row.item))
        except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=work, args=(f"person{i}",)) for i in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failed
    assert sorted(item for _, item in got) == sorted({item for _, item in got})
    assert len(got) == count
    assert progress(store, project).done == count
    store.close()


@BOTH
def test_several_people_per_item_take_as_many_seats_and_no_more(kind):
    store, project = filled(kind, 3, seats=2)
    held = Counter(store.next(project, f"person{i}").item for i in range(6))
    assert set(held.values()) == {2}
    assert store.next(project, "late") is None
    with pytest.raises(ConflictError, match="others at work"):
        store.open(project, 1, "late")
    store.close()


@BOTH
def test_a_lease_runs_out_and_the_first_to_come_has_it(kind):
    clock = Clock()
    store, project = filled(kind, 1, clock=clock)
    ada = store.next(project, "ada")
    begin(store, ada.id)
    assert store.next(project, "bob") is None
    clock.at += 599
    store.renew(ada.id)
    clock.at += 599
    assert store.next(project, "bob") is None
    clock.at += 2
    # Nobody came: ada goes on as if nothing had been.
    store.append(ada.id, 1, [Noted(at=now(), text="still here")])
    clock.at += 601
    bob = store.next(project, "bob")
    assert bob.item == ada.item
    assert bob.id != ada.id
    for step in (lambda: store.renew(ada.id), lambda: store.append(ada.id, 2, [Noted(at=now(), text="late")])):
        with pytest.raises(ConflictError, match="somebody else"):
            step()
    # Her work is still there, and once bob leaves she has it back.
    assert len(store.events(ada.id)) == 2
    begin(store, bob.id)
    store.append(bob.id, 1, [Decided(at=now(), verdict="skip")])
    assert store.next(project, "bob") is None
    assert store.next(project, "ada").id == ada.id
    store.close()


@BOTH
def test_two_tabs_cannot_both_write_the_next_step(kind):
    store, project = filled(kind, 1)
    row = store.next(project, "ada")
    begin(store, row.id)
    store.append(row.id, 1, [Noted(at=now(), text="tab one")])
    with pytest.raises(ConflictError, match="version"):
        store.append(row.id, 1, [Noted(at=now(), text="tab two")])
    assert [e.kind for e in store.events(row.id)] == ["started", "noted"]
    store.close()


@BOTH
def test_a_decision_taken_back_takes_its_record_along(kind):
    store, project = filled(kind, 1)
    item = decide(store, project, "ada", record(0))
    assert export_records(store, project) == [record(0)]
    session = store.open(project, item, "ada")
    store.append(session.id, session.version, [Reopened(at=now())])
    assert export_records(store, project) == []
    assert progress(store, project).done == 0
    assert store.next(project, "ada").id == session.id
    store.close()


@BOTH
def test_the_order_of_the_queue(kind):
    store, project = filled(kind, 4)
    items = [row.id for row in waiting(store, project, "ada").items]
    started = Started(at=now(), completion_ids=(1,), ended=True)
    for item, entropy, lowest in zip(items[:3], (0.1, 0.9, 0.5), (0.2, 0.3, 0.01), strict=True):
        propose(store, item, Proposal(started, entropy, lowest))
    assert [item for item, _ in unproposed(store, project, 9)] == items[3:]
    seen = lambda order: [row.id for row in waiting(store, project, "ada", order).items]  # noqa: E731
    assert seen("uncertain") == [items[1], items[2], items[0], items[3]]
    assert seen("probability") == [items[2], items[0], items[1], items[3]]
    set_priority(store, project, items[3], 5)
    assert seen("queue") == [items[3], *items[:3]]
    first = store.next(project, "ada", "uncertain")
    assert first.item == items[3]
    assert store.next(project, "bob", "uncertain").item == items[1]
    with pytest.raises(MissingError):
        set_priority(store, project, 999, 1)
    store.close()


@BOTH
def test_agreement_counts_pairs(kind):
    store, project = filled(kind, 3, seats=3)
    answers = {"ada": [(5, 6), (5, 6), (5, 6)], "bob": [(5, 6), (5, 7), (5, 6)], "eve": [(5, 6), (8, 6), (5, 6)]}
    places = {"ada": [0, 1, None], "bob": [0, 1, None], "eve": [0, 0, None]}
    for name, given in answers.items():
        for i, tokens in enumerate(given):
            decide(store, project, name, record(i, *tokens, position=places[name][i]))
    found = agreement(store, project)
    assert found.shares.pairs == 9
    assert found.shares.same_position == pytest.approx(7 / 9)
    assert found.shares.same_token == pytest.approx(6 / 9)
    assert found.shares.same_text == pytest.approx(6 / 9)
    assert found.items[1].shares.same_position == pytest.approx(1 / 3)
    store.close()


@BOTH
def test_records_made_elsewhere_count_as_done_and_drafts_go_on(kind):
    store = Store(kind)
    project = store.project("p", STAMP)
    known = {new_id("r", 0): record(0), new_id("r", 1): record(1, 7, 8, status="draft", position=1)}
    add_items(store, project, [(new_id("r", i), prompt(i)) for i in range(2)], known=known)
    assert add_items(store, project, [(new_id("r", 0), prompt(0))]) == (0, 1)
    row = store.next(project, "ada")
    assert row.prompt == prompt(1)
    tree = fold([Started.model_validate(row.proposal)])
    assert [a.position for a in tree.anchors()] == [1]
    assert store.next(project, "bob") is None
    assert [r.status for r in export_records(store, project)] == ["complete"]
    store.close()


@BOTH
def test_a_project_belongs_to_one_tokenizer(kind):
    store = Store(kind)
    store.project("p", STAMP)
    with pytest.raises(StampError, match=r"project 'p': tokenizer: expected t \(m\), got other \(m\)\. .* --store"):
        store.project("p", STAMP.model_copy(update={"tokenizer_sha": "other"}))
    store.close()


@BOTH
def test_the_date_that_a_template_prints_is_that_of_the_projects_first_day(kind):
    store = Store(kind)
    project = store.project("p", STAMP)
    assert store.stamp(project).date is None
    # A project from before dates were kept gets one when it is opened next, and keeps it.
    for today in ("2026-11-26", "2026-11-27"):
        assert store.project("p", STAMP.model_copy(update={"date": today})) == project
        assert store.stamp(project) == STAMP.model_copy(update={"date": "2026-11-26"})
    other = store.project("q", STAMP.model_copy(update={"date": "2026-11-27"}))
    assert store.stamp(other).date == "2026-11-27"
    store.close()


@BOTH
def test_migrations_run_once_and_newer_stores_are_refused(kind, monkeypatch):
    Store(kind).close()
    ran = []

    def second(db) -> None:
        ran.append(db.execute(text("ALTER TABLE items ADD COLUMN extra INTEGER")))

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, second])
    Store(kind).close()
    Store(kind).close()
    assert len(ran) == 1
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    with pytest.raises(ConfigError, match="version 1 or older, got 2"):
        Store(kind)


@BOTH
def test_a_migration_that_fails_leaves_nothing_behind(kind, monkeypatch):
    Store(kind).close()

    def broken(db) -> None:
        db.execute(text("ALTER TABLE items ADD COLUMN extra INTEGER"))
        raise RuntimeError("power cut")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, broken])
    with pytest.raises(RuntimeError):
        Store(kind)
    monkeypatch.undo()
    store = Store(kind)
    assert "extra" not in {c["name"] for c in __import__("sqlalchemy").inspect(store.engine).get_columns("items")}
    store.close()


@BOTH
def test_killed_at_random_moments_no_acknowledged_step_is_lost(kind):
    store, project = filled(kind, 1)
    row = store.next(project, "ada")
    begin(store, row.id)
    context, rng = forks(), random.Random(3)
    acknowledged, rounds = 0, 0
    for _ in range(10):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=write_until_killed, args=(kind, row.id, record(0), theirs))
        child.start()
        theirs.close()
        last = ours.recv() if ours.poll(60) else None
        assert last is not None, "the child never wrote"
        time.sleep(rng.uniform(0, 0.1))  # a busy machine writes little in less
        child.kill()
        child.join(30)
        try:
            while ours.poll(0):
                last = ours.recv()
        except (EOFError, OSError):
            pass
        events = store.events(row.id)
        assert len(events) >= last[0] >= acknowledged
        tree = fold(events)  # no half event, no gap
        assert store.session(row.id).version == len(events)
        assert store.session(row.id).verdict == tree.verdict
        assert export_records(store, project) == ([record(0)] if tree.verdict else [])
        acknowledged, rounds = last[0], rounds + 1
    assert rounds == 10
    assert acknowledged > 20
    store.close()


def test_the_sqlite_store_is_as_durable_as_it_can_be(tmp_path):
    store, _ = filled(str(tmp_path / "s.db"), 1)
    with store.engine.connect() as db:
        assert db.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert db.execute(text("PRAGMA synchronous")).scalar() == 2
        assert db.execute(text("PRAGMA foreign_keys")).scalar() == 1
    store.close()


def test_a_full_disk_is_an_error_and_nothing_of_the_step_is_stored(tmp_path):
    url = str(tmp_path / "s.db")
    store, project = filled(url, 1)
    row = store.next(project, "ada")
    begin(store, row.id)
    store.close()

    full = Store(url)

    @alchemy_event.listens_for(full.engine, "connect")
    def _limit(connection, _record) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages}")

    full.engine.dispose()
    with pytest.raises(StorageError, match=r"(?s)full.*Nothing of this step was stored"):
        full.append(row.id, 1, [Noted(at=now(), text="x" * 100_000)])
    assert full.session(row.id).version == 1
    assert len(full.events(row.id)) == 1
    # A small step still fits where a large one did not.
    full.append(row.id, 1, [Noted(at=now(), text="x")])
    full.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "oracle://x", "://", "nosuch+driver://x"])
def test_other_databases_are_refused(url):
    with pytest.raises(ConfigError, match="SQLite or PostgreSQL"):
        Store(url)


def test_what_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.db"
    path.write_bytes(b"these are notes, not a database at all" * 50)
    with pytest.raises(StorageError, match="not a database"):
        Store(str(path))
    assert path.read_bytes().startswith(b"these are notes")


def test_bodies_are_ascii_json_that_any_tool_can_read(tmp_path):
    url = tmp_path / "s.db"
    store, project = filled(str(url), 1)
    row = store.next(project, "ada")
    begin(store, row.id)
    store.append(row.id, 1, [Noted(at=now(), text="é\x00")])
    store.close()
    [body] = sqlite3.connect(url).execute("SELECT body FROM events WHERE kind = 'noted'").fetchone()
    assert body.isascii()
    assert json.loads(body)["text"] == "é\x00"


@BOTH
def test_what_is_finished_is_not_decoded_ahead(kind):
    store = Store(kind)
    project = store.project("p", STAMP)
    keyed = [(record(number).id, prompt(number)) for number in range(3)]
    add_items(store, project, keyed, known={record(0).id: record(0)})
    assert [body for _, body in unproposed(store, project, 9)] == [prompt(n).model_dump(mode="json") for n in (1, 2)]
    store.close()


@pytest.mark.parametrize(
    "url", [":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_store_in_memory_is_refused(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^--store: expected a file, got [^ ]+\. Give the plain name of a file: "):
        Store(url)
    assert not list(tmp_path.iterdir())
