"""The arena's report in a real browser: from disk alone, on a desk and on a phone, in light, in dark, on paper."""

import re

import pytest
from arena_data import made_up

from anchorlwf.arena.report.page import write_report

OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"
# Every text that is drawn, against the nearest ground that is painted; translucent grounds are laid over one another.
CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(') ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    if (own[3] === 1 || !element.parentElement) return own;
    const below = ground(element.parentElement);
    return [0, 1, 2].map((i) => own[i] * own[3] + below[i] * (1 - own[3])).concat(1);
  };
  const found = {};
  for (const element of document.querySelectorAll('body *:not(svg *):not(style)')) {
    const words = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!words.length || !element.getClientRects().length) continue;
    const [one, two] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
    const ratio = (one + .05) / (two + .05);
    if (ratio < 4.5) found[element.tagName + '.' + element.className] = ratio;
  }
  return found;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_report(made_up(seeds=2), tmp_path_factory.mktemp("arena")).as_uri()


@pytest.fixture
def show(chromium, address):
    """The report in a window of its own; it may ask for nothing but itself."""
    contexts, asked, trouble = [], [], []

    def make(**options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda line: trouble.append(line.text))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()
    assert set(asked) <= {address, "data:,"}
    assert trouble == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_and_can_be_read(show, width, scheme):
    page = show(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.evaluate(OPEN_ALL)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # What is too wide scrolls in a box of its own, which the keyboard reaches.
    boxes = page.evaluate("""[...document.querySelectorAll('.scroll')].map(
        (box) => [box.getBoundingClientRect().right <= innerWidth, box.tabIndex])""")
    assert boxes
    assert all(box == [True, 0] for box in boxes)
    assert page.evaluate(CONTRASTS) == {}
    assert page.evaluate("document.querySelectorAll('svg.plot').length") == 3 * 4


def test_light_and_dark_reach_the_plots(show):
    seen = {}
    for scheme in ("light", "dark"):
        page = show(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        fill = "getComputedStyle(document.querySelector('figure svg text')).fill"
        seen[scheme] = (page.evaluate("getComputedStyle(document.body).backgroundColor"), page.evaluate(fill))
    assert seen["light"][0] != seen["dark"][0]
    assert seen["light"][1] != seen["dark"][1]


def test_it_works_without_scripts_and_on_paper(show):
    page = show(java_script_enabled=False, color_scheme="dark")
    assert page.get_by_role("heading", name="Run it again").is_visible()
    examples = page.locator("details", has_text="Mara Voss")
    closed = examples.filter(has=page.locator("summary", has_text="GRPO")).first
    assert not closed.locator("ins").first.is_visible()
    closed.locator("summary").click()
    assert closed.locator("ins").first.is_visible()
    pdf = page.pdf(prefer_css_page_size=True)
    # A4 lying down, and what is folded away on a screen is printed.
    assert re.search(rb"/MediaBox \[0 0 84\d(\.\d+)? 59\d", pdf)


def test_paper_is_white_and_shows_what_is_folded_away(show):
    page = show(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    heights = page.evaluate("""[...document.querySelectorAll('details:not([open]) .inside')].map(
        (inside) => inside.getBoundingClientRect().height)""")
    assert heights
    assert min(heights) > 0
