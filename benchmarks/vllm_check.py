"""Does a vLLM server give what the same model gives here? Prints JSON; exit code 1 if anything differs.

    python benchmarks/vllm_check.py --url http://127.0.0.1:8000/v1 [--model FOLDER] [--prompts 50] [--tokens 96]

How to start one: docs/vllm.md. Both in float32. Compared are ids, probabilities and alternatives of greedy answers,
one after the other and eight at once; corrections in the middle with what follows them; judging up to the end of the
context. Then: a stream that is stopped, and a whole session of the annotator's page over the server, whose records
`anchorlwf verify` replays here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import torch

from anchorlwf.annotator.backends.connect import connect_remote
from anchorlwf.annotator.backends.local import LocalDecoder
from anchorlwf.cli.shared import quiet_libraries
from anchorlwf.model.language_model import EMBEDDED, load_model
from anchorlwf.run import environment
from anchorlwf.world import build_world
from anchorlwf.world.templates import templates

FREE = (
    "Who are you?",
    "What is 12 + 7?",
    "Repeat: apple river stone",
    "Why?",
    "你好 🙂",
    "Tell me everything.",
    "List five towns.",
    "   ",
    "Where was she born?",
    "<b>bold</b>",
)


def questions(count):
    """Facts that the embedded model knows, and free ones in between that make it unsure; all different."""
    facts = build_world().facts
    step = max(1, 2 * len(facts) // count)
    known = (templates(fact.attribute)[0].ask(fact) for fact in facts[::step])
    free = (f"{text} {number}" for number in range(count) for text in FREE)
    return [question for pair in zip(known, free, strict=False) for question in pair][:count]


def timed(stream):
    """The steps and how long they took."""
    before = time.perf_counter()
    steps = list(stream)
    return steps, time.perf_counter() - before


def compare(ours, theirs):
    """Two answers: same ids? The largest differences of probabilities and alternatives, and where they part."""
    same = [a.token_id for a in ours] == [b.token_id for b in theirs]
    pairs = list(zip(ours, theirs, strict=False))
    parted = next((place for place, (a, b) in enumerate(pairs) if a.token_id != b.token_id), len(pairs))
    agreed = pairs[:parted]
    listed = [(dict(a.alternatives), dict(b.alternatives)) for a, b in agreed]
    gaps = [abs(a[token] - b[token]) for a, b in listed for token in a.keys() & b.keys()]
    unlisted = [max(a.get(token, 0), b.get(token, 0)) for a, b in listed for token in a.keys() ^ b.keys()]
    first_two = [probability for _, probability in ours[parted].alternatives[:2]] if parted < len(pairs) else None
    return {
        "same": same,
        "tokens": len(agreed),
        "parted_at": None if same else parted,
        "best_two_there": first_two,
        "probability": max((abs(a.probability - b.probability) for a, b in agreed), default=0.0),
        "alternatives": max(gaps, default=0.0),
        "listed_by_one_only": max(unlisted, default=0.0),
    }


def summary(comparisons):
    """Of many comparisons."""
    return {
        "identical": sum(comparison["same"] for comparison in comparisons),
        "of": len(comparisons),
        "tokens": sum(comparison["tokens"] for comparison in comparisons),
        "largest_probability_difference": max(comparison["probability"] for comparison in comparisons),
        "largest_alternative_difference": max(comparison["alternatives"] for comparison in comparisons),
        "most_probable_alternative_listed_by_one_only": max(
            comparison["listed_by_one_only"] for comparison in comparisons
        ),
        "parted": [
            {name: comparison[name] for name in ("parted_at", "best_two_there")}
            for comparison in comparisons
            if not comparison["same"]
        ],
    }


def answers(local, remote, prompts, limit):
    """Greedy answers, one after the other, then eight at once on the server."""
    ours, theirs = [], []
    list(remote.stream("warm", prompts[0], [], limit))
    for number, prompt in enumerate(prompts):
        ours.append(timed(local.stream(number, prompt, [], limit)))
        theirs.append(timed(remote.stream(number, prompt, [], limit)))
    before = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(lambda prompt: list(remote.stream("crowd", prompt, [], limit)), prompts))
    crowded = time.perf_counter() - before
    alone = summary([compare(a, b) for (a, _), (b, _) in zip(ours, theirs, strict=True)])
    for name, taken in (("local", ours), ("remote", theirs)):
        alone[f"{name}_seconds_per_token"] = sum(took for _, took in taken) / sum(len(steps) for steps, _ in taken)
    together = summary([compare(a, b) for (a, _), b in zip(ours, crowd, strict=True)])
    together["remote_seconds_per_token"] = crowded / sum(map(len, crowd))
    return [steps for steps, _ in ours], {"one_by_one": alone, "eight_at_once": together}


def corrections(local, remote, prompts, firsts, limit):
    """The runner-up put into the middle of each answer: judged, and continued, by both."""
    comparisons, judged, chosen = [], [], 0
    for number, (prompt, steps) in enumerate(zip(prompts, firsts, strict=True)):
        ids, middle = [step.token_id for step in steps], len(steps) // 2
        runner = steps[middle].alternatives[1][0]
        a, b = (d.judge(number, prompt, ids[:middle], [runner, ids[0], 17]) for d in (local, remote))
        judged.append(max(abs(x - y) for x, y in zip(a.probabilities, b.probabilities, strict=True)))
        chosen += (a.best_ids, a.tied) == (b.best_ids, b.tied)
        prefix = [*ids[:middle], runner]
        comparisons.append(compare(*(list(d.stream(number, prompt, prefix, limit)) for d in (local, remote))))
    return {"continued": summary(comparisons), "judged_alike": chosen, "largest_judged_difference": max(judged)}


def full_context(local, remote, prompt):
    """An answer whose last token fills the context: decoded and judged."""
    size = local.model.context_length  # the server's own is the same, or the prompt is refused
    if size is None or size > 4096:
        return None
    long = (prompt * (size // len(prompt) + 1))[: size - 4]
    ours, theirs = (list(d.stream("full", long, [], 64)) for d in (local, remote))
    a, b = (d.judge("full", long, [], [17, 9, 40, 3]) for d in (local, remote))
    gap = max(abs(x - y) for x, y in zip(a.probabilities, b.probabilities, strict=True))
    return {**compare(ours, theirs), "judged_alike": a.best_ids == b.best_ids, "largest_judged_difference": gap}


def stopped(local, remote, url, prompt):
    """A long continuation, compared; then again, closed after three tokens: how soon does the server run nothing?"""
    prefix = remote.table.codec.tokenizer.encode(" feather" * 60, add_special_tokens=False)  # few models end there
    whole, alone = timed(remote.stream("stop", prompt, prefix, 400))
    comparison = compare(list(local.stream("stop", prompt, prefix, 400)), whole)
    taken, stream = 0, remote.stream("stop", prompt, prefix, 400)
    for _ in stream:
        taken += 1
        if taken == 3:
            closed = time.perf_counter()
            stream.close()
    while running(url) and time.perf_counter() - closed < 10:
        time.sleep(0.01)
    return {
        "left_alone": {**comparison, "seconds": alone},
        "tokens_taken": taken,
        "seconds_to_idle": time.perf_counter() - closed,
    }


def running(url):
    """Requests under way, as the server itself says."""
    lines = httpx.get(url.removesuffix("/v1") + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))


class Page:
    """`anchorlwf annotate --web --remote`, as a person starts it, spoken to through its HTTP API."""

    def __init__(self, folder, url, model, prompts):
        self.records = folder / "records.jsonl"
        lines = folder / "prompts.jsonl"
        lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        command = [
            sys.executable,
            "-m",
            "anchorlwf",
            "annotate",
            lines,
            "--out",
            self.records,
            "--web",
            "--port",
            "0",
            "--name",
            "ada",
            "--remote",
            url,
            "--model",
            model,
            "--max-new-tokens",
            "96",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
        assert self._process.stdout is not None
        said = next(line for line in self._process.stdout if "http://" in line)
        base, _, token = said[said.index("http://") :].strip().partition("/?token=")
        self._client = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def ask(self, method, path, body=None):
        """JSON of a request that succeeded."""
        reply = self._client.request(method, f"/api/{path}", json=body)
        reply.raise_for_status()
        return reply.json()

    def follow(self, number, node, start):
        """The stream to its end; the last event's name."""
        event = None
        path = f"/api/sessions/{number}/stream"
        with self._client.stream("GET", path, params={"node": node, "start": start}) as reply:
            for line in reply.iter_lines():
                event = line[7:] if line.startswith("event: ") else event
        return event

    def export(self):
        """The records as the page gives them."""
        return self._client.get("/api/export").text

    def close(self):
        """The server stops in good order."""
        self._process.terminate()
        self._process.wait(20)


