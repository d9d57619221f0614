"""An answer under correction as a tree of answers, folded from events: values only, no model and no clock.

Each correction makes a child of the answer it corrects, so going back and correcting elsewhere keeps the branch that
was left. Applying the events in order gives the state; that is the whole of it, and what makes it durable.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from anchorlwf.annotation.events import (
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
    Verdict,
    Weighed,
)
from anchorlwf.annotation.protocol import State, check_position
from anchorlwf.data.record import Anchor
from anchorlwf.errors import ConflictError, RecordError, wrong

__all__ = ["Node", "Tree", "apply", "check_open", "fold"]


@dataclass(frozen=True)
class Node:
    """One answer of the tree."""

    parent: int | None
    position: int
    """How many of the parent's tokens stand before the correction; 0 at the first node."""
    given: int
    """How many tokens the correction put there."""
    completion_ids: tuple[int, ...]
    probabilities: tuple[float | None, ...]
    """The reference's probability of each token, as long as `completion_ids`."""
    own_anchors: tuple[Anchor, ...]
    """Those this correction made; the parent's before `position` hold as well."""
    own_ties: tuple[int, ...]
    ended: bool
    truncated: bool
    source: str
    at: datetime


@dataclass(frozen=True)
class Tree:
    """The state of a session after its events."""

    nodes: tuple[Node, ...] = ()
    current: int = 0
    latest: tuple[int | None, ...] = ()
    """For each node the child last on the screen: where redo goes."""
    drafted_from: tuple[int, ...] = ()
    """The model's own first answer, where the session began with a draft of somebody's."""
    verdict: Verdict | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    limit: int | None = None
    """Maximum number of completion tokens, where an answer that it had cut was let go on; None: as configured."""
    version: int = 0
    """Number of events."""
    steps: frozenset[str] = frozenset()
    """Names of the steps that clients asked for and that are among the events."""

    @property
    def node(self) -> Node:
        """The answer on the screen."""
        return self.nodes[self.current]

    @property
    def original_ids(self) -> tuple[int, ...]:
        """The model's own first answer; empty where it never came to its end."""
        first = self.nodes[0]
        if self.drafted_from or first.own_anchors:
            return self.drafted_from
        return first.completion_ids if first.ended else ()

    @property
    def can_undo(self) -> bool:
        """There is an answer before this one."""
        return bool(self.nodes) and self.node.parent is not None

    @property
    def can_redo(self) -> bool:
        """This answer was corrected before."""
        return bool(self.nodes) and self.latest[self.current] is not None

    def path(self, index: int) -> list[int]:
        """Node numbers from the first node down to `index`."""
        numbers: list[int] = []
        number: int | None = index
        while number is not None:
            numbers.append(number)
            number = self.nodes[number].parent
        return numbers[::-1]

    def anchors(self, index: int | None = None) -> tuple[Anchor, ...]:
        """All anchors of an answer (the present one), in order."""
        anchors: tuple[Anchor, ...] = ()
        for number in self.path(self.current if index is None else index):
            node = self.nodes[number]
            anchors = (*(anchor for anchor in anchors if anchor.position < node.position), *node.own_anchors)
        return anchors

    def ties(self, index: int | None = None) -> tuple[int, ...]:
        """All ties of an answer (the present one), in order."""
        ties: tuple[int, ...] = ()
        for number in self.path(self.current if index is None else index):
            node = self.nodes[number]
            ties = (*(tie for tie in ties if tie < node.position), *node.own_ties)
        return ties

    @property
    def state(self) -> State:
        """The answer on the screen with its anchors."""
        return State(self.node.completion_ids, self.anchors(), self.ties(), self.node.truncated)

    @property
    def expected_ids(self) -> tuple[int, ...]:
        """What stood behind the end of the present answer in those above it: after a correction most of it returns."""
        node, stood = self.node, tuple[int, ...]()
        for above in reversed(self.path(self.current)[:-1]):
            # An answer that was corrected while it streamed ends early; the one above it may go on.
            stood += self.nodes[above].completion_ids[len(stood) :]
        # However many tokens were given, they took the place of one.
        return stood[len(node.completion_ids) - max(0, node.given - 1) :]


def _fit(values: tuple[float | None, ...], count: int) -> tuple[float | None, ...]:
    """Probabilities as many as tokens; what is not known is None."""
    return (*values[:count], *(None for _ in range(count - len(values))))


def _numbered(tree: Tree, number: int) -> Node:
    if number >= len(tree.nodes):
        fix = "Fetch the session again."
        raise RecordError(wrong("node", f"less than {len(tree.nodes)} (nodes of this session)", number, fix))
    return tree.nodes[number]


def _shown(tree: Tree, number: int) -> Tree:
    latest = list(tree.latest)
    for parent, child in itertools.pairwise(tree.path(number)):
        latest[parent] = child
    return replace(tree, current=number, latest=tuple(latest))


def _check_anchors(event: Started | Corrected, ids: tuple[int, ...], start: int) -> None:
    last = start - 1
    for anchor in event.anchors:
        if not last < anchor.position < len(ids) or ids[anchor.position] != anchor.token_id:
            fix = "This is a defect of whatever made the event."
            raise RecordError(wrong("anchors", "rising positions of the tokens given", anchor.position, fix))
        last = anchor.position


def _started(tree: Tree, event: Started) -> Tree:
    if tree.nodes:
        raise ConflictError(wrong("session", "one that has not begun", "one that has", "Fetch the session again."))
    _check_anchors(event, event.completion_ids, 0)
    ids = event.completion_ids
    node = Node(
        None,
        0,
        0,
        ids,
        _fit(event.probabilities, len(ids)),
        event.anchors,
        event.ties,
        event.ended,
        event.truncated,
        "",
        event.at,
    )
    return replace(tree, nodes=(node,), latest=(None,), current=0, drafted_from=event.original_ids)


