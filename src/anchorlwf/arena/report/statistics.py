"""What the cells of a study say: means over seeds, their intervals, and who is on the Pareto front."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from anchorlwf.arena.study_results import Study
from anchorlwf.evaluation.stats import bootstrap_interval

__all__ = [
    "COSTS",
    "MEASURES",
    "TOLERANCE",
    "TRADE_OFFS",
    "Estimate",
    "Front",
    "Measure",
    "TradeOff",
    "estimate",
    "estimates",
    "extremes",
    "front",
    "pareto",
]

TOLERANCE = 1e-9
"""Means closer than this are a tie: rounding, not a margin. What chance can do is said by `Front.share`."""


@dataclass(frozen=True)
class Measure:
    """A column: what it is called, how it is written and which way is better."""

    name: str
    title: str
    unit: Literal["fraction", "nats", "count", "seconds", "flops", "bytes"]
    better: Literal["higher", "lower"]


MEASURES = (
    Measure("recall", "recall", "fraction", "higher"),
    Measure("paraphrase", "paraphrase", "fraction", "higher"),
    Measure("reverse", "reverse", "fraction", "higher"),
    Measure("near", "near", "fraction", "higher"),
    Measure("kept", "kept", "fraction", "higher"),
    Measure("skills", "skills", "fraction", "higher"),
    Measure("same", "same answers", "fraction", "higher"),
    Measure("leaks", "leaks", "count", "lower"),
    Measure("kl_short", "KL short", "nats", "lower"),
    Measure("kl_long", "KL long", "nats", "lower"),
    Measure("facts_lost", "facts lost", "count", "lower"),
    Measure("flips", "flips", "count", "lower"),
)
COSTS = (
    Measure("annotated_tokens", "annotated tokens", "count", "lower"),
    Measure("annotation_actions", "annotator's actions", "count", "lower"),
    Measure("completion_tokens", "completion tokens", "count", "lower"),
    Measure("trained_tokens", "trained tokens", "count", "lower"),
    Measure("steps", "steps", "count", "lower"),
    Measure("seconds", "seconds", "seconds", "lower"),
    Measure("flops", "FLOPs", "flops", "lower"),
    Measure("peak_memory_bytes", "peak memory", "bytes", "lower"),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with a bootstrap interval over them. One seed: the interval is the point itself."""

    mean: float
    low: float
    high: float
    values: dict[int, float]
    """By seed."""


def estimate(values: Mapping[int, float | None]) -> Estimate | None:
    """Sum up one measure by seed; None where no seed measured it."""
    known = {seed: value for seed, value in values.items() if value is not None}
    if not known:
        return None
    low, high = bootstrap_interval(list(known.values()))
    return Estimate(sum(known.values()) / len(known), low, high, known)


def estimates(study: Study, regime: str, method: str) -> dict[str, Estimate | None]:
    """Every measure, cost and derived quantity of one method in one regime."""
    cells = study.of(regime, method)
    names = ("learned", "lost", "near_lost", *(measure.name for measure in MEASURES))
    summed = {name: estimate({cell.seed: cell.measures.value(name) for cell in cells}) for name in names}
    for cost in COSTS:
        summed[cost.name] = estimate({cell.seed: getattr(cell.costs, cost.name) for cell in cells})
    return summed


def extremes(values: Mapping[str, float | None], better: str) -> dict[str, Literal["best", "worst"]]:
    """Which methods are best and worst, ties included; nobody where all are alike."""
    known = {name: value for name, value in values.items() if value is not None}
    if not known or max(known.values()) - min(known.values()) <= TOLERANCE:
        return {}
    high, low = max(known.values()), min(known.values())
    best, worst = (high, low) if better == "higher" else (low, high)
    marks: dict[str, Literal["best", "worst"]] = {}
    for name, value in known.items():
        if abs(value - best) <= TOLERANCE:
            marks[name] = "best"
        elif abs(value - worst) <= TOLERANCE:
            marks[name] = "worst"
    return marks


