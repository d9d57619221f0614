"""kill -9 at random moments: does the annotator's server lose a step, does training resume as if nothing had happened?

    python benchmarks/kills.py annotator [--kills 50] [--seed 7] [--store sqlite|postgresql]
    python benchmarks/kills.py training [--kills 40] [--seed 7]

annotator: `anchorlwf annotate --web` over the embedded model serves a scripted person who takes items, corrects,
follows the stream, undoes, notes, decides and takes decisions back. After each kill the server starts again on the same
files, and

- every session still has what was acknowledged last, and at most the one step more that was under way;
- the file of records says the same as the store: no finished record is missing, and it holds no other;
- the next item handed out is the one that was left open, and the work goes on.

PostgreSQL is a real server of Debian's package, in a temporary folder; it is not killed.

training: `anchorlwf train` on the embedded model and three records, with dropout and a checkpoint after every step, is
killed, resumed, and killed again. Each run must end with the adapter, the metrics and the stop report of a run that
nobody disturbed, bit by bit, and leave no part of a file behind.

Prints JSON; the exit code is 1 if anything is wrong.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

from killed_training import killed_runs
from postgres import postgres_server
from served import Server

from anchorlwf.annotation import annotate
from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.model.language_model import load_model
from anchorlwf.world import build_world, draw_errata

STEPS = 60
"""Of every training run."""
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


def kill_annotator(kills: int, kind: str, seed: int) -> dict[str, Any]:
    """What came of killing the server over a `sqlite` or `postgresql` store."""
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
    }


def kill_training(kills: int, seed: int) -> dict[str, Any]:
    """What came of killing training runs."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="anchorlwf-training-kills-") as name:
        folder = Path(name)
        errata = draw_errata(build_world(), 3, 0, seed=3)
        prompts = [erratum.prompts(1)[0] for erratum in errata]
        save_records(folder / "records.jsonl", annotate(load_model(), prompts))
        # Two batches an epoch, so that most checkpoints lie within one; a budget that keeps beta moving.
        TrainConfig(max_steps=STEPS, stop=False, batch_size=2, lora_dropout=0.1, save_steps=1, drift_budget=1e-6).save(
            folder / "train.yaml"
        )
        arguments = ["train", folder / "records.jsonl", "--config", folder / "train.yaml"]
        report = asdict(killed_runs(folder, arguments, kills, seed))
    return {**report, "seconds": round(time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("victim", choices=["annotator", "training"], nargs="?", default="annotator")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite", help="of the annotator")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if options.victim == "training":
        report = kill_training(options.kills or 40, options.seed)
    else:
        report = kill_annotator(options.kills or 50, options.store, options.seed)
    print(json.dumps({**report, "load": round(os.getloadavg()[0], 1)}, indent=2))
    sys.exit(1 if any(report.get(name) for name in ("lost", "failures", "wrong")) else 0)


if __name__ == "__main__":
    main()
