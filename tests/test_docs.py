import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from anchorlwf.bench.suite import bench_table
from anchorlwf.cli import app
from anchorlwf.cli.manual import commands, options
from anchorlwf.config import AnnotateConfig, EvaluateConfig, RetainConfig, TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_cli_reference_is_generated_from_the_code():
    written = (ROOT / "docs" / "cli.md").read_text()
    assert written == commands(), "run: python -m anchorlwf.cli.manual commands > docs/cli.md"
    written = (ROOT / "docs" / "config.md").read_text()
    assert written == options(), "run: python -m anchorlwf.cli.manual options > docs/config.md"
    assert "None |" not in written, "every option says what it means"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train", TrainConfig),
        ("fix", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("retain", RetainConfig),
        ("annotate", AnnotateConfig),
    ],
)
def test_the_help_says_the_defaults_of_the_options(name, kind):
    told = 0
    for option in typer.main.get_command(app).commands[name].params:
        said = re.search(r"Default: ([\d.]+\d|\d)", getattr(option, "help", "") or "")
        field = kind.model_fields.get(option.name)
        if field is not None and isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert said is not None, f"{option.name} does not say its default"
            assert float(said[1]) == field.default, option.name
            told += 1
    assert told >= 1


def test_every_command_has_examples_and_they_parse():
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        examples = [line.strip() for line in command.help.splitlines() if line.strip().startswith("anchorlwf ")]
        assert examples, f"{name} shows no example"
        assert all(example.split()[1] == name for example in examples)
        shown = CliRunner().invoke(app, [name, "--help"], terminal_width=100).output
        for example in examples:
            assert example in shown, "an example must not be wrapped"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANCHORLWF_CACHE", str(tmp_path / "cache"))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    assert len(blocks) >= 3
    few = "retain(model, records, config=RetainConfig(general=4, near=4, answer_tokens=8))"
    first = "from anchorlwf.config import RetainConfig\n" + blocks[0]
    first = first.replace('"path/or/hub-name"', "None").replace("retain(model, records)", few)
    assert few in first
    for block in [first, *blocks[1:]]:
        exec(compile(block, "docs/python.md", "exec"), {})


def test_what_the_examples_import_is_there():
    pages = [*PAGES, *ROOT.glob("recipes/*/README.md")]
    blocks = {
        (page.name, block)
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    }
    assert len(blocks) >= 8
    for name, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchorlwf"):
                exec(compile(ast.Module([node], []), name, "exec"), {})


def test_the_tables_of_speed_are_what_was_measured():
    page = (ROOT / "docs" / "performance.md").read_text()
    measured = sorted((ROOT / "docs" / "results" / "speed").glob("*.json"))
    assert {"step", "growth", "memory"} <= {path.stem for path in measured}
    for path in measured:
        assert bench_table(json.loads(path.read_text())) in page, f"docs/performance.md differs from {path.name}"


def test_commands_named_in_the_docs_exist():
    root = typer.main.get_command(app)
    for page in PAGES:
        for name, rest in re.findall(r"^\s+anchorlwf ([\w-]+)([^\n#]*)", page.read_text(), re.MULTILINE):
            assert name in root.commands, f"{page.name}: anchorlwf {name}"
            known = {option for parameter in root.commands[name].params for option in parameter.opts}
            for option in re.findall(r"(--[\w-]+)", rest):
                assert option in known, f"{page.name}: anchorlwf {name} {option}"


def test_the_docs_build_as_a_site_without_a_broken_link(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages == {page for page in pages if (tmp_path / "site" / page / "index.html").exists()} | {"index"}


def test_the_architecture_names_every_module_and_no_other():
    source = ROOT / "src" / "anchorlwf"
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w./]+\.(?:py|js))`", page))
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py") if path.name != "__init__.py"}
    assert modules - named == set(), "each needs a line in docs/architecture.md"
    # What the page names lies in the source; of the rest of the project it names tests and recipes.
    assert {name for name in named if not any((folder / name).exists() for folder in (source, ROOT))} == set()
    rooms = {path.parent.relative_to(source).as_posix() for path in source.rglob("__init__.py")} - {"."}
    assert {room for room in rooms if f"`{room}/" not in page} == set(), "each room needs a heading or a line"
