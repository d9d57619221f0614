"""The stop rule as a callback of `transformers.Trainer`: steers, logs, certifies, stops."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from anchorlwf.config import TrainConfig

__all__ = ["Certificate", "DriftBudget", "StopRule", "holding"]

_AIM, _GAIN, _SLOWEST, _FASTEST, _MOST = 0.8, 0.25, 0.8, 1.5, 1e4


@dataclass(frozen=True)
class Certificate:
    """What the tuned model does with its own training records, at fixed weights."""

    anchors: int
    anchors_held: int
    """Greedy choice, and at least `hold` times the target probability."""
    records: int
    records_reproduced: int
    """Every completion token is the greedy choice: free-running decoding then returns the completion."""
    keep_tokens: int
    keep_kl: float
    """Mean KL(reference || model) over keep tokens, nats per token."""

    def passes(self, budget: float) -> bool:
        """Every anchor holds, every record is reproduced, the drift is within `budget` (nats per token)."""
        return not self.missing(budget)

    def missing(self, budget: float) -> list[str]:
        """Which of the three conditions are not met, as sentences that say what may help."""
        lacks = []
        if self.anchors_held != self.anchors:
            lacks.append(f"{self.anchors_held} of {self.anchors} anchors held; more steps may help")
        if self.records_reproduced != self.records:
            reproduced = f"{self.records_reproduced} of {self.records} answers reproduced greedily"
            lacks.append(f"{reproduced}; more steps may help")
        if not self.keep_kl <= budget:
            lacks.append(
                f"a drift within {budget:g} nats per token, which is {self.keep_kl:.5f}; a larger budget may help"
            )
        return lacks

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def holding(
    best_N: Tensor, log_p_N: Tensor, token_ids_N: Tensor, confidence_N: Tensor, ref_p_N: Tensor, hold: float
) -> Tensor:
    """Which anchors hold: bool [N], False at keep tokens.

    The target gives an anchor the probability m = c + (1 - c) p_ref; it holds as the greedy choice with at least
    `hold * m`. At confidence 1 that is simply `hold`.

    Args:
        best_N: int64, the model's greedy choice.
        log_p_N: its log-probability of the standing token, nats.
        token_ids_N: int64, the standing tokens.
        confidence_N: c, 0 at keep tokens.
        ref_p_N: the reference's probability of the standing token.
        hold: share of the target probability, in (0, 1).
    """
    target_N = confidence_N + (1 - confidence_N) * ref_p_N
    return (confidence_N > 0) & (best_N == token_ids_N) & (log_p_N >= (hold * target_N).log())


class DriftBudget:
    """Steers beta, the weight of the keep tokens, by the drift measured at every step."""

    def __init__(self, config: TrainConfig) -> None:
        self._floor, self._budget = config.beta, config.drift_budget
        self.beta = config.beta

    def observe(self, keep_kl: float) -> None:
        """Adjust beta after a step whose batch showed this mean KL (nats per keep token)."""
        # A proportional controller on a logarithmic scale, its step bounded both ways.
        error = max(keep_kl, 1e-12) / (_AIM * self._budget)
        factor = min(max(error**_GAIN, _SLOWEST), _FASTEST)
        self.beta = min(max(self.beta * factor, self._floor), self._floor * _MOST)


def mean(total: Tensor, count: Tensor) -> float:
    """A mean that is 0 where there is nothing to average."""
    return float(total / torch.clamp(count, min=1))


if TYPE_CHECKING:
    from anchorlwf.training.trainer import AnchorTrainer


class StopRule(TrainerCallback, ExportableState):
    """After each optimizer step: steer beta, log a row, and stop once a certificate passes.

    A certificate costs a pass over the data without gradient, so it is asked for only when the batches of a whole
    epoch have looked good in passing.

    Args:
        trainer: whose sums it reads. Set after construction, for the trainer wants its callbacks first.
        on_row: called with every row that is logged.
    """

    def __init__(self, on_row: Callable[[dict[str, Any]], None]) -> None:
        self.trainer: AnchorTrainer | None = None
        self.certificate: Certificate | None = None
        self._on_row = on_row
        self._good_steps = 0
        self._sums: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold so that resuming is exact."""
        assert self.trainer is not None
        return {"args": {}, "attributes": {"beta": self.trainer.budget.beta, "good_steps": self._good_steps}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up beta and the streak from the checkpoint, where there is one."""
        assert self.trainer is not None
        saved = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and isinstance(saved, dict):
            self.trainer.budget.beta = saved["attributes"]["beta"]
            self._good_steps = saved["attributes"]["good_steps"]

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the step's sums, which describe the weights before it. Raises `ModelError` where they are no numbers."""
        assert self.trainer is not None
        self._sums = self.trainer.take_sums()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step, steer beta, and certify where it is time to."""
        trainer = self.trainer
        assert trainer is not None
        assert self._sums is not None, "read before the step"
        loss, anchors, held, keeps, divergence, records, reproduced = self._sums
        keep_kl = mean(divergence, keeps)
        row = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "loss": float(loss),
            "anchors": int(anchors),
            "held": int(held),
            "records": int(records),
            "reproduced": int(reproduced),
            "keep_kl": keep_kl,
            "beta": trainer.budget.beta,
        }
        if state.is_world_process_zero:
            self._on_row(row)
        trainer.budget.observe(keep_kl)
        if trainer.config.stop and self._due(held, anchors, keep_kl, args, state):
            self.certificate = trainer.certify()
            if self.certificate.passes(trainer.config.drift_budget):
                control.should_training_stop = True
            else:
                self._good_steps = 0

    def _due(self, held: Tensor, anchors: Tensor, keep_kl: float, args: TrainingArguments, state: TrainerState) -> bool:
        trainer = self.trainer
        assert trainer is not None
        good = bool(held == anchors) and keep_kl <= trainer.config.drift_budget
        self._good_steps = self._good_steps + 1 if good else 0
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return self._good_steps >= math.ceil(len(trainer.records) / per_step)
