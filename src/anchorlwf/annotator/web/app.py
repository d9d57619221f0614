"""The application: routes, static files, errors, and the guard around them all."""

from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from anchorlwf.annotator.web.guard import Guard
from anchorlwf.annotator.web.responses import Json, add_error_replies, problem
from anchorlwf.annotator.web.routes import exchange_routes, look_routes, queue_routes, step_routes
from anchorlwf.annotator.web.settings import WebSettings
from anchorlwf.annotator.web.stream_routes import stream_routes
from anchorlwf.annotator.web.training_routes import training_routes
from anchorlwf.run import installed_version

if TYPE_CHECKING:
    from anchorlwf.annotator.project import Exchange
    from anchorlwf.annotator.training_jobs import TrainingJobs

__all__ = ["STATIC", "create_app"]

STATIC = Path(__file__).parent / "static"
"""The page's files."""


def create_app(exchange: "Exchange", settings: WebSettings, jobs: "TrainingJobs") -> FastAPI:
    """The annotator's ASGI application.

    Args:
        exchange: the project, its desk and what goes in and out.
        settings: who may come in.
        jobs: the project's trainings.
    """
    app = FastAPI(
        title="anchorlwf annotator",
        version=installed_version("anchorlwf") or "not installed",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    for routes in (
        queue_routes(exchange),
        exchange_routes(exchange),
        look_routes(exchange),
        step_routes(exchange.desk),
        stream_routes(exchange.desk),
        training_routes(jobs, exchange.desk),
    ):
        app.include_router(routes)

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        index = STATIC / "index.html"
        if not index.is_file():
            return Json(problem("NoPage", "This installation has no page; the API is under /api/."), 404)
        return FileResponse(index, media_type="text/html; charset=utf-8")

    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")
    add_error_replies(app)
    # Outermost, even of the handler for defects.
    app.add_middleware(Guard, settings=settings)
    return app
