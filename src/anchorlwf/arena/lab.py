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

_EXAMPLES, _STRIPS, _LONG, _EVERYDAY = 12, 3, 160, 64


@dataclass(frozen=True)
class Measured:
    """What a cell of the study found. All fractions in [0, 1], divergences in nats per token."""

    measures: dict[str, float | int | None]
    outcomes: dict[str, int]
    """By probe id: 1 right, 0 wrong. Kept kinds: only probes that the base had right."""
    examples: list[dict[str, str]]
    strips: list[dict[str, Any]]


def _by_kind(probe: Probe) -> str:
    """Its id, which in results.json begins with its kind."""
    return probe.id if probe.id.startswith(f"{probe.kind}:") else f"{probe.kind}:{probe.id}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


@dataclass
class Lab:
    """A base model and what it says, remembered.

    Args:
        base: never changed; every cell tunes a copy.
    """

    base: LanguageModel
    config: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(max_new_tokens=_LONG))
    _base_answers: dict[tuple[str, int], str] = field(default_factory=dict)
    _base_turns: dict[tuple[str, int], KeepTurn] = field(default_factory=dict)

    def fresh(self) -> LanguageModel:
        """A copy of the base, to be tuned."""
        return LanguageModel(copy.deepcopy(self.base.causal), self.base.codec, self.base.name, self.base.revision)

    def _before(self, probes: Sequence[Probe], config: EvaluateConfig) -> list[str]:
        asked = [(repr(probe.messages), config.max_new_tokens) for probe in probes]
        new = {key: probe for key, probe in zip(asked, probes, strict=True) if key not in self._base_answers}
        self._base_answers.update(zip(new, answers(self.base, list(new.values()), config), strict=True))
        return [self._base_answers[key] for key in asked]

    def _continuations(self, chats: Sequence[list[Message]], limit: int) -> list[KeepTurn]:
        new = [chat for chat in chats if (repr(chat), limit) not in self._base_turns]
        prompts = [self.base.codec.encode_prompt(chat) for chat in new]
        for batch in decode_batch(self.base, prompts, limit, batch_size=self.config.batch_size):
            for index, answer in batch:
                self._base_turns[repr(new[index]), limit] = KeepTurn(prompts[index], answer.ids)
        return [self._base_turns[repr(chat), limit] for chat in chats]

    def score(
        self, tuned: LanguageModel, probes: Sequence[Probe], answer_tokens: int = _LONG
    ) -> dict[str, float | None]:
        """The fractions alone, for choosing options."""
        return fractions(self._judge(tuned, probes, probes, answer_tokens))

    def _judge(
        self, tuned: LanguageModel, probes: Sequence[Probe], asked: Sequence[Probe], answer_tokens: int
    ) -> list[ProbeResult]:
        """Base and tuned model answer; `asked` is what the tuned one is asked instead of the probes themselves."""
        config = self.config.updated(max_new_tokens=answer_tokens)
        before, after = self._before(probes, config), answers(tuned, asked, config)
        return [
            ProbeResult(probe, old, new, score(probe, old), score(probe, new))
            for probe, old, new in zip(probes, before, after, strict=True)
        ]

    def measure(
        self,
        tuned: LanguageModel,
        task: Task,
        probes: Sequence[Probe],
        kl_short: int,
        notes: dict[str, list[Message]] | None = None,
        answer_tokens: int = _LONG,
    ) -> Measured:
        """Everything about a tuned model.

        Args:
            tuned: the model.
            task: whose long prompts measure the drift in long answers.
            probes: to ask.
            kl_short: how many short reference continuations.
            notes: by probe id, other messages to put to the tuned model (the context ceiling).
            answer_tokens: maximum number of tokens of an answer.
        """
        asked = [
            probe.model_copy(update={"messages": notes[probe.id]}) if notes and probe.id in notes else probe
            for probe in probes
        ]
        results = self._judge(tuned, probes, asked, answer_tokens)
        known = [result for result in results if result.probe.kind == "retain" and result.base_right]
        chats = [
            probe.messages for probe in probes if probe.kind in ("retain", "skill") and "biography" not in probe.tags
        ][::7][:kl_short]
        chats = [probe.messages for probe in task.everyday] or chats
        kl_short_mean, strips = self._drift(tuned, chats, _EVERYDAY if task.everyday else _LONG)
        kl_long_mean, long_strips = self._drift(tuned, task.long_prompts, _LONG)
        worst = sorted([*strips, *long_strips], key=lambda strip: -_mean(strip["kl"]))[:_STRIPS]
        return Measured(
            {
                **fractions(results),
                **self._everyday(tuned, task),
                "kl_short": kl_short_mean,
                "kl_long": kl_long_mean,
                "flips": len(_flipped(results)),
                "facts_lost": sum(not result.tuned_right for result in known),
                "facts_known": len(known),
            },
            {
                _by_kind(result.probe): int(result.tuned_right)
                for result in results
                if result.probe.kind in LEARNED_KINDS or result.base_right
            },
            _examples(results),
            worst,
        )

    def _everyday(self, tuned: LanguageModel, task: Task) -> dict[str, float | int]:
        """How many everyday answers begin word for word as they did, and in how many a corrected value turns up."""
        if not task.everyday:
            return {}
        results = self._judge(tuned, task.everyday, task.everyday, _EVERYDAY)
        judges = [probe for probe in task.test if probe.kind == "recall"]
        leaks = [
            any(score(judge, result.tuned_answer) and not score(judge, result.base_answer) for judge in judges)
            for result in results
        ]
        # With the base's answer on this machine, not with one remembered from another: near ties may fall otherwise.
        same = [result.tuned_answer == result.base_answer for result in results]
        return {"same": sum(same) / len(results), "leaks": sum(leaks)}

    def _drift(
        self, tuned: LanguageModel, chats: Sequence[list[Message]], limit: int
    ) -> tuple[float | None, list[dict[str, Any]]]:
        turns = self._continuations(chats, limit)
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
