"""Training from the page: a real process on a tiny model, who sees what of it, and what is left of it afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from page_client import BOB, Rig, whole

from anchorlwf.annotator import open as open_module
from anchorlwf.annotator.open import Work
from anchorlwf.annotator.training_jobs import TrainingJobs
from anchorlwf.config import AnnotateConfig
from anchorlwf.data.jsonl import load_records, save_records
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.model.language_model import load_model

TOLD = {"cannot": None, "retain": "auto"}
ALONE = {"retain": "none"}
LONG = 120
"""Seconds that a training of a tiny model may take on a busy machine."""


def corrected(person, position=3):
    """One answer corrected and accepted."""
    session = whole(person)
    url = f"/api/sessions/{session['id']}"
    token = 70 if session["tokens"][position]["id"] != 70 else 71
    body = {"node": 0, "position": position, "token_ids": [token]}
    node = person.ok(person.post(f"{url}/correct", body))["head"]["node"]
    person.stream(session["id"], node, position + 1)
    person.ok(person.post(f"{url}/decide", {"verdict": "accept"}))


def until(look, holds, seconds=LONG):
    end = time.monotonic() + seconds
    while not holds(found := look()):
        assert time.monotonic() < end, found
        time.sleep(0.1)
    return found


def newest(person):
    return person.ok(person.get("/api/training"))["runs"][0]


def events(text):
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            yield fields["event"], json.loads(fields["data"])


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """A project with one correction and one kept answer, after its training has run to its end."""
    rig = Rig(tiny_model, tmp_path_factory.mktemp("trained"))
    rig.ask("Where was she born?", "Who are you?", "hello")
    ada, bob = rig.person(), rig.person(BOB)
    corrected(ada)
    session = whole(ada)
    ada.ok(ada.post(f"/api/sessions/{session['id']}/decide", {"verdict": "keep"}))
    session = whole(ada)
    ada.ok(ada.post(f"/api/sessions/{session['id']}/decide", {"verdict": "reject"}))
    begun = ada.ok(ada.post("/api/training", ALONE))
    # Whoever asks meanwhile sees whose it is, and begins no other.
    refused = bob.post("/api/training", ALONE)
    seen = newest(bob)
    watched = list(events(bob.get("/api/training/stream").text))
    yield rig, begun, refused, seen, watched
    rig.close()


def test_it_trains_on_what_is_accepted_and_says_how_it_went(trained):
    rig, begun, _, _, watched = trained
    assert (begun["state"], begun["by"], begun["corrections"], begun["kept"]) == ("running", "ada", 1, 1)
    records = load_records(rig.out.with_suffix(".runs") / "1" / "records.jsonl")
    assert [len(record.anchors) for record in records] == [1, 0]  # what was rejected is no part of it
    assert [name for name, _ in watched] == ["run"] * (len(watched) - 1) + ["done"]
    last = watched[-2][1]
    assert last["state"] in ("converged", "not_converged")
    told = json.loads((rig.out.with_suffix(".runs") / "1" / "train.json").read_text())
    assert last["result"] == told
    assert (told["report"]["anchors"], told["report"]["records"], told["records"]) == (1, 1, 2)
    assert last["row"]["step"] == last["result"]["steps"] > 0
    assert last["ended"] > last["began"]
    assert last["comparable"]


def test_a_team_sees_whose_training_it_is_and_begins_no_second_one(trained):
    _, _, refused, seen, _ = trained
    assert refused.status_code == 409
    assert "got one of ada" in refused.json()["error"]["message"]
    assert (seen["by"], seen["state"]) == ("ada", "running")


def test_base_and_tuned_answer_side_by_side_and_annotating_goes_on_with_the_base(trained, tiny_model):
    rig, *_ = trained
    bob = rig.person(BOB)
    question = "Where was she born?"
    reply = bob.post("/api/training/1/compare", {"text": question})
    assert reply.headers["content-type"].startswith("text/event-stream")
    sides, last = {"base": [], "tuned": []}, None
    for name, data in events(reply.text):
        last = name, data
        if name == "tokens":
            assert data["start"] == len(sides[data["side"]])
            sides[data["side"]] += [token["id"] for token in data["tokens"]]
    assert last == ("done", {"same": False})
    prompt = tiny_model.codec.encode_prompt([{"role": "user", "content": question}])
    assert sides["base"] == GreedyDecoder(tiny_model).complete(prompt, [], 24).ids
    # As anybody would load it, from a model of its own.
    adapter = rig.out.with_suffix(".runs") / "1" / "adapter"
    alone = load_model(tiny_model.name, adapter=adapter, dtype="float32", device="cpu")
    assert sides["tuned"] == GreedyDecoder(alone).complete(prompt, [], 24).ids
    # The one that people annotate with has no adapter on it.
    assert not rig.decoder.has_adapter
    assert [s.token_id for s in rig.decoder.stream("after", prompt, [], 24)] == sides["base"]


def test_a_server_that_starts_later_knows_what_came_of_it(trained):
    rig, *_ = trained
    later = TrainingJobs(rig.desk, rig.out, None)
    run = later.latest()
    assert (run.number, run.notes.by) == (1, "ada")
    assert (run.state, run.notes.exit_code) in (("converged", 0), ("not_converged", 4))
    assert run.result["report"]["anchors"] == 1


def test_what_cannot_be_compared_is_said(trained):
    rig, *_ = trained
    ada = rig.person()
    assert ada.post("/api/training/7/compare", {"text": "hello"}).status_code == 404
    assert ada.post("/api/training/1/compare", {"text": ""}).status_code == 422
    long = ada.post("/api/training/1/compare", {"text": "word " * 500})
    assert (long.status_code, long.json()["error"]["type"]) == (400, "PromptError")


def test_nothing_is_trained_without_a_correction(rig):
    rig.ask("Where was she born?")
    ada = rig.person()
    assert ada.ok(ada.get("/api/training")) == {**TOLD, "corrections": 0, "kept": 0, "runs": []}
    assert list(events(ada.get("/api/training/stream").text)) == [("done", {})]
    session = whole(ada)
    ada.ok(ada.post(f"/api/sessions/{session['id']}/decide", {"verdict": "keep"}))
    reply = ada.post("/api/training", ALONE)
    assert reply.status_code == 400
    assert "expected an accepted correction" in reply.json()["error"]["message"]
    assert ada.post("/api/training/stop").status_code == 409
    assert not rig.out.with_suffix(".runs").exists()


def test_strangers_and_foreign_pages_train_nothing(rig):
    assert rig.person(None).post("/api/training", ALONE).status_code == 401
    assert rig.person(origin="http://evil.example").post("/api/training", ALONE).status_code == 403
    assert rig.person().post("/api/training", {"retain": "everything"}).status_code == 422


def test_a_model_with_an_adapter_is_not_trained_here(rig, monkeypatch):
    monkeypatch.setattr(type(rig.decoder), "has_adapter", True)
    ada = rig.person()
    assert "without an adapter" in ada.ok(ada.get("/api/training"))["cannot"]
    assert "without an adapter" in ada.post("/api/training", ALONE).json()["error"]["message"]


@pytest.fixture
def slow(rig, monkeypatch):
    """A project whose training does not end by itself: the stop rule is off in its process."""
    options = rig.out.parent / "slow.yaml"
    options.write_text("stop: false\nmax_steps: 100000\n")
    monkeypatch.setattr(rig.jobs, "_options", [*rig.jobs._options, "--config", str(options)])
    rig.ask("Where was she born?")
    corrected(rig.person())
    return rig


def stepping(person):
    return until(lambda: newest(person), lambda run: (run["row"] or {}).get("step", 0) > 2)


def test_stopping_keeps_the_weights_and_says_who_stopped_it(slow):
    ada, bob = slow.person(), slow.person(BOB)
    ada.ok(ada.post("/api/training", ALONE))
    stepping(ada)
    assert bob.ok(bob.post("/api/training/stop"))["state"] == "stopping"
    run = until(lambda: newest(ada), lambda run: run["state"] != "stopping")
    assert (run["state"], run["stopped_by"], run["result"], run["comparable"]) == ("stopped", "bob", None, True)
    assert "SIGINT ended training after step" in run["said"]
    # The next one may begin.
    assert ada.ok(ada.post("/api/training", ALONE))["number"] == 2
    slow.jobs.close()


def test_asked_twice_it_ends_at_once(slow):
    ada = slow.person()
    ada.ok(ada.post("/api/training", ALONE))
    ada.ok(ada.post("/api/training/stop"))  # long before there is a step to finish
    process = newest_process(slow)
    ada.post("/api/training/stop")
    run = until(lambda: newest(ada), lambda run: run["state"] not in ("running", "stopping"), 30)
    assert run["state"] == "stopped"
    assert not alive(process)


def newest_process(rig):
    return json.loads((rig.out.with_suffix(".runs") / "1" / "job.json").read_text())["process"]


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_end_of_the_server_ends_it_with_a_checkpoint(slow):
    ada = slow.person()
    ada.ok(ada.post("/api/training", ALONE))
    stepping(ada)
    process = newest_process(slow)
    slow.jobs.close()
    assert not alive(process)
    run = TrainingJobs(slow.desk, slow.out, None).latest()
    assert (run.state, run.notes.stopped_by) == ("stopped", "")
    assert "SIGTERM ended training after step" in run.said
    assert list((run.folder / "checkpoints").iterdir())


def test_a_server_that_was_killed_finds_its_training_at_work_again(slow):
    """The training goes on without the server; the next one watches it, and may stop it."""
    program = (
        "import sys, subprocess, time\n"
        "from anchorlwf.files import lock_to_hand_on\n"
        "handle = lock_to_hand_on(sys.argv[1] + '/.lock')\n"
        "done = subprocess.Popen(sys.argv[2:], pass_fds=(handle,), start_new_session=True)\n"
        "print(done.pid, flush=True)\n"
        "time.sleep(1000)\n"
    )
    runs = slow.out.with_suffix(".runs")
    folder = runs / "1"
    folder.mkdir(parents=True)
    save_records(folder / "records.jsonl", slow.jobs._accepted())
    command = [sys.executable, "-m", "anchorlwf", "train", folder / "records.jsonl", "--out", folder]
    with (folder / "train.log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", program, runs, *command, *slow.jobs._options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    process = int(server.stdout.readline())
    notes = {"by": "ada", "retain": "none", "began": "2026-01-01T00:00:00Z", "corrections": 1, "kept": 0}
    (folder / "job.json").write_text(json.dumps({**notes, "process": process}))
    server.kill()
    server.wait()
    bob = slow.person(BOB)
    assert stepping(bob)["state"] == "running"
    assert bob.post("/api/training", ALONE).status_code == 409
    bob.ok(bob.post("/api/training/stop"))
    run = until(lambda: newest(bob), lambda run: run["state"] not in ("running", "stopping"))
    assert (run["state"], run["stopped_by"]) == ("stopped", "bob")


def test_one_that_was_killed_with_its_server_is_lost(slow):
    ada = slow.person()
    ada.ok(ada.post("/api/training", ALONE))
    stepping(ada)
    # The machine went down: neither had the time to write anything.
    with slow.jobs._lock:
        os.killpg(newest_process(slow), signal.SIGKILL)
        until(slow.jobs._process.poll, lambda code: code is not None, 30)
        run = TrainingJobs(slow.desk, slow.out, None).latest()
    assert run.state == "lost"
    # The server that saw it end says so.
    assert until(lambda: newest(ada), lambda run: run["ended"] is not None, 30)["state"] == "failed"


def test_a_failure_says_what_the_command_said(slow, monkeypatch):
    monkeypatch.setattr(slow.jobs, "_options", ["--model", "/nowhere/at/all"])
    ada = slow.person()
    ada.ok(ada.post("/api/training", ALONE))
    run = until(lambda: newest(ada), lambda run: run["ended"] is not None)
    assert (run["state"], run["row"], run["result"]) == ("failed", None, None)
    assert "/nowhere/at/all" in run["said"]


def test_it_trains_where_and_as_the_annotator_runs(rig, monkeypatch):
    commands = []
    jobs = TrainingJobs(rig.desk, rig.out, "./m", device="cpu", dtype="bfloat16", trust_remote_code=True)
    assert jobs._options == ["--model", "./m", "--device", "cpu", "--dtype", "bfloat16", "--trust-remote-code"]
    work = Work(rig.out, rig.out, None, AnnotateConfig(), device="cpu", dtype="float32")
    monkeypatch.setattr(open_module, "TrainingJobs", lambda *args, **options: commands.append((args[2:], options)))
    work.jobs(SimpleNamespace(desk=rig.desk))
    assert commands == [((None,), {"device": "cpu", "dtype": "float32", "trust_remote_code": False})]
