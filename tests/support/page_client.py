"""An annotator's application, and people at its API."""

import json

import httpx

from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.annotator.project import Exchange
from anchorlwf.annotator.sessions.desk import Desk
from anchorlwf.annotator.sessions.ledger import Ledger
from anchorlwf.annotator.store.store import Store
from anchorlwf.annotator.training_jobs import TrainingJobs
from anchorlwf.annotator.web.app import create_app
from anchorlwf.annotator.web.settings import WebSettings
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.record import Prompt

ORIGIN = "http://127.0.0.1:8642"
ADA, BOB = "a" * 32, "b" * 32


class Person:
    """A synchronous client in front of the ASGI application."""

    def __init__(self, app, token, headers) -> None:
        from starlette.testclient import TestClient

        base = {"origin": ORIGIN, **({"cookie": f"anchorlwf_8642={token}"} if token else {}), **headers}
        self.client = TestClient(
            app, base_url=ORIGIN, headers=base, follow_redirects=False, raise_server_exceptions=False
        )

    def get(self, path: str, **params) -> httpx.Response:
        return self.client.get(path, params=params or None)

    def post(self, path: str, body: object | None = None) -> httpx.Response:
        return self.client.post(path, json={} if body is None else body)

    def ok(self, reply: httpx.Response) -> dict:
        assert reply.status_code == 200, reply.text
        return reply.json()

    def stream(self, session: int, node: int, start: int = 0) -> tuple[list[dict], dict]:
        """All tokens of a stream, and its last event."""
        tokens, last = [], {}
        text = self.get(f"/api/sessions/{session}/stream", node=node, start=start).text
        for block in text.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if fields:
                last = {"event": fields["event"], **json.loads(fields["data"])}
                if fields["event"] == "tokens":
                    assert last["start"] == start + len(tokens)
                    tokens += last["tokens"]
        return tokens, last


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
        self.jobs = TrainingJobs(self.desk, self.out, model.name)
        self.app = create_app(self.exchange, WebSettings({"ada": ADA, "bob": BOB}, **limits), self.jobs)

    def person(self, token: str | None = ADA, **headers: str) -> "Person":
        return Person(self.app, token, headers)

    def ask(self, *texts: str) -> None:
        self.exchange.add([Prompt(messages=[{"role": "user", "content": text}]) for text in texts])

    def close(self) -> None:
        self.jobs.close()
        self.desk.close()
        self.decoder.close()
        self.store.close()


def whole(person: Person) -> dict:
    """The next session with its first answer complete."""
    session = person.ok(person.post("/api/next"))
    person.stream(session["id"], session["node"], len(session["tokens"]))
    return person.ok(person.get(f"/api/sessions/{session['id']}"))
