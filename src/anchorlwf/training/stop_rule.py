"""The stop rule as a callback of `transformers.Trainer`: steers, logs, certifies, stops."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from anchorlwf.training.control import Certificate, mean

if TYPE_CHECKING:
    from anchorlwf.training.trainer import AnchorTrainer

__all__ = ["StopRule"]


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
