"""What a method costs: tokens and actions of the annotator, tokens trained, FLOPs, memory."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchorlwf.arena.plan import Method
from anchorlwf.arena.questions import Correction
from anchorlwf.data.record import Record
from anchorlwf.model.language_model import LanguageModel
from anchorlwf.training.step_sampler import StepPlan

__all__ = [
    "TunedModel",
    "annotation_cost",
    "baseline_flops",
    "peak_memory",
    "reset_peak_memory",
    "train_flops",
    "train_tokens",
]


@dataclass
class TunedModel:
    """A copy of the base as a method leaves it, what that took, and the loss at every step."""

    model: LanguageModel
    costs: dict[str, Any] = field(default_factory=dict)
    """As `Costs` in results.json has them."""
    curve: list[dict[str, float | None]] = field(default_factory=list)

    def add(
        self,
        annotation: dict[str, int],
        *,
        trained_tokens: int = 0,
        steps: int = 0,
        seconds: float = 0.0,
        flops: float = 0.0,
        converged: bool | None = None,
    ) -> None:
        """Add the costs of one group of corrections (a stream has several); the whole converged if every group did.

        Args:
            annotation: from `annotation_cost`.
            trained_tokens, steps, seconds, flops: what training took.
            converged: None where no stop rule was at work.
        """
        before = self.costs
        spent = {**annotation, "trained_tokens": trained_tokens, "steps": steps, "seconds": seconds, "flops": flops}
        self.costs = {
            **before,
            **{name: before.get(name, 0) + amount for name, amount in spent.items()},
            "converged": converged if before.get("converged", True) is True else before["converged"],
        }


def annotation_cost(method: Method, corrections: Sequence[Correction], records: Sequence[Record]) -> dict[str, int]:
    """Annotated tokens, an estimate of a person's actions, and the tokens of all answers that were corrected.

    The model's own answer: two actions for each correction (point, give the right token; adjacent anchors are one
    correction) and one to accept. A written answer: one for each word and one to hand it in. A checker or a note:
    one for each fact.
    """
    completion_tokens = sum(len(record.completion_ids) for record in records)
    if method.trainer in ("grpo", "context") and not method.warm:
        annotated, actions = 0, len({correction.group for correction in corrections})
    elif method.words == "human":
        words = sum(len((correction.human or "").split()) for correction in corrections)
        annotated, actions = completion_tokens, words + len(corrections)
    else:
        annotated = sum(len(record.anchors) for record in records)
        actions = 2 * sum(_anchor_runs(record) for record in records) + len(records)
    return {"annotated_tokens": annotated, "annotation_actions": actions, "completion_tokens": completion_tokens}


def _anchor_runs(record: Record) -> int:
    """Runs of adjacent anchors."""
    positions = {anchor.position for anchor in record.anchors}
    return sum(position - 1 not in positions for position in positions)


def train_tokens(records: Sequence[Record], steps: int, batch_size: int) -> int:
    """Tokens (prompt and completion) that go through the model in so many steps."""
    anchored = [record for record in records if record.anchors]
    kept = [record for record in records if not record.anchors]
    plan = StepPlan.of(len(anchored), len(kept), batch_size=batch_size, micro_batches=1)
    return round(steps * (plan.corrections * _mean_length(anchored) + plan.keeps * _mean_length(kept)))


def _mean_length(records: Sequence[Record]) -> float:
    """Tokens of prompt and completion; 0 for no records."""
    return sum(len(record.prompt_ids) + len(record.completion_ids) for record in records) / max(1, len(records))


def train_flops(model: LanguageModel, tokens: int, *, reference: bool) -> float:
    """Estimated floating-point operations of training on so many tokens.

    2 per weight and token forward, 2 backward (the weights are frozen: only activations have gradients), and 2 for the
    reference's forward pass where there is one.
    """
    return float(_weights(model)) * tokens * (6 if reference else 4)


def baseline_flops(model: LanguageModel, positions: int) -> float:
    """Estimated operations for so many token positions put through the network in any pass of GRPO, DPO or SDFT.

    2 per weight and position, and 2 more for the third of them that gradients flow through.
    """
    return float(_weights(model)) * positions * (2 + 2 / 3)


def _weights(model: LanguageModel) -> int:
    return sum(parameter.numel() for parameter in model.causal.parameters())


def reset_peak_memory() -> None:
    """Reset the process's high-water mark, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """Maximum resident memory in bytes since `reset_peak_memory`; None where the system does not report it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
