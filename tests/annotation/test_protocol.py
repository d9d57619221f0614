"""The rules of the protocol, which programs (`Session`) and people (`Desk`) share to the letter."""

import time

import pytest
from annotation_cases import CONFIG, LIMIT, QUESTION, next_choice, ordinary, others, same
from desk_cases import OpenDesk

from anchorlwf.annotation import Session
from anchorlwf.annotation.protocol import Bounds, check_correction, continued, resumed
from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.annotator.store.queue import add_items
from anchorlwf.errors import AnchorLwfError, NothingToDoError, RecordError


class Both(OpenDesk):
    """One question, answered and corrected by a program and by a person."""

    def __init__(self, model, folder) -> None:
        super().__init__(model, folder, CONFIG)
        add_items(self.store, self.project, [(self.ledger.key(QUESTION), QUESTION)])
        self.live: Live = self.desk.next("ada")
        self.session = Session(model, QUESTION, CONFIG)
        self.wait()

    def wait(self) -> None:
        """Until the person's answer has come to its end."""
        until = time.monotonic() + 20
        while not self.live.tree.node.ended:
            assert time.monotonic() < until
            time.sleep(0.005)

    def correct(self, position: int, token_ids: list[int]) -> tuple[AnchorLwfError | None, AnchorLwfError | None]:
        """What the program and what the person is told; None: it was taken."""
        told: list[AnchorLwfError | None] = []
        for attempt in (
            lambda: self.session.correct(position, token_ids, confidence=CONFIG.confidence, source="human:ada"),
            lambda: self.desk.correct(self.live, self.live.tree.current, position, token_ids),
        ):
            try:
                attempt()
            except AnchorLwfError as error:
                told.append(error)
            else:
                told.append(None)
        self.wait()
        return told[0], told[1]

    def records(self):
        return self.session.record("draft"), self.ledger.record(self.live.row, self.live.prompt_ids, self.live.tree)


@pytest.fixture
def both(tiny_model, tmp_path):
    made = Both(tiny_model, tmp_path)
    yield made
    made.close()


def test_a_program_and_a_person_are_refused_the_same_in_the_same_words(both):
    (end,) = both.model.stop_ids
    standing, vocabulary = list(both.session.state.completion_ids), len(both.decoder.table)
    mistakes = [
        (LIMIT, [40], RecordError, f"position: expected 0 to {LIMIT - 1}, got {LIMIT}"),
        (-1, [40], RecordError, f"position: expected 0 to {LIMIT - 1}, got -1"),
        (3, [], RecordError, "correction: expected at least one token"),
        (3, [40, vocabulary], RecordError, f"token ids from 0 to {vocabulary - 1}, got {vocabulary}"),
        (3, [-1], RecordError, "got -1"),
        (LIMIT - 1, [40, 41], RecordError, f"answer: expected at most {LIMIT} tokens, got {LIMIT + 1}"),
        (3, [end, 40], RecordError, "correction: expected the end-of-turn token last"),
        (3, standing[3:5], NothingToDoError, "correction: expected tokens that differ"),
    ]
    for position, token_ids, kind, message in mistakes:
        program, person = both.correct(position, token_ids)
        assert type(program) is type(person) is kind, (position, token_ids)
        assert message in str(program)
        assert str(program) == str(person)
    assert same(*both.records())
    assert both.session.record("draft").completion_ids == standing


def test_a_program_and_a_person_who_correct_alike_make_the_same_record(both):
    (end,) = both.model.stop_ids
    corrections = [(9, 1), (4, 2), (4, 1), (6, 3)]
    for number, (position, count) in enumerate(corrections):
        prefix = list(both.session.state.completion_ids[:position])
        token_ids = others(both.model, both.session, prefix, number + 1)[number:]
        while len(token_ids) < count:  # what the model would go on with is no anchor
            token_ids.append(next_choice(both.model, both.session, [*prefix, *token_ids]))
        assert both.correct(position, token_ids) == (None, None)
        assert same(*both.records())
    assert [anchor.position for anchor in both.session.state.anchors] == [4, 6]
    assert both.correct(8, [next(iter(ordinary(both.model))), end]) == (None, None)
    assert same(*both.records())
    assert both.session.undo()
    both.desk.undo(both.live)
    assert same(*both.records())
    program, person = both.records()
    assert program.original_ids == person.original_ids != program.completion_ids


@pytest.mark.parametrize(
    ("ids", "ending"),
    [
        ([], (False, False)),
        ([5, 6], (False, False)),
        ([5, 9], (True, False)),
        ([5, 6, 7], (True, True)),
        ([5, 6, 9], (True, False)),
    ],
)
def test_an_answer_ends_with_its_turn_or_is_cut_at_the_limit(ids, ending):
    bounds = Bounds(3, 10, frozenset({9}))
    assert bounds.ending(ids) == ending
    event = continued(bounds, 0, ids[:1], ids[1:], [0.5] * len(ids[1:]), "2026-11-23T00:00:00Z")
    assert (event.ended, event.truncated) == ending


def test_an_answer_that_is_empty_so_far_has_nothing_to_correct():
    with pytest.raises(RecordError, match="position"):
        check_correction(Bounds(3, 10, frozenset()), [], 0, [1])


def test_a_draft_goes_into_the_tree_and_comes_out_of_it_as_it_is(both):
    (token,) = others(both.model, both.session, list(both.session.state.completion_ids[:5]), 1)
    both.correct(5, [token])
    draft = both.session.record("draft")
    tree = fold([resumed(draft, draft.anchors[0].created_at)])
    assert tree.state == both.session.state
    assert list(tree.original_ids) == draft.original_ids
