"""The arena: tasks, methods, sweeps, resuming, and what a cell measures."""

import json
import os
import select
import shutil
import time
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from anchorlwf.arena import study
from anchorlwf.arena.cell import records_of, run_cell, train_cell
from anchorlwf.arena.collect import collect, differences
from anchorlwf.arena.conduct import arena, check_results, load_plan
from anchorlwf.arena.costs import annotation_cost, peak_memory, reset_peak_memory, train_tokens
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.methods import METHODS
from anchorlwf.arena.plan import Plan, Regime
from anchorlwf.arena.questions import user_task, world_task
from anchorlwf.arena.study import Job, Sources, _chosen, _key, jobs_of, run_study, run_sweep
from anchorlwf.config import TrainConfig
from anchorlwf.data.jsonl import load_probes, save_lines
from anchorlwf.data.probe import Probe, score
from anchorlwf.divergence import completion_hidden, divergence
from anchorlwf.errors import AnchorLwfError, ConfigError, ModelError, NothingToDoError, RecordError
from anchorlwf.loss.reduce import Counts, reduce_loss

BY_NAME = {method.name: method for method in METHODS}
SHORT = Regime(name="short", title="short", facts=2, wordings=2, steps=12, methods=["anchorlwf", "sft_human"])


def plan_of(*regimes, **options):
    return Plan.of(
        **{
            "regimes": list(regimes) or [SHORT],
            "methods": list(METHODS),
            "seeds": 2,
            "kl_short": 6,
            "kl_long": 2,
            **options,
        }
    )


@pytest.fixture(scope="module")
def lab(base):
    return Lab(base)


def _fewer(task):
    """The same task with every sixth of the unrelated probes: what is measured is measured all the same."""

    def some(probes):
        return tuple(p for i, p in enumerate(probes) if p.kind not in ("retain", "skill") or i % 6 == 0)

    return replace(task, validation=some(task.validation), test=some(task.test))


def _begin_a_worker(end):
    get_context("fork").Process(target=study._end_with_parent).start()
    os.write(end, b"begun")
    time.sleep(600)


def test_the_processes_of_a_study_that_is_killed_end_with_it():
    # Both processes hold an end of the pipe, so that it is closed when both are gone.
    mine, theirs = os.pipe()
    parent = get_context("fork").Process(target=_begin_a_worker, args=(theirs,))
    parent.start()
    os.close(theirs)
    assert os.read(mine, 5) == b"begun"
    parent.kill()
    assert select.select([mine], [], [], 60)[0] == [mine]
    assert os.read(mine, 1) == b""
    os.close(mine)


@pytest.mark.parametrize("name", ["study", "quick"])
def test_the_shipped_plans_name_known_methods_and_cover_what_the_paper_promises(name):
    plan = load_plan(name)
    for regime in plan.regimes:
        assert "anchorlwf" in regime.methods
        assert "sft_human" in regime.methods
        for seed in (plan.first_seed, plan.validation_seed):
            task = world_task(plan, regime, seed)
            assert len(task.groups) == regime.edits
            assert all(len(group) == regime.wordings for group in task.groups)
    if name == "study":
        assert {regime.edits for regime in plan.regimes if regime.form == "short"} >= {1, 2, 4, 16, 64}
        assert {regime.form for regime in plan.regimes} == {"short", "biography", "reasoning"}
        assert any(regime.stream for regime in plan.regimes)
        assert {regime.overtrain for regime in plan.regimes} == {1, 4, 16}
        regimes = [*plan.regimes, *load_plan("real").regimes]
        assert {method for regime in regimes for method in regime.methods} == set(BY_NAME), "none is left out of both"


@pytest.mark.parametrize("form", ["short", "biography", "reasoning"])
def test_validation_and_test_probes_share_only_what_is_trained_on(form):
    regime = SHORT.model_copy(update={"form": form, "facts": 4})
    task = world_task(plan_of(), regime, 1)
    shared = {probe.id for probe in task.validation} & {probe.id for probe in task.test}
    assert {probe.kind for probe in task.validation if probe.id in shared} == {"recall"}
    kinds = {probe.kind for probe in task.test}
    assert {"recall", "paraphrase", "near", "retain", "skill"} <= kinds
    asked = {repr(one.messages) for one in task.corrections}
    assert {repr(p.messages) for p in task.test if p.kind == "recall"} == asked
    assert asked.isdisjoint(repr(p.messages) for p in task.test if p.kind != "recall")
    assert 0.2 < len(task.validation) / (len(task.test) + len(task.validation)) < 0.4


