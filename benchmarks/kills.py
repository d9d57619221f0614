"""kill -9 of the annotator's server at random moments: is any acknowledged step lost, is any record half there?

    python benchmarks/kills.py [--kills 50] [--store sqlite|postgresql] [--seed 7]

`anchorlwf annotate --web` over the embedded model serves a scripted person who takes items, corrects, follows the
stream, undoes, notes, decides and takes decisions back. After each kill the server starts again on the same files, and

- every session still has what was acknowledged last, and at most the one step more that was under way;
- the file of records says the same as the store: no finished record missing, none that is not;
- the next item handed out is the one that was left open, and the work goes on.

PostgreSQL is a real server of Debian's package, in a temporary folder; it is not killed. Prints JSON.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from postgres import postgres_server
from served import Server

LIVES = (0.05, 2.0)
"""Seconds between the first step after a start and the kill."""
SHOWN = ("status", "node", "note", "tags")


def _state(head: dict[str, Any]) -> dict[str, Any]:
    anchors = [(anchor["position"], anchor["token_id"], anchor["confidence"]) for anchor in head["anchors"]]
    return {**{name: head[name] for name in SHOWN}, "anchors": anchors}


@dataclass
class Script:
    """A person who does everything there is to do, and remembers what was acknowledged."""

    rng: random.Random
    acknowledged: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """By session: version and what was seen."""
    steps: int = 0
    failures: list[str] = field(default_factory=list)
    under_way: int | None = None
    """The session that was worked on last."""

    def _seen(self, head: dict[str, Any]) -> dict[str, Any]:
        self.acknowledged[head["id"]] = (head["version"], _state(head))
        return head

    def _step(self, client: httpx.Client, session: int, name: str, body: dict[str, Any] | None = None) -> None:
        reply = client.post(f"/api/sessions/{session}/{name}", json=body or {})
        if reply.status_code == 200:
            self.steps += 1
            self._seen(reply.json()["head"])
        elif reply.status_code not in (400, 409):
            self.failures.append(f"{name}: {reply.status_code} {reply.text[:120]}")

    def _follow(self, client: httpx.Client, session: int) -> dict[str, Any]:
        shown = client.get(f"/api/sessions/{session}").json()
        path = f"/api/sessions/{session}/stream"
        with client.stream("GET", path, params={"node": shown["node"], "start": shown["length"]}) as reply:
            reply.read()
        return self._seen(client.get(f"/api/sessions/{session}").json())

    def work(self, client: httpx.Client) -> None:
        """Item after item, until the server dies."""
        while True:
            head = client.post("/api/next", json={}).json()
            number = self.under_way = self._seen(head)["id"]
            shown = self._follow(client, number)
            stream = self.rng.random() < 0.5
            self._step(
                client,
                number,
                "correct",
                {
                    "node": shown["node"],
                    "position": self.rng.randrange(3),
                    "text": self.rng.choice([" river", " town", "No"]),
                    "stream": stream,
                },
            )
            self._step(client, number, "note", {"text": "x" * self.rng.randrange(500)})
            self._step(client, number, "undo")
            self._step(client, number, "redo")
            self._step(client, number, "tags", {"tags": [str(self.steps)]})
            self._follow(client, number)
            self._step(client, number, "decide", {"verdict": self.rng.choice(["accept", "accept", "reject", "skip"])})
            if self.rng.random() < 0.4:
                self._step(client, number, "reopen")
                self._step(client, number, "decide", {"verdict": "reject"})

    def live(self, client: httpx.Client) -> None:
        """`work`, which ends with the server's life."""
        try:
            self.work(client)
        except (httpx.HTTPError, json.JSONDecodeError):
            pass  # the kill
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs into the report
            self.failures.append(repr(error))


def _client(server: Server) -> httpx.Client:
    base, token = server.url.split("/?token=")
    return httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def check(client: httpx.Client, server: Server, script: Script) -> list[str]:
    """Everything that is not as it was acknowledged, after a new start."""
    wrong = []
    for session, (version, state) in list(script.acknowledged.items())[-5:]:
        now = client.get(f"/api/sessions/{session}").json()
        if "version" not in now or now["version"] < version:
            wrong.append(f"session {session}: {now.get('version', now)} where {version} was acknowledged")
        elif now["version"] == version and _state(now) != state:
            wrong.append(f"session {session}: {_state(now)} where {state} was acknowledged")
        elif now["version"] > version + 2:  # the step that was under way, and the tokens that came before it
            wrong.append(f"session {session}: {now['version']} where {version} was acknowledged and one step under way")
    stored = {row["id"]: row for row in map(json.loads, client.get("/api/export").text.splitlines())}
    try:
        written = {row["id"]: row for row in server.records()} if server.out.exists() else {}
    except ValueError as error:
        return [*wrong, f"the file of records: {error}"]
    wrong += [
        f"record {name}: not in the file as in the store" for name, row in stored.items() if written.get(name) != row
    ]
    wrong += [
        f"record {name}: finished in the file alone"
        for name, row in written.items()
        if row["status"] != "draft" and name not in stored
    ]
    last = script.under_way
    if last is not None and client.get(f"/api/sessions/{last}").json().get("status") == "open":
        given = client.post("/api/next", json={}).json()["id"]
        wrong += [] if given == last else [f"session {last} was left open, {given} was handed out"]
    return wrong


def run(kills: int, kind: str, seed: int) -> dict[str, Any]:
    """The report."""
    folder = Path(tempfile.mkdtemp(prefix="anchorlwf-kills-"))
    rng, began, lost = random.Random(seed), time.perf_counter(), list[str]()
    script = Script(random.Random(seed + 1))
    prompts = [{"prompt": f"What is {number} + {number % 7}?"} for number in range(4000)]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        url = stack.enter_context(postgres_server())() if kind == "postgresql" else None
        server = Server(folder, prompts, limit=24, store_url=url).start()
        stack.callback(server.stop)
        for kill in range(kills):
            with _client(server) as client:
                person = threading.Thread(target=script.live, args=(client,))
                person.start()
                time.sleep(rng.uniform(*LIVES))
                server.kill()
                person.join(40)
            server.start()
            with _client(server) as client:
                lost += [f"kill {kill + 1}: {what}" for what in check(client, server, script)]
    return {
        "store": kind,
        "kills": kills,
        "acknowledged_steps": script.steps,
        "sessions": len(script.acknowledged),
        "lost": len(lost),
        "what": lost[:10],
        "failures": script.failures[:10],
        "seconds": round(time.perf_counter() - began),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    report = run(options.kills, options.store, options.seed)
    print(json.dumps(report, indent=2))
    sys.exit(1 if report["lost"] or report["failures"] else 0)


if __name__ == "__main__":
    main()
