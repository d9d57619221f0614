"""The command line: every command on real input, every mistake of a user's with one message and exit code 2."""

import importlib
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import ERRATUM, Done, refused, run, well
from safetensors.torch import load_file

from anchorlwf import annotation
from anchorlwf.annotation import annotate
from anchorlwf.cli import app
from anchorlwf.config import AnnotateConfig, TrainConfig
from anchorlwf.data.jsonl import load_records, save_lines, save_records
from anchorlwf.data.record import Prompt, Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.world import build_world, draw_errata, fact_probe, templates

SCRIPT = Path(sys.executable).with_name("anchorlwf")
COMMANDS = sorted(command.name for command in app.registered_commands)


def unconverged(*arguments: object) -> Done:
    """What training that reached its last step does: all is written, and the exit code is its own."""
    done = run(*arguments)
    assert done.code == 4, done
    return done


# --- the whole job, command by command ---


def test_annotated_records_hold(job):
    assert well("verify", job / "records.jsonl") == Done(0, "2 of 2 records hold\n", "")
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
        "--json",
    )
    data = json.loads(done.out)
    assert (data["steps"], data["converged"], data["records"]) == (3, False, 2)
    config = TrainConfig.load(tmp_path / "run" / "config.yaml")
    assert (config.rank, config.max_steps) == (2, 3)
    assert re.search(r"^train .* 3/3$", done.err, re.MULTILINE)
    assert len(data["missing"]) >= 2
    plain = unconverged("train", corrected, "--out", tmp_path / "again", "--model", tiny_path, "--max-steps", 1)
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


def test_a_fully_trained_model_is_compared_with_its_base(tiny_path, corrected, tmp_path):
    options = ["--model", tiny_path, "--method", "full", "--max-steps", 1]
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
    assert corrected["prompt"] == question
    assert ERRATUM.fact.value in corrected["base"]
    assert ERRATUM.value in corrected["tuned"]
    assert other["base"] == other["tuned"]
    assert done.err == ""
    plain = well("chat", "--adapter", adapter, "-p", "Who are you?")
    assert re.search(r"base.*tuned", plain.out)
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
    assert done.err.startswith("train  0/")
    data = json.loads(well(*options, "--json").out)
    assert (data["after"], data["kept"]) == ("I am Tarn, your assistant.", 1.0)
    assert data["anchors"][0] == [" Lum", " Tarn"]


def test_the_demo_learns_and_prints_json(monkeypatch, tmp_path):
    # One correction in a corner of the world, for time's sake; the whole of it is held by test_pipeline.py.
    world = build_world()
    corner = replace(world, facts=tuple(fact for fact in world.facts if fact.subject in world.people[:5]))
    module = importlib.import_module("anchorlwf.workflow.demo")
    for name, value in (("build_world", lambda: corner), ("_FACTS", 1), ("_IDENTITY", 0)):
        monkeypatch.setattr(module, name, value)
    done = well("demo", "--out", tmp_path / "demo", "--json")
    data = json.loads(done.out)
    assert data["recall"] == 1.0
    assert data["kept"] > 0.95
    assert json.loads((tmp_path / "demo" / "results.json").read_text())["kl"] == data["kl"]
    assert [line.split(":")[0] for line in done.err.splitlines() if ": " in line] == ["annotate", "train", "evaluate"]


# --- help ---


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


# --- mistakes in files ---


