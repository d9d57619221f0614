"""Run folders at a glance: what was learned, what drifted, what was certified; and how two of them differ."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anchorlwf.config import YAML_ERRORS
from anchorlwf.errors import RecordError, wrong

__all__ = ["RunSummary", "is_run", "run_differences", "runs_below", "summary_of"]

_MARK = "environment.json"
"""Every run folder has it."""


@dataclass(frozen=True)
class RunSummary:
    """One run; None wherever nothing was measured."""

    folder: str
    date: str | None
    """When training began, in UTC."""
    model: str | None
    converged: bool | None
    """None: training is not over, or was interrupted."""
    steps: int | None
    anchors_held: int | None
    anchors: int | None
    reproduced: int | None
    """Corrected answers that the tuned model gives, of `corrections`."""
    corrections: int | None
    drift: float | None
    """At the end of training, nats per token: on held-out answers if there are any, else at keep tokens."""
    recall: float | None
    """Of the evaluation, as are `kept` and `flips`."""
    kept: float | None
    flips: int | None
    certificate: bool | None
    """Passed or not; None: there is none in the run folder."""
    options: dict[str, Any]
    """Of training, as config.yaml has them."""


def is_run(folder: str | Path) -> bool:
    """Whether training wrote to this folder."""
    return (Path(folder) / _MARK).is_file()


def runs_below(folder: str | Path) -> list[RunSummary]:
    """The runs in a folder, at any depth, the oldest first.

    Raises:
        RecordError: no such folder, or none in it.
    """
    root = Path(folder)
    found = [summary_of(place.parent) for place in root.rglob(_MARK)]
    if not found:
        got = "none" if root.is_dir() else "no such folder"
        raise RecordError(wrong(str(folder), "a folder with runs", got, "Give the folder that runs are trained into."))
    return sorted(found, key=lambda run: (run.date or "", run.folder))


def summary_of(folder: str | Path) -> RunSummary:
    """What the files of a run folder say.

    Raises:
        RecordError: no run folder.
    """
    root = Path(folder)
    if not is_run(root):
        raise RecordError(wrong(str(folder), f"a run folder, with {_MARK}", "none", "Check the path."))
    train, results = _read(root / "train.json"), _read(root / "results.json")
    card, report = _read(root / "card.json"), train.get("report") or {}
    kept = (results.get("details") or {}).values()
    return RunSummary(
        folder=str(folder),
        date=_read(root / _MARK).get("date"),
        model=card.get("base"),
        converged=train.get("converged"),
        steps=train.get("steps"),
        anchors_held=report.get("anchors_held"),
        anchors=report.get("anchors"),
        reproduced=report.get("records_reproduced"),
        corrections=report.get("records"),
        drift=(report.get("held_out") or {}).get("all", {}).get("mean", report.get("keep_kl")),
        recall=results.get("recall"),
        kept=results.get("kept"),
        flips=sum(len(group["flips"]) for group in kept) if results else None,
        certificate=_read(root / "certificate.json").get("passed"),
        options=_options(root / "config.yaml"),
    )


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing or torn, for a glance must not fail on one run of many."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _options(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except YAML_ERRORS:
        return {}
    return content if isinstance(content, dict) else {}


def run_differences(first: RunSummary, second: RunSummary) -> dict[str, tuple[Any, Any]]:
    """The options that two runs do not share, each with both values; None: the run has no such option."""
    names = dict.fromkeys([*first.options, *second.options])
    pairs = {name: (first.options.get(name), second.options.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