def _corrected(tree: Tree, event: Corrected) -> Tree:
    parent = _numbered(tree, event.parent)
    check_position(event.position, len(parent.completion_ids))
    ids = (*parent.completion_ids[: event.position], *event.token_ids)
    _check_anchors(event, ids, event.position)
    probabilities = parent.probabilities[: event.position] + _fit(event.probabilities, len(event.token_ids))
    node = Node(
        event.parent,
        event.position,
        len(event.token_ids),
        ids,
        probabilities,
        event.anchors,
        event.ties,
        event.ended,
        event.truncated,
        event.source,
        event.at,
    )
    grown = replace(tree, nodes=(*tree.nodes, node), latest=(*tree.latest, None))
    return _shown(grown, len(grown.nodes) - 1)


def _with_node(tree: Tree, number: int, node: Node) -> Tree:
    return replace(tree, nodes=(*tree.nodes[:number], node, *tree.nodes[number + 1 :]))


def _continued(tree: Tree, event: Continued) -> Tree:
    node = _numbered(tree, event.node)
    if node.ended:
        fix = "Fetch the session again."
        raise ConflictError(wrong("continuation", "an answer without an end", "a whole one", fix))
    return _with_node(
        tree,
        event.node,
        replace(
            node,
            completion_ids=node.completion_ids + event.token_ids,
            ended=event.ended,
            truncated=event.truncated,
            probabilities=node.probabilities + _fit(event.probabilities, len(event.token_ids)),
        ),
    )


def _extended(tree: Tree, event: Extended) -> Tree:
    node = _numbered(tree, event.node)
    if not node.truncated or event.limit <= len(node.completion_ids):
        expected = f"an answer that was cut, and a limit above its {len(node.completion_ids)} tokens"
        raise RecordError(wrong("limit", expected, event.limit, "Fetch the session again."))
    uncut = replace(node, ended=False, truncated=False)
    return replace(_with_node(tree, event.node, uncut), limit=max(event.limit, tree.limit or 0))


def _weighed(tree: Tree, event: Weighed) -> Tree:
    # The nearest node on the way up that made an anchor there is the one whose anchor is seen here.
    for number in reversed(tree.path(tree.current)):
        node = tree.nodes[number]
        for index, anchor in enumerate(node.own_anchors):
            if anchor.position == event.position:
                changed = anchor.model_copy(update={"confidence": event.confidence})
                own = (*node.own_anchors[:index], changed, *node.own_anchors[index + 1 :])
                return _with_node(tree, number, replace(node, own_anchors=own))
        if event.position >= node.position:
            break  # what stands above is hidden by this correction
    positions = [anchor.position for anchor in tree.anchors()]
    expected = f"a position among {positions}"
    raise RecordError(wrong("anchor", expected, event.position, "Correct a token there first."))


def _decided(tree: Tree, event: Decided) -> Tree:
    if event.verdict in ("accept", "keep") and not (tree.node.ended and tree.node.completion_ids):
        fix = "Let the continuation come to its end first."
        raise RecordError(wrong("answer", "a whole one", "one without its end", fix))
    if event.verdict == "keep" and tree.anchors():
        fix = "Accept it, or undo to the model's own answer."
        raise RecordError(wrong("keep", "the model's own answer", f"{len(tree.anchors())} anchors", fix))
    if event.verdict == "reject" and not tree.node.completion_ids:
        raise RecordError(wrong("reject", "at least one token of an answer", "none yet", "Wait for it, or skip."))
    return replace(tree, verdict=event.verdict)


def _changed(tree: Tree, event: Event) -> Tree:
    match event:
        case Started():
            changed = _started(tree, event)
        case Corrected():
            changed = _corrected(tree, event)
        case Continued():
            changed = _continued(tree, event)
        case Extended():
            changed = _extended(tree, event)
        case Moved():
            _numbered(tree, event.node)
            changed = _shown(tree, event.node)
        case Weighed():
            changed = _weighed(tree, event)
        case Noted() | Tagged():
            changed = replace(tree, note=event.text) if isinstance(event, Noted) else replace(tree, tags=event.tags)
        case Decided():
            changed = _decided(tree, event)
        case Reopened():
            changed = replace(tree, verdict=None)
    return changed


def check_open(tree: Tree) -> None:
    """Raise `ConflictError` where the answer is decided."""
    if tree.verdict is not None:
        raise ConflictError(wrong("session", "an open one", f"one decided as {tree.verdict}", "Reopen it first."))


def apply(tree: Tree, event: Event) -> Tree:
    """The state after one more event.

    Raises:
        RecordError: the event speaks of a node, position or anchor that is not there.
        ConflictError: it does not fit the moment: before the start, after the decision, behind the end.
    """
    if not tree.nodes and not isinstance(event, Started):
        raise ConflictError(wrong("session", "one that has begun", "an empty one", "Open the item again."))
    if not isinstance(event, Reopened):
        check_open(tree)
    elif tree.verdict is None:
        raise ConflictError(wrong("session", "a decided one", "an open one", "There is nothing to take back."))
    steps = tree.steps if event.step is None else tree.steps | {event.step}
    return replace(_changed(tree, event), version=tree.version + 1, steps=steps)


def fold(events: Iterable[Event]) -> Tree:
    """The state after all events. Raises what `apply` raises."""
    tree = Tree()
    for event in events:
        tree = apply(tree, event)
    return tree
