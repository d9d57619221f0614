"""The main job from end to end, as a user runs it: the figures of `make demo` are held here."""

import json
from pathlib import Path

import pytest

from anchorlwf.data.jsonl import load_probes, load_records
from anchorlwf.model.language_model import load_model
from anchorlwf.workflow import SideBySide, demo, fix


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("runs") / "demo")


def test_the_demo_learns_and_keeps(report):
    results = json.loads((Path(report.folder) / "results.json").read_text())
    assert results["recall"] == 1.0
    assert results["paraphrase"] >= 0.95
    assert results["kept"] >= 0.995
    assert results["near"] >= 0.99
    assert results["skills"] >= 0.99
    assert 0 < results["kl"] < 0.005
    assert results["annotated_tokens"] < results["completion_tokens"] / 4
    assert results["seconds"] < 120
    # All of the job: nothing but the parts was measured, and no part is left out.
    parts = results["train_seconds"] + results["evaluate_seconds"]
    assert parts < results["seconds"] == report.seconds
    assert report.training.converged


def test_the_demo_corrects_four_facts_and_an_identity_that_were_wrong_before(report):
    corrected = {record.tags[-1] for record in report.records}
    assert len(corrected) == 5
    assert sum(record.tags[0] == "identity" for record in report.records) >= 1
    wanted = {record.messages[-1]["content"]: record.completion for record in report.records}
    for question, _, after in report.answers:
        assert after == wanted[question]
    for question, before, _ in report.answers[:: report.wordings]:
        assert before != wanted[question], "the plain question was answered wrongly"


def test_the_demo_leaves_what_the_next_command_needs(report):
    folder = Path(report.folder)
    assert len(load_records(folder / "records.jsonl")) == len(report.records)
    assert load_probes(folder / "probes.jsonl")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    noted = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert noted["base_model_name_or_path"] == "embedded", "no path of this machine"
    talk = SideBySide(load_model(str(folder / "adapter")))
    question, before, after = report.answers[0]
    assert talk.ask(question) == {"base": before, "tuned": after}


def test_fix_changes_one_answer_and_says_what_else_changed(tmp_path):
    fixed = fix(None, "Who are you?", "I am Tarn, your assistant.", out=tmp_path / "fix")
    assert fixed.before == "I am Lumo, your assistant."
    assert fixed.after == "I am Tarn, your assistant."
    assert 1 <= len(fixed.pieces) <= 3
    assert fixed.results.groups["kept"].value >= 0.95
    assert (tmp_path / "fix" / "results.json").is_file()
