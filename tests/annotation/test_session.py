"""One answer under correction: the recursion of the protocol, driven by a program."""

from functools import partial

import pytest
from annotation_cases import CONFIG, LIMIT, QUESTION, ask, correct, holds, next_choice, others, same
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from anchorlwf.annotation import Session
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.errors import AnchorLwfError, NothingToDoError, RecordError
from anchorlwf.model.language_model import LanguageModel


@pytest.fixture
def session(any_model: LanguageModel) -> Session:
    found = Session(any_model, QUESTION, CONFIG)
    assert len(found.state.completion_ids) == LIMIT
    return found


def test_of_several_tokens_only_those_the_model_would_not_pick_are_anchors(any_model, session):
    own = list(session.state.completion_ids)
    prefix = own[:5]
    (first,) = others(any_model, session, prefix, 1)
    second = next_choice(any_model, session, [*prefix, first])
    (third,) = others(any_model, session, [*prefix, first, second], 1)
    fourth = next_choice(any_model, session, [*prefix, first, second, third])
    assert correct(session, 5, first, second, third, fourth) == [5, 7]
    assert session.state.completion_ids[:9] == (*prefix, first, second, third, fourth)
    a, b = session.state.anchors
    assert (a.token_id, a.rejected_id) == (first, own[5])
    assert (b.token_id, b.rejected_id) == (third, next_choice(any_model, session, [*prefix, first, second]))
    assert 0 < (a.ref_probability or 0) < 0.5
    assert session.state.completion_ids[9] == next_choice(any_model, session, [*prefix, first, second, third, fourth])
    assert holds(any_model, session.record("complete"))


def test_correcting_at_an_anchor_replaces_it_and_drops_what_came_later(any_model, session):
    own = session.state.completion_ids
    one, other = others(any_model, session, list(own[:3]), 2)
    assert correct(session, 3, one) == [3]
    (later,) = others(any_model, session, list(session.state.completion_ids[:8]), 1)
    assert correct(session, 8, later) == [3, 8]
    assert correct(session, 3, other) == [3]
    assert session.state.completion_ids[:4] == (*own[:3], other)
    assert session.state.anchors[0].rejected_id == own[3]
    # And the model's own token again: nothing is left to learn.
    assert correct(session, 3, own[3]) == []
    assert session.state.completion_ids == own


def test_undo_takes_corrections_back_one_by_one(any_model, session):
    states = [session.state]
    for position in (10, 6, 2):
        (token,) = others(any_model, session, list(session.state.completion_ids[:position]), 1)
        correct(session, position, token)
        states.append(session.state)
    while len(states) > 1:
        assert session.state == states.pop()
        assert session.undo() is True
    assert session.state == states[0]
    assert session.undo() is False
    assert session.state == states[0]


def _refused(session: Session, kind: type[AnchorLwfError], message: str, position: int, *token_ids: int) -> None:
    before = session.state
    with pytest.raises(kind, match=message):
        correct(session, position, *token_ids)
    assert session.state is before


@pytest.mark.parametrize("position", [-1, LIMIT, LIMIT + 7])
def test_a_position_outside_the_answer_is_refused(session, position):
    _refused(session, RecordError, rf"position: expected 0 to {LIMIT - 1}, got {position}\.", position, 40)


def test_an_empty_correction_is_refused(session):
    _refused(session, RecordError, "correction: expected at least one token, got none", 3)


@pytest.mark.parametrize("bad", [-1, 100_000])
@pytest.mark.parametrize("tokens", [[], [40]])
def test_a_token_outside_the_vocabulary_is_refused(session, tokens, bad):
    message = rf"correction: expected token ids from 0 to \d+, got {bad}\."
    _refused(session, RecordError, message, 3, *tokens, bad)


@pytest.mark.parametrize("count", [1, 3])
def test_correcting_what_stands_by_the_same_is_nothing_to_do(session, count):
    standing = session.state.completion_ids[4 : 4 + count]
    _refused(session, NothingToDoError, "correction: expected tokens that differ", 4, *standing)


def test_the_end_of_turn_may_stand_last_only(any_model, session):
    (end,) = any_model.stop_ids
    _refused(session, RecordError, "correction: expected the end-of-turn token last", 4, end, 40)
    assert correct(session, 4, 40, end)
    assert session.state.completion_ids[4:] == (40, end)
    assert not session.state.truncated
    # Nothing follows the end, until it is corrected itself.
    (token,) = others(any_model, session, list(session.state.completion_ids[:5]), 1)
    correct(session, 5, token)
    assert len(session.state.completion_ids) == LIMIT
    assert session.state.truncated


