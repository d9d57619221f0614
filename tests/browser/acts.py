"""What the tests do on the page again and again."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

__all__ = [
    "PATIENCE",
    "answer",
    "choose",
    "click_token",
    "correct",
    "count",
    "flaws",
    "missing",
    "never_pause",
    "open_item",
    "rest",
    "session",
    "settled",
    "standing",
    "tokens",
    "until",
    "write_note",
]

# Seconds. What is waited for is never late on purpose, so a long wait costs nothing but where a test fails; on two
# busy cores without AVX-512 an answer of five hundred tokens has taken more than fifteen.
PATIENCE = 90

_FLAWS = (Path(__file__).parent / "flaws.js").read_text(encoding="utf-8")


def missing(what: str) -> None:
    """Skip the test, or in CI fail it: something that it needs is not installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing; .ci/run installs it")
    pytest.skip(f"needs {what}")


def until(page: Any, expression: str, argument: Any = None, *, seconds: float = PATIENCE) -> Any:
    """Wait until an expression is true. (Playwright's own wait evaluates strings, which the page's policy forbids.)"""
    end = time.monotonic() + seconds
    while not (found := page.evaluate(expression, argument)):
        assert time.monotonic() < end, f"never true: {expression} ({argument})"
        page.wait_for_timeout(20)
    return found


def count(page: Any, wanted: int) -> None:
    """Wait until the answer has so many tokens."""
    until(page, "wanted => document.querySelectorAll('#answer .t').length === wanted", wanted)


def settled(page: Any, *, seconds: float = PATIENCE) -> None:
    """Wait until the model has come to its end."""
    until(
        page,
        "() => document.querySelector('#answer[aria-busy=false]') && !document.querySelector('#answer .pending')",
        seconds=seconds,
    )


def tokens(page: Any) -> list[str]:
    """The tokens on the screen, as they are shown."""
    return page.eval_on_selector_all("#answer .t", "all => all.map((one) => one.textContent)")


def answer(page: Any) -> str:
    """The answer on the screen, as it is shown, without its end."""
    return "".join(tokens(page)).removesuffix("<|im_end|>")


def click_token(page: Any, position: int) -> None:
    """Click a token, and wait for what else could stand there."""
    page.locator("#answer .t").nth(position).click()
    page.wait_for_selector(f"#picker[data-shown*='/{position}/']:not([hidden])")


def correct(page: Any, position: int, digit: str) -> None:
    """Take an alternative at a token, and wait for the anchor and the end of the continuation."""
    choose(page, position, digit)
    page.wait_for_selector("#answer .anchor")
    settled(page)


def choose(page: Any, position: int, digit: str) -> None:
    """Click a token and take an alternative; the cursor is in the field, where a digit alone is text."""
    click_token(page, position)
    page.keyboard.press(f"Alt+{digit}")


def write_note(page: Any, text: str) -> None:
    """Unfold the notes, write one, and leave the field."""
    if page.locator("#notes[open]").count() == 0:
        page.locator("#notes > summary").click()
    page.locator("#note").fill(text)
    page.locator("#note").blur()


def rest(page: Any) -> None:
    """As long as it takes until no key can belong to a text whose field has closed."""
    page.wait_for_timeout(350)


def never_pause(page: Any) -> None:
    """From now on continuations go on to the end of the answer."""
    page.evaluate("localStorage.setItem('pause', 'off')")


def flaws(page: Any) -> list[str]:
    """What flaws.js finds on the page as it stands: contrast, names, references, roles."""
    return page.evaluate(_FLAWS)


def standing(page: Any) -> list[tuple[str, bool]]:
    """The alternatives on the screen, and whether each stands there."""
    return page.eval_on_selector_all(
        "#options li",
        "all => all.map((one) => [one.querySelector('.option-text').textContent, one.matches('.stands')])",
    )


def open_item(page: Any, number: int) -> dict[str, Any]:
    """Go to the item of that number (from 0) by the queue's dialog; returns the session as the server tells it."""
    before = page.evaluate("location.hash")
    page.locator("#open-queue").click()
    row = page.locator(".queue-row").nth(number)
    title = row.locator(".queue-title").text_content()
    row.click()
    said = (
        "([before, title]) => location.hash !== before || document.querySelector('#prompt').textContent.includes(title)"
    )
    until(page, said, [before, title])
    settled(page)
    return session(page)


def session(page: Any) -> dict[str, Any]:
    """The session on the screen, as the server tells it."""
    return page.evaluate("async () => (await fetch(`/api/sessions/${location.hash.slice(9)}`)).json()")
