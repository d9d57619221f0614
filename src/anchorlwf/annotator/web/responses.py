"""JSON that any byte of model text survives, and errors as JSON with our own messages."""

import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from anchorlwf.errors import AnchorLwfError, ConflictError, MissingError, NothingToDoError, ServerError, StorageError

__all__ = ["Json", "add_error_replies", "problem", "problem_of"]

_log = logging.getLogger(__name__)
_STATUS: list[tuple[type[AnchorLwfError], int]] = [
    (MissingError, 404),
    (ConflictError, 409),
    (NothingToDoError, 409),
    (ServerError, 502),
    (StorageError, 507),
    (AnchorLwfError, 400),
]


class Json(Response):
    """A JSON reply in ASCII: half characters and control characters travel as escapes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The reply's bytes."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def problem(kind: str, message: str) -> dict[str, Any]:
    """The one form of an error."""
    return {"error": {"type": kind, "message": message}}


def problem_of(error: AnchorLwfError) -> dict[str, Any]:
    """One of ours."""
    return problem(type(error).__name__, str(error))


def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AnchorLwfError)
    return Json(problem_of(error), next(status for kind, status in _STATUS if isinstance(error, kind)))


def _shape(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # The input itself is left out: it may be long.
    mistakes = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
    return Json(problem("ValidationError", f"{mistakes}. See docs/annotator_api.md."), 422)


def _plain(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json(problem("HTTPError", str(error.detail)), error.status_code, headers=error.headers)


def _defect(_request: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return Json(problem("InternalError", "This is a defect of anchorlwf; the server's log says more."), 500)


def add_error_replies(app: FastAPI) -> None:
    """Every error leaves as JSON."""
    handlers: list[tuple[type[Exception], Callable[[Request, Exception], Response]]] = [
        (AnchorLwfError, _ours),
        (RequestValidationError, _shape),
        (HTTPException, _plain),
        (Exception, _defect),
    ]
    for kind, handler in handlers:
        app.add_exception_handler(kind, handler)
