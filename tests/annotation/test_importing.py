"""What comes into a project from outside: checked as prompts are, the bad set aside by name, nobody kept waiting."""

import json
import threading
import time

import pytest
from desk_cases import OpenDesk
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorlwf.annotation.events import Decided
from anchorlwf.annotation.importers.record_import import import_lawftrack
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.store import queue
from anchorlwf.annotator.store.overview import progress, waiting
from anchorlwf.annotator.store.queue import add_items, export_records, unproposed
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.web import payloads as views
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records
from anchorlwf.data.record import ModelStamp, Prompt, Record, new_id
from anchorlwf.errors import PromptError, RecordError, StampError, StorageError

ASK = [{"role": "user", "content": "hello"}]
LONG = [{"role": "user", "content": "she " * 200}]
STAMP = ModelStamp(name="m", tokenizer_sha="t", template_sha="c")


class Place(OpenDesk):
    """A project over its own store."""

    def __init__(self, model, folder) -> None:
        super().__init__(model, folder, AnnotateConfig(max_new_tokens=6, alternatives=3))
        self.exchange = Exchange("p", self.desk)

    def record(self, name: str, messages=ASK, **changes) -> dict:
        try:
            prompt_ids = self.model.codec.encode_prompt(messages)
        except PromptError:
            prompt_ids = [1]
        ids = [*self.model.codec.encode("in a town"), self.model.codec.end_id(self.model.stop_ids)]
        made = {
            "id": new_id(name),
            "model": self.decoder.stamp.model_dump(),
            "messages": messages,
            "prompt_ids": prompt_ids,
            "completion_ids": ids,
            "completion": "in a town",
            "status": "draft",
        }
        return {**made, **changes}

    def all_of(self, annotator="ada") -> list[int]:
        """The items that one person is given, each shown and done."""
        found = []
        while (live := self.desk.next(annotator)) is not None:
            views.session(self.desk, live)
            found.append(live.row.item)
            self.desk.decide(live, "skip")
        return found


@pytest.fixture
def place(tiny_model, tmp_path):
    made = Place(tiny_model, tmp_path)
    yield made
    made.close()


def lines(*rows: object) -> str:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)


BAD: dict[str, tuple[dict, str]] = {
    "prompt too long": ({"messages": LONG}, "prompt: expected fewer than 96 tokens"),
    "completion too long": ({"completion_ids": [5] * 90}, r"prompt \+ completion: expected at most 96 tokens"),
    "an id beyond the vocabulary": ({"completion_ids": [5, 320]}, "token ids: expected less than 320, got 320"),
    "a prompt id beyond the vocabulary": (
        {"prompt_ids": [2**31 - 1]},
        "token ids: expected less than 320, got 2147483647",
    ),
    "an original id beyond the vocabulary": ({"original_ids": [2**31 - 1]}, "token ids: expected less than 320"),
    "a rejected id beyond the vocabulary": (
        {"completion_ids": [5], "anchors": [{"position": 0, "token_id": 5, "rejected_id": 2**31 - 1}]},
        "token ids: expected less than 320",
    ),
    # What no vocabulary holds, no record does either.
    "an id beyond 32 bits": (
        {"completion_ids": [5, 2**32]},
        "completion_ids.1: expected less than 2147483648, got 4294967296",
    ),
    "a prompt id beyond 64 bits": ({"prompt_ids": [2**70]}, "prompt_ids.0: expected less than 2147483648, got 1180591"),
    "an original id beyond 32 bits": ({"original_ids": [2**33]}, "original_ids.0: expected less than 2147483648"),
    "a rejected id beyond 32 bits": (
        {"completion_ids": [5], "anchors": [{"position": 0, "token_id": 5, "rejected_id": 2**32}]},
        "anchors.0.rejected_id: expected less than 2147483648, got 4294967296",
    ),
    "messages of no kind": ({"messages": [{"text": "hi"}]}, r"messages\[0\].role: expected a string such as 'user'"),
    "of another model": (
        {"model": STAMP.model_dump()},
        r"tokenizer and chat template: expected t and c \(m\), got \w{12} and \w{12} \(",
    ),
}


