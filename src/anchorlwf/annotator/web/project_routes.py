"""Routes of the project as a whole: its queue, its progress, what goes in and out."""

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Response

from anchorlwf.annotator.web.people import Who
from anchorlwf.annotator.web.requests import Choice, Import, Number, Order, Priority, Start, Text
from anchorlwf.annotator.web.responses import Json

if TYPE_CHECKING:
    from anchorlwf.annotator.project import Exchange

__all__ = ["exchange_routes", "queue_routes"]

Limit = Annotated[int, Query(ge=1, le=200)]


def queue_routes(exchange: "Exchange", per_item: int) -> APIRouter:
    """Me, the queue, what is next."""
    from anchorlwf.annotator.store import queue
    from anchorlwf.annotator.web import payloads

    routes, desk, store = APIRouter(prefix="/api"), exchange.desk, exchange.desk.store
    table = desk.decoder.table

    @routes.get("/me")
    def me(who: Who) -> Response:
        """Who I am, and what I work on."""
        return Json({"annotator": who, "annotators_per_item": per_item, **_project(exchange)})

    @routes.get("/progress")
    def progress() -> Response:
        """Counts and working time."""
        return Json(queue.progress(store, desk.project))

    @routes.get("/queue")
    def waiting(who: Who, order: Order = "queue", offset: Start = 0, limit: Limit = 50) -> Response:
        """A part of the queue."""
        return Json(queue.waiting(store, desk.project, who, order, offset, limit, aside=desk.aside))

    @routes.post("/next")
    def following(who: Who, body: Choice | None = None) -> Response:
        """Lease the next item."""
        live = desk.next(who, body.order if body else "queue")
        return Json({"id": None} if live is None else payloads.session(table, live))

    @routes.post("/items/{item}/open")
    def opened(who: Who, item: Number) -> Response:
        """Lease one item."""
        return Json(payloads.session(table, desk.open(item, who)))

    @routes.post("/items/{item}/priority")
    def prioritised(item: Number, body: Priority) -> Response:
        """Move an item in the queue."""
        queue.set_priority(store, desk.project, item, body.priority)
        return Json({"priority": body.priority})

    @routes.post("/tokenize")
    def tokenized(body: Text) -> Response:
        """Text as the tokens it becomes."""
        ids = table.encode(body.text)
        return Json({"tokens": payloads.tokens(table, ids, [None] * len(ids))})

    return routes


def _project(exchange: "Exchange") -> dict[str, Any]:
    decoder, config = exchange.desk.decoder, exchange.desk.config
    return {
        "project": exchange.name,
        "model": decoder.stamp.name,
        "remote": decoder.remote,
        "max_new_tokens": config.max_new_tokens,
        "alternatives": config.alternatives,
        "confidence": config.confidence,
        "compare": exchange.can_compare,
    }


def exchange_routes(exchange: "Exchange") -> APIRouter:
    """Records out, work in, and how far people agree."""
    from anchorlwf.annotator.store import queue

    routes, desk = APIRouter(prefix="/api"), exchange.desk

    @routes.get("/agreement")
    def agreement() -> Response:
        """Between people who did the same items."""
        return Json(queue.agreement(desk.store, desk.project))

    @routes.get("/export")
    def export() -> Response:
        """All finished records."""
        lines = "".join(f"{record.model_dump_json()}\n" for record in queue.export_records(desk.store, desk.project))
        name = {"content-disposition": 'attachment; filename="records.jsonl"'}
        return Response(lines.encode(), media_type="application/x-ndjson", headers=name)

    @routes.post("/import")
    def imported(body: Import) -> Response:
        """Prompts, records, or a lawftrack data set."""
        return Json(exchange.take(body.format, body.content, body.span))

    return routes
