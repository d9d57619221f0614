"""The terminal annotator: a person at a TTY, or anything that writes lines, over the same desk and store as the page.

Tokens are shown numbered; a line names one and says what should stand there. Every step is in the store before the
prompt comes back, so the program may end at any moment; the page goes on where the terminal was, and it where the page
was.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from anchorlwf.annotation.events import Verdict
from anchorlwf.annotator.sessions import queries, screen
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.live import Continuation, Live
from anchorlwf.annotator.store.overview import progress
from anchorlwf.annotator.terminal.commands import HELP, Act, Command, Go, Look, Note, Put, Tag, Weigh, parse, read_line
from anchorlwf.annotator.terminal.render import Painter, draw_history, draw_options, draw_prompt
from anchorlwf.data.record import Record
from anchorlwf.errors import AnchorLwfError, ConflictError, NothingToDoError, RecordError, wrong
from anchorlwf.readable import readable

__all__ = ["Terminal"]

_PROMPT = "token or command (? for help): "
_RENEW = 60.0
"""Seconds between two renewals of the lease while somebody thinks."""
_WIDTH = 12
"""Columns of a token with its number."""
_BEFORE = 40
"""Tokens shown again before what changed."""
_VERDICTS: dict[str, Verdict] = {"accept": "accept", "keep": "keep", "reject": "reject", "skip": "skip"}


class Terminal:
    """One person's way through a project, line by line.

    Args:
        desk: the project's sessions.
        name: whose they are.
        console: where answers are shown (results go elsewhere, so standard error).
        read: gives a line for a prompt; `EOFError` means quit.
    """

    def __init__(
        self, desk: Desk, name: str, console: Console, read: Callable[[Console, str], str] = read_line
    ) -> None:
        self._desk, self._name, self._console, self._read = desk, name, console, read
        self._live: Live | None = None
        self._records: dict[int, Record] = {}
        self._decided: list[int] = []

    def run(self) -> list[Record]:
        """Work until nothing is left or the person quits.

        Returns:
            The records that this run finished, in order.

        Raises:
            StorageError: the store is gone; what was shown as done is in it.
            KeyboardInterrupt: Ctrl-C at the prompt, likewise.
        """
        with self._seat_kept():
            self._next()
            while self._live is not None or self._decided:
                try:
                    line = self._read(self._console, _PROMPT)
                    if self._ends(command := parse(line)):
                        break
                    self._do(command)
                except EOFError:
                    self._console.print()
                    break
                except ConflictError as error:
                    self._say(error)
                    self._again()
                except (AnchorLwfError, UnicodeDecodeError) as error:
                    self._say(error)
        self._tell()
        return list(self._records.values())

    def _ends(self, command: Command) -> bool:
        """Asked to quit, or asked for more where there is none."""
        if self._live is None and command == Act("show"):
            self._open(self._desk.next(self._name))
            return self._live is None
        return command == Act("quit")

    @contextlib.contextmanager
    def _seat_kept(self) -> Iterator[None]:
        """Renew the lease in the background: thinking long is no reason to lose the item."""
        closed = threading.Event()

        def renew() -> None:
            while not closed.wait(_RENEW):
                live = self._live
                if live is None:
                    continue
                with live.lock, contextlib.suppress(AnchorLwfError):  # the next step says what is wrong
                    if live.tree.verdict is None:
                        self._desk.store.renew(live.row.id)

        threading.Thread(target=renew, name="anchorlwf-seat", daemon=True).start()
        try:
            yield
        finally:
            closed.set()

    # Which item is on the screen.

    def _next(self) -> None:
        self._open(self._desk.next(self._name))
        if self._live is None and self._decided:
            self._console.print("Nothing is left. b takes the last decision back, Enter ends.")

    def _open(self, live: Live | None) -> None:
        self._live = live
        if live is not None:
            counts = progress(self._desk.store, self._desk.project)
            self._console.print(Text(f"\n[{counts.done} of {counts.items} done]", "dim"))
            self._ask(live)
            self._annotations(live)
            self._show(live, 0)

    def _ask(self, live: Live) -> None:
        draw_prompt(self._console, live.row.prompt)
        shown = screen.shown_prompt(self._desk.decoder.table, live, self._desk.config.max_new_tokens)
        for remark in shown.remarks:
            self._console.print(Text(readable(remark), "yellow"))
        if shown.date:
            self._console.print(Text(f"the chat template prints a date: {shown.date}, that of this project", "dim"))

    def _again(self) -> None:
        """After a conflict: the item as it stands in the store, or another where it is somebody else's or done."""
        live = self._live
        with contextlib.suppress(ConflictError):
            reopened = None if live is None else self._desk.open(live.row.item, self._name)
            if reopened is not None and reopened.tree.verdict is None:
                self._open(reopened)
                return
        self._next()

    def _back(self) -> None:
        if not self._decided:
            raise NothingToDoError(wrong("back", "a decision of this run", "none", "Use the page for older ones."))
        live = self._desk.open(self._decided[-1], self._name)
        if live.tree.verdict is not None:
            self._desk.reopen(live)
        self._records.pop(self._decided.pop(), None)
        self._open(live)

    # What a line does.

    def _do(self, command: Command) -> None:
        if command == Act("help"):
            self._console.print(HELP, markup=False)
        elif command == Act("back"):
            self._back()
        elif self._live is None:
            self._console.print("Nothing is left. b takes the last decision back, Enter ends.")
        elif isinstance(command, Act):
            self._act(self._live, command.name)
        else:
            self._step(self._live, command)

    def _act(self, live: Live, name: str) -> None:
        if name in _VERDICTS:
            self._decide(live, _VERDICTS[name])
        elif name == "history":
            draw_history(self._console, screen.history(self._desk.decoder.table, live.tree), live.tree.current)
        elif name == "show":
            self._ask(live)
            self._show(live, 0)
        elif name == "continue":
            if live.tree.node.truncated:
                self._desk.extend(live)
            if self._desk.resume(live, self._screenful) is None:
                raise NothingToDoError(wrong("continue", "an answer without an end", "a whole one", "Correct it."))
            self._show(live, len(live.tree.node.completion_ids))
        else:
            self._changed(live, self._desk.undo if name == "undo" else self._desk.redo)

    def _step(self, live: Live, command: Command) -> None:
        desk = self._desk
        match command:
            case Look(position):
                self._options(live, position)
            case Put():
                self._changed(live, lambda live: self._put(live, command))
            case Weigh(position, confidence):
                desk.weigh(live, position, confidence)
                self._console.print(f"The anchor at {position} has confidence {confidence:g}.")
            case Go(node):
                last = len(live.tree.nodes) - 1
                if node > last:
                    raise RecordError(wrong("answer", f"0 to {last}", node, "Type h to see them."))
                self._changed(live, lambda live: desk.move(live, node))
            case Note(text):
                if text is not None:
                    desk.note(live, text)
                self._annotations(live, always=True)
            case Tag(tags):
                if tags is not None:
                    desk.tag(live, list(tags))
                self._annotations(live, always=True)

    def _put(self, live: Live, put: Put) -> None:
        node, position = live.tree.current, put.position
        ids = None
        if put.option is not None:
            offered = queries.options(self._desk, live, node, position, self._desk.config.alternatives)
            if not 1 <= put.option <= len(offered):
                fix = "Type the token's number to see them."
                raise RecordError(wrong("alternative", f"#1 to #{len(offered)}", f"#{put.option}", fix))
            ids = [offered[put.option - 1][0]]
        elif put.text is None:
            ids = [queries.standing(live, node, position)]
        wanted = queries.wanted(self._desk, live, node, position, ids, put.text, space=not put.exact, end=put.end)
        self._desk.correct(live, node, position, wanted, confidence=put.confidence, pause=self._screenful)

    @property
    def _screenful(self) -> int | None:
        """About as many tokens as the screen holds; None where nobody looks at one."""
        size = self._console.size
        return size.width * size.height // _WIDTH if self._console.is_terminal else None

    def _decide(self, live: Live, verdict: Verdict) -> None:
        tree = live.tree
        if verdict == "accept" and tree.node.parent is None and not tree.anchors() and not tree.ties():
            verdict = "keep"  # as the page does: right as it is
        self._desk.decide(live, verdict)
        self._live = None
        self._decided.append(live.row.item)
        if verdict != "skip":
            self._records[live.row.item] = self._desk.ledger.record(live.row, live.prompt_ids, live.tree)
        self._next()

    # What is shown.

    def _say(self, error: Exception) -> None:
        self._console.print(Text(readable(str(error)), "red"))

    def _annotations(self, live: Live, *, always: bool = False) -> None:
        if always or live.tree.note:
            self._console.print(Text(f"note: {readable(live.tree.note) or 'none'}"))
        if always or live.tree.tags:
            self._console.print(Text(f"tags: {', '.join(map(readable, live.tree.tags)) or 'none'}"))

    def _options(self, live: Live, position: int) -> None:
        node, desk = live.tree.current, self._desk
        stands = queries.standing(live, node, position)
        options = queries.options(desk, live, node, position, desk.config.alternatives)
        before = queries.before(live, node, position)
        draw_options(self._console, desk.decoder.table, before, position, options, stands)

    def _changed(self, live: Live, do: Callable[[Live], None]) -> None:
        before = live.ids
        do(live)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, live.ids, strict=False))
        self._show(live, sum(1 for _ in same))

    def _show(self, live: Live, changed: int) -> None:
        """The answer from a little before what changed, and what streams in behind it until it ends or Ctrl-C."""
        with live.lock:
            running, ids, odds = live.continuation, live.tree.node.completion_ids, live.tree.node.probabilities
            anchors = {anchor.position for anchor in live.tree.anchors()}
        rare = screen.rarest(odds)
        painter, first = Painter(self._console, self._desk.decoder.table, rare), max(0, changed - _BEFORE)
        if first:
            painter.skip()
        for index in range(first, len(ids)):
            painter.token(index, ids[index], odds[index], anchor=index in anchors)
        if running is not None:
            self._follow(live, running, painter)
        painter.rest()
        if running is not None and running.error is not None:
            self._say(running.error)
            if isinstance(running.error, ConflictError):
                self._again()
                return
        if live.tree.node.truncated:
            self._console.print("The answer was cut at the token limit; c lets it go on.", style="yellow")
        elif not live.tree.node.ended:
            self._console.print("The answer was stopped; c lets it go on.", style="yellow")

    def _follow(self, live: Live, running: Continuation, painter: Painter) -> None:
        arrived, shown = threading.Event(), 0
        running.listen(arrived.set)
        try:
            while True:
                try:
                    arrived.clear()
                    over = running.over  # asked first: what came before the end is in the tokens then
                    for token, probability in zip(*running.since(shown), strict=True):
                        painter.token(running.start + shown, token, probability, anchor=False)
                        shown += 1
                    if over:
                        return
                    arrived.wait()
                except KeyboardInterrupt:
                    self._desk.stop(live)
        finally:
            running.leave(arrived.set)

    def _tell(self) -> None:
        counts = progress(self._desk.store, self._desk.project)
        if counts.done < counts.items:
            self._console.print(Text(f"{counts.done} of {counts.items} done; the same command goes on.", "dim"))
