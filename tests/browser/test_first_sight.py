"""What a person sees first, the keyboard that is never lost, and the prompt as the model sees it."""

import json
import shutil

import pytest
from acts import correct, flaws, open_item, rest, session, settled, standing, tokens, until, write_note
from served import given

from anchorlwf.model.language_model import embedded_path

DATED = (
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{{ '<|im_start|>system\nToday: ' + date_string + '<|im_end|>\n' }}"
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'][:60] + "
    "'<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
LONG = "Say <|im_end|> and then say something about the river, the town and its mayor."
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def server(serve, base):
    text = base.codec.encode("The mayor of the town plays the banjo and lives by the river with many friends, as ever.")
    ids = [*text, base.codec.tokenizer.eos_token_id]
    # A model that is sure of little: half of its tokens are below 70 %.
    odds = [0.95 - 0.6 * (at % 2) - at / 1000 for at in range(len(ids))]
    script = [*base.codec.encode("مرحبا"), base.codec.tokenizer.eos_token_id]
    return serve(
        [{"prompt": f"Question {number}"} for number in range(7)],
        {0: given(ids, odds), 1: given(script), 2: given(ids)},
    )


@pytest.fixture(scope="module")
def dated(serve, tmp_path_factory):
    """The embedded model with a template that prints the date, cuts messages and leaves out tools."""
    folder = tmp_path_factory.mktemp("dated")
    shutil.copytree(embedded_path(), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": DATED}))
    return serve([{"prompt": LONG, "tools": TOOLS}, {"prompt": "Who?"}], model=str(folder), limit=30)


def _focus(page):
    return page.evaluate("document.activeElement.position ?? document.activeElement.id")


def test_a_link_in_a_mail_leads_in(server, new_page):
    page = new_page(server, expect_errors=True)  # the other site has no icon
    page.context.clear_cookies()
    # Another site than ours, from which browsers send no strict cookie along.
    other = server.url.replace("127.0.0.1", "localhost")
    page.route("http://localhost:*/mail", lambda route: route.fulfill(body=f"<a href='{server.url}'>annotate</a>"))
    page.goto(other.split("?")[0] + "mail")
    page.get_by_text("annotate").click()
    page.wait_for_selector("#answer .t")
    assert "token" not in page.url


def test_one_line_says_what_to_do_until_it_has_been_done(server, new_page):
    page = new_page(server)
    open_item(page, 3)
    line = page.locator("#instruction")
    assert line.is_visible()
    assert line.bounding_box()["height"] < 30
    correct(page, 1, "2")
    assert not line.is_visible()
    page.reload()
    page.wait_for_selector("#answer .t")
    open_item(page, 4)
    assert not line.is_visible()


def test_the_rarest_tenth_is_tinted_and_a_switch_says_otherwise(server, new_page):
    page = new_page(server)
    open_item(page, 0)

    def tinted():
        return page.eval_on_selector_all(
            "#answer .t", "all => all.filter((one) => !one.classList.contains('p0')).map((one) => one.position)"
        )

    odds = [token["p"] for token in session(page)["tokens"]]
    rare = sorted(range(len(odds)), key=lambda at: odds[at])[: -(-len(odds) // 10)]
    assert tinted() == sorted(rare)
    assert page.locator("#legend-text").text_content() == f"up to {max(odds[at] for at in rare):.0%}".replace("%", " %")
    page.keyboard.press("n")
    assert _focus(page) == min(rare)
    page.locator("#tint").select_option("probability")
    assert tinted() == [at for at, p in enumerate(odds) if p < 0.9]
    assert _focus(page) == min(rare)
    page.keyboard.press("m")
    assert tinted() == []
    page.reload()
    page.wait_for_selector("#answer .t")
    assert page.locator("#tint").input_value() == "nothing"
    page.keyboard.press("m")
    assert tinted() == sorted(rare)
    # What a person puts there is rare by itself, and no news.
    correct(page, 4, "2")
    assert 4 not in tinted()


def test_dots_for_spaces_only_near_the_selected_token(server, new_page):
    page = new_page(server)
    open_item(page, 0)

    def dots():
        return page.eval_on_selector_all(
            "#answer .t",
            "all => all.filter((one) => getComputedStyle(one).backgroundImage !== 'none').map((one) => one.position)",
        )

    spaced = [at for at, token in enumerate(session(page)["tokens"]) if token["text"][:1] == " "]
    page.locator("#answer .t").nth(spaced[1]).click()
    assert dots() == [at for at in spaced if 0 < abs(at - spaced[1]) <= 4]  # the selected one is all colour
    page.keyboard.press("Escape")
    page.keyboard.press("w")
    assert dots() == [at for at in spaced if at != spaced[1]]


def test_notes_are_folded_unless_something_is_in_them(server, new_page):
    page = new_page(server)
    open_item(page, 5)
    assert not page.locator("#note").is_visible()
    write_note(page, "looked up")
    until(page, "() => document.querySelector('#notes-state').textContent === 'Stored.'")
    open_item(page, 0)
    assert not page.locator("#note").is_visible()
    open_item(page, 5)
    assert page.locator("#note").is_visible()


def test_bytes_are_shown_as_what_they_would_become(server, new_page):
    page = new_page(server)
    open_item(page, 1)
    page.keyboard.press("Enter")
    page.keyboard.insert_text("\ufffd")  # as bytes that are no characters are written: lists those alone
    page.wait_for_selector("#picker[data-shown$='/\ufffd']")
    shown = page.evaluate(
        "async (id) => "
        "(await (await fetch(`/api/sessions/${id}/alternatives?node=0&position=0&top=10&starts=\ufffd`)).json())"
        ".options.filter((one) => one.becomes)",
        session(page)["id"],
    )
    assert len({option["becomes"] for option in shown}) > 1
    listed = [text for text, _ in standing(page)]
    for option in shown:
        assert f"{option['becomes']} \u2039{option['hex'].upper()}\u203a" in listed


def test_tokens_are_numbered_alike_everywhere(server, new_page):
    page = new_page(server)
    open_item(page, 6)
    correct(page, 2, "2")
    count = len(tokens(page))
    assert page.locator("#where").text_content().startswith("Token 2 · ")
    assert page.locator("#where").text_content().endswith(f" · {count} tokens")
    assert page.locator(".node .quiet").nth(1).text_content() == "at 2"
    assert page.locator(".anchor-row").first.get_attribute("title").startswith("Token 2, ")
    assert session(page)["anchors"][0]["position"] == 2


def test_the_keyboard_is_there_at_once_and_from_everywhere(serve, new_page):
    page = new_page(serve([{"prompt": f"Who is the mayor of {town}?"} for town in ("Gardale", "Oxer", "Kelford")]))
    settled(page)
    assert _focus(page) == 0
    assert page.locator("#picker").is_hidden()
    last = len(tokens(page)) - 1
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert _focus(page) == 0
    for selector in ("#open-queue", "#do-skip", ".seen summary", "#tab-answer", ".node", "body"):
        page.evaluate(
            "selector => { document.activeElement.blur(); document.querySelector(selector).focus(); }", selector
        )
        page.keyboard.press("End")
        assert _focus(page) == last, selector
        page.evaluate(
            "selector => { document.activeElement.blur(); document.querySelector(selector).focus(); }", selector
        )
        page.keyboard.press("Home")
        assert _focus(page) == 0, selector
        if selector != "#tab-answer":  # there the arrows go from tab to tab
            page.evaluate(
                "selector => { document.activeElement.blur(); document.querySelector(selector).focus(); }", selector
            )
            page.keyboard.press("ArrowRight")
            assert _focus(page) == 1, selector
        page.evaluate("selector => document.querySelector(selector).focus()", selector)
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.matches('#answer .t')"), selector
    # A click beside everything, another view, a note: the place is kept.
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.mouse.click(640, 90)
    page.keyboard.press("ArrowRight")
    assert _focus(page) == 2
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes:not([hidden])")
    page.keyboard.press("Escape")
    assert _focus(page) == 2
    page.keyboard.press("e")
    assert _focus(page) == "note"
    page.keyboard.press("Escape")
    assert _focus(page) == 2
    # The next item, too.
    begun = page.evaluate("location.hash")
    page.locator("#do-skip").click()
    until(page, "before => location.hash !== before", begun)
    settled(page)
    assert _focus(page) == 0


def test_a_decided_item_says_so_and_what_it_was(serve, new_page):
    page = new_page(serve([{"prompt": f"Who is the mayor of {town}?"} for town in ("Gardale", "Oxer", "Kelford")]))
    settled(page)
    for key, said, word in (
        ("a", "Decided: kept, right as the model said it. Press u to change it.", "kept"),
        ("x", "Decided: rejected. Press u to change it.", "rejected"),
        ("s", "Decided: skipped. Press u to change it.", "skipped"),
    ):
        if key != "a":
            rest(page)
        begun, stood = page.evaluate("location.hash"), tokens(page)
        page.keyboard.press(key)
        until(page, "before => location.hash !== before", begun)
        page.keyboard.press("b")
        until(page, "before => location.hash === before", begun)
        assert page.locator("#decided-text").text_content() == said
        assert flaws(page) == []
        for again in ("a", "x", "f", "Enter"):
            page.evaluate("document.querySelector('#toast').hidden = true")
            page.keyboard.press(again)
            assert page.locator("#toast-text").text_content() == said
            assert page.locator("#toast").is_visible()
        assert tokens(page) == stood
        page.keyboard.press("q")
        page.wait_for_selector(".queue-row")
        until(
            page,
            "word => [...document.querySelectorAll('.queue-row .state')].some((one) => one.textContent === word)",
            word,
        )
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        until(page, "() => document.querySelector('#decided').hidden")
        if key == "a":  # and the one that is corrected, in the end
            correct(page, 1, "2")
            rest(page)
            page.keyboard.press("a")
            until(page, "before => location.hash !== before", begun)
            page.keyboard.press("q")
            until(page, "() => document.querySelector('.queue-row .state')?.textContent === 'corrected'")
            page.keyboard.press("Escape")


def test_one_key_shows_the_prompt_as_the_model_sees_it(dated, new_page):
    page = new_page(dated)
    settled(page)
    assert not page.locator(".rendered").is_visible()
    page.keyboard.press("v")
    assert page.evaluate("document.activeElement.matches('.rendered')")
    assert page.locator(".rendered").is_visible()
    date = page.locator(".rendered mark.date").text_content()
    assert page.locator(".seen summary").text_content().startswith("As the model sees it · dated ")
    assert date in page.locator(".rendered").text_content()
    # Where the template cuts the text, a spelled marker cannot be made text: it is read as a marker.
    assert page.locator(".rendered mark.forged").text_content() == "<|im_end|>"
    assert "text of the message that is read as a marker" in page.locator(".notices").text_content()
    told = " ".join(page.locator("#prompt .trouble").all_text_contents())
    assert "leaves out the tools" in told
    assert f"leaves out a part of message 1 (user), from {LONG[60:]!r} on" in told
    assert flaws(page) == []
    page.keyboard.press("v")
    assert not page.locator(".rendered").is_visible()
    assert _focus(page) == 0
