import inspect
import subprocess
import sys
import typing

import pytest

import anchorlwf
from anchorlwf.loss import anchor_loss

NAMES = [
    "Anchor",
    "ModelStamp",
    "Probe",
    "Record",
    "anchor_loss",
    "annotate",
    "evaluate",
    "load_model",
    "load_records",
    "save_records",
    "train",
]


def test_the_public_names_are_these_and_all_load():
    assert anchorlwf.__all__ == NAMES
    for name in NAMES:
        assert getattr(anchorlwf, name).__doc__, f"{name} has no docstring"
    assert set(NAMES) <= set(dir(anchorlwf))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'anotate'"):
        _ = anchorlwf.anotate


def test_importing_a_stage_first_does_not_hide_its_function():
    code = "import anchorlwf.training; from anchorlwf import train; print(train.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "train"


def test_the_signature_of_the_loss_is_frozen():
    parameters = inspect.signature(anchor_loss).parameters
    assert list(parameters) == [
        "hidden",
        "ref_hidden",
        "weight",
        "token_ids",
        "confidence",
        "bias",
        "ref_weight",
        "ref_bias",
        "direction",
        "logit_scale",
        "softcap",
        "impl",
    ]
    keyword_only = [name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY]
    assert keyword_only == list(parameters)[5:]
    assert parameters["direction"].default == "forward"
    assert parameters["impl"].default == "auto"


@pytest.mark.parametrize("name", [name for name in NAMES if name[0].islower()])
def test_public_functions_are_typed_and_say_what_they_raise(name):
    function = getattr(anchorlwf, name)
    hints = typing.get_type_hints(function)
    assert set(inspect.signature(function).parameters) | {"return"} == set(hints)
    assert "Raises" in function.__doc__
