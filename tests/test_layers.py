"""Imports go down only, stages never import one another, and what is heavy or optional is imported late.

The layers are those of CONTRIBUTING.md. A new module must be given a place here before anything passes.
"""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import anchorlwf

ROOT = Path(anchorlwf.__file__).parent

VALUES = {"errors", "extras", "files", "config", "installation", "run", "data", "readable"}
TENSORS = {"model", "loss", "decoding", "divergence"}
STAGES = {"annotation", "retention", "training", "evaluation", "world"}
# Each puts several stages to work, which is why no stage need know another.
COMPOSITIONS = {
    "workflow": "fix, chat and demo: annotate, train and evaluate in one go",
    "annotator": "the application for people: a page and a terminal over one store",
    "bench": "measuring functions: how fast, how much memory, against what",
    "arena": "the paper's experiments: methods x seeds over all stages, on one world",
}
# `""` is the package itself: the public names, loaded when first used.
EDGES = {"cli", "__main__", ""}
LAYERS = [VALUES, TENSORS, STAGES, set(COMPOSITIONS), EDGES]
SAME_NAME = {"__init__", "stage"}
"""Modules that may bear one name in several rooms; commands are named as what they run."""

LAZY = {"trl", "lm_eval", "openai", "vllm", "matplotlib", "jinja2", "markupsafe"}
"""Optional, slow or talkative at import."""
VALUE_LIBRARIES = {"pydantic", "numpy", "httpx", "yaml", "regex", "platformdirs", "packaging"}
"""All that the bottom layer may use besides the standard library."""


@dataclass(frozen=True)
class Import:
    """One imported module, seen from the module that imports it."""

    source: str
    target: str
    line: int
    top: bool
    """Executed when `source` is imported."""

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


