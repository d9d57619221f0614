"""A person at the page's API."""

import json

import httpx

ORIGIN = "http://127.0.0.1:8642"


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


def whole(person: Person) -> dict:
    """The next session with its first answer complete."""
    session = person.ok(person.post("/api/next"))
    person.stream(session["id"], session["node"], len(session["tokens"]))
    return person.ok(person.get(f"/api/sessions/{session['id']}"))
