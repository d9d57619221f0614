"""Prompts, answers and histories on a console: plain lines, in colour where the console has it.

Everything that people and models write is put into `Text`: it is no markup, and nothing in it commands the terminal.
"""

import json
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anchorlwf.annotator.sessions.screen import HistoryEntry
from anchorlwf.data.record import Prompt
from anchorlwf.model.vocabulary import TokenTable, TokenText
from anchorlwf.readable import marked, readable

__all__ = ["Painter", "draw_history", "draw_options", "draw_prompt", "visible"]

_MARKS = {" ": "·", "\n": "⏎", "\t": "⇥"}


def visible(token: TokenText) -> str:
    """A token as printable characters: white space and control characters as marks, bytes in hex."""
    if token.hex is not None:
        return f"‹{bytes.fromhex(token.hex).hex(' ').upper()}›"
    return "".join(_MARKS.get(char) or marked(char) for char in token.text) or f"‹{token.id}›"


class Painter:
    """Writes numbered tokens one behind the other, as they come. A number and its token stay on one line.

    Args:
        console: where.
        table: the tokens' texts.
        rare: probabilities up to which tokens are red, and up to which they are yellow.
    """

    def __init__(self, console: Console, table: TokenTable, rare: tuple[float, float] = (0.0, 0.0)) -> None:
        self._console, self._table = console, table
        self._rare = list(zip(rare, ("red", "yellow"), strict=True))
        self._column, self._bytes = 0, b""

    def token(self, index: int, token_id: int, probability: float | None, *, anchor: bool) -> None:
        """One more: anchors have a star behind their number."""
        token = self._table.token(token_id)
        shown = visible(token) + self._character(token)
        style = next((colour for bound, colour in self._rare if probability is not None and probability <= bound), "")
        style = "bold green" if anchor else "cyan" if token.special else style
        cell = Text.assemble((f"{index}*" if anchor else f"{index}", "dim"), " ", (shown, style))
        width = cell_len(cell.plain)
        if self._column and self._column + 2 + width > self._console.width:
            self.rest()
        self._write(Text("  " if self._column else "") + cell)
        self._column += width + (2 if self._column else 0)
        if "\n" in token.text:
            self.rest()

    def skip(self) -> None:
        """Say that tokens before these are not shown."""
        self._write(Text("...", "dim"))
        self._column = 3

    def rest(self) -> None:
        """End the line."""
        if self._column:
            self._console.print()
        self._column = 0

    def _character(self, token: TokenText) -> str:
        """What the bytes of several tokens say together, at the last of them."""
        self._bytes = b"" if token.hex is None else self._bytes + bytes.fromhex(token.hex)
        try:
            character = self._bytes.decode()
        except UnicodeDecodeError:
            return ""
        self._bytes = b""
        return f"={readable(character)}" if character else ""

    def _write(self, text: Text) -> None:
        self._console.print(text, end="", soft_wrap=True)


def draw_prompt(console: Console, prompt: Prompt) -> None:
    """What is asked, a message per paragraph."""
    for tool in prompt.tools or []:
        console.print(Text.assemble(("tool: ", "dim"), readable(json.dumps(tool, ensure_ascii=False))))
    for message in prompt.messages:
        content = message.get("content") or ""
        others = {key: value for key, value in message.items() if key not in ("role", "content")}
        said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        more = f" {json.dumps(others, ensure_ascii=False)}" if others else ""
        console.print(
            Text.assemble((f"{readable(str(message.get('role')))}: ", "bold"), readable(said), (readable(more), "dim"))
        )


def draw_options(
    console: Console,
    table: TokenTable,
    before_ids: Sequence[int],
    position: int,
    options: Sequence[tuple[int, float]],
    stands: int,
) -> None:
    """What else could stand at a position, behind `before_ids`, best first."""
    console.print(f"token {position}", style="dim")
    rows = Table(box=None, show_header=False)
    for number, (token, probability) in enumerate(options, 1):
        here = "stands there" if token == stands else ""
        becomes = table.becomes(before_ids, token)
        shown = visible(table.token(token)) + ("" if becomes is None else f"={readable(becomes)}")
        rows.add_row(f" #{number}", Text(shown), f"{probability:.4f}", here)
    console.print(rows)


def draw_history(console: Console, entries: Sequence[HistoryEntry], current: int) -> None:
    """All answers of a session; children stand below their parent, indented."""
    children: dict[int | None, list[HistoryEntry]] = {}
    for entry in entries:
        children.setdefault(entry.parent, []).append(entry)
    waiting = [(entry, 0) for entry in reversed(children.get(None, []))]
    while waiting:
        entry, depth = waiting.pop()
        what = (
            "the first answer"
            if entry.parent is None
            else f"at {entry.position}: {readable(repr(entry.replaced))} became {readable(repr(entry.given))}"
        )
        counts = f"{entry.length} tokens, {entry.anchors} anchors" + ("" if entry.ended else ", unfinished")
        here = "> " if entry.number == current else "  "
        console.print(Text.assemble(f"{'  ' * depth}{here}{entry.number}  {what}  ", (f"({counts})", "dim")))
        waiting += [(child, depth + 1) for child in reversed(children.get(entry.number, []))]
