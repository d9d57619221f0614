"""The release gate of one tuned model: thresholds held against what was measured, and a file that says on what.

The file carries a SHA-256 over its own content. That shows that it was not changed, not who wrote it: where this
matters, sign the file itself (sigstore, GPG).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anchorlwf.config import EvaluateConfig, GateConfig
from anchorlwf.errors import RecordError, wrong
from anchorlwf.evaluation.measure import Drift
from anchorlwf.evaluation.results import Results
from anchorlwf.evaluation.weights import Hashes, model_hashes
from anchorlwf.files import file_sha, write_atomic
from anchorlwf.model import LanguageModel
from anchorlwf.probe import Probe
from anchorlwf.record import ModelStamp, Record
from anchorlwf.run import environment

__all__ = ["Check", "DataStamp", "GateReport", "certify", "check_certificate", "hold"]

_FRACTIONS = ("recall", "paraphrase", "near", "kept", "skills")
_WORST = 5
_ROUNDING = 1e-9
"""In floating point 0.8 - 0.7 is more than 0.1."""
Data = str | Path | Iterable[Probe] | Iterable[Record]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One threshold and what was measured."""

    name: str
    """As in the gate's YAML; tasks as `tasks.name:metric`."""
    bound: Literal["at least", "at most"]
    threshold: float
    value: float | None
    """None: not measured, which never passes."""
    interval: tuple[float, float] | None
    """Of the value, by bootstrap; it informs, the value decides. None: a count, or nothing to resample."""
    passed: bool
    examples: list[str]
    """What counted against it: ids of probes (see `failing`), documents of a task, or the prompts that drifted most."""

    @property
    def holds(self) -> bool:
        """The verdict that threshold and value give, whatever `passed` says."""
        if self.value is None:
            return False
        above = self.value - self.threshold
        return above >= -_ROUNDING if self.bound == "at least" else above <= _ROUNDING

    def __str__(self) -> str:
        measured = "not measured" if self.value is None else f"{self.value:.4g}"
        spread = "" if self.interval is None else f" ({self.interval[0]:.4g} to {self.interval[1]:.4g})"
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {measured}{spread}, wanted {self.bound} {self.threshold:.4g}"


class DataStamp(_Frozen):
    """Which probes or records."""

    path: str | None
    """None: given in memory; the hash is then that of the file `save_lines` would write."""
    sha256: str


class GateReport(_Frozen):
    """A certificate: what was run, on which weights, and whether it may ship."""

    schema_version: Literal[1] = 1
    passed: bool
    checks: list[Check]
    failing: list[dict[str, str]]
    """Answers that counted against a check: id, question, expected, before, after."""
    model: ModelStamp
    """Name and revision, SHA-256 of tokenizer and chat template."""
    weights: Hashes
    """SHA-256 by part (base, tuned, adapter) and file."""
    loaded: dict[str, str]
    """How the weights were held: dtype and device."""
    probes: DataStamp
    records: DataStamp | None
    gate: dict[str, Any]
    evaluate: dict[str, Any]
    task_versions: dict[str, str]
    environment: dict[str, Any]
    sha256: str = ""
    """Over the canonical JSON of everything else."""

    def as_dict(self) -> dict[str, Any]:
        """What certificate.json holds."""
        return self.model_dump(mode="json")


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of canonical JSON (sorted keys, no white space, UTF-8), the field `sha256` left out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _check(
    name: str,
    bound: Literal["at least", "at most"],
    threshold: float,
    value: float | None,
    interval: tuple[float, float] | None = None,
    examples: Sequence[str] = (),
) -> Check:
    # A figure that is none (a perplexity that overflowed) was not measured, and JSON could not hold it.
    if value is not None and not math.isfinite(value):
        value, interval = None, None
    draft = Check(
        name=name,
        bound=bound,
        threshold=threshold,
        value=value,
        interval=interval,
        passed=False,
        examples=list(examples),
    )
    return draft.model_copy(update={"passed": draft.holds})


def hold(results: Results, gate: GateConfig) -> list[Check]:
    """Hold each threshold of the gate against the results. What was not measured fails."""
    checks = []
    for name in _FRACTIONS:
        threshold, group = getattr(gate, name), results.groups.get(name)
        if threshold is None:
            continue
        if group is None or group.value is None:
            checks.append(_check(name, "at least", threshold, None))
            continue
        learned = name in ("recall", "paraphrase")
        against = (
            [r.probe.id for r in results.answers if r.probe.kind == name and not r.tuned_right]
            if learned
            else [line["id"] for line in group.flips]
        )
        checks.append(_check(name, "at least", threshold, group.value, group.interval, against))
    if gate.flips is not None:
        asked = any(group.base_right for group in results.groups.values())
        flipped = [line["id"] for group in results.groups.values() for line in group.flips]
        checks.append(_check("flips", "at most", gate.flips, len(flipped) if asked else None, None, flipped))
    if gate.kl is not None:
        measured = results.kl_tokens > 0
        checks.append(
            _check(
                "kl",
                "at most",
                gate.kl,
                results.kl if measured else None,
                results.kl_interval if measured else None,
                _drifted(results.drift),
            )
        )
    return [*checks, *_task_checks(results, gate)]