@pytest.mark.parametrize("form", ["short", "biography", "reasoning"])
def test_both_wordings_of_a_right_answer_pass_the_probe_and_the_base_fails_it(form, lab):
    regime = SHORT.model_copy(update={"form": form, "facts": 3})
    task = world_task(plan_of(), regime, 2)
    probes = {repr(probe.messages): probe for probe in task.test if probe.kind == "recall"}
    for one in task.corrections:
        probe = probes[repr(one.messages)]
        assert score(probe, one.own)
        assert score(probe, one.human)
        assert one.own != one.human
    assert lab.score(lab.base, list(probes.values()))["recall"] == 0.0


def test_relations_are_asked_from_their_other_end():
    task = world_task(plan_of(), SHORT.model_copy(update={"facts": 1, "mirrored": 2}), 3)
    reverse = [probe for probe in task.test if probe.kind == "reverse"]
    assert len({probe.group for probe in reverse}) == 2
    assert not any(probe.kind == "reverse" for probe in task.validation)
    corrected = {one.group for one in task.corrections}
    assert {probe.expected for probe in reverse} == {group.split("/")[0] for group in corrected} - {
        task.corrections[0].group.split("/")[0]
    }


def test_supervised_fine_tuning_is_the_same_loss_with_every_token_an_anchor(lab):
    """The oracle of the SFT baselines: torch's own cross-entropy, averaged over completion tokens."""
    from anchorlwf.model.batch import collate
    from anchorlwf.model.head import read_head, reference_head

    task, model = world_task(plan_of(), SHORT, 1), lab.fresh()
    records, extra = records_of(model, BY_NAME["sft_human"], task.corrections, task, 1.0)
    assert extra == []
    assert all(record.confidences == [1.0] * len(record.completion_ids) for record in records)
    batch = collate(records, model.codec.pad_id)
    hidden_ND = completion_hidden(model.net, model.backbone, batch)
    heads = read_head(model), reference_head(model)
    scored = divergence(hidden_ND, hidden_ND, heads, batch.token_ids_N, batch.confidence_N)
    divergence_N = scored.divergence_N
    loss = reduce_loss(divergence_N, batch.confidence_N > 0, Counts(len(divergence_N), 0), "balanced")
    wanted = []
    for record in records:
        ids = torch.tensor([[*record.prompt_ids, *record.completion_ids]])
        logits = model.net(ids).logits[0, len(record.prompt_ids) - 1 : -1]
        wanted.append(torch.nn.functional.cross_entropy(logits, torch.tensor(record.completion_ids), reduction="none"))
    assert loss.item() == pytest.approx(float(torch.cat(wanted).mean()), rel=1e-5)


def test_methods_differ_in_words_marks_and_extras(lab):
    task, model = world_task(plan_of(), SHORT, 1), lab.base
    anchors, kept = records_of(model, BY_NAME["anchorlwf_retain"], task.corrections, task, 1.0)
    whole, replay = records_of(model, BY_NAME["sft_replay"], task.corrections, task, 1.0)
    assert all(0 < len(record.anchors) < len(record.completion_ids) for record in anchors)
    assert all(len(record.anchors) == len(record.completion_ids) for record in [*whole, *replay])
    assert [one.completion_ids for one in kept] == [one.completion_ids for one in replay]
    assert not any(record.anchors for record in kept)
    assert len(kept) == 48


