"""Benchmarks that are programs of their own: `python -m anchorlwf.bench.NAME`."""

import json
import shutil
from pathlib import Path

import pytest

from anchorlwf.bench.annotator_load import measure_load
from anchorlwf.bench.published import PLOTS, RUNS, draw_plots
from anchorlwf.bench.seeds import measure_seed, seeds_table
from anchorlwf.bench.suite import BENCHMARKS
from anchorlwf.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_published_can_be_run_and_was():
    for name, arguments in RUNS.items():
        chosen = BENCHMARKS[arguments["name"]]
        chosen.setup.of(**arguments.get("options", {}))
        assert set(arguments.get("only", ())) <= set(chosen.names)
        published = json.loads((DOCS / "results" / "speed" / f"{name}.json").read_text())
        assert published["benchmark"] == arguments["name"]


def test_the_published_plots_are_drawn_anew(tmp_path):
    assert draw_plots(tmp_path) == []
    for name in PLOTS:
        shutil.copy(DOCS / "results" / "speed" / f"{name}.json", tmp_path)
    assert draw_plots(tmp_path) == list(PLOTS)
    for name in PLOTS:
        assert (tmp_path / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["seeds_4", "seeds_16"])
def test_published_tables_are_those_of_the_raw_figures(name):
    report = json.loads((DOCS / "results" / f"{name}.json").read_text())
    published = (DOCS / "results.md").read_text()
    for line in seeds_table(report["rows"]).splitlines()[2:-1]:  # from the first seed to the mean
        figures = line.split("|", maxsplit=2)[2]  # behind the label
        assert f"|{figures}\n" in published


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("seeds_*.json")), ids=lambda path: path.stem)
def test_published_seeds_say_how_they_were_made(path):
    command = json.loads(path.read_text())["command"]
    assert command.startswith("python -m anchorlwf.bench.seeds ")
    assert f"--out docs/results/{path.name}" in command


def test_a_seed_corrects_and_measures():
    row = measure_seed(3, facts=1, wordings=1, config=TrainConfig())
    assert (row["seed"], row["recall"], row["converged"]) == (3, 1.0, True)
    assert row["kept"] > 0.9
    assert seeds_table([row, row]).count("\n") == 5


def test_annotators_at_once_share_the_work_and_lose_nothing(tmp_path):
    report = measure_load(3, 4, tmp_path)
    assert report["failures"] == []
    assert (report["handed_out_twice"], report["records_that_do_not_hold"]) == (0, 0)
    assert 0 < report["items_done"] <= report["records_in_store"]
    assert report["first_token_p50_ms"] <= report["first_token_p95_ms"]
