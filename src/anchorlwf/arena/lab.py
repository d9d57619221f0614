"""Measures a tuned model against its base: free-running answers, drift, examples. The base is asked everything once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anchorlwf.arena.questions import Task
from anchorlwf.config import EvaluateConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.data.record import Message
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.divergence import token_kl
from anchorlwf.evaluation import LEARNED_KINDS, Drift, ProbeResult, answers, fractions
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Lab", "Measured"]

_EXAMPLES, _STRIPS, _LONG = 12, 3, 160


@dataclass(frozen=True)
class Measured:
    """What a cell of the study found. All fractions in [0, 1], divergences in nats per token."""

    measures: dict[str, float | int | None]
    outcomes: dict[str, int]
    """By probe id: 1 right, 0 wrong. Kept kinds: only probes that the base had right."""
    examples: list[dict[str, str]]
    strips: list[dict[str, Any]]


@dataclass
class Lab:
    """A base model and what it says, remembered.

    Args:
        base: never changed; every cell tunes a copy.
    """

    base: LanguageModel
    config: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(max_new_tokens=_LONG))
    _base_answers: dict[str, str] = field(default_factory=dict)
    _base_turns: dict[str, KeepTurn] = field(default_factory=dict)

    def fresh(self) -> LanguageModel:
        """A copy of the base, to be tuned."""
        return LanguageModel(copy.deepcopy(self.base.causal), self.base.codec, self.base.name, self.base.revision)

    def _before(self, probes: Sequence[Probe]) -> list[str]:
        new = {repr(probe.messages): probe for probe in probes if repr(probe.messages) not in self._base_answers}
        self._base_answers.update(zip(new, answers(self.base, list(new.values()), self.config), strict=True))
        return [self._base_answers[repr(probe.messages)] for probe in probes]

    def _continuations(self, chats: Sequence[list[Message]]) -> list[KeepTurn]:
        new = [chat for chat in chats if repr(chat) not in self._base_turns]
        prompts = [self.base.codec.encode_prompt(chat) for chat in new]
        for batch in decode_batch(self.base, prompts, _LONG, batch_size=self.config.batch_size):
            for index, answer in batch:
                self._base_turns[repr(new[index])] = KeepTurn(prompts[index], answer.ids)
        return [self._base_turns[repr(chat)] for chat in chats]

    def score(self, tuned: LanguageModel, probes: Sequence[Probe]) -> dict[str, float | None]:
        """The fractions alone, for choosing options."""
        return fractions(self._judge(probes, answers(tuned, probes, self.config)))

    def _judge(self, probes: Sequence[Probe], after: Sequence[str]) -> list[ProbeResult]:
        return [
            ProbeResult(probe, old, new, score(probe, old), score(probe, new))
            for probe, old, new in zip(probes, self._before(probes), after, strict=True)
        ]

    def measure(
        self,
        tuned: LanguageModel,
        task: Task,
        probes: Sequence[Probe],
        kl_short: int,
        notes: dict[str, list[Message]] | None = None,
    ) -> Measured:
        """Everything about a tuned model.

        Args:
            tuned: the model.
            task: whose long prompts measure the drift in long answers.
            probes: to ask.
            kl_short: how many short reference continuations.
            notes: by probe id, other messages to put to the tuned model (the context ceiling).
        """
        asked = [
            probe.model_copy(update={"messages": notes[probe.id]}) if notes and probe.id in notes else probe
            for probe in probes
        ]
        results = self._judge(probes, answers(tuned, asked, self.config))
        known = [result for result in results if result.probe.kind == "retain" and result.base_right]
        chats = [
            probe.messages for probe in probes if probe.kind in ("retain", "skill") and "biography" not in probe.tags
        ][::7][:kl_short]
        kl_short_mean, strips = self._drift(tuned, chats)
        kl_long_mean, long_strips = self._drift(tuned, task.long_prompts)
        worst = sorted([*strips, *long_strips], key=lambda strip: -max(strip["kl"], default=0.0))[:_STRIPS]
        return Measured(
            {
                **fractions(results),
                "kl_short": kl_short_mean,
                "kl_long": kl_long_mean,
                "flips": len(_flipped(results)),
                "facts_lost": sum(not result.tuned_right for result in known),
                "facts_known": len(known),
            },
            {
                result.probe.id: int(result.tuned_right)
                for result in results
                if result.probe.kind in LEARNED_KINDS or result.base_right
            },
            _examples(results),
            worst,
        )

    def _drift(self, tuned: LanguageModel, chats: Sequence[list[Message]]) -> tuple[float | None, list[dict[str, Any]]]:
        turns = self._continuations(chats)
        drift = Drift(token_kl(tuned, self.base, turns), [str(chat[-1].get("content", "")) for chat in chats])
        strips = [
            {
                "prompt": prompt,
                "tokens": self.base.codec.pieces(turn.completion_ids),
                "kl": [round(value, 6) for value in values],
            }
            for prompt, turn, values in zip(drift.prompts, turns, drift.per_turn, strict=True)
        ]
        return (drift.mean if drift.tokens else None), strips


def _flipped(results: Sequence[ProbeResult]) -> list[ProbeResult]:
    """What should have stayed right and did not."""
    kept = (result for result in results if result.probe.kind not in LEARNED_KINDS)
    return [result for result in kept if result.base_right and not result.tuned_right]


def _examples(results: Sequence[ProbeResult]) -> list[dict[str, str]]:
    """The first learned answers, what is still wrong, and what flipped."""
    learned = [result for result in results if result.probe.kind in LEARNED_KINDS]
    right = [result for result in learned if result.tuned_right]
    missed = [result for result in learned if not result.tuned_right]
    chosen = [*right[:2], *missed[:4], *_flipped(results)][:_EXAMPLES]
    return [{"kind": result.probe.kind, **result.texts} for result in chosen]
