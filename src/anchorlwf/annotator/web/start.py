"""`anchorlwf annotate --web`: a server over the work."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import quote

from anchorlwf.errors import ConfigError, wrong
from anchorlwf.extras import require_extra

if TYPE_CHECKING:
    from anchorlwf.annotator.open import Work

__all__ = ["PORT", "PageOptions", "serve_page"]

PORT = 8642
"""Where the page is unless told otherwise; the next free one where that is taken."""


@dataclass(frozen=True)
class PageOptions:
    """How the page is served."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: `PORT`, or any free one. 0: any free one."""
    annotators: Path | None = None
    """YAML of names and tokens; None: one person."""
    name: str = "anonymous"
    """That person's."""
    allow_host: Sequence[str] = ()
    """Names besides `host` and addresses under which browsers may ask, such as that of a proxy."""


def _listening(options: PageOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    tries = [PORT, 0] if options.port is None else [options.port]
    for port in tries:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            if port == tries[-1]:
                fix = "Choose another --port (0: any free one) or --host."
                what = "a free address of this machine"
                raise ConfigError(wrong(f"{options.host}:{port}", what, error, fix)) from error
        else:
            return listener
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that everything is closed.

    The server stops by itself and then sends itself the signal once more, for whoever handled it before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    usual = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def serve_page(work: "Work", options: PageOptions, *, announce: Callable[[str], None]) -> None:
    """Serve the annotator until it is interrupted.

    Args:
        work: what is annotated.
        options: how it is served.
        announce: told the address, once browsers can connect.

    Raises:
        ConfigError: no such address, people or packages; before anything is served.
        AnchorLwfError: as `Work.open`, likewise.
    """
    require_extra("web", "--annotator web")
    import uvicorn

    from anchorlwf.annotator.team import load_annotators
    from anchorlwf.annotator.web.app import create_app
    from anchorlwf.annotator.web.settings import WebSettings, checked_hosts, kept_token

    hosts = checked_hosts(options.allow_host)
    people = load_annotators(options.annotators) if options.annotators else {}
    with work.open() as exchange, _listening(options) as listener, contextlib.closing(work.jobs(exchange)) as jobs:
        people = people or {options.name: kept_token(work.beside)}
        settings = WebSettings(people, host=options.host, port=listener.getsockname()[1], hosts=hosts)
        app = create_app(exchange, settings, jobs)
        # No access log: addresses hold the token.
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                access_log=False,
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=2,
            )
        )
        shown = f"[{options.host}]" if ":" in options.host else options.host
        for name, token in people.items():
            secret = "TOKEN" if token.startswith("sha256:") else quote(token, safe="")
            lead = f"{name}: " if options.annotators else ""
            announce(f"{lead}http://{shown}:{settings.port}/?token={secret}")
        with _leaving_on_sigterm():
            server.run(sockets=[listener])
