"""Look at the installation: Python, packages, devices, extras, cache and disk, and say what is missing.

Package versions are compared with those that the tests pass with. Another one need not be a fault: the exit code is 1
only if something is missing, older than required, or not writable.

Examples:
  anchorlwf doctor
  anchorlwf doctor --json
"""

from typing import Any

import typer

from anchorlwf.cli.shared import AsJson, out, print_json


def doctor(as_json: AsJson = False) -> None:
    from anchorlwf.installation import examine

    found = {**examine(), "devices": _devices()}
    faults = [*found["faults"], *([found["devices"]["fault"]] if "fault" in found["devices"] else [])]
    if as_json:
        print_json({**found, "faults": faults})
    else:
        _print(found)
        out.print("\n".join(faults) or "Nothing is missing that the commands need.")
    raise typer.Exit(1 if faults else 0)


def _devices() -> dict[str, Any]:
    """What torch can compute on; importing it may be what fails."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that its wheel expects is not there
        return {"fault": f"torch cannot be imported: {error}", "found": []}
    found: list[dict[str, Any]] = [{"device": "cpu", "name": f"{torch.get_num_threads()} threads"}]
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        bfloat16 = torch.cuda.is_bf16_supported()
        memory = round(about.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{number}", "name": about.name, "gib": memory, "bfloat16": bfloat16})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return {"found": found, "default": "cuda" if torch.cuda.is_available() else "cpu"}


def _print(found: dict[str, Any]) -> None:
    out.print(f"anchorlwf {found['version']}, Python {found['python']}, {found['platform']}")
    for one in found["devices"]["found"]:
        chosen = " (chosen by default)" if one["device"] == found["devices"]["default"] else ""
        memory = f", {one['gib']} GiB" if "gib" in one else ""
        out.print(f"device {one['device']}: {one['name']}{memory}{chosen}")
    for one in found["packages"]:
        same = one["tested"] is None or one["tested"] == (one["installed"] or "").partition("+")[0]
        tested = "" if same else f" (tested: {one['tested']})"
        out.print(f"package {one['name']}: {one['installed'] or 'MISSING'}{tested}")
    for extra in found["extras"]:
        lacking = f"no {', '.join(extra['missing'])}: {extra['install']}"
        out.print(f"extra {extra['name']}: {'here' if not extra['missing'] else lacking}")
    for name, folder in found["folders"].items():
        state = "" if folder["writable"] else ", NOT writable"
        out.print(f"{name} folder: {folder['path']}, {folder['free_gib']} GiB free{state}")
