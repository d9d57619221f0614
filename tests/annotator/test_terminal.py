"""A person at the terminal annotator: every step over the store, and trouble on the way."""

import contextlib
import itertools
import os
import re
import signal
import threading

import pytest
from terminal_sitting import CONFIG, QUESTIONS, answer_of, shown, sit, work_of
from vllm_server import vllm_server

from anchorlwf.annotation import Correct, Quit, annotate, verify_records
from anchorlwf.annotation.tree import fold
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.open import Work
from anchorlwf.annotator.sessions import screen as screen_texts
from anchorlwf.annotator.store.overview import progress
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.terminal.commands import HELP
from anchorlwf.annotator.terminal.render import Painter, visible
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records
from anchorlwf.errors import StorageError


def test_every_step_is_in_the_store_when_the_prompt_comes_back(work):
    seen = []
    with work.open() as exchange:
        store, project = exchange.desk.store, exchange.desk.project

        def look() -> None:
            tree = fold(Store(work.url).events(store.next(project, "ada").id))
            seen.append(
                (
                    list(tree.node.completion_ids),
                    [a.position for a in tree.anchors()],
                    tree.note,
                    tree.tags,
                    [a.confidence for a in tree.anchors()],
                    tree.node.ended,
                )
            )

        lines = ["3 hello @0.5", "u", "r", "3 @0.25", "n sure?", 't x "y z"', "g 0", "0 #2", "g 1"]
        records, _ = sit(exchange, look, *(part for line in lines for part in (line, look)), "a")
        record = load_records(work.out)[0]
    first, put, undone, redone, weighed, noted, tagged, gone, elsewhere, back = seen
    assert (put[1][0], set(put[4]), put[5]) == (3, {0.5}, True)
    assert (undone, redone) == (first, put)
    assert weighed[4] == [0.25, *put[4][1:]]
    assert (noted[2], tagged[3]) == ("sure?", ("x", "y z"))
    assert gone[0] == first[0]
    assert elsewhere[1][:1] == [0]
    assert back[0] == put[0]
    assert record == records[0]
    assert (record.completion_ids, record.original_ids, record.tags) == (put[0], first[0], ["x", "y z"])
    assert {anchor.source for anchor in record.anchors} == {"human:ada"}


def test_what_the_screen_says_is_what_is_there(work):
    with work.open() as exchange:
        table, desk = exchange.desk.decoder.table, exchange.desk
        ids = []
        _, screen = sit(
            exchange,
            lambda: ids.append(answer_of(exchange)),
            "3",
            "3 #2",
            lambda: ids.append(answer_of(exchange)),
            "h",
            "n why",
            "t",
            "",
        )
        live = desk.next("ada")
        options = desk.decoder.options("t", live.prompt_ids, ids[0][:3], 5)
        assert f"user: {QUESTIONS[0]}" in screen
        assert shown(table, ids[0]) in screen
        for number, (token, probability) in enumerate(options, 1):
            row = next(line for line in screen.splitlines() if f"#{number} " in line)
            assert visible(table.token(token)) in row
            assert f"{probability:.4f}" in row
            assert ("stands there" in row) == (token == ids[0][3])
        assert ids[1][3] == options[1][0]
        assert screen.count(shown(table, ids[1], stars=(3,))) == 2
        assert re.search(
            r"^  0  the first answer .*\n  > 1  at 3: '.*' became '.*'  \(\d+ tokens, 1 anchors\)$",
            screen,
            re.MULTILINE,
        )
        assert "note: why\ntags: none" in screen
        assert "[0 of 3 done]" in screen
        assert "0 of 3 done; the same command goes on." in screen


def test_text_takes_the_white_space_of_what_it_replaces_unless_quoted(tmp_path):
    work = work_of(tmp_path, None, ["Who are you?"])
    found = []
    with work.open() as exchange:
        codec = exchange.desk.decoder.table.codec
        sit(
            exchange,
            "3 Tarn",
            lambda: found.append(answer_of(exchange)),
            '3 "Tarn"',
            lambda: found.append(answer_of(exchange)),
        )
        # No space stands before punctuation or the end of the turn.
        sit(
            exchange,
            *(
                part
                for text in (". Yes", "<|im_end|>")
                for part in (f"3 {text}", lambda: found.append(answer_of(exchange)))
            ),
        )
    assert [codec.decode(ids)[:8] for ids in found[:2]] == ["I am Tar", "I amTarn"]
    assert codec.pieces(found[0][3:4]) == [" Tarn"]
    assert codec.decode(found[2]).startswith("I am. Yes")
    assert codec.pieces(found[3]) == ["I", " a", "m", "<|im_end|>"]


