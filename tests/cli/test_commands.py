"""The whole job, command by command, on real input; and the help of every command."""

import importlib
import io
import json
import re
import shutil
from dataclasses import replace

import pytest
from commands import ERRATUM, Done, refused, run, save_yaml, told, unconverged, well

from anchorlwf.cli import app
from anchorlwf.cli.picture import draw
from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import load_records, save_lines
from anchorlwf.world import build_world, fact_probe, templates

COMMANDS = sorted(command.name for command in app.registered_commands)


def test_annotated_records_hold(job):
    done = well("verify", job / "records.jsonl")
    assert (done.out, told(done)) == ("2 of 2 records hold\n", "")
    assert json.loads(well("verify", job / "records.jsonl", "--json").out) == {"records": 2, "hold": 2, "broken": []}


def test_the_annotate_command_skips_what_is_finished(job, tmp_path):
    shutil.copy(job / "records.jsonl", tmp_path / "r.jsonl")
    before = (tmp_path / "r.jsonl").read_bytes()
    done = well("annotate", job / "prompts.jsonl", "--out", tmp_path / "r.jsonl", "--json")
    assert json.loads(done.out)["records"] == 0
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_annotation_is_counted(tmp_path):
    right = ERRATUM.wordings(1)[0]
    own = {"prompt": right.ask(ERRATUM.fact), "answer": right.reply(ERRATUM.fact)}
    save_lines(tmp_path / "p.jsonl", [own, *ERRATUM.prompts(2)])
    done = well("annotate", tmp_path / "p.jsonl", "--out", tmp_path / "r.jsonl", "--confidence", 0.5, "--json")
    records = load_records(tmp_path / "r.jsonl")
    assert json.loads(done.out) == {
        "records": 3,
        "anchors": sum(len(record.anchors) for record in records),
        "drafts": 0,
        "already_right": 1,
        "completion_tokens": sum(len(record.completion_ids) for record in records),
        "out": str(tmp_path / "r.jsonl"),
    }
    assert {anchor.confidence for record in records for anchor in record.anchors} == {0.5}
    assert "annotate 3/3" in done.err
    (tmp_path / "r.jsonl").unlink()
    plain = well("annotate", tmp_path / "p.jsonl", "--out", tmp_path / "r.jsonl")
    assert "1 answers were right already: nothing to correct" in plain.out


def test_training_leaves_a_run_folder(job):
    assert {"config.yaml", "environment.json", "metrics.jsonl", "train.json", "adapter"} <= {
        path.name for path in (job / "run").iterdir()
    }
    assert TrainConfig.load(job / "run" / "config.yaml") == TrainConfig()


def test_options_win_over_the_configuration_file(tiny_path, corrected, tmp_path):
    file = save_yaml(tmp_path / "train.yaml", rank=2, max_steps=7, targets="all-linear")
    done = unconverged(
        "train",
        corrected,
        "--out",
        tmp_path / "run",
        "--model",
        tiny_path,
        "--config",
        file,
        "--max-steps",
        3,
        "--retain",
        "none",
        "--json",
    )
    data = json.loads(done.out)
    assert (data["steps"], data["converged"], data["records"]) == (3, False, 2)
    config = TrainConfig.load(tmp_path / "run" / "config.yaml")
    assert (config.rank, config.max_steps) == (2, 3)
    assert re.search(r"^train .* 3/3$", done.err, re.MULTILINE)
    assert len(data["missing"]) >= 2
    options = ["--model", tiny_path, "--max-steps", 1, "--retain", "none"]
    plain = unconverged("train", corrected, "--out", tmp_path / "again", *options)
    assert plain.out.startswith("NOT converged after 1 steps")
    assert re.search(r"^missing: 0 of \d+ anchors held; more steps may help$", plain.out, re.MULTILINE)
    assert (tmp_path / "again" / "adapter").is_dir()


def test_evaluation_prints_a_table_or_json(job, tmp_path):
    options = [
        "--adapter",
        job / "run" / "adapter",
        "--probes",
        job / "probes.jsonl",
        "--records",
        job / "records.jsonl",
    ]
    done = well("evaluate", *options, "--out", tmp_path / "results.json", "--json")
    data = json.loads(done.out)
    assert (data["recall"], data["kept"], data["annotated_tokens"] > 0) == (1.0, 1.0, True)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == data
    assert re.search(r"^base \d+/13$", done.err, re.MULTILINE)
    assert re.search(r"^tuned 13/13$", done.err, re.MULTILINE)
    assert "NaN" not in well("evaluate", *options[:2], "--probes", job / "recall.jsonl", "--json").out
    plain = well("evaluate", *options)
    assert re.search(r"recall .*100\.0%", plain.out)
    assert "tuned 13/13" in plain.err


