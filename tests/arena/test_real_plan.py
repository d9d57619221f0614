"""The arena among real facts: what is asked, what each method is given, and what is measured besides."""

from collections import Counter
from dataclasses import replace

import pytest
from real_world_cases import plain

from anchorlwf.arena import cell
from anchorlwf.arena.cell import records_of, run_cell
from anchorlwf.arena.conduct import load_plan
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.plan import Regime
from anchorlwf.arena.study import Sources, jobs_of
from anchorlwf.data.probe import score
from anchorlwf.decoding.keep_records import HELD_OUT_TAG
from anchorlwf.decoding.teacher_forcing import forced_choices
from anchorlwf.errors import ConfigError, NothingToDoError
from anchorlwf.world.real import fact_packages, real_world
from anchorlwf.world.real.asked import Said
from anchorlwf.world.real.real_world import everyday_prompts

FEW = {"general": 8, "near": 4, "answer_tokens": 6, "prompt_tokens": 12}


@pytest.fixture
def real(knows, monkeypatch):
    """A model that knows three capitals and says one word to the first three everyday prompts."""
    capitals = [fact for fact in fact_packages.real_facts() if fact.attribute == "capital"]
    everyday = [prompt.messages[0]["content"] for prompt in everyday_prompts()[:3]]
    knows({**dict(map(plain, capitals[:3])), **{text: Said("Yes.", 2, False) for text in everyday}})
    monkeypatch.setattr(real_world, "real_skills", list)
    three = everyday_prompts()[:3]
    monkeypatch.setattr(real_world, "everyday_prompts", lambda: three)
    return load_plan("real")


def few(method):
    return method.model_copy(update={"retention": {**FEW, **method.retention}})


def test_the_plan_asks_real_facts_and_sweeps_at_most_three_settings():
    plan = load_plan("real")
    assert plan.world == "real"
    assert plan.seeds == 5
    for regime in plan.regimes:
        assert regime.form in ("identity", "capital", "long")
        for name in regime.methods:
            settings = 1
            for values in plan.method(name).sweep.values():
                settings *= len(values)
            assert settings <= 3, name
            assert regime.form != "long" or plan.method(name).words == "own", "nobody worded long answers"


def test_a_task_is_what_the_model_has_wrong_and_choosing_never_sees_what_is_reported(real, base):
    regime = Regime(name="c", title="c", form="capital", facts=4, methods=[])
    task = Sources().task(base, real, regime, 1)
    chosen_on = Sources().task(base, real, regime, 101, validation=True)
    assert len(task.corrections) == 12
    assert {c.group for c in task.corrections}.isdisjoint(c.group for c in chosen_on.corrections)
    judges = {repr(probe.messages): probe for probe in task.test if probe.kind == "recall"}
    for correction in task.corrections:
        assert score(judges[repr(correction.messages)], correction.own)
        assert score(judges[repr(correction.messages)], correction.human)
        assert correction.own != correction.human
    assert len(task.everyday) == 3
    identity = Regime(name="i", title="i", form="identity", methods=[])
    names = {Sources().task(base, real, identity, seed).corrections[0].own for seed in range(5)}
    assert len(names) == 5, "every seed another name"


def test_a_form_of_the_embedded_world_is_refused(real, base):
    with pytest.raises(ConfigError, match="one of real facts"):
        Sources().task(base, real, Regime(name="s", title="s", form="biography", methods=[]), 1)


def test_a_cell_tells_how_many_everyday_answers_are_the_same_and_where_the_new_text_leaks(real, base):
    regime = Regime(name="i", title="i", form="identity", steps=4, answer_tokens=8, methods=[])
    task = Sources().task(base, real, regime, 0)
    lab = Lab(base)
    small = replace(task, test=task.test[:4])
    method = few(real.method("anchors_only"))
    measured = run_cell(lab, real, method, regime, small, {"max_steps": 1, "learning_rate": 1e-9}, 1)
    assert measured["measures"]["same"] == 1.0, "next to nothing was trained"
    assert measured["measures"]["leaks"] == 0
    assert measured["measures"]["kl_short"] == pytest.approx(0, abs=1e-6)
    # What every answer holds now and none held before has leaked into all of them.
    everywhere = small.test[0].model_copy(update={"kind": "recall", "expected": r"\S", "scorer": "regex"})
    lab = Lab(base)
    lab._base_answers.update({(repr(probe.messages), 64): "" for probe in small.everyday})
    leaking = run_cell(lab, real, method, regime, replace(small, test=(everywhere,)), {"max_steps": 1}, 1)
    assert leaking["measures"]["leaks"] == 3
    assert leaking["measures"]["same"] == 0.0


def test_only_the_stop_rule_sees_what_is_held_out(real, base):
    regime = Regime(name="i", title="i", form="identity", methods=[])
    task = Sources().task(base, real, regime, 0)
    _, kept = records_of(base, few(real.method("anchorlwf")), task.corrections, task, 1.0)
    _, replayed = records_of(base, few(real.method("sft_own_replay")), task.corrections, task, 1.0)
    _, alone = records_of(base, real.method("anchorlwf_alone"), task.corrections, task, 1.0)
    assert alone == []
    held_out = {record.id for record in kept if HELD_OUT_TAG in record.tags}
    assert held_out
    assert not held_out & {record.id for record in replayed}
    assert all(len(record.anchors) == len(record.completion_ids) for record in replayed)
    assert not any(record.anchors for record in kept)


def test_stm_learns_likely_tokens_and_nothing_else(real, base, monkeypatch):
    regime = Regime(name="i", title="i", form="identity", methods=[])
    task, method = Sources().task(base, real, regime, 0), real.method("stm")
    records, _ = records_of(base, method, task.corrections, task, 1.0)
    assert records
    for record, choices in zip(records, forced_choices(base, records), strict=True):
        likely = [place for place, p in enumerate(choices.probabilities) if p >= 0.4]
        assert [anchor.position for anchor in record.anchors] == likely
        assert 0 < len(likely) < len(record.completion_ids)
    monkeypatch.setattr(cell, "_LIKELY", 1.1)
    with pytest.raises(NothingToDoError, match="finds likely"):
        records_of(base, method, task.corrections, task, 1.0)


def test_the_main_methods_have_five_seeds_and_the_others_three(real):
    _, cells = jobs_of(real)
    count = Counter(job.method for job in cells if job.regime == "identity")
    main = {"anchorlwf", "anchorlwf_alone", "sft_own_stop", "sft_own_replay", "sft_human_stop", "sft_kl_retain"}
    assert {name for name in main if count[name] == 5} == main
    assert {count[name] for name in set(count) - main} <= {3, 5}
    assert count["grpo"] == count["stm"] == 3
