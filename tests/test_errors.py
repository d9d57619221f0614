"""The error tree is what its drawing says."""

import inspect
import re

import pytest

from anchorlwf import errors
from anchorlwf.errors import AnchorLwfError, StorageError, wrong

DRAWN = dict(re.findall(r"[├└]── (\w+)\s+\((\w+)\)", errors.__doc__ or ""))
CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and not issubclass(kind, errors.ModelWarning)
}


def test_the_drawing_shows_every_class_with_its_parents():
    parents = {name: [parent.__name__ for parent in kind.__bases__] for name, kind in CLASSES.items()}
    assert parents.pop("AnchorLwfError") == ["Exception"]
    assert parents.pop("AnchorLwfWarning") == ["UserWarning"]
    assert parents == {name: ["AnchorLwfError", builtin] for name, builtin in DRAWN.items()}


def test_everything_is_exported():
    assert set(errors.__all__) == {*CLASSES, "ModelWarning", "wrong"}


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
