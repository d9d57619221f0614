"""The desk that people work at: sessions over a store and a decoder. Every step is stored before it returns.

The rules are those of `annotation.protocol`, as for programs; the state is that of `annotation.tree`.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from anchorlwf.annotation.events import (
    Continued,
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
from anchorlwf.annotation.protocol import check_correction, corrected
from anchorlwf.annotation.tree import apply, check_open, fold
from anchorlwf.annotator.backends.local import Decoder, Stream
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.sessions.live import Continuation, Live, Memory, Pauses, Prepared, bounds_of
from anchorlwf.annotator.store.store import Order, SessionRow, Store
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import problem_of
from anchorlwf.errors import (
    ConflictError,
    MissingError,
    NothingToDoError,
    PromptError,
    RecordError,
    StorageError,
    wrong,
)

__all__ = ["Desk"]

_log = logging.getLogger(__name__)
_TRIES = 100
"""Items that cannot be begun which one request passes over."""
_LARGEST = 2**31
"""No tokenizer has such an id, and few libraries take one."""
_LIVE = 128
"""Sessions kept in memory; the others are read from the store again when somebody comes back to them."""


class Desk:
    """All sessions of one project. Safe to use from many threads; several desks may share a store.

    Args:
        store: where every step goes.
        decoder: proposes, continues, judges.
        project: number of the project in the store.
        config: token limit, alternatives, confidence.
        ledger: turns decisions into records.
    """

    def __init__(self, store: Store, decoder: Decoder, project: int, config: AnnotateConfig, ledger: Ledger) -> None:
        self.store, self.decoder, self.project, self.config, self.ledger = store, decoder, project, config, ledger
        self.prepared = Prepared()
        self.aside: dict[int, str] = {}
        """Items that cannot be begun, and why."""
        self.on_begun: Callable[[], None] = lambda: None
        """Called when somebody begins with an item, so that the next one is made ready."""
        self._live: OrderedDict[int, Live] = OrderedDict()
        self._lock = threading.Lock()

    def next(self, annotator: str, order: Order = "queue") -> Live | None:
        """The session on what this person should do next, begun if need be; None where nothing is left.

        An item that cannot be begun, however it came into the queue, is set aside until the next start.

        Raises:
            RecordError: very many in a row cannot be begun; asked again, it goes on behind them.
        """
        for _ in range(_TRIES):
            row = self.store.next(self.project, annotator, order, without=list(self.aside))
            if row is None:
                return None
            try:
                return self._begun(row)
            except (PromptError, RecordError) as error:
                self.aside[row.item] = str(error)
                self.store.leave(row.id)
                _log.warning("Item %d is set aside: %s", row.item, error)
        fix = "Ask again, or mend them: the queue shows what is wrong with each."
        raise RecordError(wrong("queue", "an item that can be begun", f"{_TRIES} in a row that cannot", fix))

    def open(self, item: int, annotator: str) -> Live:
        """This person's session on one item. Raises `MissingError`, or `ConflictError` where others hold it."""
        return self._begun(self.store.open(self.project, item, annotator))

    def session(self, session: int, annotator: str) -> Live:
        """A session of this person's.

        Raises:
            MissingError: there is none of that number, or it is somebody else's.
        """
        with self._lock:
            live = self._live.get(session)
            if live is not None:
                self._live.move_to_end(session)
        row = live.row if live is not None else self.store.session(session)
        if row.annotator != annotator or row.project != self.project:
            raise MissingError(wrong("session", "one of yours", session, "Take an item from the queue."))
        if live is None:
            live = self._loaded(row)
            self._read(live)
        return live

    def _loaded(self, row: SessionRow) -> Live:
        prompt_ids = self.decoder.table.codec.encode_prompt(row.prompt.messages, row.prompt.tools)
        tree = fold(self.store.events(row.id))
        bounds = bounds_of(self.decoder, prompt_ids, tree.limit or self.config.max_new_tokens)
        for node in tree.nodes:
            _check_ids(node.completion_ids)
        live = Live(row, prompt_ids, bounds, tree)
        with self._lock:
            live = self._live.setdefault(row.id, live)
            self._live.move_to_end(row.id)
            idle = [key for key, other in self._live.items() if other.continuation is None and key != row.id]
            for key in idle[: max(0, len(self._live) - _LIVE)]:
                del self._live[key]
        return live

    def _begun(self, row: SessionRow) -> Live:
        with self._lock:
            live = self._live.get(row.id)
        if live is not None and live.tree.version < row.version:
            # Another page or terminal went on with it meanwhile.
            self._forget(live)
            live = None
        live = live or self._loaded(row)
        with live.lock:
            live.row = row
            if not live.tree.nodes:
                started = live.bounds.begun(_started(row))
                self._commit(live, [started])
                live.memories.update(self.prepared.take(row.item, started.completion_ids))
                self.on_begun()
            if live.tree.verdict is None:
                self.resume(live)
            self._read(live)
        return live

    def step(self, live: Live, name: str | None, do: Callable[[Live], None]) -> None:
        """One step of a client's; nothing where a step of that name is stored already.

        Args:
            live: the session.
            name: the client's own, new for every step; None: it will not ask twice.
            do: one of the methods below.
        """
        with live.lock:
            if name is not None and name in live.tree.steps:
                return
            live.step = name
            try:
                do(live)
            finally:
                live.step = None

    def _commit(self, live: Live, happened: list[Event]) -> None:
        # Tokens that came by themselves are stored on the way to a step, and are not yet what was asked for.
        if live.step is not None and not isinstance(happened[-1], Continued):
            happened = [*happened[:-1], happened[-1].model_copy(update={"step": live.step})]
        tree = live.tree
        for event in happened:
            tree = apply(tree, event)
        last = happened[-1]
        record = None
        if isinstance(last, Decided) and last.verdict != "skip":
            record = self.ledger.record(live.row, live.prompt_ids, tree)
        try:
            live.row = self.store.append(live.row.id, live.tree.version, happened, record)
        except ConflictError:
            # Another server or process is ahead of this memory: read it again next time.
            self._forget(live)
            raise
        live.tree = tree
        if record is not None:
            self.ledger.publish(record)
        elif isinstance(last, Reopened) and tree.state.completion_ids:
            self.ledger.publish(self.ledger.record(live.row, live.prompt_ids, tree))

    def _forget(self, live: Live) -> None:
        with self._lock:
            self._live.pop(live.row.id, None)
        if live.continuation is not None:
            live.continuation.take()

    def _settle(self, live: Live) -> None:
        """Stop what is read and what streams, and store what came of it."""
        if live.reading is not None:
            live.reading[1].close()
            live.reading = None
        running = live.continuation
        if running is not None:
            live.continuation = None
            arrived = live.arrived(running, _now())
            if arrived.token_ids:
                self._commit(live, [arrived])

    def _finish(self, live: Live, done: Continuation) -> None:
        with live.lock:
            if live.continuation is not done:
                return  # whoever ended it has stored it
            if done.error is None or done.so_far()[0]:
                try:
                    self._settle(live)
                except StorageError:
                    live.continuation = None
                    raise
            live.continuation = None

    def resume(self, live: Live, pause: int | None = None) -> Continuation | None:
        """Let the present answer go on; None where it is whole.

        `pause`: this and every later continuation pauses at the first end of a sentence behind so many tokens.
        """
        with live.lock:
            live.pause = pause or live.pause
            if live.continuation is not None or live.tree.node.ended or live.tree.verdict is not None:
                return live.continuation
            tree, limit = live.tree, live.bounds.tokens
            node, ids = tree.current, tree.node.completion_ids
            stream = self.decoder.stream(live.key, live.prompt_ids, ids, limit, expected_ids=tree.expected_ids)
            memory = live.remember(node, len(ids), self.config.alternatives)
            pauses = None if live.pause is None else Pauses(self.decoder.table, live.pause)
            live.continuation = Continuation(node, len(ids), stream, memory, pauses)
            run = threading.Thread(
                target=live.continuation.run,
                args=(lambda done: self._finish(live, done),),
                name=f"anchorlwf-session-{live.row.id}",
                daemon=True,
            )
            run.start()
            return live.continuation

    def _read(self, live: Live) -> None:
        """Have a whole answer that is on the screen read while the person does, where that has not been done."""
        with live.lock:
            tree, node = live.tree, live.tree.current
            if not tree.nodes or not tree.node.ended or not tree.node.completion_ids or tree.verdict is not None:
                return
            if live.continuation is not None or (live.reading is not None and live.reading[0] == node):
                return
            known = live.knows(node)
            stream = self.decoder.read(live.key, live.prompt_ids, tree.node.completion_ids, known=known)
            if not known:
                live.reading = node, stream
                memory = live.remember(node, 0, self.config.alternatives)
                name = f"anchorlwf-reading-{live.row.id}"
                threading.Thread(target=_remember, args=(live, stream, memory), name=name, daemon=True).start()

    def stop(self, live: Live) -> None:
        """Let the answer end where it is, for now."""
        with live.lock:
            self._settle(live)

    def correct(
        self,
        live: Live,
        node: int,
        position: int,
        token_ids: list[int],
        *,
        confidence: float | None = None,
        stream: bool = True,
        pause: int | None = None,
    ) -> None:
        """Put tokens at a position of the answer on the screen; what followed is decoded anew.

        Args:
            live: the session.
            node: the answer that was on the screen when the person decided.
            position: the first wrong token.
            token_ids: what should stand there.
            confidence: of the anchors, in (0, 1]; None: the configured one.
            stream: go on decoding at once.
            pause: as `resume`.

        Raises:
            RecordError, NothingToDoError: as `check_correction`.
            ConflictError: another answer is on the screen by now, it is decided, or the item is somebody else's.
        """
        with live.lock:
            # A mistake must not stop what streams.
            check_open(live.tree)
            if node != live.tree.current:
                raise ConflictError(wrong("node", live.tree.current, node, "Fetch the session again."))
            check_correction(live.bounds, live.ids, position, token_ids)
            self._settle(live)
            prefix = live.tree.node.completion_ids[:position]
            choices = self.decoder.judge(live.key, live.prompt_ids, prefix, token_ids)
            event = corrected(
                live.bounds,
                node,
                prefix,
                token_ids,
                choices,
                confidence=self.config.confidence if confidence is None else confidence,
                source=f"human:{live.row.annotator}",
                at=_now(),
            )
            self._commit(live, [event])
            if stream:
                self.resume(live, pause)

    def extend(self, live: Live) -> None:
        """Let an answer that the limit cut go on: for as many tokens as it allowed at first, or up to the longest one.

        Raises:
            NothingToDoError: it is not cut.
            RecordError: the model's context is full.
        """
        with live.lock:
            check_open(live.tree)
            node = live.tree.node
            if not node.truncated:
                raise NothingToDoError(wrong("answer", "one cut at the limit", "another", "Correct it."))
            length = len(node.completion_ids)
            bounds = bounds_of(self.decoder, live.prompt_ids, length + self.config.max_new_tokens)
            if bounds.tokens <= length:
                fix = "Let the answer end earlier."
                raise RecordError(wrong("answer", f"at most {length} tokens (context)", "no end there", fix))
            self._commit(live, [Extended(at=_now(), node=live.tree.current, limit=bounds.tokens)])
            # A longer branch may have raised the limit further.
            live.bounds = bounds_of(self.decoder, live.prompt_ids, live.tree.limit or bounds.tokens)
            self.resume(live)

    def move(self, live: Live, to: int) -> None:
        """Put another answer of the tree on the screen. Raises `RecordError` where there is no such node."""
        with live.lock:
            moved = Moved(at=_now(), node=to)
            apply(live.tree, moved)  # a mistake must not stop what streams
            self._settle(live)
            self._commit(live, [moved])
            # Where the alternatives are known, reading would only be in the way of a correction near the one before.
            if not live.knows(live.tree.current):
                self._read(live)

    def undo(self, live: Live) -> None:
        """Back to the answer before the correction; after a decision, take the decision back."""
        with live.lock:
            if live.tree.verdict is not None:
                self.reopen(live)
                return
            above = live.tree.node.parent
            if above is None:
                raise NothingToDoError(wrong("undo", "a correction before", "the first answer", "Nothing to undo."))
            self.move(live, above)

    def redo(self, live: Live) -> None:
        """Forward again to where `undo` came from."""
        with live.lock:
            below = live.tree.latest[live.tree.current]
            if below is None:
                raise NothingToDoError(wrong("redo", "a correction after", "none", "Nothing to redo."))
            self.move(live, below)

    def weigh(self, live: Live, position: int, confidence: float) -> None:
        """Change an anchor's confidence. Raises `RecordError` where there is no anchor."""
        with live.lock:
            self._commit(live, [Weighed(at=_now(), position=position, confidence=confidence)])

    def note(self, live: Live, text: str) -> None:
        """Replace the note."""
        with live.lock:
            self._commit(live, [Noted(at=_now(), text=text)])

    def tag(self, live: Live, tags: list[str]) -> None:
        """Replace the tags."""
        with live.lock:
            self._commit(live, [Tagged(at=_now(), tags=tuple(dict.fromkeys(tags)))])

    def decide(self, live: Live, verdict: Verdict) -> None:
        """Accept, keep, reject or skip. Raises `RecordError` where the answer is not whole, or not the model's own."""
        with live.lock:
            decided = Decided(at=_now(), verdict=verdict)
            if verdict in ("accept", "keep") or live.continuation is None:
                apply(live.tree, decided)  # a mistake must not stop what streams
            self._settle(live)
            self._commit(live, [decided])
            self.decoder.rest(live.key)

    def reopen(self, live: Live) -> None:
        """Take the decision back; its record becomes a draft. Raises `ConflictError` where the item is taken."""
        with live.lock:
            self._commit(live, [Reopened(at=_now())])
            self._read(live)

    def close(self) -> None:
        """Store what streams and stop."""
        with self._lock:
            sessions = list(self._live.values())
        for live in sessions:
            with live.lock:
                self._settle(live)


def _remember(live: Live, stream: Stream, memory: Memory) -> None:
    """Keep what a reading gives; where it fails, whoever asks next asks the model and is told."""
    try:
        for step in stream:
            with live.lock:
                memory.add(step.alternatives)
    except Exception as error:  # noqa: BLE001 - nobody waits for it
        _log.info("Session %d was not read to its end: %s", live.row.id, error)
    with live.lock:
        if live.reading is not None and live.reading[1] is stream:
            live.reading = None


def _check_ids(ids: Sequence[int]) -> None:
    stray = next((token for token in ids if token >= _LARGEST), None)
    if stray is not None:
        raise RecordError(wrong("token id", "one that a tokenizer may have", stray, "Import the record again, mended."))


def _started(row: SessionRow) -> Started:
    """The first event of a session. Raises `RecordError` where what was stored for it is no answer."""
    try:
        started = Started.model_validate({**(row.proposal or {}), "at": _now()})
    except ValidationError as error:
        fix = "Import the record again, mended."
        raise RecordError(wrong(f"item {row.item}", "an answer to begin with", problem_of(error), fix)) from error
    _check_ids(started.completion_ids)
    return started


def _now() -> datetime:
    return datetime.now(UTC)
