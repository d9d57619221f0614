import json
import platform

import pytest
from commands import run, well

from anchorlwf import installation
from anchorlwf.installation import examine


def test_the_installation_is_compared_with_what_was_tested():
    tested = installation.tested_versions()
    found = examine()
    assert found["python"] == platform.python_version()
    listed = {package["name"]: package for package in found["packages"]}
    assert {"torch", "transformers", "peft"} <= set(listed)
    assert listed["transformers"]["tested"] == tested["transformers"]
    assert all(package["installed"] for package in listed.values())
    assert {extra["name"] for extra in found["extras"]} == {"web", "arena", "harness", "rl", "postgres"}
    assert found["folders"]["cache"]["free_gib"] > 0


def test_doctor_prints_what_it_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = well("doctor")
    assert "device cpu: " in done.out
    assert f"working folder: {tmp_path}" in done.out
    assert done.out.endswith("Nothing is missing that the commands need.\n")
    data = json.loads(well("doctor", "--json").out)
    assert data["faults"] == []
    assert data["devices"]["default"] in {one["device"].split(":")[0] for one in data["devices"]["found"]}


@pytest.mark.parametrize(("version", "got"), [("2.1.0", "2.1.0"), (None, "none")])
def test_what_is_too_old_or_missing_makes_the_exit_code(monkeypatch, version, got):
    have = installation.installed_version
    monkeypatch.setattr(installation, "installed_version", lambda name: version if name == "torch" else have(name))
    done = run("doctor")
    assert done.code == 1
    assert f"torch: expected >=2.6, got {got}. pip install 'torch>=2.6'" in done.out


def test_a_torch_that_cannot_be_imported_is_a_fault(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    done = run("doctor", "--json")
    assert done.code == 1
    assert any(fault.startswith("torch cannot be imported: ") for fault in json.loads(done.out)["faults"])
