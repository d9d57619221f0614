"""The page's API over real HTTP semantics: the whole loop, the door, and whatever fuzzing sends."""

import itertools
import json
import os
import stat
import sys
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from page_client import ORIGIN, Person, whole

from anchorlwf.annotation.verify import verify_records
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.prefetch import Ahead
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.sessions import live
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.sessions.live import Prepared
from anchorlwf.annotator.store.queue import unproposed
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.web.app import create_app
from anchorlwf.annotator.web.guard import HEADERS
from anchorlwf.annotator.web.settings import WebSettings, checked_hosts, kept_token, load_annotators
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.greedy import Step
from anchorlwf.errors import ConfigError, PromptWarning, StorageError

ADA, BOB = "a" * 32, "b" * 32
EVIL = "<script>alert(1)</script></textarea><img src=x onerror=alert(1)> \x1b[31mred\x1b[0m \u202e\u0000"


class Rig:
    """An application over its own store, with people to ask it."""

    def __init__(self, model, folder, *, per_item: int = 1, **limits) -> None:
        self.store = Store(str(folder / "store.db"))
        self.out = folder / "records.jsonl"
        self.decoder = LocalDecoder(model, alternatives=5)
        ledger = Ledger(self.decoder.stamp, model.codec, self.out, shared=per_item > 1)
        project = self.store.project("p", self.decoder.stamp)
        self.desk = Desk(self.store, self.decoder, project, AnnotateConfig(max_new_tokens=24, alternatives=5), ledger)
        self.exchange = Exchange("p", self.desk, per_item=per_item)
        limits = {"rate": 1e6, "burst": 10**6, **limits}
        self.app = create_app(self.exchange, WebSettings({"ada": ADA, "bob": BOB}, **limits), per_item=per_item)

    def person(self, token: str | None = ADA, **headers: str) -> "Person":
        return Person(self.app, token, headers)

    def ask(self, *texts: str) -> None:
        self.exchange.add([Prompt(messages=[{"role": "user", "content": text}]) for text in texts])

    def close(self) -> None:
        self.desk.close()
        self.decoder.close()
        self.store.close()


