"""The run folder: what was run, where, with which versions, and every step's figures."""

import json
import platform
import random
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from anchorlwf.files import append_line, ensure_writable, write_atomic

__all__ = ["RunFolder", "environment", "seed_everything"]

_PACKAGES = ("anchorlwf", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "trl", "lm_eval")


def environment() -> dict[str, Any]:
    """Versions, platform and time: what a reader needs to run it again."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def seed_everything(seed: int) -> None:
    """Seed Python's and NumPy's global generators; torch's is seeded where torch is used."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries below us draw from the global generator


class RunFolder:
    """`runs/<name>/`: config.yaml, environment.json, metrics.jsonl and whatever the stage adds.

    Raises:
        StorageError: the folder cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        ensure_writable(self.path / "metrics.jsonl")

    def write_json(self, name: str, data: Any) -> Path:
        """Write a JSON file atomically and return its path."""
        target = self.path / name
        write_atomic(target, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return target

    def log(self, row: dict[str, Any]) -> None:
        """Append one row to metrics.jsonl, durably."""
        append_line(self.path / "metrics.jsonl", json.dumps(row, allow_nan=False))
