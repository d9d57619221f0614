"""How hard the keep tokens hold: the weight beta, steered by the drift.

Training wants two things: every anchor held, and a drift within its budget. Beta is the multiplier of the second. Dual
ascent raises it while the drift is over budget and lets it down while there is room. Where both cannot be had, plain
ascent would raise it for ever, until the clipped gradient shows nothing but keep tokens and the anchors are lost (the
integrator winds up). So it is bounded, and it remembers the other goal: while anchors that held before are being lost,
it does not rise.
"""

from anchorlwf.config import TrainConfig

__all__ = ["DriftControl"]

_AIM = 0.8
"""Of the budget: a little below, so that noise does not carry the drift over it."""
_GAIN, _FALL, _RISE = 0.25, 0.8, 1.5
"""Exponent of the ratio to the aim, and the smallest and largest factor of one observation."""
_RANGE = 1e3
"""Beta never exceeds so many times its start."""


class DriftControl:
    """Beta, and what it has seen.

    Args:
        config: `beta` is where it starts, and its minimum; `drift_budget` the maximum mean KL, nats per token.

    Attributes:
        beta: the weight now.
        best_held: the largest share of anchors that held at any observation.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._start, self._budget = config.beta, config.drift_budget
        self.beta, self.best_held = config.beta, 0.0

    def observe(self, drift: float, held: float) -> None:
        """Adjust beta.

        Args:
            drift: mean KL(reference || model), nats per token.
            held: share of the anchors that hold, in [0, 1].
        """
        # A proportional law on a logarithmic scale, its step bounded both ways.
        factor = min(max((max(drift, 1e-12) / (_AIM * self._budget)) ** _GAIN, _FALL), _RISE)
        losing, self.best_held = held < self.best_held, max(self.best_held, held)
        if factor > 1 and losing:
            return
        self.beta = min(max(self.beta * factor, self._start), self._start * _RANGE)
