"""One file of records and many writers: nobody's lines are lost, nothing is written twice."""

import json
import threading
from pathlib import Path

import pytest
from append_worker import append_many, made
from forks import forks

from anchorlwf.annotation import annotate, annotate_stream, import_lawftrack, stage
from anchorlwf.annotation.review import Accept
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.open import open_exchange
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store.store import Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import BadLineWarning, append_record, load_records, save_lines, save_records
from anchorlwf.data.record import Prompt, Record
from anchorlwf.data.record_file import RecordJournal
from anchorlwf.errors import RecordError
from anchorlwf.files import append_line, append_lines, held_file, write_atomic

CONFIG = AnnotateConfig(max_new_tokens=4, alternatives=3)
QUESTIONS = ["hello", "Who?", "Where was she born?"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- the lock ---


def behind(action) -> threading.Thread:
    """Begin something that has to wait."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    return thread


@pytest.mark.parametrize("write", [append_lines, save_lines], ids=["append", "save"])
def test_whoever_writes_waits_for_whoever_holds_the_file(tmp_path, write):
    path = tmp_path / "f.jsonl"
    with held_file(path) as stream:
        rows = ['{"a": 1}'] if write is append_lines else [{"a": 1}]
        waiting = behind(lambda: write(path, rows))
        stream.write(b'{"first": 1}\n')
    waiting.join(10)
    assert lines(path) == ([{"first": 1}, {"a": 1}] if write is append_lines else [{"a": 1}])
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("gone", [True, False])
def test_a_line_goes_into_the_file_that_was_put_in_its_place_meanwhile(tmp_path, gone):
    path = tmp_path / "f.jsonl"
    path.write_text("old\n")
    with held_file(path):
        waiting = behind(lambda: append_line(path, "mine"))
        path.unlink() if gone else write_atomic(path, "new\n")
    waiting.join(10)
    assert path.read_text() == ("mine\n" if gone else "new\nmine\n")


def test_what_goes_wrong_while_a_file_is_held_lets_go_of_it(tmp_path):
    with pytest.raises(ZeroDivisionError), held_file(tmp_path / "f"):
        raise ZeroDivisionError
    append_line(tmp_path / "f", "x")
    assert (tmp_path / "f").read_text() == "x\n"


# --- the journal ---


def test_a_journal_tells_each_record_once_and_whoever_wrote_it(tmp_path):
    path = tmp_path / "r.jsonl"
    journal, other = RecordJournal(path), RecordJournal(path)
    assert list(journal.news()) == []
    append_record(path, made("a"))
    assert list(journal.news()) == [made("a")]
    seen = []
    assert journal.add(lambda news: [*seen, made("b")] if list(news) == [] else []) == [made("b")]
    append_record(path, made("c"))
    assert list(journal.news()) == [made("c")]
    assert list(journal.news()) == []
    assert other.add(lambda news: [made("d")] if len(list(news)) == 3 else []) == [made("d")]
    assert load_records(path) == [made("a"), made("b"), made("c"), made("d")]
    # Another file in its place is read from its start.
    save_records(path, [made("e")])
    assert list(journal.news()) == [made("e")]


def test_nothing_is_decided_on_old_news(tmp_path):
    path, journal = tmp_path / "r.jsonl", RecordJournal(tmp_path / "r.jsonl")

    def missing(news):
        return [] if made("a").id in {record.id for record in news} else [made("a")]

    with held_file(path) as stream:
        waiting = behind(lambda: journal.add(missing))
        stream.write(made("a").model_dump_json().encode() + b"\n")
    waiting.join(10)
    assert len(lines(path)) == 1


@pytest.mark.parametrize("over", [True, False])
def test_a_torn_line_is_named_once_and_taken_away_only_by_whoever_has_it(tmp_path, over):
    path = tmp_path / "r.jsonl"
    append_record(path, made("a"))
    with open(path, "ab") as stream:
        stream.write(made("b").model_dump_json().encode()[:90])
    journal = RecordJournal(path)
    with pytest.warns(BadLineWarning, match="line 2: expected one JSON object, got broken JSON"):
        assert list(journal.news()) == [made("a")]
    assert list(journal.news()) == []
    journal.add(lambda _news: [made("b")], over_torn=over)
    assert len(path.read_bytes().splitlines()) == (2 if over else 3)
    path.write_bytes(path.read_bytes() + b"{}\n")
    with pytest.warns(BadLineWarning, match=f"line {3 if over else 4}: ") as told:
        assert list(journal.news()) == []
    assert len(told) == 1


def test_half_a_line_of_somebody_at_work_is_read_when_it_is_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    journal, whole = RecordJournal(path), made("a").model_dump_json().encode() + b"\n"
    with held_file(path) as stream:
        stream.write(whole[:50])
        got: list[Record] = []
        waiting = behind(lambda: got.extend(journal.news()))
        stream.write(whole[50:])
    waiting.join(10)
    assert got == [made("a")]


def test_a_record_that_only_lacks_its_line_break_is_a_record(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(made("a").model_dump_json())
    journal = RecordJournal(path)
    assert list(journal.news()) == [made("a")]
    journal.add(lambda _news: [made("b")], over_torn=True)
    assert load_records(path) == [made("a"), made("b")]


def test_a_file_of_something_else_is_no_journal(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "hello"}\n{"prompt"')
    for ask in (lambda: list(RecordJournal(path).news()), lambda: RecordJournal(path).add(lambda _news: [made("a")])):
        with pytest.raises(RecordError, match="line 1: id: expected the field"):
            ask()
    assert path.read_text() == '{"prompt": "hello"}\n{"prompt"'


# --- annotate ---


class Yes:
    source = "human:ada"

    def __init__(self, meanwhile=lambda: None) -> None:
        self.asked, self._meanwhile = 0, meanwhile

    def review(self, _view):
        self.asked += 1
        self._meanwhile()
        return Accept()

    def complain(self, error):
        raise error


def test_two_runs_over_targets_share_the_work(tiny_model, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(stage, "_WINDOW", 2)
    prompts = [{"prompt": f"question {number}", "answer": "hello"} for number in range(7)]
    out, told = tmp_path / "r.jsonl", []
    first = annotate_stream(
        tiny_model, prompts, out=out, config=CONFIG, on_record=lambda _record, *numbers: told.append(numbers)
    )
    mine = [next(first)]
    # The other run does three prompts of seven: one that the first has at hand, and two it has not come to.
    theirs = annotate(tiny_model, [prompts[number] for number in (1, 4, 5)], out=out, config=CONFIG)
    assert len(theirs) == 2
    mine += first
    assert len(mine) == 5
    assert told == [(1, 7), (2, 7), (3, 7), (4, 7), (5, 5)]
    assert sorted(line["id"] for line in lines(out)) == sorted({record.id for record in mine + theirs})
    assert len(load_records(out)) == 7
    assert not caplog.records

    # Both had the same window at hand: the first to be done stands, the other is told.
    calls = iter([lambda: annotate(tiny_model, prompts, out=tmp_path / "s.jsonl", config=CONFIG)])
    made_records = stage.target_records

    def overtaken(*given):
        done = made_records(*given)
        next(calls, lambda: None)()
        return done

    monkeypatch.setattr(stage, "target_records", overtaken)
    assert annotate(tiny_model, prompts, out=tmp_path / "s.jsonl", config=CONFIG) == []
    assert len(lines(tmp_path / "s.jsonl")) == 7
    assert "another run has the same prompts" in caplog.text


def test_nobody_is_asked_what_another_run_has_finished(tiny_model, tmp_path):
    out = tmp_path / "r.jsonl"
    bob = Yes()
    ada = Yes(lambda: annotate(tiny_model, QUESTIONS[1:], bob, out=out, config=CONFIG))
    assert len(annotate(tiny_model, QUESTIONS, ada, out=out, config=CONFIG)) == 1
    assert (ada.asked, bob.asked, len(lines(out))) == (1, 2, 3)


# --- importing, page and terminal ---


def test_an_older_state_of_the_store_never_comes_after_a_newer_one(tiny_model, tmp_path):
    # The store says finished; before the file is held somebody takes the decision back and says so in the file.
    out = tmp_path / "r.jsonl"
    ledger, asked = Ledger(tiny_model.stamp, tiny_model.codec, out), []
    finished, draft = made("a"), made("a", status="draft")

    def stored(among):
        asked.append(among)
        if among is None:
            append_record(out, draft)
            return {5: [finished], 6: [made("b")]}
        return {5: [draft], 6: [made("b")]}

    ledger.reconcile(stored)
    assert asked == [None, [5, 6]]
    assert load_records(out) == [draft, made("b")]
    # A draft takes the place of a finished record, unless somebody else has finished the item.
    append_record(out, finished)
    ledger.reconcile(lambda _among: {5: [finished, draft], 6: [made("b"), made("c", status="draft")]})
    assert load_records(out) == [made("b"), finished]
    ledger.reconcile(lambda _among: {5: [draft]})
    assert load_records(out) == [made("b"), draft]


def lawftrack(count: int, name: object) -> str:
    return json.dumps(
        {
            "samples": [
                {
                    "id": f"{name} {number}",
                    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello there"}],
                    "anchors": [],
                }
                for number in range(count)
            ]
        }
    )


def test_twenty_writers_while_importing_and_starting(tiny_model, tiny_path, tmp_path):
    out, prompts, writers, count = tmp_path / "records.jsonl", tmp_path / "p.jsonl", 20, 25
    append_record(out, made("there before"))
    save_lines(prompts, [Prompt(messages=[{"role": "user", "content": text}]) for text in QUESTIONS])
    store, decoder = Store(str(tmp_path / "store.db")), LocalDecoder(tiny_model, alternatives=3)

    def start() -> None:
        # What page and terminal do; each start finds the store ahead of the file.
        with open_exchange(prompts, out, store, decoder, CONFIG, decode_ahead=False) as exchange:
            live = exchange.desk.next("ada")
            if live is not None:
                while live.continuation is not None and not live.continuation.over:
                    pass
                exchange.desk.ledger.publish = lambda _record: None  # killed between the store and the file
                exchange.desk.decide(live, "keep")

    context = forks()
    ready = context.Barrier(writers + 1)
    children = [context.Process(target=append_many, args=(out, number, count, ready)) for number in range(writers)]
    for child in children:
        child.start()
    ready.wait(60)
    starts = imports = 0
    while starts <= len(QUESTIONS) or any(child.is_alive() for child in children):
        start()
        (tmp_path / "data.json").write_text(lawftrack(3, imports))
        assert import_lawftrack(tmp_path / "data.json", out, str(tiny_path)).records == 3
        starts, imports = starts + 1, imports + 1
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * writers
    written = lines(out)
    ids = {line["id"] for line in written}
    assert {made(writer, number).id for writer in range(writers) for number in range(count)} < ids
    assert made("there before").id in ids
    assert sum("lawftrack" in line["tags"] for line in written) == 3 * imports
    assert sum("keep" in line["tags"] for line in written) == len(QUESTIONS)
    assert len(written) == len(ids) == 1 + writers * count + 3 * imports + len(QUESTIONS)
    decoder.close()
    store.close()
