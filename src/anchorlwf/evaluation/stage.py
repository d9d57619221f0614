"""The evaluation stage: what a tuned model learned, what it kept, how far it drifted."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from anchorlwf.config import EvaluateConfig
from anchorlwf.errors import RecordError, StampError, wrong
from anchorlwf.evaluation.harness import run_tasks
from anchorlwf.evaluation.measure import Progress, compare, drift, recall_probes
from anchorlwf.evaluation.results import Results, summarize
from anchorlwf.files import ensure_writable
from anchorlwf.jsonl import given_rows, load_probes, load_records
from anchorlwf.lines import Source
from anchorlwf.model import LanguageModel
from anchorlwf.probe import Probe
from anchorlwf.record import Record

__all__ = ["evaluate"]


def evaluate(
    model: LanguageModel,
    probes: Source,
    *,
    records: Source | None = None,
    base: LanguageModel | None = None,
    out: str | Path | None = None,
    config: EvaluateConfig | None = None,
    facts: dict[str, Any] | None = None,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Measure recall and forgetting by free-running greedy decoding, and drift by KL (paper section 4).

    Args:
        model: the tuned model.
        probes: a JSONL file or probes, in any form in which `load_records` takes records. Without recall probes among
            them, each corrected record becomes one.
        records: the records it was trained on, likewise: for recall, and for the count of annotated tokens.
        base: the model before training; None: the reference inside `model` (adapter off, or frozen copy).
        out: write results.json there, atomically.
        config: limits, batch size, intervals, tasks of lm-evaluation-harness.
        facts: further top-level entries of results.json, such as training seconds.
        skip_bad: go on after bad lines of the files and warn of each (`BadLineWarning`) instead of raising.
        progress: called with (phase, done, all).

    Raises:
        RecordError: nothing to ask, or what is no probe or record.
        ConfigError: a task of lm-evaluation-harness cannot be run.
        StampError: `base` has another tokenizer or chat template than `model`.
        StorageError: `out` cannot be written.
    """
    config = config or EvaluateConfig()
    if out is not None:
        ensure_writable(out)
    if base is not None:
        _check_base(base, model)
    asked = given_rows(probes, Probe, partial(load_probes, skip_bad=skip_bad))
    trained = [] if records is None else given_rows(records, Record, partial(load_records, skip_bad=skip_bad))
    if not any(probe.kind == "recall" for probe in asked):
        asked = [*recall_probes(trained), *asked]
    if not asked:
        raise RecordError(wrong("probes", "at least one probe or corrected record", "none", "Give some."))
    began = time.perf_counter()
    tasks = run_tasks(model, base, config, progress)
    results = compare(model, base, asked, config, progress)
    costs = {
        "annotated_tokens": sum(len(record.anchors) for record in trained),
        "completion_tokens": sum(len(record.completion_ids) for record in trained if record.anchors),
    }
    measured = drift(model, base, asked, config)
    seconds = {"evaluate_seconds": time.perf_counter() - began}
    summary = summarize(results, measured, config, {**costs, **seconds, **(facts or {})}, tasks)
    if out is not None:
        summary.save(out)
    return summary


def _check_base(base: LanguageModel, model: LanguageModel) -> None:
    """Raise `StampError` where the base reads or writes text in another way than the tuned model."""
    theirs, ours = base.codec, model.codec
    for what, same in (
        ("tokenizer", theirs.tokenizer_sha == ours.tokenizer_sha),
        ("chat template", theirs.template_sha == ours.template_sha),
    ):
        if not same:
            raise StampError(wrong("base", f"the tuned model's {what}", "another", "Give the one that was tuned."))
