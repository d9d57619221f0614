"""Every method against AnchorLwF, seed by seed, corrected for their number; and how much less it loses."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from anchorlwf.arena.study_results import OURS, Cell, Study
from anchorlwf.evaluation.stats import Paired, holm, paired_bootstrap, paired_ratio, sign_flip

__all__ = ["LEVEL", "Comparison", "Ratio", "compare_all", "lost_ratio"]

LEVEL = 0.05
"""Of the whole family of comparisons."""

_PREFIX = {"recall": "recall:", "kept": "retain:"}
Over = Literal["seeds and probes", "seeds"]
_OVER: dict[bool, Over] = {True: "seeds and probes", False: "seeds"}


@dataclass(frozen=True)
class Comparison:
    """One measure of one method minus that of AnchorLwF, over the seeds that both ran."""

    regime: str
    method: str
    measure: Literal["recall", "kept"]
    seeds: int
    over: Over
    """What the bootstrap drew again: probes only where both methods' outcomes are at hand for every seed."""
    paired: Paired
    """Its p is that of the bootstrap; over seeds alone, the exact one."""
    sign_flip: float
    """Exact p over the seeds alone."""
    family: int
    """How many comparisons the correction is for."""
    adjusted: float
    """Holm's p."""

    @property
    def differs(self) -> bool:
        """Distinguishable from zero after correction."""
        return self.adjusted <= LEVEL

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.differs:
            return f"not distinguishable from zero after correction for {self.family} comparisons"
        side = "higher" if self.paired.difference > 0 else "lower"
        return f"{side} than AnchorLwF after correction for {self.family} comparisons"


@dataclass(frozen=True)
class Ratio:
    """Facts lost by AnchorLwF over facts lost by the baseline."""

    ours: float
    """Mean count per seed."""
    theirs: float
    value: float | None
    """None: the baseline lost none and AnchorLwF some."""
    low: float | None
    high: float | None
    """None: infinite."""
    over: Over
    seeds: int


def _common(first: Cell, second: Cell, prefix: str) -> list[str]:
    return sorted(key for key in first.outcomes.keys() & second.outcomes.keys() if key.startswith(prefix))


def _blocks(pairs: list[tuple[Cell, Cell]], measure: Literal["recall", "kept"]) -> tuple[list[list[float]], bool]:
    """Differences (first - second) by seed and probe, or by seed alone; and whether it is by probe."""
    by_seed = [(a.measures.value(measure), b.measures.value(measure)) for a, b in pairs]
    probes = [_common(a, b, _PREFIX[measure]) for a, b in pairs]
    if all(probes):
        blocks = [
            [float(a.outcomes[key] - b.outcomes[key]) for key in keys]
            for (a, b), keys in zip(pairs, probes, strict=True)
        ]
        return blocks, True
    return [[first - second] for first, second in by_seed if first is not None and second is not None], False


def _comparisons(study: Study) -> Iterator[Comparison]:
    for regime in study.regimes:
        for method in study.measured(regime):
            pairs = list(study.pairs(regime, method, OURS))
            if method == OURS or not pairs:
                continue
            for measure in ("recall", "kept"):
                blocks, by_probe = _blocks(pairs, measure)
                if blocks:
                    exact = sign_flip([sum(block) / len(block) for block in blocks])
                    paired, over = paired_bootstrap(blocks), _OVER[by_probe]
                    if not by_probe:  # a handful of differences of one sign, drawn again, keep that sign
                        paired = replace(paired, p=exact)
                    yield Comparison(regime, method, measure, len(blocks), over, paired, exact, 0, 1.0)


def compare_all(study: Study) -> list[Comparison]:
    """Recall and kept of every method against AnchorLwF in every regime: one family, one correction."""
    comparisons = list(_comparisons(study))
    family = len(comparisons)
    adjusted = holm([comparison.paired.p for comparison in comparisons])
    return [replace(comparison, family=family, adjusted=p) for comparison, p in zip(comparisons, adjusted, strict=True)]


def lost_ratio(study: Study, regime: str, baseline: str) -> Ratio | None:
    """How many times the facts the baseline lost AnchorLwF lost, over common seeds.

    None where they were not counted in both, or where the base knew none that could be lost.

    The interval draws facts again within seeds where the outcomes account for every fact lost, else seeds alone.
    """
    counted = [
        (ours, theirs)
        for ours, theirs in study.pairs(regime, OURS, baseline)
        if ours.measures.facts_lost is not None and theirs.measures.facts_lost is not None
        if ours.measures.facts_known != 0
    ]
    if not counted:
        return None
    pairs: list[list[tuple[float, float]]] = []
    by_probe = True
    for ours, theirs in counted:
        keys = _common(ours, theirs, _PREFIX["kept"])
        block = [(1.0 - ours.outcomes[key], 1.0 - theirs.outcomes[key]) for key in keys]
        counts = (float(ours.measures.facts_lost or 0), float(theirs.measures.facts_lost or 0))
        by_probe &= bool(block) and tuple(map(sum, zip(*block, strict=True))) == counts
        pairs.append(block if by_probe else [counts])
    if not by_probe:
        pairs = [[(float(a.measures.facts_lost or 0), float(b.measures.facts_lost or 0))] for a, b in counted]
    ratio, low, high = paired_ratio(pairs)
    means = [sum(cell.measures.facts_lost or 0 for cell in side) / len(counted) for side in zip(*counted, strict=True)]
    value, least, most = (number if isfinite(number) else None for number in (ratio, low, high))
    return Ratio(means[0], means[1], value, least, most, _OVER[by_probe], len(counted))
