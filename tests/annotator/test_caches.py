"""What a session begins with: the caches of others, and which of them go first."""

import time

import pytest
from token_counting import counting_tokens

from anchorlwf.annotator.backends.caches import Caches
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.store.queue import unproposed
from anchorlwf.decoding.greedy import GreedyDecoder

LIMIT = 24


@pytest.fixture
def decoder(tiny_model):
    made = LocalDecoder(tiny_model, alternatives=5)
    yield made
    made.close()


def caches_of(model, memory=1 << 30):
    return Caches(lambda: GreedyDecoder(model), memory)


def fill(caches, key, ids, *, ahead=False):
    caches.at(key, ids, ahead=ahead).logits(ids, [])
    caches.measure(key)
    if ahead:
        caches.rest(key)


def test_a_session_takes_over_what_was_decoded_ahead_for_it(decoder, tiny_model, prompt_ids):
    ids = [step.token_id for step in decoder.stream("ahead", prompt_ids, [], LIMIT, ahead=True)]
    held = decoder.cached_bytes
    with counting_tokens(tiny_model) as fed:
        assert list(decoder.read("session", prompt_ids, ids, known=True)) == []
        decoder.judge("session", prompt_ids, ids[:-2], [5])
    assert fed == [1]
    assert decoder.cached_bytes <= held


def test_people_on_one_prompt_read_it_once(decoder, tiny_model, prompt_ids):
    first = [step.token_id for step in decoder.stream("ada", prompt_ids, [], LIMIT)]
    with counting_tokens(tiny_model) as fed:
        assert [step.token_id for step in decoder.stream("bob", prompt_ids, [], LIMIT)] == first
        assert fed[0] == 1
        # One goes on from where the other stands, and neither disturbs the other.
        fed.clear()
        decoder.judge("bob", prompt_ids, first[:3], [7])
        decoder.judge("ada", prompt_ids, first[:20], [8])
        assert fed == [1, 1]


def test_asking_about_a_place_forgets_nothing_behind_it(decoder, tiny_model, prompt_ids):
    ids = [step.token_id for step in decoder.stream("ada", prompt_ids, [], LIMIT)]
    with counting_tokens(tiny_model) as fed:
        asked = [decoder.options("ada", prompt_ids, ids[:place], 3) for place in (20, 5, 20, 9)]
        assert fed == [1, 1, 1, 1]
    assert asked[0] == asked[2] != asked[1]
    alone = GreedyDecoder(tiny_model, 3).alternatives(prompt_ids, ids)
    assert [token for token, _ in asked[1]] == [token for token, _ in alone[5].alternatives]


def test_reading_gives_what_came_with_the_answer(decoder, tiny_model, prompt_ids):
    steps = list(decoder.stream("ada", prompt_ids, [], LIMIT))
    ids = [step.token_id for step in steps]
    other = LocalDecoder(tiny_model, alternatives=5)
    read = list(other.read("bob", prompt_ids, ids))
    assert [[token for token, _ in step.alternatives] for step in read] == [
        [token for token, _ in step.alternatives] for step in steps
    ]
    with counting_tokens(tiny_model) as fed:
        other.judge("bob", prompt_ids, ids[:-3], [9])
    other.close()
    assert fed == [1]


def test_those_at_rest_go_first_then_the_last_filled_ahead_then_the_least_recently_used(tiny_model, prompt_ids):
    # Prompts that share nothing.
    asked = {key: [70 + number, *prompt_ids[1:]] for number, key in enumerate(["old", "new", "done", "1", "2", "3"])}
    caches = caches_of(tiny_model)
    fill(caches, "old", asked["old"])
    size = caches.nbytes
    caches = caches_of(tiny_model, 6 * size)
    for key in ("old", "done", "new"):
        fill(caches, key, asked[key])
    for key in ("1", "2", "3"):
        fill(caches, key, asked[key], ahead=True)
    caches.rest("done")
    gone = []
    for number in range(5):
        before = set(caches._held)
        fill(caches, number, [90 + number, *prompt_ids[1:]])
        gone += before - set(caches._held)
        assert caches.nbytes <= 6 * size
    assert gone == ["done", "3", "2", "1", "old"]


