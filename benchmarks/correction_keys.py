"""How many keys and how much waiting a correction takes on the annotator's page, in a real Chromium.

    python benchmarks/correction_keys.py [MODEL ...]      (needs playwright, and a chromium on the PATH)

Without models: the embedded one, and SmolLM2-135M-Instruct where `make real` has put it. On each, some answers are
corrected by keys alone, with nobody thinking in between: at the token the model doubts most (its best alternative),
with a text of two words, and with the end of the answer behind the correction. Keys are counted in the page; a key with
Ctrl or Alt is one. Waiting is what passes from the first key to the first new token on the screen, and beyond decoding
it is what is left without the time that the same correction and its first token take the model alone.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from acts import open_item, rest, session, settled
from page import alone, decoded_ahead, own_time
from playwright.sync_api import sync_playwright
from served import Server

from anchorlwf.files import cache_folder

WORDS = "red brick"
ASKED = [
    {"prompt": "Who is the mayor of Gardale?"},
    {"prompt": "How many legs do three cats have in total? Explain briefly."},
    {"prompt": "Where was Mira Belmora born?"},
    {"prompt": "Name three colours and what they remind you of."},
]

# Counts keys, and notes when the first one came and when a token behind the correction, or its end, was painted.
_WATCH = """() => {
  window.keys = 0;
  window.began = null;
  document.addEventListener("keydown", (event) => {
    if (["Control", "Alt", "Shift", "Meta"].includes(event.key)) return;
    window.keys += 1;
    window.began ??= event.timeStamp;
  }, { capture: true });
  window.ended = new Promise((done) => {
    const answers = document.querySelectorAll(".node").length;
    let given = null;
    new MutationObserver((_, observer) => {
      if (document.querySelectorAll(".node").length === answers || document.querySelector("#answer .pending")) return;
      const shown = document.querySelectorAll("#answer .t").length;
      given ??= shown;
      if (shown === given && document.querySelector("#answer[aria-busy=true]")) return;
      observer.disconnect();
      requestAnimationFrame(() => setTimeout(() => done(performance.now() - window.began)));
    }).observe(document.querySelector("main").parentElement, { subtree: true, childList: true, attributes: true });
  });
}"""


def _doubted(page):
    """To the token that the model doubts; keys that come before its list wait for it by themselves."""
    page.keyboard.press("n")


def _best(page):
    """The best alternative to the doubted token: Enter leads to the list, where it is lit, and takes it."""
    _doubted(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")


def _words(page):
    _doubted(page)
    page.keyboard.press("Enter")
    page.keyboard.type(WORDS)
    page.keyboard.press("Enter")


def _end(page):
    _doubted(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")


def _later_end(page):
    _best(page)
    page.wait_for_selector("#answer .anchor")
    rest(page)
    page.keyboard.press("f")


def correct(page, item, keys):
    """Correct an item once; its keys, milliseconds until a new token was seen, and what was corrected."""
    page.reload()
    page.wait_for_selector("#answer .t")
    before = open_item(page, item)
    page.evaluate(_WATCH)
    keys(page)
    waited = page.evaluate("window.ended")
    settled(page, seconds=120)
    after = session(page)
    # Back to the model's own answer, for the next way to correct it.
    counted = page.evaluate("window.keys")
    rest(page)
    while session(page)["can"]["undo"]:
        page.keyboard.press("u")
        page.wait_for_timeout(300)
    made = next(node for node in after["nodes"] if node["id"] == len(before["nodes"]))
    position = made["position"]
    ids = [token["id"] for token in before["tokens"]]
    return counted, waited, (ids, position, after["tokens"][position]["id"])


def measure(browser, model, folder):
    server = Server(folder, ASKED, model=model, limit=64).start()
    rows = {"best alternative": _best, "two words": _words, "and the answer ends there": _end, "and then f": _later_end}
    print(f"{model or 'the embedded model'}, load {os.getloadavg()[0]:.1f}")
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(server.url)
        page.wait_for_selector("#answer .t")
        settled(page, seconds=120)
        began = time.monotonic()
        decoded_ahead(page)
        print(f"  all answers decoded ahead after {time.monotonic() - began:.1f} s")
        found = {name: [correct(page, item, keys) for item in range(len(ASKED))] for name, keys in rows.items()}
    finally:
        server.stop()
    with alone(model) as decoder:
        for name, results in found.items():
            own = [
                own_time(decoder, asked, made[0], [made[1:]])[0]
                for asked, (_, _, made) in zip(ASKED, results, strict=True)
            ]
            waited = [seen for _, seen, _ in results]
            beyond = [seen - time_alone for seen, time_alone in zip(waited, own, strict=True)]
            print(
                f"  {name:26} {max(keys for keys, _, _ in results):2} keys, first new token after "
                f"{statistics.median(waited):5.0f} ms (worst {max(waited):5.0f}), beyond decoding "
                f"{statistics.median(beyond):5.0f} ms (worst {max(beyond):5.0f})",
                flush=True,
            )


def main():
    real = cache_folder() / "models" / "smollm2-135m-instruct"
    models = sys.argv[1:] or [None, *([str(real)] if real.is_dir() else [])]
    folder = Path(tempfile.mkdtemp())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for number, model in enumerate(models):
            (folder / str(number)).mkdir()
            measure(browser, model, folder / str(number))
        browser.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
