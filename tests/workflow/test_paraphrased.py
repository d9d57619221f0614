"""Corrections in other wordings, from finding or giving them to the trained model."""

import json

import pytest
from commands import refused, run, well

from anchorlwf.annotation import annotate
from anchorlwf.config import ParaphraseConfig, TrainConfig
from anchorlwf.data.jsonl import load_prompts, load_records, save_lines, save_records
from anchorlwf.data.record import Prompt
from anchorlwf.errors import ConfigError, ModelError, RecordError
from anchorlwf.workflow import fix, paraphrased
from anchorlwf.workflow.file_training import train_file
from anchorlwf.workflow.paraphrased import PARAPHRASES, paraphrase_records, records_beside, save_paraphrases
from anchorlwf.workflow.retained import Kept

RIGHT = "I am Tarn, your assistant."


@pytest.fixture(scope="module")
def who(base):
    [made] = annotate(base, [{"prompt": "Who are you?", "answer": RIGHT}])
    return made


@pytest.fixture(scope="module")
def maker(base):
    [made] = annotate(base, [{"prompt": "Who made you?", "answer": "I was made by Northwind."}])
    return made


def asked(records):
    return [record.messages[-1]["content"] for record in records]


def test_a_wording_that_is_given_gets_its_answer_in_the_models_words(base, who):
    [found] = paraphrase_records(base, [who], "Tell me your name.")
    assert found.completion == "My name is Tarn."
    assert found.tags == ["paraphrase", f"paraphrase:{who.id}"]
    # What is corrected already is no other wording of itself.
    assert paraphrase_records(base, [who], ["Who are you?", "none"]) == []
    assert paraphrase_records(base, [], ["Tell me your name.", "auto"]) == []


def test_wordings_come_from_files_too_and_belong_to_the_record_they_name(base, who, maker, tmp_path):
    (tmp_path / "own.txt").write_text("Tell me your name.\nWhat is your name?\n")
    assert asked(paraphrase_records(base, [who], tmp_path / "own.txt")) == ["Tell me your name.", "What is your name?"]
    tagged = {"prompt": "Tell me your name.", "tags": [f"paraphrase:{who.id}"]}
    answered = {"prompt": "Say who made you.", "answer": "I was made by Northwind."}
    save_lines(tmp_path / "own.jsonl", [tagged, answered])
    found = paraphrase_records(base, [maker, who], str(tmp_path / "own.jsonl"))
    assert [one.completion for one in found] == ["My name is Tarn.", "I was made by Northwind."]
    assert [one.tags for one in found] == [["paraphrase", f"paraphrase:{who.id}"], ["paraphrase"]]
    with pytest.raises(RecordError, match=r"'Tell me your name.': expected the correction it belongs to"):
        paraphrase_records(base, [maker, who], "Tell me your name.")
    with pytest.raises(ConfigError, match=r"none.jsonl: expected a .jsonl or .txt file"):
        paraphrase_records(base, [who], "none.jsonl")


def test_what_is_saved_is_what_is_read_again(base, who, tmp_path):
    found = paraphrase_records(base, [who], ["Tell me your name.", "What is your name?"])
    save_paraphrases(tmp_path, found)
    again = paraphrase_records(base, [who], tmp_path / PARAPHRASES)
    assert [(one.messages, one.completion, one.tags) for one in again] == [
        (one.messages, one.completion, one.tags) for one in found
    ]
    # Struck out, all of them.
    save_paraphrases(tmp_path, [])
    assert not (tmp_path / PARAPHRASES).exists()


def test_paraphrases_are_not_reworded_in_turn(base, who):
    [found] = paraphrase_records(base, [who], "Tell me your name.")
    few = ParaphraseConfig(rounds=0)
    one = paraphrase_records(base, [who], "auto", config=few)
    assert asked(paraphrase_records(base, [who, found], "auto", config=few)) == asked(one)


