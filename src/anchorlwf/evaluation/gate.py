"""The release gate of a tuned model: thresholds, and a certificate that says what they were checked on.

The certificate carries a SHA-256 of its own content. This shows that it was not changed, but not who wrote it: where
that matters, sign the file itself (sigstore, GPG).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from anchorlwf.config import EvaluateConfig, GateConfig
from anchorlwf.data.jsonl import problem_of, row_of
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import ModelStamp, Record
from anchorlwf.errors import AnchorLwfError, ConfigError, ModelError, RecordError, wrong
from anchorlwf.evaluation.measure import Drift
from anchorlwf.evaluation.results import DataStamp, Origin, Results
from anchorlwf.evaluation.stage import models_of
from anchorlwf.evaluation.weights import Hashes, differences, model_hashes
from anchorlwf.files import write_atomic
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.run import environment

__all__ = ["Check", "GateReport", "certify", "check_certificate", "compared_data", "hold"]

_LEARNED = ("recall", "paraphrase")
_FRACTIONS = (*_LEARNED, "near", "kept", "skills")
_WORST = 5
_ROUNDING = 1e-9
"""In floating point 0.8 - 0.7 is more than 0.1."""
Data = str | Path | Iterable[Probe] | Iterable[Record]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """What failed the check: ids of probes (see `failing`), documents of a task, or prompts with the largest drift."""

    @property
    def holds(self) -> bool:
        """Whether the value meets the threshold, independently of `passed`."""
        if self.value is None:
            return False
        above = self.value - self.threshold
        return above >= -_ROUNDING if self.bound == "at least" else above <= _ROUNDING

    def __str__(self) -> str:
        measured = "not measured" if self.value is None else f"{self.value:.4g}"
        spread = "" if self.interval is None else f" ({self.interval[0]:.4g} to {self.interval[1]:.4g})"
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {measured}{spread}, wanted {self.bound} {self.threshold:.4g}"


class GateReport(_Frozen):
    """A certificate: what was run, on which weights, and whether it may ship."""

    schema_version: Literal[2] = 2
    """Certificates of version 1 named the weights alone, not all that decides an answer: certify again."""
    passed: bool
    checks: list[Check]
    failing: list[dict[str, str]]
    """Answers that counted against a check: id, question, expected, before, after."""
    model: ModelStamp
    """Name and revision, SHA-256 of tokenizer and chat template."""
    weights: Hashes
    """SHA-256 by part (base, tuned, adapter) and file: weights and index, configurations, tokenizer, template, code."""
    loaded: dict[str, str]
    """How the weights were held: dtype and device."""
    probes: DataStamp | None
    """None: records or tasks alone were asked."""
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
    if interval is not None and not all(map(math.isfinite, interval)):
        interval = None
    check = Check(
        name=name,
        bound=bound,
        threshold=threshold,
        value=value,
        interval=interval,
        passed=False,
        examples=list(examples),
    )
    return check.model_copy(update={"passed": check.holds})


def hold(results: Results, gate: GateConfig) -> list[Check]:
    """Hold each threshold of the gate against the results. What was not measured fails.

    Without a base that was another model, only what was learned is measured.
    """
    if not results.compared:
        learned = {name: group for name, group in results.groups.items() if name in _LEARNED}
        results = replace(results, groups=learned, kl_tokens=0, tasks={})
    checks = []
    for name in _FRACTIONS:
        threshold, group = getattr(gate, name), results.groups.get(name)
        if threshold is None:
            continue
        if group is None or group.value is None:
            checks.append(_check(name, "at least", threshold, None))
            continue
        against = (
            [r.probe.id for r in results.answers if r.probe.kind == name and not r.tuned_right]
            if name in _LEARNED
            else [line["id"] for line in group.flips]
        )
        checks.append(_check(name, "at least", threshold, group.value, group.interval, against))
    if gate.flips is not None:
        asked = results.compared and any(group.base_right for group in results.groups.values())
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
    """The prompts whose continuations have the largest drift."""
    means = [(sum(turn) / len(turn), text) for turn, text in zip(drift.per_turn, drift.prompts, strict=True) if turn]
    return [text for _, text in sorted(means, key=lambda pair: -pair[0])[:_WORST]]


def _data_stamp(data: Data | None) -> DataStamp | None:
    if data is None:
        return None
    return DataStamp.of_file(data) if isinstance(data, str | Path) else DataStamp.of_rows(data)


def _check_origin(
    results: Results, models: tuple[str | None, ...], given: dict[str, DataStamp | None], config: EvaluateConfig | None
) -> Origin:
    """The origin of the results. Raises if it is not what is to be certified."""
    origin = results.origin
    if origin is None:
        raise ConfigError(wrong("results", "what evaluate returned", "results put together by hand", "Evaluate first."))
    if origin.models != models:
        fix = "Give the models that were evaluated."
        raise ModelError(wrong("models", _named(origin.models), _named(models), fix))
    if config is not None and origin.config != config:
        raise ConfigError(
            wrong("config", "the options of the evaluation", "others", "Leave it out, or evaluate again.")
        )
    for name, measured in (("probes", origin.probes), ("records", origin.records)):
        now = given[name]
        expected, got = ("none" if stamp is None else stamp.sha256 for stamp in (measured, now))
        if expected != got:
            fix = "They are not the ones that were evaluated: evaluate again."
            raise RecordError(wrong(f"{name} to certify", expected[:12], got[:12], fix))
    return origin


def _named(models: tuple[str | None, ...]) -> str:
    return " ".join(name for name in models if name is not None)


def certify(
    results: Results,
    gate: GateConfig,
    model: LanguageModel,
    *,
    probes: str | Path | Iterable[Probe] | None = None,
    records: str | Path | Iterable[Record] | None = None,
    base: LanguageModel | None = None,
    config: EvaluateConfig | None = None,
    weights: Hashes | None = None,
    out: str | Path | None = None,
) -> GateReport:
    """Hold results against a gate and write down what they were measured on.

    Args:
        results: of `evaluate`, with the arguments that are given here again.
        gate: the thresholds.
        model, probes, records, base: as `evaluate` had them. The hashes are those of the files the model was loaded
            from.
        config: as `evaluate` had it; None: the same one.
        weights: hashes taken before the models were loaded (`named_hashes`). None: that no file was replaced or
            written to since is then taken from what the file system says (inode, size, times).
        out: write the certificate there, atomically.

    Raises:
        ModelError: files of the model cannot be found, were changed since they were loaded, or lie outside its folder.
        RecordError: probes or records are not the ones that were evaluated.
        ConfigError: results that are not of `evaluate`, or of other options.
        StorageError: `out` cannot be written.
    """
    data = {"probes": _data_stamp(probes), "records": _data_stamp(records)}
    origin = _check_origin(results, models_of(model, base), data, config)
    checks = hold(results, gate)
    counted = {name for check in checks for name in check.examples}
    flips = [line for group in results.groups.values() for line in group.flips]
    lines = {line["id"]: line for line in [*results.missed, *flips]}
    report = GateReport(
        passed=all(check.passed for check in checks),
        checks=checks,
        failing=[line for name, line in lines.items() if name in counted],
        model=model.stamp,
        weights=model_hashes(model, base, weights),
        loaded={"dtype": str(model.causal.dtype).removeprefix("torch."), "device": model.device.type},
        probes=origin.probes,
        records=origin.records,
        gate=gate.model_dump(mode="json", exclude_defaults=True),
        evaluate=origin.config.model_dump(mode="json"),
        task_versions={name: task.version for name, task in results.tasks.items()},
        environment=environment(),
    )
    report = report.model_copy(update={"sha256": _digest(report.as_dict())})
    if out is not None:
        write_atomic(out, json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n")
    return report


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers differ in which of two equal keys they take. Raises `ValueError`."""
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} twice")
    return content


