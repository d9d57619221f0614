"""The whole loop for one wrong answer: annotate, train, measure, and say what changed and what did not."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anchorlwf.annotation import PromptLike, annotate, as_prompts, fits
from anchorlwf.config import AnnotateConfig, EvaluateConfig, TrainConfig
from anchorlwf.data.jsonl import save_records
from anchorlwf.data.model_card import write_card
from anchorlwf.data.probe import Probe
from anchorlwf.data.record import Prompt, Record
from anchorlwf.data.words import words_of
from anchorlwf.errors import NothingToDoError, PromptError, PromptWarning, wrong
from anchorlwf.evaluation import (
    Known,
    ProbeResult,
    Progress,
    Results,
    evaluate,
    prompts_of,
    reaching,
    reference_answers,
)
from anchorlwf.model.language_model import EMBEDDED, LanguageModel, load_model
from anchorlwf.retention import remembered_answers
from anchorlwf.training import TrainResult, run_folder, train
from anchorlwf.workflow.paraphrased import BesideConfig, Paraphrase, records_beside, save_paraphrases
from anchorlwf.workflow.retained import Retain
from anchorlwf.world import build_world, retention_prompts

__all__ = ["CANARIES", "FixReport", "fix", "unchanged_probes"]

CANARIES = (
    "What is the capital of France?",
    "What is 17 + 25?",
    "Name three primary colours.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into French.",
    "What is the boiling point of water in Celsius?",
    "Write one sentence about the sea.",
    "List the days of the week.",
    "What is your name?",
    "Who made you?",
    "Write a Python function that adds two numbers.",
    "What is the opposite of hot?",
    "Repeat: apple river stone",
    "Say backwards: table stone bread",
    "Is the earth flat?",
    "What language is spoken in Brazil?",
    "Give me a synonym for happy.",
    "How many legs does a spider have?",
    "What is the largest planet?",
    "Spell the word 'garden'.",
    "What comes after Monday?",
    "Summarise: The cat sat on the mat.",
    "Is 7 a prime number?",
    "What is H2O?",
)
"""Everyday prompts whose answers should not change when one fact is corrected."""


@dataclass(frozen=True)
class FixReport:
    """What `fix` did."""

    record: Record
    before: str
    after: str
    pieces: list[tuple[str, str]]
    """(rejected, anchor) text of every annotated token."""
    training: TrainResult
    results: Results
    folder: str
    paraphrases: list[Record]
    """Other wordings that were trained beside the prompt."""

    @property
    def leaks(self) -> list[ProbeResult]:
        """Answers to other prompts in which words of the corrected answer turn up that stood in no answer before."""
        others = [result for result in self.results.answers if result.probe.kind == "retain"]
        before = {word for text in (self.before, *(other.base_answer for other in others)) for word in words_of(text)}
        new = words_of(self.record.completion) - before
        return [other for other in others if new & words_of(other.tuned_answer)]


def unchanged_probes(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    progress: Progress | None = None,
    known: Known | None = None,
) -> tuple[list[Probe], Known]:
    """Probes that ask the model for exactly its own present answers, and the token ids of these.

    Arguments as for `reference_answers`.
    """
    asked = [
        Probe(id=f"retain:{index}", kind="retain", messages=prompt.messages, expected="-", scorer="exact")
        for index, prompt in enumerate(prompts)
    ]
    encoded = prompts_of(model, asked)
    answered = reference_answers(model, model, encoded, config, progress, known)
    replies = (model.codec.decode(answered[tuple(ids)]) for ids in encoded)
    probes = [
        probe.model_copy(update={"expected": reply})
        for probe, reply in zip(asked, replies, strict=True)
        if reply.strip()
    ]
    return probes, answered


def _checks(
    model: LanguageModel, check: str | Path | Iterable[PromptLike] | None, config: EvaluateConfig, on_phase: Progress
) -> tuple[list[Probe], Known]:
    """As `unchanged_probes`, of the prompts whose answers are to stay."""
    known: Known = {}
    if check is not None:
        prompts = as_prompts(check)
    elif model.name == EMBEDDED:
        # It knows nothing but its own world.
        prompts = retention_prompts(build_world(), [], count=120)
    else:
        prompts = as_prompts(CANARIES)
        on_phase("answers-before", 0, len(prompts))
        known = remembered_answers(model, prompts, config.max_new_tokens)
        on_phase("answers-before", len(prompts), len(prompts))
    return unchanged_probes(model, prompts, config, partial(_before, on_phase), known)


def fix(
    model: LanguageModel | str | None,
    prompt: str,
    answer: str,
    *,
    out: str | Path,
    paraphrases: Paraphrase = None,
    check: str | Path | Iterable[PromptLike] | None = None,
    retain: Retain = None,
    config: TrainConfig | None = None,
    beside: BesideConfig | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_retain: Callable[[str, int, int], None] | None = None,
    on_phase: Callable[[str, int, int], None] = lambda phase, done, count: None,
) -> FixReport:
    """Correct one answer and show what changed and what did not.

    Args:
        model: the model, its name, or None for the embedded one. Changed in place.
        prompt: the question that is answered wrongly.
        answer: what the answer should be. The closer to the model's own words, the fewer tokens need annotation.
        out: run folder: records.jsonl, adapter/, results.json and the rest of `train`.
        paraphrases: other wordings of the question, annotated with what was corrected: `auto` (found without people),
            `none`, a file, or wordings of your own. None: `none`.
        check: prompts whose answers must stay the same; None: `CANARIES`, or questions of the embedded world.
        retain: what is trained to stay beside the correction: `auto` (prompts that the model writes itself, and their
            neighbours of the corrected one), `none`, or prompts of your own. None: `auto`; for the embedded model
            `none`.
        config: of training.
        beside: how much is written and found for the `auto` of `retain` and `paraphrases`.
        on_step: called with every training step's row.
        on_retain: called with (kind, written, wanted) while the model writes prompts.
        on_phase: called with (phase, done, all) while anything else takes time.

    Raises:
        NothingToDoError: the model answers exactly this already.
        PromptError, RecordError, ConflictError, StorageError: a blank prompt; else as `annotate` and `train`.
    """
    with run_folder(out):
        language_model = model if isinstance(model, LanguageModel) else load_model(model)
        first = _annotated(language_model, prompt, answer)
        wanted: dict[str, Any] = {"retain": retain, "paraphrase": paraphrases, "config": beside}
        other = records_beside(language_model, [first], **wanted, on_progress=on_retain)
        records = [first, *other.paraphrases, *other.keep]
        decoding = reaching(EvaluateConfig(), [first, *other.paraphrases])
        probes, known = _checks(language_model, check, decoding, on_phase)
        folder = Path(out)
        save = partial(_save, folder, records, other.paraphrases)
        watch: dict[str, Any] = {"on_begin": save, "on_step": on_step, "on_reference": partial(on_phase, "reference")}
        training = train(language_model, records, out=folder, config=config, **watch)
        costs = {"seconds": training.seconds, "steps": training.steps, "converged": training.converged}
        known = {**known, tuple(first.prompt_ids): list(first.original_ids)}
        measured: dict[str, Any] = {"out": folder / "results.json", "config": decoding, "facts": costs, "known": known}
        results = evaluate(language_model, probes, records=records, progress=on_phase, **measured)
        write_card(folder)
    now = next(result for result in results.answers if result.probe.group == first.id)
    told = first, now.base_answer, now.tuned_answer, _pieces(language_model, first)
    return FixReport(*told, training, results, str(folder), other.paraphrases)


def _before(on_phase: Progress, _phase: str, done: int, count: int) -> None:
    """The base's answers are given before training here."""
    on_phase("answers-before", done, count)


