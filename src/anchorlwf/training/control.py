"""When to stop, what still pulls, and how hard the keep tokens hold: the stop rule, the hinge and the drift budget.

Training a handful of anchors is over in a few steps; every further step only forgets. So training is ended by what is
wanted, not by a number of steps: each anchor holds, each answer is reproduced greedily, and the mean
KL(reference || model) at keep tokens is within the budget. The weight of the keep tokens (beta) follows the drift:
it grows while the drift is over four fifths of the budget and relaxes, never below its start, while it is under.

Shape suffix: N completion tokens of one micro-batch.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from anchorlwf.config import TrainConfig

__all__ = ["Certificate", "DriftBudget", "holding"]

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
