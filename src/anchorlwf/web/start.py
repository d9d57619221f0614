"""`anchorlwf annotate --web`: model, store and server put together."""

import contextlib
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anchorlwf.config import AnnotateConfig
from anchorlwf.errors import ConfigError, wrong
from anchorlwf.files import ensure_writable

if TYPE_CHECKING:
    from anchorlwf.annotation.decoders import Decoder
    from anchorlwf.annotation.exchange import Exchange
    from anchorlwf.annotation.store import Store

__all__ = ["MEMORY", "PORT", "PageOptions", "open_exchange", "serve_page"]

PORT = 8642
"""Where the page is unless told otherwise; the next free one where that is taken."""
MEMORY = 2.0
"""GiB for the caches of all sessions, unless told otherwise."""


@dataclass(frozen=True)
class PageOptions:
    """How the page is served."""

    host: str = "127.0.0.1"
    port: int | None = None
    """None: `PORT`, or any free one. 0: any free one."""
    store: str | None = None
    """File or URL; None: beside the records, such as records.store.db."""
    annotators: Path | None = None
    """YAML of names and tokens; None: one person."""
    name: str = "anonymous"
    """That person's."""
    per_item: int = 1
    """How many people each item wants."""
    remote: str | None = None
    """URL of a server that decodes; the model then gives its tokenizer alone."""
    allow_host: Sequence[str] | None = None
    """Names besides `host` and addresses under which browsers may ask, such as that of a proxy."""
    memory: float | None = None
    """GiB that the caches of all sessions may hold; None: `MEMORY`."""
    skip_bad: bool = False
    """Go on without prompts that are no good, and warn of each."""


def _needs_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        fix = "pip install 'anchorlwf[web]'"
        raise ConfigError(wrong("--web", "the packages of the extra `web`", error, fix)) from error


def _memory(options: PageOptions) -> int:
    """Bytes for the caches of all sessions. Raises `ConfigError`."""
    if options.memory is None:
        return int(MEMORY * 2**30)
    if options.remote is not None or not 0 < options.memory < math.inf:
        got = options.memory if options.remote is None else "--remote"
        fix = "A remote server has caches of its own."
        raise ConfigError(wrong("--memory", "GiB above 0, for a model in this process", got, fix))
    return int(options.memory * 2**30)


def _decoder(model: str | None, options: PageOptions, config: AnnotateConfig, trust: bool) -> "Decoder":
    if options.remote is not None:
        from anchorlwf.annotation.connect import connect_remote

        return connect_remote(options.remote, model or "embedded", alternatives=config.alternatives,
                              trust_remote_code=trust)
    from anchorlwf.annotation.decoders import LocalDecoder
    from anchorlwf.model import load_model

    return LocalDecoder(load_model(model, trust_remote_code=trust), alternatives=config.alternatives,
                        memory=_memory(options))


@contextlib.contextmanager
def open_exchange(
    prompts: Path, out: Path, store: "Store", decoder: "Decoder", config: AnnotateConfig, *, per_item: int = 1,
    decode_ahead: bool = True, skip_bad: bool = False,
) -> Iterator["Exchange"]:
    """The project of a prompt file over a store, with `out` brought up to date; closed on leaving.

    Raises:
        RecordError, PromptError: prompts that cannot be, each named by its line. `skip_bad` warns of them instead.
        StampError: the store holds work on another model.
    """
    from anchorlwf.annotation.ahead import Ahead
    from anchorlwf.annotation.desk import Desk
    from anchorlwf.annotation.exchange import Exchange
    from anchorlwf.annotation.ledger import Ledger
    from anchorlwf.jsonl import load_prompts

    ledger = Ledger(decoder.stamp, decoder.table.codec, out, shared=per_item > 1)
    project = store.project(prompts.stem, decoder.stamp)
    desk = Desk(store, decoder, project, config, ledger)
    ahead = Ahead(store, project, decoder, config.max_new_tokens) if decode_ahead else None
    exchange = Exchange(prompts.stem, desk, per_item=per_item, ahead=ahead)
    try:
        exchange.add(load_prompts(prompts, skip_bad=skip_bad, check=exchange.fits), ledger.known())
        exchange.publish()
        yield exchange
    finally:
        if ahead is not None:
            ahead.close()
        desk.close()
        decoder.close()


def _listening(options: PageOptions) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    tries = [PORT, 0] if options.port is None else [options.port]
    for port in tries:
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((options.host, port))
            found.listen(128)
        except OSError as error:
            found.close()
            if port == tries[-1]:
                fix = "Choose another --port (0: any free one) or --host."
                what = "a free address of this machine"
                raise ConfigError(wrong(f"{options.host}:{port}", what, error, fix)) from error
        else:
            return found
    raise AssertionError("the last try returns or raises")


def serve_page(
    prompts: Path, out: Path, model: str | None, config: AnnotateConfig, options: PageOptions, *,
    announce: Callable[[str], None], trust_remote_code: bool = False,
) -> None:
    """Serve the annotator until it is interrupted.

    Args:
        prompts: JSONL of prompts.
        out: finished records are appended here; the store beside it has everything.
        model: local folder or hub name; None: the embedded model.
        config: token limit, alternatives, confidence.
        options: how it is served.
        announce: told the address, once browsers can connect.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigError, ModelError, RecordError, StampError, StorageError: before anything is served.
    """
    _needs_extra()
    import uvicorn

    from anchorlwf.annotation.store import Store
    from anchorlwf.web.app import create_app
    from anchorlwf.web.settings import WebSettings, checked_hosts, kept_token, load_annotators

    hosts = checked_hosts(options.allow_host or ())
    _memory(options)  # a mistake there is told before anything is made
    ensure_writable(out)
    url = options.store or str(out.with_suffix(".store.db"))
    file = out if "://" in url else Path(url)
    people = load_annotators(options.annotators) if options.annotators else {options.name: kept_token(file)}
    store = Store(url)
    decoder = _decoder(model, options, config, trust_remote_code)
    with open_exchange(prompts, out, store, decoder, config, per_item=options.per_item,
                       skip_bad=options.skip_bad) as exchange, \
            _listening(options) as listener:
        settings = WebSettings(people, host=options.host, port=listener.getsockname()[1], hosts=hosts)
        app = create_app(exchange, settings, per_item=options.per_item)
        # No access log: addresses hold the token.
        server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning", server_header=False,
                                               proxy_headers=False, timeout_graceful_shutdown=2))
        shown = f"[{options.host}]" if ":" in options.host else options.host
        for name, token in people.items():
            secret = "TOKEN" if token.startswith("sha256:") else token
            lead = f"{name}: " if options.annotators else ""
            announce(f"{lead}http://{shown}:{settings.port}/?token={secret}")
        server.run(sockets=[listener])
    store.close()
