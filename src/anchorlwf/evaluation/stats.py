"""Bootstrap intervals of means and of paired differences."""

from collections.abc import Sequence

import numpy as np

__all__ = ["bootstrap_interval", "paired_interval"]


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean; (nan, nan) of nothing.

    Where all values are equal the interval is a point. It then says nothing about cases that were not sampled.
    """
    if not len(values):
        return float("nan"), float("nan")
    data = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = np.array([data[generator.integers(0, len(data), len(data))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_interval(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of mean(after) - mean(before), where both measured the same items in this order.

    Items are resampled, not measurements: what makes an item hard for both cancels out, so the interval is as wide as
    the changes are, not as wide as the items differ.
    """
    assert len(before) == len(after), "paired: one measurement of each item before and after"
    changes = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return bootstrap_interval(changes.tolist(), level=level, resamples=resamples, seed=seed)
