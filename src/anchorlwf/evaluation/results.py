"""From scored answers to results.json and a table that can be read at a glance."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Column, Table
from rich.text import Text

from anchorlwf.config import EvaluateConfig
from anchorlwf.errors import RecordError, wrong
from anchorlwf.evaluation.lm_eval import TaskChange
from anchorlwf.evaluation.measure import Drift, ProbeResult
from anchorlwf.evaluation.stats import bootstrap_interval
from anchorlwf.files import file_sha, write_atomic

__all__ = ["LEARNED_KINDS", "DataStamp", "Group", "Origin", "Results", "fractions", "results_of"]

_NAMES = {
    "recall": "recall",
    "paraphrase": "paraphrase",
    "reverse": "reverse",
    "near": "near",
    "retain": "kept",
    "skill": "skills",
}
"""Kind of probe -> the name of its fraction in results."""
LEARNED_KINDS = ("recall", "paraphrase", "reverse")
"""Judged by the tuned answers; the other kinds by what the base had right."""


class DataStamp(BaseModel):
    """Which probes or records."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None
    """None: given in memory; the hash is then that of the file `save_lines` would write."""
    sha256: str

    @classmethod
    def of_rows(cls, rows: Iterable[BaseModel]) -> "DataStamp":
        """The stamp of what is in memory."""
        digest = hashlib.sha256()
        for row in rows:
            digest.update(f"{row.model_dump_json()}\n".encode())
        return cls(path=None, sha256=digest.hexdigest())

    @classmethod
    def of_file(cls, path: str | Path) -> "DataStamp":
        """The stamp of a file. Raises `RecordError` where it cannot be read."""
        # A name that is no UTF-8 is a string that no file could hold.
        name = os.fsencode(path).decode(errors="replace")
        try:
            return cls(path=name, sha256=file_sha(path))
        except OSError as error:
            raise RecordError(wrong(name, "a file", error.strerror or error, "Check the path.")) from error


@dataclass(frozen=True)
class Origin:
    """What an evaluation was of, for whoever certifies it."""

    models: tuple[str | None, ...]
    """Name, revision and adapter of the tuned model; name and revision of the base, where one was given."""
    probes: DataStamp | None
    """Taken when they were read; None: records or tasks alone were asked."""
    records: DataStamp | None
    config: EvaluateConfig


@dataclass(frozen=True)
class Group:
    """One kind of probe, summed up. Learning is judged by the tuned answers; keeping by what the base had right."""

    probes: int
    base_right: int
    tuned_right: int
    kept: int
    """Right before and after."""
    value: float | None
    """Learned kinds: tuned_right / probes. Kept kinds: kept / base_right. None: nothing to judge."""
    interval: tuple[float, float] | None
    flips: list[dict[str, str]]
    """Right before, wrong now: question, expected, before, after."""


