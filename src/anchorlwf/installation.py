"""What is installed, against what is required and what was tested; and where files go."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anchorlwf.extras import EXTRAS, missing_packages
from anchorlwf.files import cache_folder
from anchorlwf.run import installed_version

__all__ = ["examine", "tested_versions"]


def tested_versions() -> dict[str, str]:
    """Version by canonical package name, as the tests pass with them; empty where the list was not installed."""
    package = Path(str(files("anchorlwf")))
    # A wheel brings it along; in a clone it lies at the top.
    lists = [path for path in (package / "constraints.txt", package.parents[1] / "constraints.txt") if path.is_file()]
    lines = lists[0].read_text(encoding="utf-8").splitlines() if lists else []
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): tested.strip() for name, _, tested in pairs}


def examine() -> dict[str, Any]:
    """The installation as plain values, ready for JSON.

    Returns:
        `version`, `python`, `platform`; `packages` (name, required, installed, tested); `extras` (name, missing, how to
        install it); `folders` (cache and working folder: path, free GiB, writable); and `faults`, what must be mended
        before the commands work, in words.
    """
    tested = tested_versions()
    needed, packages, faults = _needed(), [], []
    for need in needed:
        have = installed_version(need.name)
        required = str(need.specifier)
        packages.append(
            {
                "name": need.name,
                "required": required,
                "installed": have,
                "tested": tested.get(canonicalize_name(need.name)),
            }
        )
        if have is None or not need.specifier.contains(have, prereleases=True):
            faults.append(f"{need.name}: expected {required}, got {have or 'none'}. pip install '{need}'")
    extras = [
        {"name": name, "missing": missing_packages(name), "install": f"pip install 'anchorlwf[{name}]'"}
        for name in EXTRAS
    ]
    folders = {"cache": _folder(cache_folder()), "working": _folder(Path.cwd())}
    faults += [
        f"{name} folder {place['path']}: not writable" for name, place in folders.items() if not place["writable"]
    ]
    return {
        "version": installed_version("anchorlwf") or "not installed",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "extras": extras,
        "folders": folders,
        "faults": faults,
    }


def _needed() -> list[Requirement]:
    """What this package requires without extras; nothing is known of it where it runs from its sources."""
    try:
        listed = requires("anchorlwf") or ()
    except PackageNotFoundError:
        return []
    return [need for text in listed if not (need := Requirement(text)).marker]


def _folder(path: Path) -> dict[str, Any]:
    # One that is not there yet will be made in the nearest that is.
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    free = round(shutil.disk_usage(there).free / 2**30, 1)
    return {"path": str(path), "free_gib": free, "writable": os.access(there, os.W_OK)}