def _read(path: str | Path) -> tuple[GateReport, str]:
    """A certificate, and the hash of its content. Raises `RecordError`."""
    fix = "Give the file that evaluate wrote."
    try:
        raw = Path(path).read_bytes()
        content = row_of(raw)
        if isinstance(content, str):
            raise RecordError(wrong(str(path), "a certificate", content, fix))
        json.loads(raw, object_pairs_hook=_each_once)
        return GateReport.model_validate(content), _digest(content)
    except ValidationError as error:
        raise RecordError(wrong(str(path), "a certificate", problem_of(error), fix)) from error
    except (OSError, ValueError) as error:
        if isinstance(error, AnchorLwfError):
            raise
        raise RecordError(wrong(str(path), "a certificate", error, fix)) from error


def check_certificate(
    path: str | Path,
    weights: Hashes | None = None,
    *,
    probes: str | Path | None = None,
    records: str | Path | None = None,
    gate: GateConfig | None = None,
) -> tuple[GateReport, list[str]]:
    """Read a certificate and say what is wrong with it.

    Args:
        path: certificate.json.
        weights: hashes that it must speak of, from `model_hashes` or `named_hashes`; None: weights are not compared.
        probes, records: files that it must speak of. None: those at the path it names, where there are any.
        gate: thresholds that it must have held; None: those that it names.

    Returns:
        The certificate, and what does not fit; an empty list where its content is as it was written, its verdict
        follows from its figures and its thresholds, it speaks of these weights and files, and the gate was passed.

    Raises:
        RecordError: no certificate.
    """
    report, digest = _read(path)
    problems = []
    if digest != report.sha256:
        problems.append(f"content: expected SHA-256 {report.sha256[:12]}, got {digest[:12]}: it was changed")
    for check in report.checks:
        if check.passed != check.holds:
            recorded, value = ("passed", "does not hold") if check.passed else ("failed", "holds")
            problems.append(f"{check.name}: recorded as {recorded}, but the value {value}")
    problems += _other_thresholds(report, gate)
    if weights is not None:
        problems += differences(report.weights, weights)
    stamps = {"probes": report.probes, "records": report.records}
    for name, file in compared_data(report, probes, records).items():
        recorded_sha = stamp.sha256 if (stamp := stamps[name]) else "none"
        got = DataStamp.of_file(file).sha256
        if recorded_sha != got:
            problems.append(f"{name} {file}: expected {recorded_sha[:12]}, got {got[:12]}")
    if not report.passed or not all(check.passed for check in report.checks):
        problems.append("the gate was not passed")
    return report, problems


