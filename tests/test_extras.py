"""What is optional is asked for before any work, by every command that needs it."""

import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest
from commands import refused, run
from packaging.requirements import Requirement

from anchorlwf.errors import ConfigError
from anchorlwf.extras import EXTRAS, require_extra, require_reporters
from anchorlwf.model import language_model

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]


@pytest.fixture
def without(monkeypatch):
    """Let these modules be missing; and let nothing be loaded, for what is missing must be told before."""
    found = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else found(name, *rest)
        )

    def loaded(*_args, **_options):
        raise AssertionError("a model was loaded before the missing extra was told")

    real = language_model.load_model
    monkeypatch.setattr("anchorlwf.model.language_model.load_model", loaded)
    monkeypatch.setattr("anchorlwf.annotator.open.load_model", loaded)
    monkeypatch.setattr("anchorlwf.arena.study.load_model", loaded)
    yield hide
    monkeypatch.undo()
    # What was imported for the first time meanwhile would load nothing for the tests after this one.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "anchorlwf" and vars(module).get("load_model") is loaded:
            module.load_model = real


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("uvicorn", "web", ["annotate", "p.jsonl", "--out", "r.jsonl", "--annotator", "web"]),
        ("fastapi", "web", ["annotate", "p.jsonl", "--out", "r.jsonl", "--web"]),
        (
            "psycopg",
            "postgres",
            ["annotate", "p.jsonl", "-o", "r", "--annotator", "terminal", "--store", "postgresql:///x"],
        ),
        ("matplotlib", "arena", ["arena", "--quick", "--out", "study"]),
        ("trl", "rl", ["arena", "--plan", "study", "--out", "study"]),
        ("trl", "rl", ["bench", "step"]),
        ("trl", "rl", ["bench", "loss"]),
        ("lm_eval", "harness", ["evaluate", "--tasks", "mmlu"]),
    ],
)
def test_a_missing_extra_is_told_before_anything_begins(without, monkeypatch, tmp_path, module, extra, arguments):
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"prompt": "Who?", "answer": "I."}\n')
    without(module)
    message = rf"expected the packages of the extra `{extra}`, got no {module}\. Install it: pip install 'anchorlwf\["
    refused(run(*arguments), message)
    assert not Path("r.jsonl").exists()


def test_what_does_not_need_an_extra_does_not_ask_for_it(without):
    without("trl")
    require_extra("arena", "arena")
    # Competitors that are ours need no TRL; the benchmark itself is run elsewhere.
    refused(run("bench", "loss", "--only", "ours", "--set", "tokens=none"), "tokens")


def test_a_reporter_that_is_not_installed_is_told_before_anything_begins(without, tmp_path):
    without("wandb", "trackio")
    options = ["train", tmp_path / "r.jsonl", "--out", tmp_path / "run", "--report-to", "wandb,trackio"]
    refused(
        run(*options), r"report_to: expected installed packages, got no wandb, trackio\. Install it: pip install wandb"
    )
    with pytest.raises(ConfigError):
        require_reporters(["wandb"])


def test_the_extras_are_those_of_the_package():
    named = {name: {Requirement(text).name for text in texts} for name, texts in OPTIONAL.items()}
    packages = importlib.metadata.packages_distributions()
    for extra, modules in EXTRAS.items():
        # Distributions are spelt with either mark.
        distributions = {packages[module][0].lower().replace("_", "-") for module in modules}
        assert {name.lower().replace("_", "-") for name in named[extra]} == distributions, extra
    [everything] = [Requirement(text) for text in OPTIONAL["all"]]
    assert everything.extras == set(EXTRAS)


def test_every_extra_that_is_named_anywhere_exists():
    root = Path(__file__).parents[1]
    sources = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("src/**/*.py"), root / "Makefile"]
    named = {name for path in sources for name in re.findall(r"anchorlwf\[([\w,]+)\]", path.read_text())}
    assert named
    assert {part for name in named for part in name.split(",")} <= set(OPTIONAL)
