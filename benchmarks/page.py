"""How fast the annotator's page is, in a real Chromium against a real server.

    python benchmarks/page.py                  the embedded model (needs playwright, and a chromium on the PATH)
    python benchmarks/page.py --model DIR      a model of one's own, such as the one that `make real` installs

With the embedded model there are answers of 500 and of 4,000 tokens (it gets a wider window, so that it goes on); with
another one there is an answer of 150 tokens to a short prompt and to one of 3,400 tokens.

Everything is measured on an item that was decoded ahead. Open: from the key that skips the item before to its painted
answer. Click: from the mouse event to the painted selection, and to the painted alternatives, where the pointer presses
as soon as it is there and where it rests 100 ms before, as a hand does. Asked: the painted list of a typed beginning,
for which the model has to be asked. Stream: from the key that corrects to the first token of the continuation. What
the model alone takes for the correction and for that token, in a process of its own, stands beside it, and the time of
one token of a plain continuation there is the unit of the ratios.
"""

import argparse
import contextlib
import itertools
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from acts import click_token, count, never_pause, session, settled, until
from playwright.sync_api import sync_playwright
from served import Server, long_model
from timing import asked, clicks, first_streamed, median, opened

CLICKS, CORRECTIONS, REST = 25, 9, 100
FIRST = {"prompt": "Tell me everything about the lighthouse."}
PROMPT = {"prompt": "Tell me everything about the river."}
NOTE = "The river rises in the hills near the old town and turns the wheels of eleven mills before it meets the sea. "
LONG, ANSWER = 3400, 150


def long_prompt(model):
    """A prompt of about `LONG` tokens."""
    from anchorlwf.model.language_model import load_codec

    codec, _ = load_codec(model, trust_remote_code=False)
    notes = LONG // len(codec.encode(NOTE))
    return {"prompt": NOTE * notes + "Write a long story about this river and its mills."}


@contextlib.contextmanager
def alone(model):
    """A decoder in this process over a folder's model (None: the embedded one)."""
    from anchorlwf.annotator.backends.local import LocalDecoder
    from anchorlwf.model.language_model import load_model

    decoder = LocalDecoder(load_model(model))
    try:
        yield decoder
    finally:
        decoder.close()


def own_time(decoder, prompt, ids, corrected):
    """Milliseconds, medians, that the model alone takes: for a correction and the first token behind it, for a token.

    As in the server, the cache holds the whole answer (and is rewound) when the correction comes.
    """
    from anchorlwf.data.record import Prompt

    taken, paces = [], []
    prompt_ids = decoder.table.codec.encode_prompt(Prompt.model_validate(prompt).messages)
    for position, token in corrected:
        decoder.options("own", prompt_ids, ids, 1)
        began = time.perf_counter()
        decoder.judge("own", prompt_ids, ids[:position], [token])
        stream = decoder.stream("own", prompt_ids, [*ids[:position], token], len(ids))
        next(iter(stream))
        taken.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        more = len(list(itertools.islice(stream, 4)))
        paces.append((time.perf_counter() - began) * 1000 / max(1, more))
        stream.close()
    return statistics.median(taken), statistics.median(paces)


def decoded_ahead(page):
    """Wait until every item of the queue has its answer."""
    waiting = """async () => (await (await fetch("/api/queue")).json()).items
                 .every((item) => item.session !== null || item.lowest_probability !== null)"""
    until(page, waiting, seconds=600)


def timed_clicks(page, total):
    step = total // (CLICKS + 1)
    selected, shown = clicks(page, [step * (turn + 1) for turn in range(CLICKS)])
    _, rested = clicks(page, [step * (turn + 1) + 1 for turn in range(CLICKS)], rest=REST)
    typed = asked(page, [step * (turn + 1) for turn in range(CORRECTIONS)], "t")
    for name, times in (
        ("click to painted selection", selected),
        ("click to painted alternatives", shown),
        ("the same, pointer at rest", rested),
        ("letter to alternatives, asked", typed),
    ):
        print(f"  {name:31s} median {median(times):6.1f} ms   worst {max(times):6.1f} ms", flush=True)


def timed_corrections(page, total):
    arrived, painted, corrected = [], [], []
    for turn in range(CORRECTIONS):
        position = total // 2 + turn
        page.keyboard.press("Escape")
        click_token(page, position)
        came, shown_at = first_streamed(page, "3")
        page.keyboard.press(".")
        settled(page)
        corrected.append((position, session(page)["tokens"][position]["id"]))
        page.keyboard.press("u")
        # Not by the length: where most of the old answer returns, it is whole again before anything is undone.
        page.wait_for_selector("#answer .anchor", state="detached")
        count(page, total)
        arrived.append(came)
        painted.append(shown_at)
    return arrived, painted, corrected


def measure(browser, model, prompt, limit, folder):
    # The first item is only there to be left.
    server = Server(folder, [FIRST, prompt], model=model, limit=limit).start()
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(600_000)
        page.goto(server.url)
        page.wait_for_selector("#answer .t")
        never_pause(page)
        until(page, "() => document.querySelector('#answer[aria-busy=false]')", seconds=600)
        decoded_ahead(page)
        open_in = opened(page, "s")
        settled(page)
        total = page.locator("#answer .t").count()
        print(f"{total} tokens", flush=True)
        print(f"  key to the next painted item    {open_in:6.1f} ms")
        # What a person corrects at once, having just arrived, is the hardest case.
        arrived, painted, corrected = timed_corrections(page, total)
        ids = [token["id"] for token in session(page)["tokens"]]
        print(f"  the first correction            {painted[0]:6.1f} ms", flush=True)
        timed_clicks(page, total)
    finally:
        server.stop()
    with alone(model) as decoder:
        own, pace = own_time(decoder, prompt, ids, corrected)
    print(f"  key to first streamed token     median {median(arrived):6.1f} ms   painted {median(painted):6.1f} ms")
    beyond, more = median(painted) - own, painted[0] - own
    print(f"  the model alone                 median {own:6.1f} ms   a token {pace:6.1f} ms")
    print(f"  beyond it                       median {beyond:6.1f} ms   ({beyond / pace:.1f} tokens)", end="")
    print(f"   the first {more:6.1f} ms ({more / pace:.1f} tokens)")
    print(f"  load {os.getloadavg()[0]:.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    model, folder = parser.parse_args().model, Path(tempfile.mkdtemp())
    if model is None:
        wide = long_model(folder / "model")
        cases = [(wide, PROMPT, 500), (wide, PROMPT, 4000)]
    else:
        cases = [(model, {"prompt": "Write a long story about a river."}, ANSWER), (model, long_prompt(model), ANSWER)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for number, (name, prompt, limit) in enumerate(cases):
            place = folder / str(number)
            place.mkdir()
            measure(browser, name, prompt, limit, place)
        browser.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
