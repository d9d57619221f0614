"""The whole loop as a stranger does it: from the built wheel, in an environment of its own, without the repository.

What the wheel needs is taken from the environment that runs the tests; `make stranger` installs it anew, too.
"""

import os
import tomllib
import zipfile

import pytest
from environments import ROOT, Environment, build_wheel, lower_bounds, walk


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_whole(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"anchorlwf/constraints.txt", "anchorlwf/world/base/model.safetensors"} <= names
    assert any(name.startswith("anchorlwf/annotator/web/static/") for name in names)
    sources = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert sources <= names


def test_the_whole_loop_from_the_wheel_takes_under_five_minutes(wheel, tmp_path):
    environment = Environment(tmp_path, over_running=True)
    environment.install("--no-deps", str(wheel))
    seconds = walk(environment)
    assert set(seconds) == {"ask", "annotate", "quickstart", "card", "load with plain PEFT"}
    # On a machine that does nothing else; several workers and other people share this one.
    if os.environ.get("CI") == "true":
        assert sum(seconds.values()) < 300


def test_every_dependency_has_one_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(lower_bounds()) >= len(project["dependencies"])