def test_answers_that_flipped_are_named(job, tmp_path):
    # The base has this right, and the tuned model, which was corrected to another value, does not.
    probes = save_lines_of_flips(tmp_path / "probes.jsonl", 12)
    options = ["evaluate", "--adapter", job / "run" / "adapter", "--probes", probes, "--max-new-tokens", 24]
    shown = [line for line in well(*options).out.splitlines() if line.startswith("flipped, kept: ")]
    assert len(shown) == 10
    assert ERRATUM.fact.value in shown[0]
    assert ERRATUM.value in shown[0]
    assert "and 2 more, all of them in --json and --out" in well(*options).out
    assert len(json.loads(well(*options, "--json").out)["details"]["kept"]["flips"]) == 12


def save_lines_of_flips(path, count):
    probe = fact_probe(ERRATUM.fact, ERRATUM.wordings(1)[0], "retain")
    save_lines(path, [probe.model_copy(update={"id": str(number)}) for number in range(count)])
    return path


def test_records_alone_can_be_evaluated(job):
    done = well("evaluate", "--adapter", job / "run" / "adapter", "--records", job / "records.jsonl")
    assert re.search(r"recall .*100\.0%", done.out)
    assert "kl" not in done.out
    refused(run("evaluate", "--adapter", job / "run" / "adapter"), r"expected something to ask, got nothing")


def test_a_fully_trained_model_is_compared_with_its_base(tiny_path, corrected, tmp_path):
    options = ["--model", tiny_path, "--method", "full", "--max-steps", 1, "--retain", "none"]
    unconverged("train", corrected, "--out", tmp_path / "run", *options)
    save_lines(tmp_path / "probes.jsonl", [fact_probe(ERRATUM.fact, templates("home")[0], "retain")])
    done = well(
        "evaluate",
        "--model",
        tmp_path / "run" / "model",
        "--base",
        tiny_path,
        "--probes",
        tmp_path / "probes.jsonl",
        "--json",
        "--max-new-tokens",
        5,
    )
    assert json.loads(done.out)["kl"] > 0


def test_chat_shows_both_sides(job):
    question = ERRATUM.prompts(1)[0].messages[0]["content"]
    adapter = job / "run" / "adapter"
    done = well("chat", "--adapter", adapter, "--prompt", question, "--prompt", "Who are you?", "--json")
    corrected, other = json.loads(done.out)
    # Each is a question of its own: asked alone, or after others, the answer is the same.
    assert json.loads(well("chat", "--adapter", adapter, "-p", "Who are you?", "--json").out) == [other]
    assert corrected["prompt"] == question
    assert ERRATUM.fact.value in corrected["base"]
    assert ERRATUM.value in corrected["tuned"]
    assert other["base"] == other["tuned"]
    assert told(done) == ""
    plain = well("chat", "--adapter", adapter, "-p", "Who are you?")
    assert re.search(r"^> Who are you\?\n.*base.*tuned", plain.out)
    assert set(json.loads(well("chat", "-p", "Who are you?", "--json").out)[0]) == {"prompt", "tuned"}


@pytest.mark.parametrize("typed", ["Who are you?\nWho made you?\n", "Who are you?\nWho made you?\n\nignored\n"])
def test_chat_reads_lines_until_an_empty_one_or_the_end(monkeypatch, typed):
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    done = well("chat", "--json")
    assert [turn["prompt"] for turn in json.loads(done.out)] == ["Who are you?", "Who made you?"]
    assert "ends the chat" in done.err


def test_exports_for_other_trainers(job, tmp_path):
    for view, keys in (("sft", {"prompt", "completion"}), ("dpo", {"prompt", "chosen", "rejected"})):
        done = well("export", job / "records.jsonl", "--to", view, "--out", tmp_path / view)
        assert done == Done(0, f"2 of 2 records in {tmp_path / view}\n", "")
        rows = [json.loads(line) for line in (tmp_path / view).read_text().splitlines()]
        assert [set(row) for row in rows] == [keys, keys]
    assert ERRATUM.value in rows[0]["chosen"][0]["content"]
    assert ERRATUM.fact.value in rows[0]["rejected"][0]["content"]


