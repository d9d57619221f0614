"""Page and terminals over one store: work goes from one to the other, and no item is held by two people."""

import re
import time
from collections.abc import Callable, Iterator

import pytest
from page_client import Person, whole
from terminal_sitting import QUESTIONS, answer_of, shown, sit, work_of

from anchorlwf.annotator.open import Work
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.store.store import LEASE
from anchorlwf.annotator.terminal import terminal
from anchorlwf.data.jsonl import load_records


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    from postgres import postgres_server

    with postgres_server() as database:
        yield database


def page_of(work: Work, exchange: Exchange, name: str = "ada") -> Person:
    from anchorlwf.annotator.web.app import create_app
    from anchorlwf.annotator.web.settings import WebSettings

    token = name * 8
    settings = WebSettings({name: token}, rate=1e6, burst=10**6)
    return Person(create_app(exchange, settings, work.jobs(exchange)), token, {})


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_from_the_page_to_the_terminal_and_back(tmp_path, tiny_path, kind, request):
    url = request.getfixturevalue("new_database")() if kind == "postgresql" else None
    work = work_of(tmp_path, tiny_path, store=url)
    with work.open() as at_page:
        ada = page_of(work, at_page)
        session = whole(ada)
        path = f"/api/sessions/{session['id']}"
        step = ada.ok(ada.post(f"{path}/correct", {"node": 0, "position": 2, "text": "hello", "confidence": 0.5}))
        ada.stream(session["id"], step["head"]["node"])
        ada.ok(ada.post(f"{path}/note", {"text": "from the page"}))
        on_page = [token["id"] for token in ada.ok(ada.get(path))["tokens"]]
        # The page stays open while the same person goes on at the terminal.
        with work.open() as at_terminal:
            table = at_terminal.desk.decoder.table
            marked = tuple(anchor["position"] for anchor in ada.ok(ada.get(path))["anchors"])
            _, screen = sit(at_terminal, "9 town @0.25", "h", "t typed")
            assert 2 in marked
            assert shown(table, on_page, stars=marked) in screen
            assert "note: from the page" in screen
            typed = answer_of(at_terminal)
        # What the page has in memory is older: it sees what was typed when it comes back to the item.
        fetched = ada.ok(ada.post("/api/next"))
        assert [token["id"] for token in fetched["tokens"]] == typed
        assert fetched["tags"] == ["typed"]
        assert [node["parent"] for node in fetched["nodes"]] == [None, 0, 1]
        assert {a["position"]: a["confidence"] for a in fetched["anchors"]}.items() >= {2: 0.5, 9: 0.25}.items()
        ada.ok(ada.post(f"{path}/undo"))
        ada.ok(ada.post(f"{path}/decide", {"verdict": "accept"}))
        with work.open() as at_terminal:
            records, screen = sit(at_terminal, "x", "b", "a")
            assert f"user: {QUESTIONS[0]}" not in screen
            assert "[1 of 3 done]" in screen
        assert whole(ada)["prompt"]["messages"][0]["content"] == QUESTIONS[2]
    done = load_records(work.out)
    assert [record.messages[0]["content"] for record in done] == QUESTIONS[:2]
    assert done[0].completion_ids == on_page
    assert (done[0].tags, done[1:]) == (["typed"], records)


def test_what_moved_on_elsewhere_is_said_and_shown_as_it_is_now(work):
    with work.open() as exchange, work.open() as elsewhere:
        ada = page_of(work, elsewhere)
        on_page = []

        def correct() -> None:
            on_page.append(whole(ada))
            body = {"node": 0, "position": 1, "text": "hello"}
            ada.ok(ada.post(f"/api/sessions/{on_page[0]['id']}/correct", body))
            ada.stream(on_page[0]["id"], 1)

        def accept() -> None:
            ada.ok(ada.post(f"/api/sessions/{on_page[0]['id']}/decide", {"verdict": "accept"}))

        ids = []
        records, screen = sit(
            exchange, correct, "5 town", lambda: ids.append(answer_of(exchange)), accept, "n late", "a"
        )
        stars = [anchor["position"] for anchor in ada.ok(ada.get(f"/api/sessions/{on_page[0]['id']}"))["anchors"]]
        assert stars[0] == 1
        assert shown(exchange.desk.decoder.table, ids[0], tuple(stars)) in screen
        assert len(re.findall(r"session: expected version \d+, got \d+", screen.replace("\n", " "))) == 2
        assert [record.messages[0]["content"] for record in records] == QUESTIONS[1:2]
    assert [record.messages[0]["content"] for record in load_records(work.out)] == QUESTIONS[:2]


def test_two_terminals_never_get_the_same_item(work):
    with work.open() as ada, work.open() as bob:
        met = []

        def ask(exchange: Exchange, name: str) -> None:
            for _ in range(2):
                _, screen = sit(exchange, "s", name=name)
                met.extend((name, question) for question in QUESTIONS if f"user: {question}\n" in screen)

        _, screen = sit(ada, lambda: ask(bob, "bob"), "a")
        assert f"user: {QUESTIONS[0]}" in screen
        # Bob skipped two, each of which ada may do; what ada has before her he never saw.
        assert {question for _, question in met} == set(QUESTIONS[1:])


def test_thinking_long_does_not_lose_the_item(work, monkeypatch):
    monkeypatch.setattr(terminal, "_RENEW", 0.02)
    with work.open() as ada, work.open() as bob:
        clock = [time.time()]
        for exchange in (ada, bob):
            exchange.desk.store.clock = lambda: clock[0]

        def think() -> None:
            for _ in range(4):
                clock[0] += LEASE * 0.6
                time.sleep(0.2)
            assert f"user: {QUESTIONS[0]}" not in sit(bob, name="bob")[1]

        records, screen = sit(ada, think, "3 hello", "a")
        assert len(records) == 1
        assert "somebody else" not in screen


def test_who_lost_the_item_is_told_and_gets_another(work):
    with work.open() as ada, work.open() as bob:
        clock = [time.time()]
        for exchange in (ada, bob):
            exchange.desk.store.clock = lambda: clock[0]

        def sleep() -> None:
            clock[0] += LEASE + 1
            assert f"user: {QUESTIONS[0]}" in sit(bob, "0 Hm", name="bob")[1]

        records, screen = sit(ada, sleep, "3 hello", "x")
        assert "expected ada to hold it, got somebody else" in screen.replace("\n", " ")
        assert [record.messages[0]["content"] for record in records] == [QUESTIONS[1]]


def test_several_people_do_each_item(tmp_path, tiny_path):
    work = work_of(tmp_path, tiny_path, ["hello"], per_item=2)
    with work.open() as exchange:
        (one,), (other,) = (sit(exchange, "a", name=name)[0] for name in ("ada", "bob"))
        assert sit(exchange, name="carl")[0] == []
    assert one.id != other.id
    assert load_records(work.out) == [one, other]
