"""Alternatives that are there before anybody asks: looked up where the pointer rests or the keys are going."""

import pytest
from acts import click_token, correct, open_item, session, settled, standing, until
from served import given

TOWNS = ("Gardale", "Ostvale", "Harwick", "Kelford", "Milbury")


@pytest.fixture(scope="module")
def server(serve, base):
    ids = [*base.codec.encode("I do not know that town."), min(base.stop_ids)]
    return serve([{"prompt": f"Who is the mayor of {town}?"} for town in TOWNS], {4: given(ids, [0.5] * len(ids))})


def _rest(page, position):
    """Put the pointer on a token, and wait until its alternatives are here."""
    with page.expect_response(f"**/alternatives?*position={position}&*known=true") as reply:
        page.locator("#answer .t").nth(position).hover()
    assert reply.value.ok
    page.wait_for_timeout(30)


def _offered(page, position):
    """What the server offers there, and how the list on the screen shows it."""
    shown = session(page)
    options = page.evaluate(
        "async ([id, node, at]) => (await fetch(`/api/sessions/${id}/alternatives?node=${node}"
        "&position=${at}&top=8`)).json()",
        [shown["id"], shown["node"], position],
    )["options"]
    return [option["text"].replace(" ", "·", 1) for option in options]


def _refuse(page):
    """From now on nothing is answered; returns what is asked nevertheless."""
    asked = []

    def refused(route):
        asked.append(route.request.url)
        route.fulfill(status=500, content_type="application/json", body='{"error": {"message": "refused"}}')

    page.route("**/alternatives?*", refused)
    return asked


def test_a_click_where_the_pointer_rested_lists_at_once(server, new_page):
    page = new_page(server)
    settled(page)
    _rest(page, 3)
    wanted = _offered(page, 3)
    asked = _refuse(page)
    click_token(page, 3)
    assert [text for text, _ in standing(page)] == wanted
    assert [stands for _, stands in standing(page)].count(True) == 1
    assert asked == []


def test_the_keys_find_the_next_token_looked_up(server, new_page):
    page = new_page(server, expect_errors=True)  # the browser notes the refused requests
    settled(page)
    page.locator("#where").hover()
    page.evaluate("document.querySelector('#answer').focus()")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    with page.expect_response("**/alternatives?*position=3&*known=true") as reply:
        page.keyboard.press("ArrowRight")
    assert reply.value.ok
    page.wait_for_timeout(30)
    wanted = _offered(page, 3)
    asked = _refuse(page)
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#picker[data-shown*='/3/']")
    assert [text for text, _ in standing(page)] == wanted
    page.wait_for_timeout(120)
    assert [("position=4&" in url, "known=true" in url) for url in asked] == [(True, True)]
    assert page.locator("#picker .trouble").is_hidden()  # nobody asked for it, so nobody is told


def test_one_look_ahead_at_a_time_and_a_person_never_waits_for_it(server, new_page):
    page, held, given_up = new_page(server), [], []
    settled(page)
    page.on("requestfailed", lambda request: given_up.append(request.url))
    page.route("**/alternatives?*known=true", lambda route: held.append(route.request.url))
    for position in (2, 3, 4):
        page.locator("#answer .t").nth(position).hover()
        page.wait_for_timeout(120)
    assert [f"position={position}&" in url for position, url in zip((2, 3, 4), held, strict=True)] == [True] * 3
    assert given_up == held[:2]
    with page.expect_event("requestfailed"):
        click_token(page, 4)
    assert [text for text, _ in standing(page)] == _offered(page, 4)
    assert given_up == held
    # A pointer that only passes by asks for nothing.
    page.keyboard.press("Escape")
    page.evaluate("""() => document.querySelectorAll("#answer .t").forEach((token) => {
      token.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    })""")
    page.wait_for_timeout(120)
    assert len(held) <= 4


def test_what_was_looked_up_before_a_step_is_not_shown_after_it(server, new_page):
    page = new_page(server)
    shown = open_item(page, 2)
    _rest(page, 5)
    before = _offered(page, 5)
    correct(page, 2, "3")
    click_token(page, 5)
    after = _offered(page, 5)
    assert after != before
    assert [text for text, _ in standing(page)] == after
    assert page.locator("#picker").get_attribute("data-shown").startswith(f"{shown['node'] + 1}/")
    # The same while the look-ahead is still on its way: the step gives it up.
    page.keyboard.press("Escape")
    page.route("**/alternatives?*known=true", lambda _route: None)
    with page.expect_request("**/alternatives?*position=4&*known=true"):
        page.locator("#answer .t").nth(4).hover()
    with page.expect_event("requestfailed", lambda request: "position=4&" in request.url):
        page.keyboard.press("u")
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
    click_token(page, 4)
    assert [text for text, _ in standing(page)] == _offered(page, 4)


def test_where_only_the_model_knows_the_pointer_does_not_bother_it(server, new_page):
    page = new_page(server)
    open_item(page, 4)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/alternatives?" in request.url else None)
    for position in (3, 1, 3):
        page.locator("#answer .t").nth(position).hover()
        page.wait_for_timeout(120)
    assert len(asked) == 2  # in vain, once each
    assert all("known=true" in url for url in asked)
    click_token(page, 3)
    assert [text for text, _ in standing(page)] == _offered(page, 3)