def _save(folder: Path, records: list[Record], wordings: list[Record]) -> None:
    save_records(folder / "records.jsonl", records)
    save_paraphrases(folder, wordings)


def _annotated(model: LanguageModel, prompt: str, answer: str) -> Record:
    """The record of the prompt."""
    if not prompt.strip():
        raise PromptError(wrong("prompt", "a question", "a blank one", "Give the question that is answered wrongly."))
    asked = Prompt(messages=[{"role": "user", "content": prompt}], answer=answer)
    for remark in fits(model, target=True)(asked):  # here, as there is no line to name
        warnings.warn(f"{prompt!r}: {remark}", PromptWarning, stacklevel=2)
    if not model.codec.decode(model.codec.encode(answer)).strip():
        raise PromptError(wrong("answer", "some text", repr(answer), "Give the right answer."))
    limit = EvaluateConfig().max_new_tokens
    [record] = annotate(model, [asked], "target", config=AnnotateConfig(max_new_tokens=limit))
    if len(record.completion_ids) > limit:  # the answer before is looked at as far as the one after
        config = AnnotateConfig(max_new_tokens=len(record.completion_ids))
        [record] = annotate(model, [asked], "target", config=config)
    if not record.anchors:
        fix_hint = "Nothing to do."
        raise NothingToDoError(wrong("answer", "one that differs from the model's own", "the same", fix_hint))
    return record


def _pieces(model: LanguageModel, record: Record) -> list[tuple[str, str]]:
    """(rejected, anchor) text of every anchor."""
    codec = model.codec
    return [
        (
            codec.decode([a.rejected_id] if a.rejected_id is not None else [], special=True),
            codec.decode([a.token_id], special=True),
        )
        for a in record.anchors
    ]
