"""The whole loop in a real browser against a real server over the embedded model: by mouse, and by keyboard alone."""

import pytest
from acts import answer, click_token, count, open_item, rest, session, settled, standing, tokens, until, write_note

from anchorlwf.world import build_world, draw_errata


@pytest.fixture(scope="module")
def errata():
    return draw_errata(build_world(), 6, 0, 3)


@pytest.fixture
def server(serve, errata):
    return serve([{"messages": erratum.prompts(1)[0].messages} for erratum in errata])


def _wrong_token(page, erratum):
    """Where the wrong value begins."""
    shown, start = tokens(page), answer(page).index(erratum.fact.value)
    return next(at for at in range(len(shown)) if len("".join(shown[: at + 1])) > start)


def _decided(page, before):
    until(page, "before => location.hash !== before", before)
    settled(page)


def test_mouse(server, errata, new_page):
    page = new_page(server)
    settled(page)
    first, begun = answer(page), page.evaluate("location.hash")
    wrong = _wrong_token(page, errata[0])
    assert page.locator("#accept-text").text_content() == "Right as it is"
    assert page.locator("#do-undo").is_disabled()

    click_token(page, wrong)
    stood = [text for text, stands in standing(page) if stands]
    assert stood == [tokens(page)[wrong].replace(" ", "·", 1)]
    page.keyboard.type(errata[0].value)
    page.wait_for_selector("#picker .preview .chip")
    page.keyboard.press("Enter")
    until(page, "value => document.querySelector('#answer').textContent.includes(value)", errata[0].value)
    settled(page)
    corrected = answer(page)
    assert corrected == first.replace(errata[0].fact.value, errata[0].value)
    assert page.locator("#answer .anchor").count() == len(session(page)["anchors"]) >= 1
    assert page.locator("#accept-text").text_content() == "Accept"

    page.locator("#do-undo").click()
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
    assert answer(page) == first
    page.locator("#do-redo").click()
    until(page, "() => document.querySelectorAll('#answer .anchor').length > 0")
    assert answer(page) == corrected

    page.locator(".anchor-row").first.click()
    page.locator("#picker [aria-label='Less confidence']").click()
    until(page, "() => document.querySelector('.about-confidence b').textContent === '90 %'")
    page.locator("#tab-changes").click()
    page.wait_for_selector("#view-changes ins")
    assert errata[0].fact.value.endswith(page.locator("#view-changes del").first.text_content().strip())
    page.locator("#tab-answer").click()
    page.locator(".node").first.click()  # the history: back to the model's own answer, and down again
    until(page, "first => document.querySelector('#answer').textContent.startsWith(first)", first)
    page.locator(".node").nth(1).click()
    until(page, "() => document.querySelectorAll('#answer .anchor').length > 0")

    write_note(page, "looked it up")
    page.locator("#tags").fill("checked, twice")
    page.locator("#do-accept").click()
    _decided(page, begun)
    until(page, "() => document.querySelector('#progress').getAttribute('aria-valuenow') === '1'")
    record = server.records()[0]
    assert record["completion"] == corrected
    assert record["status"] == "complete"
    assert record["tags"][-2:] == ["checked", "twice"]
    assert record["anchors"][0]["confidence"] == 0.9
    assert record["anchors"][0]["source"] == "human:ada"

    # The second one is right as it stands; taking that back brings the page back too.
    begun = page.evaluate("location.hash")
    page.locator("#do-accept").click()
    _decided(page, begun)
    assert [record["tags"][-1:] for record in server.records()[1:]] == [["keep"]]
    page.locator("#toast-button").click()
    until(page, "before => location.hash === before", begun)
    assert page.locator("#where").text_content().startswith("Kept")
    assert page.locator("#decided").is_visible()
    page.locator("#do-undo").click()
    until(page, "() => !document.querySelector('#do-accept').disabled")
    assert session(page)["status"] == "open"


