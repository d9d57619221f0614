"""A disk that fills up under a person at work."""

from acts import correct, session, settled, tokens, until, write_note
from served import Server


def test_a_full_disk_is_told_and_what_was_acknowledged_is_what_is_stored(chromium, new_page, small_disk):  # noqa: ARG001 - skips
    folder = small_disk(2**22)
    server = Server(folder, [{"prompt": "Who is the mayor of Gardale?"}]).start()
    try:
        page = new_page(server, expect_errors=True)
        settled(page)
        correct(page, 2, "2")
        acknowledged, shown = session(page)["version"], tokens(page)
        _fill(folder / "ballast")
        # More than the journal can take without growing.
        _note(page, "There is no room for this. " * 3000, "full")
        assert "Nothing of this step was stored" in page.locator("#notes-state").text_content()
        assert session(page)["version"] == acknowledged
        server.kill()
        (folder / "ballast").unlink()
        server.start()
        page.goto(server.url)
        page.wait_for_selector("#answer .anchor")
        assert tokens(page) == shown
        assert (session(page)["version"], session(page)["note"]) == (acknowledged, "")
        _note(page, "There is room again.", "Stored.")
        assert session(page)["note"] == "There is room again."
    finally:
        server.stop()


def _note(page, text, said):
    write_note(page, text)
    until(page, "said => document.querySelector('#notes-state').textContent.includes(said)", said)


def _fill(path):
    """To the last byte."""
    with path.open("wb", buffering=0) as file:
        size = 2**16
        while size:
            try:
                if file.write(b"x" * size) < size:
                    size //= 2
            except OSError:
                size //= 2