def test_bad_lines_are_answered_change_nothing_and_are_asked_again(work):
    with work.open() as exchange:
        before = []
        _, screen = sit(
            exchange,
            lambda: before.append(answer_of(exchange)),
            "fine",
            "99",
            "99 x",
            "3 #9",
            "3 #1",
            "u",
            "r",
            "b",
            "g 5",
            "3 @0.5",
            "?",
            "3 \udcff",
            lambda: before.append(answer_of(exchange)),
            "0 Hm $",
            "c",
            "k",
        )
    for told in (
        "got 'fine'",
        "position: expected 0 to 23, got 99",
        "expected #1 to #5, got #9",
        "tokens that differ from the answer",
        "Nothing to undo",
        "Nothing to redo",
        "got a whole one",
        "a decision of this run",
        "answer: expected 0 to 0, got 5",
        "anchor: expected a position among []",
        HELP.splitlines()[3],
        "whole characters",
        "keep: expected the model's own answer",
    ):
        assert told in screen
    assert before[0] == before[1]


def test_an_answer_ends_where_it_is_told_to_and_goes_on_where_it_was_cut(work):
    seen = []
    with work.open() as exchange:
        desk, end = exchange.desk, exchange.desk.decoder.table.codec.end_id(exchange.desk.decoder.stop_ids)
        _, screen = sit(
            exchange,
            *(
                part
                for line in ("3 hello $", "u", "c", "1 $", "2 #2 $")
                for part in (line, lambda: seen.append(answer_of(exchange)))
            ),
        )
        hello = desk.decoder.table.encode("hello")
    put, cut, longer, shorter, other = seen
    assert put == [*cut[:3], *hello, end]
    assert len(cut) == 24  # the limit
    assert "cut at the token limit; c lets it go on" in screen
    assert longer[:24] == cut
    assert len(longer) == 48
    assert shorter == [*cut[:2], end]
    assert other[:2] == cut[:2]
    assert (len(other), other[-1]) == (4, end)


def test_the_rarest_tokens_of_an_answer_are_coloured_whatever_the_model_thinks_of_all():
    assert screen_texts.rarest([0.4] * 9 + [0.3]) == (0.3, 0.3)
    assert screen_texts.rarest([0.98] + [0.9995] * 29) == (0.98, 0.98)
    assert screen_texts.rarest([None, 1.0, 0.9995]) == (0.0, 0.0)


def test_the_end_of_input_quits_and_the_next_start_goes_on(work):
    stood = []
    with work.open() as exchange:
        assert sit(exchange, "3 hello", lambda: stood.append(answer_of(exchange)))[0] == []
    with work.open() as exchange:
        assert answer_of(exchange) == stood[0]
        records, screen = sit(exchange, "u", "r", "a", "a", "x", "")
        assert [record.status for record in records] == ["complete", "complete", "rejected"]
        assert records[0].completion_ids == stood[0]
        assert records[1].tags == ["keep"]  # nothing to correct, as on the page
        assert screen.count("Nothing is left") == 1
        assert "goes on" not in screen
    with work.open() as exchange:
        records_again, screen = sit(exchange, lambda: pytest.fail("nothing is left to ask"))
        assert (records_again, screen) == ([], "")
    assert load_records(work.out) == records


def test_a_decision_is_taken_back_and_a_skipped_item_left_to_others(work):
    with work.open() as exchange:
        records, screen = sit(exchange, "a", "x", "b", "a", "s", "b", "s", "4", "b", "b", "q")
        # Back from the skipped third item, then once more, to the second.
        assert [record.status for record in records] == ["complete"]
        assert screen.count(f"user: {QUESTIONS[1]}") == 3
        assert screen.count(f"user: {QUESTIONS[2]}") == 4
        counts = progress(exchange.desk.store, exchange.desk.project)
        assert (counts.done, counts.keep, counts.skip) == (1, 1, 0)
    assert [record.status for record in load_records(work.out)] == ["complete", "draft", "draft"]


def test_the_whole_history_is_within_reach(work):
    found = []
    with work.open() as exchange:
        _, screen = sit(
            exchange,
            "3 hello",
            "u",
            "3 she",
            "5 town",
            lambda: found.append(answer_of(exchange)),
            "g 1",
            "h",
            "g 3",
            lambda: found.append(answer_of(exchange)),
        )
    assert found[0] == found[1]
    lines = re.findall(r"^( *(?:> )?\d+)  (?=the first answer|at \d)", screen, re.MULTILINE)
    assert lines == ["  0", "  > 1", "    2", "      3"]


def test_a_long_answer_is_shown_from_a_little_before_the_change(tmp_path, tiny_path):
    work = work_of(tmp_path, tiny_path)
    with Work(work.prompts, work.out, work.model, AnnotateConfig(max_new_tokens=90)).open() as exchange:
        _, screen = sit(exchange, "70 hello")
        said = screen.split("? for help): 70 hello\n")[1]
        assert said.startswith("...  30 ")
        assert shown(exchange.desk.decoder.table, answer_of(exchange)[:41]).endswith(said[5 : said.index("  41 ")])


# --- trouble ---


