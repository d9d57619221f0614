"""Contrast, names and roles, the order of focus, narrow screens: by our own checks, and by axe."""

import re
from pathlib import Path

import pytest
from acts import click_token, correct, flaws, missing, open_item, rest, settled, tokens, until
from served import register

GUIDE = Path(__file__).parents[2] / "docs" / "annotator.md"


@pytest.fixture(scope="module")
def server(serve, base):
    return serve(*register(base))


def _open(server, new_page, **options):
    page = new_page(server, **options)
    settled(page)
    page.wait_for_timeout(100)
    return page


def _dialogs_and_changes(page):
    """Stops at each dialog while it is open, then at the view of changes."""
    for key, dialog in (("?", "help"), ("/", "palette"), ("q", "queue")):
        page.keyboard.press(key)
        page.wait_for_selector(f"#{dialog}-dialog[open]")
        if dialog == "queue":
            page.wait_for_selector(".queue-row")
        yield dialog
        page.keyboard.press("Escape")
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes .diff")
    yield "changes"


def _word(page, word):
    return tokens(page).index(word)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_state_is_readable_and_named(server, new_page, scheme):
    page = _open(server, new_page, color_scheme=scheme)
    assert flaws(page) == []
    click_token(page, _word(page, " born"))
    assert flaws(page) == []
    page.keyboard.type("raised in")
    page.wait_for_selector("#picker .preview .chip")
    assert flaws(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    rest(page)
    for _ in _dialogs_and_changes(page):
        assert flaws(page) == []
    page.evaluate(
        "document.querySelector('#connection').hidden = false; "
        "document.querySelector('#connection-text').textContent = 'The server does not answer.'; "
        "document.querySelector('#action-trouble').hidden = false; "
        "document.querySelector('#action-trouble').textContent = 'The disk is full.'"
    )
    assert flaws(page) == []


@pytest.fixture(scope="session")
def axe():
    """A function that gives what axe finds on a page as it stands: (impact, rule, the elements)."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        missing("axe (pip install axe-playwright-python)")
    checker = Axe()

    def found(page):
        violations = checker.run(page).response["violations"]
        return [(one["impact"], one["id"], [node["html"] for node in one["nodes"]]) for one in violations]

    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [{"width": 1280, "height": 800}, {"width": 390, "height": 844}])
def test_axe_finds_nothing(server, new_page, axe, scheme, size):
    page = _open(server, new_page, color_scheme=scheme, **size)
    assert axe(page) == []
    click_token(page, _word(page, " born"))
    page.keyboard.type("raised in")
    page.wait_for_selector("#picker .preview .chip")
    assert axe(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("v")
    page.locator("#notes > summary").click()
    assert axe(page) == []
    page.locator("#notes > summary").click()
    page.keyboard.press("v")
    rest(page)
    for _ in _dialogs_and_changes(page):
        assert axe(page) == []


def test_axe_sees_what_is_wrong(server, new_page, axe):
    page = _open(server, new_page)
    page.evaluate("document.querySelector('#do-skip').textContent = ''")
    page.evaluate("document.querySelector('#where').style.color = '#ccc'")
    assert {rule for _, rule, _ in axe(page)} >= {"button-name", "color-contrast"}


_STOP = """() => {
  const at = document.activeElement;
  if (at.matches("#answer .t")) return "the selected token";
  if (at.labels?.length) return at.labels[0].textContent;
  if (at.hasAttribute("aria-label")) return at.getAttribute("aria-label");
  const shown = at.cloneNode(true);
  shown.querySelectorAll("kbd, [aria-hidden]").forEach((part) => part.remove());
  return shown.textContent.trim();
}"""


def test_tab_goes_through_the_page_in_the_order_that_the_guide_gives(server, new_page):
    page = _open(server, new_page)
    open_item(page, 1)
    correct(page, 1, "2")
    page.evaluate("document.querySelector('#skip-link').focus()")
    stops = [page.evaluate(_STOP)]
    while not page.evaluate("document.activeElement === document.body") and len(stops) < 40:
        page.keyboard.press("Tab")
        stops.append(page.evaluate(_STOP))
    stops.pop()
    [listed] = re.findall(r"^Tab goes through the page in this order: (.*?)\.$", _guide(), re.MULTILINE)
    words = [re.sub(r" \(.*?\)", "", part) for part in listed.split("; ")]
    shown = iter(stops)
    # Every stop of the guide, in its order; between them only the entries of lists, such as other anchors.
    missed = [word for word in words if not any(stop.startswith(word) for stop in shown)]
    assert missed == [], stops
    heads = [stop for stop in stops if not re.match(r"The model's answer|.* → ", stop)]
    assert len(heads) == len([word for word in words if not re.match(r"The model's answer|.*→", word)])


def _guide():
    """The page on the annotator with each paragraph on a line of its own."""
    return re.sub(r"(?<!\n)\n(?![\n|#-])", " ", GUIDE.read_text(encoding="utf-8"))


def test_the_checker_sees_flaws(server, new_page):
    page = _open(server, new_page)
    page.evaluate("""() => {
      const faint = document.createElement("p");
      faint.textContent = "faint";
      faint.style.color = "#bbb";
      const nameless = document.createElement("button");
      nameless.style.padding = "9px";
      document.querySelector("main").append(faint, nameless);
    }""")
    kinds = sorted(flaw.split(":")[0].split(" ")[0] for flaw in flaws(page))
    assert kinds == ["contrast", "no"]


def test_a_screen_reader_hears_what_happens(server, new_page):
    page = _open(server, new_page)
    at = _word(page, " born")
    page.locator("#answer .t").nth(at).click()
    token = page.locator("#answer .t").nth(at)
    assert token.get_attribute("role") == "button"
    assert token.get_attribute("aria-expanded") == "true"
    assert token.get_attribute("aria-label").startswith("born, ")
    assert page.locator("#answer [role=button]").count() == 1
    field = page.locator("#picker .field")
    page.wait_for_selector("#picker[data-shown]")
    lit = field.get_attribute("aria-activedescendant")
    page.keyboard.press("ArrowDown")
    assert field.get_attribute("aria-activedescendant") != lit
    assert page.locator("#options [aria-selected=true]").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert token.get_attribute("aria-expanded") == "false"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.position") == at + 1
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # the focus is visible


def test_single_keys_can_be_switched_off(server, new_page):
    page = _open(server, new_page)
    page.keyboard.press("?")
    page.locator("#single-keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("q")
    assert page.locator("#queue-dialog[open]").count() == 0
    page.reload()
    page.wait_for_selector("#answer .t")
    page.keyboard.press("q")
    assert page.locator("#queue-dialog[open]").count() == 0


def test_the_theme_can_be_chosen(server, new_page):
    page = _open(server, new_page, color_scheme="light")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#toggle-theme").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert dark != paper
    page.reload()
    page.wait_for_selector("#answer .t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_narrow_screens(server, new_page):
    page = _open(server, new_page, width=390, height=844, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#answer .t").nth(_word(page, " born")).tap()
    page.wait_for_selector("#picker[data-shown]:not([hidden])")
    sheet, bar = page.locator("#picker").bounding_box(), page.locator("#actions").bounding_box()
    assert sheet["x"] >= 0
    assert sheet["x"] + sheet["width"] <= 390
    assert sheet["y"] + sheet["height"] <= bar["y"] + 1
    assert page.evaluate("document.activeElement.tagName") == "SPAN"  # no keyboard comes up by itself
    page.locator("#options li").nth(1).tap()
    page.wait_for_selector("#answer .anchor")
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in page.locator("#actions button").all():
        box = button.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        assert box["height"] >= 32
    page.locator("#do-undo").tap()
    until(page, "() => document.querySelectorAll('#answer .anchor').length === 0")
