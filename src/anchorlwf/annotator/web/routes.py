"""All routes but the stream: the project as a whole, one session looked at, and every step of the work."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query, Response

from anchorlwf.annotator.web.requests import (
    Choice,
    Comparison,
    Confidence,
    Correction,
    Draft,
    Import,
    Note,
    Number,
    Order,
    Position,
    Priority,
    Start,
    StepName,
    Tags,
    Target,
    Text,
    Top,
    Verdict,
    Who,
)
from anchorlwf.annotator.web.responses import Json
from anchorlwf.errors import RecordError, wrong

if TYPE_CHECKING:
    from anchorlwf.annotator.project import Exchange
    from anchorlwf.annotator.sessions.desk import Desk
    from anchorlwf.annotator.sessions.live import Live

__all__ = ["exchange_routes", "look_routes", "queue_routes", "step_routes"]

Limit = Annotated[int, Query(ge=1, le=200)]
Starts = Annotated[str, Query(max_length=200)]


def queue_routes(exchange: "Exchange") -> APIRouter:
    """Me, the queue, what is next."""
    from anchorlwf.annotator.sessions import queries
    from anchorlwf.annotator.store import overview, queue
    from anchorlwf.annotator.web import payloads

    routes, desk, store = APIRouter(prefix="/api"), exchange.desk, exchange.desk.store
    table = desk.decoder.table

    @routes.get("/me")
    def me(who: Who) -> Response:
        """Who I am, and what I work on."""
        return Json(payloads.me(who, exchange))

    @routes.get("/progress")
    def progress() -> Response:
        """Counts and working time."""
        return Json(payloads.progress(overview.progress(store, desk.project)))

    @routes.get("/queue")
    def waiting(who: Who, order: Order = "queue", offset: Start = 0, limit: Limit = 50) -> Response:
        """A part of the queue."""
        part = overview.waiting(store, desk.project, who, order, offset, limit, aside=desk.aside)
        return Json(payloads.queue(part))

    @routes.post("/next")
    def following(who: Who, body: Choice | None = None) -> Response:
        """Lease the next item."""
        live = desk.next(who, body.order if body else "queue")
        return Json({"id": None} if live is None else payloads.session(desk, live))

    @routes.post("/items/{item}/open")
    def opened(who: Who, item: Number) -> Response:
        """Lease one item."""
        return Json(payloads.session(desk, desk.open(item, who)))

    @routes.post("/items/{item}/priority")
    def prioritised(item: Number, body: Priority) -> Response:
        """Move an item in the queue."""
        queue.set_priority(store, desk.project, item, body.priority)
        return Json({"priority": body.priority})

    @routes.post("/tokenize")
    def tokenized(body: Text) -> Response:
        """Text as the tokens it becomes."""
        return Json({"tokens": payloads.tokens(table, table.encode(body.text))})

    @routes.post("/sessions/{session}/tokenize")
    def drafted(who: Who, session: Number, body: Draft) -> Response:
        """Text as the tokens that a correction would make of it."""
        live = desk.session(session, who)
        ids = queries.wanted(desk, live, body.node, body.position, None, body.text, space=body.space)
        return Json({"tokens": payloads.tokens(table, ids)})

    return routes


def exchange_routes(exchange: "Exchange") -> APIRouter:
    """Records out, work in, and how far people agree."""
    from anchorlwf.annotator.store import overview, queue
    from anchorlwf.annotator.web import payloads

    routes, desk = APIRouter(prefix="/api"), exchange.desk

    @routes.get("/agreement")
    def agreement() -> Response:
        """Between people who did the same items."""
        return Json(payloads.agreement(overview.agreement(desk.store, desk.project)))

    @routes.get("/export")
    def export() -> Response:
        """All finished records."""
        lines = "".join(f"{record.model_dump_json()}\n" for record in queue.export_records(desk.store, desk.project))
        name = {"content-disposition": 'attachment; filename="records.jsonl"'}
        return Response(lines.encode(), media_type="application/x-ndjson", headers=name)

    @routes.post("/import")
    def imported(body: Import) -> Response:
        """Prompts, records, or a lawftrack data set."""
        return Json(payloads.intake(exchange.take(body.format, body.content, body.span)))

    return routes


def look_routes(exchange: "Exchange") -> APIRouter:
    """What is there, and what else could be."""
    from anchorlwf.annotator.sessions import queries, screen
    from anchorlwf.annotator.web import payloads

    routes, desk = APIRouter(prefix="/api"), exchange.desk
    table = desk.decoder.table

    @routes.get("/sessions/{session}")
    def shown(who: Who, session: Number) -> Response:
        """The whole screen."""
        return Json(payloads.session(desk, desk.session(session, who)))

    @routes.get("/sessions/{session}/alternatives")
    def alternatives(
        who: Who,
        session: Number,
        node: Position,
        position: Position,
        top: Top = 10,
        starts: Starts = "",
        known: bool = False,
    ) -> Response:
        """What else could stand at a position; `known`: null where the model would have to be asked."""
        live = desk.session(session, who)
        look = queries.known if known else queries.options
        options = look(desk, live, node, position, top, starts)
        stands = queries.standing(live, node, position)
        before = queries.before(live, node, position)
        return Json(payloads.alternatives(table, node, position, options, stands, before))

    @routes.get("/sessions/{session}/diff")
    def changed(who: Who, session: Number) -> Response:
        """The first answer against the present one."""
        return Json(payloads.changes(table, screen.changes(desk.session(session, who))))

    @routes.post("/sessions/{session}/renew")
    def renewed(who: Who, session: Number) -> Response:
        """Keep the item."""
        return Json({"lease_until": desk.store.renew(desk.session(session, who).row.id)})

    @routes.post("/compare")
    def compared(who: Who, body: Comparison) -> Response:
        """Base and tuned model, side by side."""
        if (body.session is None) == (body.messages is None):
            raise RecordError(wrong("comparison", "`session` or `messages`", "both or none", "Give one of them."))
        if body.session is not None:
            prompt_ids = desk.session(body.session, who).prompt_ids
        else:
            prompt_ids = table.codec.encode_prompt(body.messages or [])
        return Json(payloads.comparison(table, exchange.compare(prompt_ids)))

    return routes


def step_routes(desk: "Desk") -> APIRouter:
    """What changes a session; the reply says what changed on the screen."""
    from anchorlwf.annotator.web import payloads

    routes, table = APIRouter(prefix="/api/sessions/{session}"), desk.decoder.table

    def step(who: str, session: int, name: str | None, do: Callable[["Live"], None]) -> Response:
        live = desk.session(session, who)
        with live.lock:
            before = live.tree
            desk.step(live, name, do)
            return Json(payloads.step(table, live, before))

    @routes.post("/correct")
    def correct(who: Who, session: Number, body: Correction, name: StepName = None) -> Response:
        """Put tokens or text at a position."""
        return step(who, session, name, lambda live: _correct(desk, live, body))

    _simple(routes, "stop", "End the continuation where it is.", partial(step, do=desk.stop))
    _simple(routes, "extend", "Let an answer that the token limit cut go on.", partial(step, do=desk.extend))
    _simple(routes, "undo", "Back; after a decision, take the decision back.", partial(step, do=desk.undo))
    _simple(routes, "redo", "Forward again.", partial(step, do=desk.redo))
    _simple(routes, "reopen", "Take the decision back.", partial(step, do=desk.reopen))

    @routes.post("/move")
    def move(who: Who, session: Number, body: Target, name: StepName = None) -> Response:
        """To any answer of the tree."""
        return step(who, session, name, lambda live: desk.move(live, body.node))

    @routes.post("/confidence")
    def confidence(who: Who, session: Number, body: Confidence, name: StepName = None) -> Response:
        """Of an anchor."""
        return step(who, session, name, lambda live: desk.weigh(live, body.position, body.confidence))

    @routes.post("/note")
    def note(who: Who, session: Number, body: Note, name: StepName = None) -> Response:
        """Replace the note."""
        return step(who, session, name, lambda live: desk.note(live, body.text))

    @routes.post("/tags")
    def tags(who: Who, session: Number, body: Tags, name: StepName = None) -> Response:
        """Replace the tags."""
        return step(who, session, name, lambda live: desk.tag(live, body.tags))

    @routes.post("/decide")
    def decide(who: Who, session: Number, body: Verdict, name: StepName = None) -> Response:
        """Accept, keep, reject or skip."""
        return step(who, session, name, lambda live: desk.decide(live, body.verdict))

    return routes


def _correct(desk: "Desk", live: "Live", body: Correction) -> None:
    from anchorlwf.annotator.sessions import queries

    node, position = body.node, body.position
    ids = queries.wanted(desk, live, node, position, body.token_ids, body.text, space=body.space, end=body.end)
    desk.correct(live, node, position, ids, confidence=body.confidence, stream=body.stream, pause=body.pause)


def _simple(routes: APIRouter, name: str, text: str, do: Callable[[str, int, str | None], Response]) -> None:
    def route(who: Who, session: Number, name: StepName = None) -> Response:
        return do(who, session, name)

    routes.add_api_route(f"/{name}", route, methods=["POST"], description=text, name=name)
