"""The continuation as server-sent events: any number of listeners, resumed where a connection broke."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from anchorlwf.annotator.web.requests import Number, Pause, Position, Start, Who
from anchorlwf.annotator.web.responses import problem_of
from anchorlwf.errors import ConflictError, wrong

if TYPE_CHECKING:
    from anchorlwf.annotator.sessions.desk import Desk
    from anchorlwf.annotator.sessions.live import Continuation, Live

__all__ = ["ALIVE", "event", "stream_routes"]

ALIVE = 10.0
"""Seconds between two comments that keep a silent connection open."""


def event(name: str, data: Any, number: int | None = None) -> bytes:
    """A server-sent event; `number`: its id, by which a broken connection is resumed."""
    head = "" if number is None else f"id: {number}\n"
    return f"{head}event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode("ascii")


def stream_routes(desk: "Desk") -> APIRouter:
    """`GET /api/sessions/{id}/stream`."""
    routes = APIRouter(prefix="/api")

    @routes.get("/sessions/{session}/stream")
    async def stream(
        who: Who,
        session: Number,
        node: Position,
        start: Start = 0,
        pause: Pause = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Tokens as they come."""
        if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
            start = min(int(last_event_id[:10]), 2**31 - 1)
        live = await run_in_threadpool(desk.session, session, who)
        running = await run_in_threadpool(_continuation, desk, live, node, pause)
        return StreamingResponse(_events(desk, live, node, start, running), media_type="text/event-stream")

    return routes


def _continuation(desk: "Desk", live: "Live", node: int, pause: int | None) -> "Continuation | None":
    with live.lock:
        if node < len(live.tree.nodes) and live.tree.nodes[node].ended:
            return None
        if node != live.tree.current:
            raise ConflictError(wrong("node", live.tree.current, node, "Fetch the session again."))
        return desk.resume(live, pause)


async def _events(
    desk: "Desk", live: "Live", node: int, start: int, running: "Continuation | None"
) -> AsyncIterator[bytes]:
    from anchorlwf.annotator.sessions.screen import ShownTokens
    from anchorlwf.annotator.web import payloads

    table, loop, changed = desk.decoder.table, asyncio.get_running_loop(), asyncio.Event()

    def listener() -> None:
        loop.call_soon_threadsafe(changed.set)

    def tokens(first: int, shown: ShownTokens) -> bytes:
        return event("tokens", payloads.piece(table, node, first, shown), first + len(shown.ids))

    stands = live.tree.nodes[node]
    base = len(stands.completion_ids) if running is None else running.start
    if start < base:
        missing = slice(start, base)
        yield tokens(start, ShownTokens(list(stands.completion_ids[missing]), list(stands.probabilities[missing])))
    if running is not None:
        sent = max(start, base)
        running.listen(listener)
        try:
            while True:
                changed.clear()
                over = running.over  # asked first: what came before the end is in the tokens then
                ids, probabilities = running.since(sent - base)
                if ids:
                    yield tokens(sent, ShownTokens(ids, [*probabilities]))
                    sent += len(ids)
                if over:
                    break
                try:
                    await asyncio.wait_for(changed.wait(), ALIVE)
                except TimeoutError:
                    yield b": alive\n\n"
        finally:
            running.leave(listener)
        if running.error is not None:
            yield event("failed", problem_of(running.error))
            return
    yield event("done", await run_in_threadpool(payloads.done, table, node, live))