@pytest.mark.parametrize("status", ["draft", "complete"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_record_is_set_aside_by_its_line_and_the_others_come_in(place, bad, status):
    changes, reason = BAD[bad]
    given = [place.record("a"), place.record("bad", **{**changes, "status": status}), place.record("b")]
    taken = place.exchange.take("records", lines(*given, "", "{broken", {"id": 5}))
    assert (taken.added, taken.known) == (2, 0)
    assert [flag.sample for flag in taken.flags] == ["line 2", "line 5", "line 6"]
    assert taken.flags[0].anchor is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(taken.flags[0].reason)
    assert len(place.all_of()) == 2
    assert export_records(place.store, place.project) == []


def test_prompts_are_checked_line_by_line_too(place):
    content = lines({"prompt": "hi"}, {"messages": LONG}, {"messages": [{"role": 5, "content": "x"}]}, {"a": 1}, "[]")
    taken = place.exchange.take("prompts", content + '\n{"prompt": "half \\ud800"}\r\n')
    assert taken.added == 1
    assert [flag.sample for flag in taken.flags] == [f"line {number}" for number in (2, 3, 4, 5, 6)]
    assert "expected fewer than 96 tokens" in taken.flags[0].reason
    assert len(place.all_of()) == 1


def test_where_nothing_is_good_nothing_is_taken_and_it_is_said_why(place):
    with pytest.raises(PromptError, match="import, line 1: prompt: expected fewer than 96"):
        place.exchange.take("prompts", lines({"messages": LONG}))
    with pytest.raises(
        StampError, match=r"import, line 1: record .*: expected t and c \(m\), got .* Start the annotator with"
    ):
        place.exchange.take("records", lines(place.record("a", model=STAMP.model_dump())))
    with pytest.raises(RecordError, match="line 20") as told:
        place.exchange.take("records", "{}\n" * 1000)
    assert "line 21" not in str(told.value)
    with pytest.raises(RecordError, match="content: expected at least one line"):
        place.exchange.take("records", " \n\n")
    assert progress(place.store, place.project).items == 0


def samples(*messages: list[dict]) -> str:
    rows = [
        {"id": f"s{number}", "messages": [*asked, {"role": "assistant", "content": "hello"}], "anchors": []}
        for number, asked in enumerate(messages)
    ]
    return json.dumps({"samples": rows})


def test_a_sample_of_lawftrack_that_is_too_long_is_flagged_by_its_name(place, tiny_path, tmp_path):
    content = samples(ASK, LONG, [{"role": "user", "content": "hi"}])
    taken = place.exchange.take("lawftrack", content)
    assert taken.added == 2
    [flag] = taken.flags
    assert (flag.sample, flag.anchor) == ("s1", None)
    assert "context" in flag.reason
    # The command reads no weights, and finds the limit in the configuration.
    (tmp_path / "set.json").write_text(content)
    found = import_lawftrack(tmp_path / "set.json", tmp_path / "r.jsonl", str(tiny_path))
    assert (found.records, [str(flag)[:10] for flag in found.flags]) == (2, ["sample s1:"])
    assert "context" in found.flags[0].reason
    assert len(load_records(tmp_path / "r.jsonl")) == 2


# --- what is in the queue already ---


def smuggle(place: Place, name: str, messages=ASK, completion_ids: list[int] | None = None) -> None:
    """Into the store as an older version would have put it there: without any check."""
    prompt = Prompt.model_construct(messages=messages, answer=None, tools=[], tags=[])
    known = None
    if completion_ids is not None:
        draft = Record.model_validate(place.record(name))
        known = {new_id(name): draft.model_copy(update={"completion_ids": completion_ids})}
    add_items(place.store, place.project, [(new_id(name), prompt)], known=known)


def stop(place: Place) -> None:
    smuggle(place, "long", LONG)
    smuggle(place, "large", completion_ids=[2**32 + 5])
    smuggle(place, "roles", [{"role": 5, "content": "x"}])
    smuggle(place, "empty", [])


@pytest.mark.parametrize("again", [False, True])
def test_no_item_stops_a_queue(place, again, caplog):
    place.exchange.add([Prompt(messages=[{"role": "user", "content": "first"}])])
    stop(place)
    place.exchange.add([Prompt(messages=[{"role": "user", "content": "last"}])])
    if again:
        # As the issue was found: one of them was leased to ada before.
        ada = place.store.next(place.project, "ada")
        place.desk.decide(place.desk.open(ada.item, "ada"), "skip")
        assert place.store.next(place.project, "ada").item == ada.item + 1
    assert len(place.all_of()) == (1 if again else 2)
    assert len(place.all_of("bob")) == 2
    assert len(place.desk.aside) == 4
    assert "expected fewer than 96 tokens" in place.desk.aside[2]
    assert len([line for line in caplog.messages if "is set aside" in line]) == 4
    # Nobody sits on them, and whoever opens one is told what is wrong with it.
    assert progress(place.store, place.project).open == 0
    for item in place.desk.aside:
        with pytest.raises((PromptError, RecordError)):
            place.desk.open(item, "eve")
    rows = waiting(place.store, place.project, "ada", aside=place.desk.aside).items
    assert [row.problem is not None for row in rows] == [False, True, True, True, True, False]


def test_very_many_in_a_row_are_passed_over_a_part_at_a_time(place, monkeypatch):
    monkeypatch.setattr("anchorlwf.annotator.sessions.desk._TRIES", 3)
    for number in range(5):
        smuggle(place, f"long {number}", LONG)
    place.exchange.add([Prompt(messages=ASK)])
    with pytest.raises(RecordError, match="queue: expected an item that can be begun, got 3 in a row that cannot"):
        place.desk.next("ada")
    assert place.desk.next("ada").row.item == 6


def test_decoding_ahead_goes_on_behind_them(place):
    stop(place)
    place.exchange.add([Prompt(messages=ASK)])
    ahead = Ahead(place.store, place.project, place.decoder, place.config, place.desk.prepared)
    until = time.monotonic() + 20
    while len(unproposed(place.store, place.project, 9)) > 3:  # the large one came with an answer
        assert time.monotonic() < until
        time.sleep(0.01)
    ahead.close()


# --- long files ---


def prompts(first: int, count: int) -> list[tuple[str, Prompt]]:
    return [
        (new_id("n", number), Prompt(messages=[{"role": "user", "content": f"question {number}"}]))
        for number in range(first, first + count)
    ]


@settings(max_examples=20)
@given(
    parts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=4),
    first=st.integers(1, 5),
    seats=st.integers(1, 2),
)
def test_however_it_is_cut_each_item_comes_in_once_and_in_order(tmp_path_factory, parts, first, seats):
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"_FIRST": first, "_LARGEST": 4, "_PAUSE": 0.0}.items():
            patched.setattr(queue, name, value)
        store = Store(str(tmp_path_factory.mktemp("s") / "s.db"))
        project, expected = store.project("p", STAMP), list[str]()
        for start, count in parts:
            given = prompts(start, count)
            new = [
                prompt.messages[0]["content"] for _, prompt in given if prompt.messages[0]["content"] not in expected
            ]
            assert add_items(store, project, given + given[:2], seats_each=seats) == (
                len(new),
                len(given + given[:2]) - len(new),
            )
            expected += new
        rows = waiting(store, project, "ada", limit=99).items
        assert [row.title for row in rows] == expected
        assert [row.position for row in rows] == list(range(len(expected)))
        assert progress(store, project).waiting == len(expected)
        taken = [store.next(project, f"person {number}") for number in range(seats * len(expected) + 1)]
        assert [row is not None for row in taken] == [True] * (seats * len(expected)) + [False]
        store.close()


