"""A real Chromium and real servers. Without them the tests are skipped, except in CI, where they fail."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from acts import PATIENCE, missing
from served import Server, prepare

from anchorlwf.model.language_model import load_model

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--disable-dev-shm-usage",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, started once."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright (pip install playwright)")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing("chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Pages of their own; an error in the console or an uncaught one fails the test."""
    contexts, trouble = [], []

    def make(server: Any, *, width: int = 1280, height: int = 800, expect_errors: bool = False, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        if not expect_errors:
            page.on("console", lambda line: trouble.append(line.text) if line.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector("#answer .t, #empty:not([hidden])")
        return page

    yield make
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="module")
def serve(
    chromium: Any,  # noqa: ARG001 - skips before it serves
    base: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Server]]:
    """Servers over the embedded model: `serve(prompts, answers)`; they end with the module."""
    servers: list[Server] = []

    def start(prompts: list[dict[str, Any]], answers: dict[int, Any] | None = None, **options: Any) -> Server:
        server = Server(tmp_path_factory.mktemp("served"), prompts, **options)
        servers.append(server)
        if answers:
            prepare(server, base if server.model is None else load_model(server.model), answers)
        return server.start()

    yield start
    for server in servers:
        server.stop()
