"""The file of records beside the store: whatever died between the two, a start brings them together again."""

from contextlib import contextmanager

import pytest

from anchorlwf.annotation import annotate
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.open import open_exchange
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store import overview
from anchorlwf.annotator.store.store import Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import BadLineWarning, load_records, save_lines, save_records
from anchorlwf.data.record import Prompt
from anchorlwf.errors import ModelWarning, PromptError, RecordError

CONFIG = AnnotateConfig(max_new_tokens=6, alternatives=3)


class Place:
    """A project's files, and the page's inside opened over them again and again."""

    def __init__(self, model, folder) -> None:
        self._model = model
        self.prompts, self.out, self._store = folder / "p.jsonl", folder / "records.jsonl", str(folder / "store.db")
        save_lines(self.prompts, [Prompt(messages=[{"role": "user", "content": text}]) for text in ("hello", "Who?")])

    @contextmanager
    def open(self, config=CONFIG, **options):
        store = Store(self._store)
        decoder = LocalDecoder(self._model, alternatives=3)
        try:
            with open_exchange(self.prompts, self.out, store, decoder, config, decode_ahead=False, **options) as made:
                yield made
        finally:
            store.close()

    def statuses(self) -> list[str]:
        return [record.status for record in load_records(self.out)]


@pytest.fixture
def place(tiny_model, tmp_path):
    return Place(tiny_model, tmp_path)


def whole(desk, annotator="ada"):
    """The next session, its first answer at its end."""
    live = desk.next(annotator)
    while (running := live.continuation) is not None and not running.over:
        pass
    return live


@pytest.mark.parametrize("per_item", [1, 2])
@pytest.mark.parametrize("then", ["undecided", "skip"])
def test_a_decision_taken_back_is_no_finished_record_after_a_kill(place, monkeypatch, per_item, then):
    with place.open(per_item=per_item) as exchange:
        desk = exchange.desk
        lives = []
        for _ in range(2):
            lives.append(whole(desk))
            desk.decide(lives[-1], "keep")
        assert place.statuses() == ["complete", "complete"]
        # Killed once `Reopened` is stored, before the file hears of it.
        monkeypatch.setattr(Ledger, "publish", lambda *_: None)
        desk.reopen(lives[0])
        if then == "skip":
            desk.decide(lives[0], "skip")
        monkeypatch.undo()
    assert place.statuses() == ["complete", "complete"]
    with place.open(per_item=per_item) as exchange:
        assert sorted(place.statuses()) == ["complete", "draft"]
        kept, draft = sorted(load_records(place.out), key=lambda record: record.status)
        assert "keep" in kept.tags
        assert "keep" not in draft.tags
        # Decided anew, it is finished again, and stays so.
        live = exchange.desk.open(lives[0].row.item, "ada")
        if live.tree.verdict is not None:
            exchange.desk.reopen(live)
        exchange.desk.decide(live, "reject")
    for _ in range(2):
        with place.open(per_item=per_item):
            assert sorted(place.statuses()) == ["complete", "rejected"]


def test_what_was_finished_elsewhere_while_a_session_is_open_stays(place, tiny_model):
    # Never decided here, so never taken back: the file knows better.
    from anchorlwf.annotation import Accept

    class Yes:
        source = "human:bob"

        def review(self, view):
            return Accept()

        def complain(self, error):
            raise error

    with place.open() as exchange:
        whole(exchange.desk)
    annotate(tiny_model, place.prompts, Yes(), out=place.out, config=CONFIG)
    assert place.statuses() == ["complete", "complete"]
    with place.open():
        assert place.statuses() == ["complete", "complete"]


def test_a_torn_last_line_is_warned_of_and_the_store_fills_it_in(place):
    with place.open() as exchange:
        for _ in range(2):
            exchange.desk.decide(whole(exchange.desk), "keep")
    before = load_records(place.out)
    text = place.out.read_bytes()
    place.out.write_bytes(text[:-40])
    with pytest.warns(BadLineWarning, match=r"line 2: expected one JSON object, got broken JSON"), place.open():
        pass
    assert sorted(load_records(place.out), key=lambda r: r.id) == sorted(before, key=lambda r: r.id)


def test_a_file_of_something_else_is_left_alone(place):
    place.out.write_text('{"prompt": "hello"}\n')
    with pytest.raises(RecordError, match="line 1: id: expected the field"), place.open():
        pass
    assert place.out.read_text() == '{"prompt": "hello"}\n'