def test_costs_count_what_a_person_does(lab):
    task, model = world_task(plan_of(), SHORT, 1), lab.base
    anchors, _ = records_of(model, BY_NAME["anchorlwf"], task.corrections, task, 1.0)
    ours = annotation_cost(BY_NAME["anchorlwf"], task.corrections, anchors)
    whole, _ = records_of(model, BY_NAME["sft_human"], task.corrections, task, 1.0)
    theirs = annotation_cost(BY_NAME["sft_human"], task.corrections, whole)
    assert ours["annotated_tokens"] == sum(len(record.anchors) for record in anchors)
    assert theirs["annotated_tokens"] == sum(len(record.completion_ids) for record in whole)
    assert ours["annotated_tokens"] < theirs["annotated_tokens"]
    # One accept per record, two actions per run of anchors.
    assert 3 * len(anchors) <= ours["annotation_actions"] <= 2 * ours["annotated_tokens"] + len(anchors)
    assert annotation_cost(BY_NAME["grpo"], task.corrections, [])["annotation_actions"] == 2
    mean = sum(len(record.prompt_ids) + len(record.completion_ids) for record in anchors) / len(anchors)
    assert train_tokens(anchors, 10, 2) == round(10 * 2 * mean)
    kept = [anchors[0].model_copy(update={"anchors": []})] * 5
    length = len(anchors[0].prompt_ids) + len(anchors[0].completion_ids)
    assert train_tokens([*anchors, *kept], 10, 6) == round(10 * (3 * mean + 3 * length)), (
        "half of a step is keep records"
    )


