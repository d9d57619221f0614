"""Measuring: free-running greedy answers of base and tuned model, scored; drift on held-out continuations."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import set_seed

from anchorlwf.config import EvaluateConfig
from anchorlwf.data.probe import Probe, score
from anchorlwf.data.record import Record
from anchorlwf.decoding.greedy import decode_batch
from anchorlwf.divergence import token_kl
from anchorlwf.model.batch import KeepTurn
from anchorlwf.model.language_model import LanguageModel

__all__ = ["Drift", "ProbeResult", "answers", "compare", "drift", "recall_probes"]

Progress = Callable[[str, int, int], None]


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
    prompts = [model.codec.encode_prompt(probe.messages, probe.tools) for probe in probes]
    texts = [""] * len(prompts)
    done = 0
    if config.generation == "own":
        set_seed(config.seed)  # these settings may draw at random
    batches = decode_batch(
        model, prompts, config.max_new_tokens, batch_size=config.batch_size, settings=config.generation
    )
    for batch in batches:
        for index, answer in batch:
            texts[index] = model.codec.decode(answer.ids)
        done += len(batch)
        if report is not None:
            report(done)
    return texts


def compare(
    tuned: LanguageModel,
    base: LanguageModel | None,
    probes: Sequence[Probe],
    config: EvaluateConfig,
    progress: Progress | None = None,
) -> list[ProbeResult]:
    """Ask base and tuned model every probe. `base` None: the tuned model's own reference."""

    def reporter(name: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(name, done, len(probes))

    if base is not None:
        before = answers(base, probes, config, reporter("base"))
    else:
        with tuned.as_reference() as reference:
            before = answers(reference, probes, config, reporter("base"))
    after = answers(tuned, probes, config, reporter("tuned"))
    return [
        ProbeResult(probe, old, new, score(probe, old), score(probe, new))
        for probe, old, new in zip(probes, before, after, strict=True)
    ]


def drift(tuned: LanguageModel, base: LanguageModel | None, probes: Sequence[Probe], config: EvaluateConfig) -> Drift:
    """KL on the reference's own greedy continuations of held-out prompts (probes of unrelated facts and skills)."""
    held_out = [probe for probe in probes if probe.kind in ("retain", "skill")]
    chosen = random.Random(config.seed).sample(held_out, min(config.kl_prompts, len(held_out)))
    prompts = [tuned.codec.encode_prompt(probe.messages, probe.tools) for probe in chosen]
    continuations: list[list[int]] = [[]] * len(prompts)

    def decode(model: LanguageModel) -> None:
        for batch in decode_batch(model, prompts, config.max_new_tokens, batch_size=config.batch_size):
            for index, answer in batch:
                continuations[index] = answer.ids

    if base is not None:
        decode(base)
    else:
        with tuned.as_reference() as reference:
            decode(reference)
    turns = [KeepTurn(prompt, ids) for prompt, ids in zip(prompts, continuations, strict=True)]
    texts = [str(probe.messages[-1].get("content", "")) for probe in chosen]
    return Drift(token_kl(tuned, base, turns), texts)