@dataclass(frozen=True)
class TradeOff:
    """The two quantities a front is drawn over: more of `learned`, less of `harm`."""

    name: str
    harm: str
    title: str


TRADE_OFFS = (
    TradeOff("pareto", "lost", "unrelated facts lost"),
    TradeOff("pareto_near", "near_lost", "near facts lost"),
)


@dataclass(frozen=True)
class Front:
    """Who is on the front of one regime, who dominates the others, and how sure that is."""

    points: dict[str, tuple[float, float]]
    """(learned, harm) of every method that measured both; means over its seeds."""
    members: list[str]
    """Best harm first."""
    dominated_by: dict[str, list[str]]
    """For each method off the front, who is at least as good in both and better in one."""
    ties: list[tuple[str, str]]
    """Members with equal points: neither dominates the other."""
    share: dict[str, float] = field(default_factory=dict)
    """In what share of bootstrap resamples of the common seeds a method is on the front. Empty: fewer than two."""


def _dominates(learned: np.ndarray, harm: np.ndarray, tolerance: float) -> np.ndarray:
    """[..., M] points to [..., M, M]: does the first dominate the second?"""
    gain = learned[..., :, None] - learned[..., None, :]
    spare = harm[..., None, :] - harm[..., :, None]
    return (gain >= -tolerance) & (spare >= -tolerance) & ((gain > tolerance) | (spare > tolerance))


def pareto(points: Mapping[str, tuple[float, float]], tolerance: float = TOLERANCE) -> Front:
    """The front over (learned, harm): no other method at least as good in both and better in one.

    Differences up to `tolerance` count as none. A front of anything is never empty.
    """
    names = list(points)
    values = np.array([points[name] for name in names]).reshape(-1, 2)
    better = _dominates(values[:, 0], values[:, 1], tolerance)
    dominated = {name: [names[i] for i in np.flatnonzero(better[:, index])] for index, name in enumerate(names)}
    members = sorted((name for name in names if not dominated[name]), key=lambda name: points[name][::-1])
    close = np.abs(values[:, None] - values[None]).max(axis=-1, initial=0) <= tolerance
    ties = [
        (names[i], names[j]) for i, j in np.argwhere(np.triu(close, 1)) if names[i] in members and names[j] in members
    ]
    return Front(dict(points), members, {name: by for name, by in dominated.items() if by}, ties)


def front(study: Study, regime: str, trade_off: TradeOff, *, resamples: int = 2000) -> Front:
    """The front of one regime, with each method's share of resamples (seeds drawn again, the same for all)."""
    means: dict[str, tuple[float, float]] = {}
    by_seed: dict[str, dict[int, tuple[float, float]]] = {}
    for method in study.measured(regime):
        cells = study.of(regime, method)
        pairs = {cell.seed: (cell.measures.learned, cell.measures.value(trade_off.harm)) for cell in cells}
        known = {
            seed: (learned, harm) for seed, (learned, harm) in pairs.items() if learned is not None and harm is not None
        }
        if known:
            by_seed[method] = known
            learned, harm = np.mean(list(known.values()), axis=0)
            means[method] = (float(learned), float(harm))
    front_of_means = pareto(means)
    common = sorted(set.intersection(*(set(known) for known in by_seed.values()))) if by_seed else []
    if len(common) < 2:
        return front_of_means
    values = np.array([[known[seed] for seed in common] for known in by_seed.values()])
    drawn = np.random.default_rng(0).integers(0, len(common), (resamples, len(common)))
    resampled = values[:, drawn].mean(axis=2)
    beaten = _dominates(resampled[..., 0].T, resampled[..., 1].T, TOLERANCE).any(axis=1)
    shares = 1 - beaten.mean(axis=0)
    return replace(front_of_means, share=dict(zip(by_seed, map(float, shares), strict=True)))
