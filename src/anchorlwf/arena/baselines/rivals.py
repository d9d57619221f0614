"""Methods that are not ours: the fact in the prompt, and (through TRL) GRPO, DPO and self-distillation."""

import copy
import math
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from anchorlwf.annotation import annotate
from anchorlwf.arena.baselines.trl_methods import PeerPrompt, train_dpo, train_grpo, train_sdft
from anchorlwf.arena.costs import annotation_cost, peer_flops
from anchorlwf.arena.plan import Method, Regime
from anchorlwf.arena.questions import Correction, Task
from anchorlwf.arena.trained import Trained
from anchorlwf.config import AnnotateConfig, PeerConfig, TrainConfig
from anchorlwf.data.record import Message, Record
from anchorlwf.decoding.greedy import greedy_choices
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training import train

__all__ = ["context_chats", "run_peer"]

_TRAINERS = {"grpo": train_grpo, "dpo": train_dpo, "sdft": train_sdft}
_CHANCE = 0.1
"""The probability of the right answer at which a warm start ends: about one sample in ten shows the reward."""


def context_chats(task: Task) -> dict[str, list[Message]]:
    """By probe id: the question with the right note before it, as a perfect retriever would put it there.

    The ceiling of what can be had without training: notes stand only where the question is about their subject.
    """
    told = {}
    for probe in task.test:
        for subject, note in task.notes.items():
            if probe.group is not None and probe.group.split("/")[0] == subject:
                *earlier, last = probe.messages
                told[probe.id] = [*earlier, {**last, "content": f"Note: {note} {last['content']}"}]
    return told


def _chance(model: LanguageModel, records: Sequence[Record]) -> float:
    """How likely the model is to sample all anchors of a record, given the tokens between them; mean over records."""
    found = []
    for record in records:
        told = greedy_choices(model, record.prompt_ids, record.completion_ids).probabilities
        found.append(math.prod(told[anchor.position] for anchor in record.anchors))
    return sum(found) / len(found)


def _warm(trained: Trained, records: Sequence[Record], seed: int) -> int:
    """A few steps on the anchors alone, until the right answer has a chance; returns how many."""
    model = trained.model
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


def run_peer(
    trained: Trained,
    method: Method,
    regime: Regime,
    corrections: Sequence[Correction],
    options: dict[str, Any],
    seed: int,
) -> None:
    """Train by a peer's method; `trained` receives model, costs and curve.

    Args:
        trained: whose model is changed.
        method, regime: give trainer and budget.
        corrections: the prompts, with right values and answers.
        options: of `PeerConfig`; `steps` is a share of the budget.
        seed: of adapter and sampling.
    """
    model, given = trained.model, dict(options)
    share = given.pop("steps", 1.0)
    settings = {**method.options, **given, "steps": max(1, round(share * method.effort * regime.steps)), "seed": seed}
    prompts = [one.prompt("own") for one in corrections]
    records = annotate(model, prompts, "target", config=AnnotateConfig(max_new_tokens=128))
    asked = [
        PeerPrompt(
            messages=one.messages,
            expected=one.expected,
            scorer=one.scorer,
            chosen=one.own,
            rejected=model.codec.decode(record.original_ids),
            demonstration=f"Note: {one.own}",
        )
        # Where the base is right by chance there is nothing to prefer.
        for one, record in zip(corrections, records, strict=True)
        if record.anchors
    ]
    began = time.process_time()
    warm_steps = _warm(trained, records, seed) if method.warm else 0

    def note(row: dict[str, Any]) -> None:
        trained.curve.append({"step": warm_steps + row["step"], "loss": row["loss"], "keep_kl": None})

    result = _TRAINERS[method.trainer](model, asked, PeerConfig.of(**settings), on_step=note)
    trained.add(
        {
            **annotation_cost(method, corrections, records),
            "completion_tokens": sum(len(record.completion_ids) for record in records),
            "trained_tokens": result.tokens,
            "steps": warm_steps + result.steps,
            "seconds": time.process_time() - began,
            "flops": peer_flops(model, result.tokens),
            "converged": None,
        }
    )
    if result.rewards:
        trained.costs["reward_first"], trained.costs["reward_last"] = result.rewards[0], result.rewards[-1]
