"""What the Trainer is told: where steps are reported besides metrics.jsonl, and on which device it runs."""

import json
from typing import ClassVar

import pytest
import torch
from training_runs import corrections
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from anchorlwf.annotation import as_prompts
from anchorlwf.config import TrainConfig
from anchorlwf.decoding.keep_records import HELD_OUT_TAG, keep_records
from anchorlwf.errors import ConfigError
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import train
from anchorlwf.training.checkpoint import Checkpoints, RunKey
from anchorlwf.training.stage import _arguments
from anchorlwf.training.step_sampler import StepPlan


class Recorder(TrainerCallback):
    """An integration that keeps what the Trainer gives it."""

    rows: ClassVar[list[dict]] = []
    runs: ClassVar[list[tuple]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.runs.append((args.run_name, args.project))

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append({"step": state.global_step, **logs})


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Recorder)
    monkeypatch.setattr("anchorlwf.training.stage.require_reporters", lambda names: None)
    monkeypatch.setattr(Recorder, "rows", [])
    monkeypatch.setattr(Recorder, "runs", [])
    return Recorder


def with_held_out(model):
    kept = keep_records(model, as_prompts(["hello", "Who?", "Where was she born?"]), 8)
    held_out = [record.model_copy(update={"tags": [*record.tags, HELD_OUT_TAG, "general"]}) for record in kept]
    return [*corrections(model, 2), *held_out]


def test_every_step_is_reported_with_its_figures(fresh_model, tmp_path, recorder):
    config = TrainConfig(max_steps=6, report_to=("wandb",), drift_budget=1e-9)
    train(fresh_model, with_held_out(fresh_model), out=tmp_path / "first", config=config)
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert recorder.runs == [("first", "anchorlwf")]
    reported = [row for row in recorder.rows if "beta" in row]
    assert [row["step"] for row in reported] == [row["step"] for row in rows] == list(range(1, 7))
    for row, sent in zip(rows, reported, strict=True):
        assert (sent["anchor_probability"], sent["beta"]) == (row["anchor_probability"], row["beta"])
        assert sent["anchors_held"] == row["held"] / row["anchors"]
        drift = {f"held_out_drift/{kind}": value["mean"] for kind, value in row.get("held_out", {}).items()}
        assert {name: value for name, value in sent.items() if name.startswith("held_out")} == drift
    assert any("held_out_drift/all" in row for row in reported)


def test_nothing_is_reported_unless_asked_for_and_the_run_is_the_same(tiny_path, tmp_path, recorder):
    plain, told = load_model(str(tiny_path)), load_model(str(tiny_path))
    train(plain, corrections(plain, 2), out=tmp_path / "plain", config=TrainConfig(max_steps=3))
    assert recorder.rows == []
    train(told, corrections(told, 2), out=tmp_path / "told", config=TrainConfig(max_steps=3, report_to="wandb"))
    assert len(recorder.rows) >= 3
    name = "metrics.jsonl"
    assert (tmp_path / "plain" / name).read_text() == (tmp_path / "told" / name).read_text()


def test_tensorboard_writes_into_the_run_folder(fresh_model, tmp_path):
    pytest.importorskip("tensorboard", reason="an environment made before it was among the tests' packages")
    train(
        fresh_model,
        corrections(fresh_model, 2),
        out=tmp_path / "run",
        config=TrainConfig(max_steps=2, report_to="tensorboard"),
    )
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("given", "names"),
    [("none", ()), ([], ()), ("tensorboard,wandb", ("tensorboard", "wandb")), (["trackio"], ("trackio",))],
)
def test_names_are_given_as_a_list_or_by_commas(given, names):
    assert TrainConfig.of(report_to=given).report_to == names


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU would take the model that this machine cannot hold")
def test_a_model_on_another_device_than_training_is_refused(fresh_model, tmp_path, monkeypatch):
    # Trainer would move it to the device it has chosen, and say nothing.
    monkeypatch.setattr(LanguageModel, "device", property(lambda _model: torch.device("cuda", 1)))
    checkpoints = Checkpoints(tmp_path / "checkpoints", RunKey("", "", {}, 1, "cuda"))
    with pytest.raises(ConfigError, match=r"device: expected cpu, where training runs, got cuda:1"):
        _arguments(checkpoints, TrainConfig(), fresh_model, StepPlan(1, 0, 1), 1)
