"""A session at work: its tree, the continuation that streams into it, and what the model found likely where."""

import re
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from anchorlwf.annotation.events import Continued
from anchorlwf.annotation.protocol import Bounds, continued
from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.backends.local import Decoder, Stream
from anchorlwf.annotator.store.store import SessionRow
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import AnchorLwfError, ModelError, wrong
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["Continuation", "Live", "Memory", "Pauses", "Prepared", "bounds_of"]

_NEAR = 40
"""Characters at the end of which a sentence is seen to end."""
_REMEMBERED = 32
"""Answers of a session whose alternatives are kept in memory: some 30 KB each."""
_PREPARED = 500_000
"""Tokens decoded ahead whose alternatives are kept until somebody begins with them: 40 MB of ten each."""
_SENTENCE = re.compile(r"(?<!\d)[.!?…。！？][\"'”’»)\]]*\s*$|\n[ \t]*$")  # noqa: RUF001 - other scripts' marks, meant


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

    def holds(self, item: int) -> bool:
        """Whether there are any for this item."""
        with self._lock:
            return item in self._kept

    def take(self, item: int, ids: Sequence[int]) -> dict[int, Memory]:
        """The memory of a session's first answer, by its node; none where these are not the ids decoded ahead."""
        with self._lock:
            kept_ids, memory = self._kept.pop(item, ((), None))
            self._tokens -= len(kept_ids)
        return {0: memory} if memory is not None and kept_ids == tuple(ids) else {}


class Pauses:
    """Tells when a continuation has become so long that the person should look at it before it goes on.

    Args:
        table: the tokens' texts.
        after: pause at the first end of a sentence behind so many tokens; behind twice as many, anywhere.
    """

    def __init__(self, table: TokenTable, after: int) -> None:
        self._table, self._after = table, after
        self._count, self._text = 0, ""

    def behind(self, token_id: int) -> bool:
        """One more token has come; is it time?"""
        self._count += 1
        self._text = (self._text + self._table.token(token_id).text)[-_NEAR:]
        if self._count < self._after:
            return False
        return self._count >= 2 * self._after or _SENTENCE.search(self._text) is not None


class Continuation:
    """Tokens that arrive at a node; any number of listeners follow, on any thread.

    Args:
        node: where they go.
        start: how many tokens stand there already.
        stream: gives them.
        memory: learns their alternatives.
        pauses: when it stops by itself; None: at the end of the answer.
    """

    def __init__(self, node: int, start: int, stream: Stream, memory: Memory, pauses: Pauses | None = None) -> None:
        self.node, self.start, self._pauses = node, start, pauses
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
                if not self._add(step) or (self._pauses is not None and self._pauses.behind(step.token_id)):
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
    bounds: Bounds
    tree: Tree = field(default_factory=Tree)
    lock: threading.RLock = field(default_factory=threading.RLock)
    continuation: Continuation | None = None
    pause: int | None = None
    """Continuations pause behind so many tokens, see `Pauses`; None: never."""
    step: str | None = None
    """The client's name for the step under way; the event that it makes will bear it."""
    memories: "OrderedDict[int, Memory]" = field(default_factory=OrderedDict)
    reading: tuple[int, Stream] | None = None
    """The node whose answer is being read, so that whatever is asked about it is answered at once."""

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

    def remember(self, node: int, start: int, width: int) -> Memory:
        """A place for the alternatives of a node's continuation."""
        self.memories[node] = Memory(start, width)
        # What stands before a correction is known from the answers above it, which must not be the first to go.
        used: int | None = node
        while used is not None:
            if used in self.memories:
                self.memories.move_to_end(used)
            used = self.tree.nodes[used].parent
        while len(self.memories) > _REMEMBERED:
            self.memories.popitem(last=False)
        return self.memories[node]

    def recall(self, node: int, position: int) -> list[tuple[int, float]]:
        """The alternatives at a position of a node's answer, if they are still known."""
        while True:
            if node in self.memories and (found := self.memories[node].at(position)):
                return found
            # What stood where a correction begins, and before, was decided by the answer above.
            above = self.tree.nodes[node].parent
            if above is None or position > self.tree.nodes[node].position:
                return []
            node = above

    def knows(self, node: int) -> bool:
        """The alternatives of a node's answer are known from its first token to its last."""
        last = len(self.tree.nodes[node].completion_ids) - 1
        return bool(self.recall(node, 0) and self.recall(node, last))

    def arrived(self, continuation: Continuation, at: datetime) -> Continued:
        """The event that stores what a continuation brought."""
        standing = self.tree.nodes[continuation.node].completion_ids
        return continued(self.bounds, continuation.node, standing, *continuation.take(), at)


def bounds_of(decoder: Decoder, prompt_ids: Sequence[int], limit: int) -> Bounds:
    """What the answers to a prompt may consist of, `limit` tokens or fewer. Raises `PromptError`."""
    return Bounds(decoder.room(prompt_ids, limit), decoder.vocabulary, decoder.stop_ids)
