"""When training ends, as a callback of `transformers.Trainer`: it logs, steers, measures, and stops.

Training a handful of anchors is over in a few steps; every further step only forgets. So training ends by what is
wanted, not by a number of steps: each anchor holds, each corrected answer is reproduced greedily, and the drift is
within its budget. Where that cannot be had, it ends once nothing improves any more, with the best weights it has seen.

Meanwhile beta, the weight of the keep tokens, is the multiplier of the drift. Dual ascent raises it while the drift is
over budget and lowers it while there is room. Where both goals cannot be had, plain ascent would raise it for ever,
until the clipped gradient shows nothing but keep tokens and the anchors are lost (the integrator winds up). So beta is
bounded, and the anchors come first: while some of them do not hold, it rises only as long as they go on rising, too,
and it is lowered where they have come to a halt. So is the learning rate, where a step sees only some of the
corrections: of a hundred anchors, a step at full rate always takes some that it is not about below their threshold.
There, too, what the anchors lack once every answer is reproduced is only their margin, and for that beta is not
lowered: it would double the drift.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from anchorlwf.config import TrainConfig
from anchorlwf.training.best_state import BestState
from anchorlwf.training.step_context import StepContext, StepSums
from anchorlwf.training.stop_report import HeldOutDrift, StopReport

__all__ = ["DriftControl", "StopRule"]

_AIM = 0.8
"""Of the budget: a little below, so that noise does not carry the drift over it."""
_GAIN, _FALL, _RISE = 0.25, 0.8, 1.5
"""Exponent of the ratio to the aim, and the smallest and largest factor of one observation."""
_ADVANCE = 0.01
"""Nats that the anchors' mean log-probability gains between two observations while they rise."""
_FLOOR, _RANGE = 0.1, 1e3
"""Beta never falls below the one share of its start for the anchors' sake, nor rises above the other; the learning rate
never falls below the one either."""


