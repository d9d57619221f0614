"""Questions about an answer that change nothing: what stands where, what else could, which ids a text means."""

import re

from anchorlwf.annotation.protocol import check_position
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.errors import RecordError, wrong
from anchorlwf.model.vocabulary import TokenTable

__all__ = ["before", "known", "options", "standing", "wanted"]

_NO_SPACE = re.compile(r"[\s.,;:!?…%)\]}”»。，、；：！？）】」』》〉]|['’](?:s|t|re|ve|ll|d|m)\b", re.IGNORECASE)  # noqa: RUF001
"""What begins so is written without a space before it, or brings white space of its own."""


def _answer(live: Live, node: int, position: int) -> list[int]:
    with live.lock:
        if node >= len(live.tree.nodes):
            raise RecordError(wrong("node", f"less than {len(live.tree.nodes)}", node, "Fetch the session again."))
        ids = live.ids if node == live.tree.current else list(live.tree.nodes[node].completion_ids)
    check_position(position, len(ids))
    return ids


def standing(live: Live, node: int, position: int) -> int:
    """The token at a position of a node's answer. Raises `RecordError` where there is none."""
    return _answer(live, node, position)[position]


def before(live: Live, node: int, position: int) -> list[int]:
    """What stands before a position of a node's answer, the prompt included. Raises as `standing`."""
    return [*live.prompt_ids, *_answer(live, node, position)[:position]]


def wanted(
    desk: Desk,
    live: Live,
    node: int,
    position: int,
    token_ids: list[int] | None,
    text: str | None,
    *,
    space: bool,
    end: bool = False,
) -> list[int]:
    """The ids of a correction given as ids or as text.

    Args:
        desk, live: the session.
        node, position: what is corrected.
        token_ids, text: one of the two.
        space: before a text, the white space of the token it replaces, where it belongs there: not before punctuation,
            special tokens and white space, and not at the beginning of a line.
        end: the end of turn behind all this, unless it is there already.

    Raises:
        RecordError: both, none, text of no whole characters, or no such token.
    """
    if (token_ids is None) == (text is None):
        raise RecordError(wrong("correction", "`token_ids` or `text`", "both or none", "Give one of them."))
    table, stop_ids = desk.decoder.table, desk.decoder.stop_ids
    ids = token_ids or []
    if text is not None:
        behind = before(live, node, position)
        white = _white(table, behind, standing(live, node, position), text) if space else ""
        ids = table.encode_behind(behind, white + text) if text else []
    if end and not stop_ids.intersection(ids[-1:]):
        ids = [*ids, table.codec.end_id(stop_ids)]
    return ids


def _white(table: TokenTable, before_ids: list[int], stands: int, text: str) -> str:
    """The white space of the token that stands there, where it belongs before the text, else nothing."""
    stood = table.token(stands).text
    white = stood[: len(stood) - len(stood.lstrip())]
    begins_line = any(table.token(token).text.endswith("\n") for token in before_ids[-1:])
    special = any(table.token(token).special for token in table.encode(text)[:1])
    return "" if begins_line or special or _NO_SPACE.match(text) else white


def known(
    desk: Desk, live: Live, node: int, position: int, top: int, starts: str = ""
) -> list[tuple[int, float]] | None:
    """`options` where they came with the answer; None where the model would have to be asked."""
    _answer(live, node, position)
    return _recalled(desk, live, node, position, top, starts)


def _recalled(
    desk: Desk, live: Live, node: int, position: int, top: int, starts: str
) -> list[tuple[int, float]] | None:
    with live.lock:
        recalled = live.recall(node, position)
    if not recalled or starts or top > desk.config.alternatives:
        return None
    return sorted(recalled, key=lambda pair: -pair[1])[:top]


def options(desk: Desk, live: Live, node: int, position: int, top: int, starts: str = "") -> list[tuple[int, float]]:
    """What else could stand at a position of a node's answer: (id, probability), best first.

    Raises:
        RecordError: no such node or position.
        ServerError: the remote model did not answer.
    """
    ids = _answer(live, node, position)
    if (recalled := _recalled(desk, live, node, position, top, starts)) is not None:
        return recalled
    return desk.decoder.options(live.key, live.prompt_ids, ids[:position], top, starts)
