"""lm-evaluation-harness on a real model: tasks of our own, read from local files, no network."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from checkpoints import disturbed
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from anchorlwf.config import EvaluateConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.probe import Probe
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.errors import ConfigError
from anchorlwf.evaluation import bootstrap_interval, evaluate, paired_interval, run_tasks
from anchorlwf.model.language_model import LanguageModel

# --- paired intervals ---

PAIRS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=1, max_size=20)


@given(pairs=PAIRS, seed=st.integers(0, 9))
def test_a_paired_interval_is_that_of_the_differences(pairs, seed):
    before, after = zip(*pairs, strict=True)
    changes = [b - a for a, b in pairs]
    assert paired_interval(before, after, resamples=50, seed=seed) == bootstrap_interval(
        changes, resamples=50, seed=seed
    )
    low, high = paired_interval(before, after, resamples=50, seed=seed)
    back_low, back_high = paired_interval(after, before, resamples=50, seed=seed)
    assert (back_low, back_high) == pytest.approx((-high, -low), abs=1e-9)


def test_pairing_takes_out_what_makes_items_hard():
    generator = np.random.default_rng(0)
    hardness = generator.normal(0, 10, 200)
    after = hardness + 1 + generator.normal(0, 0.1, 200)
    low, high = paired_interval(hardness, after, resamples=500)
    assert 0.9 < low < 1 < high < 1.1
    apart = bootstrap_interval(after, resamples=500)
    assert apart[1] - apart[0] > 20 * (high - low)


# --- a real model ---

CITIES = ["Fredville", "Arrel", "Norwick", "Tessa", "Oldham", "Quill", "Brenn", "Sorrow"]


@pytest.fixture(scope="module")
def tasks_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    documents = folder / "documents.jsonl"
    documents.write_text(
        "".join(
            json.dumps({"q": f"Where is {city}?", "choices": [f"in {other}" for other in CITIES[:3]], "gold": i % 3})
            + "\n"
            for i, city in enumerate(CITIES)
        )
    )
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents)}},
        "test_split": "test",
        "doc_to_text": "{{q}}",
    }
    choice = {**common, "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}

    def metric(name: str) -> dict[str, object]:
        return {"metric": name, "aggregation": "mean", "higher_is_better": True}

    files = {
        "choice": {**choice, "task": "choice", "metric_list": [metric("acc"), metric("acc_norm")]},
        "other": {**choice, "task": "other", "metric_list": [metric("acc")]},
        "shots": {**choice, "task": "shots", "num_fewshot": 2, "fewshot_split": "test", "metric_list": [metric("acc")]},
        "both": {
            "group": "both",
            "task": ["choice", "other"],
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
        },
        "said": {
            **common,
            "task": "said",
            "output_type": "generate_until",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
            "metric_list": [metric("exact_match")],
        },
    }
    files["lost"] = {
        **files["other"],
        "task": "lost",
        "dataset_kwargs": {"data_files": {"test": str(folder / "none.jsonl")}},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(autouse=True)
def _no_cache_left(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def config(tasks_path: Path, *tasks: str, **options: object) -> EvaluateConfig:
    return EvaluateConfig(tasks=list(tasks), tasks_path=str(tasks_path), max_new_tokens=5, resamples=200, **options)


def chosen(model: LanguageModel, question: str, choices: list[str]) -> int:
    """Which choice the model finds likeliest after `question`, from its logits alone."""
    totals = []
    for choice in choices:
        context = model.codec.tokenizer.encode(question)
        ids = model.codec.tokenizer.encode(f"{question} {choice}")
        with torch.inference_mode():
            logits = model.net(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].double().log_softmax(-1)
        totals.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(context), len(ids))))
    return int(np.argmax(totals))


def test_each_document_is_scored_with_the_adapter_off_and_on(tiny_path, tiny_model, tasks_path):
    tuned = disturbed(tiny_path, 0.3)
    found = run_tasks(tuned, None, config(tasks_path, "choice"))
    acc = found["choice"].metrics["acc"]
    documents = [json.loads(line) for line in (tasks_path / "documents.jsonl").read_text().splitlines()]
    sides = []
    for model in (tiny_model, tuned):
        sides.append([chosen(model, doc["q"], doc["choices"]) == doc["gold"] for doc in documents])
    before, after = sides
    assert before != after, "the adapter must matter, or this test shows nothing"
    assert (found["choice"].documents, acc.base, acc.tuned) == (8, np.mean(before), np.mean(after))
    assert acc.right_to_wrong == [str(i) for i in range(8) if before[i] and not after[i]]
    assert acc.wrong_to_right == [str(i) for i in range(8) if after[i] and not before[i]]
    assert acc.interval == paired_interval(before, after, resamples=200)
    assert acc.drop == acc.base - acc.tuned
    assert set(found["choice"].metrics) == {"acc", "acc_norm"}


def test_a_base_of_its_own_is_the_adapter_switched_off(tiny_path, tiny_model, tasks_path):
    tuned = disturbed(tiny_path, 0.3)
    assert run_tasks(tuned, None, config(tasks_path, "choice")) == run_tasks(
        tuned, tiny_model, config(tasks_path, "choice")
    )
    same = run_tasks(tiny_model, None, config(tasks_path, "choice"))["choice"].metrics["acc"]
    assert (same.drop, same.interval, same.right_to_wrong, same.wrong_to_right) == (0, (0, 0), [], [])


def test_the_figures_are_those_of_lm_eval_itself(tiny_model, tasks_path, monkeypatch):
    monkeypatch.setattr(evaluator, "add_env_info", lambda _results: None)  # asks pip and the compiler for a second
    settings = config(tasks_path, "shots", "said", "choice", seed=7)
    found = run_tasks(tiny_model, None, settings)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 7)
    manager = TaskManager(include_path=str(tasks_path), include_defaults=False)
    model = HFLM(pretrained=tiny_model.net, tokenizer=tiny_model.codec.tokenizer, batch_size=settings.batch_size)
    theirs = evaluator.simple_evaluate(model, tasks=settings.tasks, task_manager=manager, bootstrap_iters=0, **seeds)
    assert {(task, metric): change.base for task, one in found.items() for metric, change in one.metrics.items()} == {
        (task, name.removesuffix(",none")): value
        for task, row in theirs["results"].items()
        for name, value in row.items()
        if name.endswith(",none") and "stderr" not in name
    }


def test_the_model_is_left_as_it_was(tiny_path, tasks_path):
    tuned = disturbed(tiny_path, 0.3)
    prompt, sha = tuned.codec.encode_prompt([{"role": "user", "content": "Who?"}]), tuned.codec.tokenizer_sha
    tuned.codec.tokenizer.pad_token = None
    [[(_, before)]] = decode_batch(tuned, [prompt], 10)
    run_tasks(tuned, None, config(tasks_path, "choice"))
    [[(_, after)]] = decode_batch(tuned, [prompt], 10)
    assert after == before
    assert (tuned.codec.tokenizer.pad_token, tuned.codec.tokenizer_sha) == (None, sha)


def test_groups_pool_the_documents_of_their_tasks(tiny_path, tasks_path):
    found = run_tasks(disturbed(tiny_path, 0.3), None, config(tasks_path, "both", task_limit=5))
    assert set(found) == {"both", "choice", "other"}
    assert [found[name].documents for name in ("both", "choice", "other")] == [10, 5, 5]
    both, choice, other = (found[name].metrics["acc"] for name in ("both", "choice", "other"))
    assert both.base == pytest.approx((choice.base + other.base) / 2)
    assert both.interval is not None
    for flips in ("right_to_wrong", "wrong_to_right"):
        assert sorted(getattr(both, flips)) == sorted(
            f"{task}/{document}"
            for task in ("choice", "other")
            for document in getattr(found[task].metrics["acc"], flips)
        )
    assert both.wrong_to_right


def test_tasks_need_no_probes(tiny_path, tasks_path, tmp_path):
    found = evaluate(disturbed(tiny_path, 0.3), config=config(tasks_path, "choice"), out=tmp_path / "results.json")
    assert (found.groups, found.answers, found.kl_tokens) == ({}, [], 0)
    assert found.origin is not None
    assert found.origin.probes is None
    assert set(json.loads((tmp_path / "results.json").read_text())["tasks"]) == {"choice"}
    options = ["--model", tiny_path, "--base", tiny_path, "--tasks", "choice", "--tasks-path", tasks_path]
    gate = tmp_path / "gate.yaml"
    gate.write_text("tasks: {choice: 0.5}\n")
    done = run("evaluate", *options, "--certificate", gate, "--certificate-out", tmp_path / "certificate.json")
    assert done.code == 0, done
    assert "measure" not in done.out
    assert re.search(r"choice acc ", done.out)
    assert json.loads((tmp_path / "certificate.json").read_text())["probes"] is None
    assert run("certificate", tmp_path / "certificate.json").code == 0


def test_results_json_holds_the_tasks_in_plain_numbers(tiny_path, tmp_path, tasks_path):
    probe = Probe(id="1", kind="retain", messages=[{"role": "user", "content": "Who?"}], expected="x")
    phases = []
    found = evaluate(
        disturbed(tiny_path, 0.3),
        [probe],
        config=config(tasks_path, "said", "choice"),
        out=tmp_path / "results.json",
        progress=lambda *phase: phases.append(phase),
    )
    data = json.loads((tmp_path / "results.json").read_text())
    assert set(data["tasks"]) == {"said", "choice"}
    acc = data["tasks"]["choice"]["metrics"]["acc"]
    assert acc["base"] == found.tasks["choice"].metrics["acc"].base
    assert isinstance(acc["right_to_wrong"], list)
    assert phases[:4] == [("tasks-base", 1, 2), ("tasks-base", 2, 2), ("tasks-tuned", 1, 2), ("tasks-tuned", 2, 2)]
    assert "choice acc" in [str(cell) for cell in found.task_table().columns[0].cells]


def test_without_tasks_nothing_is_imported_or_run(tiny_model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert run_tasks(tiny_model, None, EvaluateConfig()) == {}
    with pytest.raises(
        ConfigError,
        match=re.escape(
            "tasks: expected the packages of the extra `harness`, got no lm_eval. "
            "Install it: pip install 'anchorlwf[harness]'."
        ),
    ):
        run_tasks(tiny_model, None, EvaluateConfig(tasks=["mmlu"]))


def test_data_that_cannot_be_had_is_told_before_anything_runs(tiny_model, tasks_path):
    asked = []
    with pytest.raises(ConfigError, match=r"task lost: expected a task that loads, got .*none\.jsonl"):
        run_tasks(tiny_model, None, config(tasks_path, "choice", "lost"), lambda *phase: asked.append(phase))
    assert asked == []


def test_an_unknown_task_is_named_with_those_that_look_like_it(tiny_model, tasks_path, monkeypatch):
    # Without the built-in tasks, which take seconds to index.
    monkeypatch.setattr(TaskManager, "__init__", functools.partialmethod(TaskManager.__init__, include_defaults=False))
    with pytest.raises(ConfigError, match=r"a task of lm_eval or of the tasks path, got 'choise'\. Known: choice"):
        run_tasks(tiny_model, None, config(tasks_path, "choise"))


# --- the command ---


def test_the_command_runs_tasks_and_gates_on_them(tiny_path, tasks_path, tmp_path):
    tuned = disturbed(tiny_path, 0.3)
    tuned.net.save_pretrained(tmp_path / "adapter")
    save_lines(
        tmp_path / "probes.jsonl",
        [Probe(id="1", kind="retain", messages=[{"role": "user", "content": "Who?"}], expected="x")],
    )
    (tmp_path / "evaluate.yaml").write_text("evaluate: {max_new_tokens: 5, tasks: [other], resamples: 50}\n")
    (tmp_path / "gate.yaml").write_text("tasks: {'choice:acc': 0.0, other: 1.0}\n")
    done = run(
        "evaluate",
        "--model",
        tiny_path,
        "--adapter",
        tmp_path / "adapter",
        "--probes",
        tmp_path / "probes.jsonl",
        "--config",
        tmp_path / "evaluate.yaml",
        "--tasks",
        "choice, other",
        "--tasks-path",
        tasks_path,
        "--task-limit",
        6,
        "--certificate",
        tmp_path / "gate.yaml",
        "--out",
        tmp_path / "results.json",
    )
    data = json.loads((tmp_path / "results.json").read_text())["tasks"]
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert {name: task["documents"] for name, task in data.items()} == {"choice": 6, "other": 6}
    assert set(certificate["task_versions"]) == {"choice", "other"}
    choice, other = certificate["checks"]
    assert choice["value"] == pytest.approx(
        data["choice"]["metrics"]["acc"]["base"] - data["choice"]["metrics"]["acc"]["tuned"]
    )
    assert other["passed"]
    assert done.code == (0 if choice["passed"] else 3)
    assert "tasks-tuned 2/2" in done.err
    assert certificate["evaluate"]["tasks"] == ["choice", "other"]
    assert certificate["evaluate"]["resamples"] == 50