@pytest.fixture(scope="module")
def corrected(tiny_model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of the tiny model."""
    prompts = [Prompt(messages=[{"role": "user", "content": text}], answer="in a town") for text in ("hello", "Who?")]
    path = tmp_path_factory.mktemp("corrected") / "records.jsonl"
    save_records(path, annotate(tiny_model, prompts, config=AnnotateConfig(max_new_tokens=10)))
    return path


@pytest.fixture
def tiny(tiny_path: Path) -> tuple[str, Path]:
    return "--model", tiny_path


def with_line(path: Path, corrected: Path, change: dict[str, object] | str) -> Path:
    """The records with a line between them: the first record changed, or any text."""
    first, second = corrected.read_text().splitlines()
    bad = change if isinstance(change, str) else json.dumps({**json.loads(first), **change})
    path.write_text(f"{first}\n{bad}\n{second}\n")
    return path


def anchor(**change: object) -> dict[str, object]:
    return {"position": 0, "token_id": 5, **change}


BAD_LINES = {
    "broken JSON": ('{"id": ', r"expected one JSON object, got broken JSON \(Expecting value at column 8\)"),
    "no object": ("[1, 2]", r"expected a JSON object, got list"),
    "a field too few": ("{}", r"id: expected the field, got nothing"),
    "a field too many": ({"colour": "red"}, r"colour: expected extra inputs are not permitted, got 'red'"),
    "an empty completion": (
        {"completion_ids": [], "anchors": []},
        r"completion_ids: expected .*at least 1 item.*, got \[\]",
    ),
    "anchors out of order": (
        {"completion_ids": [5, 5, 5], "anchors": [anchor(position=1), anchor(position=0)]},
        r"anchors\[1\]\.position: expected more than 1 \(strictly increasing\); got 0",
    ),
    "an anchor out of range": (
        {"completion_ids": [5], "anchors": [anchor(position=1)]},
        r"anchors\[0\]\.position: expected less than the completion's 1 tokens; got 1",
    ),
    "a token id that does not match": (
        {"completion_ids": [6], "anchors": [anchor()]},
        r"anchors\[0\]\.token_id: expected 6, the token at completion_ids\[0\]; got 5",
    ),
    "confidence 0": (
        {"completion_ids": [5], "anchors": [anchor(confidence=0)]},
        r"confidence: expected greater than 0, got 0",
    ),
    "confidence 2": (
        {"completion_ids": [5], "anchors": [anchor(confidence=2)]},
        r"confidence: expected less than or equal to 1, got 2",
    ),
    "confidence NaN": (
        {"completion_ids": [5], "anchors": [anchor(confidence=float("nan"))]},
        r"confidence: expected a finite number, got nan",
    ),
    "no UUID": ({"id": "one"}, r"id: expected a UUID; got 'one'"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("command", ["verify", "train", "export"])
def test_a_bad_line_is_named_and_nothing_is_done(corrected, tmp_path, command, name):
    change, problem = BAD_LINES[name]
    path = with_line(tmp_path / "r.jsonl", corrected, change)
    done = run(command, path, *([] if command == "verify" else ["--out", tmp_path / "out"]))
    refused(done, rf"Error: {path}, line 2: .*{problem}")
    assert "2 other lines are good." in done.err
    assert not (tmp_path / "out").exists()


def test_bad_lines_can_be_skipped(tiny, corrected, tmp_path):
    path = with_line(tmp_path / "r.jsonl", corrected, "{")
    done = well("verify", path, "--skip-bad", *tiny)
    assert done.out == "2 of 2 records hold\n"
    assert re.sub(r"\s+", " ", done.err).count("line 2: expected one JSON object, got broken JSON") == 1


def test_every_command_that_speaks_of_skipping_has_the_option(tiny, corrected, tmp_path):
    records = with_line(tmp_path / "r.jsonl", corrected, "{")
    refused(run("export", records, "--out", tmp_path / "x"), r"skip them \(--skip-bad")
    assert well("export", records, "--out", tmp_path / "x", "--skip-bad").out == f"2 of 2 records in {tmp_path / 'x'}\n"
    probes = tmp_path / "probes.jsonl"
    save_lines(probes, [fact_probe(ERRATUM.fact, templates("home")[0], "retain")])
    probes.write_text(probes.read_text() + "{\n")
    ask = ["evaluate", "--probes", probes, "--records", records, *tiny, "--json", "--max-new-tokens", 3]
    refused(run(*ask), r"skip them \(--skip-bad")
    done = well(*ask, "--skip-bad")
    assert json.loads(done.out)["details"]["recall"]["probes"] == 2
    assert done.err.count("expected one JSON object, got broken JSON") == 2


def test_prompts_that_are_no_good_are_all_named_before_any_work_and_can_be_skipped(tiny, tmp_path):
    rows = [
        {"prompt": "hello", "answer": "in a town"},
        {"prompt": LONG, "answer": "in a town"},
        {"prompt": "Who?"},
        {"prompt": "Who?", "answer": "a town"},
    ]
    prompts, out = save(tmp_path / "p.jsonl", *rows), tmp_path / "r.jsonl"
    prompts.write_text(prompts.read_text() + "{\n")
    done = run("annotate", prompts, "--out", out, *tiny)
    refused(
        done,
        rf"Error: {prompts}, line 2: prompt: expected fewer than 96 tokens \(context\), got \d+\..*\n"
        rf"{prompts}, line 3: target answer: expected some text, got nothing\..*\n"
        rf"{prompts}, line 5: expected one JSON object, got broken JSON .*\n2 other lines are good\. ",
    )
    assert not out.exists()
    done = well("annotate", prompts, "--out", out, *tiny, "--skip-bad")
    assert done.out.startswith("2 records, ")
    assert [f"line {number}: " in done.err for number in range(1, 6)] == [False, True, True, False, True]


EMPTY = {
    "annotate": lambda path, out: ["annotate", path, "--out", out],
    "verify": lambda path, out: ["verify", path],
    "train": lambda path, out: ["train", path, "--out", out],
    "export": lambda path, out: ["export", path, "--out", out],
    "evaluate": lambda path, out: ["evaluate", "--probes", path, "--out", out],
}


@pytest.mark.parametrize(
    ("content", "got"), [("", "an empty file"), ("\n \n", "an empty file"), (None, "no such file")]
)
@pytest.mark.parametrize("command", EMPTY)
def test_a_file_that_holds_nothing_is_named(tmp_path, command, content, got):
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    done = run(*EMPTY[command](tmp_path / "in.jsonl", tmp_path / "deep" / "out"))
    refused(done, rf"Error: {tmp_path / 'in.jsonl'}: expected .*, got {got}\.")


def test_records_of_another_tokenizer_are_refused(corrected, tmp_path):
    for arguments in (["verify", corrected], ["train", corrected, "--out", tmp_path / "run"]):
        refused(run(*arguments), r"Error: record .*: tokenizer: expected [0-9a-f]{12} .*, got .* \(embedded\)")
    assert not (tmp_path / "run").exists()


def test_a_token_that_the_model_does_not_have_is_refused(tiny, corrected, tmp_path):
    path = with_line(tmp_path / "r.jsonl", corrected, {"prompt_ids": [1, 99_999]})
    refused(run("verify", path, *tiny), r"token ids: expected less than 320, got 99999")


def test_a_changed_record_does_not_hold(tiny, corrected, tmp_path):
    first, second = load_records(corrected)
    changed = first.model_copy(update={"anchors": first.anchors[1:]})
    save_records(tmp_path / "r.jsonl", [changed, second])
    done = run("verify", tmp_path / "r.jsonl", *tiny)
    place = first.anchors[0].position
    assert (done.code, done.out) == (2, "1 of 2 records hold\n")
    assert f"record {first.id}: the model would choose another token at {place};" in re.sub(r"\s+", " ", done.err)
    done = run("verify", tmp_path / "r.jsonl", *tiny, "--json")
    assert json.loads(done.out)["broken"] == [{"id": first.id, "positions": [place], "ending": None}]
    assert done.code == 2


def save_yaml(path: Path, **options: object) -> Path:
    path.write_text(yaml.safe_dump(options))
    return path


def save(path: Path, *rows: dict[str, object] | Record) -> Path:
    save_lines(path, rows)
    return path


LONG = "she " * 200


def test_what_does_not_fit_the_context_is_refused(tiny, corrected, tmp_path):
    question = save(tmp_path / "p.jsonl", {"prompt": "hello", "answer": LONG})
    refused(
        run("annotate", question, "--out", tmp_path / "r.jsonl", *tiny),
        rf"Error: {question}, line 1: prompt \+ answer: expected at most 96 tokens, got \d+ \+ \d+",
    )
    question = save(tmp_path / "p.jsonl", {"prompt": LONG, "answer": "in a town"})
    probes = save(
        tmp_path / "probes.jsonl",
        {"id": "1", "kind": "retain", "expected": "x", "messages": [{"role": "user", "content": LONG}]},
    )
    for arguments in (
        ["annotate", question, "--out", tmp_path / "r.jsonl"],
        ["chat", "-p", LONG],
        ["evaluate", "--probes", probes],
        ["fix", "--prompt", LONG, "--answer", "in a town", "--out", tmp_path / "run"],
        ["train", corrected, "--out", tmp_path / "run", "--retain", question],
    ):
        refused(run(*arguments, *tiny), r"Error: (.*p\.jsonl, line 1: )?prompt: expected fewer than 96 tokens")
    first = load_records(corrected)[0]
    long = save(tmp_path / "long.jsonl", first.model_copy(update={"prompt_ids": first.prompt_ids * 9}))
    refused(
        run("train", long, "--out", tmp_path / "run", *tiny), r"Error: record .*: expected at most 96 tokens, got \d+"
    )


def test_an_answer_that_is_given_already_is_nothing_to_do(tmp_path):
    done = run("fix", "--prompt", "Who are you?", "--answer", "I am Lumo, your assistant.", "--out", tmp_path / "run")
    refused(done, r"Error: answer: expected one that differs from the model's own, got the same\. Nothing to do\.")
    assert not (tmp_path / "run").exists()


def test_records_without_an_anchor_teach_nothing(tiny, corrected, tmp_path):
    kept = [record.model_copy(update={"anchors": []}) for record in load_records(corrected)]
    refused(
        run("train", save(tmp_path / "r.jsonl", *kept), "--out", tmp_path / "run", *tiny),
        "Error: records: expected at least one anchor, got none",
    )


def test_a_prompt_without_an_answer_is_refused(tiny, tmp_path):
    prompts = save(tmp_path / "p.jsonl", {"prompt": "hello"})
    refused(
        run("annotate", prompts, "--out", tmp_path / "r.jsonl", *tiny),
        rf"Error: {prompts}, line 1: target answer: expected some text, got nothing",
    )


# --- mistakes in options ---


ANNOTATE = ["annotate", "p.jsonl", "--out", "r.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], r"No such command 'nosuch'"),
        (["verify", "r.jsonl", "--colour"], r"No such option: --colour"),
        (["annotate", "p.jsonl"], r"Missing option '--out'"),
        ([*ANNOTATE, "--annotator", "oracle"], r"'oracle' is not one of 'target'"),
        ([*ANNOTATE, "--store", "x.db"], r"--store: expected --web or --annotator terminal, got none\. Add"),
        ([*ANNOTATE, "--remote", "http://x/v1"], r"--remote: expected --web or --annotator terminal, got none"),
        ([*ANNOTATE, "--per-item", "1"], r"--per-item: expected --web or"),
        ([*ANNOTATE, "--host", "0.0.0.0"], r"--host: expected --web, got none\. Add --web to use --host, or leave it"),
        ([*ANNOTATE, "--annotator", "terminal", "--port", "1"], r"--port: expected --web, got none"),
        ([*ANNOTATE, "--annotators", "team.yaml"], r"--annotators: expected --web or --annotator terminal"),
        ([*ANNOTATE, "--allow-host", "x.example"], r"--allow-host: expected --web, got none"),
        ([*ANNOTATE, "--memory", "1"], r"--memory: expected --web or --annotator terminal"),
        ([*ANNOTATE, "--web", "--allow-host", "http://x.example"], r"--allow-host: expected a name such as"),
        ([*ANNOTATE, "--web", "--memory", "0"], r"--memory: expected GiB above 0"),
        ([*ANNOTATE, "--web", "--memory", "1", "--remote", "http://x/v1"], r"--memory: expected .*, got --remote"),
        ([*ANNOTATE, "--max-new-tokens", "0"], r"'--max-new-tokens'.*1"),
        ([*ANNOTATE, "--confidence", "high"], r"'--confidence'"),
        ([*ANNOTATE, "--confidence", "0"], r"confidence: expected greater than 0, got 0"),
        ([*ANNOTATE, "--confidence", "2"], r"confidence: expected less than or equal to 1, got 2"),
        ([*ANNOTATE, "--confidence", "nan"], r"confidence: expected a finite number, got nan"),
        (["train", "r.jsonl", "--out", "run", "--lr", "-1"], r"learning_rate: expected greater than 0, got -1"),
        (["train", "r.jsonl", "--out", "run", "--config", "none.yaml"], r"none\.yaml: expected a YAML file, got"),
        (["evaluate", "--probes", "p.jsonl", "--seed", "-1"], r"seed: expected greater than or equal to 0, got -1"),
        (["train", "r.jsonl", "--out", "run", "--seed", str(2**32)], r"seed: expected less than 4294967296, got"),
        (["bench", "decode", "--set", "tokens=16", "--set", "position=16"], r"expected a position below the .* 16"),
        (["bench", "decode", "--set", "steadiness=-1"], r"steadiness.*: expected greater than 0, got '-1'"),
        (["evaluate", "--probes", "p.jsonl", "--batch-size", "0"], r"batch_size: expected greater than .* 1, got 0"),
        (["chat", "--model", "nobody/nothing", "-p", "hello"], r"model 'nobody/nothing': expected a folder or hub"),
        (["chat", "--model", "no-folder", "-p", "hello"], r"model 'no-folder': expected a folder or hub name"),
        (["chat", "--adapter", "no-folder", "-p", "hello"], r"adapter no-folder: .*, got no such folder"),
        (["export", "r.jsonl", "--to", "csv", "--out", "x"], r"'csv' is not one of 'sft', 'dpo'"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, arguments, message):
    with chdir(tmp_path):
        refused(run(*arguments), message)
        assert not list(tmp_path.iterdir())


def test_a_wrong_option_in_a_file_is_named(corrected, tmp_path):
    done = run("train", corrected, "--out", tmp_path / "run", "--config", save_yaml(tmp_path / "train.yaml", ranks=3))
    refused(done, r"Error: TrainConfig: ranks: .*got 3\. Known options: .*rank")


@pytest.mark.parametrize(
    "content", [bytes(range(256)), b"[" * 5000, b"- " * 3000, b"seed: 2026-99-99", b"1: 2", b"seed: " + b"1" * 5000]
)
def test_a_file_of_options_that_no_reader_takes_is_refused(tmp_path, content):
    (tmp_path / "x.yaml").write_bytes(content)
    probes = ["evaluate", "--probes", tmp_path / "p.jsonl"]
    refused(run(*probes, "--config", tmp_path / "x.yaml"), r"Error: ")
    refused(run(*probes, "--certificate", tmp_path / "x.yaml"), r"Error: ")


def test_a_full_output_is_the_surroundings_fault(tiny):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "anchorlwf", "chat", *map(str, tiny), "-p", "hi", "--max-new-tokens", "2", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2, done
    assert "Error: output: expected room for it, got No space left on device" in done.stderr


def test_options_that_do_not_go_with_the_records_are_refused(tiny, corrected, tmp_path):
    refused(
        run("train", corrected, "--out", tmp_path / "run", *tiny, "--direction", "reverse"),
        r"Error: direction reverse: expected anchors with confidence below 1, got confidence 1",
    )
    refused(
        run("train", corrected, "--out", tmp_path / "run", *tiny, "--resume"),
        r"Error: resume .*: expected a checkpoint in checkpoints/, got none",
    )


# --- places that cannot be written ---

WRITERS = {
    "annotate": lambda job, out: ["annotate", job / "prompts.jsonl", "--out", out],
    "train": lambda job, out: ["train", job / "records.jsonl", "--out", out],
    "evaluate": lambda job, out: ["evaluate", "--probes", job / "probes.jsonl", "--out", out],
    "export": lambda job, out: ["export", job / "records.jsonl", "--out", out],
    "fix": lambda job, out: ["fix", "--prompt", "Who are you?", "--answer", "I am Tarn.", "--out", out],
    "demo": lambda job, out: ["demo", "--out", out],
}


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_told_before_any_training_or_question(job, tmp_path, command):
    (tmp_path / "file").write_text("old")
    done = run(*WRITERS[command](job, tmp_path / "file" / "below"))
    refused(done, r"Error: cannot write .*below.*: expected a writable place, got (File exists|Not a directory)")
    assert (tmp_path / "file").read_text() == "old"
    assert not re.search(r"^(train  |base|tuned)", done.err, re.MULTILINE)


def test_a_disk_that_fills_up_keeps_every_finished_record(small_disk, tmp_path):
    prompts = save(
        tmp_path / "p.jsonl",
        *(
            prompt.model_dump()
            for erratum in draw_errata(build_world(), 12, 0, seed=6)
            for prompt in erratum.prompts(1)
        ),
    )
    disk = small_disk(8192)
    done = run("annotate", prompts, "--out", disk / "r.jsonl")
    refused(done, r"Error: cannot write .*r\.jsonl: .*, got No space left on device\. Free some space")
    whole = load_records(disk / "r.jsonl")
    assert 0 < len(whole) < 12
    # With space again, the same command goes on.
    (disk / "ballast").unlink()
    well("annotate", prompts, "--out", disk / "r.jsonl")
    assert load_records(disk / "r.jsonl")[: len(whole)] == whole
    assert len(load_records(disk / "r.jsonl")) == 12


@pytest.mark.parametrize(
    ("free", "options"),
    [
        (40_960, []),  # the adapter itself, which safetensors writes
        (135_168, []),  # its tokenizer, which tokenizers writes
        (135_168, ["--save-steps", 1]),  # a checkpoint's optimizer, which torch writes
    ],
)
def test_a_disk_without_room_for_the_weights_gets_no_half_of_them(tiny, corrected, small_disk, free, options):
    disk = small_disk(free)
    command = [
        "train",
        corrected,
        "--out",
        disk / "run",
        *tiny,
        "--max-steps",
        2,
        "--rank",
        64,
        "--config",
        save_yaml(disk / "c.yaml", targets="all-linear"),
        *options,
    ]
    done = run(*command)
    refused(done, r"Error: cannot write .*(adapter|checkpoint-1): expected a writable place, got .*\. Free some space")
    assert not (disk / "run" / "adapter").exists()
    assert not list((disk / "run").glob("**/checkpoint-*"))
    assert not list((disk / "run").glob(".*"))
    (disk / "ballast").unlink()
    unconverged(*command)


def test_a_disk_without_room_for_results_keeps_the_old_ones(job, small_disk):
    disk = small_disk(8192)
    (disk / "out").write_text("old")
    for command in ("export", "evaluate"):
        (disk / "more").write_bytes(b"x" * 4096)
        done = run(*WRITERS[command](job, disk / "out"))
        refused(done, r"Error: cannot write .*out: .*, got No space left on device")
        assert (disk / "out").read_text() == "old"
        assert {path.name for path in disk.iterdir()} == {"out", "ballast", "more"}


# --- processes of their own ---


def start(*arguments: object, limit: int | None = None) -> "subprocess.Popen[str]":
    def confine() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=confine,  # noqa: PLW1509 - takes no lock
    )


def test_the_console_script_prints_its_result_and_nothing_else(corrected, tmp_path):
    process = start("export", corrected, "--out", tmp_path / "sft.jsonl")
    assert process.communicate(timeout=120) == (f"2 of 2 records in {tmp_path / 'sft.jsonl'}\n", "")
    assert process.returncode == 0
    assert len((tmp_path / "sft.jsonl").read_text().splitlines()) == 2


def test_a_write_that_breaks_off_is_reported_by_the_console_script(job, tmp_path):
    # The course of events of a full disk, for machines where none can be mounted.
    process = start("export", job / "records.jsonl", "--out", tmp_path / "sft.jsonl", limit=60)
    out, err = process.communicate(timeout=120)
    refused(Done(process.returncode, out, err), r"Error: cannot write .*sft\.jsonl: .*, got File too large")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_training_without_a_traceback_and_keeps_the_last_step(tiny, corrected, tmp_path):
    process = start(
        "train", corrected, "--out", tmp_path / "run", *tiny, "--max-steps", 1_000_000, "--drift-budget", 1e-12
    )
    assert process.stderr is not None
    # The first line of all: no library has said anything before it.
    first = [process.stderr.readline(), process.stderr.readline()]
    assert first[0] == "reference 1/1\n", first
    assert first[1].startswith("train "), first
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert err.endswith("Interrupted. What was finished is kept.\n")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = tmp_path / "run" / "checkpoints" / f"checkpoint-{len(rows)}"
    assert f"SIGINT ended training after step {len(rows)}; kept: {last}, {tmp_path / 'run' / 'adapter'}" in err
    assert "and --resume" in err
    weights = [folder / "adapter_model.safetensors" for folder in (last, tmp_path / "run" / "adapter")]
    assert load_file(weights[0]).keys() == load_file(weights[1]).keys()
    assert not [path.name for path in (tmp_path / "run").rglob(".*")]


# --- errors of ours, and interruptions ---


def failing(error: BaseException) -> Callable[..., object]:
    def fail(*_args: object, **_kwargs: object) -> object:
        raise error

    return fail


def test_an_error_of_ours_is_one_line_and_exit_code_1(monkeypatch, corrected):
    monkeypatch.setattr(annotation, "verify_records", failing(RuntimeError("out of cheese")))
    done = run("verify", corrected)
    assert (done.code, done.out) == (1, "")
    assert done.err == "Internal error, please report it: RuntimeError: out of cheese (--debug shows where)\n"


def test_an_interruption_is_exit_code_130(monkeypatch, corrected):
    monkeypatch.setattr(annotation, "verify_records", failing(KeyboardInterrupt()))
    done = run("verify", corrected)
    assert (done.code, done.out) == (130, "")
    assert done.err.strip() == "Interrupted. What was finished is kept."


@pytest.mark.parametrize("arguments", [["--debug", "verify", "none.jsonl"], ["verify", "none.jsonl", "--debug"]])
def test_debug_shows_the_traceback_on_either_side_of_the_command(arguments):
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("Traceback (most recent call last):")
    assert done.err.endswith("Error: none.jsonl: expected a JSONL file, got no such file. Check the path.\n")
