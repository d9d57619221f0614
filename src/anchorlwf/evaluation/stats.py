"""Bootstrap intervals of means, paired comparisons, and their correction for multiple testing."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Paired", "bootstrap_interval", "holm", "paired_bootstrap", "paired_interval", "paired_ratio", "sign_flip"]


def bootstrap_interval(
    values: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, or of the weighted mean; (nan, nan) of nothing.

    Where all values are equal the interval is a point. It then says nothing about cases that were not sampled.
    """
    if not len(values):
        return float("nan"), float("nan")
    data = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(data) if weights is None else np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # Many resamples at a time (the draws are the same), but never more than a few megabytes of them.
    at_once = max(1, 1_000_000 // len(data))
    sizes = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    drawn = (generator.integers(0, len(data), (size, len(data))) for size in sizes)
    means = np.concatenate([(data * shares)[rows].sum(axis=1) / shares[rows].sum(axis=1) for rows in drawn])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Paired:
    """A mean difference between two methods."""

    difference: float
    low: float
    high: float
    p: float
    """Two-sided, from the resamples beyond zero; never below 2 / (resamples + 1), and 1 for a single difference."""


_ROUNDING = 1e-12


def _resampled_means(blocks: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """Means of block means [resamples, D] with blocks and, inside each drawn block, rows [n, D] drawn again.

    Rows that are alike (most are, being 0 or 1) are drawn as one multinomial count: the same distribution, far less
    work.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(blocks), (resamples, len(blocks)))
    means = np.empty((resamples, len(blocks), blocks[0].shape[1]))
    for index, rows in enumerate(blocks):
        values, counts = np.unique(rows, axis=0, return_counts=True)
        chosen = drawn == index
        picked = generator.multinomial(len(rows), counts / len(rows), size=int(chosen.sum()))
        means[chosen] = picked @ values / len(rows)
    return means.mean(axis=1)


def paired_bootstrap(
    differences: Sequence[Sequence[float]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Paired:
    """Mean difference of two methods with a percentile interval from a two-level bootstrap.

    Args:
        differences: a block for each seed that both methods ran; in it a difference for each probe that both were
            asked (or a single one, the difference of their means). Seeds count alike, whatever their probes.
        level: of the interval.
        resamples: seeds are drawn again, and in each drawn seed its probes.
        seed: of the draws.

    Raises:
        ValueError: no block, or an empty one.
    """
    if not differences or not all(len(block) for block in differences):
        raise ValueError("differences: expected at least one in every block, got an empty one. Leave it out.")
    blocks = [np.asarray(block, dtype=np.float64).reshape(-1, 1) for block in differences]
    means = _resampled_means(blocks, resamples, seed)[:, 0]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    beyond = min((means <= _ROUNDING).sum(), (means >= -_ROUNDING).sum())
    observed = float(np.mean([block.mean() for block in blocks]))
    # Drawing one difference again and again gives always the same, which is no evidence.
    alone = sum(map(len, blocks)) == 1
    p = 1.0 if alone else min(1.0, 2 * (int(beyond) + 1) / (resamples + 1))
    return Paired(observed, float(low), float(high), p)


def paired_ratio(
    pairs: Sequence[Sequence[tuple[float, float]]], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Ratio of two means (first / second) with its interval, from the same two-level bootstrap.

    A second mean of zero makes the ratio infinite, or 0 where the first is zero as well: nothing was lost of nothing.
    """
    blocks = [np.asarray(block, dtype=np.float64).reshape(-1, 2) for block in pairs]
    observed = np.mean([block.mean(axis=0) for block in blocks], axis=0)
    means = np.vstack([observed, _resampled_means(blocks, resamples, seed)])
    top, bottom = means.T
    empty = np.where(top <= _ROUNDING, 0.0, np.inf)
    ratios = np.where(bottom <= _ROUNDING, empty, top / np.where(bottom <= _ROUNDING, 1.0, bottom))
    # An observed value as it is, never between two of them: the middle of a number and infinity is no number.
    low, high = np.quantile(ratios[1:], [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(ratios[0]), float(low), float(high)


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p of a sign-flip permutation: how many of the 2^n choices of sign are as far from zero.

    With n seeds it cannot fall below 2^(1-n): 0.0625 for five. Beyond 16 seeds, 65,536 random choices stand for all.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    if count <= 16:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    else:
        drawn = np.random.default_rng(0).choice([1.0, -1.0], (65_536, count))
        signs = np.vstack([np.ones(count), drawn])
    return float((np.abs(signs @ values) >= abs(values.sum()) - _ROUNDING).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values in the order given; each may be read against the level as it is.

    No assumption about how the comparisons hang together is needed.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


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