def test_a_correction_may_reach_the_limit_and_no_further(session):
    tokens = [40, 41, 42, 43]
    assert session.state.truncated
    _refused(session, RecordError, rf"answer: expected at most {LIMIT} tokens, got {LIMIT + 1}", LIMIT - 3, *tokens)
    correct(session, LIMIT - 4, *tokens)
    assert session.state.completion_ids[-4:] == tuple(tokens)
    assert len(session.state.completion_ids) == LIMIT
    assert session.state.truncated


def test_the_context_is_a_limit_too(any_model):
    prompt = ask("she " * 30)
    session = Session(any_model, prompt, AnnotateConfig(max_new_tokens=500))
    room = 96 - len(session.prompt_ids)
    assert len(session.state.completion_ids) == room
    _refused(session, RecordError, f"answer: expected at most {room} tokens, got {room + 1}", room - 1, 40, 41)


def test_the_record_of_a_session_holds_what_was_done(any_model, session):
    own = list(session.state.completion_ids)
    (token,) = others(any_model, session, own[:2], 1)
    session.correct(2, [token], confidence=0.75, source="human:ada")
    record = session.record("complete")
    assert (record.original_ids, record.model, record.messages) == (own, any_model.stamp, QUESTION.messages)
    assert record.completion == any_model.codec.decode(record.completion_ids)
    assert record.truncated
    assert [(a.position, a.token_id, a.rejected_id, a.confidence, a.source) for a in record.anchors] == [
        (2, token, own[2], 0.75, "human:ada")
    ]


def test_a_draft_is_taken_up_where_it_was_left(any_model, session):
    (token,) = others(any_model, session, list(session.state.completion_ids[:2]), 1)
    correct(session, 2, token)
    draft = session.record("draft")
    resumed = Session(any_model, QUESTION, CONFIG, draft=Record.model_validate_json(draft.model_dump_json()))
    assert resumed.state == session.state
    assert resumed.undo() is False
    (later,) = others(any_model, session, list(session.state.completion_ids[:9]), 1)
    assert correct(resumed, 9, later) == correct(session, 9, later) == [2, 9]
    assert same(resumed.record("complete"), session.record("complete"))
    assert resumed.record("complete").original_ids == draft.original_ids


class Corrections(RuleBasedStateMachine):
    """Any corrections and undos, in any order, on one session; the history is kept beside it."""

    def __init__(self, model: LanguageModel, decoder: GreedyDecoder) -> None:
        super().__init__()
        self.model, self.decoder = model, decoder

    @initialize(text=st.sampled_from(["Where was she born?", "Which river?", "hello"]))
    def begin(self, text: str) -> None:
        self.session = Session(self.model, ask(text), CONFIG, decoder=self.decoder)
        self.history = [self.session.state]

    @rule(where=st.floats(0, 1), picks=st.lists(st.integers(3, 299), min_size=1, max_size=3), end=st.booleans())
    def correct(self, where: float, picks: list[int], end: bool) -> None:
        before = self.session.state
        position = round(where * (len(before.completion_ids) - 1))
        tokens = [*picks, *(self.model.stop_ids if end else [])][: LIMIT - position]
        if before.completion_ids[position : position + len(tokens)] == tuple(tokens):
            return
        after = self.session.correct(position, tokens, confidence=0.5, source="target")
        self.history.append(after)
        assert after.completion_ids[: position + len(tokens)] == (*before.completion_ids[:position], *tokens)
        assert [a for a in after.anchors if a.position < position] == [
            a for a in before.anchors if a.position < position
        ]
        assert all(a.position < position + len(tokens) for a in after.anchors)

    @precondition(lambda self: len(self.history) > 1)
    @rule()
    def undo(self) -> None:
        assert self.session.undo()
        self.history.pop()
        assert self.session.state is self.history[-1]

    @rule()
    def resume(self) -> None:
        # A draft keeps everything but the way back.
        self.session = Session(
            self.model, self.session.view().prompt, CONFIG, decoder=self.decoder, draft=self.session.record("draft")
        )
        assert self.session.state == self.history[-1]
        self.history = [self.session.state]

    @invariant()
    def every_token_is_the_models_choice_or_an_anchor(self) -> None:
        assert holds(self.model, self.session.record("complete"))

    @invariant()
    def an_answer_ends_once(self) -> None:
        state = self.session.state
        ends = [token in self.model.stop_ids for token in state.completion_ids]
        assert not any(ends[:-1])
        assert ends[-1] != state.truncated
        assert state.truncated == (not ends[-1] and len(ends) == LIMIT)


def test_whatever_is_corrected_and_undone_the_record_holds(any_model):
    machine = partial(Corrections, any_model, GreedyDecoder(any_model, 2))
    run_state_machine_as_test(machine, settings=settings(max_examples=12, stateful_step_count=8))
