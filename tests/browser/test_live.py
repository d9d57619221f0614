"""Streams, interruptions, a server that dies, and how fast the page is."""

import sys

import pytest
from acts import answer, choose, click_token, correct, count, never_pause, session, settled, tokens, until, write_note
from served import long_model, ramble
from timing import clicks, first_streamed, median

from anchorlwf.model.language_model import load_model


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that never ends its turn."""
    return long_model(tmp_path_factory.mktemp("models") / "long")


RIVER = [{"prompt": "Tell me everything about the river."}, {"prompt": "And about the town."}]


def test_a_continuation_streams_and_can_be_interrupted(serve, endless, new_page):
    page = new_page(serve(RIVER, model=endless, limit=3000))
    never_pause(page)
    page.keyboard.press(".")  # the first answer itself
    page.wait_for_selector("#stream-line:not(.running)")
    # What came on the way to the stop is shown, too.
    until(page, "length => document.querySelectorAll('#answer .t').length === length", session(page)["length"])
    before = len(tokens(page))
    assert 0 < before < 3000
    assert page.locator("#do-accept").is_disabled()
    page.keyboard.press("c")
    until(page, "before => document.querySelectorAll('#answer .t').length > before + 20", before)
    # Correcting while it comes stops it, and the new continuation comes at once.
    click_token(page, 10)
    assert page.locator("#answer").get_attribute("aria-busy") == "true"
    page.keyboard.press("Alt+2")
    page.wait_for_selector("#answer .anchor")
    until(page, "() => document.querySelectorAll('#answer .t').length > 40")
    page.locator("#stream-button").click()
    page.wait_for_selector("#stream-line:not(.running)")
    shown = answer(page)
    page.reload()
    page.wait_for_selector("#answer .anchor")
    assert answer(page) == shown
    # Rejecting does not have to wait for the end.
    page.keyboard.press("c")
    page.wait_for_selector("#stream-line.running")
    begun = page.evaluate("location.hash")
    page.keyboard.press("x")
    until(page, "before => location.hash !== before", begun)


def test_eight_quick_clicks_are_all_honoured(serve, base, endless, new_page):
    page = new_page(serve(RIVER, ramble(base, 500, 2), model=endless, limit=500))
    never_pause(page)
    settled(page)
    page.evaluate("""() => {
      window.order = [];
      new MutationObserver((all) => all.forEach(({ target }) => {
        // A token's class changes for other reasons, too.
        const selected = target.classList.contains("on") && window.order.at(-1) !== target.position;
        if (selected) window.order.push(target.position);
      })).observe(document.querySelector("#answer"), { attributes: true, attributeFilter: ["class"], subtree: true });
    }""")
    # Upwards, so that no opened list covers the next one: eight clicks without waiting for anything.
    wanted = [72, 65, 52, 41, 33, 22, 12, 3]
    page.evaluate("window.scrollTo(0, 0)")
    boxes = [page.locator("#answer .t").nth(at).bounding_box() for at in wanted]
    for box in boxes:
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    # Eight lists are asked of the model, while it writes ahead and another test may need the processor.
    until(
        page,
        "() => { const { hidden, dataset } = document.querySelector('#picker');"
        " return !hidden && dataset.shown?.includes('/3/'); }",
        seconds=60,
    )
    assert page.evaluate("window.order") == wanted
    # And eight keys: each correction and undo is carried out, in order.
    page.keyboard.press("Alt+2")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    events = session(page)["version"]
    page.wait_for_timeout(400)  # as if nothing more were to be typed
    for key in "ururuuru":  # of the two in the middle the second has nothing left to undo
        page.keyboard.press(key)
    until(
        page,
        "async wanted => (await (await fetch(`/api/sessions/${location.hash.slice(9)}`)).json()).version >= wanted",
        events + 7,
    )
    page.wait_for_selector(".node[aria-current=true] >> nth=0")
    assert session(page)["version"] == events + 7
    assert page.locator(".node").first.get_attribute("aria-current") == "true"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request):
    """None, or the URL of an empty database of a real PostgreSQL server."""
    if request.param == "sqlite":
        yield None
        return
    from postgres import postgres_server

    with postgres_server() as database:
        yield database()


def test_the_page_heals_after_the_server_died(serve, base, endless, new_page, store_url):
    server = serve(RIVER, ramble(base, 200, 2), model=endless, limit=200, store_url=store_url)
    page = new_page(server, expect_errors=True)
    never_pause(page)
    settled(page)
    correct(page, 5, "2")
    stored = answer(page)
    server.kill()
    # A step pressed now is carried out when the server is back: once.
    page.keyboard.press("u")
    page.wait_for_selector("#connection:not([hidden])")
    assert "stored" in page.locator("#connection-text").text_content()
    assert answer(page) == stored
    version = None
    server.start()
    page.wait_for_selector("#connection", state="hidden")
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
    version = session(page)["version"]
    assert session(page)["can"] == {"undo": False, "redo": True}
    # Killed in the middle of a continuation: the page takes it up again by itself.
    page.keyboard.press("r")
    page.wait_for_selector("#answer .anchor")
    assert answer(page) == stored
    assert session(page)["version"] == version + 1
    choose(page, 20, "2")
    until(
        page,
        "() => document.querySelectorAll('#answer .t').length > 25 "
        "&& document.querySelectorAll('#answer .t').length < 200",
    )
    server.kill()
    page.wait_for_selector("#connection:not([hidden])")
    server.start()
    page.wait_for_selector("#connection", state="hidden")
    count(page, 200)
    settled(page)
    assert page.locator("#answer .anchor").count() == 2
    assert session(page)["ended"]


def test_a_step_whose_way_or_reply_is_lost_happens_once(serve, endless, new_page):
    page = new_page(serve(RIVER, model=endless, limit=3000), expect_errors=True)
    url = f"/api/sessions/{session(page)['id']}"
    lost = []

    def on_the_way_there(route):
        # And meanwhile the session moves on for another reason: what streamed is stored.
        origin = page.evaluate("location.origin")
        assert page.request.post(f"{origin}{url}/stop", headers={"origin": origin}).ok
        lost.append(session(page)["version"])
        route.abort()

    def on_the_way_back(route):
        assert route.fetch().ok
        lost.append(session(page)["version"])
        route.abort()

    page.wait_for_selector("#stream-line.running")
    for text, handler in (("first", on_the_way_there), ("second", on_the_way_back)):
        page.route(f"**{url}/note", handler, times=1)
        write_note(page, text)
        until(page, "() => document.querySelector('#notes-state').textContent === 'Stored.'")
        assert session(page)["note"] == text
    before, after = lost
    assert after == before + 2  # the first note, and the second, once each
    assert session(page)["version"] == after


def test_going_on_before_the_reply_to_a_stop_has_come_is_not_undone_by_it(serve, endless, new_page):
    page, stops, streams = new_page(serve(RIVER, model=endless, limit=3000)), [], []
    page.wait_for_selector("#stream-line.running")
    page.route("**/stop", lambda route: stops.append((route, route.fetch())), times=1)
    page.keyboard.press(".")
    page.wait_for_selector("#stream-line:not(.running)")  # the stream's own end was quicker
    before = len(tokens(page))
    page.route("**/stream?*", lambda route: streams.append(route), times=1)  # noqa: PLW0108 - Playwright looks inside
    page.keyboard.press("c")
    page.wait_for_timeout(50)
    with page.expect_response("**/api/sessions/1"):  # the page looks where the stop has left it
        ((route, reply),) = stops
        route.fulfill(response=reply)
    for _ in range(100):
        page.wait_for_timeout(50)
        if streams:
            break
    (stream,) = streams
    stream.continue_()  # no quicker than the look
    until(page, "before => document.querySelectorAll('#answer .t').length > before + 20", before)


def test_an_address_without_its_token_is_told_what_to_do(serve, new_page):
    server = serve(RIVER, limit=20)
    page = new_page(server, expect_errors=True)
    page.context.clear_cookies()
    page.keyboard.press("u")
    settled(page)
    page.evaluate("document.querySelector('#open-queue').click()")
    page.wait_for_selector("#queue-dialog .trouble:not([hidden])")
    assert "address" in page.locator("#queue-dialog .trouble").text_content()


def test_base_and_tuned_side_by_side(serve, new_page, tmp_path):
    model = load_model(dtype="float32", device="cpu")
    model.attach_lora(2, 8.0, 0.0, "mlp", 1)
    for name, weight in model.net.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.05)
    model.net.save_pretrained(tmp_path / "adapter")
    model.codec.tokenizer.save_pretrained(tmp_path / "adapter")
    page = new_page(serve([{"prompt": "Who is the mayor of Gardale?"}], model=str(tmp_path / "adapter"), limit=40))
    settled(page)
    page.keyboard.press("k")
    page.wait_for_selector("#view-compare .columns")
    for column in page.locator("#view-compare .column").all():
        shown = column.locator(".t").count()
        assert shown == column.locator(".strip i").count() > 3
        assert f"{shown} tokens, KL " in column.locator(".strip").get_attribute("aria-label")
    page.keyboard.press("k")
    page.wait_for_selector("#view-answer:not([hidden])")


@pytest.mark.parametrize(("length", "selected_bound", "shown_bound"), [(500, 120, 250), (2000, 200, 400)])
def test_speed(serve, base, endless, new_page, length, selected_bound, shown_bound):
    """Bounds are generous: this runs beside other tests on two cores. benchmarks/page.py gives the real figures."""
    page = new_page(serve(RIVER[:1], ramble(base, length), model=endless, limit=length))
    never_pause(page)
    settled(page)
    assert page.locator("#answer .t").count() == length
    step = length // 12
    selected, shown = clicks(page, [step * (turn + 1) for turn in range(11)])
    times = f"{median(selected):.1f} ms, to painted alternatives {median(shown):.1f} ms"
    sys.stderr.write(f"\n{length} tokens: click to painted selection {times}\n")
    assert median(selected) < selected_bound
    assert median(shown) < shown_bound
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    click_token(page, 400)
    arrived, painted = first_streamed(page, "3")
    sys.stderr.write(f"{length} tokens: key to first streamed token {arrived:.1f} ms, painted {painted:.1f} ms\n")
    assert painted < 1500
    # A token that was selected and one that was corrected are patched in: the others are the same elements as before.
    page.keyboard.press(".")
    page.evaluate("document.querySelector('#answer .t').kept = true")
    page.keyboard.press("u")
    count(page, length)
    assert page.evaluate("document.querySelector('#answer .t').kept") is True
