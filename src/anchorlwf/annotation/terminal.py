"""The `terminal` annotator: a person at a TTY, or anything that writes lines.

Tokens are shown numbered; a line names one and says what should stand there.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anchorlwf.annotation.annotators import Accept, Correct, Quit, Reject, Undo, Verdict, View
from anchorlwf.decode import Step
from anchorlwf.errors import AnchorLwfError, RecordError, wrong

__all__ = ["HELP", "TerminalAnnotator", "parse_line", "visible"]

HELP = """\
  N            alternatives of token N with their probabilities
  N text       put text there (white space before it as in the token it replaces)
  N "text"     put exactly this text, JSON quoting: "\\n", " two spaces"
  N #2         put alternative 2 there
  ... @0.8     any of these with a confidence below 1
  u undo   a accept   x reject   q quit (resume later)   ? this help"""

# An @ within quotes, or within a word, is text.
_LINE = re.compile(
    r'(?P<position>\d{1,9})(?:\s+(?P<text>"(?:[^"\\]|\\.)*"|.*?))??(?:\s+@(?P<confidence>\S+))?\s*$'
)


@dataclass(frozen=True)
class Ask:
    """Show something (`position`: the alternatives there; None: the help) and ask again."""

    position: int | None


def visible(piece: str) -> str:
    """A token's text with its white space and control characters made visible."""
    shown = piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in shown) or "∅"


def _replacement(text: str, view: View, steps: list[Step], position: int) -> list[int]:
    if text.startswith("#"):
        offered = steps[position].alternatives
        number = int(text[1:]) if re.fullmatch(r"#\d{1,9}", text) else 0
        if not 1 <= number <= len(offered):
            fix = "Type the token's number to see them."
            raise RecordError(wrong("alternative", f"#1 to #{len(offered)}", text, fix))
        return [offered[number - 1][0]]
    if text.startswith('"'):
        try:
            return _encode(str(json.loads(text)), view)
        except json.JSONDecodeError as error:
            raise RecordError(wrong("quoted text", "one JSON string", error.msg, 'Close it with ".')) from error
    [stands] = view.codec.pieces([view.completion_ids[position]])
    lead = stands[: len(stands) - len(stands.lstrip())]
    return _encode(lead + text, view)


def _encode(text: str, view: View) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(wrong("text", "whole characters", error.reason, "Type it as UTF-8.")) from error
    return view.codec.encode(text)


def parse_line(line: str, view: View, confidence: float) -> Verdict | Ask:
    """What a typed line means.

    Args:
        line: as typed; see `HELP`.
        view: the answer it speaks of.
        confidence: of anchors, where the line gives none.

    Raises:
        RecordError: no such token, alternative, command or confidence.
    """
    word = line.strip()
    simple: dict[str, Verdict | Ask] = {
        "a": Accept(), "x": Reject(), "u": Undo(), "q": Quit(), "?": Ask(None), "": Ask(None),
    }
    if word in simple:
        return simple[word]
    match = _LINE.match(word)
    if match is None:
        raise RecordError(wrong("line", "a token number or a command", repr(word), "Type ? for help."))
    position = int(match["position"])
    if position >= len(view.completion_ids):
        last = len(view.completion_ids) - 1
        raise RecordError(wrong("token", f"0 to {last}", position, "Numbers stand before the tokens."))
    if not match["text"]:
        return Ask(position)
    if match["confidence"] is not None:
        try:
            confidence = float(match["confidence"])
        except ValueError:
            confidence = float("nan")
        if not 0 < confidence <= 1:
            raise RecordError(wrong("confidence", "more than 0, at most 1", match["confidence"], "Write @0.8, say."))
    return Correct(position, _replacement(match["text"], view, view.steps(), position), confidence)


class TerminalAnnotator:
    """Shows answers on a console, reads lines, never fails on a bad one.

    Args:
        source: goes into the anchors, such as `human:ada`.
        console: where answers are shown (results go elsewhere, so standard error).
        read: gives one line per call; `EOFError` means quit.
        confidence: of new anchors.
    """

    def __init__(
        self, source: str, console: Console, read: Callable[[], str] = input, confidence: float = 1.0
    ) -> None:
        self.source, self._console, self._read, self._confidence = source, console, read, confidence

    def review(self, view: View) -> Verdict:
        """Ask until a line is a verdict."""
        self._show(view)
        while True:
            self._console.print("[bold]token, a, x, u, q or ?[/bold] ", end="")
            try:
                found = parse_line(self._read(), view, self._confidence)
            except EOFError:
                return Quit()
            except (AnchorLwfError, UnicodeDecodeError) as error:
                self._say(error)
                continue
            if not isinstance(found, Ask):
                return found
            if found.position is None:
                self._console.print(HELP, markup=False)
            else:
                self._show_alternatives(view, found.position)

    def complain(self, error: AnchorLwfError) -> None:
        """Say why the last correction was not taken."""
        self._say(error)

    def _say(self, error: Exception) -> None:
        self._console.print(Text(str(error), style="red"))

    def _show(self, view: View) -> None:
        # `Text` everywhere: what people and models write is no markup, and no escaping of it is complete.
        for message in view.prompt.messages:
            self._console.print(Text.assemble((f"{message['role']}: ", "dim"), str(message.get("content", ""))))
        anchored = {anchor.position for anchor in view.anchors}
        shown = Text()
        for index, piece in enumerate(view.codec.pieces(view.completion_ids)):
            shown.append("  " if index else "").append(f"{index} ", style="dim")
            shown.append(visible(piece), style="bold green" if index in anchored else "")
        self._console.print(shown)
        if view.truncated:
            self._console.print("[yellow]The answer was cut at the token limit.[/yellow]")

    def _show_alternatives(self, view: View, position: int) -> None:
        table = Table("", "token", "probability", title=f"token {position}")
        for number, (token, probability) in enumerate(view.steps()[position].alternatives, 1):
            [piece] = view.codec.pieces([token])
            table.add_row(f"#{number}", Text(visible(piece)), f"{probability:.4f}")
        self._console.print(table)