class DriftControl:
    """Beta, the share of the learning rate, and what they have seen.

    Args:
        config: `beta` is where it starts, and what it relaxes to; `drift_budget` the maximum mean KL, nats per token.

    Attributes:
        beta: the weight now.
        rate: the share of `learning_rate` now.
        best_held: the largest share of anchors that held at any observation.
        best_log_p: the largest mean log-probability of the anchors, nats.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._start, self._budget = config.beta, config.drift_budget
        self.beta, self.rate, self.best_held, self.best_log_p = config.beta, 1.0, 0.0, -math.inf

    def observe(self, drift: float, held: float, log_p: float, *, reproduced: bool = False) -> None:
        """Adjust both.

        Args:
            drift: mean KL(reference || model), nats per token; where nothing is held out, the divergence that trains,
                of the step's keep tokens.
            held: share of the anchors that hold, in [0, 1].
            log_p: mean log-probability of the anchors, nats.
            reproduced: every answer of many corrections is, so that beta is not lowered for the anchors' margin.
        """
        rising = held > self.best_held or log_p > self.best_log_p + _ADVANCE
        self.best_held, self.best_log_p = max(self.best_held, held), max(self.best_log_p, log_p)
        if held < 1 and not rising:
            self.rate = max(self.rate * _FALL, _FLOOR)
            if not reproduced:
                self.beta = max(self.beta * _FALL, self._start * _FLOOR)
                return
        # A proportional law on a logarithmic scale, its step bounded both ways.
        factor = min(max((max(drift, 1e-12) / (_AIM * self._budget)) ** _GAIN, _FALL), _RISE)
        self.beta = min(max(self.beta * factor, min(self.beta, self._start)), self._start * _RANGE)


_STEERED = ("beta", "rate", "best_held", "best_log_p")
"""What a checkpoint must hold of `DriftControl`."""
_STEER_EVERY = 5
"""Steps between two looks at the held-out answers."""
_BACKWARD = 3
"""How much longer a step takes than a look at its records without gradient."""
_PATIENCE, _PATIENT_PASSES = 40, 12
"""Steps and passes over the corrections without any progress after which training ends."""
_PROGRESS = {"held": 1e-6, "log_p": 0.05, "drift": 0.03}
"""By how much something must have improved to count: share of anchors held, their mean log-probability (nats), and the
drift, as a share of what it was."""


class StopRule(TrainerCallback, ExportableState):
    """After each optimizer step: log a row, steer beta and rate, and stop once all is well or nothing improves.

    A report costs a pass over the data without gradient, so it is asked for only when the steps of a whole pass over
    the corrections have looked good.

    Args:
        context: of the run.
        control: steers beta; and the learning rate, where a step does not hold all corrections and keep records are
            held out.
        best: where the best weights so far are kept.
        take_sums: gives the sums of the step that has just been computed (`AnchorTrainer.take_sums`).
        on_row: called with every row that is logged.
    """

    def __init__(
        self,
        context: StepContext,
        control: DriftControl,
        best: BestState,
        take_sums: Callable[[], StepSums],
        on_row: Callable[[dict[str, Any]], None],
    ) -> None:
        self._context, self._control, self._best = context, control, best
        self._take_sums, self._on_row = take_sums, on_row
        self._pass = context.plan.steps_per_pass(len(context.data.corrections))
        self._interval = max(self._pass, self._between_reports())
        self._recent: deque[tuple[float, ...]] = deque(maxlen=self._pass)
        self._good_steps, self._last_report, self._progress_at = 0, 0, 0
        self._marks = {"held": 0.0, "log_p": -1e9, "drift": 1e9}
        self._sums: StepSums | None = None
        self.plateau = False
        """Training ended because nothing improved any more."""
        self.passed: StopReport | None = None
        """The report that ended training: on the weights as they are then."""

    def _between_reports(self) -> int:
        """Steps that take about as long as a report, which is expensive where keep records are many."""
        data, plan = self._context.data, self._context.plan
        if data.held_out:
            return _STEER_EVERY
        return (len(data.corrections) + len(data.keeps)) // (_BACKWARD * (plan.corrections + plan.keeps))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold so that resuming is exact."""
        own = {
            "recent": [list(row) for row in self._recent],
            "good_steps": self._good_steps,
            "last_report": self._last_report,
            "progress_at": self._progress_at,
            "marks": self._marks,
        }
        steered = {name: getattr(self._control, name) for name in _STEERED}
        best = {"best_drift": repr(self._best.drift), "best_learned": self._best.learned}
        return {"args": {}, "attributes": {**own, **steered, **best}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what the checkpoint has, where there is one."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if not state.global_step or not isinstance(saved, dict):
            return
        own = saved["attributes"]
        self._recent.extend(tuple(row) for row in own["recent"])
        self._good_steps, self._last_report = own["good_steps"], own["last_report"]
        self._progress_at = own["progress_at"]
        self._marks = dict(own["marks"])
        for name in _STEERED:
            setattr(self._control, name, own[name])
        saved_in = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._best.load(saved_in, float(own["best_drift"]), learned=own["best_learned"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the step's sums, which describe the weights before it. Raises `ModelError` where they are no numbers."""
        self._sums = self._take_sums()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the step, steer, and report where it is time to."""
        sums = self._sums
        assert sums is not None, "read before the step"
        step, keep_kl = state.global_step, sums.keep_kl / max(1.0, sums.keeps)
        self._recent.append((sums.anchors, sums.held, sums.anchor_log_p, sums.records, sums.reproduced))
        due = self._due(sums, step)
        steers = self._context.data.held_out and (due or step % _STEER_EVERY == 0 or step == state.max_steps)
        held_out = self._context.drift() if steers else {}
        if state.is_world_process_zero:
            self._on_row(self._row(sums, keep_kl, held_out, state))
        if held_out or not self._context.data.held_out:
            self._steer(held_out["all"].mean if held_out else keep_kl)
        for group in kwargs["optimizer"].param_groups:
            # At every step, for the scheduler of a constant rate has set it anew.
            group["lr"] = self._rate
        if due:
            self._last_report = step
        if self._context.config.stop:
            self._decide(held_out if due else None, step, control)

    def _steer(self, drift: float) -> None:
        """Let the control see where the run stands, and keep weights that may be the best there will be."""
        reproduced = self._sampled and self._all_reproduced()
        self._control.observe(drift, **self._last_pass(), reproduced=reproduced)
        if reproduced and self._context.config.stop:
            self._best.offer(drift, learned=False)

    def _row(
        self, sums: StepSums, keep_kl: float, held_out: dict[str, HeldOutDrift], state: TrainerState
    ) -> dict[str, Any]:
        row = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "loss": sums.loss,
            "anchors": int(sums.anchors),
            "held": int(sums.held),
            # The geometric mean: one forgotten anchor shows.
            "anchor_probability": math.exp(sums.anchor_log_p / max(1.0, sums.anchors)),
            "records": int(sums.records),
            "reproduced": int(sums.reproduced),
            "keep_kl": keep_kl,
            "beta": self._control.beta,
            "learning_rate": self._rate,
        }
        return {**row, "held_out": {kind: asdict(drift) for kind, drift in held_out.items()}} if held_out else row

    @property
    def _rate(self) -> float:
        """The learning rate now."""
        return self._context.config.learning_rate * (self._control.rate if self._sampled else 1.0)

    @property
    def _sampled(self) -> bool:
        """Whether a step sees only some of the corrections, and keep records are held out."""
        return self._pass > 1 and bool(self._context.data.held_out)

    def _all_reproduced(self) -> bool:
        """Whether the answers in as many steps as a pass has were reproduced, where that is asked for.

        Steps that reach from one round into the next may leave some corrections out; the last word has a report.
        """
        if len(self._recent) < self._pass or not self._context.config.reproduce:
            return False
        return all(reproduced == records for *_, records, reproduced in self._recent)

    def _last_pass(self) -> dict[str, float]:
        """Of the anchors of the last pass: the share that held, and their mean log-probability in nats."""
        anchors, held, log_p, *_ = (sum(column) for column in zip(*self._recent, strict=True))
        return {"held": held / max(1.0, anchors), "log_p": log_p / max(1.0, anchors)}

    def _due(self, sums: StepSums, step: int) -> bool:
        """Whether a whole pass over the corrections has looked good, and none was reported on lately."""
        good = sums.held == sums.anchors and (sums.reproduced == sums.records or not self._context.config.reproduce)
        self._good_steps = self._good_steps + 1 if good else 0
        return self._good_steps >= self._pass and step - self._last_report >= self._interval

    def _decide(self, held_out: dict[str, HeldOutDrift] | None, step: int, control: TrainerControl) -> None:
        """Stop where the report passes, or where neither anchors nor drift have improved for long.

        Args:
            held_out: drift of the present weights where a report is due; None: it is not.
            step: that has been taken.
            control: where a stop is asked for.
        """
        drift = None
        if held_out is not None:
            report = self._context.report(step, held_out)
            if report.learned:
                drift = report.drift
                self._best.offer(drift)
            if report.passes(self._context.config.drift_budget):
                self.passed = report
                control.should_training_stop = True
                return
        self._note_progress(drift, step)
        if step - self._progress_at >= max(_PATIENCE, _PATIENT_PASSES * self._pass):
            self.plateau = control.should_training_stop = True

    def _note_progress(self, drift: float | None, step: int) -> None:
        now = self._last_pass()
        better = [name for name, value in now.items() if value > self._marks[name] + _PROGRESS[name]]
        if drift is not None and drift < self._marks["drift"] * (1 - _PROGRESS["drift"]):
            better.append("drift")
            now["drift"] = drift
        for name in better:
            self._marks[name] = now[name]
        if better:
            self._progress_at = step
