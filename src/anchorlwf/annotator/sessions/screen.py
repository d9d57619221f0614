"""What a screen shows of a session, page and terminal alike: the prompt, the tokens, the history, the changes."""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.data.record import Prompt
from anchorlwf.model.vocabulary import TokenTable

__all__ = [
    "Changes",
    "HistoryEntry",
    "RenderedPart",
    "ShownPrompt",
    "ShownTokens",
    "changes",
    "history",
    "shown_prompt",
    "shown_tokens",
]

_EXCERPT = 200
"""Characters of a correction that the history shows."""


@dataclass(frozen=True)
class RenderedPart:
    """A part of the prompt as the model reads it."""

    text: str
    special: bool
    """These are special tokens, not text that only looks like them."""


@dataclass(frozen=True)
class ShownPrompt:
    """What is asked, and how the model sees it."""

    asked: Prompt
    rendered: tuple[RenderedPart, ...]
    date: str | None
    """The date that the chat template prints, if it prints one."""
    remarks: tuple[str, ...]
    """Where the model does not read the prompt as it was written."""


@dataclass(frozen=True)
class ShownTokens:
    """Tokens of an answer and the model's probability of each; None: unknown."""

    ids: list[int]
    probabilities: list[float | None]

    def since(self, position: int) -> "ShownTokens":
        """Those from a position on."""
        return ShownTokens(self.ids[position:], self.probabilities[position:])


@dataclass(frozen=True)
class HistoryEntry:
    """One answer of a session's history. All but the first come from a correction of their parent."""

    number: int
    parent: int | None
    position: int | None
    """Where the parent was corrected."""
    length: int
    """In tokens."""
    ended: bool
    truncated: bool
    anchors: int
    """How many hold for this answer."""
    at: datetime
    source: str
    given: str
    """The text that the correction put there."""
    replaced: str
    """The text that stood there."""


@dataclass(frozen=True)
class Changes:
    """The model's first answer against the present one."""

    original: ShownTokens
    corrected: ShownTokens
    parts: Sequence[tuple[str, int, int, int, int]]
    """`difflib`'s opcodes: what happened (equal, replace, insert, delete), from and to in either list of tokens."""


def shown_prompt(table: TokenTable, live: Live) -> ShownPrompt:
    """The prompt of a session."""
    asked, codec = live.row.prompt, table.codec
    rendered = (
        RenderedPart(codec.decode(list(ids), special=True), special)
        for special, ids in itertools.groupby(live.prompt_ids, lambda token: table.token(token).special)
    )
    date = codec.date if codec.prints_date else None
    return ShownPrompt(asked, tuple(rendered), date, tuple(codec.remarks(asked.messages, asked.tools)))


def shown_tokens(live: Live) -> ShownTokens:
    """All tokens of the present answer, those still streaming in among them."""
    # A continuation may grow between the two questions.
    ids, probabilities = live.ids, live.probabilities
    count = min(len(ids), len(probabilities))
    return ShownTokens(ids[:count], probabilities[:count])


def history(table: TokenTable, tree: Tree) -> list[HistoryEntry]:
    """All answers of a session, in the order in which they were made."""
    return [_entry(table, tree, number) for number in range(len(tree.nodes))]


def _entry(table: TokenTable, tree: Tree, number: int) -> HistoryEntry:
    node = tree.nodes[number]
    given, replaced = "", ""
    if node.parent is not None:
        corrected = slice(node.position, node.position + node.given)
        given, replaced = (
            table.codec.decode(list(ids[corrected]), special=True)[:_EXCERPT]
            for ids in (node.completion_ids, tree.nodes[node.parent].completion_ids)
        )
    return HistoryEntry(
        number=number,
        parent=node.parent,
        position=None if node.parent is None else node.position,
        length=len(node.completion_ids),
        ended=node.ended,
        truncated=node.truncated,
        anchors=len(tree.anchors(number)),
        at=node.at,
        source=node.source,
        given=given,
        replaced=replaced,
    )


def changes(live: Live) -> Changes:
    """The first answer against the present one, token by token."""
    with live.lock:
        first, drafted_from = live.tree.nodes[0], live.tree.drafted_from
        corrected = shown_tokens(live)
    original = (
        ShownTokens(list(drafted_from), [None] * len(drafted_from))
        if drafted_from
        else ShownTokens(list(first.completion_ids), list(first.probabilities))
    )
    matcher = difflib.SequenceMatcher(None, original.ids, corrected.ids, autojunk=False)
    return Changes(original, corrected, matcher.get_opcodes())