def test_fix_corrects_one_answer_and_says_what_changed(tmp_path):
    save_lines(tmp_path / "check.jsonl", [{"prompt": "Who made you?"}, {"prompt": "Repeat: apple river"}])
    options = [
        "fix",
        "--prompt",
        "Who are you?",
        "--answer",
        "I am Tarn, your assistant.",
        "--check",
        tmp_path / "check.jsonl",
        "--out",
        tmp_path / "run",
    ]
    done = well(*options)
    assert done.out.startswith("before: I am Lumo, your assistant.\nafter:  I am Tarn, your assistant.\n")
    assert "' Lum' -> ' Tarn'" in done.out
    assert "unchanged answers to other prompts: 2 of 2\n" in done.out
    phases = list(dict.fromkeys(line.split(" ")[0] for line in told(done).splitlines()))
    assert phases == ["answers-before", "reference", "train", "tuned"]
    data = json.loads(well(*options, "--json").out)
    assert (data["after"], data["kept"]) == ("I am Tarn, your assistant.", 1.0)
    assert data["anchors"][0] == [" Lum", " Tarn"]


@pytest.fixture
def small_demo(monkeypatch):
    """The demo's module, with one correction in a corner of the world; the whole is held by test_pipeline.py."""
    world = build_world()
    corner = replace(world, facts=tuple(fact for fact in world.facts if fact.subject in world.people[:5]))
    module = importlib.import_module("anchorlwf.workflow.demo")
    for name, value in (("build_world", lambda: corner), ("_FACTS", 1), ("_IDENTITY", 0)):
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.usefixtures("small_demo")
def test_the_demo_learns_and_prints_json(tmp_path):
    done = well("demo", "--out", tmp_path / "demo", "--json")
    data = json.loads(done.out)
    assert data["recall"] == 1.0
    assert data["kept"] > 0.95
    assert json.loads((tmp_path / "demo" / "results.json").read_text())["kl"] == data["kl"]
    assert [line.split(":")[0] for line in told(done).splitlines() if ": " in line] == ["annotate", "train", "evaluate"]


def test_a_demo_that_does_not_converge_says_so_and_can_be_drawn(monkeypatch, small_demo, tmp_path):
    report = small_demo.demo(tmp_path / "demo", config=TrainConfig(max_steps=1))
    assert (tmp_path / "demo" / "adapter").is_dir()
    # The same report without the work: as text, as JSON, and as a picture that asks the network for nothing.
    monkeypatch.setattr(importlib.import_module("anchorlwf.workflow"), "demo", lambda *_args, **_kwargs: report)
    done = unconverged("demo")
    assert re.search(r"^NOT converged: \d+ of \d+ anchors held", done.out, re.MULTILINE)
    as_json = unconverged("demo", "--json")
    assert json.loads(as_json.out)["converged"] is False
    draw(str(tmp_path / "demo.svg"))
    drawn = (tmp_path / "demo.svg").read_text()
    assert "make&#160;demo" in drawn
    assert "recall" in drawn
    assert "@font-face" not in drawn


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_shows_an_example(name):
    done = well(name, "--help")
    assert re.search(rf"^ +anchorlwf {name}( |$)", done.out, re.MULTILINE)
    assert done.err == ""


def test_the_help_lists_every_command():
    done = well("--help")
    assert [name for name in COMMANDS if not re.search(rf"^  {name}  ", done.out, re.MULTILINE)] == []


def test_no_command_at_all_shows_the_help():
    done = run()
    assert done.code == 2
    assert "Commands:" in done.err


@pytest.mark.parametrize("answer", [" ", "<|im_end|>", "\n"])
def test_fix_refuses_an_answer_without_text_before_it_trains(tmp_path, answer):
    done = run("fix", "--prompt", "Who are you?", "--answer", answer, "--out", tmp_path / "run")
    refused(done, r"answer: expected some text, got ")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(("differing", "code"), [([], 0), (["4 corrections, AnchorLwF: recall 0.9"], 1)])
def test_a_check_of_the_arena_is_json_where_that_is_asked_for(monkeypatch, differing, code):
    monkeypatch.setattr("anchorlwf.arena.check_results", lambda *_args, **_options: differing)
    done = run("arena", "--check", "results.json", "--json")
    assert (json.loads(done.out), done.code) == ({"differences": differing}, code)
