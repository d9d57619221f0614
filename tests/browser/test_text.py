"""What models say, as it is shown: hostile text, marks for what prints nothing, split characters, other scripts."""

import json
import sys
import time

import pytest
from acts import answer, click_token, correct, count, open_item, rest, session, settled, tokens, until
from served import given

HOSTILE = (
    "<script>document.title = 'owned'</script>\n<img src=x onerror=\"document.title = 'owned'\"></textarea></div>"
    "<style>*{display:none}</style>\n\x1b[31mred\x1b[0m \x00 \u202eevil\u202c {{7*7}} &amp; &lt;b&gt;\n"
)
THINKING = "<think>\nThe register says so.\n</think>\nIt is Fredville."
SPACES = "a  b\tc \n\n  d\u00a0e"
SCRIPTS = "שלום עולם\nمرحبا بالعالم\n你好，世界 😀"  # noqa: RUF001 - Arabic letters, meant
# Raw bytes that are no characters: half of a Chinese one, half of a surrogate pair, a stray continuation.
BROKEN = [b"\xe4\xbd", b"\xed\xa0\x80", b"\xbf", b"ok"]
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is mayor? <b>now</b>"},
        {
            "role": "assistant",
            "content": "<think>Look it up.</think>Looking.",
            "tool_calls": [
                {"type": "function", "function": {"name": "lookup", "arguments": '{"town": "<i>Gardale</i>"}'}}
            ],
        },
        {"role": "tool", "name": "lookup", "content": '{"mayor": "Mira"}'},
        {"role": "user", "content": "تحدث عنها <script>document.title = 'owned'</script>"},
    ],
    "tools": [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}],
}
# The longest words of the vocabulary, so that it is 28 thousand tokens: the words below, hostile text between.
WORDS = " instrument occupation birthplace" * 4 + "\n"
LARGE = "".join(WORDS * 24 + HOSTILE for _ in range(300_000 // len(WORDS * 24 + HOSTILE) + 1))
ITEMS = {"hostile": 0, "thinking": 1, "spaces": 2, "scripts": 3, "broken": 4, "chat": 5, "long": 6, "large": 7}


def sign(*codes):
    """How the page shows what has no picture of its own."""
    return "".join(f"\u2039{code}\u203a" for code in codes)


@pytest.fixture(scope="module")
def server(serve, base):
    encode, end = base.codec.encode, base.codec.tokenizer.eos_token_id

    def byte_ids(raw):
        # The byte-level alphabet has a token for every byte.
        from anchorlwf.model.vocabulary import _BYTES

        letters = {byte: char for char, byte in _BYTES.items()}
        return [base.codec.tokenizer.convert_tokens_to_ids(letters[byte]) for byte in raw]

    texts = [HOSTILE, THINKING, SPACES, SCRIPTS]
    answers = {number: given([*encode(text), end]) for number, text in enumerate(texts)}
    answers[4] = given([*(token for part in BROKEN for token in byte_ids(part)), end])
    answers[5] = given([*encode("She is the mayor."), end])
    answers[6] = given([*encode("a very long line without an end " * 1200), end])
    answers[7] = given([*encode(LARGE), end])
    prompts = [{"prompt": name} for name in ITEMS]
    return serve([*prompts[:5], CHAT, *prompts[6:]], answers)


@pytest.fixture
def show(server, new_page):
    def go(name, **options):
        page = new_page(server, **options)
        open_item(page, ITEMS[name])
        settled(page)
        return page

    return go


def test_hostile_output_is_text(show):
    page = show("hostile")
    title = page.title()
    shown = answer(page)
    for part in (
        "<script>document.title = 'owned'</script>",
        "</textarea></div>",
        "<style>*{display:none}</style>",
        "&amp; &lt;b&gt;",
        "␛[31mred␛[0m",
        "␀",
        f"{sign('U+202E')}evil{sign('U+202C')}",
    ):
        assert part in shown.replace("·", " ")
    assert page.evaluate("document.querySelectorAll('#answer :is(script, img, style, textarea, b)').length") == 0
    # In every other place where model text goes: history, anchors, alternatives, the diff, a screen reader's label.
    click_token(page, 1)
    page.keyboard.type("</textarea><img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    rest(page)
    assert "<img" in page.locator("#history").text_content()
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes del")
    assert "<script" not in page.locator("#view-changes ins").first.text_content()
    assert page.locator(":is(main, aside) :is(script, img, style)").count() == 0
    assert page.title() == title


def test_a_large_answer_is_shown_as_text_too(show):
    began = time.monotonic()
    page = show("large")
    title, count = page.title(), page.locator("#answer .t").count()
    sys.stderr.write(f"\n{len(LARGE)} characters, {count} tokens: shown after {time.monotonic() - began:.1f} s\n")
    shown = answer(page).replace("·", " ")
    assert shown.count("<script>document.title = 'owned'</script>") == LARGE.count("<script>") > 50
    assert len(LARGE) > 300_000
    assert page.evaluate("document.querySelectorAll('#answer :is(script, img, style, textarea, b)').length") == 0
    # And it is still a page to work on.
    page.locator("#answer .t").nth(40).click()
    page.wait_for_selector("#picker[data-shown*='/40/']:not([hidden])", timeout=60_000)
    page.keyboard.press("Escape")
    assert page.title() == title


def test_thinking_folds(show):
    page = show("thinking")
    fold = page.locator("#answer .fold")
    assert fold.get_attribute("aria-expanded") == "true"
    inside = "".join(page.eval_on_selector_all("#answer .thinking .t", "all => all.map((one) => one.textContent)"))
    assert inside.replace("⏎", "").split() == ["<think>", "The", "register", "says", "so.", "</think>"]
    assert fold.text_content() == f"Thinking · {page.locator('#answer .thinking .t').count()} tokens"
    fold.click()
    assert not page.locator("#answer .thinking .t").first.is_visible()
    assert page.locator("#answer .t").last.is_visible()
    # Correcting within the thought and going back leaves the same fold.
    fold.click()
    before = tokens(page)
    correct(page, 6, "3")  # not the model's own choice, which would make no anchor
    assert page.locator("#answer .fold").count() == 1
    page.keyboard.press("u")
    count(page, len(before))
    assert tokens(page) == before
    after = "".join(page.eval_on_selector_all("#answer .thinking .t", "all => all.map((one) => one.textContent)"))
    assert after == inside


def test_what_prints_nothing_is_seen_and_can_be_corrected(show):
    page = show("spaces")
    shown = answer(page)
    assert "⇥" in shown
    assert shown.count("⏎") == 2
    assert "⍽" in shown
    assert "<|im_end|>" in tokens(page)[-1]
    line = next(at for at, text in enumerate(tokens(page)) if "⏎" in text)
    stood = session(page)["tokens"][line]["text"]
    click_token(page, line)
    # A line break before what is typed, kept as the token had it; with Shift Enter one more.
    assert page.locator("#picker .space").is_visible() == stood[:1].isspace()
    page.keyboard.type("x")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("y")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    rest(page)
    white = stood[: len(stood) - len(stood.lstrip())]
    text = "".join(token["text"] for token in session(page)["tokens"])
    assert f"{white}x\ny" in text
    # The end of the turn is a token as any other: something in its place, and the model goes on behind it.
    page.keyboard.press("u")
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
    end = len(tokens(page)) - 1
    click_token(page, end)
    page.keyboard.type("Then")
    page.keyboard.press("Enter")
    until(page, "end => document.querySelectorAll('#answer .t').length > end + 1", end)
    settled(page)
    assert "Then" in answer(page)


def test_scripts_join_their_letters_and_arrows_follow_the_eye(show):
    page = show("scripts")
    words = answer(page).replace("⏎", "").replace("·", " ")
    assert words == SCRIPTS
    assert page.locator("#answer .more").count() > 20
    assert page.locator("#answer .broken").count() == 0
    page.locator("#answer .t").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")  # Hebrew goes left
    assert page.evaluate("document.activeElement.position") == 1
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.position") == 0
    # A part of a character: its own alternatives, and a label that says both.
    page.keyboard.press("ArrowLeft")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("byte ")
    first = page.evaluate("document.querySelector('#answer .t').getBoundingClientRect().right")
    line = page.evaluate("document.querySelector('#answer .block').getBoundingClientRect().right")
    assert line - first < 40  # the line begins at the right


def test_bytes_that_are_no_character_are_shown_as_bytes(show):
    page = show("broken")
    assert answer(page) == sign("E4", "BD", "ED", "A0", "80", "BF") + "ok"
    assert page.locator("#answer .broken").count() == 6
    click_token(page, 2)
    page.keyboard.type("é")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .anchor")
    settled(page)
    rest(page)
    assert answer(page).startswith(sign("E4", "BD") + "é")


def test_chats_with_tools_and_thought(show):
    page = show("chat")
    prompt = page.locator("#prompt")
    assert [role.split(" · ")[0] for role in prompt.locator("article > .role").all_text_contents()] == [
        "System",
        "User",
        "Assistant",
        "Tool result",
        "User",
    ]
    assert json.loads(prompt.locator(".call pre").nth(1).text_content()) == {"town": "<i>Gardale</i>"}
    thought = prompt.locator(".message:not(.seen) details", has_text="Look it up.")
    assert not thought.locator(".prose").is_visible()
    thought.locator("summary").click()
    assert thought.locator(".prose").is_visible()
    last = prompt.locator(".prose").last
    assert last.text_content().endswith("</script>")
    assert last.evaluate("element => getComputedStyle(element).direction") == "rtl"
    assert prompt.locator("b, i, script").count() == 0
    # The embedded model's template writes neither tools nor calls: that is said, and seen in what it does write.
    assert "leaves out the tools" in " ".join(prompt.locator(".trouble").all_text_contents())
    seen = prompt.locator(".seen")
    assert not seen.locator("pre").is_visible()
    seen.locator("summary").click()
    assert seen.locator("pre").text_content().endswith("</script><|im_end|>\n<|im_start|>assistant\n")
    assert set(seen.locator(".special").all_text_contents()) == {"<|im_start|>", "<|im_end|>"}


def test_a_long_line_stays_on_the_page(show):
    page = show("long")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#answer .t").count() > 5000
