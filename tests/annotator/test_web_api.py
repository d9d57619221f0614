"""The page's API over real HTTP semantics: the whole loop, steps asked for twice, mistakes, imports and exports."""

import json
import time

import pytest
from page_client import BOB, whole

from anchorlwf.annotation.verify import verify_records
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.sessions import live, screen
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.live import Prepared
from anchorlwf.annotator.store.queue import unproposed
from anchorlwf.data.jsonl import load_records
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import PromptWarning, StorageError

EVIL = "<script>alert(1)</script></textarea><img src=x onerror=alert(1)> \x1b[31mred\x1b[0m \u202e\u0000"


def test_what_is_known_without_the_model(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    streamed = whole(ada)
    url = f"/api/sessions/{streamed['id']}/alternatives"
    known = ada.ok(ada.get(url, node=0, position=3, top=5, known=True))
    assert known == ada.ok(ada.get(url, node=0, position=3, top=5))
    assert len(known["options"]) == 5
    for more in ({"top": 6}, {"top": 5, "starts": "a"}):
        assert ada.ok(ada.get(url, node=0, position=3, known=True, **more))["options"] is None
    assert ada.get(url, node=0, position=99, known=True).status_code == 400


def test_what_came_with_an_answer_decoded_ahead_is_known_to_the_session_that_begins_with_it(rig):
    rig.ask("Where was she born?", "hello")
    ahead = Ahead(rig.store, rig.desk.project, rig.decoder, rig.desk.config, rig.desk.prepared)
    until = time.monotonic() + 20
    while unproposed(rig.store, rig.desk.project, 1):
        assert time.monotonic() < until
        time.sleep(0.01)
    ahead.close()
    ada = rig.person()
    session = ada.ok(ada.post("/api/next"))
    url = f"/api/sessions/{session['id']}/alternatives"
    for position in (0, 3, len(session["tokens"]) - 1):
        known = ada.ok(ada.get(url, node=0, position=position, top=5, known=True))["options"]
        prefix = [token["id"] for token in session["tokens"][:position]]
        prompt_ids = rig.desk.session(session["id"], "ada").prompt_ids
        asked = rig.decoder.options("other", prompt_ids, prefix, 5)
        assert [option["id"] for option in known] == [token for token, _ in asked]
        assert [option["p"] for option in known] == pytest.approx([p for _, p in asked], abs=1e-5)


def test_alternatives_kept_for_a_session_are_those_of_its_answer_and_bounded(monkeypatch):
    steps = [Step(token, 0.5, ((token, 0.5), (9, 0.25)), 1.0) for token in (1, 2, 3)]
    monkeypatch.setattr(live, "_PREPARED", 7)
    prepared = Prepared()
    for item in (1, 2, 3):
        prepared.keep(item, steps, 2)
    assert prepared.take(3, [1, 2, 3]) == {}  # there was no room
    assert prepared.take(1, [1, 2, 4]) == {}  # another answer
    assert prepared.take(2, [1, 2, 3])[0].at(1) == [(2, 0.5), (9, 0.25)]
    assert prepared.take(2, [1, 2, 3]) == {}
    prepared.keep(3, steps, 2)
    assert prepared.take(3, [1, 2, 3])[0].at(3) == []


def test_the_whole_loop(rig, tiny_model):
    rig.ask("Where was she born?", "hello")
    ada = rig.person()
    assert ada.ok(ada.get("/api/me"))["annotator"] == "ada"
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"
    screen = [t["id"] for t in session["tokens"]]
    assert session["ended"]
    assert len(screen) == 24 or session["truncated"] is False
    options = ada.ok(ada.get(f"{url}/alternatives", node=0, position=3, top=5))["options"]
    assert options[0]["stands"]
    assert [o["p"] for o in options] == sorted((o["p"] for o in options), reverse=True)

    step = ada.ok(
        ada.post(f"{url}/correct", {"node": 0, "position": 3, "token_ids": [options[1]["id"]], "confidence": 0.8})
    )
    screen = screen[: step["kept"]] + [t["id"] for t in step["tokens"]]
    assert screen[3] == options[1]["id"]
    tokens, last = ada.stream(session["id"], 1, len(screen))
    assert last["event"] == "done"
    screen += [t["id"] for t in tokens]
    fetched = ada.ok(ada.get(url))
    assert [t["id"] for t in fetched["tokens"]] == screen
    assert [(a["position"], a["confidence"]) for a in fetched["anchors"]] == [(3, 0.8)]

    for path in ("undo", "redo"):
        step = ada.ok(ada.post(f"{url}/{path}"))
        screen = screen[: step["kept"]] + [t["id"] for t in step["tokens"]]
        assert screen == [t["id"] for t in ada.ok(ada.get(url))["tokens"]]
    ada.ok(ada.post(f"{url}/confidence", {"position": 3, "confidence": 0.5}))
    ada.ok(ada.post(f"{url}/note", {"text": "a note"}))
    ada.ok(ada.post(f"{url}/tags", {"tags": ["geography"]}))
    assert ada.ok(ada.get(f"{url}/diff"))["parts"][0] == {"op": "equal", "original": [0, 3], "corrected": [0, 3]}
    head = ada.ok(ada.post(f"{url}/decide", {"verdict": "accept"}))["head"]
    assert (head["status"], head["note"], head["tags"]) == ("accept", "a note", ["geography"])

    [record] = load_records(rig.out)
    assert record == load_records([json.loads(ada.get("/api/export").text)])[0]
    assert record.completion_ids == screen
    assert (record.anchors[0].confidence, record.anchors[0].source) == (0.5, "human:ada")
    assert all(finding.holds for finding in verify_records(tiny_model, [record]))
    assert ada.ok(ada.get("/api/progress"))["accept"] == 1

    # The other item goes to bob, and no third is there.
    bob = rig.person(BOB)
    assert bob.ok(bob.post("/api/next"))["item"] != session["item"]
    assert ada.ok(ada.post("/api/next"))["id"] is None
    assert bob.get(url).status_code == 404
    ada.ok(ada.post(f"{url}/undo"))
    assert load_records(rig.out)[0].status == "draft"


def test_a_desk_that_starts_again_shows_the_same(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"
    ada.ok(ada.post(f"{url}/correct", {"node": 0, "position": 0, "text": "She", "stream": False}))
    before = ada.ok(ada.get(url))
    other = Desk(rig.store, rig.decoder, rig.desk.project, rig.desk.config, rig.desk.ledger)
    from anchorlwf.annotator.web import payloads as views

    after = views.session(other, other.session(session["id"], "ada"))
    assert json.loads(json.dumps(after)) == before
    other.resume(other.session(session["id"], "ada"))
    # Two servers over one store: the one that is behind is told so, and right again with the next request.
    for _ in range(200):
        if other.session(session["id"], "ada").continuation is None:
            break
        time.sleep(0.02)
    reply = ada.post(f"{url}/note", {"text": "late"})
    assert reply.status_code == 409
    assert ada.ok(ada.post(f"{url}/note", {"text": "now"}))["head"]["note"] == "now"


def test_a_step_asked_for_twice_is_done_once(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"

    def twice(name, path, body=None):
        """The same request again: at once, and after the server has forgotten everything it had in memory."""
        replies = []
        for _ in range(3):
            reply = ada.client.post(f"{url}/{path}", json=body or {}, headers={"idempotency-key": name})
            replies.append(ada.ok(reply)["head"])
            if replies[-1]["streaming"]:
                ada.stream(session["id"], replies[-1]["node"], 0)
            if len(replies) == 2:
                rig.desk._live.clear()
        return replies

    first, second, third = twice("correct-1", "correct", {"node": 0, "position": 2, "token_ids": [100]})
    assert (len(first["nodes"]), len(third["nodes"])) == (2, 2)
    assert second["version"] == third["version"] == first["version"] + 1  # what streamed behind it
    # Undo changes what a second undo would do, and note would only grow the history.
    for name, path, body in (
        ("u", "undo", None),
        ("r", "redo", None),
        ("n", "note", {"text": "x"}),
        ("t", "tags", {"tags": ["x"]}),
        ("w", "confidence", {"position": 2, "confidence": 0.5}),
        ("m", "move", {"node": 0}),
        ("d", "decide", {"verdict": "reject"}),
        ("o", "reopen", None),
        ("k", "decide", {"verdict": "skip"}),
    ):
        before = ada.ok(ada.get(url))["version"]
        assert [head["version"] for head in twice(name, path, body)] == [before + 1] * 3, path
    # Another name is another step; and what fails is not remembered.
    assert ada.client.post(f"{url}/undo", headers={"idempotency-key": "again"}).status_code == 200
    for status in (400, 400):
        reply = ada.client.post(f"{url}/move", json={"node": 99}, headers={"idempotency-key": "bad"})
        assert reply.status_code == status
    assert ada.client.post(f"{url}/undo", headers={"idempotency-key": "x" * 65}).status_code == 422


def test_a_step_that_only_came_as_far_as_the_tokens_before_it_is_not_done(rig, monkeypatch):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = ada.ok(ada.post("/api/next"))
    url, head = f"/api/sessions/{session['id']}", {"idempotency-key": "one"}
    while not ada.ok(ada.get(url))["length"]:
        time.sleep(0.01)
    live = rig.desk.session(session["id"], "ada")
    # The disk fills up between the tokens that had come and the correction.
    append, calls = rig.store.append, []

    def failing(*given):
        calls.append(given)
        if any(event.kind == "corrected" for event in given[2]):
            raise StorageError("the disk is full")
        return append(*given)

    body = {"node": 0, "position": 0, "token_ids": [100]}
    monkeypatch.setattr(rig.store, "append", failing)
    assert ada.client.post(f"{url}/correct", json=body, headers=head).status_code == 507
    monkeypatch.undo()
    assert live.step is None
    assert "one" not in live.tree.steps
    reply = ada.ok(ada.client.post(f"{url}/correct", json=body, headers=head))
    assert reply["head"]["anchors"][0]["token_id"] == 100


def test_corrections_while_tokens_stream_are_all_honoured(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url, honoured, node = f"/api/sessions/{session['id']}", 0, 0
    for click in range(8):
        step = ada.ok(ada.post(f"{url}/correct", {"node": node, "position": 0, "token_ids": [100 + click]}))
        node, honoured = step["head"]["node"], honoured + (step["head"]["anchors"][0]["token_id"] == 100 + click)
    assert honoured == 8
    tokens, last = ada.stream(session["id"], node, 0)
    assert last["event"] == "done"
    assert tokens[0]["id"] == 107
    assert len(ada.ok(ada.get(url))["nodes"]) == 9


def test_mistakes_are_told_and_change_nothing(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url, stands = f"/api/sessions/{session['id']}", session["tokens"][0]["id"]
    for path, body, status in [
        ("correct", {"node": 0, "position": 99, "token_ids": [1]}, 400),
        ("correct", {"node": 0, "position": 0, "token_ids": [99999]}, 400),
        ("correct", {"node": 0, "position": 0, "token_ids": []}, 400),
        ("correct", {"node": 0, "position": 0}, 400),
        ("correct", {"node": 0, "position": 0, "token_ids": [stands]}, 409),
        ("correct", {"node": 7, "position": 0, "token_ids": [1]}, 409),
        ("correct", {"node": 0, "position": 0, "token_ids": [1] * 99}, 400),
        ("correct", {"node": -1, "position": 0, "token_ids": [1]}, 422),
        ("move", {"node": 5}, 400),
        ("undo", {}, 409),
        ("redo", {}, 409),
        ("reopen", {}, 409),
        ("confidence", {"position": 0, "confidence": 0.5}, 400),
        ("confidence", {"position": 0, "confidence": 0}, 422),
        ("decide", {"verdict": "maybe"}, 422),
        ("note", {"text": 5}, 422),
        ("nothing", {}, 404),
    ]:
        reply = ada.post(f"{url}/{path}", body)
        assert reply.status_code == status, (path, body, reply.text)
        assert reply.json()["error"]["message"]
    assert ada.ok(ada.get(url))["version"] == session["version"]
    assert ada.get("/api/sessions/999").status_code == 404
    assert (
        ada.client.post(
            f"{url}/note", content=b'{"text": "\\ud800"}', headers={"content-type": "application/json"}
        ).status_code
        == 422
    )
    assert ada.client.post("/api/tokenize", content=b"\xff{").status_code in (400, 422)


def test_a_session_shows_the_prompt_as_the_model_sees_it(rig):
    ada = rig.person()
    spelled = "What does <|im_start|> mean?"
    line = json.dumps({"prompt": spelled, "tools": [{"type": "function", "function": {"name": "lookup"}}]})
    with pytest.warns(PromptWarning, match="line 1: the chat template leaves out the tools"):
        assert ada.ok(ada.post("/api/import", {"format": "prompts", "content": line}))["added"] == 1
    prompt = whole(ada)["prompt"]
    assert [(part["text"], part["special"], part["notice"]) for part in prompt["rendered"]] == [
        ("<|im_start|>", True, None),
        ("user\nWhat does ", False, None),
        ("<|im_start|>", False, "quoted"),
        (" mean?", False, None),
        ("<|im_end|>", True, None),
        ("\n", False, None),
        ("<|im_start|>", True, None),
        ("assistant\n", False, None),
    ]
    assert prompt["remarks"] == ["the chat template leaves out the tools"]
    assert prompt["date"] is None


def test_a_context_that_has_no_room_for_an_answer_is_remarked_on(rig):
    rig.ask("hello")
    live = rig.desk.next("ada")
    table, room = rig.decoder.table, live.bounds.tokens
    assert screen.shown_prompt(table, live, 4 * room).remarks == ()
    assert screen.shown_prompt(table, live, 4 * room + 1).remarks == (
        f"the model's context has {room} tokens left for the answer, where {4 * room + 1} are allowed",
    )


def test_model_text_of_any_kind_is_carried_as_data(rig):
    ada = rig.person()
    line = json.dumps({"prompt": EVIL})
    assert ada.ok(ada.post("/api/import", {"format": "prompts", "content": line}))["added"] == 1
    session = whole(ada)
    assert session["prompt"]["messages"][0]["content"] == EVIL
    step = ada.ok(
        ada.post(
            f"/api/sessions/{session['id']}/correct", {"node": 0, "position": 0, "text": "</s>\x1b[", "stream": False}
        )
    )
    assert "".join(t["text"] for t in step["tokens"]) == "</s>\x1b["
    reply = ada.post("/api/tokenize", {"text": EVIL})
    assert reply.headers["content-type"] == "application/json"
    assert (
        b"".join(bytes.fromhex(t["hex"]) if "hex" in t else t["text"].encode() for t in reply.json()["tokens"]).decode()
        == EVIL
    )
    long = "<b>The capital of Freedonia is Fredville, and the river" * 18_000
    assert "".join(t["text"] for t in ada.ok(ada.post("/api/tokenize", {"text": long}))["tokens"]) == long


def test_import_and_export(rig):
    ada = rig.person()
    rows = {
        "samples": [
            {
                "id": "s",
                "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "你好<|im_end|>"}],
                "anchors": [
                    {"token_index": 0, "replacement_token": "你"},
                    {"token_index": 0, "replacement_token": "zebra"},
                ],
            }
        ]
    }
    reply = ada.ok(ada.post("/api/import", {"format": "lawftrack", "content": json.dumps(rows)}))
    assert (reply["added"], len(reply["flagged"])) == (1, 1)
    session = ada.ok(ada.post("/api/next"))
    assert [a["position"] for a in session["anchors"]] == [0]
    ada.ok(ada.post(f"/api/sessions/{session['id']}/decide", {"verdict": "accept"}))
    exported = ada.get("/api/export").text
    assert ada.ok(ada.post("/api/import", {"format": "records", "content": exported})) == {
        "added": 0,
        "known": 1,
        "flagged": [],
    }
    for content in ("", "{", "[]", '{"a": 1}', "5"):
        for form in ("prompts", "records"):
            assert ada.post("/api/import", {"format": form, "content": content}).status_code == 400


def test_a_text_is_shown_as_the_tokens_that_its_correction_makes(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"
    at = next(at for at, token in enumerate(session["tokens"]) if at and token["text"][:1] == " ")
    for text, space, white in (("Tarn", True, " "), ("Tarn", False, ""), (", x", True, ""), ("\n", True, "")):
        body = {"node": 0, "position": at, "text": text, "space": space}
        shown = ada.ok(ada.post(f"{url}/tokenize", body))["tokens"]
        assert "".join(token["text"] for token in shown) == white + text
        step = ada.ok(ada.post(f"{url}/correct", {**body, "stream": False}))
        assert [token["id"] for token in step["tokens"]] == [token["id"] for token in shown]
        ada.ok(ada.post(f"{url}/undo"))
    assert ada.post(f"{url}/tokenize", {"node": 0, "position": 999, "text": "x"}).status_code == 400


def test_an_answer_ends_behind_a_correction_where_that_is_asked_for(rig):
    rig.ask("Where was she born?")
    ada, end = rig.person(), rig.decoder.table.codec.end_id(rig.decoder.stop_ids)
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"
    for body in ({"text": "She", "end": True}, {"token_ids": [5, 6, end], "end": True}, {"text": "", "end": True}):
        step = ada.ok(ada.post(f"{url}/correct", {"node": 0, "position": 2, **body}))
        ids = [token["id"] for token in step["tokens"]]
        assert (ids[-1], ids.count(end)) == (end, 1)
        assert (step["head"]["ended"], step["head"]["truncated"], step["head"]["streaming"]) == (True, False, False)
        ada.ok(ada.post(f"{url}/undo"))
    assert ada.post(f"{url}/correct", {"node": 0, "position": 2, "token_ids": []}).status_code == 400


def test_a_continuation_pauses_and_a_cut_answer_goes_on(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url, start = f"/api/sessions/{session['id']}", session["length"]
    assert (start, session["truncated"]) == (24, True)
    assert ada.ok(ada.post(f"{url}/extend"))["head"]["streaming"]
    _, last = ada.stream(session["id"], 0, start)
    assert (last["head"]["length"], last["head"]["truncated"]) == (48, True)
    step = ada.ok(ada.post(f"{url}/correct", {"node": 0, "position": 1, "text": "She", "pause": 5}))
    behind = len(step["tokens"]) + 1
    _, last = ada.stream(session["id"], 1, behind)
    paused = last["head"]
    assert (paused["ended"], paused["streaming"]) == (False, False)
    # Where it pauses before anybody listens, whoever listens then asks for more: at the most one pause later.
    assert behind + 5 <= paused["length"] <= behind + 20
    assert ada.post(f"{url}/extend").status_code == 409
    # The next one pauses as well, and whoever asks for more at once gets it.
    _, last = ada.stream(session["id"], 1, paused["length"])
    assert paused["length"] + 5 <= last["head"]["length"] <= paused["length"] + 10
    # A desk that reads the session again knows its limit.
    other = Desk(rig.store, rig.decoder, rig.desk.project, rig.desk.config, rig.desk.ledger)
    assert other.session(session["id"], "ada").bounds.tokens == 48


@pytest.mark.parametrize(
    ("pieces", "after", "stops"),
    [
        (["One", " two", ".", " Three", "."], 2, 3),
        (["3", ".", "5", " x", '!"'], 3, 5),
        (["a", "\n", "b"], 1, 2),
        (["a", " b", " c", " d", " e"], 2, 4),
    ],
)
def test_a_pause_comes_at_the_end_of_a_sentence_or_before_it_is_too_late(pieces, after, stops):
    from types import SimpleNamespace

    from anchorlwf.annotator.sessions.live import Pauses

    pauses = Pauses(SimpleNamespace(token=lambda number: SimpleNamespace(text=pieces[number])), after)
    assert next(at for at in range(len(pieces)) if pauses.behind(at)) + 1 == stops


def test_a_shorter_branch_that_goes_on_leaves_a_longer_one_its_room(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"

    def extend(node):
        start = ada.ok(ada.get(url))["length"]
        ada.ok(ada.post(f"{url}/extend"))
        return ada.stream(session["id"], node, start)[1]["head"]

    step = ada.ok(ada.post(f"{url}/correct", {"node": 0, "position": 1, "text": "She"}))
    ada.stream(session["id"], 1, len(step["tokens"]) + 1)
    assert [extend(1)["length"], extend(1)["length"]] == [48, 72]
    ada.ok(ada.post(f"{url}/undo"))
    assert extend(0)["length"] == 72, "as far as the other one, which a server that starts anew would allow too"
    ada.ok(ada.post(f"{url}/redo"))
    reply = ada.post(f"{url}/correct", {"node": 1, "position": 60, "text": "She"})
    assert reply.status_code == 200, reply.text