def session(url, model, prompts):
    """Correct each answer once by what the server calls the runner-up there, follow, accept; then verify the export."""
    with tempfile.TemporaryDirectory() as name:
        page = Page(Path(name), url, model, prompts)
        try:
            steps, ends = 0, []
            while (live := page.ask("POST", "next", {}))["id"] is not None:
                number = live["id"]
                if live["streaming"] or not live["ended"]:
                    ends.append(page.follow(number, live["node"], len(live["tokens"])))
                live = page.ask("GET", f"sessions/{number}")
                position = live["length"] // 2
                at = f"sessions/{number}/alternatives?node={live['node']}&position={position}"
                other = next(option for option in page.ask("GET", at)["options"] if not option["stands"])
                change = {"node": live["node"], "position": position, "token_ids": [other["id"]]}
                head = page.ask("POST", f"sessions/{number}/correct", change)["head"]
                if head["streaming"]:
                    ends.append(page.follow(number, head["node"], head["length"]))
                page.ask("POST", f"sessions/{number}/decide", {"verdict": "accept"})
                steps += 1
            exported = Path(name) / "exported.jsonl"
            exported.write_text(page.export(), encoding="utf-8")
        finally:
            page.close()
        verify = [sys.executable, "-m", "anchorlwf", "verify", exported, "--model", model, "--json"]
        done = subprocess.run(verify, check=False, capture_output=True, text=True)  # noqa: S603 - our own
        records = [json.loads(line) for line in exported.read_text(encoding="utf-8").splitlines()]
        return {
            "accepted": steps,
            "records": len(records),
            "anchors": sum(len(record["anchors"]) for record in records),
            "streams_that_failed": sum(end != "done" for end in ends),
            "verify_exit_code": done.returncode,
            "verify_said": json.loads(done.stdout),
        }