class Held:
    """A stream of which five tokens come; then somebody who has seen one of them presses Ctrl-C."""

    def __init__(self, steps, seen: threading.Event) -> None:
        self._steps, self._seen, self._closed = steps, seen, threading.Event()

    def __iter__(self):
        yield from itertools.islice(self._steps, 5)
        self._seen.wait(10)
        os.kill(os.getpid(), signal.SIGINT)
        # Python loses an interrupt that arrives within a callback of its garbage collector: a person presses again.
        while not self._closed.wait(10):
            os.kill(os.getpid(), signal.SIGINT)
        yield from self._steps

    def close(self) -> None:
        self._closed.set()
        self._steps.close()


def test_ctrl_c_stops_what_streams_and_c_lets_it_go_on(work, monkeypatch):
    stream, token, seen, held = LocalDecoder.stream, Painter.token, threading.Event(), []

    def once_held(self, key, prompt_ids, prefix_ids, limit, **options):
        steps = stream(self, key, prompt_ids, prefix_ids, limit, **options)
        if len(prefix_ids) != 4 or held:  # the first continuation of a correction at 3
            return steps
        held.append(Held(steps, seen))
        return held[0]

    def painted(self, index, *arguments, **options) -> None:
        token(self, index, *arguments, **options)
        if held and index == 4:
            seen.set()

    monkeypatch.setattr(LocalDecoder, "stream", once_held)
    monkeypatch.setattr(Painter, "token", painted)
    with work.open() as exchange:
        ids = []
        records, screen = sit(
            exchange,
            "3 #2",
            lambda: ids.append(answer_of(exchange)),
            "a",
            "c",
            lambda: ids.append(answer_of(exchange)),
            "a",
            "q",
        )
        assert 9 <= len(ids[0]) < len(ids[1])
        assert ids[1][: len(ids[0])] == ids[0]
        assert screen.count("The answer was stopped; c lets it go on.") == 1
        assert "answer: expected a whole one" in screen
        assert records[0].completion_ids == ids[1]
    # The same as without a stop.
    with Work(work.prompts, work.out.with_name("other.jsonl"), work.model, CONFIG).open() as exchange:
        assert sit(exchange, "3 #2", "a")[0][0].completion_ids == ids[1]


def test_a_full_disk_is_said_and_the_step_repeated_when_there_is_room(work, monkeypatch):
    with work.open() as exchange:
        store, full = exchange.desk.store, [False]
        append = store.append

        def failing(*arguments):
            if full[0]:
                raise StorageError("annotation store: expected a writable database, got database or disk is full.")
            return append(*arguments)

        monkeypatch.setattr(store, "append", failing)
        ids = []
        records, screen = sit(
            exchange,
            lambda: ids.append(answer_of(exchange)),
            lambda: full.__setitem__(0, True),
            "0 Hm",
            "a",
            lambda: ids.append(answer_of(exchange)),
            lambda: full.__setitem__(0, False),
            "a",
        )
        assert ids[0] == ids[1]
        assert screen.count("disk is full") == 2
        assert [record.completion_ids for record in records] == [ids[0]]


@pytest.mark.parametrize("torn", ["a line of its own", "the last record"])
def test_a_line_torn_by_a_crash_does_not_keep_the_work_from_going_on(work, torn):
    with work.open() as exchange:
        first = sit(exchange, "a", "a")[0]
    whole_file = work.out.read_bytes()
    work.out.write_bytes(whole_file + b'{"id": "half' if torn == "a line of its own" else whole_file[:-100])
    with pytest.warns(match="broken JSON"), work.open() as exchange:
        second = sit(exchange, "a")[0]
    # A record that was torn is written anew from the store, and the file with it.
    still_torn = pytest.warns(match="broken JSON") if torn == "a line of its own" else contextlib.nullcontext()
    with still_torn:
        assert load_records(work.out, skip_bad=True) == [*first, *second]


def test_a_draft_made_without_a_store_is_gone_on_from(work, tiny_model):
    class Once:
        source = "human:ada"

        def __init__(self) -> None:
            self.verdicts = [Correct(3, [100]), Quit()]

        def review(self, _view):
            return self.verdicts.pop(0)

        def complain(self, error) -> None:
            raise error

    (draft,) = annotate(tiny_model, work.prompts, Once(), out=work.out, config=CONFIG)
    with work.open() as exchange:
        (record,), screen = sit(exchange, "a")
        assert shown(exchange.desk.decoder.table, draft.completion_ids, stars=(3,)) in screen
    assert record.model_dump() == {**draft.model_dump(), "status": "complete"}


def test_over_a_server_that_decodes(base, tmp_path):
    with vllm_server(base) as server:
        work = work_of(tmp_path, None, ["Who are you?"], remote=server.url)
        with work.open() as exchange:
            (record,), screen = sit(exchange, "3", "3 #2", "a")
    assert re.search(r"#1 .*stands there", screen)
    assert [anchor.position for anchor in record.anchors] == [3]
    assert all(finding.holds for finding in verify_records(base, [record]))
