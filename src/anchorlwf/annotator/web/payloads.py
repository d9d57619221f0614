"""What a screen is told: the JSON of docs/annotator_api.md, from sessions and tokens."""

import difflib
import itertools
from collections.abc import Sequence
from typing import Any

from anchorlwf.annotation.tree import Tree
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["diff", "head", "prompt", "session", "step", "tokens"]


def tokens(table: TokenTable, ids: Sequence[int], probabilities: Sequence[float | None]) -> list[dict[str, Any]]:
    """A list of `Token`s."""
    return [table.token(token).json(p) for token, p in zip(ids, probabilities, strict=True)]


def _text(table: TokenTable, ids: Sequence[int]) -> str:
    return table.codec.decode(list(ids), special=True)[:200]


def _node(table: TokenTable, tree: Tree, number: int) -> dict[str, Any]:
    node = tree.nodes[number]
    given, replaced = "", ""
    if node.parent is not None:
        part = slice(node.position, node.position + node.given)
        given = _text(table, node.completion_ids[part])
        replaced = _text(table, tree.nodes[node.parent].completion_ids[part])
    return {
        "id": number,
        "parent": node.parent,
        "position": None if node.parent is None else node.position,
        "length": len(node.completion_ids),
        "ended": node.ended,
        "truncated": node.truncated,
        "anchors": len(tree.anchors(number)),
        "at": node.at.isoformat(),
        "source": node.source,
        "given": given,
        "replaced": replaced,
    }


def head(table: TokenTable, live: Live) -> dict[str, Any]:
    """A `Head`: everything but the tokens."""
    with live.lock:
        tree, row = live.tree, live.row
        anchors = [
            {
                **anchor.model_dump(mode="json"),
                "rejected": None if anchor.rejected_id is None else table.token(anchor.rejected_id).json(),
            }
            for anchor in tree.anchors()
        ]
        return {
            "id": row.id,
            "item": row.item,
            "annotator": row.annotator,
            "status": tree.verdict or "open",
            "version": tree.version,
            "node": tree.current,
            "nodes": [_node(table, tree, number) for number in range(len(tree.nodes))],
            "length": len(live.ids),
            "ended": tree.node.ended,
            "truncated": tree.node.truncated,
            "streaming": live.continuation is not None,
            "anchors": anchors,
            "ties": list(tree.ties()),
            "can": {"undo": tree.can_undo, "redo": tree.can_redo},
            "note": tree.note,
            "tags": list(tree.tags),
            "seconds": row.seconds,
            "lease_until": row.lease_until,
        }


def session(table: TokenTable, live: Live) -> dict[str, Any]:
    """A `Session`: the whole screen."""
    with live.lock:
        return {**head(table, live), "prompt": prompt(table, live), "tokens": tokens(table, *_shown(live))}


def prompt(table: TokenTable, live: Live) -> dict[str, Any]:
    """What is asked, and how the model sees it: ids as text, special tokens apart from what only looks like them."""
    asked, codec = live.row.prompt, table.codec
    rendered = [
        {"text": codec.decode(list(ids), special=True), "special": special}
        for special, ids in itertools.groupby(live.prompt_ids, lambda token: table.token(token).special)
    ]
    return {
        **asked.model_dump(mode="json", exclude={"answer"}),
        "rendered": rendered,
        "date": codec.date if codec.prints_date else None,
        "remarks": codec.remarks(asked.messages, asked.tools),
    }


def _shown(live: Live) -> tuple[list[int], list[float | None]]:
    # A continuation may grow between the two questions.
    ids, probabilities = live.ids, live.probabilities
    count = min(len(ids), len(probabilities))
    return ids[:count], probabilities[:count]


def step(table: TokenTable, live: Live, before: Tree) -> dict[str, Any]:
    """A `Step`: what changed on a screen that showed `before`.

    Tokens that streamed since are sent again: a screen may not have had them yet.
    """
    with live.lock:
        ids, probabilities = _shown(live)
        old = before.node.completion_ids
        kept = next((i for i, (a, b) in enumerate(zip(old, ids, strict=False)) if a != b), min(len(old), len(ids)))
        # The parent's probabilities stand up to the correction, so equal tokens have equal tints.
        return {
            "before": before.version,
            "head": head(table, live),
            "kept": kept,
            "tokens": tokens(table, ids[kept:], probabilities[kept:]),
        }


def diff(table: TokenTable, live: Live) -> dict[str, Any]:
    """The model's first answer against the present one, by tokens."""
    with live.lock:
        first = live.tree.nodes[0]
        old = list(live.tree.drafted_from or first.completion_ids)
        odds: list[float | None] = [None] * len(old) if live.tree.drafted_from else list(first.probabilities)
        ids, probabilities = _shown(live)
    matcher = difflib.SequenceMatcher(None, old, ids, autojunk=False)
    parts = [{"op": op, "original": [a, b], "corrected": [c, d]} for op, a, b, c, d in matcher.get_opcodes()]
    return {"original": tokens(table, old, odds), "corrected": tokens(table, ids, probabilities), "parts": parts}
