"""Measuring one tuned model against its base: free-running answers, drift, examples. What the base says is asked once.

Shape suffixes: none; everything here is lists.
"""

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
from anchorlwf.evaluation import answers
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Lab", "Measured"]

_NAMES = {
    "recall": "recall",
    "paraphrase": "paraphrase",
    "reverse": "reverse",
    "near": "near",
    "retain": "kept",
    "skill": "skills",
}
_LEARNED = ("recall", "paraphrase", "reverse")
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
    _said: dict[str, str] = field(default_factory=dict)
    _turns: dict[str, KeepTurn] = field(default_factory=dict)

    def fresh(self) -> LanguageModel:
        """A copy of the base, to be tuned."""
        return LanguageModel(copy.deepcopy(self.base.causal), self.base.codec, self.base.name, self.base.revision)

    def _before(self, probes: Sequence[Probe]) -> list[str]:
        new = {repr(probe.messages): probe for probe in probes if repr(probe.messages) not in self._said}
        self._said.update(zip(new, answers(self.base, list(new.values()), self.config), strict=True))
        return [self._said[repr(probe.messages)] for probe in probes]

    def _continuations(self, chats: Sequence[list[Message]]) -> list[KeepTurn]:
        new = [chat for chat in chats if repr(chat) not in self._turns]
        prompts = [self.base.codec.encode_prompt(chat) for chat in new]
        for batch in decode_batch(self.base, prompts, _LONG, batch_size=self.config.batch_size):
            for index, answer in batch:
                self._turns[repr(new[index])] = KeepTurn(prompts[index], answer.ids)
        return [self._turns[repr(chat)] for chat in chats]

    def score(self, tuned: LanguageModel, probes: Sequence[Probe]) -> dict[str, float | None]:
        """The fractions alone, for choosing options."""
        return self._judge(probes, answers(tuned, probes, self.config)).fractions

    def _judge(self, probes: Sequence[Probe], after: Sequence[str]) -> "_Judged":
        before = self._before(probes)
        rows = [
            (probe, old, new, score(probe, old), score(probe, new))
            for probe, old, new in zip(probes, before, after, strict=True)
        ]
        fractions: dict[str, float | None] = {}
        for kind, name in _NAMES.items():
            told = [int(right) for probe, _, _, was, right in rows if probe.kind == kind and (was or kind in _LEARNED)]
            fractions[name] = sum(told) / len(told) if told else None
        return _Judged(rows, fractions)

    def measure(
        self,
        tuned: LanguageModel,
        task: Task,
        probes: Sequence[Probe],
        kl_short: int,
        told: dict[str, list[Message]] | None = None,
    ) -> Measured:
        """Everything about a tuned model.

        Args:
            tuned: the model.
            task: whose long prompts measure the drift in long answers.
            probes: to ask.
            kl_short: how many short reference continuations.
            told: by probe id, other messages to put to the tuned model (the context ceiling).
        """
        asked = [
            probe.model_copy(update={"messages": told[probe.id]}) if told and probe.id in told else probe
            for probe in probes
        ]
        judged = self._judge(probes, answers(tuned, asked, self.config))
        known = [row for row in judged.rows if row[0].kind == "retain" and row[3]]
        flips = sum(row[3] and not row[4] for row in judged.rows if row[0].kind not in _LEARNED)
        chats = [
            probe.messages for probe in probes if probe.kind in ("retain", "skill") and "biography" not in probe.tags
        ][::7][:kl_short]
        kl_short_mean, strips = self._drift(tuned, chats)
        kl_long_mean, long_strips = self._drift(tuned, task.long_prompts)
        worst = sorted([*strips, *long_strips], key=lambda strip: -max(strip["kl"], default=0.0))[:_STRIPS]
        return Measured(
            {
                **judged.fractions,
                "kl_short": kl_short_mean,
                "kl_long": kl_long_mean,
                "flips": flips,
                "facts_lost": sum(not row[4] for row in known),
                "facts_known": len(known),
            },
            {row[0].id: int(row[4]) for row in judged.rows if row[0].kind in _LEARNED or row[3]},
            judged.examples(),
            worst,
        )

    def _drift(self, tuned: LanguageModel, chats: Sequence[list[Message]]) -> tuple[float | None, list[dict[str, Any]]]:
        turns = self._continuations(chats)
        values = token_kl(tuned, self.base, turns)
        tokens = [value for turn in values for value in turn]
        strips = [
            {
                "prompt": str(chat[-1].get("content", "")),
                "tokens": self.base.codec.pieces(turn.completion_ids),
                "kl": [round(value, 6) for value in told],
            }
            for chat, turn, told in zip(chats, turns, values, strict=True)
        ]
        return (sum(tokens) / len(tokens) if tokens else None), strips


@dataclass(frozen=True)
class _Judged:
    rows: list[tuple[Probe, str, str, bool, bool]]
    """Probe, answer before and after, right before and after."""
    fractions: dict[str, float | None]

    def examples(self) -> list[dict[str, str]]:
        """The first learned answer, what is still wrong, and what flipped."""

        def line(row: tuple[Probe, str, str, bool, bool]) -> dict[str, str]:
            probe, old, new, _, _ = row
            question = str(probe.messages[-1].get("content", ""))
            expected = " or ".join(probe.accepted)
            return {"kind": probe.kind, "question": question, "expected": expected, "before": old, "after": new}

        learned = [row for row in self.rows if row[0].kind in _LEARNED]
        flipped = [row for row in self.rows if row[0].kind not in _LEARNED and row[3] and not row[4]]
        right, missed = [row for row in learned if row[4]], [row for row in learned if not row[4]]
        return [line(row) for row in [*right[:2], *missed[:4], *flipped][:_EXAMPLES]]
