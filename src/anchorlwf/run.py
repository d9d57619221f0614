"""The run folder: what was run, where, with which versions, and every step's figures."""

import contextlib
import json
import platform
import random
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from anchorlwf.data.jsonl import row_of
from anchorlwf.files import append_line, clear_leftovers, ensure_writable, process_lock, write_atomic

__all__ = ["RunFolder", "environment", "held_folder", "installed_version", "seed_everything"]

_WRITTEN = ("adapter", "model", "config.yaml", "environment.json", "metrics.jsonl", "train.json", "card.json")
"""What only the holder of a run folder writes; records and results may be written by others at any time."""
_HELD: ContextVar[frozenset[Path]] = ContextVar("_HELD", default=frozenset())
"""Run folders that this thread holds."""
_PACKAGES = ("anchorlwf", "torch", "transformers", "peft", "accelerate", "tokenizers", "numpy", "trl", "lm_eval")


def installed_version(package: str) -> str | None:
    """Of an installed package; None where it is not, as this one when it runs from its sources."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Versions, platform and time: what a reader needs to run it again."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: installed_version(package) or "not installed" for package in _PACKAGES},
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

    def forget_rows_after(self, step: int) -> None:
        """Drop the rows of metrics.jsonl behind this step, and a torn one: a resumed run logs them again."""
        log = self.path / "metrics.jsonl"
        lines = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        write_atomic(log, b"".join(line for line in lines if _step_of(line) <= step))


def _step_of(line: bytes) -> float:
    row = row_of(line)
    return row.get("step", 0) if isinstance(row, dict) else float("inf")


@contextlib.contextmanager
def held_folder(path: str | Path) -> Iterator[RunFolder]:
    """A run folder that no other process writes to while the context lasts. What kills left half-written is removed.

    Who holds a folder already may ask for it again. Folders that were made for this and are still empty are removed.

    Raises:
        ConflictError: another process (or thread) holds it; it is named.
        StorageError: the folder cannot be written.
    """
    resolved = Path(path).resolve()
    if resolved in _HELD.get():
        yield RunFolder(path)
        return
    made = [folder for folder in (resolved, *resolved.parents) if not folder.exists()]
    try:
        folder = RunFolder(path)
        with process_lock(resolved / ".lock", f"run folder {path}"):
            clear_leftovers(resolved, *_WRITTEN)
            token = _HELD.set(_HELD.get() | {resolved})
            try:
                yield folder
            finally:
                _HELD.reset(token)
    finally:
        with contextlib.suppress(OSError):
            for empty in made:
                empty.rmdir()
