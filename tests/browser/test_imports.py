"""Files brought into the project on the page, what is said of them, and how far people agree."""

import json

import httpx
import pytest
from acts import flaws, rest, session, settled, tokens, until

TOKENS = {"ada": "a" * 32, "bob": "b" * 32}
ASK = [{"role": "user", "content": "Who is the mayor of Gardale?"}]
EVIL = "<img src=x onerror=alert(1)>"


def lawftrack(*samples):
    return json.dumps(
        {
            "name": "set",
            "base_model": "m",
            "samples": [
                {
                    "id": name,
                    "messages": [*ASK, {"role": "assistant", "content": answer}],
                    "anchors": [{"token_index": 0, "replacement_token": text} for text in wanted],
                }
                for name, answer, wanted in samples
            ],
        }
    )


@pytest.fixture(scope="module")
def server(serve):
    return serve([{"prompt": "Who are you?"}], limit=30)


def _import(page, tmp_path, content):
    """The whole way by keyboard, except for the browser's own file chooser."""
    path = tmp_path / "given.json"
    path.write_text(content, encoding="utf-8")
    page.keyboard.press("/")
    page.keyboard.type("import")
    page.keyboard.press("Enter")
    page.wait_for_selector("#import-dialog[open]")
    assert page.evaluate("document.activeElement.id") == "import-file"
    page.locator("#import-file").set_input_files(path)
    until(page, "() => !document.querySelector('#import-dialog .primary').disabled")
    page.locator("#import-form").focus()
    page.keyboard.press("Tab")
    if page.evaluate("document.activeElement.id") == "import-span":
        page.keyboard.press("End")  # every token of it
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#import-dialog :is([role=status]:not(:empty), .trouble:not([hidden]))")
    until(page, "() => !document.querySelector('#import-dialog .primary').disabled")
    return page.locator("#import-dialog [role=status]").text_content()


def test_a_lawftrack_data_set_comes_in_and_says_what_does_not_fit(server, new_page, tmp_path):
    page = new_page(server)
    settled(page)
    content = lawftrack(("s1", "Mira.", ["Mira"]), (EVIL, "Mira Stedolle.", ["Mira", "zebra"]))
    assert _import(page, tmp_path, content) == "2 items imported, 1 place to be checked."
    assert page.locator("#import-form").input_value() == "lawftrack"
    [flaw] = page.locator("#import-dialog .flaws li").all_text_contents()
    assert flaw.startswith(f"Sample {EVIL}, anchor 2: 'zebra' stands nowhere")
    assert page.locator("#import-dialog img").count() == 0
    assert flaws(page) == []
    # One is finished, the other waits for somebody to look at it.
    until(page, "() => document.querySelector('#progress').getAttribute('aria-valuetext') === '1 of 3 items done'")
    assert _again(page, tmp_path, content) == "0 items imported, 2 there already, 1 place to be checked."
    page.keyboard.press("Escape")
    rest(page)
    page.keyboard.press("q")
    until(page, "() => document.querySelectorAll('.queue-row').length === 3")
    page.locator(".queue-row").nth(2).click()
    until(page, "() => document.querySelectorAll('#answer .anchor').length > 0")
    # The whole of a word of several tokens, as was chosen.
    shown = "".join(page.eval_on_selector_all("#answer .anchor", "all => all.map((one) => one.textContent)"))
    assert shown == "Mira"
    assert len(session(page)["anchors"]) == page.locator("#answer .anchor").count() > 1


def _again(page, tmp_path, content):
    page.keyboard.press("Escape")
    rest(page)
    return _import(page, tmp_path, content)


def test_prompts_go_to_whoever_had_nothing_left(serve, new_page, tmp_path):
    page = new_page(serve([{"prompt": "Who are you?"}], limit=30))
    settled(page)
    page.keyboard.press("a")
    page.wait_for_selector("#empty:not([hidden])")
    assert _import(page, tmp_path, '{"prompt": "Who made you?"}\n') == "1 item imported."
    assert page.locator("#import-form").input_value() == "prompts"
    page.keyboard.press("Escape")
    page.wait_for_selector("#answer .t")
    assert page.locator("#prompt .message:not(.seen)").last.text_content().endswith("Who made you?")
    settled(page)
    assert len(tokens(page)) > 1


def test_a_file_that_is_none_is_told_where_it_was_chosen(server, new_page, tmp_path):
    page = new_page(server, expect_errors=True)
    _import(page, tmp_path, '{"prompt": 4}\n{"prompt": 5}\n')
    told = page.locator("#import-dialog .trouble").text_content()
    assert "line 2: " in told
    assert flaws(page) == []


def test_good_lines_come_in_and_the_bad_ones_are_named(server, new_page, tmp_path):
    page = new_page(server)
    said = _import(page, tmp_path, '{"prompt": "good"}\n{"prompt": 5}\n')
    assert said == "1 item imported, 1 place to be checked."
    assert "line 2: " in page.locator("#import-dialog .flaws").text_content()
    assert flaws(page) == []


def test_how_far_people_agree(serve, new_page, tmp_path):
    (tmp_path / "team.yaml").write_text("".join(f"{name}: {token}\n" for name, token in TOKENS.items()))
    more = ("--annotators", str(tmp_path / "team.yaml"), "--per-item", "2")
    server = serve([{"prompt": "Who are you?"}], limit=30, more=more)
    page = new_page(server)
    settled(page)
    page.keyboard.press("q")
    page.wait_for_selector(".queue-row")
    assert page.locator("#queue-dialog p:text('several people')").count() == 0
    page.keyboard.press("Escape")
    begun = page.evaluate("location.hash")
    page.keyboard.press("a")
    until(page, "before => location.hash !== before || document.querySelector('#empty:not([hidden])')", begun)
    with httpx.Client(
        base_url=server.url.split("/?")[0], headers={"Authorization": f"Bearer {TOKENS['bob']}"}, timeout=30
    ) as bob:
        item = bob.post("/api/next", json={}).json()
        with bob.stream("GET", f"/api/sessions/{item['id']}/stream", params={"node": 0}) as reply:
            reply.read()
        body = {"node": 0, "position": 1, "text": " was", "stream": False}
        assert bob.post(f"/api/sessions/{item['id']}/correct", json=body).status_code == 200
        with bob.stream("GET", f"/api/sessions/{item['id']}/stream", params={"node": 1}) as reply:
            reply.read()
        assert bob.post(f"/api/sessions/{item['id']}/decide", json={"verdict": "accept"}).status_code == 200
    page.keyboard.press("q")
    page.wait_for_selector("#queue-dialog p:not([hidden]):text('several people')")
    said = page.locator("#queue-dialog p:text('several people')").text_content()
    assert said == (
        "Where several people did the same item (1 pair of answers): same first error 0 %, "
        "same token there 0 %, same text in the end 0 %."
    )
    assert flaws(page) == []
