"""From the page to the model: trained, watched, compared and stopped without leaving the page."""

import json
import os
import signal
from pathlib import Path

import httpx
import pytest
from acts import flaws, settled, until

from anchorlwf.annotation import annotate
from anchorlwf.world import build_world, draw_errata

PHONE = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}
TOKENS = {"ada": "a" * 32, "bob": "b" * 32}
MINUTES = 240
"""Seconds that a training of the embedded model may take on a busy machine."""


@pytest.fixture(scope="module")
def errata():
    return draw_errata(build_world(), 3, 0, 3)


@pytest.fixture(scope="module")
def records(base, errata):
    """One corrected answer in three wordings."""
    return [record.model_dump(mode="json") for record in annotate(base, errata[0].prompts(3), "target")]


@pytest.fixture
def begin(serve, errata, records, tmp_path):
    """A server whose project has accepted corrections: `begin(*options of the command)`."""

    def made(*more):
        team = tmp_path / "team.yaml"
        team.write_text(json.dumps(TOKENS))
        prompts = [{"messages": erratum.prompts(1)[0].messages} for erratum in errata[1:]]
        server = serve(prompts, limit=60, more=["--annotators", str(team), *more])
        content = "".join(json.dumps(record) + "\n" for record in records)
        imported = httpx.post(
            f"{server.url.split('?')[0]}api/import",
            json={"format": "records", "content": content},
            headers={"authorization": f"Bearer {TOKENS['ada']}"},
            timeout=60,
        )
        assert imported.json()["added"] == len(records)
        server.url = f"{server.url.split('?')[0]}?token={TOKENS['ada']}"
        return server

    return made


def opened(page):
    """Open the dialog by keyboard, and wait until it says what is there."""
    page.keyboard.press("/")
    page.keyboard.type("train on")
    page.keyboard.press("Enter")
    page.wait_for_selector("#train-dialog[open]")
    until(page, "() => document.querySelector('#train-dialog > p.quiet').textContent !== ''")
    return page.locator("#train-dialog")


def state(page):
    return page.locator(".train-state").text_content()


