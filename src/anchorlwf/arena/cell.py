"""One cell of a study: a method, in a regime, with a seed: train a copy of the base, measure it."""

import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

from peft import PeftModel

from anchorlwf.annotation import annotate, retention_records, same_correction
from anchorlwf.arena.baselines.trl_cell import run_baseline
from anchorlwf.arena.costs import TunedModel, annotation_cost, peak_memory, reset_peak_memory, train_flops, train_tokens
from anchorlwf.arena.lab import Lab
from anchorlwf.arena.plan import Method, Plan, Regime
from anchorlwf.arena.questions import Correction, Task
from anchorlwf.config import AnnotateConfig, ParaphraseConfig, RetainConfig, TrainConfig
from anchorlwf.data.record import Anchor, Record
from anchorlwf.decoding.teacher_forcing import forced_choices
from anchorlwf.errors import NothingToDoError, wrong
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.retention import PARAPHRASE_TAG, Candidate, paraphrases, retain
from anchorlwf.training import train

__all__ = ["records_of", "run_cell", "train_cell"]

OnStep = Callable[[LanguageModel, dict[str, Any]], None]

_LIKELY = 1 / 2.5
"""STM learns a token only where the base gives it this probability: a perplexity of 2.5 (arXiv 2501.14315)."""


def _all_anchors(record: Record, confidence: float, positions: Collection[int] | None = None) -> Record:
    """Supervised fine-tuning is the same loss with every completion token (or those at some positions) an anchor."""
    anchors = [
        Anchor(position=position, token_id=token_id, confidence=confidence, source="target")
        for position, token_id in enumerate(record.completion_ids)
        if positions is None or position in positions
    ]
    return record.model_copy(update={"anchors": anchors, "ties": []})


def _likely_anchors(model: LanguageModel, records: Sequence[Record], confidence: float) -> list[Record]:
    """Anchors at the tokens that the base finds likely; records without any are left out."""
    chosen = []
    for record, choices in zip(records, forced_choices(model, records), strict=True):
        likely = {place for place, probability in enumerate(choices.probabilities) if probability >= _LIKELY}
        if likely:
            chosen.append(_all_anchors(record, confidence, likely))
    return chosen


def records_of(
    model: LanguageModel, method: Method, corrections: Sequence[Correction], task: Task, confidence: float
) -> tuple[list[Record], list[Record]]:
    """(records that are learned, records of unrelated prompts), as the method has them.

    Raises:
        NothingToDoError: a method that leaves no token to be learned.
    """
    prompts = [correction.prompt(method.words) for correction in corrections]
    # What the model writes itself is compared with its own answers, and other wordings are changed as these were.
    original = bool(task.everyday) and method.extra != "none"
    config = AnnotateConfig(original=original, confidence=confidence)
    corrected = annotate(model, prompts, "target", config=config)
    kept, candidates = _kept(model, method, corrected, task)
    if method.paraphrase is not None and candidates is not None:
        corrected += _reworded(model, corrected, candidates, ParaphraseConfig.of(**method.paraphrase))
        asked = {tuple(record.prompt_ids) for record in corrected}
        kept = [record for record in kept if tuple(record.prompt_ids) not in asked]
    records = corrected
    if method.marks == "all":
        records = [_all_anchors(record, confidence) for record in corrected]
    elif method.marks == "likely":
        records = _likely_anchors(model, corrected, confidence)
    if not records:
        fix = "Another method learns them."
        raise NothingToDoError(wrong(method.name, "a token that the base finds likely", "none", fix))
    return records, [_all_anchors(record, 1.0) for record in kept] if method.extra == "replay" else kept


def _kept(
    model: LanguageModel, method: Method, corrected: Sequence[Record], task: Task
) -> tuple[list[Record], list[Candidate] | None]:
    """Keep records: to the task's prompts, or among real facts to those that the model writes itself.

    There also the prompts it wrote that ask for a corrected fact; elsewhere None.
    """
    if method.extra == "none" or (method.extra == "auto" and not task.everyday):
        return [], None
    if not task.everyday:
        return retention_records(model, list(task.keep)), None
    retained = retain(model, corrected, config=RetainConfig.of(**method.retention))
    # Only our stop rule knows what to do with those that are held out; replay would train on them.
    return [*retained.records, *(retained.held_out if method.marks == "anchors" else ())], retained.candidates