def test_what_is_filled_ahead_displaces_nobody(tiny_model, prompt_ids):
    caches = caches_of(tiny_model)
    fill(caches, "old", prompt_ids)
    caches = caches_of(tiny_model, 2 * caches.nbytes)
    fill(caches, "old", prompt_ids)
    fill(caches, "first", [70, *prompt_ids[1:]], ahead=True)
    fill(caches, "second", [71, *prompt_ids[1:]], ahead=True)
    assert set(caches._held) == {"old", "first"}


def test_the_head_of_the_queue_is_read_again_after_a_restart(rig, tiny_model):
    rig.ask("Where was she born?", "Who are you?")
    _until_ahead(rig)
    # Another process over the same store: nothing is in memory, and both answers are stored.
    fresh = LocalDecoder(tiny_model, alternatives=5)
    rig.desk.decoder, rig.desk.prepared = fresh, type(rig.desk.prepared)()
    ahead = Ahead(rig.store, rig.desk.project, fresh, rig.desk.config, rig.desk.prepared)
    ada = rig.person()
    until = time.monotonic() + 20
    while not (rig.desk.prepared.holds(1) and rig.desk.prepared.holds(2)):
        assert time.monotonic() < until
        time.sleep(0.01)
    ahead.close()
    session = ada.ok(ada.post("/api/next"))
    url = f"/api/sessions/{session['id']}"
    with counting_tokens(tiny_model) as fed:
        place = len(session["tokens"]) - 2
        known = ada.ok(ada.get(f"{url}/alternatives", node=0, position=place, top=5, known=True))
        assert known["options"] is not None
        wrong = known["options"][1]["id"]
        body = {"node": 0, "position": place, "token_ids": [wrong], "stream": False}
        ada.ok(ada.post(f"{url}/correct", body))
    assert fed == [1]
    fresh.close()


def _until_ahead(rig):
    ahead = Ahead(rig.store, rig.desk.project, rig.decoder, rig.desk.config, rig.desk.prepared)
    until = time.monotonic() + 20
    while unproposed(rig.store, rig.desk.project, 1):
        assert time.monotonic() < until
        time.sleep(0.01)
    ahead.close()


def test_an_answer_that_nobody_decoded_here_is_read_while_it_is_looked_at(rig, tiny_model):
    rig.ask("Where was she born?")
    _until_ahead(rig)
    fresh = LocalDecoder(tiny_model, alternatives=5)
    rig.desk.decoder, rig.desk.prepared = fresh, type(rig.desk.prepared)()
    ada = rig.person()
    session = ada.ok(ada.post("/api/next"))
    live = rig.desk.session(session["id"], "ada")
    until = time.monotonic() + 20
    while live.reading is not None:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert live.knows(0)
    with counting_tokens(tiny_model) as fed:
        for place in range(len(session["tokens"])):
            url = f"/api/sessions/{session['id']}/alternatives"
            assert ada.ok(ada.get(url, node=0, position=place, top=5, known=True))["options"] is not None
    assert fed == []
    fresh.close()


def test_another_correction_at_the_same_place_costs_one_token(rig, tiny_model):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = ada.ok(ada.post("/api/next"))
    ada.stream(session["id"], 0, 0)
    url = f"/api/sessions/{session['id']}"
    body = {"node": 0, "position": 20, "token_ids": [77], "stream": False}
    ada.ok(ada.post(f"{url}/correct", body))
    ada.ok(ada.post(f"{url}/undo"))
    with counting_tokens(tiny_model) as fed:
        ada.ok(ada.post(f"{url}/correct", {**body, "token_ids": [78]}))
    assert fed == [1]
