"""--device, --dtype and --config: which model a command loads, and that it says so."""

import json
import re

import pytest
import torch
import typer
from commands import refused, run, save_yaml, well

from anchorlwf.cli import app

LOADS = {"ask", "annotate", "verify", "retain", "train", "evaluate", "merge", "chat", "fix", "demo", "arena"}
"""Commands that load a model; those of `MODEL` only look at its files."""
MODEL = {"certificate", "export", "import-lawftrack"}


def test_every_command_that_loads_a_model_takes_the_same_options():
    commands = typer.main.get_command(app).commands
    options = {name: {option for one in command.params for option in one.opts} for name, command in commands.items()}
    assert {name for name, known in options.items() if {"--device", "--dtype"} <= known} == LOADS
    assert {name for name, known in options.items() if "--config" in known} == LOADS | MODEL
    assert {name for name, known in options.items() if "--model" in known} == (LOADS | MODEL) - {"demo"}


def test_what_was_chosen_is_said(tiny_path):
    ask = ["chat", "--model", tiny_path, "-p", "hello", "--max-new-tokens", "2", "--json"]
    plain = rf"model {tiny_path}: 0\.0 M parameters, "
    assert re.fullmatch(rf"{plain}float32 on cpu\n", well(*ask, "--device", "cpu").err)
    half = well(*ask, "--dtype", "bfloat16", "--device", "cpu").err
    assert re.fullmatch(rf"{plain}bfloat16 on cpu \(its files: float32; --dtype float32 loads it so\)\n", half)


def test_a_file_in_half_precision_is_not_widened_without_a_word(tiny_path, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_path).save_pretrained(tmp_path)
    done = well("ask", "hello", "--model", tmp_path, "--max-new-tokens", "2", "--device", "cpu")
    assert "float32 on cpu (its files: bfloat16; --dtype bfloat16 loads it so)" in done.err


def test_a_file_says_which_model_and_the_command_line_has_the_last_word(tiny_path, tmp_path):
    file = save_yaml(
        tmp_path / "project.yaml",
        model=str(tiny_path),
        dtype="bfloat16",
        annotate={"max_new_tokens": 2},
        train={"rank": 2},
    )
    done = well("ask", "hello", "--config", file, "--json")
    assert f"model {tiny_path}: 0.0 M parameters, bfloat16 on" in done.err
    assert len(json.loads(done.out)[0]["tokens"]) <= 2
    other = well("ask", "hello", "--config", file, "--dtype", "float32", "--max-new-tokens", 3, "--json")
    assert "float32 on" in other.err
    assert len(json.loads(other.out)[0]["tokens"]) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu9"], r"device 'tpu9': expected a device of torch"),
        (["--config", "x.yaml"], r"x\.yaml, dtype: expected text, got 16"),
        (["--config", "y.yaml"], r"AnnotateConfig: max_tokens: "),
        (["--config", "none.yaml"], r"none\.yaml: expected a YAML file"),
    ],
)
def test_what_cannot_be_loaded_so_is_refused(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_yaml(tmp_path / "x.yaml", dtype=16)
    save_yaml(tmp_path / "y.yaml", annotate={"max_tokens": 3})
    refused(run("ask", "hello", *arguments), message)


def test_training_runs_in_the_dtype_that_was_asked_for(tiny_path, corrected, tmp_path):
    options = ["--model", tiny_path, "--dtype", "bfloat16", "--max-steps", 1, "--retain", "none"]
    run("train", corrected, "--out", tmp_path / "run", *options)
    assert json.loads((tmp_path / "run" / "card.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((tmp_path / "run" / "adapter" / "anchorlwf.json").read_text())["base_dtype"] == "torch.bfloat16"


def test_the_version_and_completion_are_there(monkeypatch):
    from anchorlwf import __version__

    assert well("--version").out == f"anchorlwf {__version__}\n"
    monkeypatch.setenv("_ANCHORLWF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "anchorlwf eval")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.split() == ["evaluate"]
