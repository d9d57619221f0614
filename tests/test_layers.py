"""Imports go down only, stages never import one another, and what is heavy or optional is imported late.

The layers are those of CONTRIBUTING.md. A new module must be given a place here before anything passes.
"""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import anchorlwf

ROOT = Path(anchorlwf.__file__).parent

VALUES = {
    "redaction",
    "errors",
    "files",
    "lock",
    "record",
    "words",
    "probe",
    "lines",
    "jsonl",
    "record_file",
    "export",
    "edit_data",
    "config",
    "run",
    "cache_folder",
}
TENSORS = {
    "chat_template",
    "chat_template_worker",
    "generation",
    "text",
    "model_files",
    "loading",
    "fingerprint",
    "adapter",
    "model",
    "draft",
    "replay",
    "decode",
    "batch",
    "attention",
    "contents",
    "loss",
    "head",
    "divergence",
    "packing",
    "reference",
    "keep",
}
STAGES = {"annotation", "retention", "training", "evaluation", "ship", "world"}
# Each puts several stages to work, which is why no stage need know another.
COMPOSITIONS = {
    "workflow": "fix, chat and demo: annotate, train and evaluate in one go",
    "bench": "measuring functions: how fast, how much memory, against what",
    "arena": "the paper's experiments: methods x seeds over all stages, on one world",
}
# `""` is the package itself: the public names, loaded when first used.
EDGES = {"cli", "web", "__main__", ""}
LAYERS = [VALUES, TENSORS, STAGES, set(COMPOSITIONS), EDGES]

LAZY = {"trl", "lm_eval", "openai", "vllm", "matplotlib", "jinja2", "markupsafe"}
"""Optional, slow or talkative at import."""
VALUE_LIBRARIES = {"pydantic", "numpy", "httpx", "yaml", "regex", "platformdirs"}
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


def test_the_bottom_layer_knows_no_tensors():
    outside = [one for one in imports() if unit(one.source) in VALUES and not ours(one.target)]
    allowed = VALUE_LIBRARIES | sys.stdlib_module_names
    assert not broken([one for one in outside if one.target.split(".")[0] not in allowed])


def test_optional_libraries_are_imported_late():
    assert not broken([one for one in imports() if one.top and one.target.split(".")[0] in LAZY])


def test_commands_import_their_stages_late():
    # `anchorlwf --help` must not wait for torch.
    edges = [one for one in imports() if unit(one.source) in EDGES and one.top]
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
