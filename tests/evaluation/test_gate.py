"""The release gate: thresholds against hand-made results, and certificates of a real model and its real files."""

import copy
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import disturbed
from commands import run
from hypothesis import given
from hypothesis import strategies as st

from anchorlwf.config import EvaluateConfig, GateConfig
from anchorlwf.data.jsonl import save_lines
from anchorlwf.data.probe import Probe
from anchorlwf.decoding.greedy import GreedyDecoder
from anchorlwf.errors import ConfigError, ModelError, RecordError
from anchorlwf.evaluation import (
    Drift,
    GateReport,
    MetricChange,
    ProbeResult,
    Results,
    TaskChange,
    certify,
    check_certificate,
    evaluate,
    model_hashes,
    named_hashes,
    results_of,
)
from anchorlwf.evaluation.gate import Check, _other_thresholds, hold
from anchorlwf.model.language_model import EMBEDDED, LanguageModel, embedded_path, load_model

CONFIG = EvaluateConfig(max_new_tokens=8, resamples=100)

# --- the configuration ---


def test_a_gate_is_read_from_yaml(tmp_path):
    (tmp_path / "gate.yaml").write_text("recall: 1.0\nflips: 0\nkl: 0.01\ntasks:\n  mmlu: 0.02\n  arc:acc_norm: 0\n")
    gate = GateConfig.load(tmp_path / "gate.yaml")
    assert gate == GateConfig(recall=1.0, flips=0, kl=0.01, tasks={"mmlu": 0.02, "arc:acc_norm": 0.0})


