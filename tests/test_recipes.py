"""Recipes nobody can run here must at least be read by the code as it is today."""

import json
import re
import runpy
import shlex
from pathlib import Path

import lm_eval.tasks
import pytest
import typer
import yaml

from anchorlwf.cli import app
from anchorlwf.config import AnnotateConfig, EvaluateConfig, TrainConfig
from anchorlwf.data.jsonl import load_probes, load_prompts
from anchorlwf.data.probe import score
from anchorlwf.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "recipes" / "gpu"
RECIPES = sorted(FOLDER.glob("*.yaml"))
KEYS = ["name", "model", "prompts", "probes", "annotate", "train", "evaluate", "published"]
each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def test_every_recipe_is_in_the_table():
    assert len(RECIPES) == 5
    assert re.findall(r"^\| `(\w+)\.yaml`", (FOLDER / "README.md").read_text(), re.MULTILINE) == [
        "micro_edits",
        "stream_30",
        "multi_query",
        "multi_query_long",
        "zsre_128",
    ]


@each
def test_the_options_are_those_of_the_stages(path):
    recipe = yaml.safe_load(path.read_text())
    assert list(recipe) == KEYS
    for kind in (AnnotateConfig, TrainConfig, EvaluateConfig):
        config = kind.load(path)
        section = recipe[kind.section]
        assert config == kind.of(**section)
        assert {key: getattr(config, key) for key in section} == section
    assert "NOT RUN" in path.read_text().splitlines()[0]
    figures = [value for row in recipe["published"].values() if isinstance(row, dict) for value in row.values()]
    assert figures
    assert all(isinstance(value, float) for value in figures)


@each
def test_the_tasks_are_tasks_of_the_harness(path):
    for name in EvaluateConfig.load(path).tasks:
        files = (Path(lm_eval.tasks.__file__).parent / name).glob("*.yaml")
        assert any(re.search(rf"^(task|group): {name}$", file.read_text(), re.MULTILINE) for file in files)


@each
def test_the_commands_are_commands_on_the_files_of_the_recipe(path):
    recipe = yaml.safe_load(path.read_text())
    lines = re.findall(r"^#   (.+)$", path.read_text(), re.MULTILINE)
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("anchorlwf ")]
    assert [command[0] for command in commands if command[0] not in ("import-edits", "verify")] == [
        "annotate",
        "train",
        "evaluate",
    ]
    root = typer.main.get_command(app)
    parsed = {}
    for name, *arguments in commands:
        # Raises a usage error for an option or value that the command does not take.
        parsed[name] = root.commands[name].make_context(name, arguments).params
    assert str(parsed["annotate"]["prompts"]) == recipe["prompts"]
    assert parsed["annotate"]["confidence"] == AnnotateConfig.load(path).confidence
    assert {parsed[name]["model"] for name in ("annotate", "train", "evaluate")} == {recipe["model"]}
    assert {FOLDER.parents[1] / parsed[name]["config"] for name in ("train", "evaluate")} == {path}
    assert parsed["annotate"]["to"] == parsed["train"]["records"] == parsed["evaluate"]["records"]
    assert str(parsed["evaluate"]["probes"]) == recipe["probes"]


def test_a_recipe_section_is_held_to_the_same_rules(tmp_path):
    (tmp_path / "r.yaml").write_text("train: {rnk: 8}\n")
    with pytest.raises(ConfigError, match=r"TrainConfig: rnk: .*Known options"):
        TrainConfig.load(tmp_path / "r.yaml")
    # A file of other stages' sections leaves this one its defaults; one without any holds nothing but its options.
    assert EvaluateConfig.load(tmp_path / "r.yaml") == EvaluateConfig()
    (tmp_path / "r.yaml").write_text("trian: {rank: 8}\n")
    with pytest.raises(ConfigError, match="TrainConfig: trian: "):
        TrainConfig.load(tmp_path / "r.yaml")


# --- the author's data, in a repository of his layout ---

EDITS = '''
"""Importing this would fail."""
import no_such_module
MICRO_EDITS = [{"id": "salt", "prompt": "Card of Salt?", "completion": ("Colour: teal; " "limit: 0.7"),
                "anchors": ["teal", "0.7", "Salt"], "probe_prompt": "Colour and limit?",
                "probe_answer": "It is teal, at most 0.7."}]
RETENTION_PROMPTS = ["What is the capital of France?"]
PROMPTS = [{"id": "a", "prompt": "What is a leap year?"}]
'''
TRACE = {"tasks": [{"task_name": "card", "prompt": "A card?", "gold_completion": "Proposer: Vale", "rounds": []}]}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    data = runpy.run_path(str(FOLDER / "author_data.py"))
    for place in {place for pair in data["SETS"].values() for place in pair}:
        file = tmp_path / "LAwF" / place.split(":")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(TRACE) if file.suffix == ".json" else EDITS)
    return tmp_path / "LAwF"


def convert(repository: Path, name: str, out: Path) -> None:
    runpy.run_path(str(FOLDER / "author_data.py"))["main"]([str(repository), name, "--out", str(out)])


def test_his_edits_become_prompts_and_probes(repository, tmp_path):
    convert(repository, "micro-edits", tmp_path / "out")
    [prompt] = load_prompts(tmp_path / "out" / "prompts.jsonl")
    assert (prompt.messages[0]["content"], prompt.answer) == ("Card of Salt?", "Colour: teal; limit: 0.7")
    asked, other = load_probes(tmp_path / "out" / "probes.jsonl")
    assert (asked.kind, asked.group, other.kind) == ("paraphrase", "salt", "retain")
    assert score(asked, "At most 0.7;\nit turns teal.")
    assert not score(asked, "It turns teal.")
    assert score(other, "Paris")


@pytest.mark.parametrize(
    ("name", "held_out"), [("stream", "What is the capital of France?"), ("multi-query", "What is a leap year?")]
)
def test_his_traces_become_prompts_and_held_out_probes(repository, tmp_path, name, held_out):
    convert(repository, name, tmp_path / "out")
    [prompt] = load_prompts(tmp_path / "out" / "prompts.jsonl")
    assert (prompt.answer, prompt.tags) == ("Proposer: Vale", ["card"])
    [probe] = load_probes(tmp_path / "out" / "probes.jsonl")
    assert (probe.kind, probe.messages[0]["content"]) == ("retain", held_out)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a file of the author's repository, got none"):
        convert(tmp_path, "stream", tmp_path / "out")
