"""Times as a person sees them: from the event in the browser to the painted frame."""

import statistics
from typing import Any

__all__ = ["asked", "clicks", "first_streamed", "median", "opened"]

# A frame is painted when the task after its animation frame runs. The click's own time stamp is the hardware event's.
_INSTALL = """() => {
  window.painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => done(performance.now());
    channel.port2.postMessage(null);
  }));
  window.nextClick = (position) => {
    const picker = document.querySelector("#picker");
    window.measured = new Promise((done) => document.querySelector("#answer").addEventListener("click", (event) => {
      const selected = window.painted().then((at) => at - event.timeStamp);
      const shown = () => new RegExp(`/${position}/`).test(picker.dataset.shown ?? "");
      // Its frame counts from here on: it may be the one of the selection, if the reply was that quick.
      const finish = async () => {
        const listed = window.painted();
        done([await selected, (await listed) - event.timeStamp]);
      };
      const observer = new MutationObserver(() => { if (shown()) { observer.disconnect(); finish(); } });
      observer.observe(picker, { attributes: true });
      if (shown()) { observer.disconnect(); finish(); }
    }, { once: true, capture: false }));
  };
}"""


def clicks(page: Any, positions: list[int], *, rest: int = 0) -> tuple[list[float], list[float]]:
    """Milliseconds from a click to the painted selection, and to the painted alternatives, of each position.

    `rest`: so many milliseconds the pointer rests on the token before; 0: it gets there and presses at once.
    """
    page.evaluate(_INSTALL)
    selected, shown = [], []
    for position in positions:
        token = page.locator("#answer .t").nth(position)
        token.scroll_into_view_if_needed()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.evaluate("position => window.nextClick(position)", position)
        if rest:
            token.hover()
            page.wait_for_timeout(rest)
        token.click()
        first, second = page.evaluate("window.measured")
        selected.append(first)
        shown.append(second)
    return selected, shown


_STREAM = """() => {
  window.firstToken = new Promise((done) => {
    const source = window.EventSource;
    const answer = document.querySelector("#answer");
    document.addEventListener("keydown", (event) => {
      const began = event.timeStamp;
      window.EventSource = class extends source {
        constructor(url) {
          super(url);
          this.addEventListener("tokens", async () => {
            const arrived = performance.now();
            done([arrived - began, (await window.painted()) - began]);
          }, { once: true });
          window.EventSource = source;
        }
      };
    }, { once: true, capture: true });
  });
}"""


def first_streamed(page: Any, digit: str) -> tuple[float, float]:
    """Milliseconds from the key that corrects to the first streamed token: arrived, and painted."""
    page.evaluate(_INSTALL)
    page.evaluate(_STREAM)
    page.keyboard.press(f"Alt+{digit}")  # the cursor is in the field
    arrived, painted = page.evaluate("window.firstToken")
    return arrived, painted


def opened(page: Any, key: str) -> float:
    """Milliseconds from a key that leaves an item to the painted answer of the next one."""
    page.evaluate(_INSTALL)
    page.evaluate(
        """() => {
          const before = location.hash;
          window.nextItem = new Promise((done) => document.addEventListener("keydown", (event) => {
            const finish = async () => done((await window.painted()) - event.timeStamp);
            const observer = new MutationObserver(() => {
              if (location.hash !== before && document.querySelector("#answer .t")) { observer.disconnect(); finish(); }
            });
            observer.observe(document.querySelector("#answer"), { childList: true, subtree: true, attributes: true });
          }, { once: true, capture: true }));
        }"""
    )
    page.keyboard.press(key)
    return page.evaluate("window.nextItem")


def asked(page: Any, positions: list[int], letter: str) -> list[float]:
    """Milliseconds from a letter typed at each position to the painted alternatives that begin with it."""
    page.evaluate(_INSTALL)
    times = []
    for position in positions:
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        page.locator("#answer .t").nth(position).click()
        page.wait_for_selector(f"#picker[data-shown*='/{position}/']:not([hidden])")
        page.evaluate(
            """(wanted) => {
              const picker = document.querySelector("#picker");
              window.listed = new Promise((done) => document.addEventListener("keydown", (event) => {
                const observer = new MutationObserver(async () => {
                  if (!picker.dataset.shown?.endsWith(wanted)) return;
                  observer.disconnect();
                  done((await window.painted()) - event.timeStamp);
                });
                observer.observe(picker, { attributes: true });
              }, { once: true, capture: true }));
            }""",
            f"/{position}/{letter}",
        )
        page.keyboard.press(letter)
        times.append(page.evaluate("window.listed"))
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    return times


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)
