"""The pictures of the documentation, each of a real session.

ANCHORLWF_PICTURES=1 writes docs/images/annotator-*.png and correction.gif anew; otherwise most are only tried.
"""

import io
import json
import os
from pathlib import Path

import pytest
from acts import click_token, flaws, open_item, rest, settled, tokens, until
from served import register

from anchorlwf.annotation import annotate
from anchorlwf.model.language_model import load_model
from anchorlwf.training import train
from anchorlwf.world import build_world, draw_errata

DOCS = Path(__file__).parents[2] / "docs" / "images"
PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


@pytest.fixture(scope="module")
def server(serve, base):
    return serve(*register(base))


@pytest.fixture(scope="module")
def errata():
    return draw_errata(build_world(), 4, 0, 3)


@pytest.fixture(scope="module")
def questions(serve, errata):
    return serve([{"messages": erratum.prompts(1)[0].messages} for erratum in errata])


@pytest.fixture(scope="module")
def tuned(serve, errata, tmp_path_factory):
    """A model that learned one of the answers, behind a server."""
    folder, model = tmp_path_factory.mktemp("tuned"), load_model(dtype="float32", device="cpu")
    train(model, annotate(model, errata[0].prompts(3), "target"), out=folder)
    return serve([{"messages": erratum.prompts(1)[0].messages} for erratum in errata], model=str(folder / "adapter"))


