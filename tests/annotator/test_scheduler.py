"""Many people, one model: fair turns on its thread, and a bound on what all their caches hold."""

import itertools
import threading

import pytest
from token_counting import counting_tokens

from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.backends.scheduler import Scheduler
from anchorlwf.errors import ConflictError


@pytest.fixture
def scheduler():
    made = Scheduler("test")
    yield made
    made.close()


@pytest.fixture
def gate(scheduler):
    """Holds the working thread until it is set, so that everything below is submitted before anything is done."""
    opened, reached = threading.Event(), threading.Event()

    def hold():
        reached.set()
        opened.wait(10)
        yield "open"

    waiting = scheduler.submit("ask", hold())
    assert reached.wait(10)
    yield opened
    opened.set()
    assert list(waiting) == ["open"]


def _pieces(log, name, count):
    for number in range(count):
        log.append(name)
        yield number


def test_streams_and_questions_take_turns_and_work_ahead_waits(scheduler, gate):
    log = []
    ahead = scheduler.submit("ahead", _pieces(log, "ahead", 3))
    streams = [scheduler.submit("stream", _pieces(log, name, 6)) for name in "xyz"]
    asked = [scheduler.submit("ask", _pieces(log, "ask", 1)) for _ in range(4)]
    gate.set()
    assert [list(one) for one in (*asked, *streams, ahead)] == [[0]] * 4 + [list(range(6))] * 3 + [[0, 1, 2]]
    assert log[-3:] == ["ahead"] * 3
    # Nobody waits for more than the others' turns: between two pieces of one stream comes each other one once.
    only = [name for name in log if name in "xyz"]
    assert all(sorted(only[at : at + 3]) == ["x", "y", "z"] for at in range(0, 18, 3))
    # Four questions, each right behind a piece of a stream, and never two in a row.
    assert all("ask" not in pair or pair[0] != pair[1] for pair in itertools.pairwise(log))
    assert "ask" not in log[10:]


def test_work_that_fails_or_is_given_up_stops_nobody_else(scheduler, gate):
    log = []

    def fails():
        yield 1
        raise ValueError("broken")

    broken, given_up = scheduler.submit("stream", fails()), scheduler.submit("stream", _pieces(log, "given up", 100))
    other = scheduler.submit("stream", _pieces(log, "other", 3))
    given_up.close()
    gate.set()
    assert list(other) == [0, 1, 2]
    assert list(given_up) == []
    assert next(broken) == 1
    with pytest.raises(ValueError, match="broken"):
        next(broken)
    assert log == ["other"] * 3


def test_who_waits_while_it_closes_is_told():
    scheduler, reached, opened = Scheduler("test"), threading.Event(), threading.Event()

    def slow():
        reached.set()
        opened.wait(10)
        yield None
        yield "never"

    waiting = scheduler.submit("stream", slow())
    assert reached.wait(10)
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    opened.set()
    with pytest.raises(ConflictError, match="shutting down"):
        next(waiting)
    closing.join(10)
    with pytest.raises(ConflictError, match="shutting down"):
        scheduler.submit("ask", _pieces([], "late", 1))


def test_what_may_soon_be_asked_is_read_while_nobody_waits(scheduler, gate):
    log = []
    waiting = [scheduler.submit(lane, _pieces(log, lane, 2)) for lane in ("ahead", "read", "stream", "ask")]
    gate.set()
    assert [list(one) for one in waiting] == [[0, 1]] * 4
    assert log[-4:] == ["read", "read", "ahead", "ahead"]


def test_the_caches_stay_below_their_bound_and_the_least_recently_used_goes_first(tiny_model, prompt_ids):
    prefix = list(range(5, 25))
    alone = LocalDecoder(tiny_model)
    alone.options("a", prompt_ids, prefix, 3)
    size = alone.cached_bytes
    alone.close()
    decoder = LocalDecoder(tiny_model, memory=2 * size)
    whole = len(prompt_ids) + len(prefix)
    asked = {"a": prompt_ids, "b": [70, *prompt_ids[1:]], "c": [71, *prompt_ids[1:]]}
    try:
        with counting_tokens(tiny_model) as fed:
            for key in "abacab":  # c takes the place of b, which was used before a; b then that of c
                decoder.options(key, asked[key], prefix, 3)
                assert size <= decoder.cached_bytes <= 2 * size
        assert fed == [whole, whole, 1, whole, 1, whole]
    finally:
        decoder.close()