def compared_data(
    report: GateReport, probes: str | Path | None = None, records: str | Path | None = None
) -> dict[str, Path]:
    """The files of probes and records that `check_certificate` compares: those given, else those at their old place."""
    files = {}
    for name, given, stamp in (("probes", probes, report.probes), ("records", records, report.records)):
        file = given or (stamp.path if stamp is not None else None)
        if file is not None and (given is not None or Path(file).is_file()):
            files[name] = Path(file)
    return files


def _other_thresholds(report: GateReport, gate: GateConfig | None) -> Iterator[str]:
    """Where the checks are not those of the gate that the certificate names, or that gate is not the one given."""
    try:
        named = GateConfig.of(**report.gate)
    except ConfigError as error:
        yield f"gate: {error}"
        return
    if gate is not None and gate != named:
        yield f"gate: expected {named.model_dump(exclude_defaults=True)}, got {gate.model_dump(exclude_defaults=True)}"
    wanted = {
        name: ("at most" if name in ("flips", "kl") else "at least", threshold)
        for name, threshold in named.model_dump(exclude={"tasks"}, exclude_none=True).items()
    } | {f"tasks.{name}": ("at most", threshold) for name, threshold in named.tasks.items()}
    held = set()
    for check in report.checks:
        # A task without a metric answers with all of them: tasks.mmlu:acc for tasks.mmlu.
        sources = {check.name, check.name.partition(":")[0]}
        meant = {name for name in sources if wanted.get(name) == (check.bound, check.threshold)}
        held |= meant
        if not meant:
            yield f"{check.name}: {check.bound} {check.threshold:.4g} is none of the gate's thresholds"
    yield from (f"{name}: the gate asks for it, and no check holds it" for name in wanted.keys() - held)
