"""The error tree is what its drawing says."""

import inspect
import re
from pathlib import Path

import pytest

from anchorlwf import errors
from anchorlwf.data.jsonl import each_prompt, load_prompts
from anchorlwf.data.record import Prompt
from anchorlwf.errors import AnchorLwfError, StorageError, wrong

TREE, WARNING_TREE = (errors.__doc__ or "").split("    AnchorLwfWarning")
DRAWN = dict(re.findall(r"[├└]── (\w+)\s+\((\w+)\)", TREE))
DRAWN_WARNINGS = re.findall(r"[├└]── (\w+)", WARNING_TREE)
CLASSES = {
    name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__
}


def test_the_drawing_shows_every_class_with_its_parents():
    parents = {name: [parent.__name__ for parent in kind.__bases__] for name, kind in CLASSES.items()}
    assert parents.pop("AnchorLwfError") == ["Exception"]
    assert parents.pop("AnchorLwfWarning") == ["UserWarning"]
    assert {name: parents.pop(name) for name in DRAWN_WARNINGS} == {
        name: ["AnchorLwfWarning"] for name in DRAWN_WARNINGS
    }
    assert parents == {name: ["AnchorLwfError", builtin] for name, builtin in DRAWN.items()}


def test_everything_is_exported():
    functions = {"api_key", "redacted", "warn", "wrong"}
    assert set(errors.__all__) == {*CLASSES, *functions, "KEY_VARIABLE"}
    assert functions == {name for name, value in vars(errors).items() if inspect.isfunction(value) and name[0] != "_"}


def test_a_warning_points_at_the_callers_line_through_however_many_functions_of_ours(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('nothing\n{"prompt": "hello"}\n')
    with pytest.warns(errors.BadLineWarning) as told:
        errors.warn("here", errors.BadLineWarning)
        assert load_prompts(path, skip_bad=True) == [Prompt(prompt="hello")]
        for prompt in each_prompt(path, skip_bad=True):
            assert prompt == Prompt(prompt="hello")
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert [warning.filename for warning in told] == [__file__] * 3
    calls = ["errors.warn(", "load_prompts(", "each_prompt("]
    assert [call in lines[warning.lineno - 1] for call, warning in zip(calls, told, strict=True)] == [True] * 3


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_a_leaf_is_caught_as_ours_and_as_the_builtin(name):
    builtin = {"ValueError": ValueError, "RuntimeError": RuntimeError, "OSError": OSError}[DRAWN[name]]
    for caught in (AnchorLwfError, builtin):
        with pytest.raises(caught, match="what happened"):
            raise CLASSES[name]("what happened")


def test_a_storage_error_shows_its_message_and_nothing_else():
    # OSError prints its arguments in a form of its own once there are two of them.
    assert str(StorageError(wrong("file", "a writable place", "none", "Choose another."))) == (
        "file: expected a writable place, got none. Choose another."
    )
