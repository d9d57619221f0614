"""What is said while a command is at work, and how it ends where training did not reach what it was for."""

import json
import re

import pytest
from commands import run, well
from training_runs import corrections, steps, world_corrections

from anchorlwf.cli.shared import PACE, PlainProgress, step_progress
from anchorlwf.data.jsonl import save_records
from anchorlwf.model.language_model import load_model
from anchorlwf.training import StopReport, train


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


@pytest.fixture
def told():
    """(lines, what shows a state after so many seconds, what ends it)."""
    lines, clock = [], Clock()
    progress = PlainProgress(lines.append, clock)

    def after(seconds, *state):
        clock.time += seconds
        progress.show(*state)

    return lines, after, progress.close


def test_lines_come_at_a_steady_pace_whatever_the_speed_of_the_steps(told):
    lines, after, close = told
    for step in range(1, 101):
        after(1.0, "train  0/5", step, 1000)
    assert len(lines) == 1 + 99 // PACE
    assert lines[0] == "train  0/5 1/1000"
    assert lines[1] == "train  0/5 6/1000, up to 0:16:34 left"
    for step in range(101, 110):
        after(60.0, "train  0/5", step, 1000)
    assert len(lines) == 1 + 99 // PACE + 9, "a slow step is told when it is done"
    close()
    assert lines[-1].startswith("train  0/5 109/1000, ")


def test_the_last_state_is_told_once_even_where_a_phase_ends_early(told):
    lines, after, close = told
    after(0.0, "reference", 1, 2)
    after(0.1, "reference", 2, 2)
    after(0.1, "train  0/5", 1, 200)
    after(0.1, "train  5/5", 2, 200)
    after(0.1, "base", 1, 13)
    close()
    close()
    assert [re.sub(", up to .*", "", line) for line in lines] == [
        "reference 1/2",
        "reference 2/2",
        "train  0/5 1/200",
        "train  5/5 2/200",
        "base 1/13",
    ]


def test_time_left_comes_from_this_phase_alone_and_from_what_was_done_in_it(told):
    lines, after, _ = told
    after(1000.0, "reference", 1, 1)
    # Resumed at step 50: the steps before it took none of this time.
    after(7.0, "train", 50, 100)
    after(20.0, "train", 60, 100)
    assert lines[-1] == "train 60/100, up to 0:01:20 left"
    after(20.0, "train", 100, 100)
    assert lines[-1] == "train 100/100"


def test_steps_tell_what_is_missing(capsys):
    row = {"step": 3, "max_steps": 9, "anchors": 5, "held": 5, "records": 4, "reproduced": 1, "keep_kl": 0.00123}
    with step_progress() as show:
        show(row)
    assert capsys.readouterr().err == "train  5/5 anchors held, 1/4 reproduced, drift 0.0012 3/9\n"


def test_every_row_of_the_metrics_counts_the_answers_that_are_reproduced(tmp_path):
    model = load_model()
    records = world_corrections(model, 4)
    result = train(model, records, out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {row["records"] for row in rows} == {4}
    assert rows[0]["reproduced"] == 0, "each of them is wrong somewhere"
    assert rows[-1]["reproduced"] == 4
    assert result.missing == []


@pytest.mark.parametrize(("cache", "impl"), [(8, "auto"), (0, "auto"), (8, "dense"), (8, "chunked")])
def test_it_is_the_reports_count_however_the_loss_is_computed(tiny_path, tmp_path, cache, impl):
    model = load_model(str(tiny_path))
    records = corrections(model, 5)
    config = steps(4, learning_rate=1e-2, reference_cache_size=cache, impl=impl)
    counts = []
    result = train(model, records, out=tmp_path / "run", config=config, on_step=counts.append)
    again = load_model(str(tiny_path))
    after = train(again, records, out=tmp_path / "again", config=config.updated(max_steps=5), on_step=counts.append)
    # The fifth step looks at the weights that the first run ended with.
    assert after.steps == 5
    assert counts[-1]["reproduced"] == result.report.records_reproduced
    assert counts[-1]["held"] == result.report.anchors_held


def test_micro_batches_add_up(tiny_path, tmp_path):
    records = corrections(load_model(str(tiny_path)), 6)
    rows = []
    for accumulation in (1, 3):
        config = steps(2, batch_size=6 // accumulation, accumulation=accumulation)
        train(load_model(str(tiny_path)), records, out=tmp_path / "run", config=config, on_step=rows.append)
    assert {row["records"] for row in rows} == {6}
    assert [row["reproduced"] for row in rows[:2]] == [row["reproduced"] for row in rows[2:]]


def test_what_is_missing_is_said_in_words():
    good = StopReport(anchors=5, anchors_held=5, records=4, records_reproduced=4, keep_tokens=9, keep_kl=0.01)
    assert good.missing(0.01) == []
    assert good.passes(0.01)
    lacking = StopReport(anchors=5, anchors_held=3, records=4, records_reproduced=1, keep_tokens=9, keep_kl=0.02)
    assert [re.split(";|, which", lack)[0] for lack in lacking.missing(0.01)] == [
        "3 of 5 anchors held",
        "1 of 4 answers reproduced greedily",
        "a drift within 0.01 nats per token",
    ]
    assert not StopReport(5, 5, 4, 3, 9, 0.0).passes(0.01), "the third condition alone"


def test_fix_and_train_end_with_the_same_code_where_training_did_not_converge(tmp_path):
    # Later steps, whose weight of the keep tokens is enormous, may end with a drift of 0 by rounding.
    (tmp_path / "short.yaml").write_text("train: {max_steps: 100}\n")
    impossible = ["--drift-budget", "1e-12", "--config", tmp_path / "short.yaml"]
    question = ["--prompt", "Who are you?", "--answer", "I am Tarn, your assistant."]
    done = run("fix", *question, "--out", tmp_path / "fix", *impossible)
    assert done.code == 4
    assert re.search(r"^NOT converged: .*a drift within 1e-12 nats per token", done.out, re.MULTILINE)
    assert (tmp_path / "fix" / "adapter").is_dir()
    trained = run("train", tmp_path / "fix" / "records.jsonl", "--out", tmp_path / "run", *impossible, "--json")
    assert trained.code == 4
    data = json.loads(trained.out)
    assert (data["converged"], len(data["missing"])) == (False, 1)
    assert json.loads((tmp_path / "run" / "train.json").read_text()) == data
    assert "4 training that did not converge" in (pytest.importorskip("anchorlwf.cli.manual").commands())


def test_train_that_converges_ends_with_0_and_a_last_line_of_what_it_reached(tmp_path):
    save_records(tmp_path / "records.jsonl", world_corrections(load_model(), 2))
    done = well("train", tmp_path / "records.jsonl", "--out", tmp_path / "run")
    last = done.err.splitlines()[-1]
    held = re.fullmatch(r"train  (\d+)/\1 anchors held, 2/2 reproduced, drift 0\.\d+ (\d+)/200, up to .* left", last)
    assert held, last
    assert f"after {held[2]} steps" in done.out
