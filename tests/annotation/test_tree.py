"""The history is a tree folded from events: whatever happens, its events give the same state again."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.annotation.events import (
    EVENTS,
    Continued,
    Corrected,
    Decided,
    Event,
    Extended,
    Moved,
    Noted,
    Reopened,
    Started,
    Tagged,
    Weighed,
)
from anchorlwf.annotation.tree import Tree, apply, fold
from anchorlwf.data.record import Anchor
from anchorlwf.errors import AnchorLwfError, ConflictError, RecordError

NOW = datetime(2026, 11, 23, tzinfo=UTC)
IDS = st.lists(st.integers(0, 9), max_size=5).map(tuple)


def anchor(position: int, token: int) -> Anchor:
    return Anchor(position=position, token_id=token, rejected_id=None, source="human:ada", created_at=NOW)


def corrected(parent: int, position: int, *tokens: int, anchors: bool = True, **more: object) -> Corrected:
    own = tuple(anchor(position + i, token) for i, token in enumerate(tokens)) if anchors else ()
    return Corrected(at=NOW, parent=parent, position=position, token_ids=tokens, anchors=own, source="human:a", **more)


def begun(*tokens: int) -> Tree:
    return fold([Started(at=NOW, completion_ids=tokens, ended=True)])


@st.composite
def any_event(draw: st.DrawFn) -> Event:
    number = draw(st.integers(0, 4))
    return draw(
        st.sampled_from(
            [
                Started(at=NOW, completion_ids=draw(IDS), ended=draw(st.booleans())),
                corrected(number, draw(st.integers(0, 6)), *draw(IDS.filter(bool)), ended=draw(st.booleans())),
                corrected(number, draw(st.integers(0, 6)), *draw(IDS.filter(bool)), anchors=False),
                Continued(at=NOW, node=number, token_ids=draw(IDS), ended=draw(st.booleans())),
                Moved(at=NOW, node=number),
                Weighed(at=NOW, position=draw(st.integers(0, 6)), confidence=0.5),
                Noted(at=NOW, text=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=5))),
                Tagged(at=NOW, tags=("a", "b")),
                Decided(at=NOW, verdict=draw(st.sampled_from(["accept", "keep", "reject", "skip"]))),
                Reopened(at=NOW),
            ]
        )
    )


@given(st.lists(any_event(), max_size=40))
def test_what_was_accepted_gives_the_same_state_again(tried):
    tree, taken = begun(1, 2, 3), [Started(at=NOW, completion_ids=(1, 2, 3), ended=True)]
    for event in tried:
        try:
            tree = apply(tree, event)
        except AnchorLwfError:
            continue  # refused whole: the state is a value, so nothing of it can have changed
        taken.append(event)
    stored = [EVENTS.validate_json(EVENTS.dump_json(event)) for event in taken]
    assert fold(stored) == tree
    assert tree.version == len(taken)
    # Whatever happened, the state is one a record can be made of.
    for number, node in enumerate(tree.nodes):
        anchors, ties = tree.anchors(number), tree.ties(number)
        assert [a.position for a in anchors] == sorted({a.position for a in anchors})
        assert all(node.completion_ids[a.position] == a.token_id for a in anchors)
        assert all(tie < len(node.completion_ids) for tie in ties)
        assert len(node.probabilities) == len(node.completion_ids)
        assert node.parent is None or node.parent < number


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(10, 19)), min_size=1, max_size=12))
def test_undo_and_redo_are_inverse(corrections):
    tree = begun(1, 2, 3)
    for back, position, token in corrections:
        parent = max(0, len(tree.nodes) - 1 - back)
        tree = apply(tree, corrected(parent, position, token))
        tree = apply(tree, Continued(at=NOW, node=tree.current, token_ids=(7, 8), ended=True))
    path = tree.path(tree.current)
    back = tree
    for number in reversed(path[:-1]):
        assert back.can_undo
        back = apply(back, Moved(at=NOW, node=back.node.parent))
        assert back.current == number
    assert not back.can_undo
    for number in path[1:]:
        assert back.can_redo
        back = apply(back, Moved(at=NOW, node=back.latest[back.current]))
        assert back.current == number
    assert (back.nodes, back.current, back.latest) == (tree.nodes, tree.current, tree.latest)


def test_correcting_elsewhere_keeps_the_abandoned_branch():
    tree = apply(begun(1, 2, 3), corrected(0, 2, 9))
    tree = apply(apply(tree, Moved(at=NOW, node=0)), corrected(0, 1, 8))
    assert [node.completion_ids for node in tree.nodes] == [(1, 2, 3), (1, 2, 9), (1, 8)]
    assert tree.current == 2
    # Redo from the first answer goes where the person was last; the other branch is one jump away.
    back = apply(tree, Moved(at=NOW, node=0))
    assert back.latest[0] == 2
    assert apply(back, Moved(at=NOW, node=1)).node.completion_ids == (1, 2, 9)


def test_anchors_before_a_correction_stand_and_those_behind_fall():
    tree = apply(begun(1, 2, 3, 4), corrected(0, 1, 9))
    tree = apply(tree, Continued(at=NOW, node=1, token_ids=(5, 6), ended=True))
    tree = apply(tree, corrected(1, 3, 7))
    assert [a.position for a in tree.anchors()] == [1, 3]
    assert [a.position for a in apply(tree, corrected(2, 0, 4)).anchors()] == [0]


def test_a_confidence_holds_on_every_branch_that_shares_the_anchor():
    tree = apply(begun(1, 2, 3, 4), corrected(0, 1, 9))
    tree = apply(tree, Continued(at=NOW, node=1, token_ids=(5, 6), ended=True))
    tree = apply(tree, corrected(1, 3, 7))
    tree = apply(tree, Weighed(at=NOW, position=1, confidence=0.25))
    assert [a.confidence for a in tree.anchors()] == [0.25, 1.0]
    assert [a.confidence for a in tree.anchors(1)] == [0.25]
    # An anchor hidden behind a later correction is not the one that is seen.
    hidden = apply(tree, corrected(2, 1, 3, anchors=False))
    with pytest.raises(RecordError, match="anchor"):
        apply(hidden, Weighed(at=NOW, position=1, confidence=0.5))


@pytest.mark.parametrize(
    ("events", "event", "error"),
    [
        ([], Noted(at=NOW, text="early"), ConflictError),
        ([Started(at=NOW)], Started(at=NOW), ConflictError),
        ([Started(at=NOW, completion_ids=(1,))], Decided(at=NOW, verdict="accept"), RecordError),
        ([Started(at=NOW, ended=True)], Decided(at=NOW, verdict="accept"), RecordError),
        ([Started(at=NOW)], Decided(at=NOW, verdict="reject"), RecordError),
        (
            [Started(at=NOW, completion_ids=(1,), ended=True), corrected(0, 0, 2, ended=True)],
            Decided(at=NOW, verdict="keep"),
            RecordError,
        ),
        ([Started(at=NOW, completion_ids=(1,), ended=True)], corrected(0, 1, 2), RecordError),
        ([Started(at=NOW, completion_ids=(1,), ended=True)], corrected(1, 0, 2), RecordError),
        ([Started(at=NOW, completion_ids=(1,), ended=True)], Continued(at=NOW, node=0, ended=True), ConflictError),
        ([Started(at=NOW, completion_ids=(1,), ended=True)], Reopened(at=NOW), ConflictError),
        (
            [Started(at=NOW, completion_ids=(1,), ended=True), Decided(at=NOW, verdict="keep")],
            Noted(at=NOW, text="late"),
            ConflictError,
        ),
    ],
)
def test_what_does_not_fit_the_moment_is_refused(events, event, error):
    with pytest.raises(error):
        apply(fold(events), event)


def test_an_answer_that_was_cut_goes_on():
    cut = fold([Started(at=NOW, completion_ids=(1, 2), ended=True, truncated=True)])
    longer = apply(cut, Extended(at=NOW, node=0, limit=4))
    assert (longer.node.ended, longer.node.truncated, longer.limit) == (False, False, 4)
    whole = apply(longer, Continued(at=NOW, node=0, token_ids=(3,), ended=True))
    assert whole.original_ids == (1, 2, 3)
    for tree, limit in ((whole, 9), (cut, 2)):
        with pytest.raises(RecordError, match="limit: expected an answer that was cut"):
            apply(tree, Extended(at=NOW, node=0, limit=limit))


def test_the_original_is_the_models_own_whole_answer():
    assert begun(1, 2).original_ids == (1, 2)
    assert fold([Started(at=NOW, completion_ids=(1, 2))]).original_ids == ()
    drafted = Started(at=NOW, completion_ids=(1, 2), anchors=(anchor(0, 1),), original_ids=(3,), ended=True)
    assert fold([drafted]).original_ids == (3,)
