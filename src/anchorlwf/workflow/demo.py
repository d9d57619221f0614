"""The demo: correct facts and an identity of the embedded model, and prove that nothing else changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchorlwf.annotation import annotate
from anchorlwf.config import EvaluateConfig, TrainConfig
from anchorlwf.data.jsonl import save_lines, save_records
from anchorlwf.data.model_card import write_card
from anchorlwf.data.record import Record
from anchorlwf.evaluation import Results, evaluate
from anchorlwf.model.language_model import LanguageModel, load_model
from anchorlwf.training import TrainResult, run_folder, train
from anchorlwf.world import build_world, draw_errata, probes_for

__all__ = ["DemoReport", "demo"]

_FACTS, _IDENTITY, _WORDINGS, _SEED = 4, 1, 3, 3


@dataclass(frozen=True)
class DemoReport:
    """What the demo did, for printing."""

    records: list[Record]
    answers: list[tuple[str, str, str]]
    """(question, before, after) of every corrected prompt; the wordings of one fact follow one another."""
    wordings: int
    training: TrainResult
    results: Results
    seconds: float
    folder: str


def demo(
    out: str | Path = "runs/demo",
    model: LanguageModel | None = None,
    *,
    config: TrainConfig | None = None,
    say: Callable[[str], None] = lambda text: None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> DemoReport:
    """Run annotate, train and evaluate on the embedded model.

    Args:
        out: run folder; receives records.jsonl, probes.jsonl, adapter/ and results.json.
        model: the embedded model, where it is loaded already. Changed in place.
        config: of training; None: the defaults.
        say: told what begins.
        on_step: called with every training step's row.

    Raises:
        ConflictError: another process writes to the folder.
        StorageError: the folder cannot be written.
    """
    with run_folder(out):
        return _demo(Path(out), model or load_model(), config, say, on_step)


def _demo(
    folder: Path,
    model: LanguageModel,
    config: TrainConfig | None,
    say: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None] | None,
) -> DemoReport:
    began = time.perf_counter()
    world = build_world()
    errata = draw_errata(world, _FACTS, _IDENTITY, _SEED)
    probes = probes_for(world, errata, _WORDINGS)
    say(f"annotate: {len(errata)} wrong facts, each asked in {_WORDINGS} wordings")
    prompts = [prompt for erratum in errata for prompt in erratum.prompts(_WORDINGS)]
    records = annotate(model, prompts, "target")
    save_records(folder / "records.jsonl", records)
    save_lines(folder / "probes.jsonl", probes)
    say(f"train: {sum(len(record.anchors) for record in records)} anchors")
    training = train(model, records, out=folder, config=config, on_step=on_step)
    say(f"evaluate: {len(probes)} questions to base and tuned model")
    costs = {"train_seconds": training.seconds, "steps": training.steps, "converged": training.converged}
    measured = evaluate(model, probes, records=records, config=EvaluateConfig(), facts=costs)
    seconds = time.perf_counter() - began
    results = replace(measured, facts={**measured.facts, "seconds": seconds})
    results.save(folder / "results.json")
    write_card(folder)
    answers = [
        (str(result.probe.messages[-1]["content"]), result.base_answer, result.tuned_answer)
        for result in results.answers
        if result.probe.kind == "recall"
    ]
    return DemoReport(records, answers, _WORDINGS, training, results, seconds, str(folder))