def test_the_gate_in_the_docs_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "certificate.md").read_text()
    (tmp_path / "gate.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert GateConfig.load(tmp_path / "gate.yaml").model_fields_set == set(GateConfig.model_fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected at least one threshold"),
        ("recall: 90", "recall: .*less than or equal to 1, got 90"),
        ("flips: 0.5", "flips: .*integer"),
        ("kl: -1", "kl: "),
        ("tasks: {mmlu: -0.1}", "tasks.mmlu: "),
        ("recal: 0.9", "recal: .*Known options: recall, paraphrase, near, kept, skills, flips, kl, tasks"),
    ],
)
def test_a_gate_that_asks_for_the_impossible_or_for_nothing_is_refused(tmp_path, text, message):
    (tmp_path / "gate.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        GateConfig.load(tmp_path / "gate.yaml")


# --- thresholds against results ---


def result(kind: str, before: bool, after: bool, name: str = "") -> ProbeResult:
    probe = Probe(id=f"{kind}{name}", kind=kind, messages=[{"role": "user", "content": f"{kind}?"}], expected="yes")
    return ProbeResult(probe, "yes" if before else "no", "yes" if after else "no", before, after)


def results(*answers: ProbeResult, turns: list[list[float]] | None = None, **tasks: TaskChange) -> Results:
    drift = Drift(turns or [], [f"prompt {index}" for index in range(len(turns or []))])
    return results_of(answers, drift, CONFIG, {}, tasks)


def metric(base: float, tuned: float, **options: object) -> MetricChange:
    return MetricChange(
        **{
            "base": base,
            "tuned": tuned,
            "higher_is_better": True,
            "interval": (-0.3, 0.1),
            "right_to_wrong": ["4", "7"],
            "wrong_to_right": [],
        }
        | options
    )


GOOD = results(
    result("recall", False, True, "a"),
    result("recall", False, False, "b"),
    result("paraphrase", True, True),
    result("near", True, True, "a"),
    result("near", True, False, "b"),
    result("near", False, True, "c"),
    result("retain", True, True),
    result("skill", True, True),
    turns=[[0.01, 0.03], [0.5, 0.7], []],
    mmlu=TaskChange(8, "1", {"acc": metric(0.5, 0.4), "loss": metric(2.0, 2.5, higher_is_better=False)}),
)


@pytest.mark.parametrize(
    ("gate", "value", "passed", "examples"),
    [
        ({"recall": 0.5}, 0.5, True, ["recallb"]),
        ({"recall": 0.51}, 0.5, False, ["recallb"]),
        ({"paraphrase": 1.0}, 1.0, True, []),
        ({"near": 0.5}, 0.5, True, ["nearb"]),
        ({"near": 0.6}, 0.5, False, ["nearb"]),
        ({"kept": 1.0}, 1.0, True, []),
        ({"skills": 1.0}, 1.0, True, []),
        ({"flips": 1}, 1, True, ["nearb"]),
        ({"flips": 0}, 1, False, ["nearb"]),
        ({"kl": 0.31}, 0.31, True, ["prompt 1", "prompt 0"]),
        ({"kl": 0.3}, 0.31, False, ["prompt 1", "prompt 0"]),
        ({"tasks": {"mmlu:acc": 0.11}}, 0.1, True, ["4", "7"]),
        ({"tasks": {"mmlu:acc": 0.09}}, 0.1, False, ["4", "7"]),
        ({"tasks": {"mmlu:loss": 0.5}}, 0.5, True, ["4", "7"]),
        ({"tasks": {"mmlu:loss": 0.4}}, 0.5, False, ["4", "7"]),
    ],
)
def test_each_threshold_is_held_against_its_figure(gate, value, passed, examples):
    [check] = hold(GOOD, GateConfig(**gate))
    assert (check.value, check.passed, check.examples) == (pytest.approx(value), passed, examples)


def test_a_drop_as_large_as_allowed_is_allowed():
    for tenths in range(1, 11):
        measured = results(x=TaskChange(10, "1", {"acc": metric(tenths / 10, (tenths - 1) / 10)}))
        assert hold(measured, GateConfig(tasks={"x": 0.1}))[0].passed


def test_a_task_without_a_metric_named_answers_with_all_of_them():
    checks = hold(GOOD, GateConfig(tasks={"mmlu": 0.2}))
    assert [(check.name, check.passed) for check in checks] == [("tasks.mmlu:acc", True), ("tasks.mmlu:loss", False)]
    # The interval is that of the drop, as the value is.
    assert [check.interval for check in checks] == [(-0.1, 0.3), (-0.3, 0.1)]


@pytest.mark.parametrize(
    ("gate", "measured"),
    [
        *(
            ({name: 0.0}, results(result("reverse", True, True)))
            for name in ("recall", "paraphrase", "near", "kept", "skills")
        ),
        ({"kept": 0.0}, results(result("retain", False, True))),  # the base knew nothing, so nothing could be kept
        ({"kl": 9.0}, results(result("recall", False, True))),
        ({"flips": 9}, results(result("recall", False, True))),
        ({"tasks": {"arc": 1.0}}, GOOD),
        ({"tasks": {"mmlu:f1": 1.0}}, GOOD),
        ({"tasks": {"x": 1.0}}, results(x=TaskChange(0, "1", {}))),
        ({"tasks": {"x": 1.0}}, results(x=TaskChange(2, "1", {"ppl": metric(3.0, math.inf, higher_is_better=False)}))),
    ],
)
def test_what_was_not_measured_fails_and_says_so(gate, measured):
    [check] = hold(measured, GateConfig(**gate))
    assert (check.value, check.interval, check.passed) == (None, None, False)
    assert str(check).startswith("FAIL")
    assert "not measured" in str(check)


@given(threshold=st.floats(0, 1), looser=st.floats(0, 1), right=st.integers(0, 6))
def test_a_looser_gate_passes_wherever_a_tighter_one_does(threshold, looser, right):
    measured = results(*(result("recall", False, index < right, str(index)) for index in range(6)))
    tight, loose = sorted((threshold, looser), reverse=True)
    [strict], [lax] = (hold(measured, GateConfig(recall=bound)) for bound in (tight, loose))
    assert lax.passed or not strict.passed


# --- certificates of a real model ---


@pytest.fixture(scope="module")
def probes(tiny_model: LanguageModel) -> list[Probe]:
    found = []
    for index, text in enumerate(("Who?", "Where?", "When was she born?")):
        messages = [{"role": "user", "content": text}]
        answer = GreedyDecoder(tiny_model).complete(tiny_model.codec.encode_prompt(messages), [], 8)
        found.append(
            Probe(
                id=f"q{index}",
                kind="retain",
                messages=messages,
                scorer="exact",
                expected=tiny_model.codec.decode(answer.ids).strip(),
            )
        )
    return found


@pytest.fixture(scope="module")
def adapter(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter folder that changes every answer of the tiny model."""
    folder = tmp_path_factory.mktemp("adapter")
    disturbed(tiny_path, 0.3).net.save_pretrained(folder)
    return folder


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def certified(tiny_path: Path, adapter: Path, probes: list[Probe], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a certificate that was not passed."""
    folder = tmp_path_factory.mktemp("certified")
    save_lines(folder / "probes.jsonl", probes)
    (folder / "gate.yaml").write_text("kept: 1.0\nkl: 100\n")
    model = load_model(str(tiny_path), adapter=adapter, dtype="float32", device="cpu")
    found = evaluate(model, folder / "probes.jsonl", config=CONFIG)
    certify(
        found,
        GateConfig(kept=1.0, kl=100),
        model,
        probes=folder / "probes.jsonl",
        config=CONFIG,
        out=folder / "certificate.json",
    )
    return folder


def test_a_certificate_says_what_was_run_on_which_weights(certified, tiny_path, adapter, tiny_model, probes):
    data = json.loads((certified / "certificate.json").read_text())
    # All but the card.
    for part, folder in (("base", tiny_path), ("adapter", adapter)):
        names = {path.name for path in folder.iterdir()} - {"README.md"}
        assert data["weights"][part] == {name: sha(folder / name) for name in names}
    assert data["model"] == tiny_model.stamp.model_dump(mode="json")
    assert data["loaded"] == {"dtype": "float32", "device": "cpu"}
    assert data["probes"] == {"path": str(certified / "probes.jsonl"), "sha256": sha(certified / "probes.jsonl")}
    assert data["records"] is None
    assert data["gate"] == {"kept": 1.0, "kl": 100.0}
    assert data["evaluate"] == CONFIG.model_dump(mode="json")
    assert data["environment"]["versions"]["torch"] == torch.__version__
    kept, kl = data["checks"]
    assert (kept["value"], kept["passed"], kl["passed"], data["passed"]) == (0.0, False, True, False)
    assert [line["id"] for line in data["failing"]] == [probe.id for probe in probes]
    assert data["failing"][0]["before"].strip() == probes[0].expected


def test_its_hash_can_be_recomputed_by_anyone(certified):
    data = json.loads((certified / "certificate.json").read_text())
    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert data["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_a_certificate_holds_for_its_weights_and_no_others(certified, tiny_path, adapter, tmp_path):
    path = certified / "certificate.json"
    report, problems = check_certificate(path, named_hashes(str(tiny_path), str(adapter)))
    assert problems == ["the gate was not passed"]
    assert report == GateReport.model_validate_json(path.read_text())
    assert check_certificate(path)[1] == problems
    _, problems = check_certificate(path, named_hashes(str(tiny_path)))
    assert [problem.split(":")[0] for problem in problems[:-1]] == [
        "weights, adapter, adapter_config.json",
        "weights, adapter, adapter_model.safetensors",
    ]
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    _, problems = check_certificate(path, named_hashes(str(other), str(adapter)))
    assert [problem.split(":")[0] for problem in problems[:-1]] == ["weights, base, model.safetensors"]


def leaves(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return [path] if items is None else [leaf for key, item in items for leaf in leaves(item, (*path, key))]


@given(data=st.data())
def test_whatever_is_changed_is_noticed(certified, tmp_path_factory, data):
    content = json.loads((certified / "certificate.json").read_text())
    *way, last = data.draw(st.sampled_from(leaves(content)))
    changed = copy.deepcopy(content)
    place = changed
    for key in way:
        place = place[key]
    old = place[last]
    place[last] = (not old) if isinstance(old, bool) else old + 1 if isinstance(old, int | float) else f"{old}x"
    path = tmp_path_factory.mktemp("changed") / "certificate.json"
    path.write_text(json.dumps(changed))
    try:
        _, problems = check_certificate(path)
    except RecordError:
        return
    assert any(problem.startswith("content: ") for problem in problems)


def test_a_verdict_that_does_not_follow_is_noticed_even_under_a_new_hash(certified, tmp_path):
    data = json.loads((certified / "certificate.json").read_text())
    data["passed"] = data["checks"][0]["passed"] = True
    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    data["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / "c.json").write_text(json.dumps(data))
    assert check_certificate(tmp_path / "c.json")[1] == ["kept: recorded as passed, but the value does not hold"]


def test_values_in_memory_hash_like_the_file_they_would_make(certified, tiny_path, adapter, probes):
    model = load_model(str(tiny_path), adapter=adapter, dtype="float32", device="cpu")
    found = evaluate(model, probes, records=[], config=CONFIG)
    report = certify(found, GateConfig(kl=100), model, probes=probes, records=[], config=CONFIG)
    assert report.passed
    assert (report.probes.path, report.probes.sha256) == (None, sha(certified / "probes.jsonl"))
    assert report.records is not None
    assert report.failing == []


def test_weights_that_lie_in_no_file_cannot_be_certified(fresh_model):
    fresh_model.attach_lora(2, 4.0, 0.0, "all-linear", seed=0)
    with pytest.raises(ModelError, match="expected a model and adapter loaded from files, got what lives in memory"):
        model_hashes(fresh_model)


def test_weights_by_name(tiny_path, adapter, tmp_path):
    assert named_hashes() == named_hashes(EMBEDDED)
    assert named_hashes()["base"]["model.safetensors"] == sha(embedded_path() / "model.safetensors")
    assert set(named_hashes(str(tiny_path), None, str(tiny_path))) == {"base", "tuned"}
    # The adapter's own configuration names its base.
    assert named_hashes(str(adapter)) == named_hashes(str(tiny_path), str(adapter))
    with pytest.raises(ModelError, match=r"weights .*: expected \*\.safetensors, got none"):
        named_hashes(str(tmp_path))
    with pytest.raises(ModelError, match="weights nobody/nothing: expected a folder or a cached hub name, got neither"):
        named_hashes("nobody/nothing")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"passed": true}'])
def test_what_is_no_certificate_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(RecordError, match=r"c\.json: expected a certificate"):
        check_certificate(tmp_path / "c.json")
    with pytest.raises(RecordError, match=r"none\.json: expected a certificate, got .*No such file"):
        check_certificate(tmp_path / "none.json")


# --- the commands ---


def test_a_gate_that_is_passed_is_exit_code_0_and_one_that_is_not_is_3(certified, tiny_path, adapter, tmp_path):
    options = ["--model", tiny_path, "--probes", certified / "probes.jsonl", "--max-new-tokens", 8]
    (tmp_path / "gate.yaml").write_text("kept: 1.0\nflips: 0\nkl: 0.001\n")
    gate = ["--certificate", tmp_path / "gate.yaml"]
    alone = run("evaluate", *options, *gate, "--out", tmp_path / "alone" / "results.json")
    assert alone.code == 3, "a model compared with itself has kept everything, which says nothing"
    assert "FAIL  kept: not measured" in alone.out
    assert "Give the model before training (base, --base)" in alone.err
    same = ["--base", tiny_path]
    done = run("evaluate", *options, *same, *gate, "--out", tmp_path / "run" / "results.json")
    assert done.code == 0, done
    assert "pass  kept: 1 (1 to 1), wanted at least 1" in done.out
    assert "Passed: " in done.out
    checked = run("certificate", tmp_path / "run" / "certificate.json", "--model", tiny_path, *same)
    assert checked.code == 0, checked
    assert "Good: of these weights and probes, unchanged, and the gate was passed" in checked.out
    other = run("certificate", tmp_path / "run" / "certificate.json", "--model", tiny_path, *same, "--adapter", adapter)
    assert other.code == 3, other
    assert "weights, adapter, adapter_model.safetensors: expected none, got " in other.err

    place = tmp_path / "other.json"
    done = run("evaluate", *options, *gate, "--adapter", adapter, "--certificate-out", place, "--json")
    assert done.code == 3, done
    assert json.loads(done.out)["kept"] == 0.0
    assert "FAIL  kept: 0" in done.err
    assert "NOT passed: " in done.err
    checked = run("certificate", place, "--json")
    assert checked.code == 3
    assert json.loads(checked.out) == {
        "passed": False,
        "weights_compared": False,
        "compared": ["probes"],
        "problems": ["the gate was not passed"],
    }


def test_a_broken_gate_is_the_users_mistake_and_told_before_the_model_is_loaded(certified, tmp_path):
    (tmp_path / "gate.yaml").write_text("recall: 90\n")
    done = run(
        "evaluate",
        "--model",
        tmp_path / "none",
        "--probes",
        certified / "probes.jsonl",
        "--certificate",
        tmp_path / "gate.yaml",
    )
    assert (done.code, done.out) == (2, "")
    assert "GateConfig: recall: " in done.err


def test_a_task_and_one_of_its_metrics_may_have_thresholds_of_their_own(certified):
    report, _ = check_certificate(certified / "certificate.json")
    gate = {"tasks": {"gsm8k": 0.05, "gsm8k:strict": 0.02}}
    both = [
        Check(name=name, bound="at most", threshold=threshold, value=0.0, interval=None, passed=True, examples=[])
        for name, threshold in (("tasks.gsm8k:strict", 0.05), ("tasks.gsm8k:loose", 0.05), ("tasks.gsm8k:strict", 0.02))
    ]
    assert list(_other_thresholds(report.model_copy(update={"gate": gate, "checks": both}), None)) == []
    [lacking] = _other_thresholds(report.model_copy(update={"gate": gate, "checks": both[:2]}), None)
    assert lacking == "tasks.gsm8k:strict: the gate asks for it, and no check holds it"


def test_an_unmeasured_figure_of_a_passed_gate_is_still_a_failure():
    [check] = hold(replace(GOOD, groups={}), GateConfig(recall=0.0))
    assert not check.passed