def kept(page, name):
    """A picture for whoever wants to look at it (ANCHORLWF_PICTURES=1 and a folder)."""
    folder = os.environ.get("ANCHORLWF_LOOK")
    if folder:
        page.screenshot(path=str(Path(folder) / f"train-{name}.png"))
    assert flaws(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_from_accepted_answers_to_base_against_tuned(begin, new_page, records, errata):
    server = begin()
    page = new_page(server, color_scheme="light")
    settled(page)
    dialog = opened(page)
    assert "3 corrected answers and 0 unchanged" in dialog.locator("> p.quiet").first.text_content()
    assert page.locator("#train-dialog input:checked").get_attribute("value") == "none"
    kept(page, "begin-light")
    dialog.locator(".primary").focus()
    page.keyboard.press("Enter")
    until(page, "() => document.querySelector('.train-state').textContent.startsWith('ada trains on 3 corrected')")
    assert page.locator(".train-form").is_hidden()

    # Somebody else sees it too, in the dark and on a telephone, and cannot begin another.
    other = new_page(_as(server, "bob"), color_scheme="dark", **PHONE)
    settled(other)
    other.wait_for_selector("#open-train.working")
    other.locator("#open-train").click()
    until(other, "() => document.querySelector('.train-state').textContent.startsWith('ada trains on')")
    assert other.locator(".train-form").is_hidden()
    step = "() => /^Step \\d+ .maximum \\d+/.test(document.querySelector('.train-under p').textContent)"
    until(other, step, seconds=MINUTES)
    kept(other, "running-390-dark")

    # Annotating goes on meanwhile, and a page that is loaded again finds it where it was.
    page.reload()
    page.wait_for_selector("#answer .t")
    opened(page)
    until(page, "() => document.querySelector('.train-state').textContent.startsWith('Trained')", seconds=MINUTES)
    assert state(page) == "Trained: every anchor holds."
    told = json.loads((server.out.with_suffix(".runs") / "1" / "train.json").read_text())
    found = told["report"]
    facts = page.locator("#train-dialog .facts").text_content()
    assert f"{found['anchors']} of {found['anchors']}" in facts
    assert f"{found['records_reproduced']} of {found['records']}" in facts
    assert f"{told['steps']}, in " in facts
    assert "not measured: none were held out" in facts

    # The corrected question gets another answer, and one that was not corrected may keep its own.
    prompt = page.locator("#train-prompt")
    prompt.fill(records[0]["messages"][-1]["content"])
    prompt.press("Control+Enter")
    until(page, "() => document.querySelector('.train-ask [role=status]').textContent === 'What differs is marked.'")
    base, tuned = (page.locator(".train-compare .compared").nth(side).text_content() for side in (0, 1))
    assert (errata[0].fact.value in base, errata[0].value in base) == (True, False)
    assert (errata[0].fact.value in tuned, errata[0].value in tuned) == (False, True)
    marked = page.locator(".train-compare mark").all_text_contents()
    assert len(marked) == 2
    assert all(len(text) < len(base) / 2 for text in marked)
    kept(page, "done-light")
    until(other, "() => document.querySelector('.train-state').textContent === 'Trained: every anchor holds.'")
    kept(other, "done-390-dark")
    other.locator(".train-ask button").click()
    until(other, "() => document.querySelector('.train-ask [role=status]').textContent.endsWith('.')")
    other.locator(".train-compare").scroll_into_view_if_needed()
    kept(other, "compared-390-dark")
    # Escape closes it, and the page's own keys work again.
    page.keyboard.press("Escape")
    page.wait_for_selector("#train-dialog:not([open])", state="attached")
    page.keyboard.press("q")
    page.wait_for_selector("#queue-dialog[open]")


def _as(server, name):
    """The server's address for somebody else."""
    return type("Address", (), {"url": server.url.replace(TOKENS["ada"], TOKENS[name])})()


def test_stopped_and_what_a_restarted_server_says(begin, new_page):
    server = begin()
    page = new_page(server, expect_errors=True)
    settled(page)
    dialog = opened(page)
    # Prompts that the model writes itself take some seconds, so there is time to stop.
    page.locator("#train-dialog input[value=auto]").check()
    dialog.locator(".primary").click()
    page.wait_for_selector(".train-under:not([hidden])")
    page.locator(".train-under button").click()
    until(page, "() => /^ada stopped it/.test(document.querySelector('.train-state').textContent)", seconds=60)
    page.locator("#train-dialog summary", has_text="Train again").click()
    assert page.locator("#open-train.working").count() == 0

    # The second one is at work when the server is killed: it goes on, and the next server finds it.
    dialog.locator(".primary").click()
    until(page, "() => document.querySelector('.train-state').textContent.startsWith('ada trains')")
    server.kill()
    server.start()
    page.reload()
    page.wait_for_selector("#answer .t")
    opened(page)
    until(page, "() => document.querySelector('.train-state').textContent.startsWith('ada trains')")
    page.locator("#train-dialog summary", has_text="Earlier").click()
    assert page.locator(".train-earlier li").text_content().startswith("1: ada, ")
    # A server that ends takes only its own trainings along: this one is stopped by whoever wants it.
    page.locator(".train-under button").click()
    until(page, "() => /^ada stopped it/.test(document.querySelector('.train-state').textContent)", seconds=60)
    kept(page, "stopped")


def test_sigterm_closes_the_server_and_takes_its_training_along(begin):
    server = begin()
    url, headers = server.url.split("?")[0], {"authorization": f"Bearer {TOKENS['ada']}"}
    # Prompts that the model writes itself take some seconds, so it is at work when the signal comes.
    begun = httpx.post(f"{url}api/training", json={"retain": "auto"}, headers=headers, timeout=60)
    assert begun.json()["state"] == "running"
    notes = server.folder / "records.runs" / "1" / "job.json"
    training = json.loads(notes.read_text())["process"]
    os.kill(training, 0)
    assert server.end() == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(training, 0)
    assert json.loads(notes.read_text())["stopped_by"] == ""


def test_nothing_to_train_on_is_said_and_not_offered(serve, new_page):
    page = new_page(serve([{"prompt": "Who are you?"}], limit=30))
    settled(page)
    page.locator("#open-train").click()
    until(page, "() => document.querySelector('#train-dialog > p.quiet').textContent.includes('0 corrected answers')")
    assert page.locator("#train-dialog .primary").is_disabled()
    assert page.locator(".train-compare").is_hidden()
    kept(page, "nothing")
