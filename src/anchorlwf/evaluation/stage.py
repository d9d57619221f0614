"""The evaluation stage: what a tuned model learned, what it kept, how far it drifted."""

import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from anchorlwf.config import EvaluateConfig
from anchorlwf.data.jsonl import Source, given_rows, load_probes, load_records
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Record
from anchorlwf.errors import ModelWarning, PromptWarning, RecordError, wrong
from anchorlwf.evaluation.lm_eval import run_tasks
from anchorlwf.evaluation.measure import (
    Drift,
    Known,
    ProbeResult,
    Progress,
    compare,
    drift,
    prompts_of,
    recall_probes,
    reference_answers,
)
from anchorlwf.evaluation.results import DataStamp, Origin, Results, results_of
from anchorlwf.files import ensure_writable
from anchorlwf.model.generation import warn_of_generation
from anchorlwf.model.language_model import LanguageModel

__all__ = ["evaluate", "models_of", "reaching"]

_KEPT = ("near", "retain", "skill")
Row = TypeVar("Row", Probe, Record)


def evaluate(
    model: LanguageModel,
    probes: Source | None = None,
    *,
    records: Source | None = None,
    base: LanguageModel | None = None,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    facts: dict[str, Any] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
    known: Known | None = None,
) -> Results:
    """Measure recall and forgetting by free-running greedy decoding, and drift by KL (paper section 4).

    Args:
        model: the tuned model.
        probes: JSONL file or probes, in any form in which `load_records` takes records; without recall probes, each
            corrected record becomes one. None: the records alone are asked, or only the tasks run.
        records: the records it was trained on, in the same forms, for recall and for the count of annotated tokens.
        base: the model before training; None: the reference inside `model` (adapter off, or frozen copy).
        out: write results.json to this path, atomically.
        config: limits (at least the length of the longest corrected answer), batch size, intervals, harness tasks.
        facts: further top-level entries of results.json, such as training seconds.
        skip_bad: continue after bad lines in the files and warn of each (`BadLineWarning`) instead of raising.
        progress: called with (phase, done, total).
        known: token ids of greedy answers of the base, by token ids of the prompt; they are not decoded again.

    Raises:
        RecordError: there is nothing to ask, something is not a probe or record, a file was written to while it was
            read, or the text of a record is not that of its ids.
        ConfigError: a task of lm-evaluation-harness cannot be run.
        StampError: `base` has another tokenizer or chat template than `model`.
        StorageError: `out` cannot be written.

    Warns:
        ModelWarning, PromptWarning: there is no base to compare with; greedy answers change; a probe reads otherwise.
    """
    config = config or EvaluateConfig()
    if out is not None:
        ensure_writable(out)
    if base is not None:
        model.stamp.require_same(base.stamp, "base", "Give the model that was tuned.")
    asked, probe_stamp = _given(probes, Probe, partial(load_probes, skip_bad=skip_bad))
    trained, record_stamp = _given(records, Record, partial(load_records, skip_bad=skip_bad))
    asked, config = _with_recall(asked, trained, model), reaching(config, trained)
    origin = Origin(models_of(model, base), probe_stamp, record_stamp, config)
    if not asked and not config.tasks:
        raise RecordError(wrong("probes", "at least one probe or corrected record", "none", "Give some."))
    _prepare(model, base, asked, trained, config)
    began = time.perf_counter()
    tasks = run_tasks(model, base, config, progress)
    answered, measured = _measured(model, base, asked, config, progress, known)
    costs = {**_costs(trained), "evaluate_seconds": time.perf_counter() - began, **(facts or {})}
    found = results_of(answered, measured, config, costs, tasks, origin)
    results = replace(found, compared=base is not None or model.has_reference)
    if out is not None:
        results.save(out)
    return results


