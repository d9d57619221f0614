"""One cell of a study trained by a TRL baseline: GRPO, DPO or self-distillation."""

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from anchorlwf.annotation import annotate
from anchorlwf.arena.baselines.trl_methods import BaselinePrompt, train_dpo, train_grpo, train_sdft
from anchorlwf.arena.costs import TunedModel, annotation_cost, baseline_flops, train_flops, train_tokens
from anchorlwf.arena.plan import Method, Regime
from anchorlwf.arena.questions import Correction
from anchorlwf.config import AnnotateConfig, BaselineConfig, TrainConfig
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import greedy_choices
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training import train

__all__ = ["run_baseline"]

_TRAINERS = {"grpo": train_grpo, "dpo": train_dpo, "sdft": train_sdft}
_CHANCE = 0.1
"""The probability of the right answer at which a warm start ends: about one sample in ten shows the reward."""


def _chance(model: LanguageModel, records: Sequence[Record]) -> float:
    """How likely the model is to sample all anchors of a record, given the tokens between them; mean over records."""
    chances = []
    for record in records:
        probabilities = greedy_choices(model, record.prompt_ids, record.completion_ids).probabilities
        chances.append(math.prod(probabilities[anchor.position] for anchor in record.anchors))
    return sum(chances) / len(chances)


def _warm_up(model: LanguageModel, records: Sequence[Record], seed: int) -> int:
    """A few steps on the anchors alone, until the right answer has a chance; returns how many."""
    rehearsal = LanguageModel(copy.deepcopy(model.causal), model.codec, model.name)
    hint = TrainConfig(beta=0.0, drift_budget=1e9, seed=seed)
    reached: list[int] = []

    def look(row: dict[str, Any]) -> None:
        rehearsal.net.eval()
        if not reached and _chance(rehearsal, records) >= _CHANCE:
            reached.append(row["step"])
        rehearsal.net.train()

    with tempfile.TemporaryDirectory(prefix="anchorlwf-arena-") as folder:
        last = train(rehearsal, records, out=folder, config=hint, on_step=look).steps
        enough = hint.updated(max_steps=reached[0] if reached else last, stop=False)
        return train(model, records, out=folder, config=enough).steps


def run_baseline(
    tuned: TunedModel,
    method: Method,
    regime: Regime,
    corrections: Sequence[Correction],
    options: dict[str, Any],
    seed: int,
) -> None:
    """Train by a TRL baseline; `tuned` receives costs and curve.

    Args:
        tuned: whose model is changed.
        method, regime: give trainer and budget.
        corrections: the prompts, with right values and answers.
        options: of `BaselineConfig`; `steps` is a share of the budget.
        seed: of adapter and sampling.
    """
    model, chosen = tuned.model, dict(options)
    share = chosen.pop("steps", 1.0)
    settings = {**method.options, **chosen, "steps": max(1, round(share * method.effort * regime.steps)), "seed": seed}
    prompts = [correction.prompt("own") for correction in corrections]
    records = annotate(model, prompts, "target", config=AnnotateConfig(max_new_tokens=128))
    asked = [
        BaselinePrompt(
            messages=correction.messages,
            expected=correction.expected,
            scorer=correction.scorer,
            chosen=correction.own,
            rejected=model.codec.decode(record.original_ids),
            demonstration=f"Note: {correction.own}",
        )
        # Where the base is right by chance there is nothing to prefer.
        for correction, record in zip(corrections, records, strict=True)
        if record.anchors
    ]
    began = time.process_time()
    warm_steps = _warm_up(model, records, seed) if method.warm else 0
    warm_tokens = train_tokens(records, warm_steps, TrainConfig().batch_size)

    def note(row: dict[str, Any]) -> None:
        tuned.curve.append({"step": warm_steps + row["step"], "loss": row["loss"], "keep_kl": None})

    result = _TRAINERS[method.trainer](model, asked, BaselineConfig.of(**settings), on_step=note)
    tuned.add(
        annotation_cost(method, corrections, records),
        trained_tokens=warm_tokens + result.tokens,
        steps=warm_steps + result.steps,
        seconds=time.process_time() - began,
        flops=train_flops(model, warm_tokens, reference=False) + baseline_flops(model, result.tokens),
    )
    if result.rewards:
        tuned.costs["reward_first"], tuned.costs["reward_last"] = result.rewards[0], result.rewards[-1]