@pytest.fixture
def rig(tiny_model, tmp_path):
    made = Rig(tiny_model, tmp_path)
    yield made
    made.close()


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

    after = views.session(rig.decoder.table, other.session(session["id"], "ada"))
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


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        (None, {}, 401),
        ("wrong" * 8, {}, 401),
        (None, {"authorization": "Bearer nonsense"}, 401),
        (None, {"authorization": f"Basic {ADA}"}, 401),
        (ADA, {"host": "evil.example"}, 403),
        (ADA, {"host": "127.0.0.1:1"}, 403),
        (ADA, {"host": "127.0.0.1"}, 403),
        (ADA, {"host": "evil.example:8642"}, 403),
        (ADA, {"origin": "http://evil.example"}, 403),
        (ADA, {"origin": "null"}, 403),
        (ADA, {"origin": "http://127.0.0.1:9999"}, 403),
        (ADA, {"origin": "http://[x"}, 403),
        (ADA, {"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_nothing_is_for_strangers(rig, token, headers, status):
    rig.ask("hello")
    stranger = rig.person(token, **headers)
    for method, path in [
        ("GET", "/"),
        ("GET", "/static/x.js"),
        ("GET", "/api/me"),
        ("GET", "/api/openapi.json"),
        ("GET", "/api/export"),
        ("POST", "/api/next"),
        ("POST", "/api/import"),
        ("GET", "/api/sessions/1"),
        ("POST", "/api/sessions/1/undo"),
        ("PUT", "/api/me"),
        ("OPTIONS", "/api/me"),
        ("GET", "/nowhere"),
    ]:
        if path == "/" and "sec-fetch-site" in headers:
            continue  # a link from elsewhere may lead to the page: its cookie stays behind (SameSite)
        reply = stranger.client.request(method, path, json={} if method == "POST" else None)
        assert reply.status_code == status, (method, path)
        assert "ada" not in reply.text


def test_a_cookie_alone_does_not_write_without_an_origin(rig):
    ada = rig.person()
    del ada.client.headers["origin"]
    assert ada.post("/api/next").status_code == 403
    assert ada.get("/api/me").status_code == 200
    script = rig.person(None, authorization=f"Bearer {ADA}")
    del script.client.headers["origin"]
    assert script.post("/api/next").status_code == 200


def test_the_printed_address_becomes_a_cookie(rig):
    visitor = rig.person(None)
    reply = visitor.get("/", token=ADA)
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert rig.person(None).get("/", token="wrong").status_code == 401
    for name, value in HEADERS.items():
        assert reply.headers[name] == value


def test_too_much_and_too_fast(tiny_model, tmp_path):
    rig = Rig(tiny_model, tmp_path, body_limit=1000, upload_limit=3000, rate=0.5, burst=5)
    ada = rig.person()
    assert ada.post("/api/tokenize", {"text": "x" * 2000}).status_code == 413
    assert ada.post("/api/import", {"format": "prompts", "content": "x" * 2000}).status_code == 400
    replies = [ada.get("/api/me") for _ in range(9)]
    assert [r.status_code for r in replies].count(429) >= 4
    assert int(replies[-1].headers["retry-after"]) >= 1
    assert rig.person(BOB).get("/api/me").status_code == 200
    rig.close()


def test_a_session_shows_the_prompt_as_the_model_sees_it(rig):
    ada = rig.person()
    spelled = "What does <|im_start|> mean?"
    line = json.dumps({"prompt": spelled, "tools": [{"type": "function", "function": {"name": "lookup"}}]})
    with pytest.warns(PromptWarning, match="line 1: the chat template leaves out the tools"):
        assert ada.ok(ada.post("/api/import", {"format": "prompts", "content": line}))["added"] == 1
    prompt = whole(ada)["prompt"]
    assert prompt["rendered"] == [
        {"text": "<|im_start|>", "special": True},
        {"text": f"user\n{spelled}", "special": False},
        {"text": "<|im_end|>", "special": True},
        {"text": "\n", "special": False},
        {"text": "<|im_start|>", "special": True},
        {"text": "assistant\n", "special": False},
    ]
    assert prompt["remarks"] == ["the chat template leaves out the tools"]
    assert prompt["date"] is None


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


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "node",
        "position",
        "token_ids",
        "text",
        "confidence",
        "verdict",
        "tags",
        "order",
        "format",
        "content",
        "session",
        "messages",
        "priority",
        "stream",
        "space",
        "span",
    ]
)
PATHS = st.sampled_from(
    ["next", "tokenize", "import", "compare", "items/1/open", "items/0/priority"]
    + [
        f"sessions/1/{step}"
        for step in (
            "correct",
            "stop",
            "undo",
            "redo",
            "move",
            "confidence",
            "note",
            "tags",
            "decide",
            "reopen",
            "renew",
        )
    ]
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PATHS, st.dictionaries(NAMES, ANY | st.sampled_from(["accept", "skip", "prompts", "x", 0, 1, [5]]), max_size=4))
def test_any_body_gets_an_answer_that_is_no_failure(rig, path, body):
    if rig.exchange.add([Prompt(messages=[{"role": "user", "content": "Where was she born?"}])]) == (1, 0):
        whole(rig.person())
    reply = rig.person().client.post(
        f"/api/{path}", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert reply.status_code < 500, (path, body, reply.text)


def _within(value, draw, ids):
    """Numbers of a generated request brought to what is there, so that it gets past the first check."""
    if not isinstance(value, dict):
        return value
    near = {
        "node": st.sampled_from([0, 0, 1]),
        "position": st.integers(0, 30),
        "session": st.sampled_from(ids),
        "token_ids": st.lists(st.integers(0, 330), max_size=4),
    }
    return {key: draw(near[key]) if key in near and draw(st.booleans()) else item for key, item in value.items()}


def test_the_schema_is_fuzzed_without_a_failure(rig):
    """Well-formed requests and broken ones, to sessions and items that exist.

    ANCHORLWF_FUZZ=5000 sends so many requests.
    """
    schemathesis = pytest.importorskip("schemathesis")
    wanted = int(os.environ.get("ANCHORLWF_FUZZ", "150"))
    rig.ask("Where was she born?", "hello")
    ada, bob = rig.person(), rig.person(BOB)
    mine, theirs = whole(ada), whole(bob)
    there = {"session": [*[mine["id"]] * 9, theirs["id"]], "item": [mine["item"], theirs["item"]]}
    schema = schemathesis.openapi.from_dict(ada.ok(ada.get("/api/openapi.json")))
    operations = [found.ok() for found in schema.get_all_operations()]
    kinds = [(operation, mode) for operation in operations for mode in schemathesis.GenerationMode]
    answers: Counter[int] = Counter()
    seen: dict[str, set[int]] = defaultdict(set)

    def ask(case, data):
        case.path_parameters = {name: data.draw(st.sampled_from(there[name])) for name in case.path_parameters or {}}
        case.query, case.body = (_within(part, data.draw, there["session"]) for part in (case.query, case.body))
        sent = case.as_transport_kwargs(base_url=ORIGIN)
        sent["headers"] = dict(sent.get("headers") or {}) | {"origin": ORIGIN, "cookie": f"anchorlwf_8642={ADA}"}
        content = sent.pop("data", None)
        more = {} if content is None else {"content" if isinstance(content, bytes | str) else "data": content}
        reply = ada.client.request(
            sent["method"],
            sent["url"],
            params=sent.get("params"),
            json=sent.get("json"),
            headers=sent["headers"],
            **more,
        )
        assert reply.status_code < 500, (case.method, case.path, sent, reply.text)
        answers[reply.status_code] += 1
        seen[f"{case.method} {case.path}"].add(reply.status_code)

    for turn in itertools.count():
        for operation, mode in kinds:
            limits = settings(
                max_examples=max(1, wanted // len(kinds)),
                deadline=None,
                database=None,
                derandomize=False,
                suppress_health_check=list(HealthCheck),
            )
            try:
                seed(turn)(limits(given(case=operation.as_strategy(generation_mode=mode), data=st.data())(ask)))()
            except Unsatisfiable:
                assert mode is schemathesis.GenerationMode.NEGATIVE  # nothing to get wrong: no parameter, no body
        if answers.total() >= wanted:
            break
    sys.stderr.write(f"\n{answers.total()} requests to {len(operations)} operations: {dict(answers)}\n")
    # Most were looked at, not turned away at the door; those that were right were carried out.
    assert answers[404] < answers.total() / 10
    assert answers[200] > answers.total() / 5
    assert sum(200 in statuses for statuses in seen.values()) > len(operations) / 2


def test_annotators_come_from_a_file_with_tokens_of_their_own(tmp_path):
    path = tmp_path / "team.yaml"
    path.write_text(f"ada: {ADA}\nbob: {BOB}\n")
    assert WebSettings(load_annotators(path)).annotator_of(BOB) == "bob"
    for bad in ("", "- x", "ada: short", f"ada: {ADA}\nbob: {ADA}", "5: 6", "ada: [", f"'': {ADA}"):
        path.write_text(bad)
        with pytest.raises(ConfigError):
            load_annotators(path)


def test_names_that_are_allowed_are_let_in_from_any_port(tiny_model, tmp_path):
    assert checked_hosts(["annotate.example.org", "box"]) == ("annotate.example.org", "box")
    for bad in ("https://annotate.example.org", "box:8642", "", "a b", "*"):
        with pytest.raises(ConfigError, match="--allow-host: expected a name such as"):
            checked_hosts([bad])
    for hosts, status in (((), 403), (("annotate.example.org",), 200)):
        rig = Rig(tiny_model, tmp_path, host="0.0.0.0", hosts=hosts)
        for host in ("annotate.example.org", "Annotate.Example.Org:443"):
            person = rig.person(host=host, origin=f"https://{host}")
            assert person.get("/api/me").status_code == status, (hosts, host)
        rig.close()


def test_the_token_survives_a_restart_and_is_its_owners_alone(tmp_path):
    first = kept_token(tmp_path / "s.db")
    assert kept_token(tmp_path / "s.db") == first
    assert stat.S_IMODE((tmp_path / "s.db.token").stat().st_mode) == 0o600
    assert kept_token(tmp_path / "t.db") != first
    assert ADA not in repr(WebSettings({"ada": "sha256:" + "0" * 64}))
