"""What is typed is typed, with the spaces that belong there, and an answer ends where it is told to."""

import json

import pytest
from acts import answer, click_token, flaws, never_pause, open_item, rest, session, settled, standing, tokens, until
from served import given, long_model, ramble

RECIPE = "It takes two eggs and bakes 42 minutes.\nThen it is green."
YEAR = "She was born in 1931."


@pytest.fixture(scope="module")
def server(serve, base):
    end = base.codec.tokenizer.eos_token_id
    answers = {at: given([*base.codec.encode(text), end]) for at, text in enumerate([RECIPE, YEAR, RECIPE])}
    return serve([{"prompt": f"Question {number}"} for number in range(6)], answers)


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model that never ends its turn."""
    return long_model(tmp_path_factory.mktemp("models") / "long")


def _place(page, piece):
    """The token with which a part of the answer begins."""
    shown = [token["text"] for token in session(page)["tokens"]]
    place = "".join(shown).index(piece)
    return next(at for at in range(len(shown)) if len("".join(shown[:at])) == place)


def _corrected(page, answers):
    until(page, "wanted => document.querySelectorAll('.node').length === wanted", answers)
    settled(page)


def _text(page):
    return "".join(token["text"] for token in session(page)["tokens"])


def test_digits_and_letters_in_the_field_are_text_however_quick(server, new_page):
    page = new_page(server)
    open_item(page, 0)
    begun, stood = page.evaluate("location.hash"), answer(page)
    click_token(page, _place(page, " two"))
    page.keyboard.type("120 minutes")
    assert page.locator("#picker .field").input_value() == "120 minutes"
    assert page.locator("#answer .anchor, #answer .pending").count() == 0
    # Whoever goes on typing behind the Enter does not reject, skip, note or undo anything.
    page.keyboard.press("Enter")
    page.keyboard.type("axsue5/", delay=20)
    page.wait_for_selector("#answer .anchor")
    settled(page)
    assert answer(page).startswith(stood[: stood.index(" two")] + " 120 minutes")
    shown = session(page)
    assert (page.evaluate("location.hash"), shown["status"], shown["note"]) == (begun, "open", "")
    assert [node["given"] for node in shown["nodes"]] == ["", " 120 minutes"]
    assert page.locator("dialog[open]").count() == 0
    # And a moment later the same keys do what they say.
    rest(page)
    page.keyboard.press("u")
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")


def test_the_same_where_a_note_has_just_been_written(server, new_page):
    page = new_page(server)
    open_item(page, 3)
    begun = page.evaluate("location.hash")
    page.keyboard.press("e")
    page.keyboard.type("it is wron")
    page.keyboard.press("Escape")
    page.keyboard.type("gsax", delay=20)
    rest(page)
    assert (page.evaluate("location.hash"), session(page)["status"]) == (begun, "open")
    assert page.evaluate("document.activeElement.matches('#answer .t')")
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes:not([hidden])")


def test_with_alt_a_digit_chooses_and_beside_numbers_a_digit_alone_is_typed(server, new_page):
    page = new_page(server)
    open_item(page, 1)
    at = _place(page, "931")
    click_token(page, at)
    offered = [text for text, _ in standing(page)]
    assert any(text.strip("·").isdigit() for text in offered)
    assert not page.locator("#options kbd").first.is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.position") == at
    # Outside of the field: the entries are numbers, so they are not numbered, and a digit is the beginning of a text.
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#picker[data-shown*='/{at}/']")
    assert not page.locator("#options kbd").first.is_visible()
    page.keyboard.type("84")
    assert page.locator("#picker .field").input_value() == "84"
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.wait_for_selector(f"#picker[data-shown$='/{at}/']")
    second, stands = standing(page)[1]
    assert not stands
    page.keyboard.press("Alt+2")
    _corrected(page, 2)
    assert tokens(page)[at] == second.replace("·", " ")


def test_where_the_alternatives_are_words_they_are_numbered_and_a_digit_chooses(server, new_page):
    page = new_page(server, expect_errors=True)
    open_item(page, 1)
    # What the model holds possible is asked of it; here it is only words.
    words = [{"id": at, "text": f" word{at}", "p": 0.1, "stands": at == 5} for at in range(5, 15)]
    body = json.dumps({"node": 0, "position": 2, "options": words})
    page.route("**/alternatives?*", lambda route: route.fulfill(body=body, content_type="application/json"))
    page.keyboard.press("Home")
    page.wait_for_selector("#picker[data-shown*='/0/']")
    assert page.locator("#options kbd").first.is_visible()
    asked = []
    page.route("**/correct", lambda route: (asked.append(route.request.post_data_json), route.abort()))
    page.keyboard.press("3")
    until(page, "() => document.querySelector('#answer .pending')")
    assert (asked[0]["position"], asked[0]["token_ids"]) == (0, [7])
    page.unroute("**/correct")


def _preview(page, text):
    page.locator("#picker .field").fill(text)
    until(
        page,
        "text => [...document.querySelectorAll('#picker .preview .chip:not(.before)')]"
        ".map((one) => one.textContent).join('').replace(/·/g, ' ').trim() === text.trim()",
        text,
    )
    chips = page.locator("#picker .preview .chip:not(.before)").all_text_contents()
    return "".join(chips)


@pytest.mark.parametrize(
    ("piece", "typed", "preview"),
    [
        (" two", "three", "·three"),
        (" two", ".", "."),
        (" two", ", then", ",·then"),
        (" two", "<|im_end|>", "<|im_end|>"),
        (" two", " three", "·three"),
        ("Then", "Now", "Now"),
    ],
)
def test_a_space_stands_where_it_belongs_and_the_preview_shows_it(server, new_page, piece, typed, preview):
    page = new_page(server)
    open_item(page, 2)
    text = _text(page)
    click_token(page, _place(page, piece))
    assert _preview(page, typed) == preview
    assert page.locator("#picker .preview .before").count() == 1
    nodes = len(session(page)["nodes"])
    page.keyboard.press("Enter")
    until(page, "before => document.querySelectorAll('.node').length > before", nodes)
    settled(page)
    assert _text(page).startswith(text[: text.index(piece)] + preview.replace("·", " "))
    rest(page)
    page.keyboard.press("u")
    until(page, "() => document.querySelector('.node').getAttribute('aria-current')")


def test_the_space_can_be_left_out(server, new_page):
    page = new_page(server)
    open_item(page, 2)
    click_token(page, _place(page, " two"))
    page.locator("#picker .field").fill("ly")
    page.get_by_text("keep the space").click()
    until(page, "() => document.querySelector('#picker .preview .chip:not(.before)')?.textContent[0] === 'l'")
    page.keyboard.press("Escape")


def test_the_answer_ends_behind_the_correction(server, new_page):
    page = new_page(server)
    open_item(page, 4)
    before = tokens(page)
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#picker[data-shown*='/1/']")
    second = standing(page)[1][0].replace("·", " ")
    page.keyboard.press("Alt+2")
    _corrected(page, 2)
    rest(page)
    page.keyboard.press("f")  # one key more
    until(page, "() => document.querySelectorAll('#answer .t').length === 3")
    assert tokens(page) == [before[0], second, "<|im_end|>"]
    shown = session(page)
    assert (shown["ended"], shown["truncated"], shown["streaming"]) == (True, False, False)
    assert page.locator("#do-accept").is_enabled()
    page.keyboard.press("f")
    page.wait_for_selector("#toast:not([hidden])")
    assert page.locator("#toast-text").text_content() == "The answer ends there already."
    # From the field: all that was typed, and the end.
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.keyboard.type("She is here.")
    page.keyboard.press("Control+Enter")
    until(page, "() => document.querySelector('#answer').textContent.startsWith('She is here.')")
    assert _text(page) == "She is here.<|im_end|>"
    # Until the server has answered, what may not stay is grey.
    until(page, "() => !document.querySelector('#answer .pending')")
    assert flaws(page) == []


def test_by_mouse_alone_an_answer_is_corrected_ended_and_accepted(server, new_page):
    page = new_page(server)
    open_item(page, 5)
    begun = page.evaluate("location.hash")
    click_token(page, 0)
    row = next(at for at, (_, stands) in enumerate(standing(page)) if not stands)
    wanted = standing(page)[row][0].replace("·", " ")
    page.locator("#options li").nth(row).click()
    page.wait_for_selector("#answer .anchor")
    settled(page)
    click_token(page, 2)
    word = next(text for text, stands in standing(page) if stands).replace("·", " ")
    page.locator("#picker").get_by_text("put it, and end there").click()  # the best that does not stand there
    until(page, "() => document.querySelectorAll('#answer .t').length === 4")
    assert tokens(page)[0] == wanted
    assert tokens(page)[2] != word
    assert tokens(page)[3] == "<|im_end|>"
    page.locator("#do-accept").click()
    until(page, "before => location.hash !== before || document.querySelector('#empty:not([hidden])')", begun)


RIVER = [{"prompt": "Tell me everything about the river."}, {"prompt": "And about the town."}]


def test_a_long_continuation_pauses_and_what_will_not_stay_is_grey(serve, base, endless, new_page):
    page = new_page(serve(RIVER, ramble(base, 800, 2), model=endless, limit=800), height=480)
    settled(page)
    held = []
    page.route("**/correct", lambda route: held.append(route), times=1)  # noqa: PLW0108 - Playwright looks inside
    click_token(page, 10)
    page.keyboard.press("Alt+2")
    page.wait_for_selector("#answer .pending")

    def ink(at):
        return page.evaluate("at => getComputedStyle(document.querySelectorAll('#answer .t')[at]).color", at)

    assert ink(12) == ink(700) != ink(5)
    page.wait_for_timeout(100)
    held[0].continue_()
    page.wait_for_selector("#answer .anchor")
    assert page.locator("#answer .cut").count() == 0
    # It pauses where a person has a screenful to look at.
    page.wait_for_selector("#stream-line:not(.running):not([hidden])", timeout=60_000)
    assert "pause" in page.locator("#stream-text").text_content().lower()
    length = session(page)["length"]
    assert 100 < length < 600
    page.wait_for_timeout(200)
    assert session(page)["length"] == length
    assert page.locator("#do-accept").is_disabled()
    assert flaws(page) == []
    page.keyboard.press("c")
    until(page, "before => document.querySelectorAll('#answer .t').length > before", length)
    page.wait_for_selector("#stream-line:not(.running):not([hidden])", timeout=60_000)
    assert session(page)["length"] > length
    page.locator("#stream-end").click()
    until(page, "() => !document.querySelector('#do-accept').disabled")
    shown = session(page)
    assert (shown["tokens"][-1]["text"], shown["ended"], shown["truncated"]) == ("<|im_end|>", True, False)
    # Whoever wants all of it at once gets it.
    rest(page)
    page.keyboard.press("u")
    never_pause(page)
    page.wait_for_selector("#stream-line:not([hidden])")
    page.keyboard.press("c")
    until(page, "() => document.querySelectorAll('#answer .t').length === 800")


def test_a_cut_answer_goes_on(serve, endless, new_page):
    page = new_page(serve(RIVER, model=endless, limit=40))
    settled(page)
    assert len(tokens(page)) == 40
    assert page.locator("#stream-text").text_content() == "Cut at the token limit"
    page.keyboard.press("c")
    until(page, "() => document.querySelectorAll('#answer .t').length === 80")
    settled(page)
    assert session(page)["truncated"]
    page.locator("#stream-button").click()
    until(page, "() => document.querySelectorAll('#answer .t').length === 120")
    settled(page)
    page.reload()
    until(page, "() => document.querySelectorAll('#answer .t').length === 120")
