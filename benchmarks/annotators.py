"""Many annotators at once on one server and one embedded model: is anything handed out twice, lost or slow?

    python benchmarks/annotators.py [--people 20] [--seconds 120]

Each person takes an item, corrects a token, follows the stream to its end, accepts, and goes on. In the end the
records are replayed on the model, and every acknowledged decision must be among them.
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

import httpx


class Person(threading.Thread):
    """One annotator with a connection of their own."""

    def __init__(self, name: str, base: str, token: str, until: float) -> None:
        super().__init__(name=name)
        self._client = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self._until, self._rng = until, random.Random(name)
        self.times: list[float] = []
        self.first: list[float] = []
        self.done: list[int] = []
        self.failures: list[str] = []

    def _post(self, path: str, body: dict[str, object]) -> dict[str, object] | None:
        before = time.perf_counter()
        reply = self._client.post(path, json=body)
        self.times.append(time.perf_counter() - before)
        if reply.status_code == 200:
            return reply.json()
        if reply.status_code != 409:
            self.failures.append(f"{path} {reply.status_code} {reply.text[:120]}")
        return None

    def _follow(self, session: int, node: int, start: int) -> None:
        before, first = time.perf_counter(), True
        path = f"/api/sessions/{session}/stream"
        with self._client.stream("GET", path, params={"node": node, "start": start}) as reply:
            for line in reply.iter_lines():
                if first and line.startswith("event: tokens"):
                    self.first.append(time.perf_counter() - before)
                    first = False

    def run(self) -> None:
        while time.time() < self._until:
            session = self._post("/api/next", {})
            if session is None or session["id"] is None:
                break
            number = session["id"]
            self._follow(number, session["node"], len(session["tokens"]))
            url = f"/api/sessions/{number}"
            length = self._client.get(url).json()["length"]
            wrong = {"node": session["node"], "position": self._rng.randrange(length), "text": " river"}
            step = self._post(f"{url}/correct", wrong)
            if step is not None and step["head"]["streaming"]:
                self._follow(number, step["head"]["node"], step["head"]["length"])
            if self._post(f"{url}/decide", {"verdict": "accept"}) is not None:
                self.done.append(session["item"])


def _share(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] * 1000 if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="anchorlwf-bench-"))
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {i} + {i % 7}?"}) + "\n" for i in range(4000)))
    tokens = {f"person{i}": secrets.token_urlsafe(24) for i in range(options.people)}
    (folder / "team.yaml").write_text("".join(f"{name}: {token}\n" for name, token in tokens.items()))
    program = Path(sys.executable).with_name("anchorlwf")
    command = [
        program,
        "annotate",
        prompts,
        "--out",
        folder / "records.jsonl",
        "--web",
        "--port",
        "0",
        "--annotators",
        folder / "team.yaml",
        "--max-new-tokens",
        "48",
    ]
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=surroundings)  # noqa: S603 - our own
    assert server.stdout is not None
    base = server.stdout.readline().split(" ", 1)[1].split("/?")[0]
    try:
        until = time.time() + options.seconds
        people = [Person(name, base, token, until) for name, token in tokens.items()]
        for person in people:
            person.start()
        for person in people:
            person.join()
    finally:
        server.kill()  # the hard way: what was acknowledged must be in the store
        server.wait()
    from anchorlwf.annotation import verify_records
    from anchorlwf.annotator.store.queue import export_records
    from anchorlwf.annotator.store.store import Store
    from anchorlwf.model.language_model import load_model

    store, model = Store(str(folder / "records.store.db")), load_model()
    records = export_records(store, store.project("prompts", model.stamp))
    done = [item for person in people for item in person.done]
    times = [value for person in people for value in person.times]
    first = [value for person in people for value in person.first]
    print(
        json.dumps(
            {
                "people": options.people,
                "seconds": options.seconds,
                "items_done": len(done),
                "handed_out_twice": len(done) - len(set(done)),
                "records_in_store": len(records),
                "records_that_do_not_hold": sum(not found.holds for found in verify_records(model, records)),
                "failures": [failure for person in people for failure in person.failures][:5],
                "steps": len(times),
                "step_p50_ms": _share(times, 0.5),
                "step_p95_ms": _share(times, 0.95),
                "first_token_p50_ms": _share(first, 0.5),
                "first_token_p95_ms": _share(first, 0.95),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
