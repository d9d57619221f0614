"""Nothing grows past what can be read in one go."""

import ast
from collections.abc import Iterator
from pathlib import Path

import anchorlwf

ROOT = Path(anchorlwf.__file__).parent
MODULE, FUNCTION, COMMAND = 501, 60, 21
"""Fewer lines than this."""

# Kernels may be longer; the reason stands in the file.
KERNELS = {"loss/row_kernel.py"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[tuple[str, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name not in KERNELS:
            yield name, path.read_text(encoding="utf-8")


def functions(source: str) -> Iterator[Function]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))


def length(node: Function) -> int:
    """All of it: decorators, signature, docstring, body."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or first) - first + 1


def body_length(node: Function) -> int:
    """What it does, without its options: they are documentation, one line each."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_modules_are_short():
    sizes = {name: len(source.splitlines()) for name, source in sources()}
    assert len(sizes) > 20
    assert {name: size for name, size in sizes.items() if size >= MODULE} == {}


def test_functions_are_short():
    sizes = {f"{name}:{node.name}": length(node) for name, source in sources() for node in functions(source)}
    assert len(sizes) > 100
    assert {name: size for name, size in sizes.items() if size >= FUNCTION} == {}


def test_commands_parse_call_one_function_and_print():
    sizes = {
        f"{name}:{node.name}": body_length(node)
        for name, source in sources()
        if name.startswith("cli/")
        for node in functions(source)
        if not node.name.startswith("_")
    }
    assert len(sizes) > 5
    assert {name: size for name, size in sizes.items() if size >= COMMAND} == {}
