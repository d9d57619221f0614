"""Requests of any form, from the schema and beside it: every one gets an answer that is no failure of ours."""

import itertools
import json
import os
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from page_client import ADA, BOB, ORIGIN, whole

from anchorlwf.annotator import training_jobs
from anchorlwf.data.record import Prompt

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
        "retain",
    ]
)
PATHS = st.sampled_from(
    ["next", "tokenize", "import", "compare", "items/1/open", "items/0/priority"]
    + ["training", "training/stop", "training/1/compare"]
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


@pytest.fixture(autouse=True)
def no_training(monkeypatch):
    """Trainings end as they begin: what is asked here is what the server makes of requests."""
    monkeypatch.setattr(training_jobs, "_COMMAND", ("true",))


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
    there = {"session": [*[mine["id"]] * 9, theirs["id"]], "item": [mine["item"], theirs["item"]], "run": [1]}
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
