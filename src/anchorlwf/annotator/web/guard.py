"""The door: every request passes here before anything else looks at it.

Host and Origin against DNS rebinding and cross-site requests, a token against everybody else, limits on size and pace,
and on the way out the headers that keep model text from ever being code.
"""

import re
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import Response

from anchorlwf.annotator.web.responses import Json, problem
from anchorlwf.annotator.web.settings import WebSettings

__all__ = ["HEADERS", "Guard"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_SAFE = {"GET", "HEAD", "OPTIONS"}
_ENTERED = '<!doctype html><title>anchorlwf</title><link rel="icon" href="data:,">'
"""Without an icon of its own, a browser would ask for one that is not there."""


class _Pace:
    """A bucket per person: full at `burst`, refilled at `rate`."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, float(burst)
        self._left: dict[str, tuple[float, float]] = {}

    def wait(self, name: str) -> float:
        """Seconds until this person may ask; 0 where it is now, and counted."""
        now = time.monotonic()
        left, at = self._left.get(name, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._left[name] = (left - 1 if allowed else left, now)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], settings: WebSettings) -> None:
        self._app, self._settings = app, settings
        self._pace = _Pace(settings.rate, settings.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or say why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, _with_headers(scope, send))
        # Anything else (a web socket) is nothing we have.

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._foreign(scope, headers) or self._entrance(scope)
        name = None if refusal else self._person(scope, headers)
        if refusal is None and name is None:
            refusal = Json(problem("Unauthorized", "Open the address that the server printed when it started."), 401)
        if refusal is None and name is not None and (pause := self._pace.wait(name)):
            message = f"Too many requests at once: expected {self._settings.rate:g} a second. Wait a moment."
            refusal = Json(problem("TooFast", message), 429, headers={"retry-after": str(int(pause) + 1)})
        body = None
        if refusal is None:
            body = await self._body(scope, headers, receive)
            if body is None:
                refusal = Json(problem("TooLong", "The request is longer than this server takes. Send less."), 413)
        if refusal is not None or body is None:
            assert refusal is not None
            await refusal(scope, receive, send)
            return
        scope.setdefault("state", {})["annotator"] = name
        await self._app(scope, _replayed(body, receive), send)

    def _foreign(self, scope: Scope, headers: Headers) -> Response | None:
        """A request that did not come from our own page, or was not meant for us."""
        hosts, origin = headers.getlist("host"), headers.get("origin")
        if len(hosts) != 1 or not self._settings.allows_host(hosts[0]):
            return Json(problem("Forbidden", "Expected a Host header that names this server."), 403)
        if origin is not None and _plain(origin) not in [
            _plain(f"{scheme}://{hosts[0]}") for scheme in ("http", "https")
        ]:
            return Json(problem("Forbidden", "Expected requests of this server's own page (Origin)."), 403)
        # Following a link to the page is the one thing that may come from elsewhere.
        arriving = scope["method"] == "GET" and scope["path"] == "/"
        if not arriving and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return Json(problem("Forbidden", "Expected requests of this server's own page (Sec-Fetch-Site)."), 403)
        if origin is None and scope["method"] not in _SAFE and _bearer(headers) is None:
            return Json(problem("Forbidden", "Expected an Origin header, or a Bearer token."), 403)
        return None

    def _entrance(self, scope: Scope) -> Response | None:
        """The printed address: its token becomes a cookie and leaves the address bar."""
        if scope["method"] != "GET" or scope["path"] != "/":
            return None
        tokens = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if not tokens or self._settings.annotator_of(tokens[0]) is None:
            return None
        # Not a redirection: on one that begins with a link on another site, browsers keep strict cookies back.
        reply = Response(_ENTERED, 200, {"refresh": "0; url=/", "cache-control": "no-store"}, "text/html")
        reply.set_cookie(
            self._settings.cookie,
            tokens[0],
            httponly=True,
            samesite="strict",
            path="/",
            secure=scope.get("scheme") == "https",
        )
        return reply

    def _person(self, scope: Scope, headers: Headers) -> str | None:
        token = _bearer(headers)
        if token is not None:
            return self._settings.annotator_of(token)
        people = (self._settings.annotator_of(value) for value in _cookies(headers, self._settings.cookie))
        return next((name for name in people if name is not None), None)

    async def _body(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None where it is too long. Read here, so that nothing behind can be fed without end."""
        upload = scope["path"] == "/api/import"
        limit = self._settings.upload_limit if upload else self._settings.body_limit
        announced = headers.get("content-length", "0")
        # Python refuses to read thousands of digits.
        if not (announced.isascii() and announced.isdigit()) or len(announced) > 20 or int(announced) > limit:
            return None
        parts: list[bytes] = []
        size, more = 0, scope["method"] not in _SAFE
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > limit:
                return None
        return b"".join(parts)


def _plain(origin: str) -> str:
    """An origin as browsers write it: a proxy may name the port that they leave out."""
    return re.sub(r"(?<=^http:)(.*):80$|(?<=^https:)(.*):443$", r"\1\2", origin.lower())


def _bearer(headers: Headers) -> str | None:
    """The Bearer token. Credentials of another kind are a proxy's, which a browser sends along with our cookie."""
    for value in headers.getlist("authorization"):
        kind, _, token = value.strip().partition(" ")
        if kind.lower() == "bearer":
            return token.strip()
    return None


def _cookies(headers: Headers, name: str) -> Iterator[str]:
    """The values of the cookies of that name, each read by itself: those of other applications may be anything."""
    for header in headers.getlist("cookie"):
        for part in header.split(";"):
            value = cookie_parser(part).get(name)
            if value is not None:
                yield value


def _replayed(body: bytes, receive: Receive) -> Receive:
    read = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal read
        if read:
            return await receive()  # nothing but the disconnection is left to come
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(scope: Scope, send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            own = {name for name, _ in message["headers"]}
            added = {**HEADERS, "cache-control": "no-cache" if scope["path"].startswith("/static/") else "no-store"}
            message["headers"] = [
                *message["headers"],
                *((name.encode(), value.encode()) for name, value in added.items() if name.encode() not in own),
            ]
        await send(message)

    return sending
