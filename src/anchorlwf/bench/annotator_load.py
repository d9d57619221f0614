"""Many annotators at once on one server over the embedded model: is anything handed out twice, lost or slow?

    python -m anchorlwf.bench.annotator_load [--people 20] [--seconds 120]

Each person takes an item, corrects a token, follows the stream to its end, accepts, and goes on. Then the server is
killed and started again; what it exports is verified with the model, and every acknowledged decision must be in it.
"""

import argparse
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx

from anchorlwf.annotation import verify_records
from anchorlwf.data.jsonl import load_records
from anchorlwf.model.language_model import load_model

__all__ = ["measure_load"]

_PROMPTS, _ANSWER_TOKENS = 4000, 48


class _Server:
    """`anchorlwf annotate --web`, as a person starts it."""

    def __init__(self, folder: Path) -> None:
        program = Path(sys.executable).with_name("anchorlwf")
        files = [folder / "prompts.jsonl", "--out", folder / "records.jsonl", "--annotators", folder / "team.yaml"]
        options = ["--web", "--port", "0", "--max-new-tokens", str(_ANSWER_TOKENS)]
        self._command = [str(part) for part in (program, "annotate", *files, *options)]

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(  # noqa: S603 - our own
            self._command, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().split(" ", 1)[1].split("/?")[0]
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()  # without warning: what was acknowledged must be in the store
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def client(self, token: str) -> httpx.Client:
        """A connection of one person's own."""
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


class _Person(threading.Thread):
    def __init__(self, name: str, client: httpx.Client, until: float) -> None:
        super().__init__(name=name)
        self._client, self._until, self._rng = client, until, random.Random(name)
        self.step_seconds: list[float] = []
        self.first_token_seconds: list[float] = []
        self.items: list[int] = []
        """Acknowledged as accepted."""
        self.failures: list[str] = []

    def _post(self, path: str, body: dict[str, object]) -> dict[str, Any] | None:
        began = time.perf_counter()
        reply = self._client.post(path, json=body)
        self.step_seconds.append(time.perf_counter() - began)
        if reply.status_code == 200:
            return dict(reply.json())
        if reply.status_code != 409:
            self.failures.append(f"{path} {reply.status_code} {reply.text[:120]}")
        return None

    def _follow(self, session: int, node: int, start: int) -> None:
        began, waiting = time.perf_counter(), True
        path = f"/api/sessions/{session}/stream"
        with self._client.stream("GET", path, params={"node": node, "start": start}) as reply:
            for line in reply.iter_lines():
                if waiting and line.startswith("event: tokens"):
                    self.first_token_seconds.append(time.perf_counter() - began)
                    waiting = False

    def run(self) -> None:
        while time.time() < self._until:
            session = self._post("/api/next", {})
            if session is None or session["id"] is None:
                break
            number = session["id"]
            self._follow(number, session["node"], len(session["tokens"]))
            url = f"/api/sessions/{number}"
            length = self._client.get(url).json()["length"]
            correction = {"node": session["node"], "position": self._rng.randrange(length), "text": " river"}
            step = self._post(f"{url}/correct", correction)
            if step is not None and step["head"]["streaming"]:
                self._follow(number, step["head"]["node"], step["head"]["length"])
            if self._post(f"{url}/decide", {"verdict": "accept"}) is not None:
                self.items.append(session["item"])


def _milliseconds(seconds: list[float], share: float) -> float:
    """The quantile at `share`."""
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1000 if seconds else float("nan")


def measure_load(people: int, seconds: float, folder: Path) -> dict[str, Any]:
    """Let so many people work for so long; JSON-ready.

    Args:
        people: annotators, each a thread with a connection of its own.
        seconds: how long they take new items.
        folder: empty; receives prompts, records and store.
    """
    prompts = (json.dumps({"prompt": f"What is {number} + {number % 7}?"}) for number in range(_PROMPTS))
    (folder / "prompts.jsonl").write_text("".join(f"{line}\n" for line in prompts))
    tokens = {f"person{number}": secrets.token_urlsafe(24) for number in range(people)}
    (folder / "team.yaml").write_text("".join(f"{name}: {token}\n" for name, token in tokens.items()))
    server = _Server(folder)
    with server:
        until = time.time() + seconds
        team = [_Person(name, server.client(token), until) for name, token in tokens.items()]
        for person in team:
            person.start()
        for person in team:
            person.join()
    exported = folder / "exported.jsonl"
    with server:
        exported.write_text(server.client(tokens["person0"]).get("/api/export").text, encoding="utf-8")
    records = load_records(exported)
    items = [item for person in team for item in person.items]
    steps = [spent for person in team for spent in person.step_seconds]
    firsts = [spent for person in team for spent in person.first_token_seconds]
    return {
        "people": people,
        "seconds": seconds,
        "items_done": len(items),
        "handed_out_twice": len(items) - len(set(items)),
        "records_in_store": len(records),
        "records_that_do_not_hold": sum(not finding.holds for finding in verify_records(load_model(), records)),
        "failures": [failure for person in team for failure in person.failures][:5],
        "steps": len(steps),
        "step_p50_ms": _milliseconds(steps, 0.5),
        "step_p95_ms": _milliseconds(steps, 0.95),
        "first_token_p50_ms": _milliseconds(firsts, 0.5),
        "first_token_p95_ms": _milliseconds(firsts, 0.95),
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="anchorlwf-bench-") as folder:
        print(json.dumps(measure_load(options.people, options.seconds, Path(folder)), indent=2))


if __name__ == "__main__":
    _main()