@dataclass(frozen=True)
class Results:
    """Everything an evaluation measured; `as_dict` is results.json."""

    groups: dict[str, Group]
    kl: float
    """Mean KL(reference || model) per token on held-out reference continuations, nats."""
    kl_interval: tuple[float, float]
    kl_tokens: int
    missed: list[dict[str, str]]
    """Learned kinds that are still wrong."""
    answers: list[ProbeResult]
    """Every probe with both answers; not part of results.json."""
    facts: dict[str, Any]
    """Counts and costs passed in by the caller (annotated_tokens, completion_tokens, seconds ...)."""
    drift: Drift
    """What `kl` is the mean of; not part of results.json."""
    tasks: dict[str, TaskChange] = field(default_factory=dict)
    """lm-evaluation-harness before and after, by task; in results.json where any was run."""
    origin: Origin | None = None
    """None: put together by hand; such results cannot be certified. Not part of results.json."""
    compared: bool = True
    """False: base and tuned model were the same weights, so nothing can be said of what was kept."""

    def as_dict(self) -> dict[str, Any]:
        """Fractions at the top under their names, then `kl`, costs, and the details."""
        top = {name: group.value for name, group in self.groups.items()}
        details = {name: asdict(group) for name, group in self.groups.items()}
        return _plain(
            {
                **top,
                "kl": self.kl,
                **self.facts,
                "kl_interval": self.kl_interval,
                "kl_tokens": self.kl_tokens,
                "missed": self.missed,
                "details": details,
                **({"tasks": {name: asdict(task) for name, task in self.tasks.items()}} if self.tasks else {}),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write results.json, atomically. Raises `StorageError`; the old file then still stands."""
        write_atomic(path, json.dumps(self.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def table(self) -> Table:
        """A rich table: one row per kind, then the drift."""
        names = ("measure", "value", "interval", "before", "after", "flips")
        table = Table(*(Column(name, no_wrap=True) for name in names))
        for name, group in self.groups.items():
            table.add_row(
                name,
                "-" if group.value is None else f"{group.value:.1%}",
                "-" if group.interval is None else f"{group.interval[0]:.1%} - {group.interval[1]:.1%}",
                f"{group.base_right} of {group.probes}",
                f"{group.tuned_right} of {group.probes}",
                str(len(group.flips)),
            )
        if not self.kl_tokens:
            return table
        low, high = self.kl_interval
        interval = "-" if math.isnan(low) else f"{low:.1e} - {high:.1e}"
        table.add_row("kl (nats)", f"{self.kl:.1e}", interval, "", f"{self.kl_tokens} tokens", "")
        return table

    def task_table(self) -> Table:
        """A rich table of the harness: one row per task and metric."""
        names = ("base", "tuned", "change", "interval", "flips")
        table = Table(Column("task", overflow="fold"), *(Column(name, no_wrap=True) for name in names))
        for name, task in self.tasks.items():
            for metric, change in task.metrics.items():
                table.add_row(
                    Text(f"{name} {metric}"),
                    f"{change.base:.4f}",
                    f"{change.tuned:.4f}",
                    f"{change.tuned - change.base:+.4f}",
                    "-" if change.interval is None else f"{change.interval[0]:+.4f} - {change.interval[1]:+.4f}",
                    "-" if change.right_to_wrong is None else str(len(change.right_to_wrong)),
                )
        return table


def _plain(value: Any) -> Any:
    """JSON has no NaN: null in its place. UTF-8 has no half characters (lone surrogates): a question mark."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(result: ProbeResult) -> dict[str, str]:
    return {"id": result.probe.id, **result.texts}


def _rights(kind: str, results: Iterable[ProbeResult]) -> list[float]:
    """1.0 right or 0.0 wrong, of each result by which a kind is judged."""
    return [float(result.tuned_right) for result in results if kind in LEARNED_KINDS or result.base_right]


def fractions(results: Sequence[ProbeResult]) -> dict[str, float | None]:
    """Every measure's share of right answers, by its name; None where there is nothing to judge."""
    measured: dict[str, float | None] = {}
    for kind, name in _NAMES.items():
        rights = _rights(kind, (result for result in results if result.probe.kind == kind))
        measured[name] = sum(rights) / len(rights) if rights else None
    return measured


def _group(kind: str, results: Sequence[ProbeResult], config: EvaluateConfig) -> Group:
    right = _rights(kind, results)
    return Group(
        probes=len(results),
        base_right=sum(r.base_right for r in results),
        tuned_right=sum(r.tuned_right for r in results),
        kept=sum(r.base_right and r.tuned_right for r in results),
        value=sum(right) / len(right) if right else None,
        interval=bootstrap_interval(right, level=config.confidence_level, resamples=config.resamples, seed=config.seed)
        if right
        else None,
        flips=[_line(result) for result in results if result.base_right and not result.tuned_right],
    )


def results_of(
    results: Iterable[ProbeResult],
    drift: Drift,
    config: EvaluateConfig,
    facts: dict[str, Any],
    tasks: dict[str, TaskChange] | None = None,
    origin: Origin | None = None,
) -> Results:
    """Group results by kind. KL intervals resample whole continuations, for tokens of one turn hang together."""
    by_kind: dict[str, list[ProbeResult]] = {}
    listed = list(results)
    for result in listed:
        by_kind.setdefault(result.probe.kind, []).append(result)
    groups = {name: _group(kind, by_kind[kind], config) for kind, name in _NAMES.items() if kind in by_kind}
    turns = [turn for turn in drift.per_turn if turn]
    means, sizes = [sum(turn) / len(turn) for turn in turns], [float(len(turn)) for turn in turns]
    drawn: dict[str, Any] = {"level": config.confidence_level, "resamples": config.resamples, "seed": config.seed}
    interval = bootstrap_interval(means, weights=sizes, **drawn)
    missed = [_line(r) for kind in LEARNED_KINDS for r in by_kind.get(kind, []) if not r.tuned_right]
    return Results(groups, drift.mean, interval, len(drift.tokens), missed, listed, facts, drift, tasks or {}, origin)