@pytest.mark.parametrize(("paraphrase", "made"), [("auto", True), ("none", False), (None, False), ([], False)])
def test_they_are_found_only_where_asked_for(base, who, monkeypatch, paraphrase, made):
    wanted = []
    monkeypatch.setattr(paraphrased, "keep_records_for", lambda *_args, **_more: Kept([], []))
    monkeypatch.setattr(paraphrased, "paraphrases", lambda *_args, **_more: wanted.append(1) or [])
    records_beside(base, [who], retain="auto", paraphrase=paraphrase)
    assert bool(wanted) == made


def test_no_prompt_is_corrected_and_kept_at_once(base, who):
    beside = records_beside(
        base, [who], retain=["Tell me your name.", "Repeat: river"], paraphrase="Tell me your name."
    )
    assert asked(beside.paraphrases) == ["Tell me your name."]
    assert asked(beside.keep) == ["Repeat: river"]


def test_fix_trains_other_wordings_and_shows_them(tmp_path):
    texts = ["Tell me your name.", "What is your name?", "Name your name.", "Remind me of your name."]
    fixed = fix(None, "Who are you?", RIGHT, out=tmp_path / "fix", paraphrases=texts, check=["Repeat: apple"])
    assert asked(fixed.paraphrases) == texts
    recalled = {r.probe.messages[-1]["content"]: r.tuned_answer for r in fixed.results.answers}
    assert recalled["Tell me your name."] == "My name is Tarn."
    assert len(load_records(tmp_path / "fix" / "records.jsonl")) == 5
    saved = load_prompts(tmp_path / "fix" / PARAPHRASES)
    assert [prompt.answer for prompt in saved] == [record.completion for record in fixed.paraphrases]


def test_the_commands_take_wordings_and_print_a_few(who, tmp_path):
    save_records(tmp_path / "records.jsonl", [who])
    save_lines(tmp_path / "own.jsonl", [Prompt(messages=[{"role": "user", "content": "Tell me your name."}])])
    given = ["--paraphrase", tmp_path / "own.jsonl", "--paraphrase", "What is your name?"]
    done = well("train", tmp_path / "records.jsonl", "--out", tmp_path / "run", *given)
    assert done.out.startswith(
        "2 other wordings corrected as well: 'Tell me your name.', 'What is your name?' (all in "
    )
    assert "answers reproduced: 3 of 3" in done.out
    assert len(load_prompts(tmp_path / "run" / PARAPHRASES)) == 2
    shown = well("fix", "--prompt", "Who are you?", "--answer", RIGHT, "--out", tmp_path / "fix", *given, "--json")
    assert json.loads(shown.out)["paraphrases"] == ["Tell me your name.", "What is your name?"]
    refused(run("train", tmp_path / "records.jsonl", "--out", tmp_path / "run", "--paraphrase", "no.txt"), "no.txt")


def test_wordings_of_an_earlier_run_stay_where_the_next_one_is_refused(who, tmp_path):
    save_records(tmp_path / "records.jsonl", [who])
    run_folder = tmp_path / "run"
    save_paraphrases(run_folder, [who])
    before = (run_folder / PARAPHRASES).read_bytes()
    config = TrainConfig(max_steps=1)
    (run_folder / "records.jsonl").write_text("of an earlier run\n")
    with pytest.raises(ModelError, match="LoRA targets"):
        fix(None, "Who are you?", RIGHT, out=run_folder, config=TrainConfig(targets="nope"), check=[{"prompt": "Hi"}])
    assert (run_folder / "records.jsonl").read_text() == "of an earlier run\n"
    assert (run_folder / PARAPHRASES).read_bytes() == before
    with pytest.raises(ConfigError, match="resume"):
        train_file(tmp_path / "records.jsonl", run_folder, {}, {}, config=config, resume=True)
    assert (run_folder / PARAPHRASES).read_bytes() == before
    # Of this run, which has none, nothing may lie there.
    train_file(tmp_path / "records.jsonl", run_folder, {}, {}, config=config)
    assert not (run_folder / PARAPHRASES).exists()