def test_a_prompt_too_long_is_named_by_its_line_and_can_be_skipped(place):
    with place.prompts.open("a") as stream:
        stream.write('{"prompt": "%s"}\n' % ("she " * 200))
    with pytest.raises(PromptError, match=r"p\.jsonl, line 3: prompt: expected fewer than 96 tokens"), place.open():
        pass
    with pytest.warns(BadLineWarning, match="line 3: prompt: expected fewer"), place.open(skip_bad=True) as exchange:
        assert exchange.desk.next("ada") is not None


def test_a_skip_before_the_first_token_can_be_taken_back(place, monkeypatch):
    with place.open() as exchange:
        # The model is slow: nothing has come when the person goes on.
        monkeypatch.setattr(type(exchange.desk), "resume", lambda *_args: None)
        live = exchange.desk.next("ada")
        exchange.desk.decide(live, "skip")
        assert not live.tree.state.completion_ids
        exchange.desk.reopen(live)
        monkeypatch.undo()
    with place.open() as exchange:
        assert not place.out.exists()
        live = whole(exchange.desk)
        exchange.desk.decide(live, "keep")
        assert place.statuses() == ["complete"]


def test_a_store_that_was_begun_with_another_model_is_told(place, fresh_model):
    with place.open():
        pass
    fresh_model.name = "another"
    place._model = fresh_model
    expected = pytest.warns(
        ModelWarning, match=r"model another: expected that of the store, .*For another model, another"
    )
    with expected, place.open():
        pass


def test_the_same_model_by_another_name_finds_its_queue_and_its_records(place, fresh_model):
    with place.open() as exchange:
        exchange.desk.decide(whole(exchange.desk), "keep")
    fresh_model.name = "another/path/to/it"
    place._model = fresh_model
    for _ in range(2):
        with pytest.warns(ModelWarning, match="model another/path/to/it"), place.open() as exchange:
            counts = overview.progress(exchange.desk.store, exchange.desk.project)
            assert (counts.items, counts.done) == (2, 1)
    with pytest.warns(ModelWarning), place.open() as exchange:
        exchange.desk.decide(whole(exchange.desk), "keep")
    assert place.statuses() == ["complete", "complete"]


def test_records_made_under_another_name_are_not_asked_for_again(place, fresh_model):
    with place.open():
        pass
    fresh_model.name = "another/path/to/it"
    place._model = fresh_model
    place.prompts.write_text(place.prompts.read_text() + '{"prompt": "hi", "answer": "he"}\n')
    annotate(fresh_model, [{"prompt": "hi", "answer": "he"}], out=place.out, config=CONFIG)
    with pytest.warns(ModelWarning), place.open() as exchange:
        counts = overview.progress(exchange.desk.store, exchange.desk.project)
        assert (counts.items, counts.done) == (3, 1)


def test_a_draft_put_away_in_mid_answer_goes_on_in_another_store(place, tiny_model, tmp_path, monkeypatch):
    with place.open() as exchange:
        live = whole(exchange.desk)
        exchange.desk.decide(live, "keep")
        exchange.desk.reopen(live)
    [record] = load_records(place.out)
    ids = record.completion_ids[:2]
    shorter = {"completion_ids": ids, "completion": tiny_model.codec.decode(ids), "original_ids": ids}
    save_records(place.out, [record.model_copy(update={**shorter, "truncated": False})])
    place._store = str(tmp_path / "other.db")
    with place.open() as exchange:
        monkeypatch.setattr(type(exchange.desk), "resume", lambda *_args: None)
        live = exchange.desk.next("ada")
        assert not live.tree.node.ended
        with pytest.raises(RecordError, match="answer: expected a whole one"):
            exchange.desk.decide(live, "accept")
        monkeypatch.undo()
        live = whole(exchange.desk)
        exchange.desk.stop(live)
        assert live.tree.state.completion_ids == tuple(record.completion_ids)
    # Where the limit leaves no room behind it, it is one that was cut.
    place._store = str(tmp_path / "third.db")
    with place.open(config=AnnotateConfig(max_new_tokens=2, alternatives=3)) as exchange:
        live = exchange.desk.next("ada")
        assert (live.tree.node.ended, live.tree.node.truncated) == (True, True)
        exchange.desk.extend(live)
