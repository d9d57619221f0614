"""A session at work: its tree, the continuation that streams into it, and what the model found likely where."""

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from anchorlwf.annotation.events import Continued
from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.backends.local import Decoder, Stream
from anchorlwf.annotator.store.store import SessionRow
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import AnchorLwfError, ConflictError, ModelError, NothingToDoError, RecordError, wrong

__all__ = ["Continuation", "Live", "Memory", "Prepared", "check_correction"]

_REMEMBERED = 8
"""Answers of a session whose alternatives are kept in memory."""
_PREPARED = 500_000
"""Tokens decoded ahead whose alternatives are kept until somebody begins with them: 40 MB of ten each."""


class Memory:
    """The alternatives that came with each streamed token; some hundred bytes per token.

    Args:
        start: position of the first.
        width: alternatives per token.
    """

    def __init__(self, start: int, width: int) -> None:
        self.start, self._width = start, width
        self._ids, self._probabilities = array("i"), array("f")

    def add(self, pairs: Sequence[tuple[int, float]]) -> None:
        """Those of the next token."""
        missing = self._width - len(pairs)
        self._ids.extend([token for token, _ in pairs[: self._width]] + [-1] * missing)
        self._probabilities.extend([p for _, p in pairs[: self._width]] + [0.0] * missing)

    def at(self, position: int) -> list[tuple[int, float]]:
        """Those of one position; none where it is not remembered."""
        first = (position - self.start) * self._width
        if first < 0 or first >= len(self._ids):
            return []
        part = slice(first, first + self._width)
        pairs = zip(self._ids[part], self._probabilities[part], strict=True)
        return [(token, p) for token, p in pairs if token >= 0]


class Prepared:
    """The alternatives of answers decoded ahead, each kept for the session that will begin with it.

    Those that do not fit are not kept: the items they belong to come later in the queue.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[int, ...], Memory]] = {}
        self._tokens, self._lock = 0, threading.Lock()

    def keep(self, item: int, steps: Sequence[Step], width: int) -> None:
        """Those of an item's answer, `width` per token."""
        memory = Memory(0, width)
        for step in steps:
            memory.add(step.alternatives)
        with self._lock:
            if item not in self._kept and self._tokens + len(steps) <= _PREPARED:
                self._kept[item] = tuple(step.token_id for step in steps), memory
                self._tokens += len(steps)

    def take(self, item: int, ids: Sequence[int]) -> dict[int, Memory]:
        """The memory of a session's first answer, by its node; none where these are not the ids decoded ahead."""
        with self._lock:
            found = self._kept.pop(item, None)
            self._tokens -= len(found[0]) if found else 0
        return {0: found[1]} if found and found[0] == tuple(ids) else {}


