"""Training from the page: begun, watched and ended; and base against tuned model on any prompt."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from anchorlwf.annotator.web.requests import Asked, Number, Training, Who
from anchorlwf.annotator.web.responses import Json, problem_of
from anchorlwf.annotator.web.stream_routes import ALIVE, event

if TYPE_CHECKING:
    from anchorlwf.annotator.backends.local import LocalDecoder
    from anchorlwf.annotator.sessions.desk import Desk
    from anchorlwf.annotator.sessions.live import Continuation
    from anchorlwf.annotator.training_jobs import TrainingJobs

__all__ = ["training_routes"]

_LOOK = 0.5
"""Seconds between two looks at a training."""


def training_routes(jobs: "TrainingJobs", desk: "Desk") -> APIRouter:
    """`/api/training` and what is below it."""
    from anchorlwf.annotator.web import payloads

    routes = APIRouter(prefix="/api/training")

    @routes.get("")
    def overview() -> Response:
        """What could be trained on, and what was."""
        return Json(payloads.training(jobs.overview()))

    @routes.post("")
    def start(who: Who, body: Training) -> Response:
        """Train on what is accepted now."""
        return Json(payloads.training_run(jobs.start(who, body.retain)))

    @routes.post("/stop")
    def stop(who: Who) -> Response:
        """End the training at work after its present step; asked again, at once."""
        return Json(payloads.training_run(jobs.stop(who)))

    @routes.get("/stream")
    async def stream() -> Response:
        """The newest training, each time that something about it has changed, to its end."""
        return StreamingResponse(_runs(jobs), media_type="text/event-stream")

    @routes.post("/{run}/compare")
    async def compare(who: Who, run: Number, body: Asked) -> Response:
        """Base and tuned model on one prompt, token by token."""
        sides = await run_in_threadpool(_sides, jobs, desk, who, run, body.text)
        return StreamingResponse(_both(desk, sides), media_type="text/event-stream")

    return routes


async def _runs(jobs: "TrainingJobs") -> AsyncIterator[bytes]:
    from anchorlwf.annotator.web import payloads

    told, silent = None, 0.0
    while (run := await run_in_threadpool(jobs.latest)) is not None:
        shown = payloads.training_run(run)
        if shown != told:
            told, silent = shown, 0.0
            yield event("run", shown)
        elif silent >= ALIVE:
            silent = 0.0
            yield b": alive\n\n"
        if not run.active:
            break
        await asyncio.sleep(_LOOK)
        silent += _LOOK
    yield event("done", {})


def _sides(jobs: "TrainingJobs", desk: "Desk", who: str, run: int, text: str) -> "dict[str, Continuation]":
    """Both answers, under way. Raises what may be wrong with the training or the prompt before anything is sent."""
    from anchorlwf.annotator.backends.local import LocalDecoder
    from anchorlwf.annotator.sessions.live import bounds_of

    tuned, base = jobs.tuned(run), desk.decoder
    assert isinstance(base, LocalDecoder), "otherwise nothing was trained here"
    prompt_ids = base.table.codec.encode_prompt([{"role": "user", "content": text}])
    limit = bounds_of(base, prompt_ids, desk.config.max_new_tokens).tokens
    return {side: _begun(decoder, who, prompt_ids, limit) for side, decoder in (("base", base), ("tuned", tuned))}


def _begun(decoder: "LocalDecoder", who: str, prompt_ids: list[int], limit: int) -> "Continuation":
    from anchorlwf.annotator.sessions.live import Continuation, Memory

    key = "compare", who
    answer = Continuation(0, 0, decoder.stream(key, prompt_ids, [], limit), Memory(0, 1))
    run = threading.Thread(
        target=answer.run, args=(lambda _done: decoder.rest(key),), name="anchorlwf-compare", daemon=True
    )
    run.start()
    return answer


async def _both(desk: "Desk", sides: "dict[str, Continuation]") -> AsyncIterator[bytes]:
    from anchorlwf.annotator.web import payloads

    loop, changed, sent = asyncio.get_running_loop(), asyncio.Event(), dict.fromkeys(sides, 0)

    def listener() -> None:
        loop.call_soon_threadsafe(changed.set)

    for answer in sides.values():
        answer.listen(listener)
    try:
        running = set(sides)
        while running:
            changed.clear()
            for side in sorted(running):
                over = sides[side].over  # asked first: what came before the end is in the tokens then
                ids, probabilities = sides[side].since(sent[side])
                if ids:
                    tokens = payloads.tokens(desk.decoder.table, ids, [*probabilities])
                    yield event("tokens", {"side": side, "start": sent[side], "tokens": tokens})
                    sent[side] += len(ids)
                if over:
                    running.discard(side)
            if running:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), ALIVE)
        error = next((answer.error for answer in sides.values() if answer.error is not None), None)
        if error is not None:
            yield event("failed", problem_of(error))
        else:
            base, tuned = (sides[side].so_far()[0] for side in ("base", "tuned"))
            yield event("done", {"same": base == tuned})
    finally:
        # Whoever leaves wants no more of it.
        for answer in sides.values():
            answer.leave(listener)
            answer.take()
