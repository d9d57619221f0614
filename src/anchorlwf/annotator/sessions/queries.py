"""Questions about an answer that change nothing: what stands where, what else could, which ids a text means."""

from anchorlwf.annotation.protocol import check_position
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.live import Live
from anchorlwf.errors import RecordError, wrong

__all__ = ["known", "options", "standing", "wanted"]


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


def wanted(
    desk: Desk, live: Live, node: int, position: int, token_ids: list[int] | None, text: str | None, *, space: bool
) -> list[int]:
    """The ids of a correction given as ids or as text.

    Args:
        desk, live: the session.
        node, position: what is corrected.
        token_ids, text: one of the two.
        space: before a text, the white space of the token it replaces.

    Raises:
        RecordError: both, none, text of no whole characters, or no such token.
    """
    if (token_ids is None) == (text is None):
        raise RecordError(wrong("correction", "`token_ids` or `text`", "both or none", "Give one of them."))
    if token_ids is not None or text is None:
        return token_ids or []
    table = desk.decoder.table
    stands = table.token(standing(live, node, position)).text if space else ""
    return table.encode(stands[: len(stands) - len(stands.lstrip())] + text)


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
