"""Checkpoints that training goes on from only if they are whole and belong to the run.

A checkpoint is a folder `checkpoint-<step>` as transformers writes it, and in it `checkpoint.json`: the run's key, and
the SHA-256 of every other file. It is filled aside and renamed into place, so that a kill leaves whole ones alone;
what the disk has spoilt since then is found by the hashes.
"""

import hashlib
import json
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from anchorlwf.config import TrainConfig
from anchorlwf.errors import AnchorLwfWarning, ConfigError, wrong
from anchorlwf.files import clear_leftovers, file_sha, storage_errors

__all__ = ["Checkpoints", "RunKey"]

_LIST = "checkpoint.json"
_KEPT = 2
"""So many whole ones stay: one to fall back to."""
_FORMAT = 1


@dataclass(frozen=True)
class RunKey:
    """What decides every step of a run. Checkpoints of another key are another run's."""

    records: str
    """SHA-256 over the records in their order: prompt and completion ids, anchors and confidences."""
    reference: str
    """SHA-256 of the reference's weights and configuration."""
    options: dict[str, Any]
    processes: int
    device: str
    """cpu or cuda: their rounding and their random numbers differ."""
    format: int = _FORMAT

    @classmethod
    def of(cls, records: str, reference: str, config: TrainConfig, processes: int, device: str) -> "RunKey":
        """The key of a run with these options; how often it is saved and where it is shown changes no step."""
        options = config.model_dump(mode="json", exclude={"save_steps", "report_to"})
        return cls(records, reference, options, processes, device)

    def differences(self, theirs: dict[str, Any]) -> list[str]:
        """What differs in another key, as stored, in words."""
        ours, told = asdict(self), []
        if ours["records"] != theirs.get("records"):
            told.append("other records, anchors or confidences")
        if ours["reference"] != theirs.get("reference"):
            told.append("another reference model (weights or configuration)")
        for name, value in ours["options"].items():
            before = theirs.get("options", {}).get(name)
            if value != before:
                told.append(f"{name} {value} (was {before})")
        told += [
            f"{name} {ours[name]} (was {theirs.get(name)})"
            for name in ("processes", "device", "format")
            if ours[name] != theirs.get(name)
        ]
        return told


class _Listed(NamedTuple):
    """What `checkpoint.json` holds."""

    key: dict[str, Any]
    files: dict[str, str]


class Checkpoints:
    """The checkpoints of one run. Only the main process asks for more than places.

    Args:
        folder: where they lie.
        key: of the run.
    """

    def __init__(self, folder: Path, key: RunKey) -> None:
        self.folder, self._key = folder, key

    def place(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.folder / f"checkpoint-{step}"

    @staticmethod
    def step_of(place: Path) -> int:
        """The step after which it was written."""
        return int(place.name.rpartition("-")[2])

    def clear(self) -> None:
        """Remove all of them: a fresh run never goes on from an earlier one."""
        for place in self._newest_first():
            _remove(place)
        clear_leftovers(self.folder, "checkpoint-*")

    def seal(self, written: Path, stage: Path) -> None:
        """Finish a checkpoint: move what Trainer wrote to `stage`, with the key and what every file is."""
        for file in written.iterdir():
            file.rename(stage / file.name)
        written.rmdir()
        listed = {"key": asdict(self._key), "files": {name: file_sha(stage / name) for name in _names(stage)}}
        (stage / _LIST).write_text(json.dumps({**listed, "sha256": _sha(listed)}, indent=2) + "\n", encoding="utf-8")

    def drop_old(self) -> None:
        """Keep the newest ones."""
        for place in self._newest_first()[_KEPT:]:
            _remove(place)

    def newest(self) -> Path:
        """The newest whole checkpoint. Newer ones that are damaged are told of (`AnchorLwfWarning`) and removed.

        Raises:
            ConfigError: there is none; or it belongs to another run, and what differs.
        """
        clear_leftovers(self.folder, "checkpoint-*")
        damaged: dict[Path, str] = {}
        for place in self._newest_first():
            listed = _examined(place)
            if isinstance(listed, str):
                damaged[place] = listed
                continue
            differences = self._key.differences(listed.key)
            if differences:
                fix = "Resume with those, or start anew, without resuming."
                expected = "the records, model and options it was started with"
                raise ConfigError(wrong(f"resume {self.folder.parent}", expected, "; ".join(differences), fix))
            for newer in damaged:
                _remove(newer)
            if damaged:
                told = "; ".join(f"{newer}: {flaw}" for newer, flaw in damaged.items())
                warnings.warn(f"{told}. Going on from {place.name} instead.", AnchorLwfWarning, stacklevel=2)
            return place
        got = "; ".join(f"{place.name}: {flaw}" for place, flaw in damaged.items()) or "none"
        fix = "Start anew, without resuming."
        raise ConfigError(wrong(f"resume {self.folder.parent}", "a checkpoint in checkpoints/", got, fix))

    def _newest_first(self) -> list[Path]:
        steps = {
            int(named[1]): place
            for place in (self.folder.iterdir() if self.folder.is_dir() else ())
            if (named := re.fullmatch(r"checkpoint-(\d+)", place.name)) and place.is_dir()
        }
        return [steps[step] for step in sorted(steps, reverse=True)]


def _remove(place: Path) -> None:
    with storage_errors(place):
        shutil.rmtree(place)


def _names(place: Path) -> list[str]:
    """Every file of a checkpoint but the list, by its path within."""
    return sorted(
        path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file() and path.name != _LIST
    )


def _sha(listed: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _examined(place: Path) -> _Listed | str:
    """What the list of a whole checkpoint says; or what is wrong with the checkpoint."""
    try:
        told = json.loads((place / _LIST).read_text(encoding="utf-8"))
        sha = told.pop("sha256")
        listed = _Listed(**told)
    except FileNotFoundError:
        return f"{_LIST} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{_LIST} is damaged"
    if sha != _sha(told):
        return f"{_LIST} is damaged"
    names = set(_names(place))
    flaws = [f"{name} is missing" for name in listed.files if name not in names]
    flaws += [f"{name} does not belong to it" for name in sorted(names - listed.files.keys())]
    flaws = flaws or [f"{name} is damaged" for name, sha in listed.files.items() if not _is(place / name, sha)]
    return "; ".join(flaws) if flaws else listed


def _is(file: Path, sha: str) -> bool:
    try:
        return file_sha(file) == sha
    except OSError:
        return False