def unit(module: str) -> str:
    """`loss` for anchorlwf.loss.chunked, the empty string for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(module: str) -> int:
    return next(level for level, units in enumerate(LAYERS) if unit(module) in units)


def ours(module: str) -> bool:
    return module.split(".")[0] == "anchorlwf"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(["anchorlwf", *(part for part in parts if part != "__init__")])
        found[name] = path
    return found


def nodes(tree: ast.AST, top: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, top
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only
        yield from nodes(node, top and not inside)


def imports_of(name: str, path: Path) -> Iterator[Import]:
    for node, top in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, top)
        else:
            assert isinstance(node, ast.ImportFrom)
            assert not node.level, f"{name}:{node.lineno}: imports are absolute here"
            assert node.module
            for alias in node.names:
                # `from anchorlwf.loss import chunked` imports a module, `from anchorlwf.loss import anchor_loss` none.
                inner = f"{node.module}.{alias.name}"
                yield Import(name, inner if inner in modules() else node.module, node.lineno, top)


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in modules().items() for found in imports_of(name, path))


def broken(rule: list[Import]) -> str:
    return "\n".join(map(str, rule))


def test_every_module_has_a_layer():
    assert {unit(name) for name in modules()} <= set().union(*LAYERS)
    # The parser sees what is there; were it blind, every test below would pass.
    assert len(modules()) > 20
    assert Import("anchorlwf.data.jsonl", "anchorlwf.files", 0, True) in {
        Import(one.source, one.target, 0, one.top) for one in imports()
    }


def test_imports_go_down_only():
    inner = [one for one in imports() if ours(one.target) and unit(one.source) != ""]
    assert not broken([one for one in inner if layer(one.target) > layer(one.source)])


def test_stages_and_compositions_do_not_import_one_another():
    separate = STAGES | set(COMPOSITIONS)
    inner = [one for one in imports() if ours(one.target)]
    assert not broken(
        [
            one
            for one in inner
            if unit(one.source) in separate
            and unit(one.target) in separate
            and unit(one.source) != unit(one.target)
            and not (unit(one.source) in COMPOSITIONS and unit(one.target) in STAGES)
        ]
    )


def test_nothing_imports_by_way_of_the_package():
    # Its names are for users; inside, each comes from its own module, or imports would go round.
    inner = [one for one in imports() if unit(one.source) not in EDGES]
    assert not broken([one for one in inner if one.target == "anchorlwf"])


def test_no_module_needs_itself_to_be_imported():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for one in imports():
        if one.top and ours(one.target) and one.target != one.source:
            graph[one.source].add(one.target)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def room(module: str) -> str:
    """The folder a module stands in: `annotator.store` for anchorlwf.annotator.store.queue."""
    path = modules()[module]
    return ".".join(path.relative_to(ROOT).parent.parts)


def rooms_needed(inside: str) -> dict[str, set[str]]:
    """Which rooms below a folder need which others of them, whenever their imports happen."""
    depth = len(inside.split(".")) if inside else 0
    graph: dict[str, set[str]] = {}
    for one in imports():
        if not ours(one.target) or one.target not in modules() or not room(one.source) or not room(one.target):
            continue
        source, target = (".".join(room(name).split(".")[: depth + 1]) for name in (one.source, one.target))
        if all(name.startswith(f"{inside}.") if inside else True for name in (source, target)) and source != target:
            graph.setdefault(source, set()).add(target)
    return graph


@pytest.mark.parametrize("inside", ["", "annotator"])
def test_rooms_do_not_need_one_another_in_circles(inside):
    graph = rooms_needed(inside)
    assert graph
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_the_command_that_serves_the_page_knows_it():
    # What the page speaks is its own: queue, sessions and terminal give typed values, and never JSON of the page's.
    page = "anchorlwf.annotator.web"
    outside = [one for one in imports() if one.target.startswith(page) and not one.source.startswith(page)]
    assert {one.source for one in outside} == {"anchorlwf.cli.annotate"}
    assert {one.target for one in outside} == {f"{page}.start"}


def test_the_root_holds_what_every_room_needs_and_nothing_else():
    loose = {path.stem for path in ROOT.glob("*.py")}
    values = {"errors", "extras", "files", "config", "installation", "readable", "run"}
    assert loose == {"__init__", "__main__", *values, "divergence"}


def test_no_room_is_crowded():
    folders = Counter(path.parent for path in modules().values())
    assert {folder.name: size for folder, size in folders.items() if size > 15 and folder.name != "cli"} == {}


def test_no_two_modules_bear_one_name():
    names = Counter(path.stem for path in modules().values() if path.parent.name != "cli")
    assert {name for name, count in names.items() if count > 1} <= SAME_NAME


def test_the_bottom_layer_knows_no_tensors():
    outside = [one for one in imports() if unit(one.source) in VALUES and not ours(one.target)]
    allowed = VALUE_LIBRARIES | sys.stdlib_module_names
    assert not broken([one for one in outside if one.target.split(".")[0] not in allowed])


def test_optional_libraries_are_imported_late():
    assert not broken([one for one in imports() if one.top and one.target.split(".")[0] in LAZY])


def test_commands_import_their_stages_late():
    # `anchorlwf --help` must not wait for torch.
    page = "anchorlwf.annotator.web"
    edges = [
        one
        for one in imports()
        if one.top
        and (unit(one.source) in EDGES or one.source.startswith(page))
        and one.source != f"{page}.payloads"
        and not one.target.startswith(page)
    ]
    heavy = {"torch", "transformers", "peft", "datasets"}
    assert not broken(
        [
            one
            for one in edges
            if one.target.split(".")[0] in heavy or (ours(one.target) and 0 < layer(one.target) < layer("anchorlwf"))
        ]
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import anchorlwf; dir(anchorlwf)",
        "import anchorlwf.cli",
        *(f"import anchorlwf.{name}" for name in sorted(VALUES)),
    ],
)
def test_importing_costs_no_torch(statement):
    code = f"import sys; {statement}; print(*{{'torch', 'transformers', 'peft', 'datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
