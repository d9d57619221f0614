"""What stands beside corrections: how much of it a file asks for, and that nothing is corrected and kept at once."""

import sys
from uuid import uuid4

import pytest

from anchorlwf.annotation import annotate
from anchorlwf.config import EvaluateConfig, ParaphraseConfig, RetainConfig
from anchorlwf.data.jsonl import save_lines, save_records
from anchorlwf.data.record import Anchor
from anchorlwf.errors import ConfigError
from anchorlwf.evaluation import evaluate, reaching
from anchorlwf.model.language_model import load_model
from anchorlwf.workflow import file_training, fix, paraphrased
from anchorlwf.workflow.paraphrased import Beside, BesideConfig, records_beside
from anchorlwf.workflow.retained import Kept

# The name in the package is the function's.
fix_module = sys.modules["anchorlwf.workflow.fix"]


@pytest.fixture(scope="module")
def who(base):
    [made] = annotate(base, [{"prompt": "Who are you?", "answer": "I am Tarn, your assistant."}])
    return made


def test_a_file_says_how_much_is_written_and_found(base, who, tmp_path, monkeypatch):
    (tmp_path / "project.yaml").write_text("retain: {near: 96}\nparaphrase: {each: 2}\ntrain: {rank: 4}\n")
    (tmp_path / "flat.yaml").write_text("rank: 4\n")
    asked = BesideConfig.load(tmp_path / "project.yaml")
    assert asked == BesideConfig(RetainConfig(near=96), ParaphraseConfig(each=2))
    assert BesideConfig.load(tmp_path / "flat.yaml") == BesideConfig.load(None) == BesideConfig()
    seen = []
    monkeypatch.setattr(
        paraphrased, "keep_records_for", lambda *_args, config, **_more: seen.append(config) or Kept([], [])
    )
    monkeypatch.setattr(paraphrased, "paraphrases", lambda *_args, config, **_more: seen.append(config) or [])
    records_beside(base, [who], retain="auto", paraphrase="auto", config=asked)
    assert seen == list(asked)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("retain: auto\ntrain: {rank: 4}", "retain: expected `option: value` lines"), ("retain: {nea: 4}", "nea")],
)
def test_a_wrong_section_is_refused(tmp_path, text, problem):
    (tmp_path / "project.yaml").write_text(text)
    with pytest.raises(ConfigError, match=problem):
        BesideConfig.load(tmp_path / "project.yaml")


def test_a_corrected_prompt_among_those_to_retain_is_not_kept_as_it_was(base, who, tmp_path, monkeypatch):
    save_records(tmp_path / "records.jsonl", [who])
    save_lines(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}, {"prompt": "Repeat: river"}])
    monkeypatch.setattr(file_training, "load_model", lambda **_loading: base)
    monkeypatch.setattr(file_training, "train", lambda _model, records, **_options: list(records))
    wanted = {"retain": tmp_path / "prompts.jsonl"}
    trained, wordings = file_training.train_file(tmp_path / "records.jsonl", tmp_path / "run", {}, wanted)
    assert [record.messages[-1]["content"] for record in trained] == ["Who are you?", "Repeat: river"]
    assert trained[0].anchors
    assert wordings == []


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("another", None, "auto"),
        ("embedded", None, "none"),
        ("another", {"anchors": []}, "none"),  # one that `anchorlwf retain` wrote
        ("another", {"anchors": [], "status": "rejected"}, "auto"),
        ("another", {}, "auto"),  # a correction that somebody tagged so
    ],
)
def test_what_stays_where_nothing_is_said(who, tmp_path, monkeypatch, name, more, expected):
    model = load_model()
    model.name = name
    others = [] if more is None else [who.model_copy(update={"id": str(uuid4()), "tags": ["retain"], **more})]
    save_records(tmp_path / "records.jsonl", [who, *others])
    asked = []
    monkeypatch.setattr(file_training, "load_model", lambda **_loading: model)
    monkeypatch.setattr(file_training, "train", lambda *_args, **_options: None)
    monkeypatch.setattr(
        file_training, "records_beside", lambda *_args, retain, **_more: asked.append(retain) or Beside([], [])
    )
    file_training.train_file(tmp_path / "records.jsonl", tmp_path / "run", {}, {})
    assert (asked or ["none"]) == [expected]
    # Without a correction nothing is written, and training says what is missing.
    save_records(tmp_path / "records.jsonl", [who.model_copy(update={"anchors": []})])
    asked.clear()
    file_training.train_file(tmp_path / "records.jsonl", tmp_path / "run", {}, {"retain": "auto"})
    assert asked == []


def test_an_answer_is_recalled_however_long_it_is(base, who):
    first = Anchor(position=0, token_id=who.original_ids[0], source="target")
    same = who.model_copy(
        update={
            "completion_ids": who.original_ids,
            "completion": base.codec.decode(who.original_ids),
            "anchors": [first],
            "ties": [],
        }
    )
    assert len(who.original_ids) > 3
    short = EvaluateConfig(max_new_tokens=3)
    results = evaluate(base, records=[same], config=short)
    assert results.as_dict()["recall"] == 1.0
    assert reaching(short, [same]).max_new_tokens == len(who.original_ids)
    assert reaching(short, [same.model_copy(update={"anchors": []})]) == short


def test_fix_looks_at_a_long_answer_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(fix_module, "EvaluateConfig", lambda: EvaluateConfig(max_new_tokens=4))
    right = "I am Tarn, your assistant, and I was made by Northwind Labs."
    fixed = fix(None, "Who are you?", right, out=tmp_path / "fix", check=["Repeat: apple river"])
    assert len(fixed.record.completion_ids) > 8
    assert len(fixed.record.original_ids) > 4
    assert fixed.after == right
    assert fixed.results.as_dict()["recall"] == 1.0
