"""What the stop rule goes by: how the tuned model stands with the records of its run, at fixed weights.

Shape suffix: N completion tokens of one micro-batch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["HeldOutDrift", "StopReport", "holding"]


@dataclass(frozen=True)
class HeldOutDrift:
    """KL(reference || model) on keep records that were never trained on, nats per token."""

    records: int
    tokens: int
    mean: float
    low: float
    """Of the 95 % interval of the mean; records are the independent unit."""
    high: float
    worst: float
    """Mean of the worst per cent of tokens, at least one token."""

    @classmethod
    def of(cls, kl: Sequence[Sequence[float]]) -> "HeldOutDrift":
        """From the KL at every token of every record; at least one record."""
        tokens = sorted((value for record in kl for value in record), reverse=True)
        count, records = len(tokens), len(kl)
        mean = math.fsum(tokens) / count
        # A ratio of sums over records: its variance comes from how far each record is from the common mean.
        residuals = [math.fsum(record) - mean * len(record) for record in kl]
        spread = math.fsum(residual**2 for residual in residuals) * records / max(1, records - 1)
        half = 1.96 * math.sqrt(spread) / count
        few = max(1, count // 100)
        return cls(records, count, mean, max(0.0, mean - half), mean + half, math.fsum(tokens[:few]) / few)


@dataclass(frozen=True)
class StopReport:
    """What the tuned model does with the records it was trained on, and with those held out."""

    anchors: int
    anchors_held: int
    """Greedy choice, and at least `hold` times the target probability."""
    records: int
    """Corrected ones."""
    records_reproduced: int
    """Every completion token is the greedy choice: free-running decoding then returns the completion."""
    keep_tokens: int
    """Of all records that are trained on; where keep records are held out, of the corrected ones."""
    keep_kl: float
    """Mean KL(reference || model) over them, nats per token."""
    held_out: Mapping[str, HeldOutDrift] = field(default_factory=dict)
    """By kind (`general`, `near`), and `all` of them; empty where no keep records were held out."""
    reproduce: bool = True
    """Whether reproduced answers are asked for."""

    @property
    def drift(self) -> float:
        """What the budget is compared with: the mean over held-out answers; without any, over the keep tokens."""
        return self.held_out["all"].mean if "all" in self.held_out else self.keep_kl

    @property
    def learned(self) -> bool:
        """Every anchor holds and every corrected answer is reproduced, where that is asked for."""
        return self.anchors_held == self.anchors and not self._lacks_answers

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Of weights of one run: the smallest is the best. What is learned goes before drift."""
        return not self.learned, (self.records - self.records_reproduced) * self.reproduce, self.drift

    @property
    def _lacks_answers(self) -> bool:
        return self.reproduce and self.records_reproduced != self.records

    def passes(self, budget: float) -> bool:
        """Every anchor holds, every answer is reproduced, the drift is within `budget` (nats per token)."""
        return not self.missing(budget)

    def missing(self, budget: float) -> list[str]:
        """Which of the three conditions are not met, as sentences that say what may help."""
        lacks = []
        if self.anchors_held != self.anchors:
            lacks.append(f"{self.anchors_held} of {self.anchors} anchors held; more steps may help")
        if self._lacks_answers:
            reproduced = f"{self.records_reproduced} of {self.records} answers reproduced greedily"
            lacks.append(f"{reproduced}; more steps may help")
        if not self.drift <= budget:
            times = self.drift / budget
            lacks.append(
                f"a drift within {budget:g} nats per token, which is {self.drift:.5f}, {times:.1f} times as much; "
                "a larger budget may help"
            )
        return lacks


def holding(greedy_N: Tensor, log_p_N: Tensor, confidence_N: Tensor, ref_log_p_N: Tensor, hold: float) -> Tensor:
    """Which anchors hold: bool [N], False at keep tokens.

    The target gives an anchor the probability m = c + (1 - c) p_ref; it holds as the greedy choice with at least
    `hold * m`. At confidence 1 that is simply `hold`.

    Args:
        greedy_N: bool, whether the standing token is the model's greedy choice.
        log_p_N: its log-probability, nats.
        confidence_N: c, 0 at keep tokens.
        ref_log_p_N: the reference's log-probability of the standing token, nats.
        hold: share of the target probability, in (0, 1).
    """
    target_N = confidence_N + (1 - confidence_N) * ref_log_p_N.exp()
    return (confidence_N > 0) & greedy_N & (log_p_N >= (hold * target_N).log())
