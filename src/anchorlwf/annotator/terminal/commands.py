"""Lines typed at the terminal annotator's prompt: what they mean, and where they come from."""

import contextlib
import json
import re
import shlex
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from anchorlwf.errors import RecordError, wrong

__all__ = ["HELP", "Act", "Command", "Go", "Look", "Note", "Put", "Tag", "Weigh", "parse", "read_line"]

HELP = """\
  N            what else could stand at token N, with probabilities
  N text       put text there (with the white space of the token it replaces)
  N "text"     put exactly this text, JSON quoting: "\\n", " two spaces"
  N #2         put alternative 2 there
  ... $        any of these, and the answer ends behind it
  N $          the answer ends behind token N
  ... @0.8     any of these with a confidence below 1
  N @0.8       another confidence for the anchor at N

  a accept     x reject     s skip: somebody else may do it
  k keep: right as the model said it (an untouched answer that is accepted)
  u undo       r redo       h history      g N  go to answer N of the history
  b back: take the last decision back
  n TEXT note  t TAG TAG .. tags           n, t show them, n "", t "" clear them
  Ctrl-C stops an answer that is coming in, c continues it, or one that was cut
  Enter shows the whole answer again
  q quit: everything is kept, the same command goes on"""

_ACTS = {
    "a": "accept",
    "k": "keep",
    "x": "reject",
    "s": "skip",
    "u": "undo",
    "r": "redo",
    "h": "history",
    "c": "continue",
    "b": "back",
    "q": "quit",
    "?": "help",
    "": "show",
}
_WITH_REST = {"g": "go", "n": "note", "t": "tags"}

# An @ or a $ within quotes, or within a word, is text.
_LINE = re.compile(
    r'(?P<position>\d{1,9})(?:\s+(?P<text>"(?:[^"\\]|\\.)*"|.*?))??'
    r"(?P<end>\s+\$)?(?:\s+@(?P<confidence>\S+))?\s*$",
    re.DOTALL,
)


@dataclass(frozen=True)
class Act:
    """A word of its own: accept, keep, reject, skip, undo, redo, history, continue, back, quit, help or show."""

    name: str


@dataclass(frozen=True)
class Look:
    """Show what else could stand at a position."""

    position: int


@dataclass(frozen=True)
class Put:
    """Correct the token at a position: by text, or by an alternative's number (from 1), or only by its end."""

    position: int
    text: str | None = None
    exact: bool = False
    """No white space is put before the text."""
    option: int | None = None
    end: bool = False
    """The answer ends behind it."""
    confidence: float | None = None
    """None: the configured one."""


@dataclass(frozen=True)
class Weigh:
    """Give the anchor at a position another confidence."""

    position: int
    confidence: float


@dataclass(frozen=True)
class Go:
    """Put another answer of the history on the screen."""

    node: int


@dataclass(frozen=True)
class Note:
    """Replace the note; None: show it."""

    text: str | None


@dataclass(frozen=True)
class Tag:
    """Replace the tags; None: show them."""

    tags: tuple[str, ...] | None


Command = Act | Look | Put | Weigh | Go | Note | Tag


def _whole(text: str) -> str:
    """The text, unless it holds half a character (bytes that are no UTF-8, a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RecordError(wrong("text", "whole characters", error.reason, "Type it as UTF-8.")) from error
    return text


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return _whole(str(json.loads(text)))
    except json.JSONDecodeError as error:
        raise RecordError(wrong("quoted text", "one JSON string", error.msg, 'Close it with ".')) from error


def _confidence(text: str) -> float:
    try:
        confidence = float(text)
    except ValueError:
        confidence = float("nan")
    if not 0 < confidence <= 1:
        raise RecordError(wrong("confidence", "more than 0, at most 1", text, "Write @0.8, say."))
    return confidence


def _with_rest(name: str, rest: str) -> Command:
    if name == "note":
        return Note(_unquoted(rest) if rest else None)
    if name == "tags":
        try:
            return Tag(tuple(tag for tag in shlex.split(rest) if tag) if rest else None)
        except ValueError as error:
            raise RecordError(wrong("tags", "words, or words in quotes", error, "Close the quotes.")) from error
    if not re.fullmatch(r"[0-9]{1,9}", rest):
        raise RecordError(wrong("answer", "its number", rest or "none", "Type h to see them."))
    return Go(int(rest))


def parse(line: str) -> Command:
    """What a typed line means; whether the answer has such a token is not known here.

    Args:
        line: as typed; see `HELP`. Commands may be written out.

    Raises:
        RecordError: no command, or none that could be.
    """
    word = _whole(line).strip()
    for short, name in _ACTS.items():
        if word.lower() in (short, name):
            return Act(name)
    first, _, rest = word.partition(" ")
    for short, name in _WITH_REST.items():
        if first.lower() in (short, name):
            return _with_rest(name, rest.strip())
    match = _LINE.match(word)
    if match is None:
        shown = word if len(word) <= 40 else word[:40] + "..."
        raise RecordError(wrong("line", "a token number or a command", repr(shown), "Type ? for help."))
    position, text = int(match["position"]), match["text"]
    confidence = None if match["confidence"] is None else _confidence(match["confidence"])
    end = match["end"] is not None
    if not text and end:
        return Put(position, end=True, confidence=confidence)
    if not text:
        return Look(position) if confidence is None else Weigh(position, confidence)
    if text.startswith("#"):
        if not re.fullmatch(r"#[0-9]{1,9}", text):
            fix = 'A text that begins with # needs quotes: "#".'
            raise RecordError(wrong("alternative", "# and its number", text[:40], fix))
        return Put(position, option=int(text[1:]), end=end, confidence=confidence)
    return Put(position, _unquoted(text), exact=text.startswith('"'), end=end, confidence=confidence)


def read_line(console: Console, prompt: str) -> str:
    """A line typed by a person, or the next one of a pipe. Raises `EOFError`."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # absent from some builds of Python
            import readline  # noqa: F401 - arrow keys and earlier lines, by being imported
        return input(prompt)
    console.print(Text(prompt), end="", soft_wrap=True)  # not among the results
    return input()
