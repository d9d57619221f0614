"""How fast the annotator's page is, in a real Chromium against a real server over the embedded model.

    python benchmarks/page.py            (needs playwright, and a chromium on the PATH)

Two lengths of answer, 500 and 4,000 tokens, streamed by the model itself (given a wider window, so that it goes on).
Click: from the mouse event to the painted selection, and to the painted alternatives, where the pointer presses as soon
as it is there and where it rests 100 ms before, as a hand does. Stream: from the key that
corrects to the first token of the continuation, beside the time that the same correction and its first token take the
model alone, in this process.
"""

import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from acts import click_token, count, never_pause, session, settled
from playwright.sync_api import sync_playwright
from served import Server, long_model
from timing import clicks, first_streamed, median

CLICKS, CORRECTIONS, REST = 25, 9, 100
PROMPT = {"prompt": "Tell me everything about the river."}


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
    """Milliseconds, median, that judging a correction and decoding the first token behind it take the model alone.

    As in the server, the cache holds the whole answer (and is rewound) when the correction comes.

    Args:
        decoder: the model, used by nobody else.
        prompt: as in a file of prompts.
        ids: the answer before it is corrected.
        corrected: positions and the tokens put there.
    """
    from anchorlwf.data.record import Prompt

    taken = []
    messages = Prompt.model_validate(prompt).messages
    prompt_ids = decoder.table.codec.encode_prompt(messages)
    for position, token in corrected:
        decoder.options("own", prompt_ids, ids, 1)
        began = time.perf_counter()
        decoder.judge("own", prompt_ids, ids[:position], [token])
        stream = decoder.stream("own", prompt_ids, [*ids[:position], token], len(ids))
        next(iter(stream))
        taken.append((time.perf_counter() - began) * 1000)
        stream.close()
    return statistics.median(taken)


def measure(browser, length, folder):
    folder.mkdir()
    model = long_model(folder / "model")
    server = Server(folder, [PROMPT], model=model, limit=length).start()
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.url)
        page.wait_for_selector("#answer .t")
        began, first = time.perf_counter(), page.locator("#answer .t").count()
        page.wait_for_selector("#answer[aria-busy=false]", timeout=300_000)
        total = page.locator("#answer .t").count()
        pace = (time.perf_counter() - began) / (total - first) * 1000
        settled(page)
        never_pause(page)
        step = total // (CLICKS + 1)
        selected, shown = clicks(page, [step * (turn + 1) for turn in range(CLICKS)])
        _, rested = clicks(page, [step * (turn + 1) + 1 for turn in range(CLICKS)], rest=REST)
        print(f"{total} tokens, streamed and shown in {pace:.1f} ms each")
        print(f"  click to painted selection     median {median(selected):5.1f} ms   worst {max(selected):5.1f} ms")
        print(f"  click to painted alternatives  median {median(shown):5.1f} ms   worst {max(shown):5.1f} ms")
        print(f"  the same, pointer at rest      median {median(rested):5.1f} ms   worst {max(rested):5.1f} ms")
        arrived, painted, corrected = [], [], []
        ids = [token["id"] for token in session(page)["tokens"]]
        for turn in range(CORRECTIONS):
            page.keyboard.press("Escape")
            click_token(page, length // 2 + turn)
            came, shown_at = first_streamed(page, "3")
            page.keyboard.press(".")
            settled(page)
            corrected.append((length // 2 + turn, session(page)["tokens"][length // 2 + turn]["id"]))
            page.keyboard.press("u")
            # Not by the length: where most of the old answer returns, it is whole again before anything is undone.
            page.wait_for_selector("#answer .anchor", state="detached")
            count(page, total)
            arrived.append(came)
            painted.append(shown_at)
        with alone(model) as decoder:
            own = own_time(decoder, PROMPT, ids, corrected)
        print(f"  key to first streamed token    median {median(arrived):5.1f} ms   painted {median(painted):5.1f} ms")
        print(f"  of which the model alone       median {own:5.1f} ms   beyond it {median(painted) - own:5.1f} ms")
        print(f"  load {os.getloadavg()[0]:.1f}")
    finally:
        server.stop()


def main():
    folder = Path(tempfile.mkdtemp())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for length in (500, 4000):
            measure(browser, length, folder / str(length))
        browser.close()
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
