"""Training ends by what is wanted: anchors held, drift on held-out answers within budget; or once nothing improves."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from training_runs import adapter, corrections, largest_gap, world_corrections

from anchorlwf.config import TrainConfig
from anchorlwf.data.record import Prompt
from anchorlwf.decoding.keep_records import HELD_OUT_TAG, keep_records
from anchorlwf.model.language_model import load_model
from anchorlwf.training import HeldOutDrift, StopReport, stage, step_context, train
from anchorlwf.training.best_state import BestState


def kept(model, count):
    """Keep records on questions of no consequence: every fourth is held out, every other is near."""
    prompts = []
    for number in range(count):
        kind = "near" if number % 2 else "general"
        tags = [f"retain:{kind}", *([HELD_OUT_TAG] if number % 4 >= 2 else [])]
        chat = [{"role": "user", "content": f"What is number {number}?"}]
        prompts.append(Prompt(messages=chat, tags=tags))
    return keep_records(model, prompts, 12)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_held_out_records_are_measured_and_never_trained_on(fresh_model, tmp_path, monkeypatch):
    records, keep = corrections(fresh_model, 2), kept(fresh_model, 12)
    aside = {record.id for record in keep if HELD_OUT_TAG in record.tags}
    seen, plain = [], step_context.StepContext.collate
    monkeypatch.setattr(
        step_context.StepContext, "collate", lambda self, part: seen.append({r.id for r in part}) or plain(self, part)
    )
    config = TrainConfig(max_steps=11, stop=False, batch_size=4)
    result = train(fresh_model, [*records, *keep], out=tmp_path / "run", config=config)
    assert result.records == 2 + 6
    steps = [ids for ids in seen if ids & {record.id for record in records}]
    assert len(steps) >= 11
    assert not any(ids & aside for ids in steps)
    assert all(ids - {record.id for record in records} for ids in steps[:11]), "keep records are in every step"
    looked = {row["step"]: row["held_out"] for row in rows_of(tmp_path / "run") if "held_out" in row}
    assert list(looked) == [5, 10, 11], "every five steps, and at the end"
    assert set(looked[5]) == {"all", "general", "near"}
    assert looked[5]["all"]["records"] == 6
    assert result.report.held_out["all"].mean == pytest.approx(looked[11]["all"]["mean"], rel=1e-4)
    assert result.report.drift == result.report.held_out["all"].mean
    assert json.loads((tmp_path / "run" / "train.json").read_text())["report"]["held_out"]["near"]["tokens"] > 0


def test_the_budget_is_held_against_held_out_answers(tmp_path, monkeypatch):
    measured, plain = [], step_context.StepContext.drift
    monkeypatch.setattr(step_context.StepContext, "drift", lambda self: measured.append(self) or plain(self))
    model = load_model()
    records = [*world_corrections(model, 2), *kept(model, 16)]
    config = TrainConfig(drift_budget=0.01)
    result = train(model, records, out=tmp_path / "run", config=config)
    assert result.converged, result.missing
    assert result.report.held_out["all"].mean <= config.drift_budget
    assert result.report.learned
    assert len(measured) == sum("held_out" in row for row in rows_of(tmp_path / "run")), "not once more at the end"
    keeps = sum(len(record.completion_ids) - len(record.anchors) for record in records if record.anchors)
    assert result.report.keep_tokens == keeps, "of the corrected answers alone"


def test_what_does_not_improve_ends_early_and_says_what_is_missing(fresh_model, tmp_path):
    config = TrainConfig(learning_rate=1e-12, max_steps=1000)
    result = train(fresh_model, corrections(fresh_model, 2), out=tmp_path / "run", config=config)
    assert result.plateau
    assert result.steps < 60
    assert any("anchors held" in told for told in result.missing)


def test_a_budget_too_tight_ends_with_the_best_state_and_by_how_much_it_is_missed(tmp_path):
    model = load_model()
    records = [*world_corrections(model, 2), *kept(model, 16)]
    config = TrainConfig(drift_budget=1e-9, max_steps=400)
    result = train(model, records, out=tmp_path / "run", config=config)
    assert result.plateau
    assert result.steps < 400
    assert result.report.learned, "what was asked for is not given up"
    [missing] = result.missing
    assert "times as much" in missing
    lowest = min(row["held_out"]["all"]["mean"] for row in rows_of(tmp_path / "run")[-60:] if "held_out" in row)
    assert result.report.drift <= 3 * lowest


def test_the_best_state_is_the_one_of_the_lowest_drift(tmp_path):
    net = nn.Linear(2, 1, bias=False)
    best = BestState(net, keeps=True)
    assert not best.exchange(), "nothing was kept yet"
    for value, drift in ((1.0, 0.3), (2.0, 0.1), (3.0, 0.2)):
        nn.init.constant_(net.weight, value)
        best.offer(drift)
    best.save(tmp_path)
    assert best.exchange()
    assert torch.equal(net.weight, torch.full((1, 2), 2.0))
    assert best.exchange(), "the last ones may be wanted after all"
    assert torch.equal(net.weight, torch.full((1, 2), 3.0))
    nn.init.constant_(net.weight, 9.0)
    other = BestState(net, keeps=True)
    other.load(tmp_path, best.drift, learned=best.learned)
    assert other.exchange()
    assert torch.equal(net.weight, torch.full((1, 2), 2.0))
    assert (other.drift, other.learned) == (0.1, True)
    none = BestState(net, keeps=False)
    none.offer(0.0)
    assert not none.exchange()


def test_what_is_learned_goes_before_answers_that_are_only_reproduced():
    net = nn.Linear(2, 1, bias=False)
    best = BestState(net, keeps=True)
    for value, drift, learned in ((1.0, 0.2, False), (2.0, 0.1, False), (3.0, 0.3, True), (4.0, 0.0, False)):
        nn.init.constant_(net.weight, value)
        best.offer(drift, learned=learned)
        kept_now = min(3.0, value)
        assert best.exchange()
        assert torch.equal(net.weight, torch.full((1, 2), kept_now))
        best.exchange()


def reported(anchors=4, answers=4, drift=0.1):
    counts = {"anchors": 4, "anchors_held": anchors, "records": 4, "records_reproduced": answers, "keep_tokens": 9}
    return StopReport(**counts, keep_kl=drift)


@pytest.mark.parametrize(
    ("last", "earlier", "saved"),
    [
        (reported(drift=0.2), reported(drift=0.1), "earlier"),
        (reported(drift=0.1), reported(drift=0.2), "last"),  # no report was due since the drift fell
        (reported(anchors=3, drift=0.0), reported(drift=0.2), "earlier"),
        (reported(drift=0.2), reported(anchors=3, drift=0.1), "last"),
        (reported(anchors=3, drift=0.2), reported(anchors=2, drift=0.1), "earlier"),  # only their margin is wanting
        (reported(anchors=3, drift=0.2), reported(anchors=3, answers=3, drift=0.1), "last"),
        (reported(drift=0.0), reported(drift=0.2), "last"),
    ],
)
def test_the_better_of_the_last_weights_and_the_best_before_is_saved(last, earlier, saved):
    net = nn.Linear(2, 1, bias=False)
    best = BestState(net, keeps=True)
    nn.init.constant_(net.weight, 1.0)
    best.offer(earlier.drift, learned=earlier.learned)
    nn.init.constant_(net.weight, 2.0)
    context = SimpleNamespace(
        report=lambda _step: earlier if float(net.weight.detach()[0, 0]) == 1.0 else last,
        config=TrainConfig(drift_budget=0.01),
    )
    report = stage._best_report(SimpleNamespace(context=context, best=best), 7)
    assert report is {"last": last, "earlier": earlier}[saved]
    assert torch.equal(net.weight, torch.full((1, 2), {"last": 2.0, "earlier": 1.0}[saved]))


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=8), min_size=1, max_size=12))
def test_held_out_drift_is_a_mean_within_its_interval(kl):
    drift = HeldOutDrift.of(kl)
    tokens = [value for record in kl for value in record]
    assert drift.mean == pytest.approx(sum(tokens) / len(tokens), abs=1e-12)
    assert 0 <= drift.low <= drift.mean + 1e-12
    assert drift.mean <= drift.high + 1e-12
    assert drift.mean - 1e-12 <= drift.worst <= max(tokens) + 1e-12
    assert (drift.records, drift.tokens) == (len(kl), len(tokens))


def test_a_resumed_run_remembers_its_best_state_and_its_patience(tmp_path, tiny_path):
    def run(folder, resume=False, stop_at=None):
        model = load_model(str(tiny_path), dtype="float32", device="cpu")
        records = [*corrections(model, 2), *kept(model, 8)]

        def interrupt(row):
            if row["step"] == stop_at:
                raise KeyboardInterrupt

        config = TrainConfig(drift_budget=1e-9, max_steps=24, save_steps=6, learning_rate=3e-3)
        return train(model, records, out=folder, config=config, resume=resume, on_step=interrupt)

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_at=20)
    resumed = run(tmp_path / "cut", resume=True)
    assert resumed.report == whole.report
    adapters = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert adapters[0] == adapters[1]


def test_answers_need_not_be_reproduced_where_that_is_not_asked(tmp_path):
    model = load_model()
    [right] = world_corrections(model, 1)
    # A keep token that the reference would not choose, and that nothing teaches.
    ids = [*right.completion_ids[:-1], right.completion_ids[0]]
    other = right.model_copy(update={"completion_ids": ids, "completion": model.codec.decode(ids)})
    config = TrainConfig(beta=0.0, drift_budget=1e9, hinge=False, reproduce=False)
    result = train(model, [other], out=tmp_path / "run", config=config)
    assert result.converged, result.missing
    assert result.report.learned
    assert result.report.records_reproduced == 0
    assert result.steps < 40, "it does not wait for a plateau"


def test_reports_on_many_keep_records_are_rare(tmp_path, monkeypatch):
    reports, plain = [], step_context.StepContext.report
    monkeypatch.setattr(
        step_context.StepContext, "report", lambda self, step, *more: reports.append(step) or plain(self, step, *more)
    )
    model = load_model()
    keep = [record.model_copy(update={"tags": []}) for record in kept(model, 90)]
    # A budget that is not reached: while the anchors hold, every step would be reported on.
    config = TrainConfig(drift_budget=1e-4, max_steps=100, batch_size=4)
    result = train(model, [*world_corrections(model, 1), *keep], out=tmp_path / "run", config=config)
    on_the_way = [step for step in reports if step < result.steps]
    between = [after - before for before, after in itertools.pairwise(on_the_way)]
    assert len(between) >= 2
    # A step shows 3 of the 91 records, and goes back through them.
    assert min(between) >= 91 // (3 * 3)


def test_a_run_without_a_stop_rule_looks_at_held_out_answers_every_five_steps(tmp_path):
    model = load_model()
    config = TrainConfig(drift_budget=10.0, max_steps=60, stop=False, batch_size=4)
    train(model, [*world_corrections(model, 1), *kept(model, 8)], out=tmp_path / "run", config=config)
    rows = rows_of(tmp_path / "run")
    assert all(row["held"] == row["anchors"] for row in rows[-10:]), "all is well, and a report would be due"
    looked = [row["step"] for row in rows if "held_out" in row]
    assert len(looked) <= 60 / 5 * 2


def test_the_rate_falls_only_where_steps_see_different_corrections_and_keep_records(fresh_model, tmp_path):
    records, keep = corrections(fresh_model, 6), kept(fresh_model, 12)
    config = TrainConfig(max_steps=40, stop=False, batch_size=4)
    train(fresh_model, [*records, *keep], out=tmp_path / "sampled", config=config)
    rates = [row["learning_rate"] for row in rows_of(tmp_path / "sampled")]
    assert rates[0] == config.learning_rate
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < config.learning_rate
    for name, both in {"whole": [*records[:2], *keep], "alone": records}.items():
        train(load_model(fresh_model.name), both, out=tmp_path / name, config=config)
        assert {row["learning_rate"] for row in rows_of(tmp_path / name)} == {config.learning_rate}


def test_where_only_the_margin_is_missing_beta_rises_and_reproduced_answers_are_what_is_saved(tmp_path):
    model = load_model()
    records = [*world_corrections(model, 4), *kept(model, 16)]
    config = TrainConfig(hold=0.9999, drift_budget=1e-6, max_steps=120, batch_size=6)
    result = train(model, records, out=tmp_path / "run", config=config)
    assert result.report.anchors_held < result.report.anchors
    assert result.report.records_reproduced == result.report.records
    rows = rows_of(tmp_path / "run")
    said = [row["reproduced"] == row["records"] for row in rows]
    # Two steps are a pass over the four.
    looked = [row for row, *both in zip(rows[1:], said, said[1:], strict=False) if "held_out" in row and all(both)]
    betas = [row["beta"] for row in looked]
    assert len(betas) > 5
    assert betas == sorted(set(betas)), "it rises at every look, for the drift is over its budget"
    assert result.report.drift == pytest.approx(min(row["held_out"]["all"]["mean"] for row in looked), rel=1e-3)


def test_a_lowered_rate_is_what_a_resumed_run_goes_on_with(fresh_model, tmp_path):
    records, keep = corrections(fresh_model, 6), kept(fresh_model, 12)
    config = TrainConfig(max_steps=40, stop=False, batch_size=4, save_steps=33)
    train(fresh_model, [*records, *keep], out=tmp_path / "run", config=config)
    whole, rows = adapter(tmp_path / "run"), rows_of(tmp_path / "run")
    assert rows[32]["learning_rate"] < config.learning_rate
    train(load_model(fresh_model.name), [*records, *keep], out=tmp_path / "run", config=config, resume=True)
    assert [row["learning_rate"] for row in rows_of(tmp_path / "run")] == [row["learning_rate"] for row in rows]
    assert largest_gap(adapter(tmp_path / "run"), whole) == 0.0