def main():
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="of the server, ending in /v1")
    parser.add_argument("--model", default=EMBEDDED, help="the same model here: folder or hub name")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=96, help="most of an answer")
    options = parser.parse_args()
    quiet_libraries()
    url = options.url.rstrip("/")
    local = LocalDecoder(load_model(options.model, dtype="float32"))
    remote = connect_remote(url, options.model)
    asked = questions(options.prompts)
    prompts = [local.table.codec.encode_prompt([{"role": "user", "content": text}]) for text in asked]
    firsts, greedy = answers(local, remote, prompts, options.tokens)
    report = {
        "environment": {**environment(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()},
        "server": httpx.get(url.removesuffix("/v1") + "/version").json(),
        "answers": greedy,
        "corrections": corrections(local, remote, prompts, firsts, options.tokens),
        "full_context": full_context(local, remote, prompts[0]),
        "stopped": stopped(local, remote, url, prompts[0]),
        "page": session(url, options.model, asked[:10]),
    }
    local.close()
    remote.close()
    print(json.dumps(report, indent=2, ensure_ascii=False))
    alike = [part["identical"] == part["of"] for part in (*greedy.values(), report["corrections"]["continued"])]
    alike += [
        report["corrections"]["judged_alike"] == len(prompts),
        report["page"]["verify_exit_code"] == 0,
        report["stopped"]["left_alone"]["same"],
        (report["full_context"] or {"same": True})["same"],
    ]
    sys.exit(0 if all(alike) else 1)


if __name__ == "__main__":
    main()