def _task_checks(results: Results, gate: GateConfig) -> Iterator[Check]:
    for wanted, threshold in gate.tasks.items():
        name, _, only = wanted.partition(":")
        task = results.tasks.get(name)
        metrics = {} if task is None else {m: c for m, c in task.metrics.items() if only in ("", m)}
        if not metrics:
            yield _check(f"tasks.{wanted}", "at most", threshold, None)
        for metric, change in metrics.items():
            spread = change.interval
            if spread is not None and change.higher_is_better:
                spread = (0.0 - spread[1], 0.0 - spread[0])  # a drop of -0 would read oddly
            yield _check(
                f"tasks.{name}:{metric}", "at most", threshold, change.drop, spread, change.right_to_wrong or ()
            )


def _drifted(drift: Drift) -> list[str]:
    """The prompts whose continuations drifted most."""
    means = [(sum(turn) / len(turn), text) for turn, text in zip(drift.per_turn, drift.prompts, strict=True) if turn]
    return [text for _, text in sorted(means, key=lambda pair: -pair[0])[:_WORST]]


def _data_stamp(data: Data) -> DataStamp:
    if isinstance(data, str | Path):
        return DataStamp(path=str(data), sha256=file_sha(data))
    digest = hashlib.sha256()
    for row in data:
        digest.update(f"{row.model_dump_json()}\n".encode())
    return DataStamp(path=None, sha256=digest.hexdigest())


def certify(
    results: Results,
    gate: GateConfig,
    model: LanguageModel,
    *,
    probes: str | Path | Iterable[Probe],
    records: str | Path | Iterable[Record] | None = None,
    base: LanguageModel | None = None,
    config: EvaluateConfig | None = None,
    out: str | Path | None = None,
) -> GateReport:
    """Hold results against a gate and write down what they were measured on.

    Args:
        results: of `evaluate`, with the arguments that are given here again.
        gate: the thresholds.
        model, probes, records, base, config: as `evaluate` had them. The hashes are those of the files the model was
            loaded from.
        out: write the certificate there, atomically.

    Raises:
        ModelError: the weights' files cannot be found.
        StorageError: `out` cannot be written.
    """
    checks = hold(results, gate)
    counted = {name for check in checks for name in check.examples}
    flips = [line for group in results.groups.values() for line in group.flips]
    lines = {line["id"]: line for line in [*results.missed, *flips]}
    report = GateReport(
        passed=all(check.passed for check in checks),
        checks=checks,
        failing=[line for name, line in lines.items() if name in counted],
        model=model.stamp,
        weights=model_hashes(model, base),
        loaded={"dtype": str(model.causal.dtype).removeprefix("torch."), "device": model.device.type},
        probes=_data_stamp(probes),
        records=None if records is None else _data_stamp(records),
        gate=gate.model_dump(mode="json", exclude_defaults=True),
        evaluate=(config or EvaluateConfig()).model_dump(mode="json"),
        task_versions={name: task.version for name, task in results.tasks.items()},
        environment=environment(),
    )
    report = report.model_copy(update={"sha256": _digest(report.as_dict())})
    if out is not None:
        write_atomic(out, json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return report


def check_certificate(path: str | Path, weights: Hashes | None = None) -> tuple[GateReport, list[str]]:
    """Read a certificate and say what is wrong with it.

    Args:
        path: certificate.json.
        weights: hashes that it must speak of, from `model_hashes` or `named_hashes`; None: weights are not compared.

    Returns:
        The certificate, and what does not fit; an empty list where its content is as it was written, its verdict
        follows from its figures, it speaks of these weights, and the gate was passed.

    Raises:
        RecordError: no certificate.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        report = GateReport.model_validate(content)
    except (OSError, ValueError) as error:
        got = "other fields" if isinstance(error, ValidationError) else str(error)
        raise RecordError(wrong(str(path), "a certificate", got, "Give the file that evaluate wrote.")) from error
    problems = []
    if _digest(content) != report.sha256:
        problems.append(f"content: expected SHA-256 {report.sha256[:12]}, got {_digest(content)[:12]}: it was changed")
    for check in report.checks:
        if check.passed != check.holds:
            recorded, value = ("passed", "does not hold") if check.passed else ("failed", "holds")
            problems.append(f"{check.name}: recorded as {recorded}, but the value {value}")
    if weights is not None:
        problems += _other_weights(report.weights, weights)
    if not report.passed or not all(check.passed for check in report.checks):
        problems.append("the gate was not passed")
    return report, problems


def _other_weights(recorded: Hashes, found: Hashes) -> Iterator[str]:
    for part in sorted(recorded.keys() | found.keys()):
        ours, theirs = found.get(part, {}), recorded.get(part, {})
        for name in sorted(ours.keys() | theirs.keys()):
            expected, got = theirs.get(name, "none"), ours.get(name, "none")
            if expected != got:
                yield f"weights, {part}, {name}: expected {expected[:12]}, got {got[:12]}"