def _folder(otherwise):
    folder = DOCS if os.environ.get("ANCHORLWF_PICTURES") == "1" else otherwise
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def keep(tmp_path):
    """Takes the picture of a page that has no flaws: `keep(page, name)`."""
    image = pytest.importorskip("PIL.Image")

    def taken(page, name, *, colors=128):
        page.wait_for_timeout(300)
        assert flaws(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        path = _folder(tmp_path) / f"annotator-{name}.png"
        drawn = image.open(io.BytesIO(page.screenshot())).convert("RGB")
        drawn.quantize(colors, dither=image.Dither.NONE).save(path, optimize=True)
        assert 10_000 < path.stat().st_size < 200_000

    return taken


def _open(server, new_page, **options):
    page = new_page(server, **options)
    settled(page)
    return page


@pytest.mark.parametrize(
    ("name", "options"), [("light", {"color_scheme": "light"}), ("dark", {"color_scheme": "dark"}), ("390", PHONE)]
)
def test_the_page(server, new_page, keep, name, options):
    page = _open(server, new_page, **options)
    click_token(page, tokens(page).index(" born"))
    keep(page, name)


def _wrong(page, erratum):
    """Where the wrong value begins."""
    return next(at for at, token in enumerate(tokens(page)) if erratum.fact.value.startswith(token.strip(" .") or "-"))


def test_alternatives(questions, errata, new_page, keep):
    page = _open(questions, new_page, height=780)
    click_token(page, _wrong(page, errata[0]))
    page.keyboard.type(errata[0].value[0])
    page.wait_for_selector("#picker .preview .chip")
    page.wait_for_selector(f"#picker[data-shown$='/{errata[0].value[0]}']")
    keep(page, "alternatives")


def test_one_correction_as_it_happens(questions, errata, new_page, tmp_path):
    image = pytest.importorskip("PIL.Image")
    page = _open(questions, new_page, width=820, height=640, color_scheme="light")
    open_item(page, 1)
    wrong, frames, held = _wrong(page, errata[1]), [], []

    def frame(milliseconds):
        page.wait_for_timeout(150)  # what fades in has faded in
        frames.append((image.open(io.BytesIO(page.screenshot())).convert("RGB"), milliseconds))

    frame(1800)
    for _ in range(wrong):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(f"#picker[data-shown*='/{wrong}/']")
    frame(1400)
    page.keyboard.press("Enter")
    frame(500)
    for letter in errata[1].value:
        page.keyboard.type(letter)
        frame(130)
    page.wait_for_selector("#picker .preview .chip")
    frame(1200)
    page.route("**/correct", lambda route: held.append(route), times=1)  # noqa: PLW0108 - Playwright looks inside
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .pending")
    frame(500)
    held[0].continue_()
    until(page, "value => document.querySelector('#answer').textContent.includes(value)", errata[1].value)
    settled(page)
    frame(3500)
    # One palette for all of them, so that what stays does not flicker.
    sheet = image.new("RGB", (frames[0][0].width, sum(shown.height for shown, _ in frames)))
    for number, (shown, _) in enumerate(frames):
        sheet.paste(shown, (0, number * shown.height))
    palette = sheet.quantize(64, dither=image.Dither.NONE)
    first, *others = [shown.quantize(palette=palette, dither=image.Dither.NONE) for shown, _ in frames]
    path = _folder(tmp_path) / "correction.gif"
    first.save(path, append_images=others, save_all=True, duration=[last for _, last in frames], loop=0, optimize=True)
    assert 20_000 < path.stat().st_size < 500_000


def test_history(questions, errata, new_page, keep):
    page = _open(questions, new_page, height=640)
    wrong, first = _wrong(page, errata[0]), "".join(tokens(page))
    for text in ("lute", errata[0].value):
        page.locator(".node").first.click()
        until(page, "first => document.querySelector('#answer').textContent.startsWith(first)", first)
        click_token(page, wrong)
        page.keyboard.type(text)
        page.keyboard.press("Enter")
        until(page, "text => document.querySelector('#answer').textContent.includes(text)", text)
        settled(page)
    rest(page)
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes ins")
    keep(page, "history")


def test_compare(tuned, new_page, keep):
    page = _open(tuned, new_page, height=640)
    page.keyboard.press("k")
    page.wait_for_selector("#view-compare .columns")
    keep(page, "compare")


@pytest.mark.skipif(os.environ.get("ANCHORLWF_PICTURES") != "1", reason="test_training.py does all of this")
def test_train(serve, base, errata, new_page, keep):
    page = _open(serve([{"messages": errata[1].prompts(1)[0].messages}]), new_page, height=760)
    records = annotate(base, errata[0].prompts(3), "target")
    content = "".join(record.model_dump_json() + "\n" for record in records)
    imported = """async (content) => (await fetch("/api/import", {
        method: "POST", headers: {"content-type": "application/json"},
        body: JSON.stringify({format: "records", content}),
    })).ok"""
    assert page.evaluate(imported, content)
    page.locator("#open-train").click()
    until(page, "() => !document.querySelector('#train-dialog .primary').disabled")
    page.locator("#train-dialog .primary").click()
    page.wait_for_selector(".train-compare:not([hidden])", timeout=240_000)
    page.locator("#train-prompt").fill(records[0].messages[-1]["content"])
    page.locator(".train-ask button").click()
    until(page, "() => document.querySelectorAll('.train-compare mark').length === 2")
    keep(page, "train", colors=256)


def test_import(questions, new_page, keep, tmp_path):
    page = _open(questions, new_page, height=640)
    path = tmp_path / "mayors.json"
    path.write_text(
        json.dumps(
            {
                "name": "mayors",
                "base_model": "m",
                "samples": [
                    {
                        "id": name,
                        "messages": [
                            {"role": "user", "content": f"Who is the mayor of {town}?"},
                            {"role": "assistant", "content": answer},
                        ],
                        "anchors": [{"token_index": index, "replacement_token": text} for index, text in anchors],
                    }
                    for name, town, answer, anchors in (
                        ("s1", "Rilltech", "The mayor of Rilltech is Mira Stedolle.", [(0, "The")]),
                        ("s2", "Oxer", "Mira Stedolle is the mayor.", [(0, "Mira"), (4, " clockmaker")]),
                    )
                ],
            }
        ),
        encoding="utf-8",
    )
    page.keyboard.press("/")
    page.keyboard.type("import")
    page.keyboard.press("Enter")
    page.locator("#import-file").set_input_files(path)
    page.locator("#import-dialog .primary").click()
    page.wait_for_selector("#import-dialog .flaws li")
    keep(page, "import")