def reaching(config: EvaluateConfig, records: Sequence[Record]) -> EvaluateConfig:
    """The same configuration, whose answers may be as long as the longest corrected one: it could not be recalled."""
    longest = max((len(record.completion_ids) for record in records if record.anchors), default=0)
    return config.updated(max_new_tokens=max(config.max_new_tokens, longest))


def _measured(
    model: LanguageModel,
    base: LanguageModel | None,
    asked: list[Probe],
    config: EvaluateConfig,
    progress: Progress | None,
    known: Known | None,
) -> tuple[list[ProbeResult], Drift]:
    """The answers before and after, and the drift."""
    # Answers by a model's own settings are not those that the drift is measured on.
    if config.generation == "greedy":
        known = reference_answers(model, base, prompts_of(model, asked), config, progress, known)
    return compare(model, base, asked, config, progress, known), drift(model, base, asked, config, known)


def _with_recall(asked: list[Probe], trained: list[Record], model: LanguageModel) -> list[Probe]:
    """The probes; without any that ask for what was corrected, one more for each corrected record."""
    if any(probe.kind == "recall" for probe in asked):
        return asked
    _check_texts(trained, model)
    return [*recall_probes(trained), *asked]


def _costs(trained: list[Record]) -> dict[str, int]:
    """Tokens that were annotated, and tokens of the answers they stand in."""
    return {
        "annotated_tokens": sum(len(record.anchors) for record in trained),
        "completion_tokens": sum(len(record.completion_ids) for record in trained if record.anchors),
    }


def _prepare(
    model: LanguageModel, base: LanguageModel | None, asked: list[Probe], trained: list[Record], config: EvaluateConfig
) -> None:
    """Ask as it was trained, with the same date; and warn of what makes the answers others than one would think."""
    if base is None and not model.has_reference and (config.tasks or any(probe.kind in _KEPT for probe in asked)):
        fix = "What it kept and how far it drifted is not known. Give the model before training (base, --base)."
        warnings.warn(
            wrong(model.name, "an adapter, or a base to compare with", "neither", fix), ModelWarning, stacklevel=4
        )
    for codec in {model.codec, model.codec if base is None else base.codec}:
        codec.pin(next((record.model for record in trained if record.model.date is not None), None))
    if config.generation == "greedy":
        warn_of_generation(model.causal.generation_config, stacklevel=4)
    said: dict[str, list[str]] = {}
    for probe in asked:
        for remark in model.codec.remarks(probe.messages, probe.tools):
            said.setdefault(remark, []).append(probe.id)
    for remark, ids in said.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        warnings.warn(f"probe {ids[0]}{more}: {remark}", PromptWarning, stacklevel=3)


def models_of(model: LanguageModel, base: LanguageModel | None) -> tuple[str | None, ...]:
    """`Origin.models` of these."""
    before = (None, None) if base is None else (base.name, base.revision)
    return (model.name, model.revision, model.adapter, *before)


def _given(
    source: Source | None, kind: type[Row], load: Callable[[Source], list[Row]]
) -> tuple[list[Row], DataStamp | None]:
    return ([], None) if source is None else _read(source, kind, load)


def _read(source: Source, kind: type[Row], load: Callable[[Source], list[Row]]) -> tuple[list[Row], DataStamp]:
    """Probes or records, and the stamp of just what was read."""
    if not isinstance(source, str | Path):
        rows = given_rows(source, kind, load)
        return rows, DataStamp.of_rows(rows)
    # Where there is no file, `load` says so.
    before = DataStamp.of_file(source) if Path(source).is_file() else None
    rows = load(source)
    if before is None or DataStamp.of_file(source) != before:
        raise RecordError(wrong(str(source), "a file at rest", "one that was written to meanwhile", "Try again."))
    return rows, before


def _check_texts(records: Iterable[Record], model: LanguageModel) -> None:
    """Raise `RecordError` where a record would be judged by a text that its ids do not say."""
    ours = model.codec.tokenizer_sha
    for record in records:
        if record.model.tokenizer_sha == ours:
            model.codec.check_text(record)
