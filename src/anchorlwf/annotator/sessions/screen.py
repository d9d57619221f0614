"""What a screen shows of a session, page and terminal alike: the prompt, the tokens, the history, the changes."""

import difflib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.data.record import Prompt
from anchorlwf.model.codec import Notice
from anchorlwf.model.vocabulary import TokenTable

__all__ = [
    "Changes",
    "HistoryEntry",
    "RenderedPart",
    "ShownPrompt",
    "ShownTokens",
    "changes",
    "history",
    "rarest",
    "shown_prompt",
    "shown_tokens",
]

_SHARE, _CERTAIN = 0.1, 0.999
"""Which tokens of an answer are shown as doubtful: so many of the rarest, unless the model was certain of them."""
_ROOM = 0.25
"""Where the context has no more room for the answer than this share of what is allowed, it is remarked on."""
_EXCERPT = 200
"""Characters of a correction that the history shows."""


@dataclass(frozen=True)
class RenderedPart:
    """A part of the prompt as the model reads it."""

    text: str
    special: bool
    """These are special tokens, not text that only looks like them."""
    notice: Notice | None = None
    """See `Codec.noticeable`."""


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
    given_tokens: int
    """How many tokens the correction put there."""
    given: str
    """Their text."""
    replaced: str
    """The text that stood there."""


@dataclass(frozen=True)
class Changes:
    """The model's first answer against the present one."""

    original: ShownTokens
    corrected: ShownTokens
    parts: Sequence[tuple[str, int, int, int, int]]
    """`difflib`'s opcodes: what happened (equal, replace, insert, delete), from and to in either list of tokens."""


def shown_prompt(table: TokenTable, live: Live, wanted: int) -> ShownPrompt:
    """The prompt of a session, whose answers may have `wanted` tokens if the context has room."""
    asked, codec = live.row.prompt, table.codec
    rendered = [
        RenderedPart(codec.decode(list(ids), special=True), special)
        for special, ids in itertools.groupby(live.prompt_ids, lambda token: table.token(token).special)
    ]
    noticed = _noticed(rendered, codec.noticeable(asked.messages, asked.tools))
    date = codec.date if codec.prints_date else None
    remarks = codec.remarks(asked.messages, asked.tools)
    if live.bounds.tokens < _ROOM * wanted:
        remarks.append(
            f"the model's context has {live.bounds.tokens} tokens left for the answer, where {wanted} are allowed"
        )
    return ShownPrompt(asked, tuple(noticed), date, tuple(remarks))


def _noticed(parts: Sequence[RenderedPart], notices: Sequence[tuple[int, int, Notice]]) -> Iterator[RenderedPart]:
    """The parts, cut where something noticeable begins or ends."""
    cuts = sorted({place for start, stop, _ in notices for place in (start, stop)})
    begin = 0
    for part in parts:
        end = begin + len(part.text)
        inside = [cut for cut in cuts if begin < cut < end]
        for first, last in itertools.pairwise([begin, *inside, end]):
            notice = next((what for start, stop, what in notices if start <= first < stop), None)
            yield RenderedPart(part.text[first - begin : last - begin], part.special, notice)
        begin = end


def shown_tokens(live: Live) -> ShownTokens:
    """All tokens of the present answer, those still streaming in among them."""
    # A continuation may grow between the two questions.
    ids, probabilities = live.ids, live.probabilities
    count = min(len(ids), len(probabilities))
    return ShownTokens(ids[:count], probabilities[:count])


def rarest(probabilities: Sequence[float | None]) -> tuple[float, float]:
    """Up to which probability a token is among the rarest thirtieth of an answer, and among its rarest tenth.

    One model is less sure of everything than another: doubtful is what it was least sure of in this answer.
    """
    known = sorted(p for p in probabilities if p is not None and p < _CERTAIN)
    count = math.ceil(_SHARE * len(probabilities))
    bounds = (known[: math.ceil(count / 3)], known[:count])
    return bounds[0][-1] if known else 0.0, bounds[1][-1] if known else 0.0


def history(table: TokenTable, tree: Tree) -> list[HistoryEntry]:
    """All answers of a session, in the order in which they were made."""
    return [_entry(table, tree, number) for number in range(len(tree.nodes))]


def _entry(table: TokenTable, tree: Tree, number: int) -> HistoryEntry:
    node = tree.nodes[number]
    given, replaced = "", ""
    if node.parent is not None:
        given, replaced = (
            table.span(ids, node.position, node.position + node.given)[:_EXCERPT]
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
        given_tokens=node.given,
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