def test_peak_memory_begins_anew():
    reset_peak_memory()
    before = peak_memory()
    if before is None:
        pytest.skip("this system does not tell a process its peak")
    # Other threads may free some meanwhile.
    block = torch.ones(256 * 2**20 // 4)
    assert peak_memory() >= before + 48 * 2**20
    del block
    reset_peak_memory()
    assert peak_memory() < before + 48 * 2**20


def test_a_cell_measures_what_changed(lab):
    plan = plan_of()
    task = _fewer(world_task(plan, SHORT, 1))
    cell = run_cell(lab, plan, BY_NAME["anchorlwf"], SHORT, task, {}, 1)
    measures = cell["measures"]
    assert measures["recall"] == 1.0
    assert measures["kept"] > 0.9
    assert measures["reverse"] is None
    assert 0 < measures["kl_short"] < 0.1
    assert 0 < measures["kl_long"] < 0.1
    lost = sum(not right for probe, right in cell["outcomes"].items() if probe.startswith("retain:"))
    assert lost == measures["facts_lost"] <= measures["flips"]
    assert cell["costs"]["converged"] is True
    assert cell["costs"]["steps"] == cell["curve"][-1]["step"] or len(cell["curve"]) >= 50
    assert len(cell["strips"]) == 3
    assert all(len(strip["tokens"]) == len(strip["kl"]) for strip in cell["strips"])
    assert cell["examples"][0]["kind"] == "recall"
    json.dumps(cell)
    # The base is what it was, and nothing at all changed it.
    untouched = lab.measure(lab.fresh(), task, task.test[:50], 6)
    assert untouched.measures["flips"] == 0
    assert untouched.measures["kl_short"] == pytest.approx(0.0, abs=1e-6)


def test_a_stream_learns_one_after_another_and_is_measured_against_the_first_base(lab):
    plan = plan_of()
    regime = SHORT.model_copy(update={"stream": True, "wordings": 1})
    task = world_task(plan, regime, 4)
    tuned = train_cell(lab, BY_NAME["anchorlwf"], regime, task, {}, 1)
    learned = lab.score(tuned.model, [probe for probe in task.test if probe.kind == "recall"])
    assert learned["recall"] == 1.0
    assert tuned.costs["converged"] is True
    steps = [row["step"] for row in tuned.curve]
    assert steps == list(range(1, tuned.costs["steps"] + 1))


def test_the_context_ceiling_puts_the_note_before_questions_about_its_subject():
    task = world_task(plan_of(), SHORT, 1)
    told = task.noted_chats()
    by_id = {probe.id: probe for probe in task.test}
    assert {by_id[name].kind for name in told} == {"recall", "paraphrase", "near"}
    for name, messages in told.items():
        note, asked = messages[-1]["content"], by_id[name].messages[-1]["content"]
        assert note.startswith("Note: ")
        assert note.endswith(asked)


def test_a_sweep_chooses_by_validation_probes_and_keeps_all_rows(lab):
    plan = plan_of()
    task = _fewer(world_task(plan, SHORT, plan.validation_seed))
    method = BY_NAME["sft_own"].model_copy(update={"sweep": {"learning_rate": [1e-5, 1e-3], "steps": [0.5, 1.0]}})
    rows = run_sweep(lab, plan, method, SHORT, task)
    assert [row["options"] for row in rows] == [
        {"learning_rate": rate, "steps": share} for rate in (1e-5, 1e-3) for share in (0.5, 1.0)
    ]
    assert [row["chosen"] for row in rows].count(True) == 1
    best = next(row for row in rows if row["chosen"])
    assert best["score"] == max(row["score"] for row in rows)
    assert best["options"]["learning_rate"] == 1e-3  # nothing is learned at the other
    # A checkpoint of a longer run is the end of a shorter one.
    shorter = train_cell(lab, method, SHORT, task, {"learning_rate": 1e-3, "steps": 0.5}, plan.validation_seed)
    assert lab.score(shorter.model, task.validation) == rows[2]["measures"]


def test_a_run_that_its_stop_rule_ends_stands_for_all_later_shares_of_the_steps(lab):
    plan = plan_of()
    task = _fewer(world_task(plan, SHORT, plan.validation_seed))
    method = BY_NAME["sft_own_stop"].model_copy(update={"sweep": {"learning_rate": [1e-3], "steps": [10.0, 20.0]}})
    rows = run_sweep(lab, plan, method, SHORT, task)
    assert [row["options"]["steps"] for row in rows] == [10.0, 20.0]
    assert rows[0]["measures"] == rows[1]["measures"]
    assert rows[0]["measures"]["recall"] > 0


def test_results_are_not_those_of_other_defaults(monkeypatch):
    plan, job = plan_of(), Job("short", "anchorlwf", 1)
    before = _key(plan, Sources(), job, {})
    assert _key(plan, Sources(), job, {}) == before
    monkeypatch.setattr(study, "TrainConfig", partial(TrainConfig, drift_budget=0.5))
    assert _key(plan, Sources(), job, {}) != before


def test_a_study_whose_processes_die_says_so(tmp_path):
    with pytest.raises(ModelError, match=r"one that died: .*What was finished is kept"):
        run_study(plan_of(), tmp_path, Sources(), report=lambda *_: None, setup=os.abort)


def test_outcomes_begin_with_the_kind_of_the_probe(lab):
    task = _fewer(world_task(plan_of(), SHORT, 1))
    probes = [
        probe.model_copy(update={"id": f"mine:{i}"}) for i, probe in enumerate(task.test) if probe.kind == "recall"
    ]
    assert probes
    measured = lab.measure(lab.base, replace(task, long_prompts=()), probes, 1)
    assert sorted(measured.outcomes) == sorted(f"recall:{probe.id}" for probe in probes)


def test_a_setting_that_cannot_be_trained_with_leaves_the_others(lab):
    plan = plan_of()
    task = _fewer(world_task(plan, SHORT, plan.validation_seed))
    method = BY_NAME["sft_own"].model_copy(update={"sweep": {"learning_rate": [1e30, 1e-3], "steps": [0.5]}})
    [row] = run_sweep(lab, plan, method, SHORT, task)
    assert row["chosen"]
    assert row["options"] == {"learning_rate": 1e-3, "steps": 0.5}
    with pytest.raises(ModelError, match="NaN or infinity"):
        run_sweep(lab, plan, method.model_copy(update={"sweep": {"learning_rate": [1e30]}}), SHORT, task)


def test_cells_have_the_options_of_their_own_sweep(tmp_path):
    plan = plan_of(SHORT.model_copy(update={"methods": ["sft_own_stop", "anchorlwf"]}))
    swept, chosen, cell = Job("short", "sft_own_stop", None), {"learning_rate": 0.001}, Job("short", "sft_own_stop", 1)
    content = {"key": _key(plan, Sources(), swept, {}), "rows": [{"chosen": True, "options": chosen}]}
    (tmp_path / "sweeps").mkdir()
    (tmp_path / swept.file).write_text(json.dumps(content))
    assert _chosen(plan, Sources(), tmp_path, cell) == chosen
    assert _chosen(plan, Sources(), tmp_path, Job("short", "anchorlwf", 1)) == {}
    # Another plan has swept something else, and a plan that does not sweep it wants its defaults.
    assert _chosen(plan_of(SHORT, kl_short=3), Sources(), tmp_path, cell) is None
    still = [one.model_copy(update={"sweep": {}}) if one.name == "sft_own_stop" else one for one in plan.methods]
    assert _chosen(plan.model_copy(update={"methods": still}), Sources(), tmp_path, cell) == {}


def test_results_of_other_data_or_another_model_are_not_taken_up(tmp_path, tiny_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("one\n")
    before = Sources(prompts=prompts).key
    prompts.write_text("two\n")
    assert Sources(prompts=prompts).key != before
    elsewhere = tmp_path / "elsewhere" / "model"
    shutil.copytree(tiny_path, elsewhere)
    assert Sources(model=str(elsewhere)).key == Sources(model=str(tiny_path)).key
    [weights] = elsewhere.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert Sources(model=str(elsewhere)).key != Sources(model=str(tiny_path)).key


def test_a_study_is_in_float32_on_every_machine(tiny_path):
    assert Sources().dtype == "float32"
    assert Sources(model=str(tiny_path), dtype="bfloat16").key != Sources(model=str(tiny_path)).key


def test_a_study_is_resumed_and_reads_as_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    regime = SHORT.model_copy(update={"methods": ["anchorlwf", "in_context"], "facts": 1, "wordings": 1})
    # One thread a process: two of them on a busy machine wait for each other more than they work.
    plan, said = plan_of(regime, seeds=1, unrelated_share=0.02), []
    run_study(
        plan, tmp_path, Sources(), jobs=os.cpu_count() or 1, report=lambda what, done, count: said.append((done, count))
    )
    assert said[-1] == (2, 2)
    results = collect(plan, tmp_path, "here")
    assert {(cell["method"], cell["seed"]) for cell in results["cells"]} == {("anchorlwf", 1), ("in_context", 1)}
    assert results["failures"] == []
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    # Nothing is run twice; a changed plan is.
    said.clear()
    run_study(plan, tmp_path, Sources(), report=lambda what, done, count: said.append((done, count)))
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == files


def test_published_results_are_checked_cell_by_cell():
    measures = {"recall": 1.0, "paraphrase": 0.9, "near": None, "kept": 0.99, "skills": 1.0}
    published = {
        "cells": [{"regime": "short", "method": "anchorlwf", "seed": 1, "options": {"a": 1}, "measures": measures}]
    }
    asked = []

    def run(job, options):
        asked.append((job, options))
        return {"measures": {**measures, "kept": 0.95}}

    chosen = [("short", "anchorlwf", 1)]
    assert differences(published, chosen, run, 0.02) == ["short anchorlwf 1: kept was 0.99, is 0.95"]
    assert differences(published, chosen, run, 0.05) == []
    assert asked[0] == (Job("short", "anchorlwf", 1), {"a": 1})
    with pytest.raises(RecordError, match="a cell short anchorlwf 2"):
        differences(published, [("short", "anchorlwf", 2)], run, 0.02)


def test_a_plan_changes_the_fields_of_a_built_in_method_that_it_names(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "regimes: [{name: a, title: a, methods: [stm, mine], baseline: stm}]\n"
        "methods: [{name: stm, seeds: 1}, {name: mine, title: Mine, family: sft}]"
    )
    plan, [built_in] = load_plan(str(path)), [method for method in METHODS if method.name == "stm"]
    assert plan.method("stm") == built_in.model_copy(update={"seeds": 1})
    assert plan.method("mine").sweep == {}
    assert [method.name for method in plan.methods] == [*(method.name for method in METHODS), "mine"]


@pytest.mark.parametrize(
    ("plan", "given", "problem"),
    [
        ("quick", {"prompts": Path("p.jsonl")}, "expected prompts and probes, got prompts"),
        ("quick", {"probes": Path("p.jsonl"), "keep": Path("k.jsonl")}, "got probes, keep"),
        ("quick", {"model": "./mine"}, "expected data that it can be asked about"),
        ("real", {"model": "./mine", "probes": Path("p.jsonl")}, "a model alone, as it has its own data, got probes"),
        ("real", {}, "expected a model of the real world, got the embedded one"),
    ],
)
def test_data_that_would_be_left_aside_are_refused(tmp_path, plan, given, problem):
    with pytest.raises(ConfigError, match=problem):
        arena(load_plan(plan), tmp_path / "out", Sources(**given))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["[]", '{"kept": 1.0}', "no"])
def test_only_results_of_the_arena_can_be_checked(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RecordError, match=r"results\.json: expected a results.json"):
        check_results(tmp_path / "results.json")


def test_jobs_go_seed_by_seed():
    sweeps, cells = jobs_of(load_plan("study"))
    assert [job.seed for job in cells] == sorted(job.seed for job in cells)
    assert all(job.seed is None for job in sweeps)
    assert not any(job.regime.startswith(("overtrain", "stream")) for job in sweeps)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("regimes: [{name: a, title: a, methods: [nonsense]}]", "known methods, got nonsense"),
        ("regimes: [{name: a, title: a, methods: [anchorlwf], tuned_on: b}]", "a regime of the plan, got b"),
        (
            """regimes: [{name: a, title: a, methods: [sft_own], baseline: sft_own, tuned_on: b},
                         {name: b, title: b, methods: [anchorlwf]}]""",
            "a sweep of sft_own in b, got none",
        ),
        ("regimes: [{name: a, title: a, methods: [anchorlwf], facts: -1}]", "regimes.0.facts"),
        ("regimes: []\nmethods: 3", "methods."),
        ("regimes: []\nmethods: [{name: mine}]", ".title: Field required"),
        ("[1]", "`option: value` lines, got list"),
        ("a: [", "study, quick, real or a YAML file"),
    ],
)
def test_a_wrong_plan_is_explained(tmp_path, text, problem):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_plan(str(path))
    assert problem in str(caught.value)


