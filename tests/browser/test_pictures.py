"""The pictures of the documentation, each of a real session.

ANCHORLWF_PICTURES=1 writes docs/images/annotator-*.png anew; otherwise they are only tried.
"""

import io
import json
import os
from pathlib import Path

import pytest
from acts import click_token, flaws, settled, tokens, until
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


@pytest.fixture
def keep(tmp_path):
    """Takes the picture of a page that has no flaws: `keep(page, name)`."""
    image = pytest.importorskip("PIL.Image")

    def taken(page, name, *, colors=128):
        page.wait_for_timeout(300)
        assert flaws(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        folder = DOCS if os.environ.get("ANCHORLWF_PICTURES") == "1" else tmp_path
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"annotator-{name}.png"
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
    page.keyboard.press("d")
    page.wait_for_selector("#view-changes ins")
    keep(page, "history")


def test_compare(tuned, new_page, keep):
    page = _open(tuned, new_page, height=640)
    page.keyboard.press("k")
    page.wait_for_selector("#view-compare .columns")
    keep(page, "compare")


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