@pytest.fixture(scope="module")
def new_database():
    from postgres import postgres_server

    with postgres_server() as database:
        yield database


@pytest.fixture
def url(request, tmp_path) -> str:
    return str(tmp_path / "store.db") if request.param == "sqlite" else request.getfixturevalue("new_database")()


BOTH = pytest.mark.parametrize("url", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_nobody_waits_for_a_long_file_and_nothing_is_refused(url):
    store, other = Store(url), Store(url)
    project = store.project("p", STAMP)
    add_items(store, project, prompts(0, 200))
    over, waits = threading.Event(), list[float]()

    def bring() -> None:
        try:
            assert add_items(other, project, prompts(1000, 3000)) == (3000, 0)
        finally:
            over.set()

    importing = threading.Thread(target=bring)
    importing.start()
    start = time.monotonic()
    while not over.is_set():
        began = time.monotonic()
        row = store.next(project, "ada")
        store.append(row.id, 0, [queue.Started(at="2026-01-01T00:00:00Z", completion_ids=(1,), ended=True)])
        store.append(row.id, 1, [Decided(at="2026-01-01T00:00:00Z", verdict="skip")])
        waits.append(time.monotonic() - began)
        time.sleep(0.005)
    importing.join(60)
    lasted = time.monotonic() - start
    counts = progress(store, project)
    assert (counts.items, counts.skip) == (3200, len(waits))
    # One transaction of it all would be one long wait. How long each is, is the machine's; the shares are not.
    assert len(waits) >= 5
    assert sorted(waits)[len(waits) // 2] < lasted / 4
    store.close()
    other.close()


@BOTH
def test_two_imports_of_one_file_at_once_bring_each_item_once(url, monkeypatch):
    monkeypatch.setattr(queue, "_PAUSE", 0.0)
    store = Store(url)
    project, counts, failed = store.project("p", STAMP), list[tuple[int, int]](), list[Exception]()

    def bring() -> None:
        try:
            counts.append(add_items(store, project, prompts(0, 600)))
        except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
            failed.append(error)

    threads = [threading.Thread(target=bring) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert [sum(both) for both in zip(*counts, strict=True)] == [600, 1200]
    assert progress(store, project).items == 600
    store.close()


def test_what_came_in_before_a_failure_stays_and_the_rest_comes_with_the_next_try(tmp_path):
    store = Store(str(tmp_path / "s.db"))
    project = store.project("p", STAMP)

    def torn():
        yield from prompts(0, 30)
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="full"):
        add_items(store, project, torn())
    before = progress(store, project).items
    assert 0 < before <= 30
    assert add_items(store, project, prompts(0, 40)) == (40 - before, before)
    store.close()