def _files(folder: Path, task, *, human=True):
    prompts = [{"messages": one.messages, "answer": one.own} for one in task.corrections]
    save_lines(folder / "prompts.jsonl", prompts)
    save_lines(
        folder / "human.jsonl",
        [{**row, "answer": one.human} for row, one in zip(prompts, task.corrections, strict=True)][
            : None if human else 1
        ],
    )
    save_lines(folder / "probes.jsonl", task.test)
    save_lines(folder / "keep.jsonl", task.keep)


def test_data_of_ones_own_become_a_task(tmp_path):
    plan, made = plan_of(), world_task(plan_of(), SHORT, 1)
    _files(tmp_path, made)
    paths = [tmp_path / name for name in ("prompts.jsonl", "probes.jsonl", "human.jsonl", "keep.jsonl")]
    task = user_task(plan, *paths)
    assert [one.own for one in task.corrections] == [one.own for one in made.corrections]
    assert [one.human for one in task.corrections] == [one.human for one in made.corrections]
    assert [one.expected for one in task.corrections] == [one.expected for one in made.corrections]
    assert len(task.keep) == 48
    bare = user_task(plan, paths[0], paths[1], None, None)
    with pytest.raises(RecordError, match="human-worded answers"):
        bare.corrections[0].prompt("human")
    _files(tmp_path, made, human=False)
    with pytest.raises(AnchorLwfError, match="Give the same prompts in both files"):
        user_task(plan, *paths)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    save_lines(paths[0], [{"prompt": "Who?", "answer": "Me.", "tools": [tool]}])
    with pytest.raises(RecordError, match="prompts without tools"):
        user_task(plan, *paths)
    probe = load_probes(paths[1])[0].model_copy(update={"tools": [tool]})
    save_lines(paths[1], [probe])
    with pytest.raises(RecordError, match="probes without tools, got "):
        user_task(plan, *paths)


def test_data_of_ones_own_have_no_notes_for_a_retriever(lab, tmp_path):
    plan = plan_of(SHORT.model_copy(update={"methods": ["in_context"]}))
    _files(tmp_path, world_task(plan, SHORT, 1))
    task = user_task(plan, tmp_path / "prompts.jsonl", tmp_path / "probes.jsonl", None, None)
    with pytest.raises(NothingToDoError, match="notes that a retriever could find, got none"):
        run_cell(lab, plan, BY_NAME["in_context"], SHORT, task, {}, 1)


def test_probes_without_recall_get_it_from_the_prompts(tmp_path):
    plan, made = plan_of(), world_task(plan_of(), SHORT, 1)
    _files(tmp_path, made)
    save_lines(tmp_path / "probes.jsonl", [probe for probe in made.test if probe.kind == "retain"][:5])
    task = user_task(plan, tmp_path / "prompts.jsonl", tmp_path / "probes.jsonl", None, None)
    recall = [probe for probe in task.test if probe.kind == "recall"]
    assert [probe.expected for probe in recall] == [one.own for one in made.corrections]
    assert all(isinstance(probe, Probe) for probe in recall)
