"""A run as a picture."""

import json
from pathlib import Path

import pytest

from anchorlwf.errors import RecordError
from anchorlwf.evaluation.run_plot import plot_run

pytest.importorskip("matplotlib")


def _metrics(folder: Path, *, held_out: bool) -> Path:
    rows = []
    for step in range(1, 11):
        row = {"step": step, "anchor_probability": step / 11, "keep_kl": 1e-4 * step, "beta": 10.0 * step}
        if held_out and step % 5 == 0:
            drift = {"mean": 1e-3, "low": 5e-4, "high": 2e-3}
            row["held_out"] = {"general": drift, "near": drift, "all": drift}
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("held_out", [True, False])
def test_a_run_is_drawn_with_what_it_measured(tmp_path: Path, held_out: bool) -> None:
    plot_run(_metrics(tmp_path, held_out=held_out), tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text(encoding="utf-8")
    # Outlined letters keep their text as comments.
    for words in ("Probability of the anchors", "nats per token", "Beta"):
        assert words in drawn
    assert ("held out, near" in drawn) == held_out
    assert ("keep tokens in training" in drawn) != held_out


def test_the_same_run_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        plot_run(_metrics(tmp_path, held_out=True), tmp_path / name)
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="metrics of a run"):
        plot_run(tmp_path, tmp_path / "run.png")
    with pytest.raises(RecordError, match=r"\.png or \.svg"):
        plot_run(_metrics(tmp_path, held_out=True), tmp_path / "run.jpeg")
    assert not (tmp_path / "run.jpeg").exists()