class Continuation:
    """Tokens that arrive at a node; any number of listeners follow, on any thread.

    Args:
        node: where they go.
        start: how many tokens stand there already.
        stream: gives them.
        memory: learns their alternatives.
    """

    def __init__(self, node: int, start: int, stream: Stream, memory: Memory) -> None:
        self.node, self.start = node, start
        self._stream, self._memory, self._lock = stream, memory, threading.Lock()
        self._ids: list[int] = []
        self._probabilities: list[float] = []
        self._listeners: set[Callable[[], None]] = set()
        self._closed = False
        self.over = False
        self.error: AnchorLwfError | None = None

    def run(self, finish: Callable[["Continuation"], None]) -> None:
        """Receive everything (on a thread of its own), then `finish`, which stores it."""
        try:
            for step in self._stream:
                if not self._add(step):
                    break
        except AnchorLwfError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001 - out of memory, a driver: the person must hear of it
            fix = "Try again; if it comes back, start anew with a smaller --memory (GiB)."
            self.error = ModelError(wrong("continuation", "tokens from the model", repr(error)[:200], fix))
        try:
            finish(self)
        except AnchorLwfError as error:
            self.error = error
        finally:
            self.over = True
            self._tell()

    def _add(self, step: Step) -> bool:
        with self._lock:
            if self._closed:
                return False
            self._ids.append(step.token_id)
            self._probabilities.append(step.probability)
            self._memory.add(step.alternatives)
        self._tell()
        return True

    def so_far(self) -> tuple[list[int], list[float]]:
        """The ids and their probabilities until now."""
        return self.since(0)

    def since(self, index: int) -> tuple[list[int], list[float]]:
        """Like `so_far`, without the first `index` tokens."""
        with self._lock:
            return self._ids[index:], self._probabilities[index:]

    def take(self) -> tuple[list[int], list[float]]:
        """End it here: no token comes any more, and these are all."""
        with self._lock:
            self._closed = True
        self._stream.close()
        return self.so_far()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call it whenever something changed."""
        with self._lock:
            self._listeners.add(listener)

    def leave(self, listener: Callable[[], None]) -> None:
        """Call it no more."""
        with self._lock:
            self._listeners.discard(listener)

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


@dataclass
class Live:
    """One session in memory. Change it only with `lock` held."""

    row: SessionRow
    prompt_ids: list[int]
    limit: int
    """Most completion tokens."""
    tree: Tree = field(default_factory=Tree)
    lock: threading.RLock = field(default_factory=threading.RLock)
    continuation: Continuation | None = None
    step: str | None = None
    """The client's name for the step under way; the event that it makes will bear it."""
    memories: "OrderedDict[int, Memory]" = field(default_factory=OrderedDict)

    @property
    def key(self) -> tuple[str, int]:
        """Names its cache."""
        return "session", self.row.id

    @property
    def ids(self) -> list[int]:
        """All tokens on the screen: those stored, and those that have arrived since."""
        stored = list(self.tree.node.completion_ids)
        return stored if self.continuation is None else stored + self.continuation.so_far()[0]

    @property
    def probabilities(self) -> list[float | None]:
        """Of `ids`."""
        stored = list(self.tree.node.probabilities)
        return stored if self.continuation is None else [*stored, *self.continuation.so_far()[1]]

    @property
    def draft(self) -> Sequence[int]:
        """What stood behind the end of the present answer in those above it: after a correction most of it returns."""
        node, found = self.tree.node, list[int]()
        for above in reversed(self.tree.path(self.tree.current)[:-1]):
            # An answer that was corrected while it streamed ends early; the one above it may go on.
            found += self.tree.nodes[above].completion_ids[len(found) :]
        # However many tokens were given, they took the place of one.
        return found[len(node.completion_ids) - max(0, node.given - 1) :]

    def ends(self, ids: Sequence[int], stop_ids: frozenset[int]) -> tuple[bool, bool]:
        """Whether these tokens are a whole answer, and whether only the limit made them so."""
        stopped = bool(ids) and ids[-1] in stop_ids
        return stopped or len(ids) >= self.limit, not stopped and len(ids) >= self.limit

    def remember(self, node: int, start: int, width: int) -> Memory:
        """A place for the alternatives of a node's continuation."""
        self.memories[node] = Memory(start, width)
        self.memories.move_to_end(node)
        while len(self.memories) > _REMEMBERED:
            self.memories.popitem(last=False)
        return self.memories[node]

    def recall(self, node: int, position: int) -> list[tuple[int, float]]:
        """The alternatives at a position of a node's answer, if they are still known."""
        step = node
        # What stood where a correction begins, and before, was decided by the answer above.
        while position <= self.tree.nodes[step].position and (above := self.tree.nodes[step].parent) is not None:
            step = above
        return self.memories[step].at(position) if step in self.memories else []

    def arrived(self, continuation: Continuation, stop_ids: frozenset[int], at: object) -> Continued:
        """The event that stores what a continuation brought."""
        ids, probabilities = continuation.take()
        ended, truncated = self.ends([*self.tree.nodes[continuation.node].completion_ids, *ids], stop_ids)
        return Continued.model_validate(
            {
                "at": at,
                "node": continuation.node,
                "token_ids": ids,
                "ended": ended,
                "probabilities": probabilities,
                "truncated": truncated,
            }
        )


def check_correction(live: Live, decoder: Decoder, node: int, position: int, token_ids: list[int]) -> None:
    """Raise what `Desk.correct` raises for a correction that cannot be, before anything is stopped or stored."""
    if live.tree.verdict is not None:
        raise ConflictError(wrong("session", "an open one", f"decided: {live.tree.verdict}", "Reopen it first."))
    if node != live.tree.current:
        raise ConflictError(wrong("node", live.tree.current, node, "Fetch the session again."))
    ids = live.ids
    if not 0 <= position < len(ids):
        raise RecordError(wrong("position", f"0 to {len(ids) - 1}", position, "Point at a token of the answer."))
    if not token_ids:
        raise RecordError(wrong("correction", "at least one token", "none", "Give the text that should stand."))
    decoder.table.check(token_ids)
    if position + len(token_ids) > live.limit:
        got = position + len(token_ids)
        fix = "Raise --max-new-tokens or shorten it."
        raise RecordError(wrong("answer", f"at most {live.limit} tokens", got, fix))
    if set(token_ids[:-1]) & decoder.stop_ids:
        raise RecordError(wrong("correction", "the end-of-turn token last", "tokens after it", "Drop those."))
    if ids[position : position + len(token_ids)] == token_ids:
        fix = "Choose another token, or accept the answer."
        raise NothingToDoError(wrong("correction", "tokens that differ from the answer", "the same", fix))