def test_keyboard_alone(server, errata, new_page):
    page = new_page(server)
    settled(page)
    press, first, begun = page.keyboard.press, answer(page), page.evaluate("location.hash")
    wrong = _wrong_token(page, errata[0])
    assert page.evaluate("document.activeElement.position") == 0  # the keys are there from the beginning
    for _ in range(wrong):
        press("ArrowRight")
    focused = page.evaluate("[document.activeElement.position, document.activeElement.getAttribute('aria-label')]")
    assert focused[0] == wrong
    assert focused[1].startswith(tokens(page)[wrong].strip())
    press("ArrowLeft")
    press("ArrowRight")
    page.wait_for_selector(f"#picker[data-shown*='/{wrong}/']:not([hidden])")
    third, stands = standing(page)[2]
    assert not stands
    press("Alt+3")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    assert tokens(page)[wrong].replace(" ", "·", 1) == third
    for key, anchors in (("u", 0), ("r", 1), ("u", 0)):
        press(key)
        until(page, "anchors => document.querySelectorAll('#answer .anchor').length === anchors", anchors)
    assert answer(page) == first

    # Another branch from the same place, with text of several tokens; the first stays in the history.
    press("Home")
    for _ in range(wrong):
        press("ArrowRight")
    press("Enter")
    page.keyboard.type(errata[0].value)
    press("Enter")
    until(page, "value => document.querySelector('#answer').textContent.includes(value)", errata[0].value)
    settled(page)
    assert page.locator(".node").count() == 3
    assert page.evaluate("document.activeElement.position") == wrong
    rest(page)
    press("[")
    press("[")
    until(page, "() => document.querySelector('.anchor-row .quiet').textContent === '80 %'")
    press("]")
    until(page, "() => document.querySelector('.anchor-row .quiet').textContent === '90 %'")

    press("?")
    page.wait_for_selector("#help-dialog[open]")
    press("Escape")
    press("/")
    page.keyboard.type("changes")
    press("Enter")
    page.wait_for_selector("#view-changes ins")
    rest(page)
    press("d")
    page.wait_for_selector("#view-answer:not([hidden])")
    press("a")
    _decided(page, begun)
    assert server.records()[0]["completion"] == first.replace(errata[0].fact.value, errata[0].value)

    for key, status in (("x", "rejected"), ("a", "complete")):
        begun, known = page.evaluate("location.hash"), len(server.records())
        press(key)
        _decided(page, begun)
        assert [record["status"] for record in server.records()[known:]] == [status]
    begun = page.evaluate("location.hash")
    press("s")
    _decided(page, begun)
    press("b")
    until(page, "before => location.hash === before", begun)
    assert session(page)["status"] == "skip"


def test_one_correction_at_a_time_and_its_trouble_stands_beside_it(server, new_page):
    page = new_page(server, expect_errors=True)  # the browser notes the refused requests
    settled(page)
    before = tokens(page)
    click_token(page, 2)
    page.keyboard.type(before[2].strip())
    page.keyboard.press("Enter")  # the same text again changes nothing
    page.wait_for_selector("#picker .trouble:not([hidden])")
    assert "same" in page.locator("#picker .trouble").text_content()
    assert tokens(page) == before
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.route(
        "**/undo",
        lambda route: route.fulfill(
            status=507,
            content_type="application/json",
            body=('{"error": {"type": "StorageError", "message": "the disk is full. Make room."}}'),
        ),
    )
    click_token(page, 2)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    rest(page)
    page.keyboard.press("u")
    page.wait_for_selector("#action-trouble:not([hidden])")
    assert page.locator("#action-trouble").text_content() == "the disk is full. Make room."
    assert page.locator("#answer .anchor").count() == 1
    page.unroute("**/undo")
    page.keyboard.press("u")
    count(page, len(before))
    assert page.locator("#action-trouble").is_hidden()


@pytest.mark.parametrize("key", ["Enter", "Alt+2"])
def test_a_key_that_comes_before_the_alternatives_chooses_among_them_and_not_among_others(server, new_page, key):
    page = new_page(server)
    settled(page)
    click_token(page, 3)  # its alternatives are listed, and must not be taken for those of the next token
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    held = []
    page.route("**/alternatives?*", lambda route: held.append(route))  # noqa: PLW0108 - a bound built-in has no signature to read
    page.locator("#answer .t").nth(2).click()
    page.keyboard.press(key)
    until(page, "() => document.querySelector('#picker').classList.contains('waiting')")
    assert page.locator("#answer .anchor, #answer .pending").count() == 0
    held[0].continue_()
    page.wait_for_selector("#answer .anchor")
    page.unroute("**/alternatives?*")
    settled(page)
    shown = session(page)
    [anchor] = shown["anchors"]
    offered = page.evaluate(
        "async ([id, node]) => (await fetch(`/api/sessions/${id}/alternatives?node=${node}&position=2&top=3`)).json()",
        [shown["id"], shown["node"]],
    )["options"]
    assert anchor["position"] == 2
    assert anchor["token_id"] in {option["id"] for option in offered}


def test_the_end_of_the_queue_says_so(serve, new_page):
    page = new_page(serve([{"prompt": "Who is the mayor of Gardale?"}]))
    settled(page)
    page.keyboard.press("a")
    page.wait_for_selector("#empty:not([hidden])")
    assert "1 of 1 items are done" in until(
        page,
        "() => { const text = document.querySelector('#empty').textContent; "
        "return text.includes('items are done') && text; }",
    )


def test_a_reload_and_a_second_tab_show_the_same(server, new_page):
    page = new_page(server)
    shown = open_item(page, 3)
    settled(page)
    click_token(page, 1)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    corrected = answer(page)
    page.reload()
    page.wait_for_selector("#answer .anchor")
    assert answer(page) == corrected
    second = page.context.new_page()
    second.goto(page.url)
    second.wait_for_selector("#answer .anchor")
    rest(page)
    page.keyboard.press("u")
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
    second.keyboard.press("u")  # too late: there is nothing to undo any more, and the tab sees why
    until(second, "() => document.querySelectorAll('#answer .anchor').length === 0")
    assert session(second)["id"] == shown["id"]
