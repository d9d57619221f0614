"""The table of models: whatever happens to one architecture is one row."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from anchorlwf.bench.zoo import table
from anchorlwf.bench.zoo.architectures import ARCHITECTURES
from anchorlwf.bench.zoo.trial import Trial
from anchorlwf.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "models.md"


def dies(_name, _pipe):
    os._exit(3)


def hangs(_name, _pipe):
    while True:
        time.sleep(1)


def test_a_crash_and_a_timeout_are_rows(monkeypatch):
    monkeypatch.setattr(table, "_serve", dies)
    assert [row.reason for row in table.rows(["Llama"])] == ["the process died"]
    monkeypatch.setattr(table, "_serve", hangs)
    seen = []
    found = list(table.rows(["Llama"], timeout=0.5, on_row=seen.append))
    assert [row.reason for row in found] == ["no result within 0 s"]
    assert found == seen
    assert not found[0].works


def test_what_this_transformers_does_not_have_is_listed_as_such(monkeypatch):
    strange = replace(ARCHITECTURES["Llama"], name="Strange", model_type="no-such-model")
    monkeypatch.setattr(table, "ARCHITECTURES", {"Strange": strange})
    [row] = table.rows(["Strange"])
    assert row.reason.endswith(" does not have it")
    with pytest.raises(ConfigError, match=r"architectures: expected names of the list, got Llama"):
        list(table.rows(["Llama"]))


def test_a_trial_works_if_it_is_recalled_and_reloads():
    llama = ARCHITECTURES["Llama"]
    trial = Trial("MLP inputs", rewinds=True, steps=9, gap=0.0, recalled=True)
    assert table._reason(trial) == ""
    assert "other logits" in table._reason(replace(trial, gap=1e-3))
    assert table._reason(replace(trial, recalled=False)) == "not learned in 9 steps"
    assert table.Row(llama, trial).cells() == ["Llama (`llama`)", "yes", "MLP inputs", "rewinds", ""]


def test_the_table_goes_between_its_marks():
    page = f"before\n{table._MARKS[0]}\nold\n{table._MARKS[1]}\nafter\n"
    new = table.written(page, [table.Row(ARCHITECTURES["Llama"], None, "refused: a|b")])
    assert new.startswith("before\n")
    assert new.endswith("\nafter\n")
    assert "0 of 1 architectures work" in new
    assert "| Llama (`llama`) | no |  |  | refused: a/b |" in new
    assert "old" not in new
    with pytest.raises(ConfigError, match="the page: expected"):
        table.written("no marks", [])


def test_the_published_table_is_of_these_architectures():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "(`" in line]
    named = [f"{a.name} (`{a.model_type}`)" for a in ARCHITECTURES.values()]
    assert [line.split(" | ")[0].removeprefix("| ") for line in rows] == named
    assert sum(" | yes | " in line for line in rows) >= 60