def _reworded(
    model: LanguageModel, corrected: Sequence[Record], candidates: Sequence[Candidate], config: ParaphraseConfig
) -> list[Record]:
    """The same corrections in other wordings, found without people."""
    by_tag = {f"{PARAPHRASE_TAG}:{record.id}": record for record in corrected}
    prompts = paraphrases(model, corrected, config=config, candidates=candidates)
    pairs = [(by_tag[tag], prompt) for prompt in prompts for tag in prompt.tags if tag in by_tag]
    return same_correction(model, pairs)


def _settings(plan_options: dict[str, Any], method: Method, regime: Regime, seed: int) -> TrainConfig:
    """A method's training options; `steps` is a share of the regime's budget."""
    options = {**method.options, **plan_options, "seed": seed}
    share = options.pop("steps", None)
    options.pop("confidence", None)
    if share is not None:
        options["max_steps"] = max(1, round(share * method.effort * regime.steps * regime.overtrain))
    return TrainConfig.of(**options)


def _train_group(
    tuned: TunedModel,
    method: Method,
    corrections: Sequence[Correction],
    task: Task,
    config: TrainConfig,
    confidence: float,
    on_step: OnStep | None,
) -> None:
    model = tuned.model
    records, extra = records_of(model, method, corrections, task, confidence)
    everything, start = [*records, *extra], len(tuned.curve)

    def note(row: dict[str, Any]) -> None:
        tuned.curve.append(
            {
                "step": start + row["step"],
                "loss": row["loss"],
                "keep_kl": row["keep_kl"] if method.marks == "anchors" else None,
            }
        )
        if on_step is not None:
            on_step(model, row)

    with tempfile.TemporaryDirectory(prefix="anchorlwf-arena-") as folder:
        began = time.process_time()
        result = train(model, everything, out=folder, config=config, on_step=note)
        seconds = time.process_time() - began
    tokens = train_tokens(everything, result.steps, config.batch_size)
    kept = extra and method.extra != "replay"
    uses_reference = bool(((method.marks == "anchors" or kept) and config.beta > 0) or confidence < 1)
    # Wordings found without people cost them nothing.
    by_people = [record for record in records if PARAPHRASE_TAG not in record.tags]
    tuned.add(
        annotation_cost(method, corrections, by_people),
        trained_tokens=tokens,
        steps=result.steps,
        seconds=seconds,
        flops=train_flops(model, tokens, reference=uses_reference),
        converged=result.converged if config.stop else None,
    )


def train_cell(
    lab: Lab,
    method: Method,
    regime: Regime,
    task: Task,
    options: dict[str, Any],
    seed: int,
    on_step: OnStep | None = None,
) -> TunedModel:
    """Train a copy of the base by a method.

    Args:
        lab: holds the base.
        method, regime, task: what to do.
        options: those that a sweep chose.
        seed: of adapter, order and draws.
        on_step: called after every optimizer step of the last group with the model as it stands.
    """
    tuned = TunedModel(lab.fresh())
    groups = task.groups if regime.stream else [list(task.corrections)]
    confidence = options.get("confidence", method.confidence)
    for number, corrections in enumerate(groups, 1):
        if method.trainer != "anchor":
            run_baseline(tuned, method, regime, corrections, options, seed)
            continue
        config = _settings(options, method, regime, seed)
        _train_group(tuned, method, corrections, task, config, confidence, on_step if number == len(groups) else None)
        if number < len(groups) and isinstance(tuned.model.net, PeftModel):
            # What is learned becomes the base, and thereby the reference, of what comes next.
            tuned.model.net = tuned.model.net.merge_and_unload()
    tuned.model.net.eval()
    return tuned


def run_cell(
    lab: Lab, plan: Plan, method: Method, regime: Regime, task: Task, options: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Train and measure; the cell as results.json holds it."""
    reset_peak_memory()
    began = time.perf_counter()
    notes = None
    if method.trainer == "context":
        tuned, notes = TunedModel(lab.base), task.noted_chats()
        if not notes:
            fix = "Leave it out: data of one's own has none."
            raise NothingToDoError(wrong(method.name, "notes that a retriever could find", "none", fix))
        tuned.add(annotation_cost(method, task.corrections, []))
    else:
        tuned = train_cell(lab, method, regime, task, options, seed)
    measured = lab.measure(tuned.model, task, task.test, plan.kl_short, notes, regime.answer_tokens)
    every = max(1, len(tuned.curve) // 100)
    return {
        "method": method.name,
        "regime": regime.name,
        "seed": seed,
        "options": options,
        **asdict(measured),
        "costs": {**tuned.costs, "peak_memory_bytes": peak_memory()},
        "curve": tuned.curve[::every],
        "cell_seconds": time.perf_counter() - began,
    }
