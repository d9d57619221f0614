"""Measuring: free-running greedy answers of base and tuned model, scored; drift on held-out continuations."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import set_seed

from anchorlwf.config import EvaluateConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.divergence import token_kl
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Drift", "ProbeResult", "answers", "compare", "drift", "prompts_of", "recall_probes", "reference_answers"]

Progress = Callable[[str, int, int], None]
Known = Mapping[tuple[int, ...], list[int]]
"""Token ids of answers by token ids of their prompts."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe's answers before and after training."""

    probe: Probe
    base_answer: str
    tuned_answer: str
    base_right: bool
    tuned_right: bool

    @property
    def texts(self) -> dict[str, str]:
        """Question, expected, before and after, as results list them."""
        return {
            "question": str(self.probe.messages[-1].get("content", "")),
            "expected": " or ".join(self.probe.accepted),
            "before": self.base_answer,
            "after": self.tuned_answer,
        }


@dataclass(frozen=True)
class Drift:
    """KL(reference || model), nats per token, on held-out reference continuations."""

    per_turn: list[list[float]]
    prompts: list[str]

    @property
    def tokens(self) -> list[float]:
        """Every token's KL."""
        return [value for turn in self.per_turn for value in turn]

    @property
    def mean(self) -> float:
        """Nats per token; 0.0 where nothing was measured."""
        tokens = self.tokens
        return sum(tokens) / len(tokens) if tokens else 0.0


def recall_probes(records: Sequence[Record]) -> list[Probe]:
    """One recall probe per corrected record: free-running decoding must give exactly the corrected text."""
    return [
        Probe(
            id=f"record:{record.id}",
            kind="recall",
            messages=record.messages,
            tools=record.tools,
            expected=record.completion.strip(),
            scorer="exact",
            group=record.id,
            tags=record.tags,
        )
        for record in records
        if record.status == "complete" and record.anchors and record.completion.strip()
    ]


def answers(
    model: LanguageModel, probes: Sequence[Probe], config: EvaluateConfig, report: Callable[[int], None] | None = None
) -> list[str]:
    """Free-running answers, greedy or as the model's own settings have them, in the order of the probes."""
    return [model.codec.decode(ids) for ids in _decoded(model, prompts_of(model, probes), config, report)]


def reference_answers(
    tuned: LanguageModel,
    base: LanguageModel | None,
    prompts: Sequence[list[int]],
    config: EvaluateConfig,
    progress: Progress | None = None,
    known: Known | None = None,
) -> dict[tuple[int, ...], list[int]]:
    """What the base answers before training, each prompt asked once, and not at all where that is known.

    Args:
        tuned: the tuned model.
        base: the model before training; None: the tuned model's own reference.
        prompts: token ids of what is asked.
        config: limits, and how answers are decoded.
        progress: called with ("base", answers there are, all that are missing).
        known: greedy answers that it gives within the same limits. They count only where answers are greedy.

    Returns:
        Token ids of the answer by token ids of the prompt: what was asked, and what was known.
    """
    found = dict(known or {}) if config.generation == "greedy" else {}
    missing = [ids for ids in dict.fromkeys(map(tuple, prompts)) if ids not in found]

    def ask(model: LanguageModel) -> None:
        told = _reporter(progress, "base", len(missing))
        found.update(zip(missing, _decoded(model, [list(ids) for ids in missing], config, told), strict=True))

    if not missing:
        return found
    if base is not None:
        ask(base)
    else:
        with tuned.as_reference() as reference:
            ask(reference)
    return found


def compare(
    tuned: LanguageModel,
    base: LanguageModel | None,
    probes: Sequence[Probe],
    config: EvaluateConfig,
    progress: Progress | None = None,
    known: Known | None = None,
) -> list[ProbeResult]:
    """Ask base and tuned model every probe. `base`, `known`: as for `reference_answers`."""
    prompts = prompts_of(tuned, probes)
    found = reference_answers(tuned, base, prompts, config, progress, known)
    before = [found[tuple(prompt)] for prompt in prompts]
    after = _decoded(tuned, prompts, config, _reporter(progress, "tuned", len(probes)))
    texts = ([tuned.codec.decode(ids) for ids in said] for said in (before, after))
    return [
        ProbeResult(probe, old, new, score(probe, old), score(probe, new))
        for probe, old, new in zip(probes, *texts, strict=True)
    ]


def drift(
    tuned: LanguageModel,
    base: LanguageModel | None,
    probes: Sequence[Probe],
    config: EvaluateConfig,
    known: Known | None = None,
) -> Drift:
    """KL on the reference's own greedy continuations of held-out prompts (probes of unrelated facts and skills).

    `base`, `known`: as for `reference_answers`.
    """
    held_out = [probe for probe in probes if probe.kind in ("retain", "skill")]
    chosen = random.Random(config.seed).sample(held_out, min(config.kl_prompts, len(held_out)))
    prompts = prompts_of(tuned, chosen)
    greedy = reference_answers(tuned, base, prompts, config.updated(generation="greedy"), known=known)
    turns = [KeepTurn(prompt, greedy[tuple(prompt)]) for prompt in prompts]
    texts = [str(probe.messages[-1].get("content", "")) for probe in chosen]
    return Drift(token_kl(tuned, base, turns), texts)


def _reporter(progress: Progress | None, name: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(name, done, total)


def prompts_of(model: LanguageModel, probes: Sequence[Probe]) -> list[list[int]]:
    """Token ids of what each probe asks."""
    return [model.codec.encode_prompt(probe.messages, probe.tools) for probe in probes]


def _decoded(
    model: LanguageModel, prompts: list[list[int]], config: EvaluateConfig, report: Callable[[int], None] | None
) -> list[list[int]]:
    """Token ids of the answers, in the order of the prompts."""
    found: list[list[int]] = [[]] * len(prompts)
    done = 0
    if config.generation == "own":
        set_seed(config.seed)  # these settings may draw at random
    batches = decode_batch(
        model, prompts, config.max_new_tokens, batch_size=config.batch_size, settings=config.generation
    )
    for batch in batches:
        for index, answer in batch:
            found[index] = answer.ids
        done += len(batch)
        if report is not None:
            report(done)
    return found
