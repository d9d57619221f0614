"""Replies hold what docs/annotator_api.md says, key by key."""

import json
import re
from pathlib import Path

import pytest
from page_client import whole

PAGE = (Path(__file__).parents[2] / "docs" / "annotator_api.md").read_text(encoding="utf-8")
NAME = re.compile(r'"(\w+)"(?=[:,}?|\\ ])')


def documented(text: str) -> list[str]:
    """The keys that a shape on the page names, in order."""
    return NAME.findall(re.sub(r': ("[^"]*"|-?[\d.]+|null|true)', ": 0", text))


def request(path: str) -> list[str]:
    """Those of the reply to a request."""
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{path}`")]
    reply = re.split(r"(?<!\\)\|", row)[3]
    return documented(reply.split("`")[1])


def shape(name: str) -> list[str]:
    """Those of a shape that stands under its name."""
    [text] = re.findall(rf"^{name} +(\{{.*?\}})$", PAGE, re.MULTILINE | re.DOTALL)
    return documented(text)


def keys(value: object) -> list[str]:
    """All keys of a reply, each list by its first entry."""
    if isinstance(value, list):
        return keys(value[0]) if value else []
    return [key for name, item in value.items() for key in (name, *keys(item))] if isinstance(value, dict) else []


@pytest.mark.parametrize("path", ["me", "progress", "queue", "agreement"])
def test_the_project(rig, path):
    rig.ask("hello")
    reply = rig.person().get(f"/api/{path}").json()
    documented_keys = request(f"GET /api/{path}")[: 5 if path == "agreement" else None]  # no item is done twice yet
    assert sorted(keys(reply)) == sorted(documented_keys)


def test_agreement_on_one_item(tiny_model, tmp_path):
    from page_client import BOB, Rig

    rig = Rig(tiny_model, tmp_path, per_item=2)
    rig.ask("hello")
    for person in (rig.person(), rig.person(BOB)):
        session = whole(person)
        person.ok(person.post(f"/api/sessions/{session['id']}/decide", {"verdict": "keep"}))
    reply = rig.person().get("/api/agreement").json()
    shares = ["pairs", "same_position", "same_token", "same_text"]
    assert keys(reply) == [*request("GET /api/agreement"), *shares]
    assert reply["items"][0] == {"item": 1, "annotators": ["ada", "bob"], "pairs": 1, **dict.fromkeys(shares[1:], 1.0)}
    rig.close()


def test_an_import(rig):
    lines = json.dumps({"prompt": "hello"}) + "\n{}"
    reply = rig.person().post("/api/import", {"format": "prompts", "content": lines}).json()
    assert keys(reply) == request("POST /api/import")
    assert (reply["flagged"][0]["sample"], reply["flagged"][0]["anchor"]) == ("line 2", None)


def test_a_session(rig):
    rig.ask("hello")
    ada = rig.person()
    session = whole(ada)
    url = f"/api/sessions/{session['id']}"
    head = shape("Head")
    plain = [name for name in session if name not in ("prompt", "tokens")]
    # Undo and redo stand within `can`.
    assert plain == [name for name in head if name not in ("undo", "redo")]
    assert list(session["nodes"][0]) == shape("Node")
    step = ada.ok(ada.post(f"{url}/correct", {"node": 0, "position": 0, "text": "She", "stream": False}))
    assert list(step["head"]) == plain
    assert sorted(step["head"]["anchors"][0]) == sorted(shape("Anchor"))
    diff = ada.ok(ada.get(f"{url}/diff"))
    assert [list(part) for part in diff["parts"][:1]] == [["op", "original", "corrected"]]
    assert list(diff) == ["original", "corrected", "parts"]
    found = ada.ok(ada.get(f"{url}/alternatives", node=0, position=0, top=3))
    assert list(found) == ["node", "position", "options"]
    assert [list(option) for option in found["options"]] == [["id", "text", "p", "stands"]] * 3
