import json

import pytest
from commands import run, save_yaml, well

from anchorlwf.data.run_summary import run_differences, runs_below, summary_of
from anchorlwf.errors import RecordError


def make(folder, date, **files):
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps({"date": date}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content) if isinstance(content, dict) else content)
    return folder


@pytest.fixture
def runs(tmp_path):
    """A whole run, one that was interrupted, and one with torn files, in a folder."""
    report = {"anchors": 5, "anchors_held": 4, "records": 2, "records_reproduced": 1, "keep_kl": 0.5}
    whole = make(
        tmp_path / "runs" / "whole",
        "2026-01-02T00:00:00+00:00",
        train={"converged": False, "steps": 7, "report": {**report, "held_out": {"all": {"mean": 0.25}}}},
        results={"recall": 0.5, "kept": 1.0, "details": {"kept": {"flips": []}, "near": {"flips": [{}, {}]}}},
        certificate={"passed": True},
        card={"base": "a/b"},
    )
    save_yaml(whole / "config.yaml", rank=8, seed=0)
    begun = make(tmp_path / "runs" / "deep" / "begun", "2026-01-01T00:00:00+00:00")
    save_yaml(begun / "config.yaml", rank=4, seed=0)
    make(tmp_path / "runs" / "torn", "2026-01-03T00:00:00+00:00", train="{", results="[]", certificate="{}")
    return tmp_path / "runs"


def test_runs_are_found_at_any_depth_and_summed_up(runs):
    begun, whole, torn = runs_below(runs)
    assert (whole.converged, whole.steps, whole.anchors_held, whole.anchors) == (False, 7, 4, 5)
    assert (whole.reproduced, whole.corrections, whole.drift) == (1, 2, 0.25)
    assert (whole.recall, whole.kept, whole.flips, whole.certificate, whole.model) == (0.5, 1.0, 2, True, "a/b")
    for bare in (begun, torn):
        assert {bare.converged, bare.drift, bare.recall, bare.flips, bare.certificate} == {None}
    assert run_differences(whole, begun) == {"rank": (8, 4)}


def test_the_command_lists_them(runs, monkeypatch):
    monkeypatch.chdir(runs.parent)
    out = well("runs").out
    row = next(line for line in out.splitlines() if "whole" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        *("NO", "1 of 2", "0.25000", "50.0%", "100.0%", "passed")
    ]
    assert "unfinished" in out
    assert [row["steps"] for row in json.loads(well("runs", runs, "--json").out)["runs"]] == [None, 7, None]


def test_the_command_compares_two(runs):
    out = well("runs", runs / "whole", runs / "deep" / "begun").out
    assert "rank: 8 -> 4\n" in out
    assert "seed" not in out
    data = json.loads(well("runs", runs / "whole", runs / "deep" / "begun", "--json").out)
    assert (len(data["runs"]), data["options"]) == (2, {"rank": [8, 4]})


def test_where_there_is_no_run_that_is_said(tmp_path):
    with pytest.raises(RecordError, match="expected a folder with runs, got no such folder"):
        runs_below(tmp_path / "none")
    with pytest.raises(RecordError, match="expected a run folder"):
        summary_of(tmp_path)
    assert run("runs", tmp_path).code == 2


def test_a_run_is_drawn_by_the_command(runs, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [{"step": step, "anchor_probability": 0.5, "keep_kl": 0.01, "beta": 10.0} for step in (1, 2)]
    (runs / "whole" / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    well("runs", str(runs / "whole"), "--plot", str(tmp_path / "run.png"))
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    two = run("runs", str(runs / "whole"), str(runs / "torn"), "--plot", str(tmp_path / "two.png"))
    assert two.code == 2
    assert "one run" in two.err
